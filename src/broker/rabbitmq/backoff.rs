//! When to connect again: at once after a healthy connection, with growing delays while
//! the broker is away or refuses.
//!
//! Pure: time is an argument. Invariant: no series of failures, whatever their kinds,
//! leads to more than [`AT_ONCE_PER_MINUTE`] reconnects without a delay in a minute,
//! unless each connection was healthy.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::link_error::LinkError;

/// How delays grow, and up to what.
#[derive(Clone, Copy)]
struct Growth {
    factor: f64,
    ceiling: Duration,
}

/// While the broker is away: the wait after its return should be a small part of the
/// time that it was away. The ceiling is the documented one.
const WHILE_AWAY: Growth = Growth {
    factor: 1.25,
    ceiling: Duration::from_secs(30),
};

/// While the broker refuses what is configured: only an operator can mend it.
const WHILE_REFUSED: Growth = Growth {
    factor: 2.0,
    ceiling: Duration::from_secs(60),
};

/// A link that lived this long was healthy: the next loss starts a new backoff.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// How many connections that soon ended are replaced at once in a minute, where the next
/// one differs: a flood of unreadable messages must not become a flood of reconnects.
const AT_ONCE_PER_MINUTE: usize = 20;

/// Decides how long to wait before each connection attempt.
pub(super) struct Backoff {
    first: Duration,
    nodes: usize,
    delays: Delays,
    at_once: AtOnce,
}

impl Backoff {
    /// `first` is the delay after the first failure; `nodes`, how many nodes a connection
    /// may lead to.
    pub(super) fn new(first: Duration, nodes: usize) -> Self {
        Self {
            first,
            nodes,
            delays: Delays::new(first),
            at_once: AtOnce::default(),
        }
    }

    /// The delay after an attempt to connect has failed.
    pub(super) fn after_failure(&mut self, error: &LinkError) -> Duration {
        self.delays.next(growth(error))
    }

    /// The delay after a link was lost that had lived for `lifetime`.
    pub(super) fn after_loss(
        &mut self,
        reason: &LinkError,
        lifetime: Duration,
        now: Instant,
    ) -> Duration {
        let was_healthy = lifetime >= HEALTHY_AFTER;
        if was_healthy {
            self.delays = Delays::new(self.first);
        }
        let is_passing = !reason.is_configuration();
        let differs = match reason {
            // The next connection is without the message that could not be read.
            LinkError::Unreadable(_) => true,
            // It was not the node's fault.
            LinkError::Worn => false,
            // The next connection is probably to another node.
            _ => is_passing && self.nodes > 1,
        };
        match (was_healthy && is_passing) || (differs && self.at_once.take(now)) {
            true => Duration::ZERO,
            false => self.after_failure(reason),
        }
    }
}

fn growth(error: &LinkError) -> Growth {
    match error.is_configuration() {
        true => WHILE_REFUSED,
        false => WHILE_AWAY,
    }
}

/// When reconnects were made without a delay, in the last minute.
#[derive(Default)]
struct AtOnce(VecDeque<Instant>);

impl AtOnce {
    /// Whether another one may be made now.
    fn take(&mut self, now: Instant) -> bool {
        let is_old = |at: &mut Instant| now.duration_since(*at) > Duration::from_secs(60);
        while self.0.pop_front_if(is_old).is_some() {}
        let may = self.0.len() < AT_ONCE_PER_MINUTE;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

/// The configured delay, then longer ones.
struct Delays {
    next: Duration,
    is_first: bool,
}

impl Delays {
    fn new(first: Duration) -> Self {
        Self {
            next: first,
            is_first: true,
        }
    }

    /// The next delay, at most the ceiling. All but the first are shortened at
    /// random, also at the ceiling, so that a fleet of gateways does not return to
    /// a restarted broker in one wave.
    fn next(&mut self, growth: Growth) -> Duration {
        let delay = self.next.min(growth.ceiling);
        self.next = delay.mul_f64(growth.factor);
        match std::mem::replace(&mut self.is_first, false) {
            true => delay,
            false => delay.mul_f64(rand::random_range(0.5..=1.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::link_error::ServerClose, *};

    #[test]
    fn reconnect_delays_grow_with_jitter_up_to_the_ceiling() {
        for growth in [WHILE_AWAY, WHILE_REFUSED] {
            let mut delays = Delays::new(Duration::from_secs(5));
            assert_eq!(delays.next(growth), Duration::from_secs(5));
            let second = delays.next(growth).as_secs_f64() / growth.factor;
            assert!((2.5..=5.0).contains(&second), "{second}");
            let later: Vec<_> = (0..50).map(|_| delays.next(growth)).collect();
            assert!(later.iter().all(|delay| *delay <= growth.ceiling));
            // Still spread out where the growth has ended.
            assert!(later[40..].windows(2).any(|pair| pair[0] != pair[1]));
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn backoff(nodes: usize) -> Backoff {
        Backoff::new(5 * SECOND, nodes)
    }

    fn broke() -> LinkError {
        LinkError::Amqp("the connection broke".to_owned())
    }

    fn refused() -> LinkError {
        LinkError::Closed(ServerClose::new(403, "ACCESS_REFUSED", (0, 0)))
    }

    #[test]
    fn a_healthy_link_is_replaced_at_once_and_the_delays_begin_anew() {
        let mut backoff = backoff(1);
        let now = Instant::now();
        for _ in 0..20 {
            backoff.after_failure(&broke());
        }
        assert!(backoff.after_failure(&broke()) > 10 * SECOND);
        assert_eq!(
            backoff.after_loss(&broke(), HEALTHY_AFTER, now),
            Duration::ZERO
        );
        assert_eq!(backoff.after_failure(&broke()), 5 * SECOND);
        // Not if it is the configuration that ended it.
        let delay = backoff.after_loss(&refused(), HEALTHY_AFTER, now);
        assert_eq!(delay, 5 * SECOND);
    }

    #[test]
    fn a_link_that_soon_ends_does_not_reset_the_delays() {
        let mut backoff = backoff(1);
        let now = Instant::now();
        let soon = Duration::from_millis(9_999);
        for reason in [broke(), LinkError::Worn] {
            assert!(backoff.after_loss(&reason, soon, now) > Duration::ZERO);
        }
        assert_ne!(backoff.after_failure(&broke()), 5 * SECOND);
    }

    #[test]
    fn a_refusal_is_retried_more_rarely_than_an_absence() {
        let (mut away, mut forbidden) = (backoff(1), backoff(1));
        for _ in 0..30 {
            assert!(away.after_failure(&broke()) <= 30 * SECOND);
            forbidden.after_failure(&refused());
        }
        let longest = (0..20).map(|_| forbidden.after_failure(&refused())).max();
        assert!(longest > Some(30 * SECOND) && longest <= Some(60 * SECOND));
    }

    #[test]
    fn transient_losses_are_retried_at_once_a_limited_number_of_times_a_minute() {
        let unreadable = || LinkError::Unreadable("it is malformed");
        for (nodes, reason, expected) in [
            (1, unreadable(), AT_ONCE_PER_MINUTE),
            (3, broke(), AT_ONCE_PER_MINUTE),
            (1, broke(), 0),
            (3, refused(), 0),
            (3, LinkError::Worn, 0),
        ] {
            let mut backoff = backoff(nodes);
            let start = Instant::now();
            let mut at_once = |now: Instant| {
                let delays = (0..30).map(|_| backoff.after_loss(&reason, SECOND, now));
                delays.filter(Duration::is_zero).count()
            };
            assert_eq!(at_once(start), expected, "{reason}");
            assert_eq!(at_once(start + 60 * SECOND), 0, "{reason}");
            assert_eq!(at_once(start + 61 * SECOND), expected, "{reason}");
        }
    }
}
