//! Who is online, and what goes to whom.
//!
//! The hub maps each user to their sessions, subscribes the user with the first
//! and unsubscribes with the last, and hands every update to all of the user's
//! sockets. A session that lost its connection stays for a while without a socket
//! and may be resumed. The hub sees no token, no queue and no HTTP.
//!
//! Invariants: a user has a subscription exactly while a session of theirs lives;
//! a socket gets every update from its `connect` on, in order, or its transport is
//! closed. The lock over all users is never held while delivering; where both are
//! taken, it comes before the lock of one user's audience.

mod audience;
mod crowd;
mod departures;
mod events;
mod log;
mod recovery;
mod repeated;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::{
    select,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing::warn;

use self::{
    audience::{Audience, Left},
    departures::Departures,
    log::Limits,
};
pub use self::{
    log::Offset,
    recovery::{Admitted, Request},
};
use crate::{
    broker::{Broker, Delivery, Subscribed},
    config::{Envelope, RecoveryConfig},
    observability::metrics::{GaugeGuard, Metrics},
    observability::sampled::Sampled,
    socketio::transport::Transports,
    user::{User, UserId},
};

/// Longest time between two looks at what has expired.
const MAX_EXPIRY_TICK: Duration = Duration::from_secs(5);

/// Time between two evictions, each of which looks at all users.
const EVICTION_PAUSE: Duration = Duration::from_millis(100);

/// Lines about evictions.
static EVICTED: Sampled = Sampled::new();

/// Time between two looks at whether all sockets have caught up.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(20);

/// Time in which none of the sockets that lag takes anything, after which nobody
/// waits for them any more. The system tells of what a slow one takes by the
/// megabyte.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of updates that wait for a socket which is the first to pay, where memory
/// is short: more than a burst, and than most replays.
const FAR_BEHIND_BYTES: usize = 1024 * 1024;

pub struct Hub {
    broker: Arc<dyn Broker>,
    transports: Transports,
    metrics: Metrics,
    recovery: RecoveryConfig,
    envelope: Envelope,
    drops_repeated: bool,
    users: Mutex<HashMap<User, Online>>,
    /// How many sessions there were.
    sessions: AtomicU64,
    /// The sessions that are away.
    departures: Departures,
}

/// A user with at least one session, possibly without a socket.
struct Online {
    audience: Arc<Audience>,
    subscribed: Subscribed,
}

/// What [`Hub::describe`] tells of a user id.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Presence {
    pub is_subscribed: bool,
    pub sockets: usize,
}

impl Hub {
    /// Must be called inside a Tokio runtime.
    pub fn new(
        broker: Arc<dyn Broker>,
        transports: Transports,
        metrics: Metrics,
        recovery: RecoveryConfig,
        envelope: Envelope,
        drops_repeated: bool,
    ) -> Arc<Self> {
        metrics.kept.limit_to(recovery.total_bytes);
        let hub = Arc::new(Self {
            broker,
            transports,
            metrics,
            recovery,
            envelope,
            drops_repeated,
            users: Mutex::default(),
            sessions: AtomicU64::new(0),
            departures: Departures::default(),
        });
        tokio::spawn(expire(Arc::downgrade(&hub)));
        hub
    }

    fn limits(&self) -> Option<Limits> {
        let limits = Limits {
            window: self.recovery.window,
            updates: self.recovery.max_updates,
            bytes: self.recovery.max_bytes,
        };
        (!limits.window.is_zero()).then_some(limits)
    }

    /// Begins a session of `user`, who is subscribed from now on; `None` if they
    /// have as many sockets as `limit` allows (0: any number), besides the one
    /// that is to be resumed.
    pub fn join(
        self: &Arc<Self>,
        user: &User,
        socket: &SocketRef,
        request: Request,
        limit: u32,
    ) -> Option<Session> {
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
        self.transports.watch(socket, number);
        Some(Session {
            hub: self.clone(),
            user: user.clone(),
            sid: socket.id,
            number,
            request,
            subscribed: online.subscribed.clone(),
            audience: online.audience.clone(),
            ended: AtomicBool::new(false),
            _gauge: GaugeGuard::new(&self.metrics.sockets),
        })
    }

    fn bring_online(&self, user: &User) -> Online {
        let audience = Arc::new(Audience::new(
            user.clone(),
            self.limits(),
            self.envelope,
            self.drops_repeated,
            self.transports.clone(),
            self.departures.clone(),
            self.metrics.clone(),
        ));
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

    fn leave(&self, session: &Session) {
        let may_return = !session.ended.load(Ordering::Relaxed);
        let left = session.audience.leave(session.number, may_return);
        if left == Some(Left::Gone) {
            // Under this lock nobody joins: empty is empty.
            self.remove_if_empty(self.users(), &session.user);
        }
    }

    fn remove_if_empty(&self, mut users: MutexGuard<'_, HashMap<User, Online>>, user: &User) {
        if let Entry::Occupied(online) = users.entry(user.clone())
            && online.get().audience.is_empty()
        {
            online.remove();
            // Still under the lock: the wishes come in the order of the changes.
            self.broker.unsubscribe_user(user);
        }
    }

    /// Gives up the sessions without a socket of some users.
    pub fn end_away(&self, is_one: impl Fn(&User) -> bool) {
        let users = self.users();
        let found = users.iter().filter(|(user, _)| is_one(user));
        let found: Vec<_> = found
            .map(|(user, online)| (user.clone(), online.audience.clone()))
            .collect();
        drop(users);
        for (user, audience) in found {
            audience.end_away();
            self.remove_if_empty(self.users(), &user);
        }
    }

    /// Gives up the sessions that were away for too long, and what is too old.
    fn expire(&self) {
        let deadline = Instant::now().checked_sub(self.recovery.window);
        while let Some((user, session)) = deadline.and_then(|at| self.departures.take_before(at)) {
            let users = self.users();
            if let Some(online) = users.get(&user) {
                online.audience.expire(session);
                self.remove_if_empty(users, &user);
            }
        }
        let audiences: Vec<_> = self.audiences();
        for audience in audiences {
            audience.tidy();
        }
    }

    /// Frees memory if too much is kept: sockets that lag far behind are closed
    /// first; then users without a socket lose recovery, in the order in which they
    /// left; then all do; then sockets that lag at all are closed.
    fn evict(&self) {
        let kept = &self.metrics.kept;
        if kept.bytes() <= self.recovery.total_bytes {
            return;
        }
        // Below the limit by some, so that this is not for every tick.
        let target = self.recovery.total_bytes / 10 * 9;
        let is_enough = || kept.bytes() <= target;
        if let Some(line) = EVICTED.note("") {
            warn!(
                bytes = kept.bytes(),
                limit = self.recovery.total_bytes,
                left_out = line.left_out,
                "too much is kept for recovery: sockets that lag and the users away longest lose it"
            );
        }
        let audiences = self.audiences();
        let give_up_behind = |bytes| {
            for audience in audiences.iter().take_while(|_| !is_enough()) {
                if audience.cut_behind(bytes) {
                    audience.forget();
                }
            }
        };
        give_up_behind(FAR_BEHIND_BYTES);
        let away = self.departures.all();
        for (user, session) in away.into_iter().take_while(|_| !is_enough()) {
            let users = self.users();
            if let Some(online) = users.get(&user) {
                online.audience.evict_if_away_since(session);
                self.remove_if_empty(users, &user);
            }
        }
        for audience in audiences.iter().take_while(|_| !is_enough()) {
            audience.forget();
        }
        give_up_behind(0);
    }

    /// Returns when every socket has been handed what waits for it, or none of those
    /// that lag takes any more. To be called when nothing new comes.
    pub async fn caught_up(&self) {
        let (mut least, mut progress) = (usize::MAX, Instant::now());
        while progress.elapsed() < PATIENCE {
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

    fn audiences(&self) -> Vec<Arc<Audience>> {
        let users = self.users();
        users
            .values()
            .map(|online| online.audience.clone())
            .collect()
    }

    /// How many users have a socket.
    pub fn users_count(&self) -> i64 {
        self.metrics.users.get()
    }

    /// How many sockets are connected.
    pub fn sockets_count(&self) -> i64 {
        self.metrics.sockets.get()
    }

    /// The presence of a user id over all tenants. Takes time in proportion to
    /// the users online: meant for an operator's question.
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

    fn users(&self) -> MutexGuard<'_, HashMap<User, Online>> {
        lock(&self.users)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends what has expired, and frees memory, for as long as the hub lives.
async fn expire(hub: Weak<Hub>) {
    let of = |hub: Arc<Hub>| (hub.recovery.window, hub.metrics.kept.clone());
    let Some((window, kept)) = hub.upgrade().map(of) else {
        return;
    };
    let tick = match window.is_zero() {
        true => MAX_EXPIRY_TICK,
        false => (window / 8).clamp(Duration::from_millis(50), MAX_EXPIRY_TICK),
    };
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_tick = select! {
            _ = ticks.tick() => true,
            () = kept.over_limit() => false,
        };
        let Some(hub) = hub.upgrade() else { return };
        if is_tick {
            hub.expire();
        }
        hub.evict();
        drop(hub);
        if !is_tick {
            sleep(EVICTION_PAUSE).await;
        }
    }
}

/// One socket's session; dropping it is leaving.
///
/// The socket owns its session, and the hub holds the socket only from
/// [`Session::go_live`] until the session is dropped: the owner must drop the
/// session on disconnect, or the two keep each other alive.
pub struct Session {
    hub: Arc<Hub>,
    user: User,
    sid: Sid,
    /// Distinguishes it from every other session, also of the same `sid`.
    number: u64,
    request: Request,
    subscribed: Subscribed,
    audience: Arc<Audience>,
    ended: AtomicBool,
    _gauge: GaugeGuard,
}

impl Session {
    /// Returns once updates published from now on will be received.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "wait_for_subscription", skip_all, fields(user_id = %self.user().id)))]
    pub async fn subscribed(&self) {
        self.subscribed.clone().ready().await;
    }

    /// Decides what the session begins with: what its client missed, if that is
    /// requested and here to the last update. To be called once, before the
    /// CONNECT reply, which has to carry what is returned.
    pub fn admit(&self) -> Option<Admitted> {
        self.audience.admit(self.number, self.sid, self.request)
    }

    /// Sends what came since [`Session::admit`] and what was missed before, at the
    /// pace that the socket takes it; then the socket is sent every further update.
    pub async fn go_live(&self, socket: SocketRef) {
        let is_live = self.audience.catch_up(self.number, &socket).await;
        // One that was sent away has something else to read; else another connection
        // of the same client went on from here.
        if !is_live && !self.ended.load(Ordering::Relaxed) {
            self.hub.transports.close(&socket);
        }
    }

    /// Ends the session for good: nothing more is sent, and it cannot be resumed.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.leave();
    }

    /// Gives up the session's socket; the rest may be resumed, unless it was ended.
    /// Its transport is watched until the session is dropped: it may have to be closed.
    pub fn leave(&self) {
        self.hub.leave(self);
    }

    pub fn user(&self) -> &User {
        &self.user
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.hub.transports.forget(self.sid, self.number);
        self.hub.leave(self);
    }
}
