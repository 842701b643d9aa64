//! A bounded run of a log's entries, in the order of their offsets. Pure: time is an
//! argument, and users are bits.
//!
//! There may be a million entries: one is a single allocation, and 48 bytes in the queue.
//!
//! Entries have a number as well as an offset. Offsets are the broker's: they have gaps, and
//! begin anew when the log was made again. Numbers are this process's, and always grow: that
//! of an entry is its offset and a distance that changes at each cut.
//!
//! Invariant: everything with a number above the floor is here, and offsets ascend. The
//! newest entry is always here, unless the ring was cut.

use std::time::{Duration, SystemTime};

use crate::{
    broker::{Delivery, LogPosition},
    compact::{Moment, Queue},
};

/// Bytes that an entry takes besides its body and routing key: itself, and what room the queue
/// and the allocator leave.
const ENTRY_BYTES: usize = size_of::<Entry>() + 32;

/// No publisher's time.
const NEVER: u64 = u64::MAX;

/// How much is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bodies, routing keys and what it takes to hold them.
    pub bytes: usize,
    /// What came longer ago is dropped.
    pub age: Duration,
}

/// What the log has at one offset.
pub(crate) struct Entry {
    /// The routing key, and then the body.
    text: Box<[u8]>,
    offset: u64,
    /// The publisher's time, in milliseconds since 1970.
    published: u64,
    /// Marks of the users that the routing key may address.
    recipients: u64,
    /// When it came, or was published if it was read back.
    at: Moment,
    /// Bytes of the routing key: AMQP allows 255.
    key: u16,
}

impl Entry {
    /// What came at that moment, or was published then.
    pub(super) fn new(offset: u64, delivery: &Delivery<'_>, recipients: u64, at: Moment) -> Self {
        let key = delivery.routing_key.as_bytes();
        let published = delivery.published_at;
        let published = published.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let published = published.and_then(|since| u64::try_from(since.as_millis()).ok());
        Self {
            text: [key, delivery.body].concat().into(),
            offset,
            published: published.unwrap_or(NEVER),
            recipients,
            at,
            key: key.len().try_into().expect("a short text of AMQP"),
        }
    }

    pub(super) fn may_be_for(&self, mark: u64) -> bool {
        self.recipients & mark == mark
    }

    pub(super) fn routing_key(&self) -> &str {
        let key = &self.text[..usize::from(self.key)];
        std::str::from_utf8(key).expect("it was a text")
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn bytes(&self) -> usize {
        self.text.len() + ENTRY_BYTES
    }

    fn published_at(&self) -> Option<SystemTime> {
        let since = Some(self.published).filter(|published| *published != NEVER)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(since))
    }
}

#[derive(Default)]
pub(super) struct Ring {
    pub(super) bounds: Bounds,
    /// Nothing more is put before the oldest entry.
    pub(super) is_read_back: bool,
    entries: Queue<Entry>,
    bytes: usize,
    /// What is added to an offset, modulo 2^64, to make it a number.
    distance: u64,
    last: u64,
    floor: u64,
    cuts: u64,
}

impl Ring {
    /// Adds an entry behind all others. Offsets ascend from one cut to the next.
    pub(super) fn push(&mut self, entry: Entry) {
        let offset = entry.offset;
        if self.entries.is_empty() {
            // Before the first entry there is a number for each offset that may be read back.
            self.distance = match self.cuts {
                0 => 1,
                _ => (self.last + 1).wrapping_sub(offset),
            };
            self.floor = offset.wrapping_add(self.distance) - 1;
        }
        self.last = self.number(&entry);
        self.bytes += entry.bytes();
        let now = entry.at;
        self.entries.push_back(entry);
        self.trim(now);
    }

    /// Adds entries right before the one at `until`, the newest first, as long as there is
    /// room; returns whether there is more. Does nothing if the ring has changed there since.
    pub(super) fn prepend(&mut self, until: u64, entries: Vec<Entry>, now: Moment) -> bool {
        if self.begins() != Some(until) {
            return false;
        }
        for mut entry in entries.into_iter().rev() {
            if self.bytes + entry.bytes() > self.bounds.bytes {
                return false;
            }
            // Publishers' clocks differ, and some repeat old updates.
            let next_at = self.entries.front().map_or(now, |next| next.at);
            entry.at = entry.at.max(now.before(self.bounds.age)).min(next_at);
            self.bytes += entry.bytes();
            self.floor = self.number(&entry) - 1;
            self.entries.push_front(entry);
        }
        true
    }

    /// What comes next may not follow what is here.
    pub(super) fn cut(&mut self) {
        self.entries = Queue::default();
        self.bytes = 0;
        self.last += 1;
        self.floor = self.last;
        self.cuts += 1;
        self.is_read_back = true;
    }

    /// The oldest entry, if something can be put before it: behind a cut, nothing can.
    pub(super) fn begins(&self) -> Option<u64> {
        self.oldest().filter(|_| self.cuts == 0)
    }

    /// Whether the entry at `offset` is here, or will not come.
    pub(super) fn has_decided(&self, offset: u64) -> bool {
        let newest = self.entries.back().map(Entry::offset);
        let has_come = newest.is_some_and(|newest| newest >= offset);
        let is_kept = self.oldest().is_some_and(|oldest| oldest <= offset);
        has_come && (is_kept || self.is_read_back)
    }

    fn oldest(&self) -> Option<u64> {
        self.entries.front().map(Entry::offset)
    }

    pub(super) fn newest(&self) -> Option<Delivery<'_>> {
        self.entries.back().map(|entry| self.delivery(entry))
    }

    /// An entry as it was delivered, and its place.
    pub(super) fn delivery<'a>(&self, entry: &'a Entry) -> Delivery<'a> {
        Delivery {
            body: &entry.text[usize::from(entry.key)..],
            routing_key: entry.routing_key(),
            published_at: entry.published_at(),
            position: Some(LogPosition {
                offset: entry.offset,
                number: self.number(entry),
            }),
        }
    }

    fn number(&self, entry: &Entry) -> u64 {
        entry.offset.wrapping_add(self.distance)
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn at(&self, offset: u64) -> Option<Delivery<'_>> {
        let index = self.entries.binary_search_by_key(&offset, Entry::offset);
        index.ok().map(|index| self.delivery(&self.entries[index]))
    }

    /// The entries with a greater number than `number`.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Entry> {
        let start = self
            .entries
            .partition_point(|entry| self.number(entry) <= number);
        self.entries.range(start..)
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The time between the oldest and the newest entry.
    pub(super) fn age(&self) -> Duration {
        let span = self.entries.front().zip(self.entries.back());
        span.map_or(Duration::ZERO, |(oldest, newest)| {
            newest.at.since(oldest.at)
        })
    }

    fn trim(&mut self, now: Moment) {
        // An entry is somebody's place until the next one is too old as well.
        while let (Some(oldest), Some(next)) = (self.entries.front(), self.entries.get(1))
            && (self.bytes > self.bounds.bytes || now.since(next.at) > self.bounds.age)
        {
            self.floor = self.number(oldest);
            self.bytes -= oldest.bytes();
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::compact::Era;

    const AGE: Duration = Duration::from_secs(100);

    fn ring(bytes: usize) -> Ring {
        Ring {
            bounds: Bounds { bytes, age: AGE },
            ..Ring::default()
        }
    }

    fn delivery(offset: u64) -> Delivery<'static> {
        Delivery {
            body: b"a body",
            routing_key: "key",
            published_at: offset
                .is_multiple_of(2)
                .then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(offset)),
            position: None,
        }
    }

    fn entry(offset: u64, at: Moment) -> Entry {
        Entry::new(offset, &delivery(offset), 0, at)
    }

    fn offsets(ring: &Ring) -> Vec<u64> {
        ring.entries.iter().map(Entry::offset).collect()
    }

    #[test]
    fn what_was_delivered_is_what_is_here() {
        let now = Era::begin().moment(Instant::now());
        let mut ring = ring(1 << 20);
        for offset in [5, 6] {
            ring.push(entry(offset, now));
            let number = ring.last();
            let position = Some(LogPosition { offset, number });
            let delivered = Delivery {
                position,
                ..delivery(offset)
            };
            assert_eq!(ring.newest(), Some(delivered));
            assert_eq!(ring.at(offset), Some(delivered));
        }
        assert_eq!(size_of::<Entry>(), 48);
    }

    #[cfg(feature = "jemalloc")]
    #[test]
    fn entries_cost_what_they_weigh() {
        use crate::compact::bytes_taken_by;

        let now = Era::begin().moment(Instant::now());
        for (count, bytes) in [(1_000, 670), (1_300, 257), (9_000, 1_100)] {
            let body = vec![b'x'; bytes];
            let (taken, ring) = bytes_taken_by(|| {
                let mut ring = ring(1 << 30);
                for offset in 0..count {
                    let routing_key = "user.usr_0123456789.message";
                    let delivery = Delivery {
                        body: &body,
                        routing_key,
                        ..delivery(offset)
                    };
                    ring.push(Entry::new(offset, &delivery, 0, now));
                }
                ring
            });
            let count = ring.count();
            let most = count * ((bytes + 27) * 5 / 4 + 64) + 1_024;
            assert!(
                taken <= most,
                "{} bytes for an update of {bytes}",
                taken / count
            );
            // What the limit counts.
            let counted = ring.bytes();
            assert!(
                taken <= counted * 5 / 4 && counted <= taken * 5 / 4,
                "{taken}, not {counted}"
            );
        }
    }

    #[test]
    fn the_oldest_make_way_and_the_floor_follows() {
        let now = Era::begin().moment(Instant::now());
        let mut ring = ring(3 * entry(5, now).bytes());
        for offset in [5, 6, 8, 9] {
            ring.push(entry(offset, now));
        }
        assert_eq!(offsets(&ring), [6, 8, 9]);
        let number = |offset| ring.at(offset).unwrap().position.unwrap().number;
        assert_eq!(ring.floor() + 1, number(6));
        assert_eq!(ring.after(ring.floor()).count(), 3);
        assert_eq!(ring.after(number(8)).count(), 1);
        assert!(ring.at(5).is_none() && ring.at(7).is_none());
    }

    #[test]
    fn after_a_long_silence_the_place_of_all_clients_is_still_here() {
        let (era, begun) = (Era::begin(), Instant::now());
        let mut ring = ring(1 << 20);
        ring.push(entry(1, era.moment(begun)));
        ring.push(entry(2, era.moment(begun)));
        ring.push(entry(3, era.moment(begun + 2 * AGE)));
        assert_eq!(offsets(&ring), [2, 3]);
        ring.push(entry(4, era.moment(begun + 4 * AGE)));
        assert_eq!(offsets(&ring), [3, 4]);
    }

    #[test]
    fn what_is_read_back_goes_before_and_old_timestamps_end_nothing() {
        let now = Era::begin().moment(Instant::now());
        let mut ring = ring(4 * entry(10, now).bytes());
        ring.push(entry(10, now));
        let old = now.before(9 * AGE);
        assert!(ring.prepend(10, vec![entry(7, now), entry(9, old)], now));
        assert_eq!(offsets(&ring), [7, 9, 10]);
        assert!(!ring.prepend(9, vec![entry(3, now)], now), "it begins at 7");
        assert!(!ring.prepend(7, vec![entry(4, now), entry(5, now)], now));
        assert_eq!(offsets(&ring), [5, 7, 9, 10]);
        assert_eq!(
            ring.floor() + 1,
            ring.at(5).unwrap().position.unwrap().number
        );
    }

    #[test]
    fn behind_a_cut_numbers_go_on_and_nothing_goes_before() {
        let now = Era::begin().moment(Instant::now());
        let mut ring = ring(1 << 20);
        ring.push(entry(1_000, now));
        let last = ring.last();
        ring.cut();
        assert!(ring.floor() > last && ring.at(1_000).is_none());
        ring.push(entry(0, now));
        assert!(ring.last() > last + 1);
        assert_eq!(ring.begins(), None);
        assert!(!ring.prepend(0, Vec::new(), now));
        assert!(ring.has_decided(0) && !ring.has_decided(1));
    }
}
