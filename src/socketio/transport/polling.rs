//! An Engine.IO session that began by polling: what it may send, and its end.

use std::{
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use socketioxide::socket::Sid;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    PING_INTERVAL, PING_TIMEOUT, Registry, Transports,
    intake::{Budget, Excess, Sent},
    lock,
};

/// A session that is there.
pub(super) struct Polling {
    budget: Budget,
    /// Cancelled at its end.
    pub(super) ended: CancellationToken,
    polls: Mutex<Polls>,
}

struct Polls {
    /// Requests that wait for something to send.
    waiting: u32,
    /// When the last of them was answered.
    last: Instant,
}

impl Polling {
    fn new(budget: Budget) -> Self {
        Self {
            budget,
            ended: CancellationToken::new(),
            polls: Mutex::new(Polls {
                waiting: 0,
                last: Instant::now(),
            }),
        }
    }

    /// Takes a request's body out of the budget.
    pub(super) fn take(&self, body: &[u8]) -> Result<(), Excess> {
        self.budget.take(body.len(), Sent::in_payload(body))
    }

    /// Whether nobody takes what it is sent: it would be answered into a buffer. A
    /// client that polls is answered with each ping at the latest.
    pub(super) fn is_deaf(&self) -> bool {
        self.is_deaf_for(PING_INTERVAL + PING_TIMEOUT)
    }

    fn is_deaf_for(&self, period: Duration) -> bool {
        let polls = lock(&self.polls);
        polls.waiting == 0 && polls.last.elapsed() > period
    }

    fn change_polls(&self, change: i32) {
        let mut polls = lock(&self.polls);
        polls.waiting = polls.waiting.saturating_add_signed(change);
        polls.last = Instant::now();
    }
}

/// Held by the session itself, by way of its handshake's request: its drop is the
/// session's end.
#[derive(Clone)]
pub(super) struct Life(#[expect(dead_code, reason = "held for its drop")] Arc<Held>);

struct Held {
    polling: Arc<Polling>,
    sid: OnceLock<Sid>,
    registry: Weak<Registry>,
}

/// A session that begins once its OPEN packet says its id.
pub(super) struct Beginning(Arc<Held>);

impl Beginning {
    pub(super) fn new(transports: &Transports) -> Self {
        Self(Arc::new(Held {
            polling: Arc::new(Polling::new(transports.budget())),
            sid: OnceLock::new(),
            registry: Arc::downgrade(&transports.0),
        }))
    }

    pub(super) fn life(&self) -> Life {
        Life(self.0.clone())
    }

    pub(super) fn begin(&self, transports: &Transports, sid: Sid) {
        // It has one id.
        let _ = self.0.sid.set(sid);
        lock(&transports.0.polling).insert(sid, self.0.polling.clone());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.polling.ended.cancel();
        if let (Some(sid), Some(registry)) = (self.sid.get(), self.registry.upgrade()) {
            lock(&registry.polling).remove(sid);
        }
    }
}

/// A poll that waits. Dropped before it is answered, its client has gone away: the
/// session ends, as with a lost websocket.
pub(super) struct Poll {
    transports: Transports,
    sid: Sid,
    polling: Option<Arc<Polling>>,
    is_answered: bool,
}

impl Poll {
    pub(super) fn new(transports: &Transports, sid: Sid) -> Self {
        let polling = transports.polling(sid);
        if let Some(polling) = &polling {
            polling.change_polls(1);
        }
        Self {
            transports: transports.clone(),
            sid,
            polling,
            is_answered: false,
        }
    }

    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        if let Some(polling) = &self.polling {
            polling.change_polls(-1);
        }
        if !self.is_answered {
            self.transports.end_polling(self.sid);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;

    use super::*;
    use crate::socketio::transport::{Endpoint, guard::session_id};
    use crate::{config::HttpConfig, observability::metrics::Metrics};

    fn transports() -> Transports {
        Transports::new(&HttpConfig::default(), Metrics::new())
    }

    #[test]
    fn a_session_is_deaf_if_nobody_polls_for_long() {
        let polling = Polling::new(transports().budget());
        let (moment, long) = (Duration::from_millis(5), Duration::from_secs(3600));
        let wait = || std::thread::sleep(moment * 2);
        wait();
        assert!(polling.is_deaf_for(moment) && !polling.is_deaf_for(long));
        polling.change_polls(1);
        wait();
        assert!(!polling.is_deaf_for(moment), "a poll waits");
        polling.change_polls(-1);
        assert!(!polling.is_deaf_for(long));
    }

    #[tokio::test]
    async fn a_session_is_known_for_as_long_as_it_lives_and_an_unanswered_poll_ends_it() {
        let transports = transports();
        let ended = Arc::new(Mutex::new(Vec::new()));
        let note = ended.clone();
        let note = move |request: Request| lock(&note).extend(session_id(request.uri()));
        transports.serve_by(Endpoint::noting(note));
        let (sid, beginning) = (Sid::new(), Beginning::new(&transports));
        let life = beginning.life();
        beginning.begin(&transports, sid);
        drop(beginning);
        let polling = transports.polling(sid).unwrap();
        Poll::new(&transports, sid).answered();
        assert!(lock(&ended).is_empty());
        drop(Poll::new(&transports, sid));
        assert_eq!(*lock(&ended), [sid]);
        drop(life);
        assert!(polling.ended.is_cancelled());
        assert!(transports.polling(sid).is_none());
    }
}
