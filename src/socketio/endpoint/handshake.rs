//! Handshakes: the limits on new Engine.IO sessions, and what a session keeps of
//! its handshake request.
//!
//! A handshake over a limit is answered with an HTTP error, after which clients
//! retry by themselves. After a refused CONNECT they would stay away.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use socketioxide::extract::SocketRef;
use tracing::{debug, warn};
use url::form_urlencoded;

use super::{Endpoint, REFUSED};
use crate::{
    auth::Refusal,
    socketio::limits::{SessionConnects, Slot, client_network},
    socketio::transport::{self, Connection},
};

/// Longest token in a header or a query, in bytes. Longer ones are not kept, and so
/// count as missing.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// What an Engine.IO session holds from its handshake to its end.
pub(super) struct Seat {
    _slot: Slot,
    /// The client that the session counts for.
    client: IpAddr,
    pub(super) connects: SessionConnects,
    /// The credentials of the handshake itself, until a socket is let in.
    presented: Mutex<Option<Arc<Parts>>>,
}

impl Seat {
    pub(super) fn of(socket: &SocketRef) -> Option<&Arc<Self>> {
        socket.req_parts().extensions.get()
    }

    pub(super) fn presented(&self) -> MutexGuard<'_, Option<Arc<Parts>>> {
        self.presented
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client that a socket counts for.
pub(super) fn client(socket: &SocketRef) -> IpAddr {
    Seat::of(socket).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |seat| seat.client)
}

/// Turns away handshakes over the limits, and gives a [`Seat`] to the others.
pub(super) async fn limit(
    State(endpoint): State<Arc<Endpoint>>,
    Extension(connection): Extension<Connection>,
    mut request: Request,
    next: Next,
) -> Response {
    if transport::session_id(request.uri()).is_some() {
        return next.run(request).await;
    }
    let max_sockets = endpoint.config.max_sockets;
    let Some(slot) = endpoint.slots.take(max_sockets) else {
        endpoint.metrics.connect_refused("server_full");
        if !endpoint.is_full.swap(true, Ordering::Relaxed)
            && let Some(line) = REFUSED.note("server_full")
        {
            warn!(
                max_sockets,
                left_out = line.left_out,
                "Connections refused: as many sockets as MAX_SOCKETS allows"
            );
        }
        return turn_away(StatusCode::SERVICE_UNAVAILABLE, "too many connections");
    };
    endpoint.is_full.store(false, Ordering::Relaxed);
    if let Err(address) = endpoint
        .connect_limit
        .check(connection.peer(), request.headers())
    {
        endpoint.metrics.connect_refused("address_rate");
        debug!(%address, "Connection refused: too many handshakes from one address");
        return turn_away(
            StatusCode::TOO_MANY_REQUESTS,
            "too many connections from this address",
        );
    }
    let proxies = &endpoint.config.trusted_proxies;
    let client = client_network(connection.peer(), request.headers(), proxies);
    if endpoint.refusal_limit.is_exceeded(client) {
        let refusal = Refusal::AddressRefusals;
        endpoint.metrics.connect_refused(refusal.label());
        if let Some(line) = REFUSED.note("handshake") {
            let left_out = line.left_out;
            warn!(%client, left_out, "Connections refused: {refusal} (MAX_REFUSALS_PER_SECOND)");
        }
        return turn_away(
            StatusCode::TOO_MANY_REQUESTS,
            "too many refused connections from this address",
        );
    }
    let presented = credentials(&request, endpoint.verifier.allows_query());
    let seat = Seat {
        _slot: slot,
        client,
        connects: SessionConnects::default(),
        presented: Mutex::new(presented.map(Arc::new)),
    };
    request.extensions_mut().insert(Arc::new(seat));
    next.run(request).await
}

/// The parts of a handshake that may carry a token, copied: a slice would keep the
/// whole request in memory.
fn credentials(request: &Request, allow_query: bool) -> Option<Parts> {
    let is_short = |length| length <= MAX_TOKEN_BYTES + "Bearer ".len();
    let header = request.headers().get(header::AUTHORIZATION);
    let header = header.filter(|value| is_short(value.len()));
    let header = header.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
    let query = request.uri().query().filter(|_| allow_query);
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let token = pairs.find_map(|(name, value)| (name == "token").then_some(value));
    let token = token.filter(|token| is_short(token.len()));
    if header.is_none() && token.is_none() {
        return None;
    }
    let mut parts = without_credentials();
    if let Some(header) = header {
        parts.headers.insert(header::AUTHORIZATION, header);
    }
    if let Some(token) = token {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let query = query.append_pair("token", &token).finish();
        parts.uri = format!("/?{query}").parse().unwrap_or_default();
    }
    Some(parts)
}

/// The parts of a request that presents nothing.
pub(super) fn without_credentials() -> Parts {
    Request::new(Body::empty()).into_parts().0
}

fn turn_away(status: StatusCode, message: &'static str) -> Response {
    (status, [(header::RETRY_AFTER, "1")], message).into_response()
}
