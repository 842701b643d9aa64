//! Sockets that are closed at a pace: their frontends fetch all at once otherwise, right after
//! RabbitMQ came back.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::sleep;

use super::{hub::Hub, peer::Peer};

/// Between two looks for sockets that may have missed updates.
const LOOK: Duration = Duration::from_secs(1);

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
}

impl Resync {
    /// A pace that leaves most of `max_connects` handshakes in a second (0: any number) to
    /// others.
    pub(super) fn new(max_connects: u32) -> Self {
        let per_second = match max_connects {
            0 => UNLIMITED,
            limit => limit / SHARE,
        };
        Self {
            waiting: Mutex::default(),
            per_step: (per_second / STEPS).max(1) as usize,
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

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Close>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for such sockets and closes them, for as long as the hub lives.
pub(super) async fn run<P: Peer>(hub: Weak<Hub<P>>) {
    loop {
        sleep(LOOK).await;
        let Some(hub) = hub.upgrade() else { return };
        for audience in hub.audiences() {
            audience.look_for_gaps();
        }
        loop {
            let sockets = hub.shared.resync.take();
            if sockets.is_empty() {
                break;
            }
            for close in sockets {
                close();
            }
            sleep(Duration::from_secs(1) / STEPS).await;
        }
    }
}
