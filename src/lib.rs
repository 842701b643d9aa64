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

pub mod auth;
pub mod broker;
pub mod config;
pub mod observability;
pub mod server;
pub mod user;

// Open to this package's own command, tests and fuzz targets; no promise to others.
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod sessions;
#[doc(hidden)]
pub mod socketio;
#[doc(hidden)]
pub mod update;

mod tls;

pub use broker::rabbitmq::RabbitMqService;
pub use server::Server;
