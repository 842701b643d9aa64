//! A gateway that is bound to an address: puts the parts together, serves, and
//! shuts down in order.

pub(crate) mod admin;

use std::{
    fmt::Display,
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::Response,
};
use futures_util::future::join;
use sd_notify::NotifyState;
use socketioxide::SocketIo;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::{info, warn};

use crate::{
    auth::Verifier,
    broker::Broker,
    config::{CorsOrigins, HttpConfig},
    observability::metrics::Metrics,
    observability::sampled::Sampled,
    socketio::Hub,
    socketio::endpoint::Endpoint,
    socketio::revocation::{Order, OrderText},
    socketio::transport::{self, Connection, Transports},
};

static FOREIGN_ORIGIN: Sampled = Sampled::new();

/// Lines about messages on the control exchange that are no orders.
static NO_ORDER: Sampled = Sampled::new();

/// Longest reason in such a line.
const MAX_REASON_CHARS: usize = 200;

/// A gateway bound to its port. Serves once [`Server::run`] is called.
pub struct Server {
    listener: TcpListener,
    router: Router,
    /// Metrics and the admin API, where they have a listener of their own.
    admin: Option<(TcpListener, Router)>,
    io: SocketIo,
    broker: Arc<dyn Broker>,
    hub: Arc<Hub>,
    transports: Transports,
    shutdown_spread: Duration,
    shutdown_timeout: Duration,
}

impl Server {
    /// Binds `host` and the configured port and builds the service on it.
    /// `extra` are routes of your own on the same port. Neither the gateway's CORS
    /// nor its check of origins applies to them; bring your own layers. They must not
    /// use `/socket.io`, `/health`, `/livez`, `/ready`, `/readyz`, `/metrics` or `/api`,
    /// and unknown paths are answered by the gateway.
    ///
    /// The server owns its accept loop, since it must be able to close one client's
    /// transport: a router that is served elsewhere could not do that.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use axum::{Router, routing::get};
    /// use chat3_gateway::{
    ///     Server, auth::Verifier, config::{HttpConfig, JwtConfig}, broker::embedded::EmbeddedExchange,
    ///     metrics::Metrics,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let metrics = Metrics::new();
    /// let jwt = JwtConfig { jwt_secret: Some("thirty-two-bytes-of-a-secret-key".into()), ..JwtConfig::default() };
    /// let verifier = Verifier::new(&jwt, false, &metrics)?;
    /// // In production: RabbitMqService::connect(RabbitMqConfig::default(), metrics.clone()).
    /// let broker = Arc::new(EmbeddedExchange::new("user.{userId}.*".parse()?));
    /// let http = HttpConfig { port: 0, ..HttpConfig::default() };
    /// let own = Router::new().route("/hello", get(|| async { "hello" }));
    /// let server = Server::bind("127.0.0.1", &http, verifier, broker, metrics, own).await?;
    /// server.run(async { /* until your backend stops */ }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the address cannot be resolved or bound.
    pub async fn bind(
        host: &str,
        config: &HttpConfig,
        verifier: Verifier,
        broker: Arc<dyn Broker>,
        metrics: Metrics,
        extra: Router,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((host, config.port)).await;
        let listener = listener.map_err(|error| {
            cannot_listen(
                &error,
                format!("{host}:{}", config.port),
                config.port,
                "PORT",
            )
        })?;
        let transports = Transports::new(config, metrics.clone());
        let hub = Hub::new(broker.clone(), config, metrics.clone());
        let (endpoint, socket_io) = Endpoint::new(
            verifier,
            hub.clone(),
            transports.clone(),
            metrics.clone(),
            config.clone(),
        );
        let io = endpoint.io().clone();
        listen_to_orders(&endpoint, &*broker);
        let origins = (config.cors_origin.clone(), metrics.clone());
        let socket_io = socket_io.layer(middleware::from_fn_with_state(origins, check_origin));
        // Outermost, so that refusals too are readable to a browser.
        let socket_io = socket_io.layer(cors(&config.cors_origin));
        let (probes, operators) =
            admin::routers(endpoint, hub.clone(), transports.clone(), metrics, config);
        let mut router = probes.clone().merge(socket_io).merge(extra);
        let admin = if let Some(address) = config.admin_addr {
            let listener = TcpListener::bind(address).await;
            let listener = listener
                .map_err(|error| cannot_listen(&error, address, address.port(), "ADMIN_ADDR"))?;
            let admin = probes.merge(operators).fallback(admin::not_found);
            Some((listener, admin))
        } else {
            router = router.merge(operators);
            None
        };
        let router = router.fallback(admin::not_found);
        Ok(Self {
            listener,
            router,
            admin,
            io,
            broker,
            hub,
            transports,
            shutdown_spread: config.shutdown_spread,
            shutdown_timeout: config.shutdown_timeout,
        })
    }

    /// The bound address, with the real port where port 0 was asked for.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until `shutdown` completes, then shuts down within the configured time.
    ///
    /// # Errors
    /// When the bound address cannot be told.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        info!(address = %self.local_addr()?, "Listening");
        let stop_serving = CancellationToken::new();
        if let Some((listener, router)) = self.admin {
            info!(admin_address = %listener.local_addr()?, "Listening for operators");
            let (transports, stop) = (self.transports.clone(), stop_serving.clone());
            tokio::spawn(transport::serve(listener, router, transports, stop));
        }
        notify_systemd(NotifyState::Ready);
        let serving = tokio::spawn(transport::serve(
            self.listener,
            self.router,
            self.transports.clone(),
            stop_serving.clone(),
        ));
        shutdown.await;
        info!("Shutting down");
        notify_systemd(NotifyState::Stopping);
        let until = Deadlines::new(self.shutdown_timeout);
        // Not ready, and handshakes are refused; established sockets still work.
        self.transports.drain();
        until
            .within(0.35, "consumers", self.broker.stop_consuming())
            .await;
        // From here on no socket is sent anything new; some have not been sent all.
        let sockets = self.io.sockets();
        let closed = self
            .transports
            .close_gradually(sockets, self.shutdown_spread);
        let closed = join(closed, self.hub.caught_up());
        until.within(0.6, "sockets one by one", closed).await;
        self.transports.close_unwatched();
        // Flushes each that is left, then closes its transport.
        until.within(0.8, "sockets", self.io.close()).await;
        self.transports.close_all();
        until.within(0.9, "RabbitMQ", self.broker.close()).await;
        stop_serving.cancel();
        until.within(1.0, "listener", serving).await;
        info!("Stopped");
        Ok(())
    }
}

/// Why `address`, which `setting` sets, cannot be listened on, and what to do if it is taken.
fn cannot_listen(
    error: &io::Error,
    address: impl Display,
    port: u16,
    setting: &str,
) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => format!("; set {setting} to another port than {port}"),
        _ => String::new(),
    };
    anyhow::anyhow!("cannot listen on {address}: {error}{advice}")
}

/// Carries out the orders that other instances were given.
fn listen_to_orders(endpoint: &Arc<Endpoint>, broker: &dyn Broker) {
    let endpoint = Arc::downgrade(endpoint);
    broker.on_broadcast(Arc::new(move |message| {
        let Some(endpoint) = endpoint.upgrade() else {
            return;
        };
        let text = OrderText::read(message).map_err(|error| error.to_string());
        let order = text.and_then(|text| {
            let order = Order::parse(text, SystemTime::now());
            order.map_err(|error| error.to_string())
        });
        match order {
            Ok(order) => drop(endpoint.carry_out(&order)),
            Err(reason) => {
                if let Some(line) = NO_ORDER.note("") {
                    // It may quote the message.
                    let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
                    let left_out = line.left_out;
                    warn!(reason, left_out, "RabbitMQ control message ignored");
                }
            }
        }
    }));
}

/// Tells systemd, where it is there and asked to be told (`Type=notify`).
fn notify_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd not notified");
    }
}

/// Shares the time of a shutdown among its steps: one that hangs takes nothing
/// from the steps after it.
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

    /// Awaits `step` until `share` of the total time is over.
    async fn within<T>(&self, share: f64, what: &str, step: impl Future<Output = T>) {
        let deadline = self.start + self.total.mul_f64(share);
        if tokio::time::timeout_at(deadline, step).await.is_err() {
            warn!(what, "not closed in time");
        }
    }
}

fn cors(origins: &CorsOrigins) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request());
    match origins {
        CorsOrigins::Any => layer.allow_origin(tower_http::cors::Any),
        CorsOrigins::List(_) => {
            let origins = origins.clone();
            layer
                .allow_origin(AllowOrigin::predicate(move |origin, _| {
                    origins.allow(origin)
                }))
                .allow_credentials(true)
        }
    }
}

/// Turns away pages of sites that are not listed. CORS alone would only keep them
/// from reading answers to polling, and does not apply to websockets at all.
async fn check_origin(
    State((origins, metrics)): State<(CorsOrigins, Metrics)>,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    // Clients other than browsers send none.
    let mut sent = request.headers().get_all(header::ORIGIN).iter();
    let Some(origin) = sent.find(|origin| !origins.allow(origin)) else {
        return next.run(request).await;
    };
    metrics.connect_refused("foreign_origin");
    if let Some(line) = FOREIGN_ORIGIN.note("") {
        let (peer, left_out) = (connection.peer(), line.left_out);
        let origin = origin.to_str().unwrap_or_default().chars();
        let origin: String = origin.take(100).collect();
        info!(%peer, ?origin, left_out, "Connection refused: its origin is not in CORS_ORIGIN");
    }
    admin::error(StatusCode::FORBIDDEN, "origin not allowed")
}
