//! Who a token says its bearer is: JWT verification on connect, and signing for
//! the `token` command and the development mode.
//!
//! Invariant: an [`Identity`] comes out of [`Verifier::verify`] and nowhere else.
//! What a client may read about a refusal is [`Refusal`]'s `Display`, a type of
//! its own, so that no library's error text can leak to a browser.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, errors::ErrorKind,
};
use serde_json::{Map, Value, json};

use crate::{
    config::{JwtConfig, Secret},
    user::{TenantId, User, UserId},
};

/// Clock difference that is tolerated between this host and the token's issuer.
const LEEWAY: Duration = Duration::from_secs(5);

/// Longest token that is looked at, in bytes. Request headers of 8 KB are the
/// common limit elsewhere, so that real tokens are shorter.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// A verified bearer.
#[derive(Debug, Clone)]
pub struct Identity {
    user: User,
}

impl Identity {
    pub fn user(&self) -> &User {
        &self.user
    }
}

/// Why a connection is refused. `Display` is the `message` of the client's
/// `connect_error`; [`Refusal::label`] is the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("token missing")]
    TokenMissing,
    #[error("invalid token")]
    TokenInvalid,
    #[error("token expired")]
    TokenExpired,
    #[error("token not valid yet")]
    TokenNotYetValid,
    #[error("token without expiry")]
    TokenWithoutExpiry,
    #[error("token issuer not accepted")]
    Issuer,
    #[error("token audience not accepted")]
    Audience,
    #[error("token without user id")]
    UserIdMissing,
    #[error("user id not acceptable")]
    UserIdInvalid,
    #[error("token without tenant id")]
    TenantIdMissing,
    #[error("tenant id not acceptable")]
    TenantIdInvalid,
    #[error("server is shutting down")]
    ShuttingDown,
}

impl Refusal {
    pub fn label(self) -> &'static str {
        match self {
            Self::TokenMissing => "token_missing",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenWithoutExpiry => "token_without_expiry",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::UserIdMissing => "user_id_missing",
            Self::UserIdInvalid => "user_id_invalid",
            Self::TenantIdMissing => "tenant_id_missing",
            Self::TenantIdInvalid => "tenant_id_invalid",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// Checks tokens against the configured key and claims.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
    user_id_claims: Vec<String>,
    tenant_id_claim: String,
    tenant_required: bool,
}

impl Verifier {
    /// `tenant_required`: the binding keys cannot be made without a tenant.
    pub fn new(secret: &str, config: &JwtConfig, tenant_required: bool) -> Self {
        // The algorithms come from the kind of key, never from the token.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.algorithms = vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        if let Some(issuer) = config.issuer() {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        match config.audience() {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".to_owned());
            }
            None => validation.validate_aud = false,
        }
        Self {
            key: DecodingKey::from_secret(secret.as_bytes()),
            validation,
            user_id_claims: match config.user_id_claim() {
                Some(claim) => vec![claim.to_owned()],
                None => vec!["userId".to_owned(), "sub".to_owned()],
            },
            tenant_id_claim: config.jwt_tenant_id_claim.clone(),
            tenant_required,
        }
    }

    /// Verifies signature, times, issuer and audience, then the ids inside.
    pub fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        if token.is_empty() {
            return Err(Refusal::TokenMissing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::TokenInvalid);
        }
        let claims = decode::<Map<String, Value>>(token, &self.key, &self.validation)
            .map_err(|error| refusal(error.kind()))?
            .claims;
        let user_id = self
            .user_id_claims
            .iter()
            .find_map(|claim| present(&claims, claim))
            .ok_or(Refusal::UserIdMissing)?;
        let user_id = id_text(user_id).ok_or(Refusal::UserIdInvalid)?;
        let tenant = match present(&claims, &self.tenant_id_claim) {
            Some(tenant) => {
                let tenant = id_text(tenant).ok_or(Refusal::TenantIdInvalid)?;
                Some(TenantId::parse(&tenant).map_err(|_| Refusal::TenantIdInvalid)?)
            }
            None if self.tenant_required => return Err(Refusal::TenantIdMissing),
            None => None,
        };
        Ok(Identity {
            user: User {
                id: UserId::parse(&user_id).map_err(|_| Refusal::UserIdInvalid)?,
                tenant,
            },
        })
    }
}

fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::ExpiredSignature => Refusal::TokenExpired,
        ErrorKind::ImmatureSignature => Refusal::TokenNotYetValid,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => Refusal::TokenWithoutExpiry,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => Refusal::Issuer,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Refusal::Audience,
        _ => Refusal::TokenInvalid,
    }
}

fn present<'a>(claims: &'a Map<String, Value>, claim: &str) -> Option<&'a Value> {
    claims.get(claim).filter(|value| !value.is_null())
}

/// Ids are strings or integers; anything else (1.5, true, an object) is no id.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// Makes tokens that a [`Verifier`] of the same configuration accepts.
pub struct Signer {
    key: EncodingKey,
    config: JwtConfig,
}

impl Signer {
    pub fn new(secret: &str, config: &JwtConfig) -> Self {
        Self {
            key: EncodingKey::from_secret(secret.as_bytes()),
            config: config.clone(),
        }
    }

    /// An HS256 token for `user` that expires after `lifetime`, and its expiry.
    pub fn sign(
        &self,
        user: &User,
        lifetime: Duration,
    ) -> Result<(String, SystemTime), jsonwebtoken::errors::Error> {
        let now = SystemTime::now();
        let expires_at = now + lifetime;
        let user_id_claim = self.config.user_id_claim();
        let mut claims = Map::new();
        claims.insert(
            user_id_claim.unwrap_or("userId").to_owned(),
            json!(user.id.as_str()),
        );
        if let Some(tenant) = &user.tenant {
            let claim = self.config.jwt_tenant_id_claim.clone();
            claims.insert(claim, json!(tenant.as_str()));
        }
        if let Some(issuer) = self.config.issuer() {
            claims.insert("iss".to_owned(), json!(issuer));
        }
        if let Some(audience) = self.config.audience() {
            claims.insert("aud".to_owned(), json!(audience));
        }
        claims.insert("iat".to_owned(), json!(unix_seconds(now)));
        claims.insert("exp".to_owned(), json!(unix_seconds(expires_at)));
        let token = encode(&Header::new(Algorithm::HS256), &claims, &self.key)?;
        Ok((token, expires_at))
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A random key of 256 bits, for a development mode that was given none.
pub fn make_up_secret() -> Secret {
    let (high, low): (u128, u128) = rand::random();
    Secret::new(format!("{high:032x}{low:032x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "a-secret-of-at-least-thirty-two-bytes";

    fn config() -> JwtConfig {
        JwtConfig {
            jwt_secret: None,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_user_id_claim: None,
            jwt_tenant_id_claim: "tenantId".to_owned(),
        }
    }

    fn in_an_hour() -> u64 {
        unix_seconds(SystemTime::now()) + 3600
    }

    fn token(algorithm: Algorithm, claims: &Value) -> String {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        encode(&Header::new(algorithm), claims, &key).unwrap()
    }

    fn verify_with(config: &JwtConfig, claims: Value) -> Result<User, Refusal> {
        Verifier::new(SECRET, config, false)
            .verify(&token(Algorithm::HS256, &claims))
            .map(|identity| identity.user().clone())
    }

    fn verify(claims: Value) -> Result<User, Refusal> {
        verify_with(&config(), claims)
    }

    #[test]
    fn the_documented_claims_are_read() {
        let user = verify(json!({"userId": "carl", "tenantId": "tnt_1", "exp": in_an_hour()}));
        let user = user.unwrap();
        assert_eq!(user.id.as_str(), "carl");
        assert_eq!(user.tenant.unwrap().as_str(), "tnt_1");
        let user = verify(json!({"sub": "carl", "exp": in_an_hour()})).unwrap();
        assert_eq!((user.id.as_str(), user.tenant), ("carl", None));
        let user = verify(json!({"userId": 42, "sub": "x", "exp": in_an_hour()})).unwrap();
        assert_eq!(user.id.as_str(), "42");
    }

    #[test]
    fn all_hs_algorithms_are_accepted() {
        let claims = json!({"userId": "carl", "exp": in_an_hour()});
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let verifier = Verifier::new(SECRET, &config(), false);
            assert!(verifier.verify(&token(algorithm, &claims)).is_ok());
        }
    }

    #[test]
    fn forged_tokens_are_refused() {
        let verifier = Verifier::new("another-secret-of-thirty-two-bytes!!", &config(), false);
        let claims = json!({"userId": "carl", "exp": in_an_hour()});
        let signed = token(Algorithm::HS256, &claims);
        let unsigned = {
            // {"alg":"none"} with the same claims and no signature.
            let payload = signed.split('.').nth(1).unwrap();
            format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.")
        };
        for token in [signed.as_str(), &unsigned, "x", "a.b.c", &"a".repeat(9000)] {
            assert_eq!(verifier.verify(token).unwrap_err(), Refusal::TokenInvalid);
        }
        assert_eq!(verifier.verify("").unwrap_err(), Refusal::TokenMissing);
    }

    #[test]
    fn times_are_checked_with_leeway() {
        let now = unix_seconds(SystemTime::now());
        let at = |exp: u64| verify(json!({"userId": "carl", "exp": exp}));
        assert_eq!(at(now - 60).unwrap_err(), Refusal::TokenExpired);
        assert!(at(now - 2).is_ok());
        assert_eq!(
            verify(json!({"userId": "carl"})).unwrap_err(),
            Refusal::TokenWithoutExpiry
        );
        let early = json!({"userId": "carl", "exp": in_an_hour(), "nbf": now + 60});
        assert_eq!(verify(early).unwrap_err(), Refusal::TokenNotYetValid);
    }

    #[test]
    fn issuer_and_audience_are_checked_when_configured() {
        let config = JwtConfig {
            jwt_issuer: Some("chat3".to_owned()),
            jwt_audience: Some("web".to_owned()),
            ..config()
        };
        let claims = |iss: &str, aud: Value| {
            let exp = in_an_hour();
            verify_with(
                &config,
                json!({"userId": "c", "exp": exp, "iss": iss, "aud": aud}),
            )
        };
        assert!(claims("chat3", json!(["web", "app"])).is_ok());
        assert_eq!(claims("x", json!("web")).unwrap_err(), Refusal::Issuer);
        assert_eq!(claims("chat3", json!("x")).unwrap_err(), Refusal::Audience);
        let without = json!({"userId": "c", "exp": in_an_hour()});
        assert!(verify_with(&config, without).is_err());
        let unasked = json!({"userId": "c", "exp": in_an_hour(), "aud": "any", "iss": "any"});
        assert!(verify(unasked).is_ok());
    }

    #[test]
    fn ids_that_are_no_ids_are_refused() {
        let with = |id: Value| verify(json!({"userId": id, "exp": in_an_hour()})).unwrap_err();
        for id in [json!("*"), json!("#"), json!("a b"), json!(""), json!(1.5)] {
            assert_eq!(with(id), Refusal::UserIdInvalid);
        }
        for id in [
            json!({"a": 1}),
            json!([]),
            json!(true),
            json!("a".repeat(300)),
        ] {
            assert_eq!(with(id), Refusal::UserIdInvalid);
        }
        assert_eq!(with(Value::Null), Refusal::UserIdMissing);
        let tenant = json!({"userId": "a", "tenantId": "*", "exp": in_an_hour()});
        assert_eq!(verify(tenant).unwrap_err(), Refusal::TenantIdInvalid);
    }

    #[test]
    fn a_tenant_is_required_when_the_binding_keys_need_one() {
        let verifier = Verifier::new(SECRET, &config(), true);
        let claims = json!({"userId": "carl", "exp": in_an_hour()});
        let refusal = verifier.verify(&token(Algorithm::HS256, &claims));
        assert_eq!(refusal.unwrap_err(), Refusal::TenantIdMissing);
    }

    #[test]
    fn signed_tokens_are_accepted_under_the_same_configuration() {
        let config = JwtConfig {
            jwt_issuer: Some("chat3".to_owned()),
            jwt_audience: Some("web".to_owned()),
            jwt_user_id_claim: Some("uid".to_owned()),
            ..config()
        };
        let user = User {
            id: UserId::parse("carl").unwrap(),
            tenant: Some(TenantId::parse("tnt_1").unwrap()),
        };
        let signer = Signer::new(SECRET, &config);
        let (token, _) = signer.sign(&user, Duration::from_secs(60)).unwrap();
        let verifier = Verifier::new(SECRET, &config, true);
        assert_eq!(verifier.verify(&token).unwrap().user(), &user);
    }
}
