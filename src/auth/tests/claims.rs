//! What tokens must claim.

use std::time::{Duration, UNIX_EPOCH};

use super::*;

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
