//! The TCP connections under the sockets: accepted, watched and, one by one, closed.
//!
//! socketioxide has no call that closes one socket's transport: its
//! `disconnect()` is a namespace packet, after which `socket.io-client` stays
//! away for good, while after a lost transport it reconnects by itself. Nor does
//! it tell how far a socket lags behind. So this module owns the accepted streams
//! and remembers which carries which socket.
//!
//! Invariants: a closed [`Connection`] neither reads nor writes another byte; a
//! write makes progress within the limit or its connection is closed; so is
//! one whose request does not arrive in time; and what a client sends is counted
//! before it is acted upon.

mod body;
mod connect_reply;
mod endpoint;
mod guard;
mod heads;
mod intake;
mod open_packet;
mod polling;
mod room;
mod serve;
mod stream;
mod takeover;
mod websocket;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::seq::SliceRandom;
use rustix::process::{Resource, getrlimit};
use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::{sync::Semaphore, time::Instant};
use tracing::warn;

pub use self::{
    body::whole_body,
    endpoint::Endpoint,
    guard::{guard, session_id},
    intake::MAX_MESSAGE_BYTES,
    open_packet::MAX_PAYLOAD_BYTES,
    serve::serve,
    stream::Connection,
};
use self::{
    connect_reply::ConnectReply,
    guard::is_websocket,
    intake::{Budget, Excess},
    polling::Polling,
    room::{Entry, Lack, Room},
    serve::REQUESTS_IN_A_TURN,
    stream::Role,
    websocket::Takeovers,
};
use crate::{config::HttpConfig, observability::metrics::Metrics, observability::sampled::Sampled};

/// Time between the pings to a socket: Socket.IO's default, which is announced to
/// every client.
pub const PING_INTERVAL: Duration = Duration::from_secs(25);

/// Time that a client has to answer a ping, or its connection is lost.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Without anything to send for this long, a websocket has sent what it had.
const FLUSHED_AFTER: Duration = Duration::from_millis(100);

/// Few sockets need no spreading: they are closed at this pace at the slowest.
const MAX_CLOSING_PAUSE: Duration = Duration::from_millis(10);

static CROWDED: Sampled = Sampled::new();
static EXCEEDED: Sampled = Sampled::new();

/// Which connections carry which sockets. Cheap to clone.
#[derive(Clone)]
pub struct Transports(Arc<Registry>);

struct Registry {
    metrics: Metrics,
    write_timeout: Duration,
    /// Events that a socket may send.
    events_per_second: u32,
    room: Mutex<Room>,
    /// For requests that begin, see [`serve`].
    request_turns: Semaphore,
    /// The sessions that began by polling.
    polling: Mutex<HashMap<Sid, Arc<Polling>>>,
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
    /// As many connections as `config` and the limit on open files allow.
    pub fn new(config: &HttpConfig, metrics: Metrics) -> Self {
        let of_address = config.max_connections_per_address;
        let descriptors = getrlimit(Resource::Nofile).current;
        let descriptors = descriptors.and_then(|limit| limit.try_into().ok());
        // An unlimited number fits into half of all numbers.
        let descriptors = descriptors.unwrap_or(usize::MAX / 2);
        let room = Room::new(of_address, config.trusted_proxies.clone(), descriptors);
        Self(Arc::new(Registry {
            metrics,
            write_timeout: config.socket_write_timeout,
            events_per_second: config.max_events_per_second,
            room: Mutex::new(room),
            request_turns: Semaphore::new(REQUESTS_IN_A_TURN),
            polling: Mutex::default(),
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

    /// Begins to watch a socket, as the given session, until [`Transports::forget`].
    pub fn watch(&self, socket: &SocketRef, session: u64) {
        let websocket = websocket_handshake(socket).map(Connection::number);
        if let Some(connection) = self.websocket(socket) {
            lock(&self.0.room).remove(connection.number());
        }
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
        if let Some(polling) = self.polling(sid) {
            polling.ended.cancel();
        }
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
            None => self.end_polling(sid),
        }
    }

    /// Ends a session that polls; one that has a websocket goes on.
    fn end_polling(&self, sid: Sid) {
        if let Some(endpoint) = self.0.endpoint.get() {
            endpoint.end(sid);
        }
    }

    /// A session that began by polling.
    fn polling(&self, sid: Sid) -> Option<Arc<Polling>> {
        lock(&self.0.polling).get(&sid).cloned()
    }

    /// What a session may send.
    fn budget(&self) -> Budget {
        Budget::new(self.0.events_per_second)
    }

    /// A session sent more than that, and ends.
    fn exceeded(&self, peer: SocketAddr, excess: Excess) {
        self.0.metrics.connection_closed(excess.label());
        if let Some(line) = EXCEEDED.note(excess.label()) {
            let (what, left_out) = (excess.label(), line.left_out);
            warn!(%peer, what, left_out, "closing a connection that sends too much");
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
        lock(&self.0.room).leave(connection.number());
        self.change_role(connection, Role::Http);
    }

    /// Makes room for a connection that was just opened, or closes it. Returns what
    /// it may be served.
    fn make_room(&self, connection: &Connection) -> Served {
        let (number, peer) = (connection.number(), connection.peer());
        let entry = lock(&self.0.room).enter(number, peer.ip());
        let lack = match entry {
            Entry::Welcome => return Served::All,
            Entry::ProbesOnly => Lack::OfAll,
            Entry::InPlaceOf(_, lack) | Entry::Closed(lack) => lack,
        };
        self.0.metrics.connection_closed(lack.label());
        if let Some(line) = CROWDED.note(lack.label()) {
            let left_out = line.left_out;
            match lack {
                Lack::OfAddress => warn!(
                    address = %peer.ip(),
                    left_out,
                    "closing connections of an address with more than MAX_CONNECTIONS_PER_ADDRESS"
                ),
                Lack::OfAll => warn!(
                    left_out,
                    "closing connections: as many as the limit on open files allows"
                ),
            }
        }
        match entry {
            Entry::InPlaceOf(longest, _) => {
                let longest = lock(&self.0.open).get(&longest).cloned();
                longest.inspect(Connection::close);
                Served::All
            }
            Entry::ProbesOnly => Served::ProbesOnly,
            Entry::Welcome | Entry::Closed(_) => {
                connection.close();
                Served::Nothing
            }
        }
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

    /// A websocket carries the session from now on.
    fn upgraded(&self, connection: &Connection, sid: Sid) {
        self.change_role(connection, Role::Upgrade(sid));
        if lock(&self.0.sockets).contains_key(&sid) {
            lock(&self.0.room).remove(connection.number());
        }
    }

    fn stalled(&self) {
        self.0.metrics.slow_sockets.inc();
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
