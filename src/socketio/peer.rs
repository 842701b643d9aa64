//! A Socket.IO socket as the sessions' [`Peer`]: how an event is encoded, and which way it
//! takes.
//!
//! - [`packed`]: events as frames, which are written to the socket's connection in one go
//! - [`polled`]: how far a client that polls lags behind what Socket.IO was given for it
//!
//! A websocket's events are written directly, see [`Connection::ask`]; those of a client that
//! polls go through Socket.IO. A session goes from one to the other once, with its upgrade.

mod packed;
mod polled;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use socketioxide::{TransportType, extract::SocketRef, socket::Sid};

use self::polled::Polled;
use crate::{
    sessions::peer::{Closed, Event, Flushed, Peer},
    socketio::transport::{Connection, MARKER, PING_INTERVAL, PING_TIMEOUT, Transports},
};

/// A session's socket, and the transports that know its connection.
#[derive(Clone)]
pub struct SocketPeer(Arc<Inner>);

struct Inner {
    socket: SocketRef,
    transports: Transports,
    /// The session's number.
    session: u64,
    /// The connection that carries the socket, once that is a websocket.
    websocket: OnceLock<Connection>,
    polled: Polled,
}

impl SocketPeer {
    /// The socket of the session of this number.
    pub fn new(socket: SocketRef, transports: Transports, session: u64) -> Self {
        Self(Arc::new(Inner {
            socket,
            transports,
            session,
            websocket: OnceLock::new(),
            polled: Polled::default(),
        }))
    }

    /// The connection to write to, which the session asks for. `None` while events go through
    /// Socket.IO.
    fn direct(&self) -> Result<Option<&Connection>, Closed> {
        let Inner {
            socket, session, ..
        } = &*self.0;
        if !socket.connected() {
            return Err(Closed);
        }
        let connection = self.websocket();
        if connection.is_some_and(|connection| connection.ask(*session)) {
            // Behind everything that Socket.IO has for the socket.
            socket.emit(MARKER, &(session,)).map_err(|_| Closed)?;
        }
        Ok(connection)
    }

    fn websocket(&self) -> Option<&Connection> {
        let Inner {
            socket, transports, ..
        } = &*self.0;
        if !transports.writes_directly() || socket.transport_type() != TransportType::Websocket {
            return None;
        }
        if let Some(websocket) = self.0.websocket.get() {
            return Some(websocket);
        }
        let websocket = transports.websocket(socket)?;
        Some(self.0.websocket.get_or_init(|| websocket))
    }

    /// Whether the client lags as far behind as it may what Socket.IO was given for it.
    fn is_full(&self) -> bool {
        let taken = || self.0.transports.taken(&self.0.socket);
        self.0.polled.is_full(taken)
    }

    /// Hands events to Socket.IO, unless the client lags too far behind.
    fn emit_through_socket_io(&self, events: &[Event<'_>]) -> Result<bool, Closed> {
        let Inner { socket, polled, .. } = &*self.0;
        if self.is_full() {
            return Ok(false);
        }
        for event in events {
            // A tuple's items are the event's arguments, also if one is an array.
            let emitted = match event.offset {
                Some(offset) => socket.emit(event.name, &(event.payload, offset)),
                None => socket.emit(event.name, &(event.payload,)),
            };
            // The buffer has more room than `Polled` lets wait there.
            emitted.map_err(|_| Closed)?;
            polled.add(packed::packet_bytes(event));
        }
        Ok(true)
    }
}

impl Peer for SocketPeer {
    type Id = Sid;
    /// Frames.
    type Encoded = Bytes;

    /// A ping is sent after an interval and not answered in time; the rest allows for a
    /// process that is late itself.
    const LOSS_NOTICED_WITHIN: Duration = PING_INTERVAL
        .saturating_add(PING_TIMEOUT)
        .saturating_add(Duration::from_secs(15));

    fn id(&self) -> Sid {
        self.0.socket.id
    }

    fn emit(&self, events: &[Event<'_>], encoded: &mut Bytes) -> Result<bool, Closed> {
        let Some(connection) = self.direct()? else {
            return self.emit_through_socket_io(events);
        };
        if encoded.is_empty() {
            *encoded = packed::pack(events);
        }
        connection.hold(self.0.session, encoded)
    }

    fn flush(&self) -> Result<Flushed, Closed> {
        match self.direct()? {
            Some(connection) => connection.flush(self.0.session),
            // Socket.IO sends by itself.
            None if self.is_full() => Ok(Flushed::Undone(0)),
            None => Ok(Flushed::All),
        }
    }

    async fn takes_more(&self) {
        let Inner {
            socket,
            transports,
            session,
            polled,
            ..
        } = &*self.0;
        if let Some(connection) = self.websocket() {
            return connection.takes_more(*session).await;
        }
        let is_over = || !socket.connected() || self.websocket().is_some();
        polled
            .takes_more(|| transports.taken(socket), is_over)
            .await;
    }

    fn more_waits(&self, waits: bool) {
        self.0.transports.more_waits(&self.0.socket, waits);
    }

    fn close(&self) {
        self.0.transports.close(&self.0.socket);
    }
}
