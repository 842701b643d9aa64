//! Limits the rate of one socket's events.

use std::sync::atomic::{AtomicBool, Ordering};

use governor::{DefaultDirectRateLimiter, RateLimiter};

use super::{Verdict, quota};

/// Limits the rate of one socket's events.
pub struct EventLimit {
    /// `None`: no limit.
    limiter: Option<DefaultDirectRateLimiter>,
    exceeded: AtomicBool,
}

impl EventLimit {
    /// `per_second` events on average, five times as many at once; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        Self {
            limiter: quota(per_second).map(RateLimiter::direct),
            exceeded: AtomicBool::new(false),
        }
    }

    /// Judges one more event. Once the limit was exceeded, it stays exceeded.
    pub fn check(&self) -> Verdict {
        let is_exceeded = || match &self.limiter {
            Some(limiter) => limiter.check().is_err(),
            None => false,
        };
        match self.exceeded.load(Ordering::Relaxed) || is_exceeded() {
            false => Verdict::Allowed,
            true if self.exceeded.swap(true, Ordering::Relaxed) => Verdict::Ignored,
            true => Verdict::TooMany,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_too_many_is_told_apart_and_all_after_it_are_ignored() {
        let limit = EventLimit::new(2);
        let verdicts: Vec<_> = (0..30).map(|_| limit.check()).collect();
        let allowed = verdicts.iter().take_while(|it| **it == Verdict::Allowed);
        let allowed = allowed.count();
        assert!((10..13).contains(&allowed), "{verdicts:?}");
        assert_eq!(verdicts[allowed], Verdict::TooMany);
        let ignored = |verdict: &Verdict| *verdict == Verdict::Ignored;
        assert!(verdicts[allowed + 1..].iter().all(ignored));
    }

    #[test]
    fn zero_is_no_limit() {
        let limit = EventLimit::new(0);
        assert!((0..10_000).all(|_| limit.check() == Verdict::Allowed));
    }
}
