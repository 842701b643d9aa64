//! Which connections are open, which of them carries which socket, and what is known
//! of each socket and polling session.
//!
//! Answers and never acts: closing connections and ending sessions is the caller's part.
//! All tables are behind one lock, which is held for a few look-ups at a time, so that
//! what one call answers was true at one moment.
//!
//! Invariants: [`Tables::upgraded`] holds open connections only, one for each session;
//! a connection counts in `capacity` exactly from [`Registry::admit`] to
//! [`Registry::ended`].

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use socketioxide::socket::Sid;

use super::{
    capacity::{Capacity, Entry, Lack},
    connect_reply::ConnectReply,
    connection::Connection,
    lock,
    polling::Polling,
};

/// The tables, behind their lock.
pub(super) struct Registry(Mutex<Tables>);

struct Tables {
    capacity: Capacity,
    /// Every open connection, by its number.
    open: HashMap<u64, Open>,
    /// The sockets that were let in and have not disconnected.
    sockets: HashMap<Sid, Watched>,
    /// The sessions that began by polling.
    polling: HashMap<Sid, Arc<Polling>>,
    /// Websockets that have taken over from a session's polling. (A socket that began
    /// as a websocket has its connection in its handshake request.)
    upgraded: HashMap<Sid, Connection>,
}

struct Open {
    connection: Connection,
    role: Role,
}

/// What a connection was last asked to become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Role {
    #[default]
    Http,
    /// A websocket that opens a new session.
    Websocket,
    /// A websocket that takes over from a session's polling.
    Upgrade(Sid),
}

/// A socket that was let in.
struct Watched {
    /// Tells the socket from an earlier one of the same Engine.IO session.
    session: u64,
    /// The connection that the socket began on, if that was a websocket.
    websocket: Option<u64>,
    /// The session's requests are answered as if it were unknown.
    closed: bool,
    /// More updates wait for the socket than it was handed.
    more_waits: bool,
    /// Carries the poll that waits for something to send.
    polling: Option<Connection>,
    /// Bytes that the responses to polls took out of the socket's buffer.
    polled: u64,
    /// The CONNECT reply, until it is written.
    connect_reply: Option<Arc<ConnectReply>>,
}

/// What becomes of a new connection.
#[derive(Debug)]
pub(super) enum Admitted {
    Welcome,
    /// Takes the place of this connection, which must be closed. `None`: the connection
    /// has ended meanwhile.
    InPlaceOf(Option<Connection>, Lack),
    ProbesOnly,
    Refused(Lack),
}

impl Registry {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self(Mutex::new(Tables {
            capacity,
            open: HashMap::new(),
            sockets: HashMap::new(),
            polling: HashMap::new(),
            upgraded: HashMap::new(),
        }))
    }
}

// Connections.
impl Registry {
    /// A connection was accepted: registers it and finds room for it.
    pub(super) fn admit(&self, connection: &Connection) -> Admitted {
        let number = connection.number();
        let mut tables = lock(&self.0);
        let open = Open {
            connection: connection.clone(),
            role: Role::default(),
        };
        tables.open.insert(number, open);
        match tables.capacity.enter(number, connection.peer().ip()) {
            Entry::Welcome => Admitted::Welcome,
            Entry::ProbesOnly => Admitted::ProbesOnly,
            Entry::Closed(lack) => Admitted::Refused(lack),
            Entry::InPlaceOf(longest, lack) => {
                let longest = tables.open.get(&longest);
                Admitted::InPlaceOf(longest.map(|open| open.connection.clone()), lack)
            }
        }
    }

    /// A connection has ended.
    pub(super) fn ended(&self, connection: &Connection) {
        let number = connection.number();
        let mut tables = lock(&self.0);
        let Some(open) = tables.open.remove(&number) else {
            return;
        };
        tables.capacity.leave(number);
        tables.release(number, open.role);
        // What was registered is dropped without the lock.
        drop(tables);
    }

    /// A request of the connection is being answered.
    pub(super) fn begin_answer(&self, number: u64) {
        lock(&self.0).capacity.busy(number);
    }

    /// The connection waits for a request again.
    pub(super) fn end_answer(&self, number: u64) {
        lock(&self.0).capacity.waits(number);
    }

    /// The connection becomes something else.
    pub(super) fn change_role(&self, connection: &Connection, role: Role) {
        lock(&self.0).change_role(connection, role);
    }

    /// The websocket carries the session from now on. Returns `false`, and leaves it as it is,
    /// if another one does.
    pub(super) fn upgrade(&self, connection: &Connection, sid: Sid) -> bool {
        let mut tables = lock(&self.0);
        let carrier = tables.upgraded.get(&sid).map(Connection::number);
        if carrier.is_some_and(|carrier| carrier != connection.number()) {
            return false;
        }
        tables.change_role(connection, Role::Upgrade(sid));
        if tables.sockets.contains_key(&sid) {
            tables.capacity.remove(connection.number());
        }
        true
    }

    /// The websocket that has taken over the session.
    pub(super) fn upgraded(&self, sid: Sid) -> Option<Connection> {
        lock(&self.0).upgraded.get(&sid).cloned()
    }

    /// Every open connection.
    pub(super) fn all(&self) -> Vec<Connection> {
        let tables = lock(&self.0);
        let open = tables.open.values();
        open.map(|open| open.connection.clone()).collect()
    }

    /// The websockets without a socket that was let in, of those that are open and of those
    /// that are `probing`.
    pub(super) fn unwatched(&self, probing: Vec<(Sid, Connection)>) -> Vec<Connection> {
        let tables = lock(&self.0);
        let begun: HashSet<u64> = tables
            .sockets
            .values()
            .filter_map(|watched| watched.websocket)
            .collect();
        let is_unwatched = |open: &&Open| match open.role {
            Role::Http => false,
            Role::Websocket => !begun.contains(&open.connection.number()),
            Role::Upgrade(sid) => !tables.sockets.contains_key(&sid),
        };
        let open = tables.open.values().filter(is_unwatched);
        let probing = probing
            .into_iter()
            .filter(|(sid, _)| !tables.sockets.contains_key(sid));
        open.map(|open| open.connection.clone())
            .chain(probing.map(|(_, connection)| connection))
            .collect()
    }
}

// Sockets.
impl Registry {
    /// Begins to watch a socket. `websocket`: the number of the connection that the
    /// socket began on, if that is a websocket.
    pub(super) fn watch(&self, sid: Sid, session: u64, websocket: Option<u64>) {
        let mut tables = lock(&self.0);
        let upgraded = tables.upgraded.get(&sid).map(Connection::number);
        if let Some(number) = websocket.or(upgraded) {
            tables.capacity.remove(number);
        }
        let watched = Watched {
            session,
            websocket,
            closed: false,
            more_waits: false,
            polling: None,
            polled: 0,
            connect_reply: None,
        };
        tables.sockets.insert(sid, watched);
    }

    /// Forgets a session's socket that has disconnected.
    pub(super) fn forget(&self, sid: Sid, session: u64) {
        let mut tables = lock(&self.0);
        let is_it = |watched: &Watched| watched.session == session;
        if tables.sockets.get(&sid).is_some_and(is_it) {
            tables.sockets.remove(&sid);
        }
    }

    /// Whether the socket was closed; `None` where no socket was let in.
    pub(super) fn is_closed(&self, sid: Sid) -> Option<bool> {
        lock(&self.0)
            .sockets
            .get(&sid)
            .map(|watched| watched.closed)
    }

    /// Has the session's next requests refused, and returns what still runs for it: the
    /// connection of the poll that waits, and the polling session.
    pub(super) fn close(&self, sid: Sid) -> (Option<Connection>, Option<Arc<Polling>>) {
        let mut tables = lock(&self.0);
        let poll = tables.sockets.get_mut(&sid).and_then(|watched| {
            watched.closed = true;
            watched.polling.take()
        });
        (poll, tables.polling.get(&sid).cloned())
    }

    /// The socket's CONNECT reply is still to be written.
    pub(super) fn expect_reply(&self, sid: Sid, reply: Arc<ConnectReply>) {
        if let Some(watched) = lock(&self.0).sockets.get_mut(&sid) {
            watched.connect_reply = Some(reply);
        }
    }

    /// The socket's CONNECT reply, if it is still to be written.
    pub(super) fn expected_reply(&self, sid: Sid) -> Option<Arc<ConnectReply>> {
        let mut tables = lock(&self.0);
        let reply = &mut tables.sockets.get_mut(&sid)?.connect_reply;
        reply.take_if(|reply| reply.is_written());
        reply.clone()
    }

    /// Bytes that a socket's peer has taken. `begun`: the websocket that the socket
    /// began on.
    pub(super) fn taken(&self, sid: Sid, begun: Option<&Connection>) -> u64 {
        let tables = lock(&self.0);
        let websocket = begun.or_else(|| tables.upgraded.get(&sid));
        let written = websocket.map_or(0, Connection::written);
        let polled = tables.sockets.get(&sid).map_or(0, |watched| watched.polled);
        written + polled
    }

    /// Notes whether more updates wait for the socket than it was handed.
    pub(super) fn more_waits(&self, sid: Sid, waits: bool) {
        if let Some(watched) = lock(&self.0).sockets.get_mut(&sid) {
            watched.more_waits = waits;
        }
    }

    /// Whether more updates wait for the socket than it was handed.
    pub(super) fn is_waited_for(&self, sid: Sid) -> bool {
        let tables = lock(&self.0);
        let watched = tables.sockets.get(&sid);
        watched.is_some_and(|watched| watched.more_waits)
    }
}

// Sessions that poll.
impl Registry {
    pub(super) fn begin_polling(&self, sid: Sid, polling: Arc<Polling>) {
        lock(&self.0).polling.insert(sid, polling);
    }

    pub(super) fn end_polling(&self, sid: Sid) {
        lock(&self.0).polling.remove(&sid);
    }

    pub(super) fn polling(&self, sid: Sid) -> Option<Arc<Polling>> {
        lock(&self.0).polling.get(&sid).cloned()
    }

    /// A poll of the session waits on this connection.
    pub(super) fn begin_poll(&self, sid: Sid, connection: &Connection) {
        let mut tables = lock(&self.0);
        let tables = &mut *tables;
        if let Some(watched) = tables.sockets.get_mut(&sid) {
            watched.polling = Some(connection.clone());
            tables.capacity.carries(connection.number());
        }
    }

    /// The poll is answered with this number of bytes.
    pub(super) fn end_poll(&self, sid: Sid, bytes: u64) {
        if let Some(watched) = lock(&self.0).sockets.get_mut(&sid) {
            watched.polling = None;
            watched.polled += bytes;
        }
    }
}

impl Tables {
    fn change_role(&mut self, connection: &Connection, role: Role) {
        let number = connection.number();
        let Some(open) = self.open.get_mut(&number) else {
            return;
        };
        let before = std::mem::replace(&mut open.role, role);
        self.release(number, before);
        if let Role::Upgrade(sid) = role {
            self.upgraded.insert(sid, connection.clone());
        }
    }

    /// The connection no longer has this role.
    fn release(&mut self, number: u64, role: Role) {
        if let Role::Upgrade(sid) = role
            && self.upgraded.get(&sid).map(Connection::number) == Some(number)
        {
            self.upgraded.remove(&sid);
        }
    }
}
