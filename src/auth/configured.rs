//! Reads the keys that the configuration names, once.

use std::path::PathBuf;

use tracing::warn;

use super::{
    MAX_TRIES,
    jwks::JwksError,
    keys::{InvalidKey, Key, MIN_SECRET_BYTES},
};
use crate::config::{JwtConfig, Secret};

/// Why there is no verifier: what an operator must mend.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "no key to verify tokens with: set JWT_SECRET, JWT_PUBLIC_KEY, JWT_PUBLIC_KEY_FILE or \
         JWT_JWKS (to try without any, run `chat3-gateway dev`)"
    )]
    NoKey,
    #[error("{0} {1}")]
    Invalid(&'static str, InvalidKey),
    #[error("JWT_PUBLIC_KEY_FILE: cannot read {0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    #[error("JWT_JWKS {0}")]
    Jwks(#[from] JwksError),
}

/// Reads the key set once, if one is configured.
#[cfg(feature = "cli")]
pub(crate) async fn read_key_set(
    config: &JwtConfig,
) -> Result<Option<super::keys::KeySet>, JwksError> {
    match super::jwks::Source::new(&config.jwt_jwks, config.jwks_ca_file())? {
        Some(source) => source.read().await.map(Some),
        None => Ok(None),
    }
}

/// The keys from the secret and PEM blocks.
pub(crate) fn configured_keys(config: &JwtConfig) -> Result<Vec<Key>, KeyError> {
    let mut keys = Vec::new();
    if let Some(secret) = config.jwt_secret.as_ref().and_then(Secret::expose) {
        let key = Key::from_secret(secret);
        keys.push(key.map_err(|invalid| KeyError::Invalid("JWT_SECRET", invalid))?);
        if secret.len() < MIN_SECRET_BYTES {
            warn!(
                bytes = secret.len(),
                "JWT_SECRET is weak: use {MIN_SECRET_BYTES} random bytes or more (openssl rand -hex 32)"
            );
        }
    }
    if let Some(pem) = config.jwt_public_key.as_ref().and_then(Secret::expose) {
        let from_pem = Key::from_pem(pem);
        keys.extend(from_pem.map_err(|invalid| KeyError::Invalid("JWT_PUBLIC_KEY", invalid))?);
    }
    if let Some(path) = config.public_key_file() {
        let pem = std::fs::read_to_string(path);
        let pem = pem.map_err(|error| KeyError::Unreadable(path.to_owned(), error))?;
        let invalid = |invalid| KeyError::Invalid("JWT_PUBLIC_KEY_FILE", invalid);
        keys.extend(Key::from_pem(&pem).map_err(invalid)?);
    }
    if keys.iter().any(Key::has_small_exponent) {
        warn!(
            "A public key is weak: RSA with an exponent under 65537; have the issuer make a new one"
        );
    }
    for key in &keys {
        let algorithm = key.algorithms()[0];
        let is_rival = |other: &&Key| other.algorithms().contains(&algorithm);
        if keys.iter().filter(is_rival).count() > MAX_TRIES {
            warn!(
                ?algorithm,
                "Too many public keys for one algorithm: a token is tried with the first {MAX_TRIES}"
            );
            break;
        }
    }
    Ok(keys)
}
