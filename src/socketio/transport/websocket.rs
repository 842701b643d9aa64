//! Answers a request for a websocket: refuses it, or answers it with 101 and hands the
//! websocket to Socket.IO from a separate task.
//!
//! A websocket that opens a session is handed over at once. One that names a session is
//! probed first (see [`takeover`]). Until the probe has passed, the websocket may fail
//! in any way without its session noticing: the client goes on polling.
//!
//! Whether a request is a valid one is `handshake`'s to judge.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use hyper_util::rt::TokioIo;
use socketioxide::socket::Sid;
use tokio::{
    io::AsyncWriteExt,
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::debug;

use super::{
    Connection, Transports,
    handshake::{Refusal, judge},
    lock,
    query::lean,
    registry::Role,
    stream::Stream,
    takeover::{self, CLOSE, Websocket},
};

/// Time that a probe has: as much as Engine.IO's own servers give.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The websockets that are about to take over a session, and the polls for which their
/// clients wait. A session has at most one such websocket in [`PROBE_TIMEOUT`].
#[derive(Default)]
pub(super) struct Takeovers(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    probing: HashMap<Sid, Connection>,
    /// What releases each session's poll.
    polls: HashMap<Sid, Arc<Notify>>,
}

impl Takeovers {
    /// Closes the websocket that is about to take over the session.
    pub(super) fn close(&self, sid: Sid) {
        let probing = lock(&self.0).probing.get(&sid).cloned();
        if let Some(connection) = probing {
            connection.close();
        }
    }

    /// The websockets that are about to take over, with their sessions.
    pub(super) fn probing(&self) -> Vec<(Sid, Connection)> {
        let tables = lock(&self.0);
        let probing = tables.probing.iter();
        probing
            .map(|(sid, connection)| (*sid, connection.clone()))
            .collect()
    }

    /// Awaits the answer to a poll, or its release, upon which the poll is answered with a
    /// noop. Nothing is lost: the future of the answer is dropped before it has one, and
    /// engineioxide takes packets out of its buffer only when it answers.
    pub(super) async fn until_released(
        &self,
        sid: Sid,
        answer: impl Future<Output = Response>,
    ) -> Response {
        let poll = HeldPoll::new(self, sid);
        tokio::select! {
            biased;
            answer = answer => answer,
            () = poll.released.notified() => noop(),
        }
    }

    fn release_poll(&self, sid: Sid) {
        if let Some(released) = lock(&self.0).polls.get(&sid) {
            released.notify_one();
        }
    }
}

/// A poll that waits, and can be released.
struct HeldPoll<'a> {
    takeovers: &'a Takeovers,
    sid: Sid,
    released: Arc<Notify>,
}

impl<'a> HeldPoll<'a> {
    fn new(takeovers: &'a Takeovers, sid: Sid) -> Self {
        let released = Arc::new(Notify::new());
        lock(&takeovers.0).polls.insert(sid, released.clone());
        Self {
            takeovers,
            sid,
            released,
        }
    }
}

impl Drop for HeldPoll<'_> {
    fn drop(&mut self) {
        let polls = &mut lock(&self.takeovers.0).polls;
        // A second poll, which ends the session, may have taken this one's place.
        if polls
            .get(&self.sid)
            .is_some_and(|released| Arc::ptr_eq(released, &self.released))
        {
            polls.remove(&self.sid);
        }
    }
}

/// A session's turn to be taken over.
struct Turn {
    transports: Transports,
    sid: Sid,
    end: Instant,
}

impl Turn {
    /// `None`: another websocket has the turn, or had it just now.
    fn take(transports: &Transports, sid: Sid, connection: &Connection) -> Option<Self> {
        let probing = &mut lock(&transports.0.takeovers.0).probing;
        if probing.contains_key(&sid) {
            return None;
        }
        probing.insert(sid, connection.clone());
        Some(Self {
            transports: transports.clone(),
            sid,
            end: Instant::now() + PROBE_TIMEOUT,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let takeovers = &self.transports.0.takeovers;
        lock(&takeovers.0).probing.remove(&self.sid);
    }
}

/// Answers a request for a websocket.
pub(super) async fn open(
    transports: &Transports,
    connection: &Connection,
    request: Request,
) -> Response {
    let (sid, accepted) = match judge(&request) {
        Ok(judged) => judged,
        Err(refused) => {
            debug!(peer = %connection.peer(), ?refused, "websocket refused");
            transports.0.metrics.connect_refused("bad_websocket");
            return refused.into_response();
        }
    };
    let Some(sid) = sid else {
        let registry = &transports.0.registry;
        registry.change_role(connection, Role::Websocket);
        connection.begin_frames();
        connection.expect_open_packet();
        let opened = serve(transports.clone(), connection.clone(), request);
        tokio::spawn(opened);
        return accepted;
    };
    if let Some(refusal) = transports.0.engine.refuses(sid).await {
        return refusal;
    }
    let Some(turn) = Turn::take(transports, sid, connection) else {
        return Refusal::BadRequest.into_response();
    };
    connection.begin_frames();
    tokio::spawn(take_over(turn, connection.clone(), request));
    accepted
}

/// Hands a websocket that opens a session to Socket.IO.
async fn serve(transports: Transports, connection: Connection, mut request: Request) {
    if let Some((stream, unread)) = upgraded(&mut request).await {
        let websocket = Websocket::new(stream, unread.freeze());
        let request = lean(request.map(drop));
        transports.0.engine.serve(websocket, request);
    } else {
        let registry = &transports.0.registry;
        registry.change_role(&connection, Role::Http);
    }
}

/// Probes a websocket, and hands it to Socket.IO once it may take over its session.
async fn take_over(turn: Turn, connection: Connection, mut request: Request) {
    let Turn {
        ref transports,
        sid,
        end,
    } = turn;
    if let Ok(Some((mut stream, mut unread))) = timeout_at(end, upgraded(&mut request)).await {
        let release_poll = || transports.0.takeovers.release_poll(sid);
        let probe = takeover::probe(&mut stream, &mut unread, release_poll);
        let probe = timeout_at(end, probe).await;
        // From here on, the registry tells which session the connection carries.
        let registry = &transports.0.registry;
        if matches!(probe, Ok(Ok(()))) && registry.upgrade(&connection, sid) {
            if let Some(reply) = registry.expected_reply(sid) {
                connection.expect(reply);
            }
            let websocket = Websocket::probed(stream, &unread);
            let request = lean(request.map(drop));
            return transports.0.engine.serve(websocket, request);
        }
        debug!(peer = %connection.peer(), ?probe, "an upgrade failed; its session goes on as it was");
        // The client may be gone.
        let _ = stream.write_all(CLOSE).await;
    }
    drop(request);
    // An upgrade that fails at once is not tried again at once.
    sleep_until(end).await;
}

/// The stream, and what the client has sent already, once the 101 is written.
async fn upgraded(request: &mut Request) -> Option<(Stream, BytesMut)> {
    let upgraded = hyper::upgrade::on(request).await.ok()?;
    let parts = upgraded.downcast::<TokioIo<Stream>>().ok()?;
    // A copy, since a websocket would keep hyper's buffer of 8 KiB.
    Some((parts.io.into_inner(), BytesMut::from(&parts.read_buf[..])))
}

fn noop() -> Response {
    let text = [(header::CONTENT_TYPE, "text/plain; charset=UTF-8")];
    (StatusCode::OK, text, "6").into_response()
}
