//! Puts the parts of a server together, from one [`Config`].
//!
//! Invariant: nothing starts, and no connection to RabbitMQ is opened, before the settings
//! have been checked and the addresses are bound.

use std::{io, net::SocketAddr, sync::Arc};

use axum::Router;
use tokio::net::{TcpListener, ToSocketAddrs};
use tracing::warn;

use super::{AdminListener, Server, admin, orders, origins};
use crate::{
    auth::{KeyError, Verifier},
    broker::{Broker, rabbitmq::RabbitMqService},
    config::Config,
    socketio::{
        Hub,
        endpoint::{self, Endpoint},
        transport::Transports,
    },
};

/// Why a server could not be bound. Messages name settings by their environment variables,
/// since an operator has to correct them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The server cannot listen on an address.
    #[error(
        "cannot listen on {address}: {error}{}",
        advice(error, setting, address)
    )]
    Listen {
        /// The address, with its port.
        address: String,
        /// The setting that holds the port.
        setting: &'static str,
        /// The error of the operating system.
        error: io::Error,
    },
    /// Tokens cannot be verified.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Orders and updates would share one exchange.
    #[error(
        "RABBITMQ_CONTROL_EXCHANGE is RABBITMQ_UPDATES_EXCHANGE: orders need an exchange of their own"
    )]
    ControlExchange,
    /// Presence would share an exchange with updates or orders.
    #[error(
        "PRESENCE_EXCHANGE is that of the updates or of the orders: presence needs an exchange of its own"
    )]
    PresenceExchange,
    /// Orders and updates would share one stream.
    #[error("RABBITMQ_CONTROL_STREAM is RABBITMQ_STREAM: orders need a stream of their own")]
    ControlStream,
    /// A secret can be guessed.
    #[error("RECOVERY_SECRET has a secret of fewer than 16 bytes")]
    RecoverySecret,
}

fn advice(error: &io::Error, setting: &str, address: &str) -> String {
    let port = address.rsplit(':').next().unwrap_or_default();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("; set {setting} to another port than {port}"),
        _ => String::new(),
    }
}

/// Builds a [`Server`].
#[must_use = "nothing is bound before `bind`"]
pub struct ServerBuilder {
    config: Config,
    broker: Option<Arc<dyn Broker>>,
    routes: Router,
}

impl ServerBuilder {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            broker: None,
            routes: Router::new(),
        }
    }

    /// Takes updates from `broker` instead of the RabbitMQ of [`Config::rabbitmq`]. The
    /// server uses the metrics of that broker, if it has any.
    pub fn broker(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Serves your routes on the same port. Neither the gateway's CORS nor its check of
    /// origins applies to them; add your own layers. Your routes must not use
    /// `/socket.io`, `/health`, `/livez`, `/ready`, `/readyz`, `/metrics` or `/api`, and
    /// the gateway answers unknown paths.
    pub fn routes(mut self, routes: Router) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// Binds the configured addresses and starts to connect to RabbitMQ. Must be called
    /// inside a Tokio runtime. Unless [`Self::broker`] was called, the threads of that
    /// runtime need a stack of [`RabbitMqService::THREAD_STACK_BYTES`].
    ///
    /// # Errors
    /// When a setting is wrong, or an address cannot be bound. Nothing has started then.
    pub async fn bind(self) -> Result<Server, BindError> {
        let Config {
            mut rabbitmq,
            host,
            mut http,
            jwt,
        } = self.config;
        if http.recovery.secrets.are_weak() {
            return Err(BindError::RecoverySecret);
        }
        if http.recovery.secrets.0.is_empty() {
            let derived = jwt.jwt_secret.iter().filter(|it| it.expose().is_some());
            http.recovery.secrets.0 = derived.cloned().collect();
        }
        let (metrics, needs_tenant) = match &self.broker {
            Some(broker) => (broker.metrics(), broker.needs_tenant()),
            None if rabbitmq.control_exchange == rabbitmq.exchange => {
                return Err(BindError::ControlExchange);
            }
            None if rabbitmq.tells_presence()
                && [&rabbitmq.exchange, &rabbitmq.control_exchange]
                    .contains(&&rabbitmq.presence_exchange) =>
            {
                return Err(BindError::PresenceExchange);
            }
            None if rabbitmq.shares_a_stream() => return Err(BindError::ControlStream),
            None => (None, rabbitmq.binding_keys.need_tenant()),
        };
        let window = http.recovery.window;
        rabbitmq.keep_stream_for(window);
        if rabbitmq.keeps_too_little_for(window) {
            warn!(
                max_age = ?rabbitmq.stream_max_age(), recovery_window = ?window,
                "RABBITMQ_STREAM_MAX_AGE is less than twice RECOVERY_WINDOW: the stream may no longer have what clients missed"
            );
        }
        let metrics = metrics.unwrap_or_default();
        let verifier = Verifier::new(&jwt, needs_tenant, &metrics)?;
        let address = format!("{host}:{}", http.port);
        let (listener, local_addr) = listen((&*host, http.port), address, "PORT").await?;
        let admin = match http.admin_addr {
            Some(address) => Some(listen(address, address.to_string(), "ADMIN_ADDR").await?),
            None => None,
        };
        let broker = self
            .broker
            .unwrap_or_else(|| Arc::new(RabbitMqService::connect(rabbitmq, metrics.clone())));
        let (engine, service, io) = endpoint::socket_io();
        let transports = Transports::new(&http, metrics.clone(), engine);
        let hub = Hub::new(broker.clone(), &http, metrics.clone());
        let endpoint = Endpoint::new(
            verifier,
            hub.clone(),
            transports.clone(),
            io.clone(),
            metrics.clone(),
            http.clone(),
        );
        let socket_io = endpoint.clone().serve(service);
        orders::carry_out(&endpoint, &*broker);
        let socket_io = origins::limit(socket_io, &http.cors_origin, metrics.clone());
        let (probes, operators) = admin::routers(
            endpoint,
            hub.clone(),
            transports.clone(),
            metrics.clone(),
            &http,
        );
        let router = probes.clone().merge(socket_io).merge(self.routes);
        let (router, admin) = match admin {
            Some((listener, local_addr)) => {
                let admin = AdminListener {
                    listener,
                    local_addr,
                    router: probes.merge(operators).fallback(admin::not_found),
                };
                (router, Some(admin))
            }
            None => (router.merge(operators), None),
        };
        Ok(Server {
            listener,
            local_addr,
            router: router.fallback(admin::not_found),
            admin,
            io,
            broker,
            metrics,
            hub,
            transports,
            shutdown_delay: http.shutdown_delay,
            shutdown_spread: http.shutdown_spread,
            shutdown_timeout: http.shutdown_timeout,
        })
    }
}

/// Binds a listener; returns it with its bound address. `address` and `setting` are for the
/// error.
async fn listen(
    to: impl ToSocketAddrs,
    address: String,
    setting: &'static str,
) -> Result<(TcpListener, SocketAddr), BindError> {
    let listener = match TcpListener::bind(to).await {
        Ok(listener) => listener
            .local_addr()
            .map(|local_addr| (listener, local_addr)),
        Err(error) => Err(error),
    };
    listener.map_err(|error| BindError::Listen {
        address,
        setting,
        error,
    })
}
