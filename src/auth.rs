//! Verifies tokens: who the bearer of a JSON Web Token is.
//!
//! - `presented`: where a client's token is looked for
//! - [`keys`]: which key is for which algorithm; `configured` reads keys from the settings,
//!   `jwks` reads a key set again and again
//! - `signatures`: how a signature is verified; `workers`: on which threads
//! - `claims`: what a token must claim, and the [`Identity`] that its claims make
//! - `refusal`: why a client is refused, in words that it may read
//! - `explain`: what is wrong with a token, for an operator
//! - `signer`: makes tokens
//!
//! Invariant: a client gets an [`Identity`] from [`Verifier`] and nowhere else.

mod claims;
mod configured;
#[cfg(feature = "cli")]
mod explain;
mod jwks;
pub mod keys;
mod presented;
mod refusal;
mod signatures;
#[cfg(any(test, feature = "cli"))]
mod signer;
mod workers;

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use http::request::Parts;
use jsonwebtoken::{AlgorithmFamily, Header, Validation, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

#[cfg(any(test, feature = "cli"))]
pub use self::signer::Signer;
#[cfg(feature = "cli")]
pub use self::signer::make_up_secret;
use self::{
    claims::IdClaims,
    jwks::{Jwks, Source, contains},
    keys::Key,
    presented::MAX_TOKEN_BYTES,
    workers::{NotDone, Workers},
};
pub use self::{claims::Identity, configured::KeyError, refusal::Refusal};
#[cfg(feature = "cli")]
pub(crate) use self::{
    configured::{configured_keys, read_key_set},
    explain::Fit,
};
use crate::{config::JwtConfig, observability::metrics::Metrics};

/// Keys that one token is tried with: the few that an issuer has, with its previous and
/// its next ones.
const MAX_TRIES: usize = 8;

/// Tokens that wait at once for a key that may be in a newer key set.
const MAX_SEEKERS: usize = 1_024;

/// Checks tokens against the configured keys and claims.
pub struct Verifier {
    /// The keys from the secret and PEM blocks.
    keys: Arc<[Key]>,
    jwks: Option<Jwks>,
    validation: Arc<Validation>,
    workers: Workers,
    seekers: Semaphore,
    id_claims: IdClaims,
    allow_query: bool,
}

/// Why a token was not accepted, and whether another key set may change that.
enum Failure {
    Final(Refusal),
    /// No key fits. The token names this one, if any.
    NoKey(Option<String>),
}

/// The keys at one moment.
struct Keys {
    own: Arc<[Key]>,
    set: Option<Arc<[Key]>>,
    validation: Arc<Validation>,
}

impl Verifier {
    /// Reads the keys, and keeps reading the key set if one is configured: then this must be
    /// called inside a Tokio runtime. `tenant_required`: the binding keys cannot be made
    /// without a tenant.
    ///
    /// # Errors
    /// When a key cannot be read or used, or when none is configured.
    pub fn new(
        config: &JwtConfig,
        tenant_required: bool,
        metrics: &Metrics,
    ) -> Result<Self, KeyError> {
        let keys = configured::configured_keys(config)?;
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
            validation: Arc::new(claims::validation(config)),
            workers: Workers::new(),
            seekers: Semaphore::new(MAX_SEEKERS),
            id_claims: IdClaims::new(config, tenant_required),
            allow_query: config.jwt_allow_query,
        })
    }

    /// How long a token is accepted after its expiry.
    pub fn leeway(&self) -> Duration {
        Duration::from_secs(self.validation.leeway)
    }

    /// Whether a token may come in the query of a handshake.
    pub fn allows_query(&self) -> bool {
        self.allow_query
    }

    /// The token that a client presents: in Socket.IO's `auth`, else in the header of
    /// its handshake, else, where that is allowed, in its query.
    ///
    /// # Errors
    /// When there is no token, or it cannot be one.
    pub fn presented<'a>(
        &self,
        auth: Option<&'a Value>,
        handshake: &'a Parts,
    ) -> Result<Cow<'a, str>, Refusal> {
        presented::presented(auth, handshake, self.allow_query)
    }

    /// Verifies the signature, times, issuer and audience of a token, then the ids in it.
    /// Waits if the token names a key that may be in a newer key set, and while a slow
    /// signature is verified.
    pub async fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.verify_for(nobody, token, || true).await
    }

    /// As [`Verifier::verify`]. Where many clients wait, they take turns. A token that no
    /// longer `is_wanted` when its turn comes is refused with
    /// [`Refusal::AddressRefusals`].
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
        .and_then(|claims| self.id_claims.identity(&claims))
    }

    /// As [`Verifier::verify`], on this thread and with the keys that are known now.
    pub fn verify_now(&self, token: &str) -> Result<Identity, Refusal> {
        let header = header(token)?;
        let claims = self.keys().claims(token, &header);
        self.id_claims.identity(&claims.map_err(Failure::refusal)?)
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
            // Verifying takes no longer than handing the token over would.
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
}

/// The header of a token, if the text can be a token at all.
fn header(token: &str) -> Result<Header, Refusal> {
    if token.is_empty() {
        return Err(Refusal::TokenMissing);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::TokenInvalid);
    }
    let header = decode_header(token).map_err(|_| Refusal::TokenInvalid)?;
    // RFC 7515 §4.1.11: the token demands extensions, and none is understood.
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

    /// The claims, if one of the keys has signed the token. [`MAX_TRIES`] of the keys that
    /// fit are tried, first those that the token names.
    fn claims(&self, token: &str, header: &Header) -> Result<Map<String, Value>, Failure> {
        let is_named = |key: &&Key| header.kid.is_some() && key.id() == header.kid.as_deref();
        let named = self.all().filter(is_named);
        let others = self.all().filter(|key| !is_named(key));
        let keys = named.chain(others).filter(|key| key.may_verify(header));
        for key in keys.take(MAX_TRIES) {
            match key.decode(token, header, &self.validation) {
                Ok(claims) => return Ok(claims),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                Err(error) => return Err(Failure::Final(Refusal::of(error.kind()))),
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

#[cfg(test)]
pub(crate) mod tests;
