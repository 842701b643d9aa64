use jsonwebtoken::{
    Algorithm::{ES256, ES384, EdDSA},
    jwk::Jwk,
};
use serde_json::json;

use super::{set::MAX_KEYS, *};

macro_rules! key_file {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/keys/",
            $name
        ))
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

/// The algorithms of this key in a set, or why it is left out.
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
    // One bad block spoils the text: a key that is silently left out would be worse.
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
        // The same points, encoded differently.
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
