//! What stands before Socket.IO's endpoint: every request to it passes here.

use axum::{
    Extension,
    body::{HttpBody, to_bytes},
    extract::{Request, State},
    http::{self, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use socketioxide::socket::Sid;

use super::{Transports, connect_reply::ConnectReply, lock, stream::Connection, websocket};

/// Stands before Socket.IO's endpoint: turns away what must not get in, takes
/// websockets out of the way, and notes how much polling takes.
pub async fn guard(
    State(transports): State<Transports>,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let wants_websocket = is_websocket(request.uri().query());
    let draining = transports.is_draining();
    let Some(sid) = session_id(request.uri()) else {
        if draining {
            let retry = [(header::RETRY_AFTER, "1")];
            return (StatusCode::SERVICE_UNAVAILABLE, retry, "shutting down").into_response();
        }
        if wants_websocket {
            return websocket::open(&transports, &connection, request).await;
        }
        let opened = next.run(lean(request)).await;
        return transports.endpoint().spare_first_ping(opened).await;
    };
    // While draining, whoever is not in yet must not get in: see `close_unwatched`.
    let is_closed = match lock(&transports.0.sockets).get(&sid) {
        Some(watched) => watched.closed,
        None => draining,
    };
    if is_closed {
        // Engine.IO's own answer to a session that is gone.
        let unknown = r#"{"code":1,"message":"Session ID unknown"}"#;
        let json = [(header::CONTENT_TYPE, "application/json")];
        return (StatusCode::BAD_REQUEST, json, unknown).into_response();
    }
    if wants_websocket {
        return websocket::open(&transports, &connection, request).await;
    }
    let is_poll = request.method() == Method::GET;
    if is_poll && let Some(watched) = lock(&transports.0.sockets).get_mut(&sid) {
        watched.polling = Some(connection.clone());
    }
    let response = next.run(request);
    let mut response = match is_poll {
        true => transports.0.takeovers.until_released(sid, response).await,
        false => response.await,
    };
    if is_poll && let Some(reply) = transports.connect_reply(sid) {
        response = exchange_connect_reply(response, &reply).await;
    }
    if is_poll && let Some(watched) = lock(&transports.0.sockets).get_mut(&sid) {
        watched.polling = None;
        watched.polled += response.body().size_hint().lower();
    }
    response
}

/// Headers that are read of a handshake from here on; the rest is not kept.
const HANDSHAKE_HEADERS: [HeaderName; 1] = [header::AUTHORIZATION];

/// A handshake's request, in memory of its own: a socket keeps it for life, and
/// what hyper parsed is slices of its 8 KiB read buffer.
pub(super) fn lean<B>(request: http::Request<B>) -> http::Request<B> {
    let (mut parts, body) = request.into_parts();
    let mut headers = HeaderMap::with_capacity(HANDSHAKE_HEADERS.len());
    for name in HANDSHAKE_HEADERS {
        let copied = parts.headers.get(&name);
        let copied = copied.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
        if let Some(value) = copied {
            headers.insert(name, value);
        }
    }
    parts.headers = headers;
    // Parsed once already, it parses again.
    if let Ok(uri) = parts.uri.to_string().parse() {
        parts.uri = uri;
    }
    http::Request::from_parts(parts, body)
}

async fn exchange_connect_reply(response: Response, reply: &ConnectReply) -> Response {
    let (mut parts, body) = response.into_parts();
    // It is in memory already, whatever its size.
    let Ok(payload) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let Some(exchanged) = reply.in_payload(&payload) else {
        return Response::from_parts(parts, payload.into());
    };
    // hyper knows the new one.
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, exchanged.into())
}

/// The Engine.IO session that a request belongs to; `None` for a handshake.
pub fn session_id(uri: &Uri) -> Option<Sid> {
    query_value(uri.query(), "sid").and_then(|sid| sid.parse().ok())
}

/// As engineioxide reads it, which looks no further than a second `=`: a websocket
/// that was taken for polling here would escape every close.
pub(super) fn is_websocket(query: Option<&str>) -> bool {
    let transport = query_value(query, "transport").and_then(|value| value.split('=').next());
    transport == Some("websocket")
}

pub(super) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}
