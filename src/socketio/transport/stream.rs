//! The bytes of one accepted TCP connection: reads and writes them, counts them, and
//! gives up on a peer that takes nothing.
//!
//! A peer that takes nothing is not read from either: websockets answer what they
//! read (pings, CONNECTs), and the answers would pile up here.
//!
//! Invariants: a closed stream neither reads nor writes; every byte from the client
//! passes [`Stream::take_in`] before anybody else sees it.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tracing::{debug, info};

use super::{
    Transports,
    budget::Budget,
    connection::Connection,
    frames::Frames,
    heads::Heads,
    open_packet,
    outlet::{Next, Outlet},
};
use crate::observability::sampled::Sampled;

/// Lines about peers that take nothing.
static STALLED: Sampled = Sampled::new();

/// How much later than the limit on a waiting write the kernel's own limit comes, which
/// is one on bytes that are not acknowledged: a connection that the kernel ends looks
/// like a lost network.
const SLACK: Duration = Duration::from_secs(1);

/// An accepted stream, owned by hyper and later by the websocket.
pub(super) struct Stream {
    tcp: Arc<TcpStream>,
    connection: Connection,
    transports: Transports,
    stall_limit: Duration,
    /// Runs while a write makes no progress, and ends the stream.
    stall: Option<Pin<Box<Sleep>>>,
    intake: Intake,
    /// What is left of a replaced packet; goes before anything else.
    replacement: Bytes,
}

impl Stream {
    pub(super) fn new(
        tcp: TcpStream,
        connection: Connection,
        stall_limit: Duration,
        transports: Transports,
    ) -> Self {
        let options = SockRef::from(&tcp);
        // Without these options the connection is slower to answer, or to end.
        let set = options.set_tcp_nodelay(true);
        #[cfg(target_os = "linux")]
        let set = set.and_then(|()| options.set_tcp_user_timeout(Some(stall_limit + SLACK)));
        if let Err(error) = set {
            debug!(%error, "cannot set TCP options");
        }
        let tcp = Arc::new(tcp);
        connection.outlet().begin(tcp.clone());
        Self {
            tcp,
            connection,
            transports,
            stall_limit,
            stall: None,
            intake: Intake::Requests(Box::default()),
            replacement: Bytes::new(),
        }
    }

    /// From now on, what is written are a websocket's frames.
    pub(super) fn begin_frames(&self) {
        self.connection.outlet().begin_frames();
    }

    #[cfg(test)]
    fn connection(&self) -> &Connection {
        &self.connection
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream, &Outlet) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.connection.register_writer(cx);
        self.connection.check_open()?;
        let result = loop {
            match self.tcp.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
            match write(&self.tcp, self.connection.outlet()) {
                // The system takes nothing after all.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break Poll::Ready(result),
            }
        };
        let bytes = match &result {
            Poll::Ready(Ok(bytes)) => *bytes,
            _ => 0,
        };
        self.connection.note_write(result.is_ready(), bytes);
        if let Poll::Ready(result) = result {
            if self.stall.take().is_some() {
                // Nothing was read while the write waited.
                self.connection.wake_reader();
            }
            return Poll::Ready(result);
        }
        let limit = self.stall_limit;
        self.stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(self.poll_stalled(cx))?;
        Poll::Pending
    }

    /// Ready if no write waits for the peer, or with an error if one has waited too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stall) = &mut self.stall else {
            return Poll::Ready(Ok(()));
        };
        ready!(stall.as_mut().poll(cx));
        self.transports.0.metrics.slow_sockets.inc();
        if let Some(line) = STALLED.note("") {
            let (peer, limit) = (self.connection.peer(), self.stall_limit);
            info!(%peer, ?limit, left_out = line.left_out, "closing a connection that takes no data");
        }
        self.connection.close();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Counts what was read; an error ends the connection.
    fn take_in(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if let Intake::Requests(heads) = &mut self.intake {
            if !self.connection.is_websocket() {
                heads.read(bytes);
                return Ok(());
            }
            if !heads.end_with(self.connection.requests()) {
                // RFC 6455, 4.1: a client waits for the answer to its handshake. Bytes that
                // came earlier could not be told from the frames that follow.
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
    /// A websocket's frames.
    Frames(Box<(Frames, Budget)>),
}

impl Stream {
    fn poll_write_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.replacement.is_empty() {
            let bytes = self.replacement.clone();
            let written = ready!(self.poll_write_with(cx, |_, outlet| outlet.write(&bytes)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.replacement.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes as much of [`Stream::replacement`] as the peer takes now, in the place of
    /// `length` bytes; the rest goes with the flush that follows.
    fn begin_replacement(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match self.poll_write_replacement(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(length)),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.outlet().end();
        self.transports.0.registry.ended(&self.connection);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.connection.register_reader(cx);
        self.connection.check_open()?;
        ready!(self.poll_stalled(cx))?;
        let before = buffer.filled().len();
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tcp.try_read_buf(buffer) {
                // Nothing is there after all.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    read?;
                    break;
                }
            }
        }
        Poll::Ready(self.take_in(&mut buffer.filled_mut()[before..]))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_replacement(cx))?;
        if self.connection.expects_open_packet()
            && let Some(announced) = open_packet::announce(bytes)
        {
            self.connection.open_packet_written();
            self.replacement = announced;
            return self.begin_replacement(cx, bytes.len());
        }
        let reply = self.connection.expected_reply();
        match reply.and_then(|reply| reply.in_frames(bytes)) {
            None => match self.connection.outlet().next(bytes) {
                Next::Write(most) => {
                    self.poll_write_with(cx, |_, outlet| outlet.write(&bytes[..most]))
                }
                Next::Skip(marker) => Poll::Ready(Ok(marker)),
            },
            Some(replaced) => {
                let before = &bytes[..replaced.at];
                self.replacement = [before, &replaced.frame].concat().into();
                self.begin_replacement(cx, replaced.at + replaced.length)
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Only HTTP responses come here: websockets write their frames in one piece.
        self.poll_write_with(cx, |tcp, _| tcp.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP stream has nothing to flush.
        self.poll_write_replacement(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_replacement(cx))?;
        Poll::Ready(SockRef::from(&*self.tcp).shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, split};

    use super::{super::Served, *};

    /// Longer than anything here takes, however slow the machine.
    const DEADLINE: Duration = Duration::from_secs(30);

    /// A stream and its peer.
    async fn connected(stall_limit: Duration) -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap());
        let peer = peer.await.unwrap();
        let (tcp, address) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let tcp = TcpStream::from_std(tcp).unwrap();
        let transports = Transports::unserved();
        let connection = Connection::new(0, address);
        assert_eq!(transports.admit(&connection), Served::All);
        (Stream::new(tcp, connection, stall_limit, transports), peer)
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
    async fn a_peer_that_takes_nothing_is_not_read_from_until_it_does() {
        let (mut stream, mut peer) = connected(DEADLINE * 2).await;
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
        // The write's progress alone wakes the reader.
        let read = tokio::time::timeout(DEADLINE, reading).await;
        assert_eq!(&read.unwrap().unwrap().unwrap(), b"hello");
        writing.await.unwrap().unwrap();
        draining.abort();
    }

    #[tokio::test]
    async fn a_stuck_write_ends_also_where_nobody_but_a_reader_waits() {
        let (mut stream, _peer) = connected(Duration::from_millis(500)).await;
        stuff(&mut stream).await;
        let mut byte = [0];
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut byte)).await;
        assert_eq!(read.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(stream.connection().check_open().is_err());
    }

    #[tokio::test]
    async fn frames_that_come_before_the_answer_to_the_handshake_end_the_connection() {
        for (early, is_open) in [("", true), ("\u{1}", false), ("\u{1}\r\n\r\n", false)] {
            let (mut stream, mut peer) = connected(DEADLINE).await;
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
