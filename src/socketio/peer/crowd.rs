//! A user's live sockets as Socket.IO rooms, so that an event for many of them is
//! encoded once.
//!
//! Invariant: no other crowd uses a room of this name, so a socket in it is only sent
//! what its own user is sent.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use socketioxide::{BroadcastError, SocketError};

use super::SocketPeer;
use crate::sessions::peer::{Crowd, Event};

/// How many crowds there were.
static CROWDS: AtomicU64 = AtomicU64::new(0);

/// Two Socket.IO rooms: one for sockets that are sent offsets, one for all others.
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

    /// If one socket's buffer is full, socketioxide does not tell which one.
    fn emit(&self, one: &SocketPeer, event: &Event<'_>) -> bool {
        let room = one.socket.within(self.name(event.offset.is_some()));
        // All sockets are in this process, so nothing is waited for.
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
