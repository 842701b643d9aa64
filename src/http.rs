//! Everything on the listener that is not Socket.IO: health, metrics, admin API.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::{
    config::Secret,
    gateway::Gateway,
    hub::Hub,
    metrics::{self, Metrics},
    revocation::{InvalidOrder, Order, OrderText},
    transport::Transports,
    user::UserId,
};

#[derive(Clone)]
struct Http {
    gateway: Arc<Gateway>,
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
    admin_token: Option<Secret>,
}

/// Largest body of an admin request, in bytes.
const MAX_ORDER_BYTES: usize = 16 * 1024;

/// The routes of probes, and those of operators: metrics and, with an admin token,
/// `/api`.
pub fn routers(
    gateway: Arc<Gateway>,
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
    admin_token: Option<Secret>,
) -> (Router, Router) {
    let state = Http {
        gateway,
        hub,
        transports,
        metrics,
        admin_token,
    };
    let probes = Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .with_state(state.clone());
    let api = Router::new()
        .route("/api/stats", get(stats))
        .route("/api/users/{user_id}", get(user))
        .route("/api/users/{user_id}/disconnect", post(disconnect_user))
        .route("/api/tokens/{token_id}/revoke", post(revoke_token))
        .layer(DefaultBodyLimit::max(MAX_ORDER_BYTES))
        .route_layer(middleware::from_fn_with_state(state.clone(), require_admin));
    let operators = Router::new()
        .route("/metrics", get(exposition))
        .merge(api)
        .with_state(state);
    (probes, operators)
}

/// The process is up. 200 also without RabbitMQ: restarting would not help.
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

/// Whether new clients may be sent here.
async fn ready(State(http): State<Http>) -> (StatusCode, Json<Value>) {
    match http.transports.is_draining() {
        true => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"status": "draining"})),
        ),
        false => (StatusCode::OK, Json(json!({"status": "ready"}))),
    }
}

async fn exposition(State(http): State<Http>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    (content_type, http.metrics.render())
}

async fn stats(State(http): State<Http>) -> Json<Value> {
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
    let presence = http.hub.describe(&user_id);
    Json(json!({"isSubscribed": presence.is_subscribed, "sockets": presence.sockets}))
        .into_response()
}

/// Sends a user's sockets away, on all instances that can be reached.
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

/// The same for the bearer of one token, by its `jti`.
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
        body => match serde_json::from_slice(body) {
            Ok(details) => details,
            Err(problem) => return error(StatusCode::BAD_REQUEST, &problem.to_string()),
        },
    };
    if details.user_id.is_some() || details.token_id.is_some() {
        return error(StatusCode::BAD_REQUEST, "the target is named in the path");
    }
    let text = OrderText {
        user_id: target.user_id,
        token_id: target.token_id,
        ..details
    };
    let order = Order::parse(text, SystemTime::now());
    match order.and_then(|order| Ok((http.gateway.carry_out(&order)?, order))) {
        Ok((sockets, order)) => {
            let message = serde_json::to_vec(&order.text()).expect("an order is plain JSON");
            let broadcast = http.hub.broker().broadcast(message.into()).await;
            Json(json!({"sockets": sockets, "broadcast": broadcast})).into_response()
        }
        Err(problem @ InvalidOrder::TooMany) => {
            error(StatusCode::INSUFFICIENT_STORAGE, &problem.to_string())
        }
        Err(problem) => error(StatusCode::BAD_REQUEST, &problem.to_string()),
    }
}

async fn require_admin(State(http): State<Http>, request: Request, next: Next) -> Response {
    let Some(expected) = http.admin_token.as_ref().and_then(Secret::expose) else {
        return not_found().await;
    };
    let authorised = bearer(request.headers())
        .is_some_and(|token| token.as_bytes().ct_eq(expected.as_bytes()).into());
    match authorised {
        true => next.run(request).await,
        false => error(StatusCode::UNAUTHORIZED, "admin token required"),
    }
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

/// An error as every JSON endpoint here answers it.
pub fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}
