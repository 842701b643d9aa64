//! The seam between the hub and whatever updates come from.
//!
//! Two implementations exist: RabbitMQ ([`crate::rabbitmq`]) and the in-process
//! exchange of the development mode ([`crate::embedded`]). Neither ever sees a
//! socket; the hub sees neither's queues.

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::user::User;

/// One update as it came from the exchange.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub body: Bytes,
    pub routing_key: String,
    /// The publisher's AMQP timestamp, where there is one in milliseconds.
    pub published_at: Option<SystemTime>,
}

/// Receives a user's updates, one at a time and in queue order. The update is
/// acknowledged when the handler returns, so it must not block: it hands off.
pub type Handler = Arc<dyn Fn(&Delivery) + Send + Sync>;

/// Tells when a subscription receives updates.
#[derive(Debug, Clone)]
pub struct Subscribed(watch::Receiver<bool>);

impl Subscribed {
    /// A subscription that starts inactive, and the switch that reports on it.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns once every update published from now on will reach the handler,
    /// or once the subscription has been given up.
    pub async fn ready(&mut self) {
        // An error means that the other side, and so the subscription, is gone.
        let _ = self.0.wait_for(|active| *active).await;
    }
}

/// A source of updates.
#[async_trait]
pub trait Broker: Send + Sync {
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

    /// Stops consuming: returns when everything consumed so far has been handed
    /// to its handler and acknowledged, and nothing more will come.
    async fn stop_consuming(&self);

    /// Closes the connection to the broker.
    async fn close(&self);
}
