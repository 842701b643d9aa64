//! The way out of a connection, for its two writers: Socket.IO's own tasks, and whoever has
//! an event for the socket and writes it at once.
//!
//! Socket.IO writes what begins and keeps a socket: OPEN, CONNECT, pings, acknowledgements. A
//! session's events are written here, past its buffers, once a marker has come out of them:
//! a packet of the gateway's own, sent through Socket.IO and taken away here. What Socket.IO had
//! for the socket before is out then.
//!
//! Knows frames and their boundaries, and no event. A session's frames are held for a moment, so
//! that those of one turn are written together. What the peer takes then is up to the kernel.
//!
//! Invariants: no writer begins while a frame of the other one is written in part; a session
//! writes directly only between its marker and the next session's; nothing is written directly
//! behind a close frame.

mod writer;

use std::{
    io,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::{net::TcpStream, sync::Notify};

pub use self::writer::MARKER;
use self::writer::Writer;
pub(super) use self::writer::{Next, Written};
use super::lock;

#[derive(Debug, Default)]
pub(super) struct Outlet {
    state: Mutex<State>,
    /// Somebody who waits may look again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// `None` before the connection is served, and once it has ended.
    tcp: Option<Arc<TcpStream>>,
    writer: Writer,
}

impl Outlet {
    /// From now on, `tcp` is written to.
    pub(super) fn begin(&self, tcp: Arc<TcpStream>) {
        lock(&self.state).tcp = Some(tcp);
    }

    /// From now on, what is written are a websocket's frames.
    pub(super) fn begin_frames(&self) {
        lock(&self.state).writer.begin_frames();
    }

    /// The connection has ended, or is closed.
    pub(super) fn end(&self) {
        *lock(&self.state) = State::default();
        self.changed.notify_waiters();
    }

    /// Has a session write directly from now on. Returns whether its marker has to be sent.
    pub(super) fn ask(&self, session: u64) -> bool {
        lock(&self.state).writer.ask(session)
    }

    /// Writes what Socket.IO has, behind the rest of a direct frame.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::WouldBlock`] while the peer takes nothing.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = lock(&self.state);
        let State { tcp, writer } = &mut *state;
        let tcp = tcp.as_ref().ok_or(io::ErrorKind::ConnectionAborted)?;
        let was_between = writer.is_between();
        let written = writer.write(bytes, |bytes| tcp.try_write(bytes));
        if !was_between && writer.is_between() {
            self.changed.notify_waiters();
        }
        written
    }

    /// How to go on with what Socket.IO is about to write.
    pub(super) fn next(&self, bytes: &[u8]) -> Next {
        let mut state = lock(&self.state);
        let next = state.writer.next(bytes);
        if matches!(next, Next::Skip(_)) {
            self.changed.notify_waiters();
        }
        next
    }

    /// Holds a session's frames until they are flushed. Returns whether they are held.
    ///
    /// # Errors
    /// If the connection has ended.
    pub(super) fn hold(&self, session: u64, frames: &Bytes) -> io::Result<bool> {
        let mut state = lock(&self.state);
        let State { tcp, writer } = &mut *state;
        match tcp {
            Some(_) => writer.hold(session, frames),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Undoes the latest calls of [`Self::hold`] of which nothing was written; returns their
    /// number.
    pub(super) fn undo(&self, session: u64) -> usize {
        lock(&self.state).writer.undo(session)
    }

    /// Writes the frames that are held for a session.
    ///
    /// # Errors
    /// Those of the system, if the connection has ended.
    pub(super) fn flush(&self, session: u64) -> io::Result<Written> {
        let mut state = lock(&self.state);
        let State { tcp, writer } = &mut *state;
        let tcp = tcp.as_ref().ok_or(io::ErrorKind::ConnectionAborted)?;
        writer.flush(session, |frames| match frames {
            [one] => tcp.try_write(one),
            several => tcp.try_write_vectored(several),
        })
    }

    /// Returns once a session may write directly and the peer takes something, or when the
    /// connection has ended.
    pub(super) async fn takes_more(&self, session: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let tcp = {
                let state = lock(&self.state);
                let Some(tcp) = &state.tcp else { return };
                state.writer.may_write(session).then(|| tcp.clone())
            };
            match tcp {
                None => changed.await,
                Some(tcp) => tokio::select! {
                    // An error shows at the next write.
                    _ = tcp.writable() => return,
                    () = changed => {}
                },
            }
        }
    }
}
