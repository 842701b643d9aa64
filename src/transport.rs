//! The TCP connections under the sockets: accepted, watched and, one by one, closed.
//!
//! socketioxide has no call that closes one socket's transport: its
//! `disconnect()` is a namespace packet, after which `socket.io-client` stays
//! away for good, while after a lost transport it reconnects by itself. Nor does
//! it tell how far a socket lags behind. So this module owns the accepted streams
//! and remembers which carries which socket.
//!
//! Invariants: a closed [`Connection`] neither reads nor writes another byte; a
//! write makes progress within the limit or its connection is closed; and so is
//! one whose request does not arrive in time.

mod connect_reply;
mod endpoint;
mod guard;
mod serve;
mod stream;
mod takeover;
mod websocket;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::seq::SliceRandom;
use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::time::Instant;

use self::{connect_reply::ConnectReply, guard::is_websocket, stream::Role, websocket::Takeovers};
pub use self::{
    endpoint::Endpoint,
    guard::{guard, session_id},
    serve::serve,
    stream::Connection,
};
use crate::metrics::Metrics;

/// Time between the pings to a socket: Socket.IO's default, which is announced to
/// every client.
pub const PING_INTERVAL: Duration = Duration::from_secs(25);

/// Time that a client has to answer a ping, or its connection is lost.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Without anything to send for this long, a websocket has sent what it had.
const FLUSHED_AFTER: Duration = Duration::from_millis(100);

/// Few sockets need no spreading: they are closed at this pace at the slowest.
const MAX_CLOSING_PAUSE: Duration = Duration::from_millis(10);

/// Which connections carry which sockets. Cheap to clone.
#[derive(Clone)]
pub struct Transports(Arc<Registry>);

struct Registry {
    metrics: Metrics,
    write_timeout: Duration,
    /// Every open connection, by its number.
    open: Mutex<HashMap<u64, Connection>>,
    accepted: AtomicU64,
    /// Websockets that have replaced a polling transport. (A socket that began as a
    /// websocket has its connection in its handshake request.)
    upgraded: Mutex<HashMap<Sid, Connection>>,
    /// Websockets that may be about to.
    takeovers: Takeovers,
    /// The sockets that were let in and have not disconnected.
    sockets: Mutex<HashMap<Sid, Watched>>,
    /// What serves the sockets.
    endpoint: OnceLock<Endpoint>,
    /// Set once, when the server begins to shut down.
    draining: AtomicBool,
}

/// A socket that was let in.
struct Watched {
    /// Tells it from an earlier one of the same Engine.IO session.
    session: u64,
    /// The connection that it began on, if that was as a websocket.
    websocket: Option<u64>,
    /// Its polling requests are answered as those of an unknown session.
    closed: bool,
    /// More waits for it than it was handed.
    waited_for: bool,
    /// Carries the poll that waits for something to send.
    polling: Option<Connection>,
    /// Bytes that the responses to polling took out of its buffer.
    polled: u64,
    /// Its CONNECT reply, until that is written.
    connect_reply: Option<Arc<ConnectReply>>,
}

impl Transports {
    /// `write_timeout`: how long a write may make no progress.
    pub fn new(write_timeout: Duration, metrics: Metrics) -> Self {
        Self(Arc::new(Registry {
            metrics,
            write_timeout,
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
            upgraded: Mutex::default(),
            takeovers: Takeovers::default(),
            sockets: Mutex::default(),
            endpoint: OnceLock::new(),
            draining: AtomicBool::new(false),
        }))
    }

    /// Hands websockets to `endpoint`, and has it end the sessions of polling sockets
    /// that are closed: there is no connection that would end them. To be called once,
    /// before anything is served.
    pub fn serve_by(&self, endpoint: Endpoint) {
        // Only the first one counts.
        let _ = self.0.endpoint.set(endpoint);
    }

    fn endpoint(&self) -> &Endpoint {
        let endpoint = self.0.endpoint.get();
        endpoint.expect("requests come through a router with an endpoint")
    }

    /// How long a write may make no progress.
    pub fn write_timeout(&self) -> Duration {
        self.0.write_timeout
    }

    /// Begins to watch a socket, as the given session, until [`Transports::forget`].
    pub fn watch(&self, socket: &SocketRef, session: u64) {
        let websocket = websocket_handshake(socket).map(Connection::number);
        let watched = Watched {
            session,
            websocket,
            closed: false,
            waited_for: false,
            polling: None,
            polled: 0,
            connect_reply: None,
        };
        lock(&self.0.sockets).insert(socket.id, watched);
    }

    /// Forgets a session's socket that has disconnected.
    pub fn forget(&self, sid: Sid, session: u64) {
        let mut sockets = lock(&self.0.sockets);
        let is_it = |watched: &Watched| watched.session == session;
        if sockets.get(&sid).is_some_and(is_it) {
            sockets.remove(&sid);
        }
    }

    /// Has the socket's CONNECT reply carry `pid`, and `id` as the client's `socket.id`,
    /// wherever it will be written. To be called before socketioxide writes the reply.
    pub fn put_into_connect_reply(&self, socket: &SocketRef, id: Sid, pid: &str) {
        let reply = Arc::new(ConnectReply::new(socket.id, id, pid));
        if let Some(watched) = lock(&self.0.sockets).get_mut(&socket.id) {
            watched.connect_reply = Some(reply.clone());
        }
        if let Some(connection) = self.websocket(socket) {
            connection.expect(reply);
        }
    }

    /// The socket's CONNECT reply, if it is still to be written.
    fn connect_reply(&self, sid: Sid) -> Option<Arc<ConnectReply>> {
        let mut sockets = lock(&self.0.sockets);
        let reply = &mut sockets.get_mut(&sid)?.connect_reply;
        reply.take_if(|reply| reply.is_written());
        reply.clone()
    }

    /// Closes the transport of one socket, whatever it is: an unmodified client
    /// then reconnects by itself.
    pub fn close(&self, socket: &SocketRef) {
        self.close_session(socket.id, websocket_handshake(socket));
    }

    /// A [`Transports::close`] for later, which does not hold the socket until then.
    pub fn closer(&self, socket: &SocketRef) -> impl FnOnce() + use<> {
        let (transports, sid) = (self.clone(), socket.id);
        let websocket = websocket_handshake(socket).cloned();
        move || transports.close_session(sid, websocket.as_ref())
    }

    fn close_session(&self, sid: Sid, websocket: Option<&Connection>) {
        if let Some(watched) = lock(&self.0.sockets).get_mut(&sid) {
            watched.closed = true;
            // The poll that waits would wait on; the next one is refused.
            if let Some(connection) = watched.polling.take() {
                connection.close();
            }
        }
        self.0.takeovers.close(sid);
        match self.websocket_of(sid, websocket) {
            Some(websocket) => websocket.close(),
            None => self
                .0
                .endpoint
                .get()
                .into_iter()
                .for_each(|endpoint| endpoint.end(sid)),
        }
    }

    /// Bytes that the peer has taken of what was emitted to `socket`, framing and
    /// handshake included: always a little more than the events themselves.
    pub fn taken(&self, socket: &SocketRef) -> u64 {
        let websocket = self.websocket(socket);
        let written = websocket.map_or(0, |websocket| websocket.written());
        let sockets = lock(&self.0.sockets);
        written + sockets.get(&socket.id).map_or(0, |watched| watched.polled)
    }

    /// Notes whether more waits for a socket than it was handed.
    pub fn more_waits(&self, socket: &SocketRef, waits: bool) {
        if let Some(watched) = lock(&self.0.sockets).get_mut(&socket.id) {
            watched.waited_for = waits;
        }
    }

    fn is_waited_for(&self, socket: &SocketRef) -> bool {
        let sockets = lock(&self.0.sockets);
        sockets
            .get(&socket.id)
            .is_some_and(|watched| watched.waited_for)
    }

    /// Whether a socket has a websocket that has had nothing to write lately. Of one
    /// that polls, nothing can be said.
    pub fn has_written_all(&self, socket: &SocketRef) -> bool {
        let websocket = self.websocket(socket);
        websocket.is_some_and(|websocket| websocket.is_quiet(FLUSHED_AFTER))
    }

    /// The websocket under a socket that does not poll.
    fn websocket(&self, socket: &SocketRef) -> Option<Connection> {
        self.websocket_of(socket.id, websocket_handshake(socket))
    }

    fn websocket_of(&self, sid: Sid, begun: Option<&Connection>) -> Option<Connection> {
        begun
            .cloned()
            .or_else(|| lock(&self.0.upgraded).get(&sid).cloned())
    }

    /// Closes the transports of `sockets` one by one over `spread`, so that their
    /// clients do not all come back at once. A socket that still has something to
    /// send, or that is polling, is left open.
    pub async fn close_gradually(&self, mut sockets: Vec<SocketRef>, spread: Duration) {
        sockets.shuffle(&mut rand::rng());
        let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX).max(1);
        let pause = (spread / count).min(MAX_CLOSING_PAUSE);
        let start = Instant::now();
        for (socket, number) in sockets.iter().zip(1..) {
            tokio::time::sleep_until(start + pause * number).await;
            if self.has_written_all(socket) && !self.is_waited_for(socket) {
                self.close(socket);
            }
        }
    }

    /// Closes the websockets whose client has not been let in (yet): its CONNECT
    /// must not meet a server that has none of its namespaces any more.
    pub fn close_unwatched(&self) {
        let sockets = lock(&self.0.sockets);
        let begun: HashSet<u64> = sockets
            .values()
            .filter_map(|watched| watched.websocket)
            .collect();
        for connection in lock(&self.0.open).values() {
            let watched = match connection.role() {
                Role::Http => continue,
                Role::Websocket => begun.contains(&connection.number()),
                Role::Upgrade(sid) => sockets.contains_key(&sid),
            };
            if !watched {
                connection.close();
            }
        }
        let is_watched = |sid| sockets.contains_key(&sid);
        self.0.takeovers.close_all(|sid| !is_watched(sid));
    }

    /// Closes every connection, including those that carry no socket.
    pub fn close_all(&self) {
        for connection in lock(&self.0.open).values() {
            connection.close();
        }
    }

    /// From now on, handshakes are answered with 503, so that clients retry elsewhere.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`Transports::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    fn opened(&self, connection: &Connection) {
        lock(&self.0.open).insert(connection.number(), connection.clone());
    }

    fn closed(&self, connection: &Connection) {
        lock(&self.0.open).remove(&connection.number());
        self.change_role(connection, Role::Http);
    }

    fn change_role(&self, connection: &Connection, role: Role) {
        let mut upgraded = lock(&self.0.upgraded);
        let is_it = |other: &Connection| other.number() == connection.number();
        if let Role::Upgrade(sid) = connection.take_role(role)
            && upgraded.get(&sid).is_some_and(is_it)
        {
            upgraded.remove(&sid);
        }
        if let Role::Upgrade(sid) = role {
            upgraded.insert(sid, connection.clone());
        }
    }

    fn stalled(&self) {
        self.0.metrics.slow_sockets.inc();
    }
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

/// The connection of a socket that began as a websocket. That of a polling
/// handshake may by now carry anything, behind a proxy also other clients.
fn websocket_handshake(socket: &SocketRef) -> Option<&Connection> {
    let is_websocket = is_websocket(socket.req_parts().uri.query());
    handshake(socket).filter(|_| is_websocket)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps are whole between their calls, whatever panicked meanwhile.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
