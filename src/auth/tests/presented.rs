//! Where a token is looked for.

use super::*;

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
        // `auth` takes precedence, even if it is wrong.
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
