//! Delivers Chat3 updates from RabbitMQ to browsers over Socket.IO.
//!
//! # The path of an update
//!
//! Chat3 publishes an update to a topic exchange. The [`rabbitmq`] module consumes
//! it from its user's queue (in development, [`embedded`] takes that place) and
//! hands it over the seam of [`broker`] to the [`hub`], which decodes as much as
//! it must ([`update`]), checks that it is this user's, and emits it to each of
//! the user's sockets. Then it is acknowledged.
//!
//! # The path of a socket
//!
//! `transport` accepts its connection, `gateway` verifies its token with
//! [`auth`] and joins it to the hub, which subscribes the user when this is the
//! first socket and unsubscribes when the last one is gone.
//!
//! # Embedding
//!
//! [`Server::bind`] takes a backend's own routes; [`RabbitMqService`] also works alone.
//! `examples/embed.rs` does both.
//!
//! [`server`] puts the parts together and knows them all; imports point away from it.

pub mod auth;
pub mod broker;
pub mod config;
pub mod embedded;
pub mod metrics;
pub mod rabbitmq;
pub mod server;
pub mod user;

// Open to this package's own command, tests and fuzz targets; no promise to others.
#[doc(hidden)]
pub mod dev;
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod health;
#[doc(hidden)]
pub mod hub;
#[doc(hidden)]
pub mod publisher;
#[doc(hidden)]
pub mod revocation;
#[doc(hidden)]
pub mod telemetry;
#[doc(hidden)]
pub mod update;

mod gateway;
mod http;
mod leases;
mod limits;
mod refused_tokens;
mod sampled;
mod survey;
mod tls;
mod transport;

pub use rabbitmq::RabbitMqService;
pub use server::Server;
