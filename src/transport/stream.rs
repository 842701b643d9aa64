//! An accepted TCP connection that can be closed from outside, counts what it
//! writes, and gives up on a peer that takes nothing.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use socket2::SockRef;
use socketioxide::socket::Sid;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};
use tracing::{debug, info};

use super::{Transports, connect_reply::ConnectReply, lock};

/// A handle to one TCP connection; clones are of the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<State>);

#[derive(Debug)]
struct State {
    number: u64,
    peer: SocketAddr,
    closed: AtomicBool,
    /// The tasks that wait in a read and in a write; they may be two.
    reader: AtomicWaker,
    writer: AtomicWaker,
    written: AtomicU64,
    /// Since [`State::accepted`], in milliseconds: when the last write was tried.
    last_write: AtomicU64,
    /// Whether that write still waits for the peer.
    writing: AtomicBool,
    accepted: Instant,
    role: Mutex<Role>,
    /// A reply to watch for, and whether there is one.
    connect_reply: Mutex<Option<Arc<ConnectReply>>>,
    expects_connect_reply: AtomicBool,
}

/// What a connection was last asked to become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Role {
    #[default]
    Http,
    /// A websocket that opens a session of its own.
    Websocket,
    /// A websocket that takes over from a session's polling.
    Upgrade(Sid),
}

impl Connection {
    /// Ends the connection at once. What was not yet written is lost.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.writer.wake();
    }

    /// The address at the other end: the client's, or a proxy's.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Bytes that the peer's side has taken so far.
    pub(super) fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Whether nothing waits to be written, and nothing was for `period`.
    pub(super) fn is_quiet(&self, period: Duration) -> bool {
        let last_write = Duration::from_millis(self.0.last_write.load(Ordering::Relaxed));
        let age = self.0.accepted.elapsed();
        !self.0.writing.load(Ordering::Relaxed) && age.saturating_sub(last_write) >= period
    }

    /// Identifies the connection within the process.
    pub(super) fn number(&self) -> u64 {
        self.0.number
    }

    /// Takes on a role and returns the previous one.
    pub(super) fn take_role(&self, role: Role) -> Role {
        std::mem::replace(&mut *lock(&self.0.role), role)
    }

    pub(super) fn role(&self) -> Role {
        *lock(&self.0.role)
    }

    /// Exchanges `reply` when it is written here.
    pub(super) fn expect(&self, reply: Arc<ConnectReply>) {
        *lock(&self.0.connect_reply) = Some(reply);
        self.0.expects_connect_reply.store(true, Ordering::Release);
    }

    /// The reply that is expected and was not written elsewhere meanwhile.
    fn expected_reply(&self) -> Option<Arc<ConnectReply>> {
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

    fn check_open(&self) -> io::Result<()> {
        match self.0.closed.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

/// The accepted stream itself, owned by hyper and later by the websocket.
pub(super) struct Stream {
    tcp: TcpStream,
    connection: Connection,
    transports: Transports,
    stall_limit: Duration,
    /// Runs while a write makes no progress.
    stall: Option<Pin<Box<Sleep>>>,
    /// What is left of an exchanged CONNECT reply; goes before anything else.
    exchanged: Bytes,
}

impl Stream {
    pub(super) fn new(
        tcp: TcpStream,
        peer: SocketAddr,
        number: u64,
        stall_limit: Duration,
        transports: Transports,
    ) -> Self {
        let options = SockRef::from(&tcp);
        // Failing options cost latency or patience, not the connection.
        let set = options.set_tcp_nodelay(true);
        #[cfg(target_os = "linux")]
        let set = set.and_then(|()| options.set_tcp_user_timeout(Some(stall_limit)));
        if let Err(error) = set {
            debug!(%error, "cannot set TCP options");
        }
        let connection = Connection(Arc::new(State {
            number,
            peer,
            closed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            written: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            accepted: Instant::now(),
            role: Mutex::default(),
            connect_reply: Mutex::default(),
            expects_connect_reply: AtomicBool::new(false),
        }));
        transports.opened(&connection);
        Self {
            tcp,
            connection,
            transports,
            stall_limit,
            stall: None,
            exchanged: Bytes::new(),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let state = &self.connection.0;
        state.writer.register(cx.waker());
        self.connection.check_open()?;
        let result = write(Pin::new(&mut self.tcp), cx);
        let age = u64::try_from(state.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        state.last_write.store(age, Ordering::Relaxed);
        state.writing.store(result.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(result) = result {
            self.stall = None;
            if let Ok(bytes) = result {
                state.written.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            return Poll::Ready(result);
        }
        let limit = self.stall_limit;
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stall.as_mut().poll(cx));
        self.transports.stalled();
        info!(peer = %self.connection.peer(), ?limit, "closing a connection that takes no data");
        self.connection.close();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Stream {
    fn poll_write_exchanged(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.exchanged.is_empty() {
            let bytes = self.exchanged.clone();
            let written = ready!(self.poll_write_with(cx, |tcp, cx| tcp.poll_write(cx, &bytes)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.exchanged.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.transports.closed(&self.connection);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.connection.0.reader.register(cx.waker());
        self.connection.check_open()?;
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_exchanged(cx))?;
        let reply = self.connection.expected_reply();
        match reply.and_then(|reply| reply.in_frames(bytes)) {
            None => self.poll_write_with(cx, |tcp, cx| tcp.poll_write(cx, bytes)),
            Some(exchange) => {
                let before = &bytes[..exchange.at];
                let frame = [before, &exchange.frame].concat();
                self.exchanged = frame.into();
                // What the peer does not take now goes with the flush that follows.
                if let Poll::Ready(Err(error)) = self.poll_write_exchanged(cx) {
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(exchange.at + exchange.length))
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Of HTTP responses only: websockets write their frames in one piece.
        self.poll_write_with(cx, |tcp, cx| tcp.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_exchanged(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_exchanged(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
