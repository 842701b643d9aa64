//! What stands before Socket.IO's endpoint: every request to it passes here.
//!
//! Turns away what must not get in, takes websockets out of the way, counts what
//! polling clients send and how much they take.

use axum::{
    Extension,
    body::{HttpBody, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use socketioxide::socket::Sid;

use super::{
    Connection, MAX_MESSAGE_BYTES, Transports, body,
    connect_reply::ConnectReply,
    open_packet,
    polling::Opening,
    query::{is_websocket, lean, session_id},
    websocket,
};

/// The middleware before Socket.IO's endpoint.
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
        return match wants_websocket {
            true => websocket::open(&transports, &connection, request).await,
            false => open(&transports, request, next).await,
        };
    };
    // While draining, a client that is not in yet must not get in: see `close_unwatched`.
    if transports.0.registry.is_closed(sid).unwrap_or(draining) {
        return unknown_session();
    }
    if wants_websocket {
        return websocket::open(&transports, &connection, request).await;
    }
    if request.method() != Method::GET {
        return take(&transports, &connection, sid, request, next).await;
    }
    transports.0.registry.begin_poll(sid, &connection);
    let response = next.run(request);
    let mut response = transports.0.takeovers.until_released(sid, response).await;
    if let Some(reply) = transports.0.registry.expected_reply(sid) {
        response = replace_connect_reply(response, &reply).await;
    }
    let bytes = response.body().size_hint().lower();
    transports.0.registry.end_poll(sid, bytes);
    response
}

/// Opens a session that begins by polling.
async fn open(transports: &Transports, mut request: Request, next: Next) -> Response {
    let session = Opening::new(transports);
    request.extensions_mut().insert(session.life());
    let response = next.run(lean(request)).await;
    let response = transports.0.engine.spare_first_ping(response).await;
    let (parts, body) = response.into_parts();
    let Ok(packet) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if let Some(sid) = open_packet::session(&packet) {
        session.begin(transports, sid);
    }
    let packet = open_packet::announce(&packet).unwrap_or(packet);
    Response::from_parts(parts, packet.into())
}

/// Takes what a client sends by polling: reads it whole, counts it and hands it on.
async fn take(
    transports: &Transports,
    connection: &Connection,
    sid: Sid,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    if body::is_too_large(&body, MAX_MESSAGE_BYTES) {
        return body::NoBody::TooLarge.into_response();
    }
    let Some(polling) = transports.0.registry.polling(sid) else {
        return unknown_session();
    };
    let body = tokio::select! {
        body = body::read(body, MAX_MESSAGE_BYTES) => body,
        () = polling.ended.cancelled() => return unknown_session(),
    };
    let body = match body {
        Ok(body) => body,
        Err(problem) => {
            if problem == body::NoBody::TooSlow {
                transports.0.metrics.connection_closed("slow_body");
            }
            return problem.into_response();
        }
    };
    let taken = polling.take(&body);
    if let Err(excess) = taken {
        transports.exceeded(connection.peer(), excess);
    }
    if taken.is_err() || polling.is_deaf() {
        transports.close_session(sid, None);
        return unknown_session();
    }
    next.run(Request::from_parts(parts, body.into())).await
}

/// Engine.IO's own answer to a session that is gone.
fn unknown_session() -> Response {
    let unknown = r#"{"code":1,"message":"Session ID unknown"}"#;
    let json = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::BAD_REQUEST, json, unknown).into_response()
}

/// The response with the CONNECT reply replaced, if it holds the reply.
async fn replace_connect_reply(response: Response, reply: &ConnectReply) -> Response {
    let (mut parts, body) = response.into_parts();
    // The body is in memory already, whatever its size.
    let Ok(payload) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let Some(replaced) = reply.in_payload(&payload) else {
        return Response::from_parts(parts, payload.into());
    };
    // hyper writes the new length.
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, replaced.into())
}
