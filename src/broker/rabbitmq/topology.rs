//! What users have at the broker: the seam between the reconciliation and the
//! topologies, of which `RABBITMQ_TOPOLOGY` chooses one.
//!
//! Either each user has a queue of their own ([`own_queues`]), or users share
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

use std::sync::Arc;

use amqprs::channel::QueueBindArguments;
use async_trait::async_trait;
use tokio::time::Instant;

use self::{common_queues::CommonQueues, own_queues::OwnQueues};
use super::{
    Shared, Wish,
    channels::Channels,
    connection::{LinkError, ServerClose},
};
use crate::{
    config::{RabbitMqConfig, Topology as Choice},
    user::User,
};

/// Users whose subscription was refused, together, and what the broker said.
pub(super) type Refused = (Vec<(User, Wish)>, ServerClose);

#[async_trait]
pub(super) trait Topology: Send {
    /// Makes what users need in common, if it is not there.
    async fn prepare(&mut self, channels: &mut Channels) -> Result<(), LinkError>;

    /// Subscribes users who are not, and activates their wishes; returns those whom
    /// the broker refused, in groups that were tried as one.
    async fn subscribe(
        &mut self,
        channels: &mut Channels,
        wishes: Vec<(User, Wish)>,
    ) -> Result<Vec<Refused>, LinkError>;

    /// Ends subscriptions: of each user who has one.
    async fn unsubscribe(
        &mut self,
        channels: &mut Channels,
        users: Vec<User>,
    ) -> Result<(), LinkError>;

    /// Removes some of what is of no use any more.
    async fn tidy(&mut self, channels: &mut Channels) -> Result<(), LinkError>;

    /// When there is something to [`tidy`](Self::tidy).
    fn tidy_at(&self) -> Option<Instant>;

    /// The queue with this name was deleted by somebody else: who has lost their
    /// subscription with it.
    fn forget(&mut self, queue: &str) -> Vec<User>;

    /// The serial of `user`'s wish that is fulfilled.
    fn serial(&self, user: &User) -> Option<u64>;

    /// How many users are subscribed.
    fn users_count(&self) -> usize;

    /// A single user was refused that: whether it was one of several binding keys, and
    /// the user can be subscribed without it.
    fn do_without(&mut self, user: &User, refused: &ServerClose) -> bool;

    /// One of the bindings that exist.
    fn a_binding(&self) -> Option<QueueBindArguments>;

    /// How many users to subscribe in one round.
    fn round(&self) -> usize;
}

/// How many channels of consumers a topology uses.
pub(super) fn consumer_channels(config: &RabbitMqConfig) -> usize {
    match config.topology {
        Choice::PerUser | Choice::Firehose => 1,
        // RabbitMQ works for each channel in a process of its own.
        Choice::Shared => config.shared_queues.into(),
    }
}

pub(super) fn new(shared: &Arc<Shared>, epoch: u64) -> Box<dyn Topology> {
    let shared = shared.clone();
    match shared.config.topology {
        Choice::PerUser => Box::new(OwnQueues::new(shared, epoch)),
        Choice::Shared => Box::new(CommonQueues::shared(shared, epoch)),
        Choice::Firehose => Box::new(CommonQueues::firehose(shared, epoch)),
    }
}
