//! [`RabbitMqService`]: what callers see. It records the desired state and returns at
//! once; a supervisor task applies it whenever the broker is reachable.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tracing::warn;

use super::{
    orders::Orders,
    presence::Presence,
    shared::Shared,
    supervisor::supervise,
    topology::{self, Reader},
};
use crate::{
    broker::{
        BroadcastHandler, Broker, Handler, Subscribed,
        history::History,
        presence::{Asked, Attendance, State},
    },
    config::RabbitMqConfig,
    observability::metrics::Metrics,
    user::User,
};

/// Subscribes users to their updates, reconnecting as needed. Cheap to share by `Arc`.
pub struct RabbitMqService {
    shared: Arc<Shared>,
    orders: Orders,
    /// What all users share, in the topology that has such a thing.
    reader: Option<Arc<Reader>>,
    /// `None`: nobody is told who is online.
    presence: Option<Arc<Presence>>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl RabbitMqService {
    /// The stack that the Tokio runtime's threads need.
    ///
    /// amqprs reads headers that are nested by recursion, and a message's headers are as
    /// deep as its publisher likes: 26,000 levels fit into a frame of RabbitMQ's default size.
    /// They take 16 MB in a release build and 96 MB in a debug one; a thread with less
    /// overflows, and the process aborts. Memory is used only as it is needed.
    ///
    /// ```
    /// # use chat3_gateway::RabbitMqService;
    /// let runtime = tokio::runtime::Builder::new_multi_thread()
    ///     .thread_stack_size(RabbitMqService::THREAD_STACK_BYTES)
    ///     .enable_all()
    ///     .build();
    /// # runtime.unwrap();
    /// ```
    pub const THREAD_STACK_BYTES: usize = match cfg!(debug_assertions) {
        true => 256 << 20,
        false => 64 << 20,
    };

    /// Starts connecting in the background and keeps at it. The broker may be
    /// absent; [`RabbitMqService::is_connected`] tells. Must be called inside a
    /// Tokio runtime, whose threads have a stack of [`Self::THREAD_STACK_BYTES`].
    pub fn connect(config: RabbitMqConfig, metrics: Metrics) -> Self {
        let shared = Arc::new(Shared::new(config, metrics));
        let reader = topology::reader(&shared);
        let presence = shared
            .config
            .tells_presence()
            .then(Arc::<Presence>::default);
        let supervising = supervise(shared.clone(), reader.clone(), presence.clone());
        let supervisor = tokio::spawn(supervising);
        Self {
            orders: Orders::new(shared.clone()),
            shared,
            reader,
            presence,
            supervisor: Mutex::new(Some(supervisor)),
        }
    }

    /// Sends `user`'s updates to `handler` until [`Self::unsubscribe_user`]. After
    /// a loss of the broker the subscription is restored automatically; updates
    /// published meanwhile are not seen. A second call replaces the handler.
    ///
    /// A user whose binding keys are too long for AMQP gets no updates.
    pub fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed {
        if !self.has_room_for(user) {
            self.shared.metrics.subscriptions_refused.inc();
            warn!(user_id = %user.id, "RabbitMQ binding keys too long for a subscription");
            let (_, never) = Subscribed::new();
            return never;
        }
        let reader = self.reader.as_ref();
        let is_subscribed = reader.is_some_and(|reader| reader.subscribe(user, handler.clone()));
        let subscribed = self.shared.desired.subscribe(user, handler);
        if is_subscribed {
            self.shared.desired.activate(user);
        }
        subscribed
    }

    /// Ends `user`'s subscription and removes its queue.
    pub fn unsubscribe_user(&self, user: &User) {
        if let Some(reader) = &self.reader {
            reader.unsubscribe(user);
        }
        self.shared.desired.unsubscribe(user);
    }

    /// Cancels all consumers, waits until what they had received is handed off and
    /// acknowledged, and closes the connection.
    pub async fn close(&self) {
        self.stop_consuming().await;
        self.shared.close.cancel();
        self.orders.close().await;
        if let Some(reader) = &self.reader {
            reader.close().await;
        }
        let supervisor = {
            let mut supervisor = self
                .supervisor
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            supervisor.take()
        };
        if let Some(supervisor) = supervisor
            && supervisor.await.is_err()
        {
            warn!("RabbitMQ supervisor ended by a panic");
        }
    }

    /// How many users are subscribed at the broker right now.
    pub fn subscribers_count(&self) -> usize {
        self.shared.desired.active_count()
    }

    /// Whether `user` is subscribed at the broker right now.
    pub fn is_user_subscribed(&self, user: &User) -> bool {
        self.shared.desired.is_active(user)
    }

    /// Whether the connection to the broker is up.
    pub fn is_connected(&self) -> bool {
        *self.shared.connected.borrow()
    }

    async fn stop_consuming(&self) {
        self.shared.stop_consuming.cancel();
        let mut consuming = self.shared.consuming.subscribe();
        // An error cannot happen: `shared` holds the sender.
        let _ = consuming.wait_for(|consuming| !consuming).await;
    }
}

impl Drop for RabbitMqService {
    fn drop(&mut self) {
        self.shared.stop_consuming.cancel();
        self.shared.close.cancel();
    }
}

#[async_trait]
impl Broker for RabbitMqService {
    fn needs_tenant(&self) -> bool {
        self.shared.config.binding_keys.need_tenant()
    }

    fn history(&self) -> Option<Arc<History>> {
        self.reader.as_ref().map(|reader| reader.history().clone())
    }

    fn attendance(&self) -> Option<Arc<Attendance>> {
        let presence = self.presence.as_ref();
        presence.map(|presence| presence.attendance.clone())
    }

    async fn presence(&self, users: &[Asked]) -> Option<Vec<State>> {
        self.presence.as_ref()?.states(users).await
    }

    fn metrics(&self) -> Option<Metrics> {
        Some(self.shared.metrics.clone())
    }

    fn has_room_for(&self, user: &User) -> bool {
        self.shared.config.binding_keys.fit(user)
    }

    fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed {
        self.subscribe_user(user, handler)
    }

    fn unsubscribe_user(&self, user: &User) {
        self.unsubscribe_user(user);
    }

    fn subscribers_count(&self) -> usize {
        self.subscribers_count()
    }

    fn is_user_subscribed(&self, user: &User) -> bool {
        self.is_user_subscribed(user)
    }

    fn is_connected(&self) -> bool {
        self.is_connected()
    }

    async fn broadcast(&self, message: Bytes) -> bool {
        self.shared.is_control_connected() && self.orders.publish(message).await
    }

    fn on_broadcast(&self, handler: BroadcastHandler) {
        self.shared.on_broadcast(handler);
    }

    async fn broadcasts_read(&self) {
        let mut reading = self.shared.reading_orders.subscribe();
        // An error cannot happen: `shared` holds the sender.
        let _ = reading.wait_for(|reading| !reading).await;
    }

    async fn stop_consuming(&self) {
        self.stop_consuming().await;
    }

    async fn close(&self) {
        self.close().await;
    }
}
