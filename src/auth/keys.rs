//! The keys that tokens are verified with, from a secret, PEM blocks or a JSON Web
//! Key Set.
//!
//! Invariant: a [`Key`] knows the algorithms that it is for, from its own kind. A
//! token chooses among these and gets no others: a public key is never an HMAC
//! secret, and there is no `none`.

use ed25519_dalek::VerifyingKey;
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Header, Validation, crypto, decode,
    errors::Error,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use rsa::{
    BigUint, RsaPublicKey,
    pkcs1::DecodeRsaPublicKey,
    pkcs8::{
        ObjectIdentifier,
        spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef},
    },
    traits::PublicKeyParts,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::signatures;

use Algorithm::{
    ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
};

/// Shorter secrets can be guessed offline from one token. RFC 7518 §3.2 asks for
/// as many bytes as the hash has.
pub const MIN_SECRET_BYTES: usize = 32;

/// RFC 7518 §3.3.
const MIN_RSA_BITS: usize = 2048;

/// What tools choose; smaller ones are from the time before.
const COMMON_EXPONENT: u32 = 65_537;

/// Keys taken from one set. Issuers have one to five.
const MAX_KEYS: usize = 32;

// Object identifiers of kinds of keys (RFC 8017, RFC 5480, RFC 8410).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Why a text is no key; never repeats it.
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

/// A key, and the algorithms that it is for.
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
        // Also the base64 inside a PEM block, which some issuers' pages show alone.
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

    /// The public keys in a text of PEM blocks; a literal `\n` counts as a new line,
    /// since environment files often cannot hold another.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, InvalidKey> {
        let text = text.replace("\\n", "\n");
        let blocks = pem::parse_many(&text).map_err(|_| InvalidKey::MalformedPem)?;
        // Blocks that do not end are passed over by the library.
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
        // A key that names its algorithm is for that one alone.
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

    /// Checks now what the library would find out, or panic at, with a token.
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
            // The verifiers of curves look at the key before the signature.
            _ => drop(crypto::verify("", b"", &key, algorithms[0]).map_err(malformed)?),
        }
        Ok(Self {
            id: None,
            algorithms: algorithms.to_vec(),
            key,
            has_small_exponent,
        })
    }

    /// Its `kid`, where it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Whether it is an RSA key whose exponent is under 65,537: such signatures can be
    /// forged where a verifier is careless, and this one's issuer uses an odd tool.
    pub fn has_small_exponent(&self) -> bool {
        self.has_small_exponent
    }

    /// What tokens may be signed with for this key.
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

    /// The claims of a token with this header, if this key signed it and `validation` accepts it.
    pub fn decode(
        &self,
        token: &str,
        header: &Header,
        validation: &Validation,
    ) -> Result<Map<String, Value>, Error> {
        debug_assert!(self.may_verify(header));
        let validation = Validation {
            // Of this key's own, by `may_verify`; compared again by the library.
            algorithms: vec![header.alg],
            ..validation.clone()
        };
        decode(token, &self.key, &validation).map(|token| token.claims)
    }
}

const RSA_ALGORITHMS: [Algorithm; 6] = [RS256, RS384, RS512, PS256, PS384, PS512];

fn kind(algorithm: &AlgorithmIdentifierRef<'_>) -> (ObjectIdentifier, Option<ObjectIdentifier>) {
    (algorithm.oid, algorithm.parameters_oid().ok())
}

/// A JSON Web Key Set, and what of it is not used.
pub struct KeySet {
    /// The usable keys.
    pub keys: Vec<Key>,
    /// A sentence for each key left out, for the log.
    pub ignored: Vec<String>,
}

impl KeySet {
    /// Reads a key set as RFC 7517 §5 wants it: keys that are not understood are
    /// left out. `secrets`: whether `oct` keys are taken.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    macro_rules! key_file {
        ($name:literal) => {
            include_str!(concat!("../../tests/fixtures/keys/", $name))
        };
    }

    fn algorithms(pem: &str) -> Result<Vec<Vec<Algorithm>>, InvalidKey> {
        let keys = Key::from_pem(pem)?;
        Ok(keys.into_iter().map(|key| key.algorithms).collect())
    }

    fn jwk(pem: &str, fields: &Value) -> Value {
        let key = &Key::from_pem(pem).unwrap()[0];
        let jwk = Jwk::from_decoding_key(&key.key, None).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        for (name, value) in fields.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }

    fn parse(keys: &[Value], secrets: bool) -> Result<KeySet, InvalidKey> {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes(), secrets)
    }

    /// What a set of this key alone is for, or why it is left out.
    fn alone(key: Value, secrets: bool) -> Result<Vec<Algorithm>, String> {
        let good = jwk(key_file!("ed25519.pub.pem"), &json!({}));
        let set = parse(&[key, good], secrets).unwrap();
        match set.ignored.first() {
            Some(why) => Err(why.clone()),
            None => Ok(set.keys[0].algorithms.clone()),
        }
    }

    #[test]
    fn each_kind_of_pem_block_is_for_its_own_algorithms() {
        let rsa = RSA_ALGORITHMS.to_vec();
        for (pem, expected) in [
            (key_file!("rsa.pub.pem"), rsa.clone()),
            (key_file!("rsa.pkcs1.pub.pem"), rsa),
            (key_file!("p256.pub.pem"), vec![ES256]),
            (key_file!("p384.pub.pem"), vec![ES384]),
            (key_file!("ed25519.pub.pem"), vec![EdDSA]),
        ] {
            assert_eq!(algorithms(pem), Ok(vec![expected.clone()]));
            let in_one_line = pem.replace('\n', "\\n");
            assert_eq!(algorithms(&in_one_line), Ok(vec![expected]));
        }
        let two = concat!(
            "# old\n",
            key_file!("p256.pub.pem"),
            "# new\n",
            key_file!("p384.pub.pem")
        );
        assert_eq!(algorithms(two), Ok(vec![vec![ES256], vec![ES384]]));
    }

    #[test]
    fn what_is_no_public_key_is_refused_with_what_it_is() {
        for (pem, expected) in [
            ("", InvalidKey::NoPem),
            ("a-secret", InvalidKey::NoPem),
            (key_file!("rsa.pem"), InvalidKey::Private),
            (key_file!("p256.pem"), InvalidKey::Private),
            (key_file!("certificate.pem"), InvalidKey::NotAPublicKey),
            (key_file!("p521.pub.pem"), InvalidKey::Unsupported),
            (key_file!("rsa1024.pub.pem"), InvalidKey::WeakRsa),
            ("-----BEGIN PUBLIC KEY-----\nMIIB", InvalidKey::MalformedPem),
            (
                "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
                InvalidKey::Malformed,
            ),
            (
                "-----BEGIN RSA PUBLIC KEY-----\nMIIB\n-----END RSA PUBLIC KEY-----",
                InvalidKey::Malformed,
            ),
        ] {
            assert_eq!(algorithms(pem), Err(expected), "{pem}");
        }
        // One bad block spoils the text: a key that silently is none would be worse.
        let mixed = concat!(key_file!("p256.pub.pem"), key_file!("rsa.pem"));
        assert_eq!(algorithms(mixed), Err(InvalidKey::Private));
    }

    #[test]
    fn a_key_of_a_set_is_for_the_algorithm_that_it_names() {
        let rsa = key_file!("rsa.pub.pem");
        let ec = key_file!("p256.pub.pem");
        let named = |pem, alg: &str| alone(jwk(pem, &json!({"alg": alg})), false);
        assert_eq!(
            alone(jwk(rsa, &json!({})), false),
            Ok(RSA_ALGORITHMS.to_vec())
        );
        assert_eq!(named(rsa, "PS384"), Ok(vec![PS384]));
        let set = parse(&[jwk(rsa, &json!({"alg": "PS384", "kid": "k"}))], false).unwrap();
        for (algorithm, kid, expected) in [
            (PS384, None, true),
            (PS384, Some("k"), true),
            (PS384, Some("other"), false),
            (RS384, Some("k"), false),
            (HS256, Some("k"), false),
        ] {
            let mut header = Header::new(algorithm);
            header.kid = kid.map(str::to_owned);
            assert_eq!(set.keys[0].may_verify(&header), expected, "{header:?}");
        }
        assert_eq!(named(ec, "ES256"), Ok(vec![ES256]));
        for (pem, alg) in [
            (rsa, "HS256"),
            (rsa, "ES256"),
            (rsa, "none"),
            (rsa, "RSA-OAEP"),
            (ec, "ES384"),
            (ec, "HS256"),
        ] {
            assert!(named(pem, alg).is_err(), "{alg}");
        }
    }

    #[test]
    fn keys_that_are_not_understood_are_left_out_and_named() {
        let rsa = key_file!("rsa.pub.pem");
        let secret = |bytes: usize| json!({"kty": "oct", "k": "A".repeat(bytes * 4 / 3)});
        for (key, why) in [
            (jwk(rsa, &json!({"use": "enc"})), "not for signatures"),
            (
                jwk(rsa, &json!({"key_ops": ["encrypt"]})),
                "not for verification",
            ),
            (jwk(rsa, &json!({"n": "AQAB"})), "malformed"),
            (jwk(rsa, &json!({"n": "!"})), "malformed"),
            (
                jwk(rsa, &json!({"n": "AQAB".repeat(42)})),
                "under 2048 bits",
            ),
            (
                jwk(key_file!("p256.pub.pem"), &json!({"y": "AAAA"})),
                "malformed",
            ),
            (
                jwk(key_file!("p256.pub.pem"), &json!({"crv": "P-521"})),
                "curve",
            ),
            (
                jwk(key_file!("p256.pub.pem"), &json!({"crv": "secp256k1"})),
                "not supported",
            ),
            (
                jwk(
                    key_file!("ed25519.pub.pem"),
                    &json!({"x": "AQ".to_owned() + &"A".repeat(41)}),
                ),
                "small order",
            ),
            // Shorter than the library assumes.
            (
                jwk(key_file!("ed25519.pub.pem"), &json!({"x": "AAAA"})),
                "malformed",
            ),
            (
                json!({"kty": "new", "kid": "k"}),
                "key \"k\": kind of key not supported",
            ),
            (json!("text"), "key number 1: malformed"),
            (secret(48), "published"),
        ] {
            let ignored = alone(key.clone(), false).unwrap_err();
            assert!(ignored.contains(why), "{ignored} of {key}");
        }
        assert_eq!(alone(secret(48), true), Ok(vec![HS256, HS384, HS512]));
        assert!(alone(secret(24), true).unwrap_err().contains("under 32"));
    }

    #[test]
    fn ed25519_keys_for_which_anybody_can_sign_are_refused() {
        let order_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05";
        let point = |bytes: [u8; 32]| {
            let prefix = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
            let block = pem::Pem::new("PUBLIC KEY", [&prefix[..], &bytes].concat());
            algorithms(&pem::encode(&block))
        };
        let low = |first: u8, last: u8| {
            let mut bytes = [if first > 200 { 0xff } else { 0 }; 32];
            (bytes[0], bytes[31]) = (first, last);
            bytes
        };
        let mut of_order_8 = [0; 32];
        for (byte, digits) in of_order_8.iter_mut().zip(order_8.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).unwrap();
            *byte = u8::from_str_radix(digits, 16).unwrap();
        }
        let points = [
            low(1, 0),
            low(0, 0),
            low(0, 0x80),
            low(0xec, 0x7f),
            // The same points, written in another way.
            low(0xed, 0x7f),
            low(0xee, 0x7f),
            of_order_8,
        ];
        for bytes in points {
            assert_eq!(point(bytes), Err(InvalidKey::WeakEd25519), "{bytes:x?}");
        }
        assert!(algorithms(key_file!("ed25519.pub.pem")).is_ok());
    }

    #[test]
    fn rsa_keys_with_a_small_exponent_are_named() {
        let has_small_exponent = |e: &str| {
            let key = jwk(key_file!("rsa.pub.pem"), &json!({"e": e}));
            parse(&[key], false).unwrap().keys[0].has_small_exponent()
        };
        assert!(has_small_exponent("Aw"));
        assert!(has_small_exponent("AP__"));
        assert!(!has_small_exponent("AQAB"));
        assert!(!Key::from_pem(key_file!("rsa.pub.pem")).unwrap()[0].has_small_exponent());
    }

    #[test]
    fn a_set_needs_a_usable_key_and_has_a_limit() {
        for text in ["", "{}", "[]", r#"{"keys": 1}"#] {
            let error = KeySet::parse(text.as_bytes(), true).err();
            assert_eq!(error, Some(InvalidKey::NotASet), "{text}");
        }
        assert_eq!(parse(&[], true).err(), Some(InvalidKey::NoUsableKey));
        let key = jwk(key_file!("p256.pub.pem"), &json!({}));
        let set = parse(&vec![key; 40], false).unwrap();
        assert_eq!((set.keys.len(), set.ignored.len()), (MAX_KEYS, 1));
    }
}
