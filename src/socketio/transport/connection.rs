//! The handle to one accepted TCP connection: closes it from outside, and tells what
//! it has written.
//!
//! Holds what `stream`, which owns the bytes, shares with everybody else. What the
//! connection is for, and which socket it carries, is the registry's to know.
//!
//! Invariant: once a connection is closed it stays so, and the tasks that wait in its
//! reads and writes are woken.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Context,
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;
use tracing::debug;

use super::{connect_reply::ConnectReply, lock, outlet::Outlet};
use crate::sessions::peer::{Closed, Flushed};

/// A handle to one TCP connection; clones are of the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: u64,
    peer: SocketAddr,
    closed: AtomicBool,
    outlet: Outlet,
    /// The tasks that wait in a read and in a write; they may be two.
    reader: AtomicWaker,
    writer: AtomicWaker,
    written: AtomicU64,
    /// When the last write was tried, in milliseconds since [`Inner::accepted`].
    last_write: AtomicU64,
    /// Whether that write still waits for the peer.
    writing: AtomicBool,
    accepted: Instant,
    /// How many requests hyper has read.
    requests: AtomicU64,
    /// Whether what is read from now on are frames.
    is_websocket: AtomicBool,
    /// Whether an OPEN packet is still to be written.
    expects_open_packet: AtomicBool,
    /// A CONNECT reply to watch for. The flag spares most writes the lock.
    connect_reply: Mutex<Option<Arc<ConnectReply>>>,
    expects_connect_reply: AtomicBool,
}

impl Connection {
    pub(super) fn new(number: u64, peer: SocketAddr) -> Self {
        Self(Arc::new(Inner {
            number,
            peer,
            closed: AtomicBool::new(false),
            outlet: Outlet::default(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            written: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            accepted: Instant::now(),
            requests: AtomicU64::new(0),
            is_websocket: AtomicBool::new(false),
            expects_open_packet: AtomicBool::new(false),
            connect_reply: Mutex::default(),
            expects_connect_reply: AtomicBool::new(false),
        }))
    }

    /// Ends the connection at once. What was not yet written is lost.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.outlet.end();
        self.0.reader.wake();
        self.0.writer.wake();
    }

    /// The address at the other end: the client's, or a proxy's.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Has the session of a socket that this connection carries write its events directly.
    /// Returns whether its marker has to be sent through Socket.IO first.
    pub fn ask(&self, session: u64) -> bool {
        self.0.outlet.ask(session)
    }

    /// Holds whole frames of a session until [`Self::flush`], or writes some to make room.
    /// Returns whether the frames were taken.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn hold(&self, session: u64, frames: &Bytes) -> Result<bool, Closed> {
        let hold = || self.0.outlet.hold(session, frames);
        match hold() {
            Ok(false) if self.write(session)? => self.or_close(hold()),
            outcome => self.or_close(outcome),
        }
    }

    /// Writes what is held for a session. What the peer does not take is undone, but for the rest
    /// of one call of [`Self::hold`].
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn flush(&self, session: u64) -> Result<Flushed, Closed> {
        Ok(match self.write(session)? {
            true => Flushed::All,
            false => Flushed::Undone(self.0.outlet.undo(session)),
        })
    }

    /// Returns whether all that is held is written.
    fn write(&self, session: u64) -> Result<bool, Closed> {
        let written = self.or_close(self.0.outlet.flush(session))?;
        self.note_write(written.is_all, written.bytes);
        Ok(written.is_all)
    }

    fn or_close<T>(&self, result: io::Result<T>) -> Result<T, Closed> {
        result.map_err(|error| {
            debug!(peer = %self.0.peer, %error, "cannot write an event");
            self.close();
            Closed
        })
    }

    /// Returns once the session may write and the peer takes something, or when the connection
    /// has ended.
    pub async fn takes_more(&self, session: u64) {
        self.0.outlet.takes_more(session).await;
    }

    /// Identifies the connection within the process.
    pub(super) fn number(&self) -> u64 {
        self.0.number
    }

    /// The way out.
    pub(super) fn outlet(&self) -> &Outlet {
        &self.0.outlet
    }

    /// Bytes that the peer's side has taken so far.
    pub(super) fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Whether nothing waits to be written, and nothing was written for `period`.
    pub(super) fn is_quiet(&self, period: Duration) -> bool {
        let last_write = Duration::from_millis(self.0.last_write.load(Ordering::Relaxed));
        let age = self.0.accepted.elapsed();
        !self.0.writing.load(Ordering::Relaxed) && age.saturating_sub(last_write) >= period
    }

    /// Notes that hyper has read a request.
    pub(super) fn begin_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Has what is read from now on counted as a websocket's frames.
    pub(super) fn begin_frames(&self) {
        self.0.is_websocket.store(true, Ordering::Release);
    }

    /// Has the next OPEN packet that is written here replaced.
    pub(super) fn expect_open_packet(&self) {
        let expects = &self.0.expects_open_packet;
        expects.store(true, Ordering::Release);
    }

    /// Has `reply` replaced when it is written here.
    pub(super) fn expect(&self, reply: Arc<ConnectReply>) {
        *lock(&self.0.connect_reply) = Some(reply);
        self.0.expects_connect_reply.store(true, Ordering::Release);
    }
}

// What the stream asks and tells.
impl Connection {
    pub(super) fn check_open(&self) -> io::Result<()> {
        match self.0.closed.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }

    pub(super) fn register_reader(&self, cx: &Context<'_>) {
        self.0.reader.register(cx.waker());
    }

    pub(super) fn register_writer(&self, cx: &Context<'_>) {
        self.0.writer.register(cx.waker());
    }

    pub(super) fn wake_reader(&self) {
        self.0.reader.wake();
    }

    /// Notes that a write was tried, whether it is done, and how many bytes it wrote.
    pub(super) fn note_write(&self, is_done: bool, bytes: usize) {
        let age = self.0.accepted.elapsed().as_millis();
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        self.0.last_write.store(age, Ordering::Relaxed);
        self.0.writing.store(!is_done, Ordering::Relaxed);
        self.0.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn is_websocket(&self) -> bool {
        self.0.is_websocket.load(Ordering::Acquire)
    }

    /// How many requests hyper has read.
    pub(super) fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    pub(super) fn expects_open_packet(&self) -> bool {
        self.0.expects_open_packet.load(Ordering::Acquire)
    }

    pub(super) fn open_packet_written(&self) {
        let expects = &self.0.expects_open_packet;
        expects.store(false, Ordering::Release);
    }

    /// The CONNECT reply that is expected here and was not written elsewhere meanwhile.
    pub(super) fn expected_reply(&self) -> Option<Arc<ConnectReply>> {
        if !self.0.expects_connect_reply.load(Ordering::Acquire) {
            return None;
        }
        let mut expected = lock(&self.0.connect_reply);
        if expected.as_ref().is_some_and(|reply| reply.is_written()) {
            *expected = None;
            let expects = &self.0.expects_connect_reply;
            expects.store(false, Ordering::Release);
        }
        expected.clone()
    }
}

#[cfg(test)]
mod tests {
    use socketioxide::socket::Sid;

    use super::*;

    fn connection() -> Connection {
        Connection::new(1, "192.0.2.1:4711".parse().unwrap())
    }

    #[test]
    fn a_connection_is_quiet_once_nothing_waits_and_a_while_has_passed() {
        let connection = connection();
        let (moment, long) = (Duration::from_millis(5), Duration::from_secs(3600));
        assert!(!connection.is_quiet(long));
        std::thread::sleep(moment * 2);
        assert!(connection.is_quiet(moment));
        connection.note_write(false, 0);
        std::thread::sleep(moment * 2);
        assert!(!connection.is_quiet(moment), "a write waits");
        connection.note_write(true, 7);
        assert!(!connection.is_quiet(long), "it was written just now");
        std::thread::sleep(moment * 2);
        assert!(connection.is_quiet(moment));
        assert_eq!(connection.written(), 7);
    }

    #[test]
    fn a_reply_is_expected_until_it_is_written_anywhere() {
        let (connection, sid) = (connection(), Sid::new());
        assert!(connection.expected_reply().is_none());
        let reply = Arc::new(ConnectReply::new(sid, sid, "pid"));
        connection.expect(reply.clone());
        assert!(connection.expected_reply().is_some());
        let payload = format!(r#"40{{"sid":"{sid}"}}"#);
        assert!(reply.in_payload(payload.as_bytes()).is_some());
        assert!(connection.expected_reply().is_none());
    }

    #[test]
    fn a_closed_connection_stays_closed() {
        let connection = connection();
        assert!(connection.check_open().is_ok());
        connection.clone().close();
        assert!(connection.check_open().is_err());
        assert!(connection.check_open().is_err());
    }
}
