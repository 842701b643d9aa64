//! Sockets that are closed at a pace: their frontends fetch all at once otherwise, right after
//! RabbitMQ came back.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Parts of a second in which as many sockets are closed.
const STEPS: u32 = 20;

/// The share of the handshakes allowed in a second that may come from sockets closed here.
const SHARE: u32 = 4;

/// Sockets closed in a second where handshakes are not limited.
const UNLIMITED: u32 = 250;

type Close = Box<dyn FnOnce() + Send>;

/// The sockets that wait to be closed.
pub(super) struct Resync {
    waiting: Mutex<VecDeque<Close>>,
    per_step: usize,
    /// Between two steps.
    pub(super) pause: Duration,
}

impl Resync {
    /// A pace that leaves most of `max_connects` handshakes in a second (0: any number) to
    /// others.
    pub(super) fn new(max_connects: u32) -> Self {
        let per_second = match max_connects {
            0 => UNLIMITED,
            limit => (limit / SHARE).max(1),
        };
        let steps = STEPS.min(per_second);
        Self {
            waiting: Mutex::default(),
            per_step: (per_second / steps) as usize,
            pause: Duration::from_secs(1) / steps,
        }
    }

    /// Adds a socket.
    pub(super) fn push(&self, close: impl FnOnce() + Send + 'static) {
        self.waiting().push_back(Box::new(close));
    }

    /// The sockets whose turn it is.
    pub(super) fn take(&self) -> Vec<Close> {
        let mut waiting = self.waiting();
        let count = self.per_step.min(waiting.len());
        waiting.drain(..count).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Close>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
