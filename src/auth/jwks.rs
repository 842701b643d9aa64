//! A key set that is read again at intervals, and when a token names a key that the set
//! does not hold.
//!
//! Invariants: whatever tokens ask for, one read runs at a time, with a pause before the
//! next; the last good set stays in use until another one is read.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header, uri::InvalidUri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    runtime::Builder,
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::keys::{InvalidKey, Key, KeySet};
use crate::{
    config::JwksSource,
    observability::metrics::Metrics,
    tls::{self, TlsError},
};

/// Time limit of one read, connecting included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Extra time that the caller waits for a read, in case the reading thread is busy.
const LATE: Duration = Duration::from_secs(1);

/// Pause between two reads: bounds what tokens with made-up key ids cost the issuer.
const PAUSE: Duration = Duration::from_secs(5);

/// How long a token with an unknown key id waits for the key: less than the 10 s that a
/// socket may take to connect, and enough for a pause or a read to end.
const KEY_TIMEOUT: Duration = Duration::from_secs(8);

/// Pause after a failed read.
const RETRY: Duration = Duration::from_secs(30);

/// Largest key set, in bytes. Those of large issuers have about 10 KB.
const MAX_BYTES: usize = 256 * 1024;

/// Most unused keys that the log names.
const MAX_NAMED: usize = 32;

/// Why a key set could not be read.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("cannot be read: {0}")]
    File(std::io::Error),
    #[error("{0}")]
    Invalid(#[from] InvalidKey),
    #[error("cannot be fetched: {0}")]
    Fetch(String),
    #[error("was not fetched within {FETCH_TIMEOUT:?}")]
    Timeout,
    #[error("is over {MAX_BYTES} bytes")]
    TooLarge,
    #[error("was answered with {0}")]
    Status(StatusCode),
    #[error("was answered with {0}; redirects are not followed")]
    Redirect(StatusCode),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The current key set of a source. Dropping it ends the reads.
pub struct Jwks {
    state: watch::Receiver<Snapshot>,
    wanted: Arc<Notify>,
    _reader: AbortOnDropHandle<()>,
}

/// The set as it is, and how often it was read.
struct Snapshot {
    keys: Arc<[Key]>,
    /// Reads begun and ended so far.
    begun: u64,
    ended: u64,
}

impl Jwks {
    /// Begins to read `source` every `period`. A file must be readable now; the server of a
    /// URL may come up later. Must be called inside a Tokio runtime.
    pub fn start(source: Source, period: Duration, metrics: Metrics) -> Result<Self, JwksError> {
        let mut reader = Reader {
            period,
            metrics,
            state: watch::Sender::new(Snapshot {
                keys: [].into(),
                begun: 0,
                ended: 0,
            }),
            wanted: Arc::default(),
            ignored: Vec::new(),
            is_weak: false,
            failing: false,
        };
        let is_file = match &source {
            Source::File(path) => {
                let set = read_file(path)?;
                reader.note(&source, Ok(set));
                true
            }
            Source::Url { .. } => false,
        };
        Ok(Self {
            state: reader.state.subscribe(),
            wanted: reader.wanted.clone(),
            _reader: AbortOnDropHandle::new(tokio::spawn(reader.run(source, is_file))),
        })
    }

    /// The keys of the last set that was read.
    pub fn keys(&self) -> Arc<[Key]> {
        self.state.borrow().keys.clone()
    }

    /// Has the set read again, and waits until it holds the key `id` (any key, if `id` is
    /// `None`), or was read and does not hold it, for [`KEY_TIMEOUT`] at most.
    pub async fn seek(&self, id: Option<&str>) {
        let mut state = self.state.clone();
        let begun = state.borrow().begun;
        self.wanted.notify_one();
        // A read that had already begun may have missed a key that was added meanwhile.
        let is_done = |state: &Snapshot| state.ended > begun || contains(&state.keys, id);
        // After a timeout, or without a reader, the token is refused.
        let _ = timeout(KEY_TIMEOUT, state.wait_for(is_done)).await;
    }
}

/// Whether a set holds the key `id`, or any key if `id` is `None`.
pub fn contains(keys: &[Key], id: Option<&str>) -> bool {
    match id {
        Some(id) => keys.iter().any(|key| key.id() == Some(id)),
        None => !keys.is_empty(),
    }
}

/// The place where a key set is read from.
pub enum Source {
    File(PathBuf),
    Url { uri: Uri, client: Box<HttpClient> },
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

impl Source {
    /// `ca_file` holds the certificate authorities that are trusted for an https server.
    pub fn new(source: &JwksSource, ca_file: Option<&Path>) -> Result<Option<Self>, JwksError> {
        let url = match source {
            JwksSource::Unset => return Ok(None),
            JwksSource::File(path) => return Ok(Some(Self::File(path.clone()))),
            JwksSource::Url(url) => url,
        };
        let uri = url.as_str().parse();
        let uri = uri.map_err(|error: InvalidUri| JwksError::Fetch(error.to_string()))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(ca_file, None)?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            // Reads are minutes apart, so no connection is kept.
            .pool_max_idle_per_host(0)
            .build(connector);
        let client = Box::new(client);
        Ok(Some(Self::Url { uri, client }))
    }

    /// Reads the set once.
    pub(super) async fn read(&self) -> Result<KeySet, JwksError> {
        match self {
            Self::File(path) => read_file(path),
            Self::Url { uri, client } => {
                let (uri, client) = (uri.clone(), client.clone());
                let fetching = spawn_blocking(move || fetch_apart(&client, &uri));
                match timeout(FETCH_TIMEOUT + LATE, fetching).await {
                    Ok(Ok(read)) => read,
                    Ok(Err(panic)) => Err(JwksError::Fetch(panic.to_string())),
                    Err(_) => Err(JwksError::Timeout),
                }
            }
        }
    }
}

/// Reads the set on this thread, apart from those that serve sockets: hyper reads without
/// a pause as long as a server sends, and a large set takes time to parse.
fn fetch_apart(client: &HttpClient, uri: &Uri) -> Result<KeySet, JwksError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| JwksError::Fetch(error.to_string()))?;
    let read = runtime.block_on(timeout(FETCH_TIMEOUT, fetch(client, uri)));
    // Does not wait for a name look-up that hangs.
    runtime.shutdown_background();
    read.unwrap_or(Err(JwksError::Timeout))
}

fn read_file(path: &Path) -> Result<KeySet, JwksError> {
    let json = std::fs::read(path).map_err(JwksError::File)?;
    Ok(KeySet::parse(&json, true)?)
}

async fn fetch(client: &HttpClient, uri: &Uri) -> Result<KeySet, JwksError> {
    let request = Request::get(uri)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, "chat3-gateway")
        .body(Empty::new());
    let failed = |error: &dyn Error| JwksError::Fetch(in_one_line(error));
    let request = request.map_err(|error| failed(&error))?;
    let response = client.request(request).await;
    let response = response.map_err(|error| failed(&error))?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(JwksError::Redirect(status)),
        status => return Err(JwksError::Status(status)),
    }
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => JwksError::TooLarge,
        false => failed(&*error),
    })?;
    // A key that everybody may fetch is not a secret.
    Ok(KeySet::parse(&body.to_bytes(), false)?)
}

/// An error with its causes, which tell the details.
fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The task that reads.
struct Reader {
    period: Duration,
    metrics: Metrics,
    state: watch::Sender<Snapshot>,
    wanted: Arc<Notify>,
    /// The unused keys that the log has already.
    ignored: Vec<String>,
    is_weak: bool,
    failing: bool,
}

impl Reader {
    async fn run(mut self, source: Source, mut has_read: bool) {
        loop {
            if has_read {
                let next = match self.failing {
                    true => RETRY.min(self.period),
                    false => self.period,
                };
                tokio::select! {
                    () = sleep(next) => {}
                    () = self.wanted.notified() => {}
                }
            }
            self.state.send_modify(|state| state.begun += 1);
            let read = source.read().await;
            self.note(&source, read);
            has_read = true;
            sleep(PAUSE.min(self.period)).await;
        }
    }

    fn note(&mut self, source: &Source, read: Result<KeySet, JwksError>) {
        self.metrics.jwks_read(read.is_ok());
        let keys = match read {
            Ok(set) => {
                if self.ignored != set.ignored && !set.ignored.is_empty() {
                    let named = set.ignored.len().min(MAX_NAMED);
                    let left_out = set.ignored.len() - named;
                    let ignored = set.ignored[..named].join("; ");
                    warn!(%source, %ignored, left_out, "Keys in JWT_JWKS are not used");
                }
                self.ignored = set.ignored;
                let is_weak = set.keys.iter().any(Key::has_small_exponent);
                if is_weak && !std::mem::replace(&mut self.is_weak, is_weak) {
                    warn!(%source, "A key in JWT_JWKS is weak: RSA with an exponent under 65537");
                }
                if std::mem::replace(&mut self.failing, false) {
                    info!(%source, "JWT_JWKS read again");
                }
                Some(set.keys.into())
            }
            // One warning for each outage: made-up key ids make reads frequent.
            Err(error) if self.failing => {
                debug!(%source, %error, "JWT_JWKS still not read");
                None
            }
            Err(error) => {
                warn!(%source, %error, "JWT_JWKS not read; the last keys stay in use");
                self.failing = true;
                None
            }
        };
        self.state.send_modify(|state| {
            state.keys = keys.unwrap_or_else(|| state.keys.clone());
            state.ended = state.begun;
        });
    }
}

/// For logs. Leaves out a URL's query, which may hold an API key.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url { uri, .. } => {
                let host = uri.host().unwrap_or_default();
                write!(f, "{host}{}", uri.path())
            }
        }
    }
}
