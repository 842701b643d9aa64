//! The TCP connections under the sockets: accepted, watched and, one by one, closed.
//!
//! socketioxide has no call that closes one socket's transport: its
//! `disconnect()` is a namespace packet, after which `socket.io-client` stays
//! away for good, while after a lost transport it reconnects by itself. So this
//! module owns the accepted streams and remembers which carries which socket.
//!
//! Invariants: a closed [`Connection`] neither reads nor writes another byte, and
//! a write makes progress within the stall limit or closes its connection.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
    serve::IncomingStream,
};
use futures_util::task::AtomicWaker;
use socket2::SockRef;
use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::Sleep,
};
use tracing::{debug, info};

use crate::metrics::Metrics;

/// A peer that takes nothing for this long is gone or might as well be.
const WRITE_STALL_LIMIT: Duration = Duration::from_secs(30);

/// Which connections carry which sockets. Cheap to clone.
#[derive(Clone)]
pub struct Transports(Arc<Registry>);

struct Registry {
    metrics: Metrics,
    /// Websockets that replaced a polling transport. (A socket that began as a
    /// websocket has its connection in its handshake request.)
    upgraded: Mutex<HashMap<Sid, Connection>>,
    /// Sockets whose polling requests are answered as unknown.
    closed: Mutex<HashSet<Sid>>,
    /// Every open connection, for the end of a shutdown.
    open: Mutex<HashMap<u64, Connection>>,
    accepted: AtomicU64,
    /// Set once, when the server begins to shut down.
    draining: AtomicBool,
}

impl Transports {
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Registry {
            metrics,
            upgraded: Mutex::default(),
            closed: Mutex::default(),
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        }))
    }

    /// Closes the transport of one socket, whatever it is: an unmodified client
    /// then reconnects by itself.
    pub fn close(&self, socket: &SocketRef) {
        lock(&self.0.closed).insert(socket.id);
        let handshake = socket
            .req_parts()
            .extensions
            .get::<ConnectInfo<Connection>>();
        if let Some(ConnectInfo(connection)) = handshake {
            connection.close();
        }
        let upgraded = lock(&self.0.upgraded).get(&socket.id).cloned();
        if let Some(connection) = upgraded {
            connection.close();
        }
    }

    /// Forgets a socket that has disconnected.
    pub fn forget(&self, sid: Sid) {
        lock(&self.0.closed).remove(&sid);
    }

    /// Closes every connection, including those that carry no socket yet.
    pub fn close_all(&self) {
        for connection in lock(&self.0.open).values() {
            connection.close();
        }
    }

    /// From now on, handshakes are answered with 503, so that clients retry elsewhere.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }
}

/// Stands before Socket.IO's endpoint: turns away what must not get in and notes
/// which connection a socket upgrades to.
pub async fn guard(
    State(transports): State<Transports>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let Some(sid) = session_id(&request) else {
        if transports.is_draining() {
            let retry = [(header::RETRY_AFTER, "1")];
            return (StatusCode::SERVICE_UNAVAILABLE, retry, "shutting down").into_response();
        }
        return next.run(request).await;
    };
    if lock(&transports.0.closed).contains(&sid) {
        // Engine.IO's own answer to a session that is gone.
        let unknown = r#"{"code":1,"message":"Session ID unknown"}"#;
        let json = [(header::CONTENT_TYPE, "application/json")];
        return (StatusCode::BAD_REQUEST, json, unknown).into_response();
    }
    if request.headers().contains_key(header::UPGRADE) && connection.0.upgraded_sid.set(sid).is_ok()
    {
        lock(&transports.0.upgraded).insert(sid, connection);
    }
    next.run(request).await
}

fn session_id(request: &Request) -> Option<Sid> {
    let query = request.uri().query()?;
    let sid = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("sid="))?;
    sid.parse().ok()
}

/// A handle to one TCP connection; clones are of the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<ConnectionState>);

#[derive(Debug)]
struct ConnectionState {
    number: u64,
    peer: SocketAddr,
    closed: AtomicBool,
    /// The tasks that wait in a read and in a write; they may be two.
    reader: AtomicWaker,
    writer: AtomicWaker,
    upgraded_sid: OnceLock<Sid>,
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

    fn check_open(&self) -> io::Result<()> {
        match self.0.closed.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

/// Accepts connections as [`Stream`]s.
pub struct Listener {
    tcp: TcpListener,
    transports: Transports,
}

impl Listener {
    pub fn new(tcp: TcpListener, transports: Transports) -> Self {
        Self { tcp, transports }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        // axum's own listener: waits out a lack of file descriptors.
        let (tcp, peer) = axum::serve::Listener::accept(&mut self.tcp).await;
        let options = SockRef::from(&tcp);
        // Failing options cost latency or patience, not the connection.
        if let Err(error) = options
            .set_tcp_nodelay(true)
            .and_then(|()| options.set_tcp_user_timeout(Some(WRITE_STALL_LIMIT)))
        {
            debug!(%error, "cannot set TCP options");
        }
        let registry = &self.transports.0;
        let connection = Connection(Arc::new(ConnectionState {
            number: registry.accepted.fetch_add(1, Ordering::Relaxed),
            peer,
            closed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            upgraded_sid: OnceLock::new(),
        }));
        lock(&registry.open).insert(connection.0.number, connection.clone());
        let stream = Stream {
            tcp,
            connection,
            transports: self.transports.clone(),
            stall: None,
        };
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl Connected<IncomingStream<'_, Listener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().connection.clone()
    }
}

/// An accepted TCP connection that can be closed from outside.
pub struct Stream {
    tcp: TcpStream,
    connection: Connection,
    transports: Transports,
    /// Runs while a write makes no progress.
    stall: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.connection.0.writer.register(cx.waker());
        self.connection.check_open()?;
        if let Poll::Ready(result) = write(Pin::new(&mut self.tcp), cx) {
            self.stall = None;
            return Poll::Ready(result);
        }
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL_LIMIT)));
        ready!(stall.as_mut().poll(cx));
        self.transports.0.metrics.slow_sockets.inc();
        info!(peer = %self.connection.peer(), limit = ?WRITE_STALL_LIMIT, "closing a connection that takes no data");
        self.connection.close();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.transports.0.open).remove(&self.connection.0.number);
        if let Some(sid) = self.connection.0.upgraded_sid.get() {
            lock(&self.transports.0.upgraded).remove(sid);
        }
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
        self.poll_write_with(cx, |tcp, cx| tcp.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |tcp, cx| tcp.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps and sets are whole between their calls, whatever panicked meanwhile.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
