//! Which key verifies which token.

use super::*;

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
    let of_set = KeySet::parse(set.as_bytes(), false).unwrap().keys;
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
        set: Some(KeySet::parse(set.as_bytes(), true).unwrap().keys.into()),
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
    // Nothing listens on this port.
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
