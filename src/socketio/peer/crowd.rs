//! A user's live sockets as Socket.IO rooms, so that an event for several of them is
//! encoded once.
//!
//! Invariant: room names are unique to a crowd, so a socket is only sent the events of
//! its own user.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use socketioxide::{BroadcastError, SocketError};

use super::SocketPeer;
use crate::sessions::peer::{Crowd, Event};

/// How many crowds were created so far; numbers the next one.
static CROWDS: AtomicU64 = AtomicU64::new(0);

/// Two Socket.IO rooms: one for sockets that are sent offsets, one for the others.
pub struct Rooms(u64);

impl Default for Rooms {
    fn default() -> Self {
        Self(CROWDS.fetch_add(1, Ordering::Relaxed))
    }
}

impl Rooms {
    fn name(&self, with_offsets: bool) -> String {
        format!("{}{}", if with_offsets { '+' } else { '-' }, self.0)
    }
}

impl Crowd<SocketPeer> for Rooms {
    fn enter(&self, peer: &SocketPeer, with_offsets: bool) {
        peer.socket.join(self.name(with_offsets));
    }

    fn leave(&self, peer: &SocketPeer, with_offsets: bool) {
        peer.socket.leave(self.name(with_offsets));
    }

    /// Returns `false` without saying which socket missed the event: socketioxide does
    /// not tell whose buffer is full.
    fn emit(&self, one: &SocketPeer, event: &Event<'_>) -> bool {
        let room = one.socket.within(self.name(event.offset.is_some()));
        // All sockets are in this process, so the future is ready at once.
        let emitted = match event.offset {
            Some(offset) => room
                .emit(event.name, &(event.payload, offset))
                .now_or_never(),
            None => room.emit(event.name, &(event.payload,)).now_or_never(),
        };
        match emitted {
            Some(Ok(())) => true,
            // A closed socket will report its own disconnect.
            Some(Err(BroadcastError::Socket(errors))) => errors
                .iter()
                .all(|error| matches!(error, SocketError::Closed)),
            Some(Err(_)) | None => false,
        }
    }
}
