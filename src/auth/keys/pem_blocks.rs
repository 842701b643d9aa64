//! Reads keys from PEM blocks.

use jsonwebtoken::{Algorithm, DecodingKey};
use rsa::pkcs8::{
    ObjectIdentifier,
    spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef},
};

use Algorithm::{ES256, ES384, EdDSA};

use super::{InvalidKey, Key, RSA_ALGORITHMS};

// Object identifiers of kinds of keys (RFC 8017, RFC 5480, RFC 8410).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

impl Key {
    /// The public keys in a text of PEM blocks. A literal `\n` counts as a new line, since
    /// many environment files cannot hold a real one.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, InvalidKey> {
        let text = text.replace("\\n", "\n");
        let blocks = pem::parse_many(&text).map_err(|_| InvalidKey::MalformedPem)?;
        // The library skips blocks that do not end.
        match text.matches("-----BEGIN").count() {
            0 => return Err(InvalidKey::NoPem),
            begun if begun != blocks.len() => return Err(InvalidKey::MalformedPem),
            _ => {}
        }
        let key = |block: &pem::Pem| match block.tag() {
            "PUBLIC KEY" => Self::from_spki(block.contents()),
            "RSA PUBLIC KEY" => {
                Self::checked(DecodingKey::from_rsa_der(block.contents()), &RSA_ALGORITHMS)
            }
            tag if tag.contains("PRIVATE") => Err(InvalidKey::Private),
            _ => Err(InvalidKey::NotAPublicKey),
        };
        blocks.iter().map(key).collect()
    }

    /// The content of a `PUBLIC KEY` block: RFC 5280's `SubjectPublicKeyInfo`.
    fn from_spki(der: &[u8]) -> Result<Self, InvalidKey> {
        let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| InvalidKey::Malformed)?;
        let bits = info.subject_public_key.as_bytes();
        let bits = bits.ok_or(InvalidKey::Malformed)?;
        match kind(&info.algorithm) {
            (RSA, _) => Self::checked(DecodingKey::from_rsa_der(bits), &RSA_ALGORITHMS),
            (EC, Some(P256)) => Self::checked(DecodingKey::from_ec_der(bits), &[ES256]),
            (EC, Some(P384)) => Self::checked(DecodingKey::from_ec_der(bits), &[ES384]),
            (ED25519, _) => Self::checked(DecodingKey::from_ed_der(bits), &[EdDSA]),
            _ => Err(InvalidKey::Unsupported),
        }
    }
}

fn kind(algorithm: &AlgorithmIdentifierRef<'_>) -> (ObjectIdentifier, Option<ObjectIdentifier>) {
    (algorithm.oid, algorithm.parameters_oid().ok())
}
