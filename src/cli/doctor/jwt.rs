//! Checks the keys that verify tokens, and whether one token is accepted.

use std::time::Duration;

use tokio::time::timeout;

use super::report::Report;
use crate::{
    auth::{
        Fit, Refusal, Verifier, configured_keys,
        keys::{Key, MIN_SECRET_BYTES},
        read_key_set,
    },
    config::{JwksSource, JwtConfig, Secret},
    observability::metrics::Metrics,
    user::User,
};

/// Time limit of verifying a token: longer than the verifier waits for a key set.
const VERDICT: Duration = Duration::from_secs(10);

/// Parts of secrets that were copied from documentation, in lower case.
const PLACEHOLDERS: [&str; 12] = [
    "changeme",
    "change-me",
    "change_me",
    "your-secret",
    "your_secret",
    "yoursecret",
    "the-secret-of-your-backend",
    "development-only-secret",
    "placeholder",
    "example-secret",
    "secret-key",
    "supersecret",
];

/// Whether a secret is known or guessable: from documentation, or of few characters.
pub(super) fn is_placeholder(secret: &str) -> bool {
    let text = secret.to_lowercase();
    let mut characters: Vec<char> = text.chars().collect();
    characters.sort_unstable();
    characters.dedup();
    let simple = ["secret", "password", "admin", "test", "token"].contains(&text.as_str());
    simple || characters.len() < 6 || PLACEHOLDERS.iter().any(|word| text.contains(word))
}

/// Examines the configuration. Returns the verifier that `serve` would use, if `serve`
/// would start.
pub(super) async fn examine(
    config: &JwtConfig,
    tenant_required: bool,
    metrics: &Metrics,
    report: &mut Report,
) -> Option<Verifier> {
    secret(config, report);
    if let Ok(keys) = configured_keys(config) {
        let secrets = usize::from(
            config
                .jwt_secret
                .as_ref()
                .is_some_and(|s| s.expose().is_some()),
        );
        if keys.len() > secrets {
            let kinds = kinds(&keys[secrets..]);
            report.ok("public_keys", format!("{}: {kinds}", keys.len() - secrets));
            small_exponents("public_keys", &keys, report);
        }
    }
    key_set(config, report).await;
    let verifier = match Verifier::new(config, tenant_required, metrics) {
        Ok(verifier) => Some(verifier),
        Err(error) => {
            report.problem(
                "keys",
                format!("serve would not start: {error}"),
                "set one of them right, see docs/CONFIGURATION.md#jwt",
            );
            None
        }
    };
    claims(config, report);
    verifier
}

fn secret(config: &JwtConfig, report: &mut Report) {
    let Some(secret) = config.jwt_secret.as_ref().and_then(Secret::expose) else {
        return;
    };
    let advice =
        "use 32 random bytes or more, here and where tokens are signed: openssl rand -hex 32";
    let bytes = secret.len();
    if is_placeholder(secret) {
        let finding = "JWT_SECRET is from a page or easily guessed: anybody can sign tokens";
        report.problem("secret", finding, advice);
    } else if bytes < MIN_SECRET_BYTES {
        let finding = format!("JWT_SECRET has {bytes} bytes: it can be guessed from one token");
        report.warning("secret", finding, advice);
    } else {
        report.ok(
            "secret",
            format!("JWT_SECRET has {bytes} bytes (HS256, HS384, HS512)"),
        );
    }
    if secret.trim() != secret {
        report.warning(
            "secret",
            "JWT_SECRET begins or ends with white space, which is part of it",
            "remove it, unless the signer has it, too",
        );
    }
}

async fn key_set(config: &JwtConfig, report: &mut Report) {
    if config.jwt_jwks == JwksSource::Unset {
        return;
    }
    match read_key_set(config).await {
        Ok(Some(set)) => {
            let (count, kinds) = (set.keys.len(), kinds(&set.keys));
            report.ok(
                "key_set",
                format!("{}: {count} keys: {kinds}", config.jwt_jwks),
            );
            small_exponents("key_set", &set.keys, report);
            if !set.ignored.is_empty() {
                let advice =
                    "tokens signed with these are refused; let the issuer use a supported kind";
                report.warning(
                    "key_set",
                    format!("not used: {}", set.ignored.join("; ")),
                    advice,
                );
            }
        }
        Ok(None) => {}
        Err(error) => report.problem(
            "key_set",
            format!("JWT_JWKS ({}) {error}", config.jwt_jwks),
            "check JWT_JWKS and JWT_JWKS_CA_FILE, and the way to the issuer from this machine",
        ),
    }
}

fn small_exponents(name: &'static str, keys: &[Key], report: &mut Report) {
    if keys.iter().any(Key::has_small_exponent) {
        report.warning(
            name,
            "an RSA key has an exponent under 65537, as no current tool makes it",
            "let the issuer make a new key: openssl genrsa 3072",
        );
    }
}

fn kinds(keys: &[Key]) -> String {
    let mut kinds: Vec<String> = Vec::new();
    for key in keys {
        let names: Vec<_> = key
            .algorithms()
            .iter()
            .map(|alg| format!("{alg:?}"))
            .collect();
        let names = names.join("/");
        if !kinds.contains(&names) {
            kinds.push(names);
        }
    }
    kinds.join(", ")
}

fn claims(config: &JwtConfig, report: &mut Report) {
    let is_foreign = config.jwt_jwks != JwksSource::Unset;
    match (config.issuer(), config.audience()) {
        (_, None) if is_foreign => report.warning(
            "audience",
            "JWT_AUDIENCE is unset: tokens that the issuer signed for other services are accepted",
            "set JWT_AUDIENCE to what the issuer writes into tokens for this service",
        ),
        (issuer, audience) => {
            let checked =
                |what: Option<&str>| what.map_or("not checked".to_owned(), |it| format!("{it:?}"));
            report.ok(
                "claims",
                format!("issuer {}, audience {}", checked(issuer), checked(audience)),
            );
        }
    }
    if !config.jwt_require_exp {
        report.warning(
            "expiry",
            "JWT_REQUIRE_EXP is off: tokens without expiry open their user's updates for ever",
            "let the signer set exp, and remove JWT_REQUIRE_EXP",
        );
    }
    if config.jwt_allow_query {
        report.warning(
            "query",
            "JWT_ALLOW_QUERY is on: tokens in URLs are in the logs of proxies",
            "use Socket.IO's auth in the client, and remove JWT_ALLOW_QUERY",
        );
    }
}

/// The user of the token, if `serve` would accept it.
pub(super) async fn user(
    config: &JwtConfig,
    tenant_required: bool,
    token: &str,
    metrics: &Metrics,
) -> Option<User> {
    let verifier = Verifier::new(config, tenant_required, metrics).ok()?;
    let examined = timeout(VERDICT, verifier.examine(token, config)).await;
    let (_, verdict) = examined.ok()?;
    Some(verdict.ok()?.user().clone())
}

/// Explains whether `serve` would accept `token`, and why.
pub(super) async fn examine_token(
    verifier: Option<&Verifier>,
    token: &str,
    config: &JwtConfig,
    report: &mut Report,
) {
    let Some(verifier) = verifier else {
        return report.unknown("verdict", "not tried: there are no keys");
    };
    let Ok((remarks, verdict)) = timeout(VERDICT, verifier.examine(token, config)).await else {
        return report.problem("verdict", "no verdict in time", "check JWT_JWKS");
    };
    for remark in remarks {
        match remark.fit {
            Fit::Good => report.ok(remark.part, remark.text),
            Fit::Odd => report.warning(remark.part, remark.text, odd_advice(remark.part)),
            Fit::Bad => report.problem(remark.part, remark.text, bad_advice(remark.part)),
        }
    }
    match verdict {
        Ok(identity) => {
            let user = identity.user();
            let tenant = user.tenant.as_ref();
            let tenant = tenant.map_or("no tenant".to_owned(), |tenant| format!("tenant {tenant}"));
            report.ok("verdict", format!("accepted: user {}, {tenant}", user.id));
        }
        Err(refusal) => report.problem(
            "verdict",
            format!("refused: the client is told {:?}", refusal.to_string()),
            verdict_advice(refusal),
        ),
    }
}

fn verdict_advice(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TokenMissing => "give the client a token: io(url, { auth: { token } })",
        _ => "the lines above say what to change; revocations are known to a running gateway only",
    }
}

fn odd_advice(part: &str) -> &'static str {
    match part {
        "exp" => "let the signer set exp in seconds since 1970, minutes or hours ahead",
        "tenant_id" => {
            "let the signer add it, if more than one tenant uses this Chat3 (JWT_TENANT_ID_CLAIM names it)"
        }
        _ => {
            "compare the clocks of the signer and of this machine; times are in seconds since 1970"
        }
    }
}

fn bad_advice(part: &str) -> &'static str {
    match part {
        "format" => "give the whole token, as the backend made it",
        "alg" => {
            "let the signer use an algorithm of a configured key, or configure the key of this one"
        }
        "crit" => "let the signer leave crit out",
        "kid" => "is the issuer's key set the one in JWT_JWKS?",
        "signature" => {
            "compare JWT_SECRET or the public key with the signer's; mind white space and line ends"
        }
        "exp" => {
            "get a new one; if it is new, compare the clocks of the signer and of this machine"
        }
        "nbf" | "iat" => {
            "compare the clocks of the signer and of this machine; times are in seconds since 1970"
        }
        "iss" => "JWT_ISSUER must be what the signer writes, to the character",
        "aud" => "JWT_AUDIENCE must be what the signer writes, to the character",
        "user_id" => "JWT_USER_ID_CLAIM names the claim; ids have no *, # or white space",
        "tenant_id" => "JWT_TENANT_ID_CLAIM names the claim; ids have no *, # or white space",
        _ => "let the signer write it as RFC 7519 has it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_from_pages_are_recognised_and_random_ones_are_not() {
        for secret in [
            "secret",
            "changeme",
            "Your-Secret-Key",
            "the-secret-of-your-backend",
            "aaaaaaaaaaaaaaaa",
            "development-only-secret-of-32-bytes-or-more",
            "password",
            "1212121212",
        ] {
            assert!(is_placeholder(secret), "{secret}");
        }
        for secret in [
            "3f0c6d1e9a7b48d2c5e1f09a6b7c8d4e5f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9c",
            "zR8#mQ2v!Lx5",
            "correct horse battery staple",
        ] {
            assert!(!is_placeholder(secret), "{secret}");
        }
    }
}
