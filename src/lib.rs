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
//! [`transport`] accepts its connection, [`gateway`] verifies its token with
//! [`auth`] and joins it to the hub, which subscribes the user when this is the
//! first socket and unsubscribes when the last one is gone.
//!
//! [`server`] puts the parts together and knows them all; imports point away from it.

pub mod auth;
pub mod broker;
pub mod config;
pub mod dev;
pub mod doctor;
pub mod embedded;
pub mod gateway;
pub mod http;
pub mod hub;
pub mod leases;
pub mod limits;
pub mod metrics;
pub mod publisher;
pub mod rabbitmq;
pub mod revocation;
pub mod server;
pub mod telemetry;
pub mod tls;
pub mod transport;
pub mod update;
pub mod user;

pub use rabbitmq::RabbitMqService;
