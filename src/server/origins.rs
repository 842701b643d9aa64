//! `CORS_ORIGIN`: the sites whose pages may connect and read the answers.

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::Response,
};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};
use tracing::info;

use super::admin;
use crate::{
    config::CorsOrigins,
    observability::{metrics::Metrics, sampled::Sampled},
    socketio::transport::Connection,
};

static FOREIGN_ORIGIN: Sampled = Sampled::new();

/// Limits `router` to the pages of these sites. CORS is the outermost layer, so that a
/// browser can read refusals, too.
pub fn limit(router: Router, origins: &CorsOrigins, metrics: Metrics) -> Router {
    let state = (origins.clone(), metrics);
    router
        .layer(middleware::from_fn_with_state(state, check_origin))
        .layer(cors(origins))
}

fn cors(origins: &CorsOrigins) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request());
    match origins {
        CorsOrigins::Any => layer.allow_origin(Any),
        CorsOrigins::List(_) => {
            let origins = origins.clone();
            layer
                .allow_origin(AllowOrigin::predicate(move |origin, _| {
                    origins.allow(origin)
                }))
                .allow_credentials(true)
        }
    }
}

/// Refuses pages of sites that are not listed. CORS alone would only keep such pages from
/// reading answers to polling, and does not apply to websockets at all.
async fn check_origin(
    State((origins, metrics)): State<(CorsOrigins, Metrics)>,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    // Clients other than browsers send no origin.
    let mut sent = request.headers().get_all(header::ORIGIN).iter();
    let Some(origin) = sent.find(|origin| !origins.allow(origin)) else {
        return next.run(request).await;
    };
    metrics.connect_refused("foreign_origin");
    if let Some(line) = FOREIGN_ORIGIN.note("") {
        let (peer, left_out) = (connection.peer(), line.left_out);
        let origin = origin.to_str().unwrap_or_default().chars();
        let origin: String = origin.take(100).collect();
        info!(%peer, ?origin, left_out, "Connection refused: its origin is not in CORS_ORIGIN");
    }
    admin::error(StatusCode::FORBIDDEN, "origin not allowed")
}
