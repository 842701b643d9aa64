//! A bounded run of a log's entries, in the order of their offsets. Pure: time is an
//! argument, and users are bits.
//!
//! Entries have a number as well as an offset. Offsets are the broker's: they have gaps, and
//! begin anew when the log was made again. Numbers are this process's, and always grow: that
//! of an entry is its offset and a distance that changes at each cut.
//!
//! Invariant: everything with a number above the floor is here, and offsets ascend. The
//! newest entry is always here, unless the ring was cut.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::broker::{Delivery, LogPosition};

/// Bytes that an entry takes besides its body and routing key: itself, and what the allocator
/// and `Bytes` need for the two.
const ENTRY_BYTES: usize = size_of::<Entry>() + 64;

/// How much is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bodies, routing keys and what it takes to hold them.
    pub bytes: usize,
    /// What came longer ago is dropped.
    pub age: Duration,
}

pub(super) struct Entry {
    /// When it came, or was published if it was read back.
    pub(super) at: Instant,
    /// Marks of the users that the routing key may address.
    pub(super) recipients: u64,
    pub(super) delivery: Delivery,
}

impl Entry {
    fn offset(&self) -> u64 {
        self.delivery.position.map_or(0, |position| position.offset)
    }

    fn number(&self) -> u64 {
        self.delivery.position.map_or(0, |position| position.number)
    }

    fn bytes(&self) -> usize {
        self.delivery.body.len() + self.delivery.routing_key.len() + ENTRY_BYTES
    }
}

#[derive(Default)]
pub(super) struct Ring {
    pub(super) bounds: Bounds,
    /// Nothing more is put before the oldest entry.
    pub(super) is_read_back: bool,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// What is added to an offset, modulo 2^64, to make it a number.
    distance: u64,
    last: u64,
    floor: u64,
    cuts: u64,
}

impl Ring {
    /// Adds an entry behind all others. Offsets ascend from one cut to the next.
    pub(super) fn push(&mut self, offset: u64, mut entry: Entry) {
        if self.entries.is_empty() {
            // Before the first entry there is a number for each offset that may be read back.
            self.distance = match self.cuts {
                0 => 1,
                _ => (self.last + 1).wrapping_sub(offset),
            };
            self.floor = offset.wrapping_add(self.distance) - 1;
        }
        let number = offset.wrapping_add(self.distance);
        entry.delivery.position = Some(LogPosition { offset, number });
        self.last = number;
        self.bytes += entry.bytes();
        let now = entry.at;
        self.entries.push_back(entry);
        self.trim(now);
    }

    /// Adds entries right before the one at `until`, the newest first, as long as there is
    /// room; returns whether there is more. Does nothing if the ring has changed there since.
    pub(super) fn prepend(&mut self, until: u64, entries: Vec<(u64, Entry)>, now: Instant) -> bool {
        if self.begins() != Some(until) {
            return false;
        }
        for (offset, mut entry) in entries.into_iter().rev() {
            if self.bytes + entry.bytes() > self.bounds.bytes {
                return false;
            }
            // Publishers' clocks differ, and some repeat old updates.
            let next_at = self.entries.front().map_or(now, |next| next.at);
            let oldest_at = now.checked_sub(self.bounds.age).unwrap_or(entry.at);
            entry.at = entry.at.max(oldest_at).min(next_at);
            let number = offset.wrapping_add(self.distance);
            entry.delivery.position = Some(LogPosition { offset, number });
            self.bytes += entry.bytes();
            self.floor = number - 1;
            self.entries.push_front(entry);
        }
        true
    }

    /// What comes next may not follow what is here.
    pub(super) fn cut(&mut self) {
        self.entries = VecDeque::new();
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

    pub(super) fn newest(&self) -> Option<&Delivery> {
        self.entries.back().map(|entry| &entry.delivery)
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn at(&self, offset: u64) -> Option<&Delivery> {
        let index = self.entries.binary_search_by_key(&offset, Entry::offset);
        index.ok().map(|index| &self.entries[index].delivery)
    }

    /// The entries with a greater number than `number`.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Entry> {
        let start = self
            .entries
            .partition_point(|entry| entry.number() <= number);
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
            newest.at.saturating_duration_since(oldest.at)
        })
    }

    fn trim(&mut self, now: Instant) {
        // An entry is somebody's place until the next one is too old as well.
        while let (Some(oldest), Some(next)) = (self.entries.front(), self.entries.get(1))
            && (self.bytes > self.bounds.bytes
                || now.saturating_duration_since(next.at) > self.bounds.age)
        {
            self.floor = oldest.number();
            self.bytes -= oldest.bytes();
            self.entries.pop_front();
        }
        // Gives back the memory that a burst took.
        if self.entries.capacity() > 4 * self.entries.len().max(256) {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(100);

    fn ring(bytes: usize) -> Ring {
        Ring {
            bounds: Bounds { bytes, age: AGE },
            ..Ring::default()
        }
    }

    fn entry(at: Instant) -> Entry {
        Entry {
            at,
            recipients: 0,
            delivery: Delivery {
                body: "a body".into(),
                routing_key: "key".to_owned(),
                published_at: None,
                position: None,
            },
        }
    }

    fn offsets(ring: &Ring) -> Vec<u64> {
        ring.entries.iter().map(Entry::offset).collect()
    }

    #[test]
    fn the_oldest_make_way_and_the_floor_follows() {
        let now = Instant::now();
        let mut ring = ring(3 * entry(now).bytes());
        for offset in [5, 6, 8, 9] {
            ring.push(offset, entry(now));
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
        let begun = Instant::now();
        let mut ring = ring(1 << 20);
        ring.push(1, entry(begun));
        ring.push(2, entry(begun));
        ring.push(3, entry(begun + 2 * AGE));
        assert_eq!(offsets(&ring), [2, 3]);
        ring.push(4, entry(begun + 4 * AGE));
        assert_eq!(offsets(&ring), [3, 4]);
    }

    #[test]
    fn what_is_read_back_goes_before_and_old_timestamps_end_nothing() {
        let now = Instant::now() + 100 * AGE;
        let mut ring = ring(4 * entry(now).bytes());
        ring.push(10, entry(now));
        let old = now.checked_sub(9 * AGE).unwrap();
        assert!(ring.prepend(10, vec![(7, entry(now)), (9, entry(old))], now));
        assert_eq!(offsets(&ring), [7, 9, 10]);
        assert!(
            !ring.prepend(9, vec![(3, entry(now))], now),
            "it begins at 7"
        );
        assert!(!ring.prepend(7, vec![(4, entry(now)), (5, entry(now))], now));
        assert_eq!(offsets(&ring), [5, 7, 9, 10]);
        assert_eq!(
            ring.floor() + 1,
            ring.at(5).unwrap().position.unwrap().number
        );
    }

    #[test]
    fn behind_a_cut_numbers_go_on_and_nothing_goes_before() {
        let now = Instant::now();
        let mut ring = ring(1 << 20);
        ring.push(1_000, entry(now));
        let last = ring.last();
        ring.cut();
        assert!(ring.floor() > last && ring.at(1_000).is_none());
        ring.push(0, entry(now));
        assert!(ring.last() > last + 1);
        assert_eq!(ring.begins(), None);
        assert!(!ring.prepend(0, Vec::new(), now));
        assert!(ring.has_decided(0) && !ring.has_decided(1));
    }
}
