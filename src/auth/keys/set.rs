//! Reads keys from a JSON Web Key Set (RFC 7517).

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512};

use super::{InvalidKey, Key, MIN_SECRET_BYTES, RSA_ALGORITHMS};

/// Keys taken from one set. Issuers have one to five.
pub(super) const MAX_KEYS: usize = 32;

/// A JSON Web Key Set, and what in it is not used.
pub struct KeySet {
    /// The usable keys.
    pub keys: Vec<Key>,
    /// A sentence for each key left out, for the log.
    pub ignored: Vec<String>,
}

impl KeySet {
    /// Reads a key set. Keys that are not understood are left out (RFC 7517, §5).
    /// `secrets`: whether `oct` keys are taken.
    pub fn parse(json: &[u8], secrets: bool) -> Result<Self, InvalidKey> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| InvalidKey::NotASet)?;
        let (mut keys, mut ignored) = (Vec::new(), Vec::new());
        for (value, number) in set.keys.into_iter().zip(1..) {
            if keys.len() == MAX_KEYS {
                ignored.push(format!("all after the first {MAX_KEYS} usable keys"));
                break;
            }
            let name = match value.get("kid").and_then(Value::as_str) {
                Some(kid) => format!("{:?}", kid.chars().take(64).collect::<String>()),
                None => format!("number {number}"),
            };
            let jwk = serde_json::from_value::<Jwk>(value).map_err(|_| "malformed");
            match jwk.and_then(|jwk| Key::from_jwk(&jwk, secrets)) {
                Ok(key) => keys.push(key),
                Err(why) => ignored.push(format!("key {name}: {why}")),
            }
        }
        match keys.is_empty() {
            true => Err(InvalidKey::NoUsableKey),
            false => Ok(Self { keys, ignored }),
        }
    }
}

impl Key {
    /// # Errors
    /// With the reason for the log, if the key cannot be used.
    fn from_jwk(jwk: &Jwk, secrets: bool) -> Result<Self, &'static str> {
        if matches!(&jwk.common.public_key_use, Some(r#use) if *r#use != PublicKeyUse::Signature) {
            return Err("not for signatures");
        }
        let operations = jwk.common.key_operations.as_ref();
        if operations.is_some_and(|these| !these.contains(&KeyOperations::Verify)) {
            return Err("not for verification");
        }
        let algorithms: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &RSA_ALGORITHMS,
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => &[ES256],
                EllipticCurve::P384 => &[ES384],
                _ => return Err("curve not supported"),
            },
            AlgorithmParameters::OctetKeyPair(key) => match key.curve {
                EllipticCurve::Ed25519 => &[EdDSA],
                _ => return Err("curve not supported"),
            },
            AlgorithmParameters::OctetKey(_) if secrets => &[HS256, HS384, HS512],
            AlgorithmParameters::OctetKey(_) => {
                return Err("a secret that was published; secrets are read from files only");
            }
            _ => return Err("kind of key not supported"),
        };
        // A key that names an algorithm is for that one only.
        let named = jwk.common.key_algorithm.map(|named| named.to_string());
        let is_meant = |algorithm: &Algorithm| match &named {
            Some(named) => *named == format!("{algorithm:?}"),
            None => true,
        };
        let algorithms: Vec<_> = algorithms.iter().copied().filter(is_meant).collect();
        if algorithms.is_empty() {
            return Err("algorithm not supported for its kind of key");
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|_| "malformed")?;
        if let (AlgorithmFamily::Hmac, DecodingKeyKind::SecretOrDer(secret)) =
            (key.family(), key.kind())
            && secret.len() < MIN_SECRET_BYTES
        {
            return Err("a secret under 32 bytes");
        }
        let key = Self::checked(key, &algorithms).map_err(|invalid| match invalid {
            InvalidKey::WeakRsa => "an RSA key under 2048 bits",
            InvalidKey::WeakEd25519 => "an Ed25519 key of small order",
            _ => "malformed",
        })?;
        Ok(Self {
            id: jwk.common.key_id.clone(),
            ..key
        })
    }
}
