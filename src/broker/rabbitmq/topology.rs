//! The actual state: what users have at the broker on one connection. The seam between the
//! reconciler and the topologies, of which `RABBITMQ_TOPOLOGY` chooses one.
//!
//! Either users need nothing at the broker ([`stream`]), or each user has a separate queue
//! ([`own_queues`]), or users share
//! queues ([`common_queues`]): one or a few that are bound for them, or one that is bound
//! for everybody.
//!
//! A topology lives as long as its link, and only the link's task calls it: no two
//! operations overlap.

mod common_queues;
mod members;
mod own_queues;
mod permitted;
mod routes;
pub(crate) mod stream;

use std::sync::Arc;

use amqprs::channel::QueueBindArguments;
use async_trait::async_trait;
use tokio::time::Instant;

pub(super) use self::stream::Reader;
use self::{common_queues::CommonQueues, own_queues::OwnQueues, stream::Stream};
use super::{
    channels::Channels,
    desired::Subscription,
    link_error::{LinkError, ServerClose},
    shared::Shared,
};
use crate::{config, user::User};

/// Users who were tried and refused together, and what the broker said.
pub(super) struct Refusal {
    pub(super) users: Vec<(User, Subscription)>,
    pub(super) close: ServerClose,
}

/// The subscriptions that exist, and how they are made, over `C`: the channels to a broker,
/// or nothing in tests of the reconciler.
#[async_trait]
pub(super) trait Topology<C = Channels>: Send {
    /// Makes what users share, if it does not exist.
    async fn prepare(&mut self, channels: &C) -> Result<(), LinkError>;

    /// Subscribes users who are not subscribed, and activates their subscriptions; returns
    /// the users whom the broker refused, in the groups in which they were tried.
    async fn subscribe(
        &mut self,
        channels: &C,
        users: Vec<(User, Subscription)>,
    ) -> Result<Vec<Refusal>, LinkError>;

    /// Ends the subscriptions of `users`, all of whom have one.
    async fn unsubscribe(&mut self, channels: &C, users: Vec<User>) -> Result<(), LinkError>;

    /// Removes some queues or bindings that are no longer needed.
    async fn tidy(&mut self, channels: &C) -> Result<(), LinkError>;

    /// When to [`tidy`](Self::tidy), if there is anything to remove.
    fn tidy_at(&self) -> Option<Instant>;

    /// The queue with this name was deleted by somebody else: returns the users who
    /// have lost their subscription with it.
    fn forget(&mut self, queue: &str) -> Vec<User>;

    /// The serial of `user`'s subscription, if the user is subscribed.
    fn serial(&self, user: &User) -> Option<u64>;

    /// How many users are subscribed.
    fn count(&self) -> usize;

    /// Whether `refused`, which a single user got, concerns one of several binding keys, so
    /// that the user can be subscribed without it.
    fn do_without(&mut self, user: &User, refused: &ServerClose) -> bool;

    /// A binding that exists.
    fn a_binding(&self) -> Option<QueueBindArguments>;

    /// How many users to subscribe in one round.
    fn round(&self) -> usize;
}

/// What outlives the links, in the topology that has such a thing.
pub(super) fn reader(shared: &Shared) -> Option<Arc<Reader>> {
    let is_stream = shared.config.topology == config::Topology::Stream;
    is_stream.then(|| Arc::new(Reader::new(shared)))
}

pub(super) fn new(
    shared: &Arc<Shared>,
    epoch: u64,
    reader: Option<&Arc<Reader>>,
) -> Box<dyn Topology> {
    let shared = shared.clone();
    if let Some(reader) = reader {
        return Box::new(Stream::new(shared, epoch, reader.clone()));
    }
    match shared.config.topology {
        config::Topology::PerUser => Box::new(OwnQueues::new(shared, epoch)),
        config::Topology::Shared => Box::new(CommonQueues::shared(shared, epoch)),
        config::Topology::Firehose | config::Topology::Stream => {
            Box::new(CommonQueues::firehose(shared, epoch))
        }
    }
}
