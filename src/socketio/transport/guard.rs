//! What stands before Socket.IO's endpoint: every request to it passes here.
//!
//! Turns away what must not get in, takes websockets out of the way, counts what
//! polling clients send and how much they take, and leaves a handshake's request with
//! nothing but what is read from it later.

use axum::{
    Extension,
    body::{HttpBody, to_bytes},
    extract::{Request, State},
    http::{self, HeaderMap, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use socketioxide::socket::Sid;

use super::{
    Connection, MAX_MESSAGE_BYTES, Transports, body, connect_reply::ConnectReply, open_packet,
    polling::Opening, websocket,
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

/// The parameters of a handshake's query that Engine.IO reads.
const PARAMETERS: [&str; 3] = ["EIO", "transport", "sid"];

/// Longest value of such a parameter, in bytes; valid ones are shorter.
const MAX_VALUE_BYTES: usize = 64;

/// A handshake's request, with nothing but what is read from here on: a socket keeps its
/// request for life.
pub(super) fn lean<B>(request: http::Request<B>) -> http::Request<B> {
    let (mut parts, body) = request.into_parts();
    parts.headers = HeaderMap::new();
    let query = parts.uri.query();
    let values = PARAMETERS.map(|name| Some((name, query_value(query, name)?)));
    let pairs = values.into_iter().flatten().map(|(name, value)| {
        // An overlong value is emptied and not left out: a handshake with a wrong `sid` is
        // not one without a `sid`.
        let value = if value.len() <= MAX_VALUE_BYTES {
            value
        } else {
            ""
        };
        format!("{name}={value}")
    });
    let pairs: Vec<String> = pairs.collect();
    let uri = format!("{}?{}", PATH, pairs.join("&"));
    // Parts of a URI that was parsed can be parsed again.
    parts.uri = uri.parse().unwrap_or_default();
    http::Request::from_parts(parts, body)
}

/// Where Socket.IO's clients look for its endpoint.
const PATH: &str = "/socket.io/";

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

/// The Engine.IO session that a request belongs to; `None` for a handshake.
pub fn session_id(uri: &Uri) -> Option<Sid> {
    query_value(uri.query(), "sid").and_then(|sid| sid.parse().ok())
}

/// Whether a request is for a websocket, as engineioxide decides: it looks no further
/// than a second `=`. A websocket that was taken for polling here would escape every
/// close.
pub(super) fn is_websocket(query: Option<&str>) -> bool {
    let transport = query_value(query, "transport").and_then(|value| value.split('=').next());
    transport == Some("websocket")
}

/// The first value of a query's parameter, as it was sent.
pub(super) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_is_what_engine_io_takes_for_one() {
        for (query, expected) in [
            ("EIO=4&transport=websocket", true),
            ("transport=websocket=x&EIO=4", true),
            ("transport=websocket&transport=polling", true),
            ("transport=polling&transport=websocket", false),
            ("transport=websockets", false),
            ("Transport=websocket", false),
            ("xtransport=websocket", false),
            ("transport", false),
            ("", false),
        ] {
            assert_eq!(is_websocket(Some(query)), expected, "{query}");
        }
        assert!(!is_websocket(None));
    }

    #[test]
    fn a_handshake_keeps_nothing_but_what_is_read_of_it() {
        let lean_uri = |query: &str| {
            let request = http::Request::get(format!("/socket.io/?{query}"))
                .header("authorization", "Bearer secret")
                .body(());
            let request = lean(request.unwrap());
            assert!(request.headers().is_empty());
            request.uri().to_string()
        };
        assert_eq!(
            lean_uri("token=secret&transport=polling&EIO=4&t=abc"),
            "/socket.io/?EIO=4&transport=polling"
        );
        let longest = "x".repeat(MAX_VALUE_BYTES);
        assert_eq!(
            lean_uri(&format!("EIO=4&sid={longest}")),
            format!("/socket.io/?EIO=4&sid={longest}")
        );
        // A wrong session is not turned into a new one.
        assert_eq!(
            lean_uri(&format!("EIO=4&sid={longest}x")),
            "/socket.io/?EIO=4&sid="
        );
    }

    #[test]
    fn only_a_well_formed_id_names_a_session() {
        let sid = Sid::new();
        let named = |query: &str| session_id(&format!("/?{query}").parse().unwrap());
        assert_eq!(named(&format!("EIO=4&sid={sid}")), Some(sid));
        assert_eq!(named("EIO=4"), None);
        assert_eq!(named("sid=x"), None);
        assert_eq!(named(&format!("sid=x&sid={sid}")), None);
    }
}
