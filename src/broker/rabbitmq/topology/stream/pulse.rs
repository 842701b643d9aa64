//! Whether the reader lives: markers that the instance publishes must come back through
//! the stream.
//!
//! A consumer of a stream can fall silent without an end: RabbitMQ has had such faults. A
//! quiet stream looks the same, so the instance publishes a marker of its own from time to
//! time. Pure: time is an argument. Invariant: a marker that RabbitMQ has not taken, as when
//! it is short of memory or disk, says nothing about the reader.

use std::time::Duration;

use tokio::time::Instant;

/// Between two markers.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// How long a marker may take, while nothing else comes either.
const PATIENCE: Duration = Duration::from_secs(10);

/// The markers of one attachment.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    begun: Option<(u64, Instant)>,
    /// Since when RabbitMQ has had a marker that has not come back.
    waiting_since: Option<Instant>,
    came_back: u64,
    last_message: Option<Instant>,
}

impl Pulse {
    /// The marker of this number is about to be published.
    pub(super) fn begin(&mut self, number: u64, now: Instant) {
        self.begun = Some((number, now));
    }

    /// RabbitMQ has taken the marker of this number. It may have come back before.
    pub(super) fn taken(&mut self, number: u64, now: Instant) {
        if number > self.came_back {
            self.waiting_since.get_or_insert(now);
        }
    }

    /// Something has come.
    pub(super) fn message(&mut self, now: Instant) {
        self.last_message = Some(now);
    }

    /// The marker of this number has come back; returns how long it took, if it is the newest.
    pub(super) fn back(&mut self, number: u64, now: Instant) -> Option<Duration> {
        self.came_back = self.came_back.max(number);
        self.waiting_since = None;
        let (_, begun) = self.begun.take_if(|(newest, _)| *newest == number)?;
        Some(now.duration_since(begun))
    }

    /// Whether the reader should have seen something by now.
    pub(super) fn has_stopped(&self, now: Instant) -> bool {
        let is_long_ago = |since: Option<Instant>| {
            since.is_some_and(|since| now.saturating_duration_since(since) > PATIENCE)
        };
        // A reader that works off a backlog sees the marker late.
        is_long_ago(self.waiting_since) && self.last_message.is_none_or(|at| is_long_ago(Some(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_has_stopped_when_neither_a_taken_marker_nor_anything_else_comes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::default();
        pulse.begin(1, at(0));
        // Not taken: RabbitMQ may be short of memory.
        assert!(!pulse.has_stopped(at(60)));
        pulse.taken(1, at(60));
        assert!(!pulse.has_stopped(at(65)));
        assert!(pulse.has_stopped(at(71)));
        // A backlog.
        pulse.message(at(70));
        assert!(!pulse.has_stopped(at(71)));
        assert!(pulse.has_stopped(at(81)));
        assert_eq!(pulse.back(1, at(82)), Some(Duration::from_secs(82)));
        assert!(!pulse.has_stopped(at(200)));
    }

    #[test]
    fn a_marker_that_is_back_before_rabbitmq_says_that_it_has_it_is_not_waited_for() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        pulse.begin(1, start);
        assert!(pulse.back(1, start).is_some());
        pulse.taken(1, start);
        assert!(!pulse.has_stopped(start + PATIENCE * 2));
    }
}
