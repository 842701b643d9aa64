//! Who a token says its bearer is: JWT verification on connect.
//!
//! [`keys`] owns which key is for which algorithm, `jwks` the key set
//! that is read again and again, `signatures` how a signature is verified, `workers`
//! where, and `signer` how the command's tokens are signed.
//!
//! Invariant: an [`Identity`] comes out of [`Verifier`] and nowhere else. What a
//! client may read about a refusal is [`Refusal`]'s `Display`, a type of its own,
//! so that no library's error text can leak to a browser.

#[cfg(feature = "cli")]
mod explain;
mod jwks;
pub mod keys;
mod signatures;
#[cfg(any(test, feature = "cli"))]
mod signer;
mod workers;

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{header, request::Parts};
use jsonwebtoken::{AlgorithmFamily, Header, Validation, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tracing::warn;

#[cfg(feature = "cli")]
pub(crate) use self::explain::Fit;
pub use self::jwks::JwksError;
#[cfg(any(test, feature = "cli"))]
pub use self::signer::Signer;
#[cfg(feature = "cli")]
pub use self::signer::make_up_secret;
use self::{
    jwks::{Jwks, Source, contains},
    keys::{InvalidKey, Key, MIN_SECRET_BYTES},
    workers::{NotDone, Workers},
};
use crate::{
    config::{JwtConfig, Secret},
    observability::metrics::Metrics,
    user::{TenantId, User, UserId},
};

/// Longest token that is looked at, in bytes. Request headers of 8 KB are the
/// common limit elsewhere, so that real tokens are shorter.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Keys that one token is tried with: an issuer's few, with those that it had
/// before and will have next.
const MAX_TRIES: usize = 8;

/// Tokens that wait at once for a key that may be in a newer key set.
const MAX_SEEKERS: usize = 1_024;

/// A verified bearer, and what its token said about itself.
#[derive(Debug, Clone)]
pub struct Identity {
    user: User,
    expires_at: Option<SystemTime>,
    issued_at: Option<SystemTime>,
    token_id: Option<String>,
}

impl Identity {
    /// Whose token it is.
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

/// Why a connection is refused. `Display` is the `message` of the client's
/// `connect_error`; [`Refusal::label`] is the metric's label.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("token missing")]
    TokenMissing,
    #[error("invalid token")]
    TokenInvalid,
    #[error("token expired")]
    TokenExpired,
    #[error("token not valid yet")]
    TokenNotYetValid,
    #[error("token without expiry")]
    TokenWithoutExpiry,
    #[error("token issuer not accepted")]
    Issuer,
    #[error("token audience not accepted")]
    Audience,
    #[error("token without user id")]
    UserIdMissing,
    #[error("user id not acceptable")]
    UserIdInvalid,
    #[error("token without tenant id")]
    TenantIdMissing,
    #[error("tenant id not acceptable")]
    TenantIdInvalid,
    /// This user's binding keys would be longer than AMQP allows.
    #[error("user id and tenant id too long")]
    IdsTooLong,
    #[error("token revoked")]
    TokenRevoked,
    /// Of `auth:refresh` only.
    #[error("token of another user")]
    AnotherUser,
    #[error("too many connections of this user")]
    TooManySockets,
    /// Seldom read: the connection is closed with it.
    #[error("too many tries to connect")]
    TooManyConnects,
    /// As above: the token was not looked at, and its bearer may try again.
    #[error("too many refused connections from this address")]
    AddressRefusals,
    /// As above.
    #[error("too many connections at once")]
    Overloaded,
}

impl Refusal {
    /// The reason as a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::TokenMissing => "token_missing",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenWithoutExpiry => "token_without_expiry",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::UserIdMissing => "user_id_missing",
            Self::UserIdInvalid => "user_id_invalid",
            Self::TenantIdMissing => "tenant_id_missing",
            Self::TenantIdInvalid => "tenant_id_invalid",
            Self::IdsTooLong => "ids_too_long",
            Self::TokenRevoked => "token_revoked",
            Self::AnotherUser => "another_user",
            Self::TooManySockets => "too_many_sockets",
            Self::TooManyConnects => "too_many_connects",
            Self::AddressRefusals => "address_refusals",
            Self::Overloaded => "overloaded",
        }
    }

    /// Whether the same token will be refused for the same reason for a while,
    /// whatever others do.
    pub(crate) fn lasts(self) -> bool {
        !matches!(
            self,
            Self::TokenNotYetValid
                | Self::TokenRevoked
                | Self::AnotherUser
                | Self::TooManySockets
                | Self::TooManyConnects
                | Self::AddressRefusals
                | Self::Overloaded
        )
    }
}

/// Why there is no verifier: what an operator has to mend.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "no key to verify tokens with: set JWT_SECRET, JWT_PUBLIC_KEY, JWT_PUBLIC_KEY_FILE or \
         JWT_JWKS (to try without any, run `chat3-gateway dev`)"
    )]
    NoKey,
    #[error("{0} {1}")]
    Invalid(&'static str, InvalidKey),
    #[error("JWT_PUBLIC_KEY_FILE: cannot read {0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    #[error("JWT_JWKS {0}")]
    Jwks(#[from] JwksError),
}

/// Checks tokens against the configured keys and claims.
pub struct Verifier {
    /// From the secret and PEM blocks.
    keys: Arc<[Key]>,
    jwks: Option<Jwks>,
    validation: Arc<Validation>,
    workers: Workers,
    seekers: Semaphore,
    user_id_claims: Vec<String>,
    tenant_id_claim: String,
    default_tenant: Option<TenantId>,
    tenant_required: bool,
    allow_query: bool,
}

/// Why a token was not accepted, and whether another key set may change that.
enum Failure {
    Final(Refusal),
    /// No key fits; the token names this one.
    NoKey(Option<String>),
}

/// The keys of one moment.
struct Keys {
    own: Arc<[Key]>,
    set: Option<Arc<[Key]>>,
    validation: Arc<Validation>,
}

impl Verifier {
    /// Reads the keys, and keeps reading the key set if there is one: must be
    /// called inside a Tokio runtime then.
    /// `tenant_required`: the binding keys cannot be made without a tenant.
    pub fn new(
        config: &JwtConfig,
        tenant_required: bool,
        metrics: &Metrics,
    ) -> Result<Self, KeyError> {
        let keys = configured_keys(config)?;
        let source = Source::new(&config.jwt_jwks, config.jwks_ca_file())?;
        let period = config.jwt_jwks_refresh;
        let start = |source| Jwks::start(source, period, metrics.clone());
        let jwks = source.map(start).transpose()?;
        if keys.is_empty() && jwks.is_none() {
            return Err(KeyError::NoKey);
        }
        Ok(Self {
            keys: keys.into(),
            jwks,
            validation: Arc::new(validation(config)),
            workers: Workers::new(),
            seekers: Semaphore::new(MAX_SEEKERS),
            user_id_claims: match config.user_id_claim() {
                Some(claim) => vec![claim.to_owned()],
                None => vec!["userId".to_owned(), "sub".to_owned()],
            },
            tenant_id_claim: config.jwt_tenant_id_claim.clone(),
            default_tenant: config.jwt_default_tenant_id.clone(),
            tenant_required,
            allow_query: config.jwt_allow_query,
        })
    }

    /// How long after its expiry a token is accepted.
    pub fn leeway(&self) -> Duration {
        Duration::from_secs(self.validation.leeway)
    }

    /// Whether a token may come in the query of a handshake.
    pub fn allows_query(&self) -> bool {
        self.allow_query
    }

    /// The token that a client presents: in Socket.IO's `auth`, else in the header of
    /// its handshake, else, where that is allowed, in its query.
    pub fn presented<'a>(
        &self,
        auth: Option<&'a Value>,
        handshake: &'a Parts,
    ) -> Result<Cow<'a, str>, Refusal> {
        match auth.and_then(|auth| auth.get("token")) {
            Some(Value::String(token)) => Ok(Cow::from(bearer(token).unwrap_or(token))),
            Some(Value::Null) | None => {
                in_request(handshake, self.allow_query).ok_or(Refusal::TokenMissing)
            }
            Some(_) => Err(Refusal::TokenInvalid),
        }
        .and_then(|token| match token.len() {
            ..=MAX_TOKEN_BYTES => Ok(token),
            _ => Err(Refusal::TokenInvalid),
        })
    }

    /// Verifies signature, times, issuer and audience, then the ids inside. Waits
    /// if the token names a key that may be in a newer key set, and for a signature
    /// that takes long.
    pub async fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.verify_for(nobody, token, || true).await
    }

    /// As [`Verifier::verify`]. Clients take turns where many wait; a token that no
    /// longer `is_wanted` when its turn comes is [`Refusal::AddressRefusals`].
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "verify_token", skip_all))]
    pub async fn verify_for(
        &self,
        client: IpAddr,
        token: &str,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Identity, Refusal> {
        let header = header(token)?;
        match self.claims(client, token, &header, &is_wanted).await {
            Err(Failure::NoKey(id)) => match &self.jwks {
                Some(jwks) if !contains(&jwks.keys(), id.as_deref()) => {
                    let seeker = self.seekers.try_acquire();
                    let _seeker = seeker.map_err(|_| Refusal::Overloaded)?;
                    jwks.seek(id.as_deref()).await;
                    self.claims(client, token, &header, &is_wanted).await
                }
                _ => Err(Failure::NoKey(id)),
            },
            claims => claims,
        }
        .map_err(Failure::refusal)
        .and_then(|claims| self.identity(&claims))
    }

    /// As [`Verifier::verify`], with the keys that are here now, on this thread.
    pub fn verify_now(&self, token: &str) -> Result<Identity, Refusal> {
        let header = header(token)?;
        let claims = self.keys().claims(token, &header);
        self.identity(&claims.map_err(Failure::refusal)?)
    }

    async fn claims(
        &self,
        client: IpAddr,
        token: &str,
        header: &Header,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Map<String, Value>, Failure> {
        let keys = self.keys();
        if header.alg.family() == AlgorithmFamily::Hmac || !keys.fit(header) {
            // Takes no longer than handing it over would.
            return keys.claims(token, header);
        }
        let (token, header) = (token.to_owned(), header.clone());
        let verified = self
            .workers
            .run(client, is_wanted, move || keys.claims(&token, &header));
        verified.await.unwrap_or_else(|not_done| {
            Err(Failure::Final(match not_done {
                NotDone::Full => Refusal::Overloaded,
                NotDone::Unwanted => Refusal::AddressRefusals,
            }))
        })
    }

    fn keys(&self) -> Keys {
        Keys {
            own: self.keys.clone(),
            set: self.jwks.as_ref().map(Jwks::keys),
            validation: self.validation.clone(),
        }
    }

    fn identity(&self, claims: &Map<String, Value>) -> Result<Identity, Refusal> {
        let user_id = self.user_id_claims.iter().find_map(|name| claims.get(name));
        let user_id = id_text(user_id.ok_or(Refusal::UserIdMissing)?);
        let user_id = user_id.ok_or(Refusal::UserIdInvalid)?;
        let tenant = match claims.get(&self.tenant_id_claim) {
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

/// What a token says of itself, if that can be a token at all.
fn header(token: &str) -> Result<Header, Refusal> {
    if token.is_empty() {
        return Err(Refusal::TokenMissing);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::TokenInvalid);
    }
    let header = decode_header(token).map_err(|_| Refusal::TokenInvalid)?;
    // RFC 7515 §4.1.11: extensions that must be understood, and none is.
    match header.crit {
        Some(_) => Err(Refusal::TokenInvalid),
        None => Ok(header),
    }
}

impl Keys {
    fn fit(&self, header: &Header) -> bool {
        self.all().any(|key| key.may_verify(header))
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        let set = self.set.iter().flat_map(|set| set.iter());
        self.own.iter().chain(set)
    }

    /// The claims, by the first key that the token is signed with: of the keys that
    /// it may be, those that it names come first, and [`MAX_TRIES`] are tried.
    fn claims(&self, token: &str, header: &Header) -> Result<Map<String, Value>, Failure> {
        let is_named = |key: &&Key| header.kid.is_some() && key.id() == header.kid.as_deref();
        let named = self.all().filter(is_named);
        let others = self.all().filter(|key| !is_named(key));
        let keys = named.chain(others).filter(|key| key.may_verify(header));
        for key in keys.take(MAX_TRIES) {
            match key.decode(token, header, &self.validation) {
                Ok(claims) => return Ok(claims),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                Err(error) => return Err(Failure::Final(refusal(error.kind()))),
            }
        }
        Err(Failure::NoKey(header.kid.clone()))
    }
}

impl Failure {
    fn refusal(self) -> Refusal {
        match self {
            Self::Final(refusal) => refusal,
            Self::NoKey(_) => Refusal::TokenInvalid,
        }
    }
}

/// Reads the key set once, if one is configured.
#[cfg(feature = "cli")]
pub(crate) async fn read_key_set(config: &JwtConfig) -> Result<Option<keys::KeySet>, JwksError> {
    match Source::new(&config.jwt_jwks, config.jwks_ca_file())? {
        Some(source) => source.read().await.map(Some),
        None => Ok(None),
    }
}

/// The keys from the secret and PEM blocks.
pub(crate) fn configured_keys(config: &JwtConfig) -> Result<Vec<Key>, KeyError> {
    let mut keys = Vec::new();
    if let Some(secret) = config.jwt_secret.as_ref().and_then(Secret::expose) {
        let key = Key::from_secret(secret);
        keys.push(key.map_err(|invalid| KeyError::Invalid("JWT_SECRET", invalid))?);
        if secret.len() < MIN_SECRET_BYTES {
            warn!(
                bytes = secret.len(),
                "JWT_SECRET is weak: use {MIN_SECRET_BYTES} random bytes or more (openssl rand -hex 32)"
            );
        }
    }
    if let Some(pem) = config.jwt_public_key.as_ref().and_then(Secret::expose) {
        let from_pem = Key::from_pem(pem);
        keys.extend(from_pem.map_err(|invalid| KeyError::Invalid("JWT_PUBLIC_KEY", invalid))?);
    }
    if let Some(path) = config.public_key_file() {
        let pem = std::fs::read_to_string(path);
        let pem = pem.map_err(|error| KeyError::Unreadable(path.to_owned(), error))?;
        let invalid = |invalid| KeyError::Invalid("JWT_PUBLIC_KEY_FILE", invalid);
        keys.extend(Key::from_pem(&pem).map_err(invalid)?);
    }
    if keys.iter().any(Key::has_small_exponent) {
        warn!(
            "A public key is weak: RSA with an exponent under 65537; have the issuer make a new one"
        );
    }
    for key in &keys {
        let algorithm = key.algorithms()[0];
        let is_rival = |other: &&Key| other.algorithms().contains(&algorithm);
        if keys.iter().filter(is_rival).count() > MAX_TRIES {
            warn!(
                ?algorithm,
                "Too many public keys for one algorithm: a token is tried with the first {MAX_TRIES}"
            );
            break;
        }
    }
    Ok(keys)
}

/// What every token must hold, whatever it is signed with.
fn validation(config: &JwtConfig) -> Validation {
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

/// The token after the scheme of RFC 6750; `None` where there is another or none.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn in_request(request: &Parts, allow_query: bool) -> Option<Cow<'_, str>> {
    let header = request.headers.get(header::AUTHORIZATION);
    if let Some(token) = header.and_then(|value| bearer(value.to_str().ok()?)) {
        return Some(token.into());
    }
    let query = request.uri.query().filter(|_| allow_query)?;
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(name, value)| (name == "token").then_some(value))
}

fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::ExpiredSignature => Refusal::TokenExpired,
        ErrorKind::ImmatureSignature => Refusal::TokenNotYetValid,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => Refusal::TokenWithoutExpiry,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => Refusal::Issuer,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Refusal::Audience,
        _ => Refusal::TokenInvalid,
    }
}

/// Ids are strings or integers; anything else (1.5, true, null, an object) is no id.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// A `NumericDate` of RFC 7519 §2: seconds, possibly with a fraction.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<SystemTime>, Refusal> {
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

#[cfg(test)]
pub(crate) mod tests;
