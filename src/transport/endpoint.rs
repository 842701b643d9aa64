//! The way from the transports to Socket.IO's endpoint, for what it has no calls for.

use std::{convert::Infallible, fmt::Display};

use axum::{
    body::Body,
    extract::Request,
    http,
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use socketioxide::socket::Sid;
use tower::{Service, ServiceExt};
use tracing::debug;

use super::takeover::Websocket;

/// Socket.IO's endpoint.
pub struct Endpoint {
    post: Box<dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync>,
    serve: Box<dyn Fn(Websocket, http::Request<()>) + Send + Sync>,
}

impl Endpoint {
    /// `service`: what [`SocketIo`](socketioxide::SocketIo) builds.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        <S as Service<Request>>::Response: IntoResponse,
        <S as Service<Request>>::Future: Send,
        S: Service<(Websocket, http::Request<()>), Response = ()>,
        <S as Service<(Websocket, http::Request<()>)>>::Error: Display,
        <S as Service<(Websocket, http::Request<()>)>>::Future: Send,
    {
        let posts = service.clone();
        Self {
            post: Box::new(move |request| {
                let response = ServiceExt::<Request>::oneshot(posts.clone(), request);
                Box::pin(async move {
                    let response = response.await;
                    response.map_or_else(|never| match never {}, IntoResponse::into_response)
                })
            }),
            serve: Box::new(move |websocket, request| {
                let mut service = service.clone();
                // It is always ready, and goes on in a task of its own.
                let serving = service.call((websocket, request));
                tokio::spawn(async move {
                    if let Err(error) = serving.await {
                        debug!(%error, "a websocket was not taken");
                    }
                });
            }),
        }
    }

    /// Serves a websocket that was asked for by `request`.
    pub(super) fn serve(&self, websocket: Websocket, request: http::Request<()>) {
        (self.serve)(websocket, request);
    }

    /// Ends a session that polls.
    pub(super) fn end(&self, sid: Sid) {
        tokio::spawn(self.post(sid, "1"));
    }

    /// Why nothing can be posted to a session, as Engine.IO answers it: there is none,
    /// or it does not poll.
    pub(super) async fn refuses(&self, sid: Sid) -> Option<Response> {
        let response = self.post(sid, "").await;
        (!response.status().is_success()).then_some(response)
    }

    /// Posts packets to a session, as its client does.
    fn post(&self, sid: Sid, packets: &'static str) -> BoxFuture<'static, Response> {
        let uri = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
        let request = Request::post(uri).body(Body::from(packets));
        (self.post)(request.expect("the request is well-formed"))
    }
}
