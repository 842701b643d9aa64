//! Sampling of log lines that strangers can cause: the first at once, then one per second.
//!
//! A flood of requests must not flood the log. Code that logs what anybody can cause owns a
//! [`Sampled`]. Each kind of line is sampled separately and says how many lines of its kind
//! were left out before it. Lines left out at the end of a flood appear only in metrics.
//!
//! Imports nothing of this crate.

use std::{
    num::NonZeroU64,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Shortest time between two lines of one kind.
const PERIOD: Duration = Duration::from_secs(1);

/// The lines of one place in the code, which holds this in a `static`.
#[derive(Debug, Default)]
pub struct Sampled(Mutex<Vec<Kind>>);

#[derive(Debug)]
struct Kind {
    name: &'static str,
    logged: Instant,
    left_out: u64,
}

/// Permission to write a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// How many lines of its kind were left out since the last one.
    pub left_out: Option<NonZeroU64>,
}

impl Sampled {
    /// No lines yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Notes one more line of the kind `name`; returns a [`Line`] if it should be logged. A
    /// place has only a few kinds.
    pub fn note(&self, name: &'static str) -> Option<Line> {
        self.note_at(name, Instant::now())
    }

    fn note_at(&self, name: &'static str, now: Instant) -> Option<Line> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kind) = kinds.iter_mut().find(|kind| kind.name == name) else {
            let (logged, left_out) = (now, 0);
            kinds.push(Kind {
                name,
                logged,
                left_out,
            });
            return Some(Line { left_out: None });
        };
        if now.saturating_duration_since(kind.logged) < PERIOD {
            kind.left_out += 1;
            return None;
        }
        kind.logged = now;
        let left_out = NonZeroU64::new(std::mem::take(&mut kind.left_out));
        Some(Line { left_out })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_comes_at_once_then_one_a_second_with_a_count() {
        let (sampled, start) = (Sampled::new(), Instant::now());
        let at = |millis| sampled.note_at("a", start + Duration::from_millis(millis));
        let line = |left_out| {
            Some(Line {
                left_out: NonZeroU64::new(left_out),
            })
        };
        assert_eq!(at(0), line(0));
        assert!((1..=999).all(|millis| at(millis).is_none()));
        assert_eq!(at(1000), line(999));
        assert_eq!(sampled.note_at("b", start), line(0));
        assert_eq!(at(5000), line(0));
    }

    proptest! {
        #[test]
        fn every_one_is_logged_or_counted(pauses in proptest::collection::vec(0..700_u64, 1..100)) {
            let sampled = Sampled::new();
            let mut now = Instant::now();
            let (mut lines, mut counted, mut last) = (0, 0, None);
            for pause in &pauses {
                now += Duration::from_millis(*pause);
                if let Some(line) = sampled.note_at("a", now) {
                    lines += 1;
                    counted += line.left_out.map_or(0, NonZeroU64::get);
                    let earlier = last.replace(now);
                    prop_assert!(earlier.is_none_or(|earlier| now - earlier >= PERIOD));
                }
            }
            counted += sampled.0.lock().unwrap()[0].left_out;
            prop_assert_eq!(lines + counted, pauses.len() as u64);
        }
    }
}
