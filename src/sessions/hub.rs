//! All users who are online or may return.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    audience::{Audience, Left},
    clock::Clock,
    counts::Count,
    departures::Departures,
    eviction,
    kept::Kept,
    log::Limits,
    peer::Peer,
    resume::ResumeRequest,
    session::Session,
};
use crate::{
    broker::{Broker, Delivery, Subscribed},
    config::{Envelope, HttpConfig},
    observability::metrics::Metrics,
    user::{User, UserId},
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
    users: Mutex<HashMap<User, Online<P>>>,
    /// How many sessions there were.
    sessions: AtomicU64,
}

/// What the hub shares with every audience.
pub(super) struct Shared {
    /// `None`: recovery is off.
    pub(super) limits: Option<Limits>,
    pub(super) envelope: Envelope,
    pub(super) drops_repeated: bool,
    /// How long a socket that lags may take nothing.
    pub(super) write_timeout: Duration,
    pub(super) clock: Clock,
    /// The sessions that are away.
    pub(super) departures: Departures,
    pub(super) kept: Kept,
    pub(super) sockets: Count,
    /// Users with a socket.
    pub(super) users: Count,
    /// Users without a socket who may return.
    pub(super) users_away: Count,
    pub(super) metrics: Metrics,
}

/// A user with at least one session, possibly without a socket.
struct Online<P: Peer> {
    audience: Arc<Audience<P>>,
    subscribed: Subscribed,
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
        hub
    }

    /// A hub in which nothing happens in the background.
    pub(super) fn without_expiry(
        broker: Arc<dyn Broker>,
        config: &HttpConfig,
        metrics: Metrics,
    ) -> Arc<Self> {
        let recovery = &config.recovery;
        let limits = Limits {
            window: recovery.window,
            updates: recovery.max_updates,
            bytes: recovery.max_bytes,
        };
        let shared = Shared {
            limits: (!limits.window.is_zero()).then_some(limits),
            envelope: config.envelope,
            drops_repeated: config.drop_repeated_updates,
            write_timeout: config.socket_write_timeout,
            clock: Clock::default(),
            departures: Departures::default(),
            kept: Kept::new(recovery.total_bytes, &metrics),
            sockets: Count::new(&metrics.sockets),
            users: Count::new(&metrics.users),
            users_away: Count::new(&metrics.users_away),
            metrics,
        };
        Arc::new(Self {
            shared: Arc::new(shared),
            broker,
            users: Mutex::default(),
            sessions: AtomicU64::new(0),
        })
    }

    /// Begins a session of `user`, who is subscribed from now on. Returns `None` if
    /// the user has as many sockets as `limit` allows (0: any number), not counting
    /// the socket that `request` takes over from.
    pub fn join(
        self: &Arc<Self>,
        user: &User,
        request: ResumeRequest,
        limit: u32,
    ) -> Option<Session<P>> {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut users = self.users();
        let sockets = users
            .get(user)
            .map_or(0, |online| online.audience.sockets_besides(request));
        if limit > 0 && sockets >= limit as usize {
            return None;
        }
        let online = match users.entry(user.clone()) {
            Entry::Occupied(online) => online.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(self.bring_online(user)),
        };
        online.audience.join(number);
        Some(Session::new(
            self.clone(),
            user.clone(),
            number,
            request,
            online.subscribed.clone(),
            online.audience.clone(),
        ))
    }

    fn bring_online(&self, user: &User) -> Online<P> {
        let audience = Arc::new(Audience::new(user.clone(), self.shared.clone()));
        let handler = {
            let audience = audience.clone();
            Arc::new(move |delivery: &Delivery| audience.deliver(delivery))
        };
        let subscribed = self.broker.subscribe_user(user, handler);
        audience.subscribed_by(subscribed.clone());
        Online {
            audience,
            subscribed,
        }
    }

    /// Gives up a session's socket, and the session unless it `may_return`.
    pub(super) fn leave(
        &self,
        user: &User,
        audience: &Audience<P>,
        session: u64,
        may_return: bool,
    ) {
        if audience.leave(session, may_return) == Some(Left::Gone) {
            self.remove_if_empty(user);
        }
    }

    /// Unsubscribes a user without sessions.
    pub(super) fn remove_if_empty(&self, user: &User) {
        let mut users = self.users();
        // Nobody joins while the lock is held, so an empty audience stays empty.
        if let Entry::Occupied(online) = users.entry(user.clone())
            && online.get().audience.is_empty()
        {
            online.remove();
            // Under the lock, so that the broker hears of changes in their order.
            self.broker.unsubscribe_user(user);
        }
    }

    /// Ends the sessions without a socket of the users that `is_one` selects.
    pub fn end_away(&self, is_one: impl Fn(&User) -> bool) {
        let users = self.users();
        let found = users.iter().filter(|(user, _)| is_one(user));
        let found: Vec<_> = found
            .map(|(user, online)| (user.clone(), online.audience.clone()))
            .collect();
        drop(users);
        for (user, audience) in found {
            audience.end_away();
            self.remove_if_empty(&user);
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
        let users = self.users();
        users
            .values()
            .map(|online| online.audience.clone())
            .collect()
    }

    /// The audience of one user, if the user has a session.
    pub(super) fn audience(&self, user: &User) -> Option<Arc<Audience<P>>> {
        let users = self.users();
        users.get(user).map(|online| online.audience.clone())
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
        let users = self.users();
        let mut presence = Presence::default();
        for (user, online) in users.iter().filter(|(user, _)| user.id == *id) {
            presence.is_subscribed |= self.broker.is_user_subscribed(user);
            presence.sockets += online.audience.sockets();
        }
        presence
    }

    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    fn users(&self) -> MutexGuard<'_, HashMap<User, Online<P>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
