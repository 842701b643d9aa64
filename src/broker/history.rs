//! The latest updates of everybody, in the order of the log that a broker keeps for all
//! instances: the source of every replay where a broker has such a log.
//!
//! [`History`] is fed by the broker's reader and asked by sessions. `ring` holds the
//! updates. Keys, tokens and sessions are not known here.
//!
//! Invariant: an update is handed on while the history is locked. So whoever looks at the
//! history sees exactly the updates that were handed on so far.

mod ring;

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    select,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

pub use self::ring::Bounds;
pub(crate) use self::ring::Entry;
use self::ring::Ring;
use super::Delivery;
use crate::{compact::Era, config::BindingKeys, observability::metrics::Metrics, user::User};

/// How long a place is waited for that is not among what is kept yet.
const REACHED_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks whether the reader has come to a place that it has not reached.
const LOOK: Duration = Duration::from_millis(50);

/// The latest updates of everybody.
pub struct History {
    log: String,
    keys: BindingKeys,
    hashes: RandomState,
    metrics: Metrics,
    era: Era,
    ring: Mutex<Ring>,
    /// How long the last message of this instance's own took through the log, in milliseconds
    /// and one; 0 before the first.
    round_trip: AtomicU64,
    /// Wakes who waits for a place when more of the past is there, or no more will come.
    grown: Notify,
}

/// What is kept at one moment; nothing is handed on while it exists.
pub struct Past<'a> {
    history: &'a History,
    ring: MutexGuard<'a, Ring>,
}

impl History {
    /// A history of the log of that name. It keeps the newest update alone until it is told
    /// what to [`keep`](Self::keep). `keys` tell the users of a routing key.
    pub(crate) fn new(log: &str, keys: BindingKeys, metrics: Metrics) -> Self {
        Self {
            log: log.to_owned(),
            keys,
            hashes: RandomState::new(),
            metrics,
            era: Era::begin(),
            ring: Mutex::default(),
            round_trip: AtomicU64::new(0),
            grown: Notify::new(),
        }
    }

    /// The name of the log, which is part of what its places mean.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// How much to keep from now on. Must be called before the broker is connected, so that
    /// as much of the past is read back.
    pub fn keep(&self, bounds: Bounds) {
        self.ring().bounds = bounds;
    }

    /// What to keep.
    pub(crate) fn bounds(&self) -> Bounds {
        self.ring().bounds
    }

    /// How many bytes may be added until something is dropped.
    pub(crate) fn room(&self) -> usize {
        let ring = self.ring();
        ring.bounds.bytes.saturating_sub(ring.bytes())
    }

    /// What is kept now.
    pub fn look(&self) -> Past<'_> {
        Past {
            history: self,
            ring: self.ring(),
        }
    }

    /// Returns when the place is known to be kept or not to be, or after 5 s.
    pub async fn reach(&self, offset: u64) {
        let reached = async {
            loop {
                let grown = self.grown.notified();
                if self.ring().has_decided(offset) {
                    return;
                }
                select! {
                    () = grown => {}
                    () = sleep(LOOK) => {}
                }
            }
        };
        // Whoever waits looks, whether or not it has been reached.
        let _ = timeout(REACHED_WITHIN, reached).await;
    }

    /// Adds what the log has at `offset` and came `now`, behind all that is kept; `is_update` tells it from
    /// what concerns nobody. The caller hands it on before it drops what is returned.
    pub(crate) fn push(
        &self,
        offset: u64,
        delivery: &Delivery<'_>,
        is_update: bool,
        now: Instant,
    ) -> Past<'_> {
        let entry = self.entry(offset, delivery, is_update, now);
        let mut past = self.look();
        past.ring.push(entry);
        past.report();
        past
    }

    /// What the log has at `offset` and was published before: see [`Self::prepend`].
    pub(crate) fn earlier(&self, offset: u64, delivery: &Delivery<'_>, is_update: bool) -> Entry {
        let now = Instant::now();
        let age = delivery.published_at.and_then(|at| at.elapsed().ok());
        let at = now.checked_sub(age.unwrap_or_default()).unwrap_or(now);
        self.entry(offset, delivery, is_update, at)
    }

    /// What comes next may not follow what is kept: nothing of that can be replayed any more.
    pub(crate) fn cut(&self) {
        self.ring().cut();
        self.grown.notify_waiters();
    }

    /// The offset before which entries can be added; `None` before the first entry, and for ever
    /// after a cut.
    pub(crate) fn begins(&self) -> Option<u64> {
        self.ring().begins()
    }

    /// Adds what the log has right before the entry at `until`, oldest first. Returns whether
    /// there is room for more.
    pub(crate) fn prepend(&self, until: u64, entries: Vec<Entry>) -> bool {
        let now = self.era.moment(Instant::now());
        let mut past = self.look();
        let has_room = past.ring.prepend(until, entries, now);
        past.report();
        drop(past);
        self.grown.notify_waiters();
        has_room
    }

    /// Nothing more will be read back.
    pub(crate) fn is_read_back(&self) {
        self.ring().is_read_back = true;
        self.metrics.history_reading.set(0);
        self.grown.notify_waiters();
    }

    /// Whether more of the past may still be read back.
    pub fn is_reading(&self) -> bool {
        !self.ring().is_read_back
    }

    /// How long a message of this instance's own last took through the log.
    pub fn round_trip(&self) -> Option<Duration> {
        let millis = self.round_trip.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(millis))
    }

    pub(crate) fn note_round_trip(&self, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.round_trip
            .store(millis.saturating_add(1), Ordering::Relaxed);
    }

    fn entry(&self, offset: u64, delivery: &Delivery<'_>, is_update: bool, at: Instant) -> Entry {
        let mut recipients = 0;
        if is_update {
            self.keys
                .for_each_id(delivery.routing_key, |id| recipients |= self.mark(id));
        }
        Entry::new(offset, delivery, recipients, self.era.moment(at))
    }

    /// Two of 64 bits: an entry for a user has both.
    fn mark(&self, id: &str) -> u64 {
        let hash = self.hashes.hash_one(id);
        1 << (hash & 63) | 1 << (hash >> 6 & 63)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A handler's panic is caught: what is locked is consistent.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn are_same(one: &Delivery<'_>, other: &Delivery<'_>) -> bool {
    one.body == other.body
        && one.routing_key == other.routing_key
        && one.published_at == other.published_at
}

impl Past<'_> {
    /// The newest entry.
    pub fn newest(&self) -> Option<Delivery<'_>> {
        self.ring.newest()
    }

    /// Whether the newest entry is this one.
    pub(crate) fn newest_is(&self, other: &Delivery<'_>) -> bool {
        self.newest().is_some_and(|newest| are_same(&newest, other))
    }

    /// Whether the entry at an offset, if it is kept, is this one.
    pub(crate) fn may_have_at(&self, offset: u64, other: &Delivery<'_>) -> bool {
        self.at(offset).is_none_or(|entry| are_same(&entry, other))
    }

    /// The number of the newest entry there ever was; 0 if there was none.
    pub fn last(&self) -> u64 {
        self.ring.last()
    }

    /// Everything with a greater number is kept.
    pub fn floor(&self) -> u64 {
        self.ring.floor()
    }

    /// The entry at an offset.
    pub fn at(&self, offset: u64) -> Option<Delivery<'_>> {
        self.ring.at(offset)
    }

    /// The first update with a number greater than `after` that is routed
    /// to `user`.
    pub fn next_for(&self, user: &User, after: u64) -> Option<Delivery<'_>> {
        let mark = self.history.mark(user.id.as_str());
        let mut entries = self.ring.after(after);
        let found = entries.find(|entry| {
            entry.may_be_for(mark) && self.history.keys.are_for(user, entry.routing_key())
        });
        found.map(|entry| self.ring.delivery(entry))
    }

    /// The time between the oldest and the newest entry.
    pub fn age(&self) -> Duration {
        self.ring.age()
    }

    /// How long entries are kept, if less long than they should be for want of room.
    pub fn reach(&self) -> Option<Duration> {
        let is_full = self.ring.bytes() >= self.ring.bounds.bytes / 10 * 9;
        is_full.then(|| self.age())
    }

    /// How many entries are kept.
    pub fn count(&self) -> usize {
        self.ring.count()
    }

    fn report(&self) {
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let metrics = &self.history.metrics;
        metrics.kept_updates.set(gauge(self.count()));
        metrics.kept_bytes.set(gauge(self.ring.bytes()));
        let seconds = self.age().as_secs();
        metrics
            .history_age
            .set(seconds.try_into().unwrap_or(i64::MAX));
    }
}
