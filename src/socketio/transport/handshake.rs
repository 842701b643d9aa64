//! Judges a request for a websocket, and answers it with the 101 of RFC 6455. Pure.
//!
//! Requests are judged as Node's Engine.IO 6 and `ws` 8 judge them, so that every client
//! that is let in there is let in here. Where they answer 101 and close, the answer here
//! is 400.

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    response::{IntoResponse, Response},
};
use socketioxide::socket::Sid;
use tungstenite::handshake::derive_accept_key;

use super::query::query_value;

/// Why a websocket is refused, in Engine.IO's terms and those of Node's `ws`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    UnknownSession,
    BadMethod,
    BadRequest,
    UnsupportedProtocol,
    Upgrade,
    Key,
    Version,
    Protocols,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let json = |text: &'static str| {
            let json = [(header::CONTENT_TYPE, "application/json")];
            (StatusCode::BAD_REQUEST, json, text).into_response()
        };
        let text = |text: &'static str| (StatusCode::BAD_REQUEST, text).into_response();
        match self {
            Self::UnknownSession => json(r#"{"code":1,"message":"Session ID unknown"}"#),
            Self::BadMethod => json(r#"{"code":2,"message":"Bad handshake method"}"#),
            Self::BadRequest => json(r#"{"code":3,"message":"Bad request"}"#),
            Self::UnsupportedProtocol => {
                json(r#"{"code":5,"message":"Unsupported protocol version"}"#)
            }
            Self::Upgrade => text("Missing or invalid Upgrade or Connection header"),
            Self::Key => text("Missing or invalid Sec-WebSocket-Key header"),
            Self::Protocols => text("Invalid Sec-WebSocket-Protocol header"),
            Self::Version => {
                let understood = [(header::SEC_WEBSOCKET_VERSION, "13")];
                let message = "Missing or invalid Sec-WebSocket-Version header";
                (StatusCode::UPGRADE_REQUIRED, understood, message).into_response()
            }
        }
    }
}

/// The session that a websocket names, if any, and the 101.
///
/// # Errors
/// When the request is not one for a websocket that could be served.
pub(super) fn judge(request: &Request) -> Result<(Option<Sid>, Response), Refusal> {
    let query = request.uri().query();
    let sid = query_value(query, "sid");
    let sid = sid.map(|sid| sid.parse().map_err(|_| Refusal::UnknownSession));
    let sid = sid.transpose()?;
    match (request.method(), sid) {
        (&Method::GET, _) => {}
        (_, None) => return Err(Refusal::BadMethod),
        (_, Some(_)) => return Err(Refusal::BadRequest),
    }
    // As engineioxide reads the version, see `is_websocket`.
    let version = query_value(query, "EIO").and_then(|value| value.split('=').next());
    if version != Some("4") {
        return Err(Refusal::UnsupportedProtocol);
    }
    Ok((sid, accept(request)?))
}

/// The server's part of the opening handshake (RFC 6455, 4.2).
fn accept(request: &Request) -> Result<Response, Refusal> {
    let headers = request.headers();
    if request.version() < Version::HTTP_11
        || !has_token(headers, header::UPGRADE, "websocket")
        || !has_token(headers, header::CONNECTION, "upgrade")
    {
        return Err(Refusal::Upgrade);
    }
    // The body's bytes would be read as the websocket's.
    if !request.body().is_end_stream() {
        return Err(Refusal::BadRequest);
    }
    let key = only(headers, header::SEC_WEBSOCKET_KEY).filter(|key| is_key(key));
    let key = key.ok_or(Refusal::Key)?;
    let version = only(headers, header::SEC_WEBSOCKET_VERSION);
    version
        .filter(|version| *version == b"13")
        .ok_or(Refusal::Version)?;
    let protocol = first_protocol(headers)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let accept = HeaderValue::try_from(derive_accept_key(key)).map_err(|_| Refusal::Key)?;
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

/// Whether a key is 16 bytes in base64. The unused bits of the last character may be
/// anything.
fn is_key(key: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    key.strip_suffix(b"==")
        .is_some_and(|digits| digits.len() == 22 && digits.iter().all(is_base64))
}

/// The first subprotocol that is offered: `ws` chooses it unless told otherwise.
fn first_protocol(headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    let is_token = |name: &&str| {
        let is_in_tokens =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !name.is_empty() && name.bytes().all(is_in_tokens)
    };
    let mut offered = Vec::new();
    for line in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let line = line.to_str().map_err(|_| Refusal::Protocols)?;
        for name in line.split(',').map(str::trim) {
            if !is_token(&name) || offered.contains(&name) {
                return Err(Refusal::Protocols);
            }
            offered.push(name);
        }
    }
    let first = offered.first().map(|name| HeaderValue::from_str(name));
    first.transpose().map_err(|_| Refusal::Protocols)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let lines = headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let mut tokens = lines.flat_map(|line| line.split(','));
    tokens.any(|other| other.trim().eq_ignore_ascii_case(token))
}

/// A header's value, if the header is there exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&[u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none());
    value.map(HeaderValue::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's request, with these headers in the place of the usual ones.
    fn request(query: &str, changed: &[(&str, &[&str])]) -> Request {
        let mut request = Request::get(format!("/socket.io/?{query}"));
        let usual: [(&str, &[&str]); 4] = [
            ("upgrade", &["websocket"]),
            ("connection", &["Upgrade"]),
            ("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQ=="]),
            ("sec-websocket-version", &["13"]),
        ];
        let is_changed = |name: &str| changed.iter().any(|(other, _)| *other == name);
        let usual = usual.iter().filter(|(name, _)| !is_changed(name));
        for (name, values) in usual.chain(changed) {
            for value in *values {
                request = request.header(*name, *value);
            }
        }
        request.body(Body::empty()).unwrap()
    }

    fn refusal(query: &str, changed: &[(&str, &[&str])]) -> Option<Refusal> {
        judge(&request(query, changed)).err()
    }

    const OPENS: &str = "EIO=4&transport=websocket";

    #[test]
    fn the_answer_to_a_handshake_is_that_of_the_standard() {
        let sid = Sid::new();
        let (named, accepted) = judge(&request(&format!("{OPENS}&sid={sid}"), &[])).unwrap();
        assert_eq!(named, Some(sid));
        assert_eq!(accepted.status(), StatusCode::SWITCHING_PROTOCOLS);
        let headers = accepted.headers();
        // RFC 6455, 1.3.
        assert_eq!(
            headers["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(headers["upgrade"], "websocket");
        assert!(!headers.contains_key("sec-websocket-protocol"));
        assert_eq!(judge(&request(OPENS, &[])).unwrap().0, None);
    }

    #[test]
    fn requests_are_judged_as_node_judges_them() {
        for (query, expected) in [
            (
                "EIO=3&transport=websocket",
                Some(Refusal::UnsupportedProtocol),
            ),
            ("transport=websocket", Some(Refusal::UnsupportedProtocol)),
            ("EIO=4=3&transport=websocket", None),
            (
                "EIO=4&transport=websocket&sid=x",
                Some(Refusal::UnknownSession),
            ),
            (
                "EIO=4&transport=websocket&sid=",
                Some(Refusal::UnknownSession),
            ),
        ] {
            assert_eq!(refusal(query, &[]), expected, "{query}");
        }
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        for (name, values, expected) in [
            ("upgrade", &[][..], Some(Refusal::Upgrade)),
            ("upgrade", &["h2c"], Some(Refusal::Upgrade)),
            ("upgrade", &["h2c, WebSocket"], None),
            ("connection", &["close"], Some(Refusal::Upgrade)),
            ("connection", &["keep-alive", "upgrade"], None),
            ("sec-websocket-key", &[], Some(Refusal::Key)),
            ("sec-websocket-key", &["short=="], Some(Refusal::Key)),
            (
                "sec-websocket-key",
                &["dGhlIHNhbXBsZSBub25jZ*=="],
                Some(Refusal::Key),
            ),
            ("sec-websocket-key", &[key, key], Some(Refusal::Key)),
            ("sec-websocket-version", &["8"], Some(Refusal::Version)),
            (
                "sec-websocket-version",
                &["13", "13"],
                Some(Refusal::Version),
            ),
            ("sec-websocket-protocol", &["a, b"], None),
            (
                "sec-websocket-protocol",
                &["a, a"],
                Some(Refusal::Protocols),
            ),
            ("sec-websocket-protocol", &["a,"], Some(Refusal::Protocols)),
            ("sec-websocket-protocol", &["a b"], Some(Refusal::Protocols)),
        ] {
            assert_eq!(
                refusal(OPENS, &[(name, values)]),
                expected,
                "{name} {values:?}"
            );
        }
    }

    #[test]
    fn the_first_subprotocol_is_chosen() {
        let offered: &[(&str, &[&str])] = &[("sec-websocket-protocol", &["b, a", "c"])];
        let (_, accepted) = judge(&request(OPENS, offered)).unwrap();
        assert_eq!(accepted.headers()["sec-websocket-protocol"], "b");
    }

    #[test]
    fn only_a_get_without_a_body_asks_for_a_websocket() {
        let mut post = request(OPENS, &[]);
        *post.method_mut() = Method::POST;
        assert_eq!(judge(&post).err(), Some(Refusal::BadMethod));
        let sid = Sid::new();
        let mut post = request(&format!("{OPENS}&sid={sid}"), &[]);
        *post.method_mut() = Method::POST;
        assert_eq!(judge(&post).err(), Some(Refusal::BadRequest));
        let with_body = request(OPENS, &[]).map(|_| Body::from("frames"));
        assert_eq!(judge(&with_body).err(), Some(Refusal::BadRequest));
        let mut old = request(OPENS, &[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(judge(&old).err(), Some(Refusal::Upgrade));
    }
}
