//! What is fuzzed: each function takes arbitrary bytes and panics if what must
//! hold does not. Included by `fuzz_targets/` and by `tests/fuzz_regressions.rs`.

// Each fuzzer uses one.
#![allow(dead_code)]

use std::{sync::LazyLock, time::SystemTime};

use chat3_gateway::{
    Metrics,
    config::{JwtConfig, Secret},
    internal::{
        auth::{Key, KeySet, Verifier},
        revocation::{Order, OrderText},
        sessions::{Offset, ResumeRequest},
        transport::Frames,
        update::{Envelope, Update},
    },
    user::{TenantId, User, UserId},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation, encode};
use serde_json::{Value, value::RawValue};

pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its folder in `regressions/`.
pub const TARGETS: [(&str, Target); 10] = [
    ("update_decoder", update_decoder),
    ("original_envelope", original_envelope),
    ("sections_envelope", sections_envelope),
    ("token_verifier", token_verifier),
    ("token_claims", token_claims),
    ("key_set", key_set),
    ("pem_keys", pem_keys),
    ("connect_request", connect_request),
    ("order", order),
    ("frame_boundaries", frame_boundaries),
];

/// Bodies from RabbitMQ: what is decoded is JSON, and for the user whom it names.
pub fn update_decoder(data: &[u8]) {
    let Ok(update) = Update::decode(data) else {
        return;
    };
    let _ = update.event_type();
    let event = update.specialised_event();
    // Numbers over a double's range and halves of surrogate pairs are JSON, and
    // forwarded as they came, but no `Value`.
    let Ok(whole) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    assert_eq!(
        serde_json::from_str::<Value>(update.body.get()).unwrap(),
        whole
    );
    let carl = User {
        id: UserId::parse("carl").unwrap(),
        tenant: None,
    };
    let is_carls = whole["userId"] == "carl";
    assert_eq!(update.check_recipient(&carl).is_ok(), is_carls);
    if let Some(event) = event {
        let payload: Value = serde_json::from_str(event.payload.get()).expect("a payload is JSON");
        assert!(payload == whole || payload == whole["data"]);
    }
}

/// Bodies that are rewritten: they stay their user's, become the same events, and
/// are not rewritten again.
pub fn original_envelope(data: &[u8]) {
    let Ok(update) = Update::decode(data) else {
        return;
    };
    let Some(original) = update.rewritten(Envelope::Original) else {
        return;
    };
    let rewritten = Update::decode(&original).expect("it is an update");
    assert!(rewritten.rewritten(Envelope::Original).is_none());
    let name = |update: &Update<'_>| update.specialised_event().map(|event| event.name);
    assert_eq!(name(&rewritten), name(&update));
    let value = |update: &Update<'_>| serde_json::from_str::<Value>(update.body.get());
    if let (Ok(before), Ok(after)) = (value(&update), value(&rewritten)) {
        assert_eq!(after["userId"], before["userId"]);
        assert_eq!(after.get("tenantId"), before.get("tenantId"));
        let fields = before.as_object().unwrap().keys();
        assert!(fields.into_iter().all(|field| after.get(field).is_some()));
        assert!(after["eventType"].is_string());
        assert!(after["data"].is_object());
    }
}

/// Bodies that are sent in sections: they stay their user's, nothing is lost, and
/// rewriting them again changes nothing.
pub fn sections_envelope(data: &[u8]) {
    let Ok(update) = Update::decode(data) else {
        return;
    };
    let event = |update: &Update<'_>| {
        let event = update.specialised_event_in(Envelope::Sections);
        event.map(|event| (event.name, event.payload.get().to_owned()))
    };
    let _ = event(&update);
    let Some(sections) = update.rewritten(Envelope::Sections) else {
        return;
    };
    // A flat body goes one level down, where it may be too deep.
    let Ok(rewritten) = Update::decode(&sections) else {
        return;
    };
    let again = rewritten.rewritten(Envelope::Sections);
    // It may be too large now.
    assert!(again.is_none_or(|again| again == sections));
    let value = |update: &Update<'_>| serde_json::from_str::<Value>(update.body.get());
    if let (Ok(before), Ok(after)) = (value(&update), value(&rewritten)) {
        assert_eq!(after["userId"], before["userId"]);
        assert_eq!(after.get("tenantId"), before.get("tenantId"));
        let fields = before.as_object().unwrap().keys();
        assert!(fields.into_iter().all(|field| after.get(field).is_some()));
        assert!(after["eventType"].is_string());
        assert_eq!(after["eventType"], after["data"]["context"]["eventType"]);
        for section in ["dialog", "member", "message", "typing"] {
            assert!(after["data"].get(section).is_some());
        }
    }
    if let Some((name, payload)) = event(&rewritten) {
        let payload: Value = match serde_json::from_str(&payload) {
            Ok(payload) => payload,
            Err(_) => return,
        };
        assert!(payload.is_object(), "{name}");
    }
}

const SECRET: &str = "a-secret-of-at-least-thirty-two-bytes";

/// A verifier with a key of each kind.
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let pem = concat!(
        include_str!("../tests/fixtures/keys/rsa.pub.pem"),
        include_str!("../tests/fixtures/keys/p256.pub.pem"),
        include_str!("../tests/fixtures/keys/p384.pub.pem"),
        include_str!("../tests/fixtures/keys/ed25519.pub.pem"),
    );
    let config = JwtConfig {
        jwt_secret: Some(Secret::new(SECRET)),
        jwt_public_key: Some(Secret::new(pem)),
        ..JwtConfig::default()
    };
    Verifier::new(&config, false, &Metrics::new()).expect("the keys are valid")
});

/// The user whom the tokens in `regressions/token_verifier/` are for: of no other
/// has the fuzzer a signature.
const SIGNED_FOR: &str = "usr_signed";

/// Tokens from anybody: nothing but what was signed is accepted.
pub fn token_verifier(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(identity) = VERIFIER.verify_now(token) {
        assert_eq!(identity.user().id.as_str(), SIGNED_FOR);
    }
}

/// Claims from an issuer: whoever is let in is whom the claims name.
pub fn token_claims(data: &[u8]) {
    let Ok(claims) = serde_json::from_slice::<&RawValue>(data) else {
        return;
    };
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
    let Ok(identity) = VERIFIER.verify_now(&token) else {
        return;
    };
    let claims: Value = serde_json::from_slice(data).unwrap();
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let user_id = claims.get("userId").or_else(|| claims.get("sub"));
    let tenant = claims.get("tenantId");
    let user = identity.user();
    assert_eq!(user_id.and_then(text).as_deref(), Some(user.id.as_str()));
    assert_eq!(
        tenant.and_then(text).as_deref(),
        user.tenant.as_ref().map(TenantId::as_str)
    );
    assert!(!user.id.as_str().contains(['*', '#']));
    assert!(identity.expires_at().is_some());
}

const ALGORITHMS: [Algorithm; 12] = [
    Algorithm::HS256,
    Algorithm::HS384,
    Algorithm::HS512,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The library finds some faults of a key only with a token, so each is tried.
fn try_key(key: &Key) {
    for algorithm in ALGORITHMS {
        let header = Header::new(algorithm);
        if !key.may_verify(&header) {
            continue;
        }
        let hs = matches!(
            algorithm,
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
        );
        assert!(!hs, "a public key is no secret");
        // {"alg":…} as its own text would have it; {} and 64 zero bytes.
        let signature = "A".repeat(86);
        let token = format!("{}.e30.{signature}", base64_header(algorithm));
        assert!(key.decode(&token, &header, &Validation::default()).is_err());
    }
}

/// By the library's own encoder, which is not public.
fn base64_header(algorithm: Algorithm) -> String {
    static HEADERS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let encoded = |algorithm: &Algorithm| {
            let json = format!(r#"{{"alg":"{algorithm:?}"}}"#);
            let key = EncodingKey::from_secret(b"");
            let claims = RawValue::from_string(json).unwrap();
            let token = encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
            token.split('.').nth(1).unwrap().to_owned()
        };
        ALGORITHMS.iter().map(encoded).collect()
    });
    let position = ALGORITHMS.iter().position(|other| *other == algorithm);
    HEADERS[position.unwrap()].clone()
}

/// Key sets from a URL: no secret among them, and no key that a token breaks.
pub fn key_set(data: &[u8]) {
    if let Ok(set) = KeySet::parse(data, false) {
        assert!((1..=32).contains(&set.keys.len()));
        set.keys.iter().for_each(try_key);
    }
}

/// PEM texts from an operator; and what is one is no secret.
pub fn pem_keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(keys) = Key::from_pem(text) {
        assert!(!keys.is_empty());
        keys.iter().for_each(try_key);
        assert!(Key::from_secret(text).is_err());
    }
}

/// The auth object of a CONNECT: what is read as a request to resume names the very
/// `pid` and offset that were sent.
pub fn connect_request(data: &[u8]) {
    let Ok(auth) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    if let ResumeRequest::Resume { pid, offset } = ResumeRequest::of(Some(&auth)) {
        let same = |sent: &Value, read: &str| sent.as_str().unwrap().eq_ignore_ascii_case(read);
        assert!(same(&auth["pid"], &pid.expose()));
        if let Some(offset) = offset {
            assert_eq!(Offset::parse(&offset.to_string()), Some(offset));
            assert!(auth["offset"].as_str().unwrap().len() <= 25);
        }
    }
}

/// Orders from other instances: what is understood is passed on as it was.
pub fn order(data: &[u8]) {
    let now = SystemTime::UNIX_EPOCH;
    let Ok(text) = OrderText::read(data) else {
        return;
    };
    if let Ok(order) = Order::parse(text, now) {
        assert_eq!(Order::parse(order.text(), now), Ok(order));
    }
}

/// A websocket's frames, cut anywhere: their boundaries are where RFC 6455, 5.2, has them.
pub fn frame_boundaries(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let mut frames = Frames::default();
    for piece in bytes.chunks(usize::from(cut).max(1)) {
        frames.read(piece);
    }
    let mut rest = bytes;
    while let Some(length) = frame_length(rest) {
        let here = rest.len() as u128;
        if here < length {
            assert!(!frames.is_between());
            assert_eq!(frames.left().map(|left| left as u128), Some(length - here));
            return;
        }
        rest = &rest[length as usize..];
    }
    assert_eq!(frames.is_between(), rest.is_empty());
    assert_eq!(frames.left().is_none(), !rest.is_empty());
}

/// A frame's length with its header, unless the header is cut short. A payload's length
/// may be any `u64`.
fn frame_length(bytes: &[u8]) -> Option<u128> {
    let second = *bytes.get(1)?;
    let wide = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let number = bytes.get(2..2 + wide)?;
    bytes.get(2 + wide..2 + wide + mask)?;
    let length = number
        .iter()
        .fold(0_u128, |n, &byte| n << 8 | u128::from(byte));
    let length = if wide == 0 {
        u128::from(second & 0x7f)
    } else {
        length
    };
    Some(length + (2 + wide + mask) as u128)
}
