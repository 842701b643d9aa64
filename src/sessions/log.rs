//! A user's latest updates, numbered: the source of every replay. Pure: the log does
//! no I/O, reads no clock and knows no socket.
//!
//! Events are numbered per user, starting at 1. An update's `chat3:update` takes one
//! number; its specialised event, if it has one, takes the next.
//!
//! Invariant: the log holds every event whose number is above the floor. So a client
//! that has seen everything up to the floor, or further, can be sent exactly the rest.

use std::time::Duration;

use tokio::time::Instant;

use super::{kept::Kept, offset::Offset};
use crate::compact::{Moment, Queue};

/// Bytes that a kept update takes besides its body: its [`Entry`], and as much again for the
/// room that the queue and the allocator leave.
const ENTRY_BYTES: usize = 2 * size_of::<Entry>();

/// How much is kept for one user, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How long after the loss of its connection a session may be resumed.
    pub(super) window: Duration,
    pub(super) updates: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Log {
    /// Distinguishes this log's offsets from those of every other log, including the
    /// same user's log on another instance or before a restart.
    tag: u32,
    /// The number of the newest event.
    last: u64,
    /// Events up to this number may be missing.
    floor: u64,
    /// The number that the newest hole took; 0 if there was none.
    last_hole: u64,
    entries: Queue<Entry>,
    /// Total size of the entries.
    bytes: usize,
    /// Total size of the entries of all logs.
    kept: Kept,
}

/// The updates of a log that sessions may still ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Updates that arrived at this moment or later.
    since: Option<Instant>,
    /// Updates with an event after this number.
    after: Option<u64>,
}

impl Wanted {
    pub(super) fn since(moment: Instant) -> Self {
        let since = Some(moment);
        Self { since, after: None }
    }

    pub(super) fn after(number: u64) -> Self {
        let after = Some(number);
        Self { since: None, after }
    }

    /// The updates that `self` or `other` wants.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            since: self.since.into_iter().chain(other.since).min(),
            after: self.after.into_iter().chain(other.after).min(),
        }
    }

    fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// One update.
#[derive(Debug)]
pub(super) struct Entry {
    /// The number of its `chat3:update`.
    pub(super) first: u64,
    pub(super) body: Box<[u8]>,
    at: Moment,
    /// How many events it has.
    events: u8,
}

impl Entry {
    /// The number of its last event.
    pub(super) fn last(&self) -> u64 {
        self.first + u64::from(self.events) - 1
    }

    fn bytes(&self) -> usize {
        self.body.len() + ENTRY_BYTES
    }
}

impl Log {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            tag: rand::random(),
            last: 0,
            floor: 0,
            last_hole: 0,
            entries: Queue::default(),
            bytes: 0,
            kept,
        }
    }

    /// Whether the log holds no update.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of the newest event.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Adds an update that has `events` events, at least one; returns the number of the
    /// first.
    pub(super) fn append(&mut self, body: &[u8], events: u8, now: Instant) -> u64 {
        let entry = Entry {
            first: self.last + 1,
            body: body.into(),
            at: self.kept.era().moment(now),
            events,
        };
        self.last = entry.last();
        self.bytes += entry.bytes();
        self.kept.add(entry.bytes());
        let first = entry.first;
        self.entries.push_back(entry);
        first
    }

    /// Records that updates may have been missed after the newest one. The hole takes a
    /// number, so a client that has not seen a later event can no longer be sent
    /// everything it missed.
    pub(super) fn hole(&mut self) {
        self.last += 1;
        self.floor = self.last;
        self.last_hole = self.last;
    }

    /// The number of the newest hole. A session that began before it may have missed
    /// updates.
    pub(super) fn last_hole(&self) -> u64 {
        self.last_hole
    }

    /// Gives up all updates so far; the next [`Log::trim`] drops them. Later updates are
    /// kept again.
    pub(super) fn forget(&mut self) {
        self.floor = self.last;
    }

    /// Whether the log holds every event after `number`.
    pub(super) fn reaches_back_to(&self, number: u64) -> bool {
        (self.floor..=self.last).contains(&number)
    }

    /// The updates with an event after `number`.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Entry> {
        let start = self.entries.partition_point(|entry| entry.last() <= number);
        self.entries.range(start..)
    }

    /// Total size of all updates, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Total size of the updates with an event after `number`, in bytes.
    pub(super) fn bytes_after(&self, number: u64) -> usize {
        self.after(number).map(Entry::bytes).sum()
    }

    /// Drops updates that exceed the limits, are below the floor or are not wanted,
    /// oldest first. Updates with an event after `needed` stay: they are still to be
    /// sent to a socket that is behind.
    pub(super) fn trim(&mut self, limits: Option<Limits>, wanted: Wanted, needed: Option<u64>) {
        let since = wanted.since.map(|since| self.kept.era().moment(since));
        while let Some(oldest) = self.entries.front() {
            let is_wanted = since.is_some_and(|since| oldest.at >= since)
                || wanted.after.is_some_and(|after| oldest.last() > after);
            let is_over = limits.is_some_and(|limits| {
                self.entries.len() > limits.updates || self.bytes > limits.bytes
            });
            let is_kept = is_wanted && !is_over && oldest.last() > self.floor;
            let is_needed = needed.is_some_and(|number| oldest.last() > number);
            if is_needed || is_kept {
                break;
            }
            self.floor = self.floor.max(oldest.last());
            self.bytes -= oldest.bytes();
            self.kept.remove(oldest.bytes());
            self.entries.pop_front();
        }
        if wanted.is_nothing() && needed.is_none() {
            self.floor = self.last;
        }
    }

    /// The offset of event `number`.
    pub(super) fn offset(&self, number: u64) -> Offset {
        Offset::Own {
            log: self.tag,
            number,
        }
    }

    /// The event number in `offset`, if `offset` belongs to this log.
    pub(super) fn number(&self, offset: Offset) -> Option<u64> {
        match offset {
            Offset::Own { log, number } if log == self.tag => Some(number),
            _ => None,
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        for entry in self.entries.iter() {
            self.kept.remove(entry.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        window: Duration::ZERO,
        updates: 5,
        bytes: 5 * (ENTRY_BYTES + 10),
    };

    fn numbers(log: &Log, after: u64) -> Vec<u64> {
        let numbers = |entry: &Entry| entry.first..=entry.last();
        log.after(after).flat_map(numbers).collect()
    }

    #[cfg(feature = "jemalloc")]
    #[test]
    fn kept_updates_cost_what_they_weigh() {
        use crate::compact::bytes_taken_by;

        let now = Instant::now();
        for (users, updates, body) in [
            (1_000, 1, 670),
            (500, 19, 670),
            (50, 300, 257),
            (1, 9_000, 1_100),
        ] {
            let kept = Kept::default();
            let (taken, logs) = bytes_taken_by(|| {
                let log = || {
                    let mut log = Log::new(kept.clone());
                    for _ in 0..updates {
                        log.append(&vec![b'x'; body], 2, now);
                        log.trim(None, Wanted::after(0), None);
                    }
                    log
                };
                std::iter::repeat_with(log).take(users).collect::<Vec<_>>()
            });
            let counted: usize = logs.iter().map(Log::bytes).sum();
            let count = users * updates;
            let most = count * (body * 5 / 4 + 64) + users * size_of::<Log>() + 1_024;
            assert!(
                taken <= most,
                "{} bytes for an update of {body}",
                taken / count
            );
            // What the limits count.
            assert!(
                taken <= counted * 5 / 4 && counted <= taken * 5 / 4,
                "{taken}, not {counted}"
            );
        }
    }

    #[test]
    fn an_offset_belongs_to_one_log() {
        let log = Log::new(Kept::default());
        let offset = log.offset(0xabc);
        assert_eq!(log.number(offset), Some(0xabc));
        assert_eq!(Log::new(Kept::default()).number(offset), None);
    }

    #[test]
    fn a_hole_and_forgetting_end_what_can_be_replayed() {
        let mut log = Log::new(Kept::default());
        let now = Instant::now();
        log.append(b"", 2, now);
        assert!(log.reaches_back_to(0) && log.reaches_back_to(2));
        log.hole();
        assert!(!log.reaches_back_to(2), "the hole comes after it");
        assert!(log.reaches_back_to(3));
        log.append(b"", 1, now);
        assert_eq!(numbers(&log, 3), [4]);
        log.forget();
        assert!(!log.reaches_back_to(3));
        assert!(log.reaches_back_to(4));
        assert!(!log.reaches_back_to(5), "it has not happened yet");
        log.trim(Some(LIMITS), Wanted::after(0), None);
        assert!(numbers(&log, 0).is_empty());
    }

    #[test]
    fn what_nobody_wants_goes() {
        let mut log = Log::new(Kept::default());
        let start = Instant::now();
        for seconds in 0..5 {
            log.append(b"", 1, start + Duration::from_secs(seconds));
        }
        log.trim(Some(LIMITS), Wanted::since(start), None);
        assert!(log.reaches_back_to(0));
        let since = Wanted::since(start + Duration::from_secs(2));
        log.trim(Some(LIMITS), since.or(Wanted::after(1)), None);
        assert_eq!(numbers(&log, 0), [2, 3, 4, 5]);
        log.trim(Some(LIMITS), since.or(Wanted::after(3)), None);
        assert_eq!(numbers(&log, 0), [3, 4, 5]);
        assert!(log.reaches_back_to(2) && !log.reaches_back_to(1));
        log.trim(Some(LIMITS), Wanted::default(), None);
        assert!(log.is_empty() && log.reaches_back_to(5));
    }

    #[test]
    fn what_somebody_is_being_given_stays() {
        let kept = Kept::default();
        let mut log = Log::new(kept.clone());
        let now = Instant::now();
        for _ in 0..20 {
            log.append(b"0123456789", 1, now);
            log.trim(Some(LIMITS), Wanted::after(0), Some(3));
        }
        assert_eq!(numbers(&log, 3), (4..=20).collect::<Vec<_>>());
        assert!(log.reaches_back_to(3));
        log.trim(Some(LIMITS), Wanted::after(0), None);
        assert_eq!(numbers(&log, 0), (16..=20).collect::<Vec<_>>());
        log.trim(None, Wanted::default(), None);
        assert_eq!(kept.bytes(), 0);
    }

    proptest! {
        #[test]
        fn what_it_reaches_back_to_is_complete(
            steps in proptest::collection::vec((0_u8..6, 1_u8..3, 0_usize..40), 0..80)
        ) {
            let kept = Kept::default();
            let mut log = Log::new(kept.clone());
            let mut now = Instant::now();
            let mut last = 0;
            // The numbers that holes took.
            let mut holes = Vec::new();
            for (step, events, size) in steps {
                match step {
                    0 => {
                        log.hole();
                        last += 1;
                        holes.push(last);
                    }
                    1 => log.forget(),
                    2 => now += Duration::from_secs(4),
                    _ => {
                        let first = log.append(&vec![0; size], events, now);
                        prop_assert_eq!(first, last + 1);
                        last += u64::from(events);
                    }
                }
                let since = now.checked_sub(Duration::from_secs(10)).unwrap_or(now);
                log.trim(Some(LIMITS), Wanted::since(since), None);
                prop_assert!(log.entries.len() <= LIMITS.updates);
                prop_assert!(log.bytes <= LIMITS.bytes);
                let bytes: usize = log.entries.iter().map(Entry::bytes).sum();
                prop_assert_eq!(log.bytes, bytes);
                prop_assert_eq!(kept.bytes(), bytes);
                prop_assert!(!log.reaches_back_to(last + 1));
                prop_assert!(log.reaches_back_to(last));
                for number in 0..=last {
                    if log.reaches_back_to(number) {
                        let after: Vec<u64> = numbers(&log, number)
                            .into_iter()
                            .filter(|event| *event > number)
                            .collect();
                        prop_assert_eq!(after, (number + 1..=last).collect::<Vec<_>>());
                        prop_assert!(holes.iter().all(|hole| *hole <= number));
                    }
                }
            }
            drop(log);
            prop_assert_eq!(kept.bytes(), 0);
        }
    }
}
