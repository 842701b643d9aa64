//! Delivers Chat3 updates from RabbitMQ to browsers over Socket.IO.
//!
//! Chat3 publishes each update to a topic exchange, with the recipient in the routing
//! key. This crate verifies a browser's token, subscribes its user, and emits every
//! update of that user to all of the user's sockets, in order. A client that lost its
//! connection recovers it together with the updates it missed. The command
//! `chat3-gateway` runs the service as a separate process; this library embeds it in a
//! backend.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use chat3_gateway::{Config, Server};
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::default();
//! config.rabbitmq.url = "amqp://gateway:secret@rabbitmq/".parse()?;
//! config.jwt.jwt_secret = Some("the secret that tokens are signed with".into());
//! let server = Server::builder(config)
//!     .routes(Router::new().route("/hello", get(|| async { "hello" })))
//!     .bind()
//!     .await?;
//! server.run(async { /* completes when the backend stops */ }).await;
//! # Ok(()) }
//! ```
//!
//! `examples/embed.rs` is a whole backend, which also subscribes a user without a browser.
//! [`RabbitMqService`] works without a server, too.
//!
//! # Features
//!
//! - `cli` (default): the command and what only the command needs: command line, logs,
//!   `doctor`, `publish`, `dev` with its page. Embed with `default-features = false`.
//! - `jemalloc` (default): the allocator of the command.
//! - `otlp`: the command exports spans over OTLP/HTTP.
//!
//! # What an embedder brings
//!
//! - A Tokio runtime whose threads have a stack of [`RabbitMqService::THREAD_STACK_BYTES`].
//! - A `tracing` subscriber, if log lines are wanted, with the layer of [`Unreadable`].
//! - Signals: [`Server::run`] takes a future that says when to stop.
//!
//! # The path of an update
//!
//! `broker::rabbitmq` consumes an update from a queue of its user; in development,
//! [`broker::embedded`] takes its place. The update crosses the seam of [`broker`] to the
//! `sessions` of that user. They decode the update with `update`, check that the user is
//! its recipient, and emit it to each of the user's sockets. Then RabbitMQ receives the
//! acknowledgement.
//!
//! # The path of a socket
//!
//! `socketio::transport` accepts the connection. `socketio::endpoint` verifies the token
//! with `auth` and joins the socket to the sessions. The sessions subscribe the user with
//! the first socket and unsubscribe the user when the last session has ended.
//!
//! # The wings
//!
//! Imports run down this list, never up:
//!
//! - `cli`: the commands
//! - `server`: puts the parts together; probes, metrics and the admin API
//! - `socketio`: connections, tokens and sockets
//! - `sessions`: who is online, and which socket gets which update
//! - `broker`: where updates come from
//! - `auth`, `config`, `update`, `user`, `tls`, `observability`, `compact`: what all share

pub mod broker;
pub mod config;
pub mod user;

mod auth;
#[cfg(feature = "cli")]
mod cli;
mod compact;
mod observability;
mod server;
mod sessions;
mod socketio;
mod tls;
mod update;

// The command's, so that tests measure what it takes.
#[cfg(all(test, feature = "jemalloc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub use auth::KeyError;
pub use broker::rabbitmq::{RabbitMqService, Unreadable};
pub use config::Config;
pub use observability::metrics::Metrics;
pub use server::{BindError, Server, ServerBuilder};

/// Open to this package's own command, tests, examples and fuzz targets. No semantic
/// versioning applies to it.
#[doc(hidden)]
pub mod internal {
    pub mod auth {
        pub use crate::auth::{
            Verifier,
            keys::{Key, KeySet},
        };
    }
    pub mod sessions {
        pub use crate::sessions::{Offset, ResumeRequest};
    }
    pub mod revocation {
        pub use crate::socketio::revocation::{Order, OrderText};
    }
    pub mod transport {
        pub use crate::socketio::transport::Frames;
    }
    pub mod update {
        pub use crate::update::{Envelope, Update};
    }
    #[cfg(feature = "cli")]
    pub mod cli {
        pub use crate::cli::{
            Cli, Command, Development, check_health, examine, publish, serve, telemetry, token,
        };
    }
}
