use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, encode, jwk::Jwk};
use serde_json::json;

use super::*;

/// An identity for the tests of other modules, as if verified.
pub(crate) fn an_identity(user: &str, expires_at: Option<SystemTime>) -> Identity {
    Identity {
        expires_at,
        ..a_token(user, None, None, None)
    }
}

/// The same, without an end.
pub(crate) fn a_token(
    user: &str,
    tenant: Option<&str>,
    issued_at: Option<SystemTime>,
    token_id: Option<&str>,
) -> Identity {
    Identity {
        user: User {
            id: UserId::parse(user).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        },
        expires_at: None,
        issued_at,
        token_id: token_id.map(str::to_owned),
    }
}

const SECRET: &str = "a-secret-of-at-least-thirty-two-bytes";

macro_rules! key_file {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/keys/", $name))
    };
}

/// A kind of key: what signs, what is configured, and what it may be used for.
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
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
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
    // The library has it; so its own encoder is the way to get at it.
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
fn each_key_is_for_its_own_algorithms_only() {
    let mut tried = 0;
    for signer in &KINDS {
        for &algorithm in signer.algorithms {
            let token = signed(&Header::new(algorithm), &carl(), &signer.signing_key());
            for configured in &KINDS {
                let verified = verifier(&configured.config()).verify_now(&token);
                let expected = match configured.name == signer.name {
                    true => Ok(()),
                    false => Err(Refusal::TokenInvalid),
                };
                let pair = format!("{algorithm:?} by {} for {}", signer.name, configured.name);
                assert_eq!(verified.map(|_| ()), expected, "{pair}");
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 12 * 5);
}

#[test]
fn a_token_cannot_choose_another_algorithm_than_it_was_signed_with() {
    let names = [
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256",
        "ES384", "EdDSA", "none", "None", "NONE", "nOnE", "",
    ];
    for signer in &KINDS {
        let all = with_secret(signer.config());
        for &algorithm in signer.algorithms {
            let token = signed(&Header::new(algorithm), &carl(), &signer.signing_key());
            for name in names {
                let other = reheaded(&token, &json!({"alg": name, "typ": "JWT"}));
                let unsigned = format!("{}.", other.rsplit_once('.').unwrap().0);
                if name != format!("{algorithm:?}") {
                    assert!(verifier(&all).verify_now(&other).is_err(), "{name}");
                }
                assert!(verifier(&all).verify_now(&unsigned).is_err(), "{name}");
            }
        }
    }
}

#[test]
fn a_public_key_is_no_secret() {
    for kind in &KINDS[1..] {
        let der = pem::parse(kind.public).unwrap().into_contents();
        let bare: String = kind
            .public
            .lines()
            .filter(|l| !l.starts_with('-'))
            .collect();
        let one_line = kind.public.replace('\n', "\\n");
        for secret in [
            kind.public.as_bytes(),
            kind.public.trim().as_bytes(),
            one_line.as_bytes(),
            bare.as_bytes(),
            &der,
        ] {
            for algorithm in [HS256, HS384, HS512] {
                let key = EncodingKey::from_secret(secret);
                let forged = signed(&Header::new(algorithm), &carl(), &key);
                for config in [kind.config(), with_secret(kind.config())] {
                    let refusal = verifier(&config).verify_now(&forged).unwrap_err();
                    assert_eq!(refusal, Refusal::TokenInvalid, "{}", kind.name);
                }
            }
        }
        for secret in [kind.public, &one_line, &bare, kind.private] {
            let config = JwtConfig {
                jwt_secret: Some(Secret::new(secret)),
                ..config()
            };
            let error = Verifier::new(&config, false, &Metrics::new())
                .err()
                .unwrap();
            let error = error.to_string();
            assert!(error.starts_with("JWT_SECRET is a public key"), "{error}");
            assert!(!error.contains(&bare[..40]), "{error}");
        }
    }
}

#[test]
fn a_key_is_the_same_in_each_of_its_notations() {
    let compressed = key_file!("p256.compressed.pub.pem");
    let mut padded = Jwk::from_decoding_key(
        &DecodingKey::from_rsa_der(
            pem::parse(key_file!("rsa.pkcs1.pub.pem"))
                .unwrap()
                .contents(),
        ),
        None,
    )
    .map(|jwk| serde_json::to_value(jwk).unwrap())
    .unwrap();
    for part in ["n", "e"] {
        let number = URL_SAFE_NO_PAD.decode(padded[part].as_str().unwrap());
        let number = [vec![0, 0], number.unwrap()].concat();
        padded[part] = URL_SAFE_NO_PAD.encode(number).into();
    }
    let set = json!({"keys": [padded]}).to_string();
    let of_set = keys::KeySet::parse(set.as_bytes(), false).unwrap().keys;
    for (keys, kind) in [
        (Key::from_pem(compressed).unwrap(), &KINDS[2]),
        (of_set, &KINDS[1]),
    ] {
        for &algorithm in kind.algorithms {
            let header = Header::new(algorithm);
            let token = signed(&header, &carl(), &kind.signing_key());
            let decode = |token: &str| keys[0].decode(token, &header, &validation(&config()));
            assert!(decode(&token).is_ok(), "{algorithm:?}");
            assert!(decode(&altered(&token)).is_err(), "{algorithm:?}");
        }
    }
}

/// The token with another signature of the same length.
fn altered(token: &str) -> String {
    let (message, signature) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    signature[7] ^= 1;
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn several_keys_are_accepted_at_once() {
    let pem: String = KINDS[1..].iter().map(|kind| kind.public).collect();
    let config = with_secret(JwtConfig {
        jwt_public_key: Some(Secret::new(pem)),
        ..config()
    });
    let verifier = verifier(&config);
    for kind in &KINDS {
        for &algorithm in kind.algorithms {
            let token = signed(&Header::new(algorithm), &carl(), &kind.signing_key());
            assert!(verifier.verify_now(&token).is_ok(), "{algorithm:?}");
            // Keys without an id are tried whatever the token calls its key.
            let mut header = Header::new(algorithm);
            header.kid = Some("some-key".to_owned());
            let token = signed(&header, &carl(), &kind.signing_key());
            assert!(verifier.verify_now(&token).is_ok(), "{algorithm:?}");
        }
    }
}

#[test]
fn a_token_is_tried_with_a_few_keys_the_one_that_it_names_first() {
    let secret = |number: usize| format!("secret-number-{number}-of-thirty-two-bytes");
    let own: Arc<[Key]> = (0..MAX_TRIES)
        .map(|number| Key::from_secret(&secret(number)).unwrap())
        .collect();
    let jwk = json!({"kty": "oct", "kid": "k", "k": base64url(&secret(MAX_TRIES))});
    let set = json!({"keys": [jwk]}).to_string();
    let keys = Keys {
        own,
        set: Some(
            keys::KeySet::parse(set.as_bytes(), true)
                .unwrap()
                .keys
                .into(),
        ),
        validation: Arc::new(validation(&config())),
    };
    let is_accepted = |number, kid: Option<&str>| {
        let mut header = Header::new(HS256);
        header.kid = kid.map(str::to_owned);
        let key = EncodingKey::from_secret(secret(number).as_bytes());
        let token = signed(&header, &carl(), &key);
        keys.claims(&token, &header).is_ok()
    };
    assert!(is_accepted(0, None));
    assert!(is_accepted(MAX_TRIES - 1, None));
    assert!(!is_accepted(MAX_TRIES, None));
    assert!(is_accepted(MAX_TRIES, Some("k")));
}

#[tokio::test]
async fn tokens_that_wait_for_a_key_are_bounded_and_tokens_of_known_keys_do_not_wait() {
    // Nobody listens there.
    let jwks = "http://127.0.0.1:9/keys.json".parse().unwrap();
    let config = with_secret(JwtConfig {
        jwt_jwks: jwks,
        ..config()
    });
    let verifier = verifier(&config);
    let mut header = Header::new(RS256);
    header.kid = Some("made-up".to_owned());
    let made_up = signed(&header, &carl(), &KINDS[1].signing_key());
    let mut seekers: Vec<_> = (0..MAX_SEEKERS)
        .map(|_| Box::pin(verifier.verify(&made_up)))
        .collect();
    for seeker in &mut seekers {
        assert!(seeker.now_or_never().is_none());
    }
    let one_more = verifier.verify(&made_up).now_or_never();
    assert_eq!(one_more.unwrap().unwrap_err(), Refusal::Overloaded);
    assert!(
        verifier
            .verify(&token(&carl()))
            .now_or_never()
            .unwrap()
            .is_ok()
    );
}

#[test]
fn forged_tokens_are_refused() {
    let verifier = verifier(&JwtConfig {
        jwt_secret: Some(Secret::new("another-secret-of-thirty-two-bytes!!")),
        ..config()
    });
    let signed = token(&carl());
    let payload = signed.split('.').nth(1).unwrap();
    let unsigned = format!("{}.{payload}.", base64url(r#"{"alg":"none","typ":"JWT"}"#));
    for token in [
        signed.as_str(),
        &unsigned,
        "x",
        "a.b.c",
        "..",
        &"a".repeat(9000),
    ] {
        assert_eq!(
            verifier.verify_now(token).unwrap_err(),
            Refusal::TokenInvalid
        );
    }
    assert_eq!(verifier.verify_now("").unwrap_err(), Refusal::TokenMissing);
}

#[test]
fn extensions_that_must_be_understood_are_refused() {
    let mut header = Header::new(HS256);
    header.crit = Some(vec!["b64".to_owned()]);
    let token = signed(&header, &carl(), &KINDS[0].signing_key());
    let refusal = verifier(&KINDS[0].config()).verify_now(&token);
    assert_eq!(refusal.unwrap_err(), Refusal::TokenInvalid);
}

#[test]
fn the_documented_claims_are_read() {
    let user = verify(json!({"userId": "carl", "tenantId": "tnt_1", "exp": in_an_hour()}));
    let user = user.unwrap();
    assert_eq!(user.id.as_str(), "carl");
    assert_eq!(user.tenant.unwrap().as_str(), "tnt_1");
    let user = verify(json!({"sub": "carl", "exp": in_an_hour()})).unwrap();
    assert_eq!((user.id.as_str(), user.tenant), ("carl", None));
    let user = verify(json!({"userId": 42, "sub": "x", "tenantId": -7, "exp": in_an_hour()}));
    let user = user.unwrap();
    assert_eq!(user.id.as_str(), "42");
    assert_eq!(user.tenant.unwrap().as_str(), "-7");
}

#[test]
fn times_and_id_of_the_token_are_kept() {
    let exp = in_an_hour();
    let claims = json!({"userId": "carl", "exp": exp, "iat": 1_700_000_000, "jti": "t-1"});
    let identity = verify_with(config(), &claims).unwrap();
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(identity.expires_at(), at(exp));
    assert_eq!(identity.issued_at(), at(1_700_000_000));
    assert_eq!(identity.token_id(), Some("t-1"));
    let identity = verify_with(config(), &carl()).unwrap();
    assert_eq!((identity.issued_at(), identity.token_id()), (None, None));
    for (claim, value) in [
        ("iat", json!("yesterday")),
        ("iat", json!(null)),
        ("iat", json!(-1)),
        ("iat", json!(1e300)),
        ("exp", json!(u64::MAX)),
        ("nbf", json!("now")),
        ("jti", json!(7)),
        ("jti", json!(null)),
    ] {
        let mut claims = carl();
        claims[claim] = value;
        assert_eq!(
            verify(claims).unwrap_err(),
            Refusal::TokenInvalid,
            "{claim}"
        );
    }
}

#[test]
fn times_are_checked_with_the_configured_leeway() {
    let at = |exp: u64| verify(json!({"userId": "carl", "exp": exp}));
    assert_eq!(at(now() - 60).unwrap_err(), Refusal::TokenExpired);
    assert!(at(now() - 2).is_ok());
    let early = json!({"userId": "carl", "exp": in_an_hour(), "nbf": now() + 60});
    assert_eq!(
        verify(early.clone()).unwrap_err(),
        Refusal::TokenNotYetValid
    );
    let lenient = JwtConfig {
        jwt_leeway: Duration::from_secs(120),
        ..config()
    };
    let late = json!({"userId": "carl", "exp": now() - 60});
    assert!(verify_with(lenient.clone(), &late).is_ok());
    assert!(verify_with(lenient, &early).is_ok());
    let strict = JwtConfig {
        jwt_leeway: Duration::ZERO,
        ..config()
    };
    let just_late = json!({"userId": "carl", "exp": now() - 2});
    assert_eq!(
        verify_with(strict, &just_late).unwrap_err(),
        Refusal::TokenExpired
    );
}

#[test]
fn an_expiry_is_required_unless_configured_otherwise() {
    let without = json!({"userId": "carl"});
    let lax = JwtConfig {
        jwt_require_exp: false,
        ..config()
    };
    assert_eq!(
        verify(without.clone()).unwrap_err(),
        Refusal::TokenWithoutExpiry
    );
    let identity = verify_with(lax.clone(), &without).unwrap();
    assert_eq!(identity.expires_at(), None);
    let expired = json!({"userId": "carl", "exp": now() - 60});
    assert_eq!(
        verify_with(lax.clone(), &expired).unwrap_err(),
        Refusal::TokenExpired
    );
    for no_time in [json!(null), json!("never"), json!(true)] {
        let claims = json!({"userId": "carl", "exp": no_time});
        assert_eq!(
            verify_with(lax.clone(), &claims).unwrap_err(),
            Refusal::TokenInvalid
        );
    }
}

#[test]
fn issuer_and_audience_are_checked_when_configured() {
    let config = JwtConfig {
        jwt_issuer: Some("chat3".to_owned()),
        jwt_audience: Some("web".to_owned()),
        ..config()
    };
    let claims = |iss: &str, aud: Value| {
        let claims = json!({"userId": "c", "exp": in_an_hour(), "iss": iss, "aud": aud});
        verify_with(config.clone(), &claims)
    };
    assert!(claims("chat3", json!(["web", "app"])).is_ok());
    assert_eq!(claims("x", json!("web")).unwrap_err(), Refusal::Issuer);
    assert_eq!(claims("chat3", json!("x")).unwrap_err(), Refusal::Audience);
    assert_eq!(claims("chat3", json!(7)).unwrap_err(), Refusal::Audience);
    let without = json!({"userId": "c", "exp": in_an_hour()});
    assert!(verify_with(config.clone(), &without).is_err());
    let unasked = json!({"userId": "c", "exp": in_an_hour(), "aud": "any", "iss": "any"});
    assert!(verify(unasked).is_ok());
}

#[test]
fn ids_that_are_no_ids_are_refused() {
    let with = |id: Value| verify(json!({"userId": id, "sub": "x", "exp": in_an_hour()}));
    let tenant = |id: Value| verify(json!({"userId": "a", "tenantId": id, "exp": in_an_hour()}));
    for id in [
        json!("*"),
        json!("#"),
        json!("a b"),
        json!(""),
        json!(1.5),
        json!(1e3),
        json!(18_446_744_073_709_551_616_f64),
        json!({"a": 1}),
        json!([]),
        json!(["a"]),
        json!(true),
        json!(null),
        json!("a".repeat(300)),
    ] {
        assert_eq!(
            with(id.clone()).unwrap_err(),
            Refusal::UserIdInvalid,
            "{id}"
        );
        assert_eq!(tenant(id).unwrap_err(), Refusal::TenantIdInvalid);
    }
    let without = json!({"exp": in_an_hour()});
    assert_eq!(verify(without).unwrap_err(), Refusal::UserIdMissing);
}

#[test]
fn a_tenant_is_required_when_the_binding_keys_need_one() {
    let verifier = Verifier::new(&with_secret(config()), true, &Metrics::new()).unwrap();
    let refusal = verifier.verify_now(&token(&carl()));
    assert_eq!(refusal.unwrap_err(), Refusal::TenantIdMissing);
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
fn tokens_are_taken_from_auth_then_the_header_then_if_allowed_the_query() {
    let request = |authorization: Option<&str>, query: &str| {
        let mut request = http::Request::get(format!("/socket.io/?EIO=4{query}"));
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        request.body(()).unwrap().into_parts().0
    };
    let presented = |config: JwtConfig, auth: Value, request: &Parts| {
        let keys = verifier(&with_secret(config));
        let outcome = async {
            let token = keys.presented(Some(&auth), request)?;
            keys.verify(&token).await
        };
        let outcome = outcome.now_or_never().expect("no key set to wait for");
        outcome.map(|identity| identity.user().id.to_string())
    };
    let of = |user: &str| token(&json!({"userId": user, "exp": in_an_hour()}));
    let (a, b, c) = (of("a"), of("b"), of("c"));
    let header = format!("Bearer {b}");
    let query = format!("&token={c}");
    let all = request(Some(&header), &query);
    let allowed = JwtConfig {
        jwt_allow_query: true,
        ..config()
    };
    let missing = Err(Refusal::TokenMissing);
    let invalid = Err(Refusal::TokenInvalid);
    for (auth, expected) in [
        (json!({"token": a}), Ok("a".to_owned())),
        (json!({"token": format!("Bearer {a}")}), Ok("a".to_owned())),
        (
            json!({"token": format!("bearer  {a} ")}),
            Ok("a".to_owned()),
        ),
        (json!({"token": format!("Basic {a}")}), invalid.clone()),
        // What `auth` holds is what counts, also if it is wrong.
        (json!({"token": "x"}), invalid.clone()),
        (json!({"token": ""}), missing.clone()),
        (json!({"token": {"a": 1}}), invalid),
        (json!({"token": null}), Ok("b".to_owned())),
        (json!({}), Ok("b".to_owned())),
        (json!("text"), Ok("b".to_owned())),
    ] {
        assert_eq!(presented(config(), auth.clone(), &all), expected, "{auth}");
        assert_eq!(presented(allowed.clone(), auth, &all), expected);
    }
    for authorization in [
        None,
        Some("Basic dXNlcjpwYXNz"),
        Some("Bearer"),
        Some(c.as_str()),
    ] {
        let request = request(authorization, &query);
        assert_eq!(presented(config(), json!({}), &request), missing);
        assert_eq!(
            presented(allowed.clone(), json!({}), &request),
            Ok("c".to_owned())
        );
    }
    let lower = request(Some(&format!("bEARER {b}")), "");
    assert_eq!(presented(config(), json!({}), &lower), Ok("b".to_owned()));
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
