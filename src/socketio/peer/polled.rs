//! How far a client lags behind what Socket.IO was given for it, which is known of a socket that
//! polls: a response takes all that waits for the client.
//!
//! The count is of packets without what is put around them. So what is taken is never less than
//! what was handed, and the difference never grows.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

/// Bytes that a socket is handed ahead of what its client has taken: as much as one round trip
/// may carry. Filled with the smallest updates, these bytes are still fewer packets than a
/// socket's buffer takes.
const MAX_AHEAD_BYTES: u64 = 512 * 1024;

/// Pause between two looks at a client that has not taken what it was handed.
const PAUSE: Duration = Duration::from_millis(5);

/// The same while the client goes on taking nothing.
const MAX_PAUSE: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(super) struct Polled(Mutex<Count>);

#[derive(Default)]
struct Count {
    /// Bytes handed to the socket.
    handed: u64,
    /// Bytes that its client had taken when that was last looked up.
    taken: u64,
}

impl Polled {
    /// Notes that `bytes` were handed to the socket.
    pub(super) fn add(&self, bytes: usize) {
        self.count().handed += bytes as u64;
    }

    /// Whether as much waits for the client as it may be handed ahead. Looks up what it has
    /// taken only where that may be so.
    pub(super) fn is_full(&self, taken: impl FnOnce() -> u64) -> bool {
        let mut count = self.count();
        if count.handed - count.taken > MAX_AHEAD_BYTES {
            count.taken = taken();
            // Pings and the like count as taken, but not as handed. Over time, what is
            // taken would outrun what was handed.
            count.handed = count.handed.max(count.taken);
        }
        count.handed - count.taken > MAX_AHEAD_BYTES
    }

    /// Returns once the client has taken enough, or when `is_over`.
    pub(super) async fn takes_more(&self, taken: impl Fn() -> u64, is_over: impl Fn() -> bool) {
        let mut pause = PAUSE;
        while !is_over() && self.is_full(&taken) {
            sleep(pause).await;
            pause = MAX_PAUSE.min(pause * 2);
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_lag_by_the_limit_and_no_more() {
        let polled = Polled::default();
        let mut handed = 0;
        while !polled.is_full(|| 0) {
            polled.add(20_000);
            handed += 20_000_u64;
        }
        assert!(handed > MAX_AHEAD_BYTES && handed <= MAX_AHEAD_BYTES + 20_000);
        assert!(polled.is_full(|| 0));
        assert!(!polled.is_full(|| 20_000));
    }

    #[test]
    fn pings_do_not_count_as_room() {
        let polled = Polled::default();
        polled.add(600_000);
        // Pings were taken as well.
        assert!(!polled.is_full(|| 900_000));
        polled.add(600_000);
        assert!(polled.is_full(|| 900_000));
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_when_the_client_takes_or_the_socket_is_gone() {
        let polled = Polled::default();
        polled.add(600_000);
        let (begin, moment) = (std::time::Instant::now(), Duration::from_millis(50));
        let taken = || if begin.elapsed() > moment { 600_000 } else { 0 };
        polled.takes_more(taken, || false).await;
        assert!(begin.elapsed() > moment);
        polled.add(600_000);
        let is_over = || begin.elapsed() > 3 * moment;
        polled.takes_more(|| 600_000, is_over).await;
        assert!(begin.elapsed() > 3 * moment);
    }
}
