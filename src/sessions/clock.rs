//! The time as sessions read it. Tests can stop and set it.

use tokio::time::Instant;

/// The monotonic clock of one hub.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// `None`: the clock runs.
    #[cfg(test)]
    stopped_at: std::sync::Mutex<Option<Instant>>,
}

impl Clock {
    #[cfg(not(test))]
    #[allow(clippy::unused_self)] // A stopped clock has something to say.
    pub(super) fn now(&self) -> Instant {
        Instant::now()
    }

    #[cfg(test)]
    pub(super) fn now(&self) -> Instant {
        self.stopped_at.lock().unwrap().unwrap_or_else(Instant::now)
    }

    /// Stops the clock, further on by `time` than it stands.
    #[cfg(test)]
    pub(super) fn advance(&self, time: std::time::Duration) {
        let now = self.now();
        *self.stopped_at.lock().unwrap() = Some(now + time);
    }
}
