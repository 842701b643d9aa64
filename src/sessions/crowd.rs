//! A user's live sockets as Socket.IO rooms, so that an event that goes to many
//! of them is encoded once. Knows no update and no session.
//!
//! Invariant: a room's name is this crowd's alone, so who enters it can only be
//! sent what its user is sent.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use serde::Serialize;
use socketioxide::{BroadcastError, SocketError, extract::SocketRef};

/// How many crowds there were.
static CROWDS: AtomicU64 = AtomicU64::new(0);

/// Two rooms: of the sockets that are sent offsets, and of those that are not.
pub(super) struct Crowd(u64);

impl Crowd {
    pub(super) fn new() -> Self {
        Self(CROWDS.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn enter(&self, socket: &SocketRef, with_offsets: bool) {
        socket.join(self.room(with_offsets));
    }

    pub(super) fn leave(&self, socket: &SocketRef, with_offsets: bool) {
        socket.leave(self.room(with_offsets));
    }

    /// Emits to all of a room, of whom `one` is one. `false` if a socket whose
    /// buffer is full did not get it; which one, socketioxide does not tell.
    pub(super) fn emit<T: Serialize>(
        &self,
        one: &SocketRef,
        with_offsets: bool,
        name: &str,
        arguments: &T,
    ) -> bool {
        let room = one.within(self.room(with_offsets));
        // The sockets are this process's: nothing is waited for.
        match room.emit(name, arguments).now_or_never() {
            Some(Ok(())) => true,
            // A socket that is closed will say so itself.
            Some(Err(BroadcastError::Socket(errors))) => errors
                .iter()
                .all(|error| matches!(error, SocketError::Closed)),
            Some(Err(_)) | None => false,
        }
    }

    fn room(&self, with_offsets: bool) -> String {
        format!("{}{}", if with_offsets { '+' } else { '-' }, self.0)
    }
}
