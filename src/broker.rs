//! The seam between the sessions and the source of updates.
//!
//! Two implementations exist: RabbitMQ ([`crate::broker::rabbitmq`]) and the in-process
//! exchange of the development mode ([`crate::broker::embedded`]). Neither ever sees a
//! socket, and the sessions never see a queue.

pub mod embedded;
pub mod history;
pub mod presence;
pub mod rabbitmq;
pub(crate) mod survey;

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use self::{
    history::History,
    presence::{Asked, Attendance, State},
};
use crate::{observability::metrics::Metrics, user::User};

/// One update, as the exchange delivered it. Who keeps it makes a copy: what it borrows from
/// is gone as soon as it was handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// As published.
    pub body: &'a [u8],
    /// As published.
    pub routing_key: &'a str,
    /// The publisher's AMQP timestamp, if there is one in milliseconds.
    pub published_at: Option<SystemTime>,
    /// Where the update stands in the broker's log, if the broker has one for all users.
    pub position: Option<LogPosition>,
}

/// An update's place in a log that the broker keeps for all instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// The broker's offset, the same for every instance.
    pub offset: u64,
    /// Grows from each update to the next, in this process alone.
    pub number: u64,
}

/// Receives a user's updates, one at a time and in queue order. A closure is one that has
/// nothing to flush.
pub trait UpdateHandler: Send + Sync {
    /// Takes an update, which is acknowledged when this returns. Must not block: it hands off.
    /// Returns how many sockets have it to send at [`Self::flush`], which is called if there are
    /// any.
    fn handle(&self, delivery: &Delivery<'_>) -> usize;

    /// The end of a turn: no other update is there now, or others get a turn. Called without
    /// any wait after [`Self::handle`], and maybe more often. Must not block.
    fn flush(&self) {}
}

impl<F: Fn(&Delivery<'_>) + Send + Sync> UpdateHandler for F {
    fn handle(&self, delivery: &Delivery<'_>) -> usize {
        self(delivery);
        0
    }
}

/// The handler of one subscription.
pub type Handler = Arc<dyn UpdateHandler>;

/// A message that another instance broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broadcast<'m> {
    /// As published.
    pub body: &'m [u8],
    /// The publisher's AMQP timestamp, in milliseconds or seconds, if there is one.
    pub published_at: Option<SystemTime>,
    /// For a message that the broker had kept and that this instance reads only now: the
    /// moment since when messages are news to it. What was published before either was heard
    /// then, or is from before this process.
    pub kept_since: Option<SystemTime>,
}

/// Receives the messages that other instances broadcast. Must not block.
pub type BroadcastHandler = Arc<dyn Fn(&Broadcast<'_>) + Send + Sync>;

/// Tells whether a subscription receives updates, and waits until it does.
#[derive(Debug, Clone)]
pub struct Subscribed(watch::Receiver<Activity>);

/// The broker's end of a [`Subscribed`].
#[derive(Debug, Clone)]
pub struct Activation(watch::Sender<Activity>);

#[derive(Debug, Clone, Copy, Default)]
struct Activity {
    active: bool,
    /// How many times the subscription became active.
    times: u64,
}

impl Subscribed {
    /// Creates a subscription that is inactive, and the switch that activates it.
    pub fn new() -> (Activation, Self) {
        let (sender, receiver) = watch::channel(Activity::default());
        (Activation(sender), Self(receiver))
    }

    /// Returns once every update published from now on will reach the handler,
    /// or once the subscription has been given up.
    pub async fn ready(&mut self) {
        // An error means that the other side, and so the subscription, is gone.
        let _ = self.0.wait_for(|activity| activity.active).await;
    }

    /// Identifies the current unbroken run of updates: between two runs, updates may have
    /// been missed. `None` while the subscription is inactive.
    pub fn stretch(&self) -> Option<u64> {
        let activity = *self.0.borrow();
        activity.active.then_some(activity.times)
    }
}

impl Activation {
    /// Reports that every update from now on reaches the handler.
    pub fn activate(&self) {
        self.0.send_if_modified(|activity| {
            let modified = !activity.active;
            activity.active = true;
            activity.times += u64::from(modified);
            modified
        });
    }

    /// Reports that updates are no longer received: those published from now on are missed.
    pub fn deactivate(&self) {
        self.0
            .send_if_modified(|activity| std::mem::replace(&mut activity.active, false));
    }

    /// The subscription receives updates, but may have missed some before.
    pub fn renew(&self) {
        self.0.send_if_modified(|activity| {
            activity.times += u64::from(activity.active);
            activity.active
        });
    }

    /// Whether the subscription receives updates.
    pub fn is_active(&self) -> bool {
        self.0.borrow().active
    }
}

/// A source of updates.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Whether binding keys need a tenant, so that tokens without one are refused.
    fn needs_tenant(&self) -> bool;

    /// The latest updates of everybody, if the broker has a log of them.
    fn history(&self) -> Option<Arc<History>> {
        None
    }

    /// Where to note who has sockets at this instance, if the broker tells others who is online.
    fn attendance(&self) -> Option<Arc<Attendance>> {
        None
    }

    /// Whether these users are online in the whole fleet, in their order; `None` if that is not
    /// known, or not within seconds.
    async fn presence(&self, _: &[Asked]) -> Option<Vec<State>> {
        None
    }

    /// What the broker counts into, if it counts at all.
    fn metrics(&self) -> Option<Metrics> {
        None
    }

    /// Whether `user` can be subscribed at all: whether the ids fit into binding keys.
    fn has_room_for(&self, user: &User) -> bool;

    /// Sends `user`'s updates to `handler` until [`Broker::unsubscribe_user`],
    /// across reconnects; replaces an earlier handler of the same user. Returns at
    /// once: it records the desired state, which is applied when the broker is reachable.
    fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed;

    /// Ends `user`'s subscription and removes its queue.
    fn unsubscribe_user(&self, user: &User);

    /// How many users are subscribed.
    fn subscribers_count(&self) -> usize;

    /// Whether `user` is subscribed.
    fn is_user_subscribed(&self, user: &User) -> bool;

    /// Whether updates can flow.
    fn is_connected(&self) -> bool;

    /// Whether the broker is part of this process, so that there is no RabbitMQ.
    fn is_embedded(&self) -> bool {
        false
    }

    /// Sends `message` to the other instances, if they can be reached; returns within
    /// seconds whether it was sent. An instance that is offline gets it later, if the broker
    /// keeps messages.
    async fn broadcast(&self, message: Bytes) -> bool;

    /// Calls `handler` with every message that another instance broadcasts from now on, and
    /// before that with those that the broker has kept, if it keeps them. Reading these
    /// begins with the first handler; one that is added later may miss them. The same message
    /// may come twice.
    fn on_broadcast(&self, handler: BroadcastHandler);

    /// Returns once the handlers of [`Broker::on_broadcast`] were called with the messages
    /// that the broker has kept; at once if it keeps none or cannot be reached. May take
    /// long: callers limit it.
    async fn broadcasts_read(&self) {}

    /// Stops consuming. Returns when everything consumed so far has been handed to its
    /// handler and acknowledged; no handler is called after that.
    async fn stop_consuming(&self);

    /// Closes the connection to the broker.
    async fn close(&self);
}
