//! All users who are online or may return, each with their audience.
//!
//! In the background, [`eviction`] ends sessions that were away for too long and frees
//! memory, and [`gaps`] closes sockets that may have missed updates.
//!
//! Invariant: a user is subscribed exactly while their audience is here.

mod eviction;
mod gaps;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    audience::{Audience, Left},
    peer::Peer,
    shared::Shared,
};
use crate::{
    broker::{Broker, Delivery, UpdateHandler},
    config::HttpConfig,
    observability::metrics::Metrics,
    user::{TenantId, User, UserId},
};

/// Time between two looks at whether all sockets have caught up.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(20);

/// [`Hub::caught_up`] no longer waits for sockets that lag once none of them has
/// taken anything for this long. It is seconds because the system reports what a slow
/// client takes by the megabyte.
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// All users who are online or may return, and the source of their updates.
pub struct Hub<P: Peer> {
    pub(super) shared: Arc<Shared>,
    broker: Arc<dyn Broker>,
    /// Every user with a session, possibly without a socket.
    users: Mutex<HashMap<User, Arc<Audience<P>>>>,
    /// How many sessions were begun so far; numbers the next one.
    sessions: AtomicU64,
}

/// An audience as the broker knows it.
struct Recipient<P: Peer>(Arc<Audience<P>>);

impl<P: Peer> UpdateHandler for Recipient<P> {
    fn handle(&self, delivery: &Delivery<'_>) -> usize {
        self.0.deliver(delivery)
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// What [`Hub::describe`] says about a user id.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Presence {
    pub is_subscribed: bool,
    pub sockets: usize,
}

impl<P: Peer> Hub<P> {
    /// Must be called inside a Tokio runtime.
    pub fn new(broker: Arc<dyn Broker>, config: &HttpConfig, metrics: Metrics) -> Arc<Self> {
        let hub = Self::without_expiry(broker, config, metrics);
        tokio::spawn(eviction::run(Arc::downgrade(&hub)));
        if hub.shared.resyncs {
            tokio::spawn(gaps::run(Arc::downgrade(&hub)));
        }
        hub
    }

    /// A hub in which nothing happens in the background.
    pub(super) fn without_expiry(
        broker: Arc<dyn Broker>,
        config: &HttpConfig,
        metrics: Metrics,
    ) -> Arc<Self> {
        let (history, attendance) = (broker.history(), broker.attendance());
        Arc::new(Self {
            shared: Arc::new(Shared::new(config, history, attendance, metrics)),
            broker,
            users: Mutex::default(),
            sessions: AtomicU64::new(0),
        })
    }

    /// Adds a session of `user`, who is subscribed from now on; returns the session's
    /// audience and number. Returns `None` if the user has as many sockets as `limit`
    /// allows (0: any number), not counting that of the session `resumed`.
    pub(super) fn join(
        &self,
        user: &User,
        resumed: Option<u128>,
        limit: u32,
    ) -> Option<(Arc<Audience<P>>, u64)> {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut users = self.users();
        let sockets = users
            .get(user)
            .map_or(0, |audience| audience.sockets_besides(resumed));
        if limit > 0 && sockets >= limit as usize {
            return None;
        }
        let audience = users
            .entry(user.clone())
            .or_insert_with(|| self.bring_online(user));
        audience.join(number);
        Some((audience.clone(), number))
    }

    fn bring_online(&self, user: &User) -> Arc<Audience<P>> {
        let audience = Arc::new(Audience::new(user.clone(), self.shared.clone()));
        let handler = Arc::new(Recipient(audience.clone()));
        audience.subscribed_by(self.broker.subscribe_user(user, handler));
        audience
    }

    /// Gives up a session's socket, and the session unless it `may_return`.
    pub(super) fn leave(&self, audience: &Audience<P>, session: u64, may_return: bool) {
        if audience.leave(session, may_return) == Some(Left::Gone) {
            self.remove_if_empty(audience.user());
        }
    }

    /// Unsubscribes a user without sessions.
    fn remove_if_empty(&self, user: &User) {
        let mut users = self.users();
        // Nobody joins while the lock is held, so an empty audience stays empty.
        if users.get(user).is_some_and(|audience| audience.is_empty()) {
            users.remove(user);
            // Under the lock, so that the broker hears of changes in their order.
            self.broker.unsubscribe_user(user);
        }
    }

    /// Ends the sessions without a socket of the users that `is_one` selects.
    pub fn end_away(&self, is_one: impl Fn(&User) -> bool) {
        let users = self.users();
        let found = users.values().filter(|audience| is_one(audience.user()));
        let found: Vec<_> = found.cloned().collect();
        drop(users);
        for audience in found {
            audience.end_away();
            self.remove_if_empty(audience.user());
        }
    }

    /// Returns when every socket has been handed what waits for it, or when none of
    /// the sockets that lag takes anything any more. For use when nothing new comes.
    pub async fn caught_up(&self) {
        let (mut least, mut progress) = (usize::MAX, Instant::now());
        while progress.elapsed() < STALLED_AFTER {
            let audiences = self.audiences();
            let waiting = audiences.iter().map(|audience| audience.waiting_bytes());
            match waiting.sum() {
                0 => return,
                bytes if bytes < least => (least, progress) = (bytes, Instant::now()),
                _ => {}
            }
            sleep(CAUGHT_UP_POLL).await;
        }
    }

    /// The audiences of all users.
    pub(super) fn audiences(&self) -> Vec<Arc<Audience<P>>> {
        self.users().values().cloned().collect()
    }

    /// The audience of one user, if the user has a session.
    fn audience(&self, user: &User) -> Option<Arc<Audience<P>>> {
        self.users().get(user).cloned()
    }

    /// How many users have a socket.
    pub fn users_count(&self) -> usize {
        self.shared.users.number()
    }

    /// How many sockets are connected.
    pub fn sockets_count(&self) -> usize {
        self.shared.sockets.number()
    }

    /// The presence of a user id over all tenants. Takes time in proportion to the
    /// number of users online, so it is meant for an operator's question.
    pub fn describe(&self, id: &UserId) -> Presence {
        self.describe_in(id, None)
    }

    /// As [`Hub::describe`], in one tenant if one is named.
    pub fn describe_in(&self, id: &UserId, tenant: Option<&TenantId>) -> Presence {
        let users = self.users();
        let mut presence = Presence::default();
        let is_one =
            |user: &User| user.id == *id && (tenant.is_none() || user.tenant.as_ref() == tenant);
        for (user, audience) in users.iter().filter(|(user, _)| is_one(user)) {
            presence.is_subscribed |= self.broker.is_user_subscribed(user);
            presence.sockets += audience.sockets();
        }
        presence
    }

    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    fn users(&self) -> MutexGuard<'_, HashMap<User, Arc<Audience<P>>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
