//! The keys that tokens are verified with. `pem_blocks` reads them from PEM blocks, `set` from a
//! JSON Web Key Set.
//!
//! Invariant: a [`Key`] knows from its kind which algorithms it is for. A token chooses
//! among these and gets no others: a public key is never an HMAC secret, and there is no
//! `none`.

mod pem_blocks;
mod set;

#[cfg(test)]
mod tests;

use ed25519_dalek::VerifyingKey;
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Header, Validation, crypto, decode,
    errors::Error,
};
use rsa::{BigUint, RsaPublicKey, pkcs1::DecodeRsaPublicKey, traits::PublicKeyParts};
use serde_json::{Map, Value};

pub use self::set::KeySet;
use super::signatures;

use Algorithm::{HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};

/// Shorter secrets can be guessed offline from one token. RFC 7518 §3.2 asks for
/// as many bytes as the hash has.
pub const MIN_SECRET_BYTES: usize = 32;

/// RFC 7518 §3.3.
const MIN_RSA_BITS: usize = 2048;

/// The RSA exponent that today's tools choose; older ones chose smaller exponents.
const COMMON_EXPONENT: u32 = 65_537;

/// Why a text is not a key. Never repeats the text.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("is a public key or PEM text, which everybody may know: put it into JWT_PUBLIC_KEY")]
    PublicSecret,
    #[error("holds no PEM block (-----BEGIN PUBLIC KEY-----)")]
    NoPem,
    #[error("holds a PEM block that is malformed")]
    MalformedPem,
    #[error("holds a private key; leave that with the issuer, here belongs its public half")]
    Private,
    #[error("holds a PEM block that is no PUBLIC KEY (of a certificate: openssl x509 -pubkey)")]
    NotAPublicKey,
    #[error("holds a key of a kind that is not supported (RSA, EC P-256, EC P-384, Ed25519 are)")]
    Unsupported,
    #[error("holds a key whose bytes are not valid for its kind, or over 4096 bits")]
    Malformed,
    #[error("holds an RSA key under 2048 bits")]
    WeakRsa,
    #[error("holds an Ed25519 key of small order, for which anybody can sign")]
    WeakEd25519,
    #[error("is no JSON Web Key Set ({{\"keys\": [...]}})")]
    NotASet,
    #[error("holds no usable key")]
    NoUsableKey,
}

/// A key, and the algorithms it is for.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
    has_small_exponent: bool,
}

impl Key {
    /// The key of HS256, HS384 and HS512 tokens.
    pub fn from_secret(secret: &str) -> Result<Self, InvalidKey> {
        // Some issuers' pages show the base64 inside a PEM block without the block.
        let unwrapped = format!("-----BEGIN PUBLIC KEY-----\n{secret}\n-----END PUBLIC KEY-----");
        if secret.contains("-----BEGIN") || Self::from_pem(&unwrapped).is_ok() {
            return Err(InvalidKey::PublicSecret);
        }
        signatures::install();
        Ok(Self {
            id: None,
            algorithms: vec![HS256, HS384, HS512],
            key: DecodingKey::from_secret(secret.as_bytes()),
            has_small_exponent: false,
        })
    }

    /// Checks a key now for what the library would find out with the first token, or panic
    /// at.
    fn checked(key: DecodingKey, algorithms: &[Algorithm]) -> Result<Self, InvalidKey> {
        signatures::install();
        let malformed = |_| InvalidKey::Malformed;
        let mut has_small_exponent = false;
        match (key.family(), key.kind()) {
            (AlgorithmFamily::Rsa, kind) => {
                let rsa = match kind {
                    DecodingKeyKind::SecretOrDer(der) => {
                        RsaPublicKey::from_pkcs1_der(der).map_err(|_| InvalidKey::Malformed)?
                    }
                    DecodingKeyKind::RsaModulusExponent { n, e } => {
                        let (n, e) = (BigUint::from_bytes_be(n), BigUint::from_bytes_be(e));
                        RsaPublicKey::new(n, e).map_err(|_| InvalidKey::Malformed)?
                    }
                };
                if rsa.n().bits() < MIN_RSA_BITS {
                    return Err(InvalidKey::WeakRsa);
                }
                has_small_exponent = *rsa.e() < BigUint::from(COMMON_EXPONENT);
            }
            (AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(bytes)) => {
                let bytes = bytes.as_slice().try_into();
                let bytes = bytes.map_err(|_| InvalidKey::Malformed)?;
                let point = VerifyingKey::from_bytes(bytes).map_err(|_| InvalidKey::Malformed)?;
                if point.is_weak() {
                    return Err(InvalidKey::WeakEd25519);
                }
            }
            (AlgorithmFamily::Hmac, _) => {}
            // The verifiers of curves check the key before the signature.
            _ => drop(crypto::verify("", b"", &key, algorithms[0]).map_err(malformed)?),
        }
        Ok(Self {
            id: None,
            algorithms: algorithms.to_vec(),
            key,
            has_small_exponent,
        })
    }

    /// The key's `kid`, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Whether this is an RSA key with an exponent under 65,537. Such a key can deceive a
    /// careless verifier, and shows that its issuer uses an unusual tool.
    pub fn has_small_exponent(&self) -> bool {
        self.has_small_exponent
    }

    /// The algorithms of tokens that this key may verify.
    pub fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    /// Whether a token with this header could be signed by this key. A `kid` is
    /// compared where both have one.
    pub fn may_verify(&self, header: &Header) -> bool {
        let is_it = match (&self.id, &header.kid) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        };
        is_it && self.algorithms.contains(&header.alg)
    }

    /// The claims of a token with this header, if this key has signed it and `validation`
    /// accepts it.
    pub fn decode(
        &self,
        token: &str,
        header: &Header,
        validation: &Validation,
    ) -> Result<Map<String, Value>, Error> {
        debug_assert!(self.may_verify(header));
        let validation = Validation {
            // One of this key's own, by `may_verify`. The library compares it again.
            algorithms: vec![header.alg],
            ..validation.clone()
        };
        decode(token, &self.key, &validation).map(|token| token.claims)
    }
}

/// The algorithms that an RSA key is for.
const RSA_ALGORITHMS: [Algorithm; 6] = [RS256, RS384, RS512, PS256, PS384, PS512];
