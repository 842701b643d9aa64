//! Where a client's token is looked for. Pure.

use std::borrow::Cow;

use http::{header, request::Parts};
use serde_json::Value;

use super::Refusal;

/// Longest token that is looked at, in bytes. Other servers commonly limit request
/// headers to 8 KB, so real tokens are shorter.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The token that a client presents: in Socket.IO's `auth`, else in the header of its
/// handshake, else, if `allow_query`, in the handshake's query.
pub(super) fn presented<'a>(
    auth: Option<&'a Value>,
    handshake: &'a Parts,
    allow_query: bool,
) -> Result<Cow<'a, str>, Refusal> {
    match auth.and_then(|auth| auth.get("token")) {
        Some(Value::String(token)) => Ok(Cow::from(bearer(token).unwrap_or(token))),
        Some(Value::Null) | None => in_request(handshake, allow_query).ok_or(Refusal::TokenMissing),
        Some(_) => Err(Refusal::TokenInvalid),
    }
    .and_then(|token| match token.len() {
        ..=MAX_TOKEN_BYTES => Ok(token),
        _ => Err(Refusal::TokenInvalid),
    })
}

/// The token after the scheme of RFC 6750. `None` if there is another scheme, or none.
pub(super) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn in_request(request: &Parts, allow_query: bool) -> Option<Cow<'_, str>> {
    let header = request.headers.get(header::AUTHORIZATION);
    if let Some(token) = header.and_then(|value| bearer(value.to_str().ok()?)) {
        return Some(token.into());
    }
    let query = request.uri.query().filter(|_| allow_query)?;
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(name, value)| (name == "token").then_some(value))
}
