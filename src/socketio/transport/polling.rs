//! An Engine.IO session that began by polling: what it may send, whether its client
//! still polls, and its end.
//!
//! Invariant: the registry knows a session from its OPEN packet until the session's
//! handshake request is dropped, which Engine.IO does at the session's end.

use std::{
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use socketioxide::socket::Sid;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    PING_INTERVAL, PING_TIMEOUT, Shared, Transports,
    budget::{Budget, Excess},
    frames::Sent,
    lock,
};

/// A session that exists.
pub(super) struct Polling {
    budget: Budget,
    /// Cancelled when the session ends.
    pub(super) ended: CancellationToken,
    polls: Mutex<Polls>,
}

struct Polls {
    /// Requests that wait for something to send.
    waiting: u32,
    /// When the last poll began or was answered.
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

    /// Takes the body of a client's request out of the budget.
    pub(super) fn take(&self, body: &[u8]) -> Result<(), Excess> {
        self.budget.take(body.len(), Sent::in_payload(body))
    }

    /// Whether nobody takes what the session is sent, so that answers would pile up in a
    /// buffer. A client that polls is answered with each ping at the latest.
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

/// Held by the session itself, inside its handshake's request: the drop is the session's
/// end.
#[derive(Clone)]
pub(super) struct Life(#[expect(dead_code, reason = "held for its drop")] Arc<Held>);

struct Held {
    polling: Arc<Polling>,
    /// Known only once Engine.IO has answered the request that already holds the [`Life`].
    sid: OnceLock<Sid>,
    transports: Weak<Shared>,
}

/// A session that begins once its OPEN packet tells its id.
pub(super) struct Opening(Arc<Held>);

impl Opening {
    pub(super) fn new(transports: &Transports) -> Self {
        Self(Arc::new(Held {
            polling: Arc::new(Polling::new(transports.budget())),
            sid: OnceLock::new(),
            transports: Arc::downgrade(&transports.0),
        }))
    }

    pub(super) fn life(&self) -> Life {
        Life(self.0.clone())
    }

    pub(super) fn begin(&self, transports: &Transports, sid: Sid) {
        // A session has one id.
        let _ = self.0.sid.set(sid);
        let registry = &transports.0.registry;
        registry.begin_polling(sid, self.0.polling.clone());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.polling.ended.cancel();
        if let (Some(sid), Some(transports)) = (self.sid.get(), self.transports.upgrade()) {
            transports.registry.end_polling(*sid);
        }
    }
}

/// A poll that waits. If it is dropped before it is answered, its client has gone away,
/// and the session ends as it does with a lost websocket.
pub(super) struct WaitingPoll {
    transports: Transports,
    sid: Sid,
    polling: Option<Arc<Polling>>,
    is_answered: bool,
}

impl WaitingPoll {
    pub(super) fn new(transports: &Transports, sid: Sid) -> Self {
        let polling = transports.0.registry.polling(sid);
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

impl Drop for WaitingPoll {
    fn drop(&mut self) {
        if let Some(polling) = &self.polling {
            polling.change_polls(-1);
        }
        if !self.is_answered {
            self.transports.0.engine.end(self.sid);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;

    use super::*;
    use crate::socketio::transport::{Engine, session_id};
    use crate::{config::HttpConfig, observability::metrics::Metrics};

    #[test]
    fn a_session_is_deaf_if_nobody_polls_for_long() {
        let polling = Polling::new(Transports::unserved().budget());
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
        let ended = Arc::new(Mutex::new(Vec::new()));
        let note = ended.clone();
        let note = move |request: Request| lock(&note).extend(session_id(request.uri()));
        let engine = Engine::noting(note);
        let transports = Transports::new(&HttpConfig::default(), Metrics::new(), engine);
        let (sid, opening) = (Sid::new(), Opening::new(&transports));
        let life = opening.life();
        opening.begin(&transports, sid);
        drop(opening);
        let registry = &transports.0.registry;
        let polling = registry.polling(sid).unwrap();
        WaitingPoll::new(&transports, sid).answered();
        assert!(lock(&ended).is_empty());
        drop(WaitingPoll::new(&transports, sid));
        assert_eq!(*lock(&ended), [sid]);
        drop(life);
        assert!(polling.ended.is_cancelled());
        assert!(registry.polling(sid).is_none());
    }
}
