//! Makes tokens, for the `token` command and the development mode.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Map, json};

use super::{claims::unix_seconds, signatures};
use crate::{config::JwtConfig, user::User};

/// Makes tokens that a [`Verifier`](super::Verifier) of the same configuration accepts.
pub struct Signer {
    key: EncodingKey,
    config: JwtConfig,
}

impl Signer {
    /// Signs with `secret`, into the claims that `config` names.
    pub fn new(secret: &str, config: &JwtConfig) -> Self {
        signatures::install();
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

/// A random key of 256 bits, for a development mode that was given no key.
#[cfg(feature = "cli")]
pub fn make_up_secret() -> crate::config::Secret {
    let (high, low): (u128, u128) = rand::random();
    crate::config::Secret::new(format!("{high:032x}{low:032x}"))
}
