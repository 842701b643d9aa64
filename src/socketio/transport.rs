//! The TCP connections under the sockets: accepted, watched and, one by one, closed.
//!
//! socketioxide has no call that closes one socket's transport: its `disconnect()`
//! is a namespace packet, after which `socket.io-client` stays away for good, while
//! it reconnects by itself after a lost transport. Nor does socketioxide tell how far
//! a socket lags behind. So this module owns the accepted streams and remembers which
//! of them carries which socket.
//!
//! Invariants: a closed [`Connection`] neither reads nor writes another byte; a write
//! makes progress within the limit, or its connection is closed; a connection whose
//! request does not arrive in time is closed; and whatever a client sends is counted
//! before it is acted upon.
//!
//! # Rooms
//!
//! - a connection: [`mod@serve`] accepts it, `capacity` decides whether it may stay,
//!   `connection` is the handle to it, `stream` the bytes and `outlet` the way out; `heads`, `frames` and
//!   `budget` read along with what the client sends
//! - a request: [`mod@guard`] stands before Socket.IO, `query` reads the URI, `body` and
//!   `polling` belong to long polling, `handshake`, `websocket` and `takeover` to
//!   websockets
//! - a socket: `registry` knows which connection carries it, `closing` ends it
//! - replaced bytes: `connect_reply` and `open_packet`
//! - `engine` is the way on to Socket.IO
//!
//! # Locks
//!
//! One lock guards all tables (`registry`), one the takeovers (`websocket`), one each
//! session's polls (`polling`) and one each connection's awaited reply (`connection`).
//! They have no order because none of them is taken while another one is held, and
//! none is held across an await.

mod body;
mod budget;
mod capacity;
mod closing;
mod connect_reply;
mod connection;
mod engine;
mod frames;
mod guard;
mod handshake;
mod heads;
mod open_packet;
mod outlet;
mod polling;
mod query;
mod registry;
mod serve;
mod stream;
mod takeover;
mod websocket;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::process::{Resource, getrlimit};
use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::sync::Semaphore;
use tracing::warn;

pub use self::{
    body::whole_body, budget::MAX_MESSAGE_BYTES, connection::Connection, engine::Engine,
    frames::Frames, guard::guard, open_packet::MAX_PAYLOAD_BYTES, outlet::MARKER,
    query::session_id, serve::serve,
};
use self::{
    budget::{Budget, Excess},
    capacity::{Capacity, Lack},
    connect_reply::ConnectReply,
    query::is_websocket,
    registry::{Admitted, Registry},
    serve::REQUESTS_IN_A_TURN,
    websocket::Takeovers,
};
use crate::{config::HttpConfig, observability::metrics::Metrics, observability::sampled::Sampled};

/// Time between the pings to a socket: Socket.IO's default, which is announced to
/// every client.
pub const PING_INTERVAL: Duration = Duration::from_secs(25);

/// Time that a client has to answer a ping before its connection counts as lost.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A websocket that had nothing to write for this long has sent everything it had.
const FLUSHED_AFTER: Duration = Duration::from_millis(100);

/// Lines about connections that are closed for lack of room.
static CROWDED: Sampled = Sampled::new();

/// Lines about clients that send too much.
static EXCEEDED: Sampled = Sampled::new();

/// The connections of one server. Cheap to clone.
#[derive(Clone)]
pub struct Transports(Arc<Shared>);

struct Shared {
    metrics: Metrics,
    write_timeout: Duration,
    writes_directly: bool,
    /// Events that a socket may send.
    events_per_second: u32,
    engine: Engine,
    registry: Registry,
    takeovers: Takeovers,
    /// Turns of the requests that begin, see [`serve`].
    request_turns: Semaphore,
    /// Connections accepted so far: the next one's number.
    accepted: AtomicU64,
    /// Set once, when load balancers are told to send no new clients here.
    unready: AtomicBool,
    /// Set once, when the server begins to close.
    draining: AtomicBool,
}

impl Transports {
    /// Transports with room for as many connections as `config` and the limit on open
    /// files allow. `engine` serves the websockets, and ends the sessions of polling
    /// sockets that are closed.
    pub fn new(config: &HttpConfig, metrics: Metrics, engine: Engine) -> Self {
        let of_address = config.max_connections_per_address;
        let descriptors = getrlimit(Resource::Nofile).current;
        let descriptors = descriptors.and_then(|limit| limit.try_into().ok());
        // Half of all numbers stands for an unlimited number.
        let descriptors = descriptors.unwrap_or(usize::MAX / 2);
        let capacity = Capacity::new(of_address, config.trusted_proxies.clone(), descriptors);
        Self(Arc::new(Shared {
            metrics,
            write_timeout: config.socket_write_timeout,
            writes_directly: config.direct_writes,
            events_per_second: config.max_events_per_second,
            engine,
            registry: Registry::new(capacity),
            takeovers: Takeovers::default(),
            request_turns: Semaphore::new(REQUESTS_IN_A_TURN),
            accepted: AtomicU64::new(0),
            unready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }))
    }

    /// How long a write may make no progress.
    pub fn write_timeout(&self) -> Duration {
        self.0.write_timeout
    }

    /// Whether a websocket's events are written past Socket.IO.
    pub fn writes_directly(&self) -> bool {
        self.0.writes_directly
    }

    /// Begins to watch a socket, as the given session, until [`Transports::forget`].
    pub fn watch(&self, socket: &SocketRef, session: u64) {
        let websocket = websocket_handshake(socket).map(Connection::number);
        self.0.registry.watch(socket.id, session, websocket);
    }

    /// Forgets a session's socket that has disconnected.
    pub fn forget(&self, sid: Sid, session: u64) {
        self.0.registry.forget(sid, session);
    }

    /// Has the socket's CONNECT reply carry `pid`, and `id` as the client's `socket.id`,
    /// whichever transport the reply is written to. Must be called before socketioxide
    /// writes the reply.
    pub fn put_into_connect_reply(&self, socket: &SocketRef, id: Sid, pid: &str) {
        let reply = Arc::new(ConnectReply::new(socket.id, id, pid));
        self.0.registry.expect_reply(socket.id, reply.clone());
        if let Some(connection) = self.websocket(socket) {
            connection.expect(reply);
        }
    }

    /// Bytes that the peer has taken of what was emitted to `socket`, framing and
    /// handshake included: always a little more than the events themselves.
    pub fn taken(&self, socket: &SocketRef) -> u64 {
        let registry = &self.0.registry;
        registry.taken(socket.id, websocket_handshake(socket))
    }

    /// Notes whether more updates wait for a socket than it was handed.
    pub fn more_waits(&self, socket: &SocketRef, waits: bool) {
        self.0.registry.more_waits(socket.id, waits);
    }

    /// Whether a socket has a websocket that had nothing to write lately. Of a socket
    /// that polls, nothing can be said.
    pub fn has_written_all(&self, socket: &SocketRef) -> bool {
        let websocket = self.websocket(socket);
        websocket.is_some_and(|websocket| websocket.is_quiet(FLUSHED_AFTER))
    }

    /// The websocket under a socket that does not poll.
    pub fn websocket(&self, socket: &SocketRef) -> Option<Connection> {
        let begun = websocket_handshake(socket).cloned();
        begun.or_else(|| self.0.registry.upgraded(socket.id))
    }

    /// Finds room for a connection that was just opened, or closes it. Returns what
    /// the connection may be served.
    fn admit(&self, connection: &Connection) -> Served {
        let (served, lack, gives_way) = match self.0.registry.admit(connection) {
            Admitted::Welcome => return Served::All,
            Admitted::ProbesOnly => (Served::ProbesOnly, Lack::OfAll, None),
            Admitted::InPlaceOf(longest, lack) => (Served::All, lack, longest),
            Admitted::Refused(lack) => (Served::Nothing, lack, Some(connection.clone())),
        };
        self.0.metrics.connection_closed(lack.label());
        if let Some(line) = CROWDED.note(lack.label()) {
            let left_out = line.left_out;
            match lack {
                Lack::OfAddress => warn!(
                    address = %connection.peer().ip(),
                    left_out,
                    "closing connections of an address with more than MAX_CONNECTIONS_PER_ADDRESS"
                ),
                Lack::OfAll => warn!(
                    left_out,
                    "closing connections: as many as the limit on open files allows"
                ),
            }
        }
        if let Some(connection) = gives_way {
            connection.close();
        }
        served
    }

    /// What a session may send.
    fn budget(&self) -> Budget {
        Budget::new(self.0.events_per_second)
    }

    /// Notes that a session sent more than its budget, for which it ends.
    fn exceeded(&self, peer: SocketAddr, excess: Excess) {
        self.0.metrics.connection_closed(excess.label());
        if let Some(line) = EXCEEDED.note(excess.label()) {
            let (what, left_out) = (excess.label(), line.left_out);
            warn!(%peer, what, left_out, "closing a connection that sends too much");
        }
    }

    /// From now on, load balancers are told to send new clients elsewhere. Those that come
    /// nevertheless are served.
    pub fn fail_readiness(&self) {
        self.0.unready.store(true, Ordering::Relaxed);
    }

    /// Whether new clients should come here.
    pub fn is_ready(&self) -> bool {
        !self.0.unready.load(Ordering::Relaxed) && !self.is_draining()
    }

    /// From now on, handshakes are answered with 503, so that clients retry elsewhere.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`Transports::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl Transports {
    /// Transports for tests, before an engine that answers 200 to everything.
    pub(crate) fn unserved() -> Self {
        Self::new(
            &HttpConfig::default(),
            Metrics::new(),
            Engine::noting(|_| ()),
        )
    }
}

/// What a connection may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    All,
    /// Health checks: the gateway is full.
    ProbesOnly,
    Nothing,
}

/// The address of a socket's peer, for logs.
pub fn peer(socket: &SocketRef) -> String {
    handshake(socket).map_or_else(
        || "unknown".to_owned(),
        |connection| connection.peer().to_string(),
    )
}

fn handshake(socket: &SocketRef) -> Option<&Connection> {
    socket.req_parts().extensions.get::<Connection>()
}

/// The connection of a socket that began as a websocket. The connection of a polling
/// handshake may carry anything by now; behind a proxy, other clients too.
fn websocket_handshake(socket: &SocketRef) -> Option<&Connection> {
    let is_websocket = is_websocket(socket.req_parts().uri.query());
    handshake(socket).filter(|_| is_websocket)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever panicked while it held the lock left the tables whole: each of their
    // changes is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
