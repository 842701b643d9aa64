//! Everything on the listener that is not Socket.IO: health, metrics, admin API.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::{
    config::Secret,
    hub::Hub,
    metrics::{self, Metrics},
    transport::Transports,
    user::UserId,
};

#[derive(Clone)]
struct Http {
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
    admin_token: Option<Secret>,
}

/// The routes of probes and operators. Without an admin token, `/api` does not exist.
pub fn router(
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
    admin_token: Option<Secret>,
) -> Router {
    let state = Http {
        hub,
        transports,
        metrics,
        admin_token,
    };
    let admin = Router::new()
        .route("/api/stats", get(stats))
        .route("/api/users/{user_id}", get(user))
        .route_layer(middleware::from_fn_with_state(state.clone(), require_admin));
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(exposition))
        .merge(admin)
        .with_state(state)
}

/// The process is up. 200 also without RabbitMQ: restarting would not help.
async fn health(State(http): State<Http>) -> Json<Value> {
    let connected = http.hub.broker().is_connected();
    let rabbitmq = if connected {
        "connected"
    } else {
        "disconnected"
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
