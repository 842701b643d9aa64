//! The accept loop: connections, and hyper on each of them.

use std::{convert::Infallible, sync::atomic::Ordering, time::Duration};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::debug;

use super::{Transports, stream::Stream};

/// Time that a client has to send a request's head, from its connection or its
/// previous request on: idle connections end by it too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts connections and serves `router` on them until `stop`; then waits until
/// they have ended. Each request carries its [`Connection`] as an extension.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    transports: Transports,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    loop {
        let (tcp, peer) = tokio::select! {
            // axum's own accept waits out a lack of file descriptors.
            accepted = axum::serve::Listener::accept(&mut listener) => accepted,
            () = stop.cancelled() => break,
        };
        let registry = &transports.0;
        let number = registry.accepted.fetch_add(1, Ordering::Relaxed);
        let limit = registry.write_timeout;
        let stream = Stream::new(tcp, peer, number, limit, transports.clone());
        let connection = stream.connection().clone();
        let router = router.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(connection.clone());
            let router = router.clone();
            async move {
                let response = router.oneshot(request.map(Body::new)).await;
                response.map_err(|never: Infallible| never)
            }
        });
        let served = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        connections.spawn(async move {
            if let Err(error) = served.await {
                debug!(%peer, %error, "HTTP connection ended early");
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}
