//! Everything on the listener that is not Socket.IO: health, metrics, admin API.
//!
//! Answers may show metrics; no decision depends on one.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tracing::warn;

use super::presence;
use crate::{
    config::{HttpConfig, MIN_ADMIN_TOKEN_BYTES, Secret, TrustedProxies},
    observability::metrics::{self, Metrics},
    observability::sampled::Sampled,
    socketio::Hub,
    socketio::endpoint::Endpoint,
    socketio::limits::{RefusalLimit, client_network},
    socketio::revocation::{MAX_ORDER_BYTES, Order, OrderText},
    socketio::transport::{Connection, Transports, whole_body},
    user::UserId,
};

#[derive(Clone)]
struct Http {
    endpoint: Arc<Endpoint>,
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
    admin_token: Option<Secret>,
    proxies: TrustedProxies,
    /// Counts wrong admin tokens by client network.
    refusals: Arc<RefusalLimit>,
}

/// Wrong admin tokens accepted for checking from one address: this many per second, and
/// five times as many at once, because an operator mistypes a few.
const WRONG_TOKENS_PER_SECOND: u32 = 2;

/// Log lines about wrong admin tokens.
static REFUSED: Sampled = Sampled::new();

/// The routes for probes, and the routes for operators: metrics and, with an admin token,
/// `/api`.
pub fn routers(
    endpoint: Arc<Endpoint>,
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
    config: &HttpConfig,
) -> (Router, Router) {
    let admin_token = config.admin_token.as_ref().and_then(Secret::expose);
    if let Some(bytes) = admin_token.map(str::len)
        && bytes < MIN_ADMIN_TOKEN_BYTES
    {
        warn!(
            bytes,
            "ADMIN_TOKEN is weak: use 32 random bytes (openssl rand -hex 32)"
        );
    }
    let state = Http {
        endpoint,
        hub,
        transports,
        metrics,
        admin_token: config.admin_token.clone(),
        proxies: config.trusted_proxies.clone(),
        refusals: Arc::new(RefusalLimit::new(WRONG_TOKENS_PER_SECOND)),
    };
    let probes = Router::new()
        // Chat3's own services have both names.
        .route("/health", get(health))
        .route("/livez", get(health))
        .route("/ready", get(ready))
        .route("/readyz", get(ready))
        .with_state(state.clone());
    let api = Router::new()
        .route("/api/stats", get(stats))
        .route("/api/users/{user_id}", get(user))
        .route("/api/users/{user_id}/disconnect", post(disconnect_user))
        .route("/api/tokens/{token_id}/revoke", post(revoke_token))
        .route_layer(middleware::from_fn(whole_body::<MAX_ORDER_BYTES>))
        .merge(
            Router::new()
                .route("/api/presence", post(presence_of_many))
                .route_layer(middleware::from_fn(whole_body::<{ presence::MAX_BYTES }>)),
        )
        .route_layer(middleware::from_fn_with_state(state.clone(), require_admin));
    let operators = Router::new()
        .route("/metrics", get(exposition))
        .merge(api)
        .with_state(state);
    (probes, operators)
}

/// Whether the process is up: 200 even without RabbitMQ, since a restart would not help.
async fn health(State(http): State<Http>) -> Json<Value> {
    let broker = http.hub.broker();
    let connected = broker.is_connected();
    let rabbitmq = match (broker.is_embedded(), connected) {
        (true, _) => "none",
        (false, true) => "connected",
        (false, false) => "disconnected",
    };
    Json(json!({"status": "ok", "rabbitmq": rabbitmq, "isConnected": connected}))
}

/// Whether a load balancer may send new clients here. Where sessions can be resumed anywhere,
/// also what of the past is here for them.
async fn ready(State(http): State<Http>) -> (StatusCode, Json<Value>) {
    let (code, status) = match http.transports.is_ready() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let mut answer = json!({"status": status});
    if let Some(history) = http.hub.broker().history() {
        let state = match history.is_reading() {
            true => "reading",
            false => "read",
        };
        answer["history"] = json!({
            "state": state,
            "seconds": history.look().age().as_secs(),
            "roundTripMs": history.round_trip().map(|took| took.as_millis()),
        });
    }
    (code, Json(answer))
}

async fn exposition(State(http): State<Http>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    (content_type, http.metrics.render())
}

async fn stats(State(http): State<Http>) -> Json<Value> {
    // Three of these are metrics: the answer only shows them.
    let metrics = &http.metrics;
    Json(json!({
        "isConnected": http.hub.broker().is_connected(),
        "subscribersCount": http.hub.broker().subscribers_count(),
        "usersCount": http.hub.users_count(),
        "socketsCount": http.hub.sockets_count(),
        "updatesReceived": metrics.updates_received.get(),
        "updatesDelivered": metrics.updates_delivered.get(),
        "reconnects": metrics.broker_reconnects.get(),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

async fn user(State(http): State<Http>, Path(user_id): Path<String>) -> Response {
    let Ok(user_id) = UserId::parse(&user_id) else {
        return error(StatusCode::BAD_REQUEST, "user id not acceptable");
    };
    let here = http.hub.describe(&user_id);
    let mut answer = json!({"isSubscribed": here.is_subscribed, "sockets": here.sockets});
    presence::add_to(&mut answer, user_id, &http.hub).await;
    Json(answer).into_response()
}

/// Whether users are online in the whole fleet.
async fn presence_of_many(State(http): State<Http>, body: Bytes) -> Response {
    match presence::answer(&body, &http.hub).await {
        Ok(answer) => Json(answer).into_response(),
        Err((status, problem)) => error(status, &problem),
    }
}

/// Disconnects a user's sockets on all instances that can be reached.
async fn disconnect_user(
    State(http): State<Http>,
    Path(user_id): Path<String>,
    body: Bytes,
) -> Response {
    let target = OrderText {
        user_id: Some(user_id),
        ..OrderText::default()
    };
    order(&http, target, &body).await
}

/// Disconnects the bearers of one token, which its `jti` names, and revokes the token.
async fn revoke_token(
    State(http): State<Http>,
    Path(token_id): Path<String>,
    body: Bytes,
) -> Response {
    let target = OrderText {
        token_id: Some(token_id),
        ..OrderText::default()
    };
    order(&http, target, &body).await
}

async fn order(http: &Http, target: OrderText, body: &[u8]) -> Response {
    let details = match body {
        [] => OrderText::default(),
        body => match OrderText::read(body) {
            Ok(details) => details,
            Err(problem) => return error(StatusCode::BAD_REQUEST, &problem.to_string()),
        },
    };
    if details.user_id.is_some() || details.token_id.is_some() {
        return error(StatusCode::BAD_REQUEST, "the target is named in the path");
    }
    if details.at.is_some() {
        return error(
            StatusCode::BAD_REQUEST,
            "at is for messages: this order is made now",
        );
    }
    let text = OrderText {
        user_id: target.user_id,
        token_id: target.token_id,
        ..details
    };
    let (now, asked_until) = (SystemTime::now(), text.until);
    let order = match Order::parse(text, now) {
        // From another instance such an order still disconnects: it was in time when sent.
        Ok(order) if order.is_over(now) => {
            return error(StatusCode::BAD_REQUEST, "until is over");
        }
        Ok(order) => order,
        Err(problem) => return error(StatusCode::BAD_REQUEST, &problem.to_string()),
    };
    let sockets = http.endpoint.carry_out(&order);
    let message = serde_json::to_vec(&order.text()).expect("an order is plain JSON");
    let broadcast = http.hub.broker().broadcast(message.into()).await;
    let mut answer = json!({"sockets": sockets, "broadcast": broadcast});
    if order.until != asked_until {
        answer["until"] = order.until.into();
    }
    Json(answer).into_response()
}

/// Admits the holder of the admin token. Wrong tokens exhaust the limit of their client's
/// network; clients elsewhere are not affected.
async fn require_admin(
    State(http): State<Http>,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let Some(expected) = http.admin_token.as_ref().and_then(Secret::expose) else {
        return not_found().await;
    };
    let client = client_network(connection.peer(), request.headers(), &http.proxies);
    if http.refusals.is_exceeded(client) {
        http.metrics.admin_refused("address_refusals");
        return error(StatusCode::TOO_MANY_REQUESTS, "too many wrong admin tokens");
    }
    let presented = bearer(request.headers());
    if presented.is_some_and(|token| token.as_bytes().ct_eq(expected.as_bytes()).into()) {
        return next.run(request).await;
    }
    http.refusals.note(client);
    http.metrics.admin_refused(match presented {
        Some(_) => "wrong_token",
        None => "token_missing",
    });
    if let Some(line) = REFUSED.note("wrong_token") {
        warn!(%client, left_out = line.left_out, "admin token refused");
    }
    error(StatusCode::UNAUTHORIZED, "admin token required")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The answer to a path that does not exist.
pub async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "not found")
}

/// The form of an error that every JSON endpoint answers with.
pub fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}
