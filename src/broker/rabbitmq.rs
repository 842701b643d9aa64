//! [`RabbitMqService`]: users' subscriptions to Chat3's updates, kept alive over
//! every loss of the broker.
//!
//! Owns the *wish*: which users shall be subscribed. A supervisor task owns the
//! *fact*: it connects, reconciles the broker's state with the wishes through a
//! `Link`, and starts over when the link is lost. Callers only record
//! wishes, so connects and disconnects that happen while the broker is away,
//! or in the middle of a resubscription, need no case of their own.
//!
//! Invariant: while a link is up, every user is either in the state that the
//! latest wish asks for, or in the list of changes still to be applied.
//! This module never sees a socket.

mod acks;
mod channels;
mod connection;
mod consumer;
mod control;
mod link;
mod orders;
mod session;
mod silence;
mod topology;
mod unreadable;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use indexmap::IndexSet;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

pub use self::unreadable::Unreadable;
pub(crate) use self::unreadable::is_of_amqprs;
use self::{
    channels::Channels,
    link::{Ended, Link},
    orders::Orders,
};
pub(crate) use self::{
    connection::{ACCESS_REFUSED, LinkError, NOT_FOUND, open_channel, open_connection},
    session::{Heard, Listening, Scope, Session},
};
use crate::{
    broker::{Activation, BroadcastHandler, Broker, Handler, Subscribed},
    config::RabbitMqConfig,
    observability::metrics::Metrics,
    user::User,
};

/// While the broker is away: the wait after its return shall be a small part of the
/// time that it was away. The ceiling is the documented one.
const WHILE_AWAY: Patience = Patience {
    growth: 1.25,
    ceiling: Duration::from_secs(30),
};

/// While the broker refuses what is configured: only an operator can mend it.
const WHILE_REFUSED: Patience = Patience {
    growth: 2.0,
    ceiling: Duration::from_secs(60),
};

/// A link that lived this long was healthy: the next loss starts a new backoff.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Connections that a message ended are made anew at once, so many in a minute: a flood
/// of such messages must not become one of reconnects.
const AT_ONCE_PER_MINUTE: usize = 20;

/// The largest frame that [`RabbitMqService::THREAD_STACK_BYTES`] is measured for:
/// RabbitMQ's default. It tells the client, which cannot ask for a smaller one.
const MAX_FRAME_BYTES: u32 = 131_072;

/// Subscribes users to their updates, reconnecting as needed. Cheap to share by `Arc`.
pub struct RabbitMqService {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

/// What callers and the supervisor share.
struct Shared {
    config: RabbitMqConfig,
    metrics: Metrics,
    /// Distinguishes this process's queues from those of any other.
    instance: String,
    wishes: Mutex<Wishes>,
    /// Updates that came, on whichever link.
    received: Arc<AtomicU64>,
    /// Wakes the link when there are changes to apply.
    changed: Notify,
    connected: watch::Sender<bool>,
    /// Stage one of the shutdown: consume no more.
    stop_consuming: CancellationToken,
    /// Consumers that still have deliveries to hand off; closed and empty after stage one.
    consuming: watch::Sender<bool>,
    /// Stage two: close the connection.
    close: CancellationToken,
    /// Whether orders come from the other instances, and so reach them.
    control_connected: AtomicBool,
    orders: Orders,
    on_broadcast: OnceLock<BroadcastHandler>,
}

#[derive(Default)]
struct Wishes {
    users: HashMap<User, Wish>,
    /// Users whose wish changed since the link looked, each once, whoever changes
    /// theirs more often than the broker can follow. Kept only while a link is up:
    /// a new one starts from all wishes.
    joins: IndexSet<User>,
    leaves: IndexSet<User>,
    linked: bool,
    next_serial: u64,
}

#[derive(Clone)]
struct Wish {
    /// Tells two subscriptions of the same user apart.
    serial: u64,
    handler: Handler,
    active: Activation,
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
        let instance = format!(
            "{}-{:08x}",
            match config.instance_name.as_str() {
                "" => host_name(),
                name => name.to_owned(),
            },
            rand::random::<u32>()
        );
        let shared = Arc::new(Shared {
            config,
            metrics,
            instance,
            wishes: Mutex::default(),
            received: Arc::default(),
            changed: Notify::new(),
            connected: watch::Sender::new(false),
            stop_consuming: CancellationToken::new(),
            consuming: watch::Sender::new(true),
            close: CancellationToken::new(),
            control_connected: AtomicBool::new(false),
            orders: Orders::default(),
            on_broadcast: OnceLock::new(),
        });
        let supervisor = tokio::spawn(supervise(shared.clone()));
        Self {
            shared,
            supervisor: Mutex::new(Some(supervisor)),
        }
    }

    /// Sends `user`'s updates to `handler` until [`Self::unsubscribe_user`]. Over
    /// a loss of the broker the subscription is made anew by itself; updates
    /// published meanwhile are not seen. A second call replaces the handler.
    ///
    /// A user whose binding keys are too long for AMQP gets no updates.
    pub fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed {
        let (active, subscribed) = Subscribed::new();
        if !self.has_room_for(user) {
            self.shared.metrics.subscriptions_refused.inc();
            warn!(user_id = %user.id, "RabbitMQ binding keys too long for a subscription");
            return subscribed;
        }
        let mut wishes = self.shared.wishes();
        wishes.next_serial += 1;
        let wish = Wish {
            serial: wishes.next_serial,
            handler,
            active,
        };
        wishes.users.insert(user.clone(), wish);
        self.shared.note_change(wishes, user);
        subscribed
    }

    /// Ends `user`'s subscription and removes its queue.
    pub fn unsubscribe_user(&self, user: &User) {
        let mut wishes = self.shared.wishes();
        if wishes.users.remove(user).is_some() {
            self.shared.note_change(wishes, user);
        }
    }

    /// Cancels all consumers, waits until what they had received is handed off and
    /// acknowledged, and closes the connection.
    pub async fn close(&self) {
        self.stop_consuming().await;
        self.shared.close.cancel();
        self.shared.orders.close().await;
        let supervisor = self.lock_supervisor().take();
        if let Some(supervisor) = supervisor
            && supervisor.await.is_err()
        {
            warn!("RabbitMQ supervisor ended by a panic");
        }
    }

    /// How many users are subscribed at the broker right now.
    pub fn subscribers_count(&self) -> usize {
        let wishes = self.shared.wishes();
        let active = |wish: &&Wish| wish.active.is_active();
        wishes.users.values().filter(active).count()
    }

    /// Whether `user` is subscribed at the broker right now.
    pub fn is_user_subscribed(&self, user: &User) -> bool {
        let wishes = self.shared.wishes();
        wishes
            .users
            .get(user)
            .is_some_and(|wish| wish.active.is_active())
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

    fn lock_supervisor(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        let is_connected = self.shared.control_connected.load(Ordering::Relaxed);
        is_connected && Orders::publish(&self.shared, message).await
    }

    fn on_broadcast(&self, handler: BroadcastHandler) {
        // The first one stays.
        let _ = self.shared.on_broadcast.set(handler);
    }

    async fn stop_consuming(&self) {
        self.stop_consuming().await;
    }

    async fn close(&self) {
        self.close().await;
    }
}

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        // The map is consistent at every await-free point, so a panic elsewhere
        // while it was held does not make it wrong.
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_change(&self, mut wishes: MutexGuard<'_, Wishes>, user: &User) {
        if wishes.linked {
            match wishes.users.contains_key(user) {
                true => wishes.joins.insert(user.clone()),
                false => wishes.leaves.insert(user.clone()),
            };
            drop(wishes);
            self.changed.notify_one();
        }
    }

    fn set_control_connected(&self, connected: bool) {
        self.control_connected.store(connected, Ordering::Relaxed);
        self.metrics.control_connected.set(connected.into());
    }

    /// A new link knows nothing yet: every wish is a change to it.
    fn link_up(&self) {
        let mut wishes = self.wishes();
        wishes.linked = true;
        wishes.joins = wishes.users.keys().cloned().collect();
        drop(wishes);
        self.metrics.broker_connected.set(1);
        self.connected.send_replace(true);
    }

    fn link_down(&self) {
        self.connected.send_replace(false);
        self.set_control_connected(false);
        self.metrics.broker_connected.set(0);
        let mut wishes = self.wishes();
        wishes.linked = false;
        wishes.joins.clear();
        wishes.leaves.clear();
        for wish in wishes.users.values() {
            wish.active.deactivate();
        }
    }

    /// Takes changed users with what is wished for them now: up to `limit` who
    /// wait for updates, then up to `limit` who have left and wait for nothing.
    fn take_changes(&self, limit: usize) -> Vec<(User, Option<Wish>)> {
        let mut wishes = self.wishes();
        let wishes = &mut *wishes;
        let take = |changes: &mut IndexSet<User>| {
            let count = changes.len().min(limit);
            let with_wish = |user: User| {
                let wish = wishes.users.get(&user).cloned();
                (user, wish)
            };
            changes.drain(..count).map(with_wish).collect::<Vec<_>>()
        };
        let mut changes = take(&mut wishes.joins);
        changes.extend(take(&mut wishes.leaves));
        changes
    }

    fn changes_count(&self) -> usize {
        let wishes = self.wishes();
        wishes.joins.len() + wishes.leaves.len()
    }

    fn is_wished(&self, user: &User) -> bool {
        self.wishes().users.contains_key(user)
    }

    /// Gives back changes that could not be applied.
    fn return_changes(&self, users: Vec<User>) {
        self.wishes().joins.extend(users);
    }

    /// `user`'s subscription was lost.
    fn deactivate(&self, user: &User) {
        if let Some(wish) = self.wishes().users.get(user) {
            wish.active.deactivate();
        }
    }
}

/// Connects, runs the link until it is lost, and again.
async fn supervise(shared: Arc<Shared>) {
    let mut backoff = Backoff::new(shared.config.reconnect_delay);
    let mut linked_before = false;
    let mut at_once = AtOnce::default();
    let mut refused = IndexSet::new();
    let silence = AbortOnDropHandle::new(tokio::spawn(silence::watch(shared.clone())));
    for epoch in 0_u64.. {
        let opened = tokio::select! {
            opened = Link::open(&shared, epoch, &refused) => opened,
            () = shared.stop_consuming.cancelled() => break,
        };
        let delay = match opened {
            Ok(link) => {
                info!(address = %link.node(), "RabbitMQ connected");
                if linked_before {
                    shared.metrics.broker_reconnects.inc();
                }
                linked_before = true;
                let up_since = Instant::now();
                let ended = run(&shared, link).await;
                let was_healthy = up_since.elapsed() >= HEALTHY_AFTER;
                if was_healthy {
                    backoff = Backoff::new(shared.config.reconnect_delay);
                }
                refused.clear();
                match ended {
                    Ended::Stopped => break,
                    Ended::Worn(users) => {
                        warn!(reason = %LinkError::Worn, "⚠️  RabbitMQ connection closed");
                        refused = users;
                        match was_healthy {
                            true => Duration::ZERO,
                            false => backoff.next(WHILE_AWAY),
                        }
                    }
                    Ended::Lost(reason) => {
                        warn!(%reason, "⚠️  RabbitMQ connection closed");
                        let is_unreadable = matches!(reason, LinkError::Unreadable(_));
                        if is_unreadable {
                            shared.metrics.messages_unreadable.inc();
                        }
                        let may_work = was_healthy && !reason.is_configuration();
                        // Another node, or a link without that message.
                        let differs = shared.config.url.nodes().len() > 1
                            && !reason.is_configuration()
                            || is_unreadable;
                        match may_work || (differs && at_once.take()) {
                            true => Duration::ZERO,
                            false => backoff.next(patience(&reason)),
                        }
                    }
                }
            }
            Err(error) => {
                warn!(
                    address = %shared.config.url,
                    %error,
                    "⚠️  Failed to connect to RabbitMQ. Updates will not be available."
                );
                backoff.next(patience(&error))
            }
        };
        info!(?delay, "RabbitMQ reconnect scheduled");
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shared.stop_consuming.cancelled() => break,
        }
    }
    // An error is its panic, which has been logged.
    let _ = silence.await;
    shared.consuming.send_replace(false);
}

fn patience(error: &LinkError) -> Patience {
    match error.is_configuration() {
        true => WHILE_REFUSED,
        false => WHILE_AWAY,
    }
}

/// Applies wishes through `link` until it is lost or the service is closed.
async fn run(shared: &Arc<Shared>, mut link: Link) -> Ended {
    shared.link_up();
    let ended = link.run(shared).await;
    shared.link_down();
    let handing_off = link.handing_off();
    match ended {
        Ended::Stopped => {
            link.stop_consuming().await;
            Channels::handed_off(&handing_off).await;
            shared.consuming.send_replace(false);
            shared.close.cancelled().await;
            link.close().await;
        }
        // Old consumers end before new ones start: a user's order holds over a reconnect.
        Ended::Lost(_) | Ended::Worn(_) => {
            link.close().await;
            Channels::handed_off(&handing_off).await;
        }
    }
    ended
}

/// How the delays between attempts grow, and up to what.
#[derive(Clone, Copy)]
struct Patience {
    growth: f64,
    ceiling: Duration,
}

/// When reconnects were made without a delay.
#[derive(Default)]
struct AtOnce(VecDeque<Instant>);

impl AtOnce {
    fn take(&mut self) -> bool {
        let is_old = |at: &mut Instant| at.elapsed() > Duration::from_secs(60);
        while self.0.pop_front_if(is_old).is_some() {}
        let may = self.0.len() < AT_ONCE_PER_MINUTE;
        if may {
            self.0.push_back(Instant::now());
        }
        may
    }
}

/// Delays between attempts: the configured one, then longer ones.
struct Backoff {
    next: Duration,
    is_first: bool,
}

impl Backoff {
    fn new(first: Duration) -> Self {
        Self {
            next: first,
            is_first: true,
        }
    }

    /// The next delay, at most the ceiling. All but the first are shortened at
    /// random, also at the ceiling, so that a fleet of gateways does not return to
    /// a restarted broker in one wave.
    fn next(&mut self, patience: Patience) -> Duration {
        let delay = self.next.min(patience.ceiling);
        self.next = delay.mul_f64(patience.growth);
        match std::mem::replace(&mut self.is_first, false) {
            true => delay,
            false => delay.mul_f64(rand::random_range(0.5..=1.0)),
        }
    }
}

pub(crate) fn host_name() -> String {
    let name = gethostname::gethostname().to_string_lossy().into_owned();
    let safe = |c: char| match c.is_ascii_alphanumeric() || matches!(c, '-' | '.') {
        true => c,
        false => '-',
    };
    name.chars().map(safe).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnect_delays_grow_with_jitter_up_to_the_ceiling() {
        for patience in [WHILE_AWAY, WHILE_REFUSED] {
            let mut backoff = Backoff::new(Duration::from_secs(5));
            assert_eq!(backoff.next(patience), Duration::from_secs(5));
            let second = backoff.next(patience).as_secs_f64() / patience.growth;
            assert!((2.5..=5.0).contains(&second), "{second}");
            let later: Vec<_> = (0..50).map(|_| backoff.next(patience)).collect();
            assert!(later.iter().all(|delay| *delay <= patience.ceiling));
            // Still spread out where the growth has ended.
            assert!(later[40..].windows(2).any(|pair| pair[0] != pair[1]));
        }
    }
}
