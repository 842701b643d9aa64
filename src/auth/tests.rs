//! Tests of the verifier as a whole: signatures, claims, and the places where a token is
//! presented.

macro_rules! key_file {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/keys/",
            $name
        ))
    };
}

mod claims;
mod presented;
mod signatures;

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, encode, jwk::Jwk};
use serde_json::json;

use super::{
    claims::{unix_seconds, validation},
    keys::KeySet,
    *,
};
use crate::{
    config::Secret,
    user::{TenantId, User, UserId},
};

/// An identity for the tests of other modules, as if verified.
pub(crate) fn an_identity(user: &str, expires_at: Option<SystemTime>) -> Identity {
    Identity::made_up(a_user(user, None), expires_at, None, None)
}

/// The identity of a token without an expiry.
pub(crate) fn a_token(
    user: &str,
    tenant: Option<&str>,
    issued_at: Option<SystemTime>,
    token_id: Option<&str>,
) -> Identity {
    Identity::made_up(a_user(user, tenant), None, issued_at, token_id)
}

fn a_user(id: &str, tenant: Option<&str>) -> User {
    User {
        id: UserId::parse(id).unwrap(),
        tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
    }
}

const SECRET: &str = "a-secret-of-at-least-thirty-two-bytes";

/// A kind of key: the signing key, the configuration, and the algorithms it is for.
struct Kind {
    name: &'static str,
    private: &'static str,
    public: &'static str,
    algorithms: &'static [Algorithm],
}

use Algorithm::{
    ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
};

const KINDS: [Kind; 5] = [
    Kind {
        name: "secret",
        private: SECRET,
        public: SECRET,
        algorithms: &[HS256, HS384, HS512],
    },
    Kind {
        name: "RSA",
        private: key_file!("rsa.pem"),
        public: key_file!("rsa.pub.pem"),
        algorithms: &[RS256, RS384, RS512, PS256, PS384, PS512],
    },
    Kind {
        name: "P-256",
        private: key_file!("p256.pem"),
        public: key_file!("p256.pub.pem"),
        algorithms: &[ES256],
    },
    Kind {
        name: "P-384",
        private: key_file!("p384.pem"),
        public: key_file!("p384.pub.pem"),
        algorithms: &[ES384],
    },
    Kind {
        name: "Ed25519",
        private: key_file!("ed25519.pem"),
        public: key_file!("ed25519.pub.pem"),
        algorithms: &[EdDSA],
    },
];

impl Kind {
    fn signing_key(&self) -> EncodingKey {
        let der = || pem::parse(self.private).unwrap().into_contents();
        match self.name {
            "secret" => EncodingKey::from_secret(self.private.as_bytes()),
            "RSA" => EncodingKey::from_rsa_der(&der()),
            "Ed25519" => EncodingKey::from_ed_der(&der()),
            _ => EncodingKey::from_ec_der(&der()),
        }
    }

    fn config(&self) -> JwtConfig {
        let key = Some(Secret::new(self.public));
        match self.name {
            "secret" => JwtConfig {
                jwt_secret: key,
                ..config()
            },
            _ => JwtConfig {
                jwt_public_key: key,
                ..config()
            },
        }
    }
}

fn config() -> JwtConfig {
    JwtConfig::default()
}

fn with_secret(config: JwtConfig) -> JwtConfig {
    JwtConfig {
        jwt_secret: Some(Secret::new(SECRET)),
        ..config
    }
}

fn verifier(config: &JwtConfig) -> Verifier {
    Verifier::new(config, false, &Metrics::new()).unwrap()
}

fn now() -> u64 {
    unix_seconds(SystemTime::now())
}

fn in_an_hour() -> u64 {
    now() + 3600
}

fn carl() -> Value {
    json!({"userId": "carl", "exp": in_an_hour()})
}

fn signed(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    encode(header, claims, key).unwrap()
}

fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed(&Header::new(HS256), claims, &key)
}

fn verify_with(config: JwtConfig, claims: &Value) -> Result<Identity, Refusal> {
    verifier(&with_secret(config)).verify_now(&token(claims))
}

fn verify(claims: Value) -> Result<User, Refusal> {
    verify_with(config(), &claims).map(|identity| identity.user().clone())
}

fn base64url(text: &str) -> String {
    // jsonwebtoken encodes base64url, and a JWK is the way to its encoder.
    let secret = DecodingKey::from_secret(text.as_bytes());
    let jwk = serde_json::to_value(Jwk::from_decoding_key(&secret, None).unwrap()).unwrap();
    jwk["k"].as_str().unwrap().to_owned()
}

/// The same token under another header.
fn reheaded(token: &str, header: &Value) -> String {
    let rest = token.split_once('.').unwrap().1;
    format!("{}.{rest}", base64url(&header.to_string()))
}

#[test]
fn without_any_key_there_is_no_verifier() {
    let empty = JwtConfig {
        jwt_secret: Some(Secret::new("")),
        jwt_public_key: Some(Secret::new("")),
        jwt_public_key_file: Some("".parse().unwrap()),
        ..config()
    };
    for config in [config(), empty] {
        let error = Verifier::new(&config, false, &Metrics::new()).err();
        assert!(matches!(error, Some(KeyError::NoKey)));
    }
}

#[test]
fn signed_tokens_are_accepted_under_the_same_configuration() {
    let config = with_secret(JwtConfig {
        jwt_issuer: Some("chat3".to_owned()),
        jwt_audience: Some("web".to_owned()),
        jwt_user_id_claim: Some("uid".to_owned()),
        ..config()
    });
    let user = User {
        id: UserId::parse("carl").unwrap(),
        tenant: Some(TenantId::parse("tnt_1").unwrap()),
    };
    let signer = Signer::new(SECRET, &config);
    let (token, _) = signer.sign(&user, Duration::from_secs(60)).unwrap();
    let verifier = Verifier::new(&config, true, &Metrics::new()).unwrap();
    assert_eq!(verifier.verify_now(&token).unwrap().user(), &user);
}
