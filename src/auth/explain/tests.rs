use jsonwebtoken::{Algorithm, EncodingKey, encode};
use serde_json::json;

use super::{wording::LAST_DATE, *};
use crate::{config::Secret, observability::metrics::Metrics};

const SECRET: &str = "a-secret-of-at-least-thirty-two-bytes";

fn config() -> JwtConfig {
    JwtConfig {
        jwt_secret: Some(Secret::new(SECRET)),
        jwt_issuer: Some("the-issuer".to_owned()),
        jwt_audience: Some("chat".to_owned()),
        ..JwtConfig::default()
    }
}

fn good_claims() -> Value {
    let now = unix_seconds(SystemTime::now());
    json!({
        "userId": "usr_a", "tenantId": "tnt_1", "iat": now, "exp": now + 60,
        "iss": "the-issuer", "aud": ["other", "chat"], "jti": "1",
    })
}

fn sign(claims: &Value, alg: Algorithm, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(alg), claims, &key).unwrap()
}

async fn bad_parts(token: &str) -> (Vec<&'static str>, Result<Identity, Refusal>) {
    let verifier = Verifier::new(&config(), true, &Metrics::new()).unwrap();
    let (remarks, verdict) = verifier.examine(token, &config()).await;
    let bad = remarks.iter().filter(|remark| remark.fit == Fit::Bad);
    (bad.map(|remark| remark.part).collect(), verdict)
}

#[tokio::test]
async fn exactly_the_wrong_parts_are_named_and_the_verdict_agrees() {
    let now = unix_seconds(SystemTime::now());
    let (bad, verdict) = bad_parts(&sign(&good_claims(), Algorithm::HS384, SECRET)).await;
    assert_eq!((bad, verdict.is_ok()), (vec![], true));
    for (name, value, part) in [
        ("exp", json!(now - 60), "exp"),
        ("exp", Value::Null, "exp"),
        ("exp", json!("soon"), "exp"),
        ("nbf", json!(now + 60), "nbf"),
        ("iat", json!("today"), "iat"),
        ("iss", json!("another"), "iss"),
        ("iss", Value::Null, "iss"),
        ("aud", json!(["other"]), "aud"),
        ("userId", json!("*"), "user_id"),
        ("userId", json!(1.5), "user_id"),
        ("userId", Value::Null, "user_id"),
        ("tenantId", json!("a b"), "tenant_id"),
        ("tenantId", Value::Null, "tenant_id"),
        ("jti", json!(7), "jti"),
    ] {
        let mut claims = good_claims();
        let claims_map = claims.as_object_mut().unwrap();
        // Null stands for a missing claim.
        match &value {
            Value::Null => drop(claims_map.remove(name)),
            value => drop(claims_map.insert(name.to_owned(), value.clone())),
        }
        let (bad, verdict) = bad_parts(&sign(&claims, Algorithm::HS256, SECRET)).await;
        assert_eq!(bad, [part], "{name} {value}");
        assert!(verdict.is_err(), "{name} {value}");
    }
    let good = sign(&good_claims(), Algorithm::HS256, SECRET);
    let (none, rest) = ("eyJhbGciOiJub25lIn0", good.split_once('.').unwrap().1);
    for (token, part) in [
        (
            sign(&good_claims(), Algorithm::HS256, "another-secret"),
            "signature",
        ),
        (format!("{none}.{rest}"), "alg"),
        (good[..good.len() / 2].to_owned(), "format"),
        (String::new(), "format"),
        ("a.b.c".to_owned(), "format"),
        ("x".repeat(MAX_TOKEN_BYTES + 1), "format"),
    ] {
        let (bad, verdict) = bad_parts(&token).await;
        assert_eq!(bad, [part]);
        assert!(verdict.is_err());
    }
}

#[tokio::test]
async fn no_remark_holds_the_token_or_its_signature() {
    let token = sign(&good_claims(), Algorithm::HS256, SECRET);
    let verifier = Verifier::new(&config(), false, &Metrics::new()).unwrap();
    for token in [
        token.clone(),
        format!("Bearer {token}"),
        format!("{token}x"),
    ] {
        let (remarks, _) = verifier.examine(&token, &config()).await;
        let text = format!("{remarks:?}");
        for part in token.trim_start_matches("Bearer ").split('.') {
            assert!(!text.contains(part), "{text}");
        }
    }
}

#[test]
fn every_time_can_be_written() {
    for seconds in [0, 1, LAST_DATE, LAST_DATE + 1, u64::MAX] {
        assert!(!moment(seconds, 1_800_000_000).is_empty());
    }
    assert_eq!(
        moment(1_800_000_000, 1_800_003_725),
        "2027-01-15T08:00:00Z (1h 2m ago)"
    );
}
