//! The RabbitMQ side: users' subscriptions to Chat3's updates, kept alive over every loss
//! of the broker.
//!
//! - `service`: [`RabbitMqService`], what callers see; it only records the desired state
//! - `desired`: which users should be subscribed
//! - `supervisor`: one connection after the other; `backoff` says when
//! - `link`: one connection, from its opening to its loss
//! - `reconciler`: brings the broker's actual state in line with the desired one, and
//!   handles the broker's refusals; `refused` says when a refused user is tried again
//! - `control`: the orders from other instances, on a connection of their own
//! - `presence`: who is online in the fleet, on a connection of its own
//! - `topology`: the actual state, in queues and bindings
//! - `place`: where a reader stands in a stream
//! - `exchange_probe`, `silence`: the checks of the exchange, and the search for the cause when
//!   no updates arrive
//! - `orders`, `outbox`: what is published
//! - `channels`, `connection`, `confirms`, `consumer`, `acks`, `unreadable`, `link_error`: AMQP
//! - `side_connection`: connections of others than the link
//!
//! Imports run down this list. Nothing here ever sees a socket.

mod acks;
mod arguments;
mod backoff;
mod channels;
mod confirms;
mod connection;
mod consumer;
pub(crate) mod control;
mod desired;
mod exchange_probe;
mod instance;
mod link;
mod link_error;
mod orders;
mod outbox;
mod place;
pub(crate) mod presence;
mod reconciler;
mod refused;
mod service;
mod shared;
mod side_connection;
mod silence;
mod supervisor;
mod topology;
mod unreadable;

#[cfg(feature = "cli")]
pub(crate) use self::{
    connection::{open_channel, open_connection},
    instance::instance_id,
    link_error::{ACCESS_REFUSED, LinkError, NOT_FOUND, ServerClose},
    side_connection::{Heard, Listening, Scope, SideConnection},
    topology::stream,
    unreadable::is_of_amqprs,
};
pub use self::{service::RabbitMqService, unreadable::Unreadable};
