//! An accepted TCP connection that can be closed from outside, counts what it
//! reads and writes, and gives up on a peer that takes nothing.
//!
//! A peer that takes nothing is not read from either: websockets answer what they
//! read (pings, CONNECTs), and the answers would pile up here.

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

use super::{
    Transports,
    connect_reply::ConnectReply,
    heads::Heads,
    intake::{Budget, Frames},
    lock, open_packet,
};
use crate::observability::sampled::Sampled;

static STALLED: Sampled = Sampled::new();

/// The kernel's limit on what is not acknowledged comes after the one on a write that
/// waits: its end is not told from a lost network.
const SLACK: Duration = Duration::from_secs(1);

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
    /// How many requests hyper has read.
    requests: AtomicU64,
    /// Whether what is read from now on are frames.
    is_websocket: AtomicBool,
    /// Whether an OPEN packet is still to be written.
    expects_open_packet: AtomicBool,
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

    /// Notes that hyper has read a request.
    pub(super) fn begin_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Has what is read from now on counted as a websocket's frames.
    pub(super) fn begin_frames(&self) {
        self.0.is_websocket.store(true, Ordering::Release);
    }

    /// Exchanges the OPEN packet when it is written here.
    pub(super) fn expect_open_packet(&self) {
        let expects = &self.0.expects_open_packet;
        expects.store(true, Ordering::Release);
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
    intake: Intake,
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
        let set = set.and_then(|()| options.set_tcp_user_timeout(Some(stall_limit + SLACK)));
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
            requests: AtomicU64::new(0),
            is_websocket: AtomicBool::new(false),
            expects_open_packet: AtomicBool::new(false),
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
            intake: Intake::Requests(Box::default()),
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
            if self.stall.take().is_some() {
                // It was not read from meanwhile.
                state.reader.wake();
            }
            if let Ok(bytes) = result {
                state.written.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            return Poll::Ready(result);
        }
        let limit = self.stall_limit;
        self.stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(self.poll_stalled(cx))?;
        Poll::Pending
    }

    /// Ready if no write waits for the peer, or with an error if one did for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stall) = &mut self.stall else {
            return Poll::Ready(Ok(()));
        };
        ready!(stall.as_mut().poll(cx));
        self.transports.stalled();
        if let Some(line) = STALLED.note("") {
            let (peer, limit) = (self.connection.peer(), self.stall_limit);
            info!(%peer, ?limit, left_out = line.left_out, "closing a connection that takes no data");
        }
        self.connection.close();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Looks at what was read; an error ends the connection.
    fn take_in(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if let Intake::Requests(heads) = &mut self.intake {
            if !self.connection.0.is_websocket.load(Ordering::Acquire) {
                heads.read(bytes);
                return Ok(());
            }
            let requests = self.connection.0.requests.load(Ordering::Relaxed);
            if !heads.end_with(requests) {
                // RFC 6455, 4.1: a client waits for the answer to its handshake. What came
                // before could not be told from the frames that follow.
                return Err(io::ErrorKind::InvalidData.into());
            }
            let (frames, budget) = (Frames::default(), self.transports.budget());
            self.intake = Intake::Frames(Box::new((frames, budget)));
        }
        let Intake::Frames(intake) = &mut self.intake else {
            return Ok(());
        };
        let (frames, budget) = &mut **intake;
        let sent = frames.read(bytes);
        budget.take(bytes.len(), sent).map_err(|excess| {
            self.transports.exceeded(self.connection.peer(), excess);
            self.connection.close();
            io::ErrorKind::ConnectionAborted.into()
        })
    }
}

/// What the peer sends.
enum Intake {
    Requests(Box<Heads>),
    /// A websocket's.
    Frames(Box<(Frames, Budget)>),
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

    /// Writes what of [`Stream::exchanged`] the peer takes now, in the place of
    /// `length` bytes; the rest goes with the flush that follows.
    fn begin_exchanged(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        match self.poll_write_exchanged(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(length)),
        }
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
        ready!(self.poll_stalled(cx))?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buffer))?;
        Poll::Ready(self.take_in(&mut buffer.filled_mut()[before..]))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_exchanged(cx))?;
        if self
            .connection
            .0
            .expects_open_packet
            .load(Ordering::Acquire)
            && let Some(announced) = open_packet::announce(bytes)
        {
            let expects = &self.connection.0.expects_open_packet;
            expects.store(false, Ordering::Release);
            self.exchanged = announced;
            return self.begin_exchanged(cx, bytes.len());
        }
        let reply = self.connection.expected_reply();
        match reply.and_then(|reply| reply.in_frames(bytes)) {
            None => self.poll_write_with(cx, |tcp, cx| tcp.poll_write(cx, bytes)),
            Some(exchange) => {
                let before = &bytes[..exchange.at];
                let frame = [before, &exchange.frame].concat();
                self.exchanged = frame.into();
                self.begin_exchanged(cx, exchange.at + exchange.length)
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, split};

    use super::*;
    use crate::{config::HttpConfig, observability::metrics::Metrics};

    /// Longer than anything here takes, however slow the machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A stream and its peer.
    async fn connected(stall_limit: Duration) -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap());
        let peer = peer.await.unwrap();
        let (tcp, address) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let tcp = TcpStream::from_std(tcp).unwrap();
        let transports = Transports::new(&HttpConfig::default(), Metrics::new());
        let stream = Stream::new(tcp, address, 0, stall_limit, transports.clone());
        assert_eq!(
            transports.make_room(stream.connection()),
            super::super::Served::All
        );
        (stream, peer)
    }

    /// Writes until the peer's side takes no more.
    async fn stuff(stream: &mut Stream) {
        let bytes = vec![0; 1 << 20];
        let full = Duration::from_millis(200);
        while let Ok(written) = tokio::time::timeout(full, stream.write(&bytes)).await {
            written.unwrap();
        }
    }

    #[tokio::test]
    async fn whoever_takes_nothing_is_not_read_from_until_it_does() {
        let (mut stream, mut peer) = connected(PATIENCE * 2).await;
        stuff(&mut stream).await;
        peer.write_all(b"hello").await.unwrap();
        let (mut reader, mut writer) = split(stream);
        let mut bytes = [0; 5];
        let early = tokio::time::timeout(Duration::from_millis(300), reader.read(&mut bytes));
        assert!(early.await.is_err(), "nothing is read meanwhile");
        let reading =
            tokio::spawn(async move { reader.read_exact(&mut bytes).await.map(|_| bytes) });
        let writing = tokio::spawn(async move { writer.write(b"x").await });
        let draining = tokio::spawn(async move {
            let mut bytes = vec![0; 1 << 20];
            while peer.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
        });
        // Woken by the write's progress alone.
        let read = tokio::time::timeout(PATIENCE, reading).await;
        assert_eq!(&read.unwrap().unwrap().unwrap(), b"hello");
        writing.await.unwrap().unwrap();
        draining.abort();
    }

    #[tokio::test]
    async fn a_stuck_write_ends_also_where_nobody_but_a_reader_waits() {
        let (mut stream, _peer) = connected(Duration::from_millis(500)).await;
        stuff(&mut stream).await;
        let mut byte = [0];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await;
        assert_eq!(read.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(stream.connection().check_open().is_err());
    }

    #[tokio::test]
    async fn frames_that_come_before_the_answer_to_the_handshake_end_the_connection() {
        for (early, is_open) in [("", true), ("\u{1}", false), ("\u{1}\r\n\r\n", false)] {
            let (mut stream, mut peer) = connected(PATIENCE).await;
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\n\r\n{early}");
            peer.write_all(head.as_bytes()).await.unwrap();
            let mut bytes = vec![0; head.len()];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.connection().begin_request();
            stream.connection().begin_frames();
            peer.write_all(&[0x81, 0x80, 0, 0, 0, 0]).await.unwrap();
            assert_eq!(stream.read(&mut bytes).await.is_ok(), is_open, "{early:?}");
        }
    }
}
