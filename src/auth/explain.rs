//! Explains, claim by claim, what is wrong with a token: for an operator who holds it.
//!
//! Explains, never decides: the verdict is the one of [`Verifier::verify`].
//!
//! Invariant: no remark holds the token or its signature.

mod wording;

#[cfg(test)]
mod tests;

use std::time::SystemTime;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Header, Validation, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};

use self::wording::{known_algorithms, moment, shown};
use super::{
    Identity, Refusal, Verifier,
    claims::{id_text, time, unix_seconds},
    keys::Key,
    presented::{MAX_TOKEN_BYTES, bearer},
};
use crate::{
    config::JwtConfig,
    user::{TenantId, UserId},
};

/// Whether a part of a token is as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    Good,
    /// Accepted, but probably not intended.
    Odd,
    Bad,
}

/// A remark on one part of a token.
#[derive(Debug)]
pub(crate) struct Remark {
    /// The part, e.g. `signature` or `exp`.
    pub(crate) part: &'static str,
    pub(crate) fit: Fit,
    pub(crate) text: String,
}

/// Seconds since 1970 from which on a time is probably one in milliseconds: the year 5138.
const FIRST_MILLISECONDS: u64 = 100_000_000_000;

impl Verifier {
    /// Verifies a token as a client presents it, and explains the verdict. `config` must be
    /// the one that this verifier was made from.
    pub(crate) async fn examine(
        &self,
        presented: &str,
        config: &JwtConfig,
    ) -> (Vec<Remark>, Result<Identity, Refusal>) {
        let token = bearer(presented).unwrap_or(presented);
        // First, since verifying may fetch the key that the explanation needs.
        let verdict = self.verify(token).await;
        (self.explain(token, config), verdict)
    }

    fn explain(&self, token: &str, config: &JwtConfig) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let (header, claims) = match parts(token) {
            Ok(parts) => parts,
            Err(why) => {
                note(&mut remarks, "format", Fit::Bad, why);
                return remarks;
            }
        };
        let bytes = token.len();
        note(
            &mut remarks,
            "format",
            Fit::Good,
            format!("a JWT of {bytes} bytes"),
        );
        self.explain_signature(token, &header, &mut remarks);
        self.explain_times(&claims, config, &mut remarks);
        for (name, expected) in [("iss", config.issuer()), ("aud", config.audience())] {
            explain_expected(name, expected, &claims, &mut remarks);
        }
        self.explain_ids(&claims, &mut remarks);
        remarks
    }

    fn explain_signature(&self, token: &str, raw: &Value, remarks: &mut Vec<Remark>) {
        let named = raw.get("alg").and_then(Value::as_str);
        let alg = named.map_or_else(|| "none named".to_owned(), shown);
        let Ok(header) = decode_header(token) else {
            let text = format!("{alg}: not an algorithm that is accepted for any key");
            return note(remarks, "alg", Fit::Bad, text);
        };
        if header.crit.is_some() {
            let text = "the header demands extensions (crit), and none is understood";
            note(remarks, "crit", Fit::Bad, text);
        }
        let set = self.jwks.as_ref().map(super::Jwks::keys);
        let keys = self.keys.iter();
        let keys: Vec<&Key> = keys.chain(set.iter().flat_map(|set| set.iter())).collect();
        let fits_alg = |key: &&&Key| key.algorithms().contains(&header.alg);
        if !keys.iter().any(|key| fits_alg(&key)) {
            let known = known_algorithms(&keys);
            let text = format!("{alg}: no configured key is for it (they are for {known})");
            return note(remarks, "alg", Fit::Bad, text);
        }
        note(remarks, "alg", Fit::Good, alg);
        let candidates: Vec<_> = keys.iter().filter(|key| key.may_verify(&header)).collect();
        if let (Some(kid), true) = (&header.kid, candidates.is_empty()) {
            let text = format!("no configured key has the id {}", shown(kid));
            return note(remarks, "kid", Fit::Bad, text);
        }
        match candidates.iter().any(|key| signed_by(key, token, &header)) {
            true => note(
                remarks,
                "signature",
                Fit::Good,
                "made with a configured key",
            ),
            false => note(
                remarks,
                "signature",
                Fit::Bad,
                "not made with a configured key: the signer has another secret or key, or the token was changed",
            ),
        }
    }

    fn explain_times(
        &self,
        claims: &Map<String, Value>,
        config: &JwtConfig,
        remarks: &mut Vec<Remark>,
    ) {
        let now = unix_seconds(SystemTime::now());
        let leeway = self.leeway().as_secs();
        for name in ["exp", "nbf", "iat"] {
            let seconds = match time(claims, name) {
                Ok(Some(time)) => unix_seconds(time),
                Ok(None) => {
                    match name {
                        "exp" if config.jwt_require_exp => {
                            let text = "missing, and required (JWT_REQUIRE_EXP)";
                            note(remarks, name, Fit::Bad, text);
                        }
                        "exp" => note(remarks, name, Fit::Odd, "missing: the token never expires"),
                        "iat" => {
                            let text = "missing: counts as older than every revocation";
                            note(remarks, name, Fit::Good, text);
                        }
                        _ => {}
                    }
                    continue;
                }
                Err(_) => {
                    note(
                        remarks,
                        name,
                        Fit::Bad,
                        "is not a number of seconds since 1970",
                    );
                    continue;
                }
            };
            let when = moment(seconds, now);
            let (fit, comment) = match name {
                "exp" if seconds.saturating_add(leeway) < now => (Fit::Bad, "expired"),
                "nbf" if seconds > now.saturating_add(leeway) => (Fit::Bad, "not valid yet"),
                _ if seconds >= FIRST_MILLISECONDS => {
                    (Fit::Odd, "probably milliseconds, which should be seconds")
                }
                "iat" if seconds > now.saturating_add(leeway) => (
                    Fit::Odd,
                    "in the future: the issuer's clock or this one is wrong",
                ),
                _ => (Fit::Good, ""),
            };
            let text = match comment {
                "" => when,
                comment => format!("{when}: {comment}"),
            };
            note(remarks, name, fit, text);
        }
    }

    fn explain_ids(&self, claims: &Map<String, Value>, remarks: &mut Vec<Remark>) {
        let mut names = self.id_claims.user_id.iter();
        let found = names.find_map(|name| Some((name, claims.get(name)?)));
        let (fit, text) = match found {
            None => {
                let names = self.id_claims.user_id.join(" or ");
                (Fit::Bad, format!("missing: expected in the claim {names}"))
            }
            Some((name, value)) => match id_text(value).map(|id| UserId::parse(&id)) {
                Some(Ok(id)) => (Fit::Good, format!("{} (claim {name})", shown(id.as_str()))),
                Some(Err(why)) => (Fit::Bad, format!("the claim {name} {why}")),
                None => (
                    Fit::Bad,
                    format!("the claim {name} is no string or integer"),
                ),
            },
        };
        note(remarks, "user_id", fit, text);
        let name = &self.id_claims.tenant_id;
        let (fit, text) = match (claims.get(name), &self.id_claims.default_tenant) {
            (None, Some(tenant)) => {
                let tenant = shown(tenant.as_str());
                let text = format!("{tenant} (JWT_DEFAULT_TENANT_ID; the claim {name} is missing)");
                (Fit::Good, text)
            }
            (None, None) if self.id_claims.tenant_required => (
                Fit::Bad,
                format!("the claim {name} is missing, and RABBITMQ_BINDING_KEYS need it"),
            ),
            (None, None) => (
                Fit::Odd,
                format!("the claim {name} is missing: updates are not filtered by tenant"),
            ),
            (Some(value), _) => match id_text(value).map(|id| TenantId::parse(&id)) {
                Some(Ok(id)) => (Fit::Good, format!("{} (claim {name})", shown(id.as_str()))),
                Some(Err(why)) => (Fit::Bad, format!("the claim {name} {why}")),
                None => (
                    Fit::Bad,
                    format!("the claim {name} is no string or integer"),
                ),
            },
        };
        note(remarks, "tenant_id", fit, text);
        if claims.get("jti").is_some_and(|id| !id.is_string()) {
            note(remarks, "jti", Fit::Bad, "is not a string");
        }
    }
}

fn note(remarks: &mut Vec<Remark>, part: &'static str, fit: Fit, text: impl Into<String>) {
    let text = text.into();
    remarks.push(Remark { part, fit, text });
}

/// The header and the claims, not verified.
fn parts(token: &str) -> Result<(Value, Map<String, Value>), String> {
    if token.is_empty() {
        return Err("empty".to_owned());
    }
    if token.len() > MAX_TOKEN_BYTES {
        let bytes = token.len();
        return Err(format!(
            "{bytes} bytes, and over {MAX_TOKEN_BYTES} none is looked at"
        ));
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, _] = parts[..] else {
        let known = match parts.len() {
            5 => " (five: an encrypted token, which is not supported)",
            _ => "",
        };
        return Err(format!("not a JWT: no three parts between dots{known}"));
    };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header = decode(header).and_then(|json| serde_json::from_slice(&json).ok());
    let header = header.ok_or("not a JWT: its first part is no JSON in base64url")?;
    let claims = decode(claims).and_then(|json| serde_json::from_slice(&json).ok());
    let claims = claims.ok_or("not a JWT: its second part is no JSON object in base64url")?;
    Ok((header, claims))
}

fn signed_by(key: &Key, token: &str, header: &Header) -> bool {
    let mut validation = Validation {
        algorithms: Vec::new(),
        validate_exp: false,
        validate_nbf: false,
        validate_aud: false,
        ..Validation::default()
    };
    validation.required_spec_claims.clear();
    match key.decode(token, header, &validation) {
        Ok(_) => true,
        // The library checks the signature before it reads the claims.
        Err(error) => matches!(error.kind(), ErrorKind::Json(_)),
    }
}

fn explain_expected(
    name: &'static str,
    expected: Option<&str>,
    claims: &Map<String, Value>,
    remarks: &mut Vec<Remark>,
) {
    let value = claims.get(name);
    let given = match value {
        None => "missing".to_owned(),
        Some(Value::String(text)) => shown(text),
        Some(other) => shown(&other.to_string()),
    };
    let Some(expected) = expected else {
        if value.is_some() {
            note(remarks, name, Fit::Good, format!("{given}, not checked"));
        }
        return;
    };
    let is_expected = match value {
        Some(Value::String(text)) => text == expected,
        Some(Value::Array(list)) => list.iter().any(|text| text == expected),
        _ => false,
    };
    if is_expected {
        return note(remarks, name, Fit::Good, given);
    }
    let text = format!("{given}; {} is required", shown(expected));
    note(remarks, name, Fit::Bad, text);
}
