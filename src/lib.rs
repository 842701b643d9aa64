//! Delivers Chat3 updates from RabbitMQ to browsers over Socket.IO.
//!
//! # The path of an update
//!
//! Chat3 publishes an update to a topic exchange. [`broker::rabbitmq`] consumes the
//! update from its user's queue (in development, [`broker::embedded`] takes that
//! place) and hands it over the seam of [`broker`] to the [`sessions`] of that user.
//! They decode as much of it as they must ([`update`]), check that it is this
//! user's, and emit it to each of the user's sockets. Then it is acknowledged.
//!
//! # The path of a socket
//!
//! `socketio::transport` accepts the connection, `socketio::endpoint` verifies its
//! token with [`auth`] and joins it to the sessions, which subscribe the user when
//! this is the first socket and unsubscribe when the last one is gone.
//!
//! # The wings
//!
//! Imports run down this list, never up:
//!
//! - `cli`: the commands; each uses what is below
//! - [`server`]: puts the parts together; probes, metrics and the admin API
//! - `socketio`: connections, tokens and sockets
//! - [`sessions`]: who is online, and what goes to whom
//! - [`broker`]: where updates come from
//! - [`auth`], [`config`], [`update`], [`user`], `tls`, [`observability`]: what all share
//!
//! # Embedding
//!
//! [`Server::bind`] takes a backend's own routes; [`RabbitMqService`] also works alone.
//! `examples/embed.rs` does both.

pub mod broker;
pub mod config;
pub mod user;

mod auth;
#[cfg(feature = "cli")]
mod cli;
mod observability;
mod server;
mod sessions;
mod socketio;
mod tls;
mod update;

pub use auth::KeyError;
pub use broker::rabbitmq::RabbitMqService;
pub use config::Config;
pub use observability::metrics::Metrics;
pub use server::{BindError, Server, ServerBuilder};

/// Open to this package's own command, tests, examples and fuzz targets; no promise to
/// anybody else.
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
    pub mod update {
        pub use crate::update::{Envelope, Update};
    }
    #[cfg(feature = "cli")]
    pub mod cli {
        pub use crate::cli::{
            Cli, Command, check_health, develop, examine, publish, serve, telemetry, token,
        };
    }
}
