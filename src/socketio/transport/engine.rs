//! The way on from the transports to Socket.IO: hands it websockets, and asks of it as a
//! client would what it has no calls for.
//!
//! Knows a service and session ids; which connection belongs to which session is the
//! registry's to know.

use std::{convert::Infallible, fmt::Display, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{self, Method, StatusCode},
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use socketioxide::socket::Sid;
use tokio::{runtime::Handle, time::timeout};
use tower::{Service, ServiceExt};
use tracing::debug;

use super::takeover::Websocket;

/// Longest wait for a session's first ping, which Engine.IO sends at once.
const FIRST_PING: Duration = Duration::from_millis(100);

/// Socket.IO's service, as the transports use it.
pub struct Engine {
    call: Box<dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync>,
    serve: Box<dyn Fn(Websocket, http::Request<()>) + Send + Sync>,
}

impl Engine {
    /// `service`: the one that [`SocketIo`](socketioxide::SocketIo) builds.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        <S as Service<Request>>::Response: IntoResponse,
        <S as Service<Request>>::Future: Send,
        S: Service<(Websocket, http::Request<()>), Response = ()>,
        <S as Service<(Websocket, http::Request<()>)>>::Error: Display,
        <S as Service<(Websocket, http::Request<()>)>>::Future: Send,
    {
        let calls = service.clone();
        Self {
            call: Box::new(move |request| {
                let response = ServiceExt::<Request>::oneshot(calls.clone(), request);
                Box::pin(async move {
                    let response = response.await;
                    response.map_or_else(|never| match never {}, IntoResponse::into_response)
                })
            }),
            serve: Box::new(move |websocket, request| {
                let mut service = service.clone();
                // The service is always ready. What it returns goes on in a separate task.
                let serving = service.call((websocket, request));
                tokio::spawn(async move {
                    if let Err(error) = serving.await {
                        debug!(%error, "a websocket was not taken");
                    }
                });
            }),
        }
    }

    /// Serves a websocket that `request` asked for.
    pub(super) fn serve(&self, websocket: Websocket, request: http::Request<()>) {
        (self.serve)(websocket, request);
    }

    /// Lets a session that was opened by polling begin as it does with Node's server, which
    /// sends the first ping after an interval; engineioxide sends one at once. A client
    /// that is refused while it still answers that ping may never say that it leaves, and
    /// then waits for its last poll for as long as the session lives (python-engineio
    /// 4.15). So the ping is taken and answered here, before the client knows its session.
    pub(super) async fn spare_first_ping(&self, opened: Response) -> Response {
        let (parts, body) = opened.into_parts();
        // The body is in memory already.
        let Ok(packet) = to_bytes(body, usize::MAX).await else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        if let Some(sid) = opened_session(&packet) {
            let poll = (self.call)(request(Method::GET, sid, ""));
            if timeout(FIRST_PING, poll).await.is_ok() {
                self.post(sid, "3").await;
            }
        }
        Response::from_parts(parts, packet.into())
    }

    /// Ends a session that polls.
    pub(super) fn end(&self, sid: Sid) {
        // Without a runtime, no session is left to be ended.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.post(sid, "1"));
        }
    }

    /// Engine.IO's refusal to take anything for a session, if it refuses: the session does
    /// not exist, or does not poll.
    pub(super) async fn refuses(&self, sid: Sid) -> Option<Response> {
        let response = self.post(sid, "").await;
        (!response.status().is_success()).then_some(response)
    }

    /// Posts packets to a session, as its client would.
    fn post(&self, sid: Sid, packets: &'static str) -> BoxFuture<'static, Response> {
        (self.call)(request(Method::POST, sid, packets))
    }
}

#[cfg(test)]
impl Engine {
    /// An engine for tests: notes what is asked of it, and answers 200.
    pub(super) fn noting(note: impl Fn(Request) + Send + Sync + 'static) -> Self {
        Self {
            call: Box::new(move |request| {
                note(request);
                Box::pin(async { StatusCode::OK.into_response() })
            }),
            serve: Box::new(|_, _| ()),
        }
    }
}

fn request(method: Method, sid: Sid, body: &'static str) -> Request {
    let uri = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let request = Request::builder().method(method).uri(uri);
    let request = request.body(Body::from(body));
    request.expect("the request is well-formed")
}

/// The session that an open packet names.
fn opened_session(packet: &[u8]) -> Option<Sid> {
    #[derive(Deserialize)]
    struct Open<'a> {
        sid: &'a str,
    }
    let open: Open = serde_json::from_slice(packet.strip_prefix(b"0")?).ok()?;
    open.sid.parse().ok()
}
