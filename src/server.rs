//! A gateway that is bound to an address: [`builder`] puts the parts together,
//! [`Server::run`] serves and shuts down in order.
//!
//! Handles no signals and notifies no service manager: the caller does. Two servers in one
//! process share only what the caller gave to both.

pub(crate) mod admin;
mod builder;
mod orders;
mod origins;
mod presence;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use futures_util::future::join;
use socketioxide::SocketIo;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::builder::{BindError, ServerBuilder};
use crate::{
    broker::Broker,
    config::Config,
    observability::metrics::Metrics,
    socketio::{
        Hub,
        transport::{self, Transports},
    },
};

/// A gateway that is bound to its port. It serves once [`Server::run`] is called.
///
/// The server owns its accept loop because it must be able to close the transport of a
/// single client, which a router that another server runs could not do.
///
/// ```
/// use std::sync::Arc;
///
/// use axum::{Router, routing::get};
/// use chat3_gateway::{Config, Server, broker::embedded::EmbeddedExchange};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = Config::default();
/// config.http.port = 0;
/// config.jwt.jwt_secret = Some("thirty-two-bytes-of-a-secret-key".into());
/// let server = Server::builder(config)
///     // Leave this out in production: updates then come from RabbitMQ.
///     .broker(Arc::new(EmbeddedExchange::new("user.{userId}.*".parse()?)))
///     .routes(Router::new().route("/hello", get(|| async { "hello" })))
///     .bind()
///     .await?;
/// println!("listening on {}", server.local_addr());
/// server.run(async { /* until your backend stops */ }).await;
/// # Ok(()) }
/// ```
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    router: Router,
    /// Metrics and the admin API, where they have a separate listener.
    admin: Option<AdminListener>,
    io: SocketIo,
    broker: Arc<dyn Broker>,
    metrics: Metrics,
    hub: Arc<Hub>,
    transports: Transports,
    shutdown_delay: Duration,
    shutdown_spread: Duration,
    shutdown_timeout: Duration,
}

struct AdminListener {
    listener: TcpListener,
    local_addr: SocketAddr,
    router: Router,
}

impl Server {
    /// Starts to build a server from `config`.
    pub fn builder(config: Config) -> ServerBuilder {
        ServerBuilder::new(config)
    }

    /// The bound address. With port 0 in the configuration, it has the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The source of updates. A backend can subscribe users here without a browser.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// The metrics that `/metrics` shows.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Serves until `shutdown` completes, then shuts down: `/ready` fails, and after the
    /// configured delay all connections are closed within the configured time.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        info!(address = %self.local_addr, "Listening");
        let stop_serving = CancellationToken::new();
        if let Some(admin) = self.admin {
            info!(admin_address = %admin.local_addr, "Listening for operators");
            let (transports, stop) = (self.transports.clone(), stop_serving.clone());
            tokio::spawn(transport::serve(
                admin.listener,
                admin.router,
                transports,
                stop,
            ));
        }
        let serving = tokio::spawn(transport::serve(
            self.listener,
            self.router,
            self.transports.clone(),
            stop_serving.clone(),
        ));
        shutdown.await;
        if !self.shutdown_delay.is_zero() {
            info!(delay = ?self.shutdown_delay, "Not ready any more, and still serving");
            self.transports.fail_readiness();
            tokio::time::sleep(self.shutdown_delay).await;
        }
        info!("Shutting down");
        let until = Deadlines::new(self.shutdown_timeout);
        // `/ready` answers 503 and handshakes are refused; established sockets still work.
        self.transports.drain();
        until
            .within(0.35, "consumers", self.broker.stop_consuming())
            .await;
        // From here on no new update arrives, but some sockets lag behind.
        let sockets = self.io.sockets();
        let closed = self
            .transports
            .close_gradually(sockets, self.shutdown_spread);
        let closed = join(closed, self.hub.caught_up());
        until.within(0.6, "sockets one by one", closed).await;
        self.transports.close_unwatched();
        // Flushes each remaining socket, then closes its transport.
        until.within(0.8, "sockets", self.io.close()).await;
        self.transports.close_all();
        until.within(0.9, "RabbitMQ", self.broker.close()).await;
        stop_serving.cancel();
        until.within(1.0, "listener", serving).await;
        info!("Stopped");
    }
}

/// Divides the time of a shutdown among its steps: a step that hangs takes no time from
/// the steps after it.
struct Deadlines {
    start: Instant,
    total: Duration,
}

impl Deadlines {
    fn new(total: Duration) -> Self {
        Self {
            start: Instant::now(),
            total,
        }
    }

    /// Awaits `step` at most until `share` of the total time has passed.
    async fn within<T>(&self, share: f64, what: &str, step: impl Future<Output = T>) {
        let deadline = self.start + self.total.mul_f64(share);
        if tokio::time::timeout_at(deadline, step).await.is_err() {
            warn!(what, "not closed in time");
        }
    }
}
