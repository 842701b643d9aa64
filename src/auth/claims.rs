//! What a token must claim, and the [`Identity`] that its claims make.
//!
//! Owns which claims are required and how ids and times are written; signatures are
//! verified elsewhere, and what is read here has been.
//!
//! Invariant: an [`Identity`] is made here and nowhere else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::Validation;
use serde_json::{Map, Value};

use super::Refusal;
use crate::{
    config::JwtConfig,
    user::{TenantId, User, UserId},
};

/// A verified bearer, and what the token said about itself.
#[derive(Debug, Clone)]
pub struct Identity {
    user: User,
    expires_at: Option<SystemTime>,
    issued_at: Option<SystemTime>,
    token_id: Option<String>,
}

impl Identity {
    /// The user that the token names.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// When the token expires (`exp`). `None` only where none is required.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// When the token was issued (`iat`), if it says so.
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at
    }

    /// The token's own id (`jti`), if it has one.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }
}

/// Where the ids are in a token, and whether it must name a tenant.
pub(super) struct IdClaims {
    /// The first of these claims that is there holds the user id.
    pub(super) user_id: Vec<String>,
    pub(super) tenant_id: String,
    /// The tenant of tokens that name none.
    pub(super) default_tenant: Option<TenantId>,
    pub(super) tenant_required: bool,
}

impl IdClaims {
    pub(super) fn new(config: &JwtConfig, tenant_required: bool) -> Self {
        Self {
            user_id: match config.user_id_claim() {
                Some(claim) => vec![claim.to_owned()],
                None => vec!["userId".to_owned(), "sub".to_owned()],
            },
            tenant_id: config.jwt_tenant_id_claim.clone(),
            default_tenant: config.jwt_default_tenant_id.clone(),
            tenant_required,
        }
    }

    /// The bearer that verified claims name.
    pub(super) fn identity(&self, claims: &Map<String, Value>) -> Result<Identity, Refusal> {
        let user_id = self.user_id.iter().find_map(|name| claims.get(name));
        let user_id = id_text(user_id.ok_or(Refusal::UserIdMissing)?);
        let user_id = user_id.ok_or(Refusal::UserIdInvalid)?;
        let tenant = match claims.get(&self.tenant_id) {
            Some(tenant) => {
                let tenant = id_text(tenant).ok_or(Refusal::TenantIdInvalid)?;
                Some(TenantId::parse(&tenant).map_err(|_| Refusal::TenantIdInvalid)?)
            }
            None => self.default_tenant.clone(),
        };
        if tenant.is_none() && self.tenant_required {
            return Err(Refusal::TenantIdMissing);
        }
        Ok(Identity {
            user: User {
                id: UserId::parse(&user_id).map_err(|_| Refusal::UserIdInvalid)?,
                tenant,
            },
            expires_at: time(claims, "exp")?,
            issued_at: time(claims, "iat")?,
            token_id: match claims.get("jti") {
                Some(Value::String(id)) => Some(id.clone()),
                Some(_) => return Err(Refusal::TokenInvalid),
                None => None,
            },
        })
    }
}

/// What every token must hold, whatever it is signed with.
pub(super) fn validation(config: &JwtConfig) -> Validation {
    let mut validation = Validation {
        // Each key brings its own.
        algorithms: Vec::new(),
        leeway: config.jwt_leeway.as_secs(),
        validate_nbf: true,
        ..Validation::default()
    };
    validation.required_spec_claims.clear();
    let mut require = |claim: &str| validation.required_spec_claims.insert(claim.to_owned());
    if config.jwt_require_exp {
        require("exp");
    }
    if config.issuer().is_some() {
        require("iss");
    }
    if config.audience().is_some() {
        require("aud");
    }
    if let Some(issuer) = config.issuer() {
        validation.set_issuer(&[issuer]);
    }
    match config.audience() {
        Some(audience) => validation.set_audience(&[audience]),
        None => validation.validate_aud = false,
    }
    validation
}

/// The text of an id: a string or an integer. Anything else (1.5, true, null, an object) is
/// not an id.
pub(super) fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// A `NumericDate` of RFC 7519 §2: seconds, possibly with a fraction.
pub(super) fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<SystemTime>, Refusal> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let since_epoch = match value.as_u64() {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => value
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    };
    let time = since_epoch.and_then(|since_epoch| UNIX_EPOCH.checked_add(since_epoch));
    time.map(Some).ok_or(Refusal::TokenInvalid)
}

/// Seconds since 1970, as tokens count them.
#[cfg(any(test, feature = "cli"))]
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
impl Identity {
    /// An identity for tests, as if verified.
    pub(crate) fn made_up(
        user: User,
        expires_at: Option<SystemTime>,
        issued_at: Option<SystemTime>,
        token_id: Option<&str>,
    ) -> Self {
        Self {
            user,
            expires_at,
            issued_at,
            token_id: token_id.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id_claims(tenant_required: bool) -> IdClaims {
        IdClaims {
            user_id: vec!["userId".to_owned(), "sub".to_owned()],
            tenant_id: "tenantId".to_owned(),
            default_tenant: None,
            tenant_required,
        }
    }

    fn identity(id_claims: &IdClaims, claims: &Value) -> Result<(String, Option<String>), Refusal> {
        let claims = claims.as_object().unwrap();
        let user = id_claims.identity(claims)?.user().clone();
        Ok((
            user.id.to_string(),
            user.tenant.map(|tenant| tenant.to_string()),
        ))
    }

    #[test]
    fn the_first_claim_that_is_there_holds_the_user_id() {
        let ids = id_claims(false);
        let user = |claims| identity(&ids, &claims).map(|(user, _)| user);
        assert_eq!(user(json!({"sub": "s", "userId": "u"})), Ok("u".into()));
        assert_eq!(user(json!({"sub": "s"})), Ok("s".into()));
        assert_eq!(user(json!({"userId": -7})), Ok("-7".into()));
        let invalid = Err(Refusal::UserIdInvalid);
        // A wrong id is refused; the next claim is not tried.
        assert_eq!(user(json!({"sub": "s", "userId": null})), invalid);
        assert_eq!(user(json!({"userId": "a*"})), invalid);
        assert_eq!(user(json!({"userId": 1.5})), invalid);
        assert_eq!(user(json!({})), Err(Refusal::UserIdMissing));
    }

    #[test]
    fn a_tenant_is_the_tokens_or_else_the_default_and_may_be_required() {
        let with_default = IdClaims {
            default_tenant: Some(TenantId::parse("d").unwrap()),
            ..id_claims(true)
        };
        let named = json!({"userId": "u", "tenantId": "t"});
        let unnamed = json!({"userId": "u"});
        let wrong = json!({"userId": "u", "tenantId": "#"});
        let tenant = |ids: &IdClaims, claims| identity(ids, claims).map(|(_, tenant)| tenant);
        for (ids, of_unnamed) in [
            (id_claims(false), Ok(None)),
            (id_claims(true), Err(Refusal::TenantIdMissing)),
            (with_default, Ok(Some("d".to_owned()))),
        ] {
            assert_eq!(tenant(&ids, &named), Ok(Some("t".to_owned())));
            assert_eq!(tenant(&ids, &unnamed), of_unnamed);
            // A wrong tenant is refused; the default does not replace it.
            assert_eq!(tenant(&ids, &wrong), Err(Refusal::TenantIdInvalid));
        }
    }

    #[test]
    fn times_and_the_tokens_id_are_read_or_refused() {
        let ids = id_claims(false);
        let read = |field: &str, value: Value| {
            let mut claims = json!({"userId": "u"});
            claims[field] = value;
            ids.identity(claims.as_object().unwrap())
        };
        let at = |millis| Some(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(read("exp", json!(7)).unwrap().expires_at(), at(7_000));
        assert_eq!(read("iat", json!(1.5)).unwrap().issued_at(), at(1_500));
        let with_id = read("jti", json!("j")).unwrap();
        assert_eq!(with_id.token_id(), Some("j"));
        assert_eq!((with_id.expires_at(), with_id.issued_at()), (None, None));
        for (field, value) in [
            ("exp", json!(-1)),
            ("exp", json!("soon")),
            ("exp", json!(u64::MAX)),
            ("iat", json!(1e300)),
            ("iat", Value::Null),
            ("jti", json!(7)),
        ] {
            let refusal = read(field, value.clone()).unwrap_err();
            assert_eq!(refusal, Refusal::TokenInvalid, "{field} {value}");
        }
    }
}
