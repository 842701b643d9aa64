//! The accept loop: accepts connections and runs hyper on each of them.
//!
//! Owns the limits on a request's head, the fairness between requests and everything
//! else, and the refusals that need no look at a path. Which connection may stay is
//! `capacity`'s to say.

use std::{convert::Infallible, sync::atomic::Ordering, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, StatusCode, Version, header},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::yield_now};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::debug;

use super::{
    Connection, Served, Transports,
    polling::WaitingPoll,
    query::{is_websocket, session_id},
    stream::Stream,
};

/// Time that a client has to send a request's head, counted from its connection or its
/// previous request: idle connections end by it too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest head of a request, in bytes: hyper reads so much before it knows where the
/// head ends. A token of 8 KiB fits twice.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Paths of health checks, which a full gateway serves too.
const PROBES: [&str; 4] = ["/health", "/ready", "/livez", "/readyz"];

/// Requests that begin at once. The next ones begin after everything else that is ready
/// had its turn: however many connections ask without a pause, updates go out between
/// their requests. This number of requests costs about as much as a burst of updates.
pub(super) const REQUESTS_IN_A_TURN: usize = 32;

/// Accepts connections and serves `router` on them until `stop`, then waits until
/// all connections have ended. Each request carries its [`Connection`] as an extension.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    transports: Transports,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    loop {
        let (tcp, peer) = tokio::select! {
            // axum's own accept waits out a lack of file descriptors.
            accepted = axum::serve::Listener::accept(&mut listener) => accepted,
            () = stop.cancelled() => break,
        };
        let number = transports.0.accepted.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::new(number, peer);
        let served = transports.admit(&connection);
        let limit = transports.write_timeout();
        let stream = Stream::new(tcp, connection.clone(), limit, transports.clone());
        if served == Served::Nothing {
            continue;
        }
        let (router, transports) = (router.clone(), transports.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            // Not inside the future: hyper may drop that before it polls it once.
            let answering = Answering::new(&transports, &connection);
            let poll = poll(&transports, &request);
            request.extensions_mut().insert(connection.clone());
            let refusal = refuse(&request, served);
            let (router, transports) = (router.clone(), transports.clone());
            async move {
                let _answering = answering;
                wait_for_turn(&transports).await;
                let response = match refusal {
                    Some(refusal) => refusal,
                    None => answer(router, request).await,
                };
                if let Some(poll) = poll {
                    poll.answered();
                }
                Ok::<_, Infallible>(response)
            }
        });
        let serving = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        connections.spawn(async move {
            if let Err(error) = serving.await {
                debug!(%peer, %error, "HTTP connection ended early");
            }
        });
    }
    drop(listener);
    // What came since the sockets were closed would be waited for in vain.
    transports.close_all();
    connections.close();
    connections.wait().await;
}

/// Waits until a request may begin.
async fn wait_for_turn(transports: &Transports) {
    let turns = transports.0.request_turns.acquire().await;
    yield_now().await;
    drop(turns);
}

async fn answer(router: Router, request: hyper::Request<Incoming>) -> Response {
    let is_last = request.headers().contains_key(header::TRANSFER_ENCODING);
    let response = router.oneshot(request.map(Body::new)).await;
    let mut response = response.unwrap_or_else(|never: Infallible| match never {});
    if is_last {
        // Only hyper knows where the request's body ends: see `Heads`.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// The guard of a request that is a poll.
fn poll(transports: &Transports, request: &hyper::Request<Incoming>) -> Option<WaitingPoll> {
    let is_poll = request.method() == Method::GET && !is_websocket(request.uri().query());
    let sid = session_id(request.uri()).filter(|_| is_poll)?;
    Some(WaitingPoll::new(transports, sid))
}

/// The refusal of a request that is not even looked at.
fn refuse(request: &hyper::Request<Incoming>, served: Served) -> Option<Response> {
    let status = match request.headers().get_all(header::HOST).iter().count() {
        1 => None,
        0 if request.version() < Version::HTTP_11 => None,
        // RFC 9112, 3.2: a proxy and this server might each believe another one.
        _ => Some(StatusCode::BAD_REQUEST),
    };
    let is_probe = PROBES.contains(&request.uri().path());
    let is_full = served == Served::ProbesOnly && !is_probe;
    let status = status.or(is_full.then_some(StatusCode::SERVICE_UNAVAILABLE))?;
    let close = [(header::CONNECTION, "close")];
    Some((status, close, status.canonical_reason().unwrap_or_default()).into_response())
}

/// Held while a request is being answered: before and after, the connection waits for
/// one.
struct Answering {
    transports: Transports,
    number: u64,
}

impl Answering {
    fn new(transports: &Transports, connection: &Connection) -> Self {
        connection.begin_request();
        let number = connection.number();
        transports.0.registry.begin_answer(number);
        Self {
            transports: transports.clone(),
            number,
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.transports.0.registry.end_answer(self.number);
    }
}
