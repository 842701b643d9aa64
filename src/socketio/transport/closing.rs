//! Closes transports: one socket's, several over time, those without a socket, or all.
//!
//! A closed transport is a lost one to an unmodified client, which then reconnects by
//! itself; after a DISCONNECT packet, it would stay away.

use std::time::Duration;

use rand::seq::SliceRandom;
use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::time::Instant;

use super::{Connection, Transports, websocket_handshake};

/// The longest pause between two closes: a few sockets need no spreading.
const MAX_CLOSING_PAUSE: Duration = Duration::from_millis(10);

impl Transports {
    /// Closes the transport of one socket, whatever it is.
    pub fn close(&self, socket: &SocketRef) {
        self.close_session(socket.id, websocket_handshake(socket));
    }

    /// A [`Transports::close`] for later, which does not hold the socket until then.
    pub fn closer(&self, socket: &SocketRef) -> impl FnOnce() + use<> {
        let (transports, sid) = (self.clone(), socket.id);
        let websocket = websocket_handshake(socket).cloned();
        move || transports.close_session(sid, websocket.as_ref())
    }

    /// `websocket`: the one that the session began on.
    pub(super) fn close_session(&self, sid: Sid, websocket: Option<&Connection>) {
        let (poll, polling) = self.0.registry.close(sid);
        if let Some(polling) = polling {
            polling.ended.cancel();
        }
        // The poll that waits would go on waiting; the next one is refused.
        if let Some(poll) = poll {
            poll.close();
        }
        // Before the look-up: a takeover that completes meanwhile is found by it.
        self.0.takeovers.close(sid);
        let websocket = websocket.cloned();
        match websocket.or_else(|| self.0.registry.upgraded(sid)) {
            Some(websocket) => websocket.close(),
            None => self.0.engine.end(sid),
        }
    }

    /// Closes the transports of `sockets` one by one over `spread`, so that their
    /// clients do not all come back at once. A socket that still has something to
    /// send, or that polls, is left open.
    pub async fn close_gradually(&self, mut sockets: Vec<SocketRef>, spread: Duration) {
        sockets.shuffle(&mut rand::rng());
        let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX).max(1);
        let pause = (spread / count).min(MAX_CLOSING_PAUSE);
        let start = Instant::now();
        for (socket, number) in sockets.iter().zip(1..) {
            tokio::time::sleep_until(start + pause * number).await;
            if self.has_written_all(socket) && !self.0.registry.is_waited_for(socket.id) {
                self.close(socket);
            }
        }
    }

    /// Closes the websockets whose client has not been let in (yet): its CONNECT must
    /// not meet a server that no longer has any of its namespaces.
    pub fn close_unwatched(&self) {
        let probing = self.0.takeovers.probing();
        for connection in self.0.registry.unwatched(probing) {
            connection.close();
        }
    }

    /// Closes every connection, including those that carry no socket.
    pub fn close_all(&self) {
        for connection in self.0.registry.all() {
            connection.close();
        }
    }
}
