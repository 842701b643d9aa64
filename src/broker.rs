//! The seam between the hub and whatever updates come from.
//!
//! Two implementations exist: RabbitMQ ([`crate::broker::rabbitmq`]) and the in-process
//! exchange of the development mode ([`crate::broker::embedded`]). Neither ever sees a
//! socket; the hub sees neither's queues.

pub mod embedded;
pub mod rabbitmq;
pub(crate) mod survey;

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{observability::metrics::Metrics, user::User};

/// One update as it came from the exchange.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// As published.
    pub body: Bytes,
    /// As published.
    pub routing_key: String,
    /// The publisher's AMQP timestamp, where there is one in milliseconds.
    pub published_at: Option<SystemTime>,
}

/// Receives a user's updates, one at a time and in queue order. The update is
/// acknowledged when the handler returns, so it must not block: it hands off.
pub type Handler = Arc<dyn Fn(&Delivery) + Send + Sync>;

/// Receives what another instance broadcast.
pub type BroadcastHandler = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// Tells when a subscription receives updates.
#[derive(Debug, Clone)]
pub struct Subscribed(watch::Receiver<Activity>);

/// The subscription's own end of [`Subscribed`].
#[derive(Debug, Clone)]
pub struct Activation(watch::Sender<Activity>);

#[derive(Debug, Clone, Copy, Default)]
struct Activity {
    active: bool,
    /// How often it became active.
    times: u64,
}

impl Subscribed {
    /// A subscription that starts inactive, and the switch that reports on it.
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

    /// Identifies the unbroken run of updates that is being received: between two
    /// different ones, updates may have been missed. `None` while there is none.
    pub fn stretch(&self) -> Option<u64> {
        let activity = *self.0.borrow();
        activity.active.then_some(activity.times)
    }
}

impl Activation {
    /// Every update from now on reaches the handler.
    pub fn activate(&self) {
        self.0.send_if_modified(|activity| {
            let modified = !activity.active;
            activity.active = true;
            activity.times += u64::from(modified);
            modified
        });
    }

    /// Updates are no longer received: those published from now on are missed.
    pub fn deactivate(&self) {
        self.0
            .send_if_modified(|activity| std::mem::replace(&mut activity.active, false));
    }

    /// Whether updates are received.
    pub fn is_active(&self) -> bool {
        self.0.borrow().active
    }
}

/// A source of updates.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Whether binding keys need a tenant, so that tokens without one are refused.
    fn needs_tenant(&self) -> bool;

    /// What the broker counts into, if it counts at all.
    fn metrics(&self) -> Option<Metrics> {
        None
    }

    /// Whether `user` can be subscribed at all: the ids fit into binding keys.
    fn has_room_for(&self, user: &User) -> bool;

    /// Sends `user`'s updates to `handler` until [`Broker::unsubscribe_user`],
    /// over reconnects; replaces an earlier handler of the same user. Returns at
    /// once: what is recorded here is the wish, carried out when the broker is there.
    fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed;

    /// Ends `user`'s subscription; its queue goes.
    fn unsubscribe_user(&self, user: &User);

    /// How many users are subscribed.
    fn subscribers_count(&self) -> usize;

    /// Whether `user` is subscribed.
    fn is_user_subscribed(&self, user: &User) -> bool;

    /// Whether updates can flow.
    fn is_connected(&self) -> bool;

    /// Whether it is part of this process: then there is no RabbitMQ.
    fn is_embedded(&self) -> bool {
        false
    }

    /// Hands `message` to the other instances, if there is a way to them: whether
    /// it was sent, within seconds. Not kept for those that are not there.
    async fn broadcast(&self, message: Bytes) -> bool;

    /// Has what other instances broadcast handed to `handler`.
    fn on_broadcast(&self, handler: BroadcastHandler);

    /// Stops consuming: returns when everything consumed so far has been handed
    /// to its handler and acknowledged, and nothing more will come.
    async fn stop_consuming(&self);

    /// Closes the connection to the broker.
    async fn close(&self);
}
