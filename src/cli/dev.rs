//! The routes of the development mode: the page at `/`, tokens for anybody, and
//! publishing by HTTP. Only `chat3-gateway dev` merges them into its server.
//!
//! A foreign site in the developer's browser must not be able to ask for tokens.
//! Therefore only pages of this machine may read the answers (CORS), and requests must name
//! this host: DNS rebinding, where the name of a foreign site resolves to this machine,
//! needs no CORS.
//!
//! - `development`: the gateways of the mode, one for each envelope that is switched to
//! - `envelopes`: what an update becomes in each envelope

mod development;
mod envelopes;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Request, State, rejection::JsonRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tower_http::cors::{AllowOrigin, CorsLayer};
use url::{Host, Url};

pub use self::development::Development;

use crate::{
    auth::Signer,
    broker::embedded::EmbeddedExchange,
    cli::{
        command_line::Generation,
        publisher::original::{self, DOCUMENTED_TYPES, OTHER_TYPES},
    },
    config::Envelope,
    server::admin::error,
    user::{TenantId, User, UserId},
};

/// How long the page's tokens live: a working day.
pub const TOKEN_LIFETIME: Duration = Duration::from_hours(12);

/// A shorter lifetime rounds to a token that has expired when it arrives.
const MIN_LIFETIME: Duration = Duration::from_secs(1);

/// The tenant of updates and tokens that name none.
pub const DEFAULT_TENANT: &str = "tnt_default";

const PAGE: &str = include_str!("dev/page.html");
const STYLE: &str = include_str!("dev/page.css");
const SCRIPTS: [(&str, &str); 7] = [
    ("/dev/page.js", include_str!("dev/page.js")),
    ("/dev/dom.js", include_str!("dev/dom.js")),
    ("/dev/log.js", include_str!("dev/log.js")),
    ("/dev/users.js", include_str!("dev/users.js")),
    ("/dev/publish.js", include_str!("dev/publish.js")),
    ("/dev/envelope.js", include_str!("dev/envelope.js")),
    ("/dev/updates.js", include_str!("dev/updates.js")),
];

/// Nothing inline, nothing from other hosts. `connect-src` names websockets because older
/// browsers do not count them as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; \
    style-src 'self'; connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

const JAVASCRIPT: [(HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")];

/// The official client; empty if it had not been fetched before the build.
const SOCKET_IO_CLIENT: &str = include_str!(concat!(env!("OUT_DIR"), "/socket.io.js"));

#[derive(Clone)]
struct Dev {
    exchange: Arc<EmbeddedExchange>,
    signer: Arc<Signer>,
    /// This gateway's.
    envelope: Envelope,
    /// The next gateway's: another one makes this one end.
    next_envelope: watch::Sender<Envelope>,
}

/// The routes of the development mode. They answer requests to a local name, an IP address
/// or `own_host`.
fn router(dev: Dev, own_host: &str) -> Router {
    let own_host = own_host.to_owned();
    let page = SCRIPTS
        .into_iter()
        .fold(Router::new(), |page, (path, script)| {
            page.route(path, get(move || async move { (JAVASCRIPT, script) }))
        });
    page.route("/", get(page_with_policy))
        .route("/dev/page.css", get(style))
        .route("/dev/templates", get(templates))
        .route("/dev/socket.io.js", get(client))
        .route("/dev/samples", get(samples))
        .route("/dev/tokens", post(token))
        .route("/dev/updates", post(publish))
        .route("/dev/comparisons", post(compare))
        .route("/dev/envelope", get(envelope).put(switch_envelope))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let is_ours = is_own_host(request.headers(), &own_host);
            async move {
                match is_ours {
                    true => next.run(request).await,
                    false => error(
                        StatusCode::FORBIDDEN,
                        "for requests to localhost, an IP address or the name given with --host",
                    ),
                }
            }
        }))
        .layer(
            CorsLayer::new()
                .allow_origin(AllowOrigin::predicate(|origin, _| {
                    is_of_this_machine(origin)
                }))
                .allow_methods([Method::GET, Method::POST])
                .allow_headers([header::CONTENT_TYPE]),
        )
        .with_state(dev)
}

/// Whether an `Origin` is a server of this machine, such as that of a frontend under
/// development.
fn is_of_this_machine(origin: &HeaderValue) -> bool {
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| Url::parse(origin).ok());
    match origin.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => is_local_name(name),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// No resolver maps these names to another machine (RFC 6761).
fn is_local_name(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

fn is_own_host(headers: &HeaderMap, own_host: &str) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    is_local_name(name) || name == own_host || name.parse::<IpAddr>().is_ok()
}

async fn page_with_policy() -> impl IntoResponse {
    let policy = [(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY)];
    (policy, Html(PAGE))
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

async fn client() -> Response {
    if SOCKET_IO_CLIENT.is_empty() {
        let message =
            "built without socket.io-client: run src/cli/dev/fetch-client and build again";
        return error(StatusCode::NOT_FOUND, message);
    }
    (JAVASCRIPT, SOCKET_IO_CLIENT).into_response()
}

async fn samples() -> Json<Map<String, Value>> {
    let types = DOCUMENTED_TYPES.into_iter().chain(OTHER_TYPES);
    let sample = |event_type: &str| (event_type.to_owned(), original::sample_data(event_type));
    Json(types.map(sample).collect())
}

/// Every event type with sample data, by generation.
async fn templates() -> Json<Value> {
    let of = |generation: Generation| -> Vec<Value> {
        let template = |name| json!({"eventType": name, "data": generation.sample_data(name)});
        generation.types().into_iter().map(template).collect()
    };
    Json(json!({
        "documented": DOCUMENTED_TYPES,
        "current": of(Generation::Current),
        "0.0.77": of(Generation::V0_0_77),
        "original": of(Generation::Original),
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenRequest {
    user_id: String,
    tenant_id: Option<String>,
    /// Such as `40s`, to watch a token expire.
    expires_in: Option<String>,
}

async fn token(
    State(dev): State<Dev>,
    request: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Response, BadRequest> {
    let Json(request) = request?;
    let user = User {
        id: user_id(&request.user_id)?,
        tenant: request.tenant_id.as_deref().map(tenant_id).transpose()?,
    };
    let lifetime = request.expires_in.as_deref().map(lifetime).transpose()?;
    let signed = dev.signer.sign(&user, lifetime.unwrap_or(TOKEN_LIFETIME));
    let (token, expires_at) =
        signed.map_err(|problem| BadRequest(format!("cannot sign: {problem}")))?;
    let expires_at = humantime::format_rfc3339_seconds(expires_at).to_string();
    Ok(Json(json!({"token": token, "expiresAt": expires_at})).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PublishRequest {
    user_id: String,
    event_type: String,
    tenant_id: Option<String>,
    data: Option<Value>,
    #[serde(default)]
    generation: Generation,
    /// The whole body, which is published unchanged; excludes `data`.
    update: Option<Value>,
    /// For binding keys of another generation.
    routing_key: Option<String>,
}

/// What is published, and under which key.
struct Publication {
    routing_key: String,
    update: Value,
}

impl PublishRequest {
    fn publication(self) -> Result<Publication, BadRequest> {
        let user = user_id(&self.user_id)?;
        let tenant = tenant_id(self.tenant_id.as_deref().unwrap_or(DEFAULT_TENANT))?;
        let event_type = self.event_type.as_str();
        let generation = self.generation;
        let update = match (self.update, self.data) {
            (Some(_), Some(_)) => return Err(BadRequest("either update or data, not both".into())),
            (Some(update), None) => update,
            (None, data) => {
                let data = data.unwrap_or_else(|| generation.sample_data(event_type));
                generation.update(&user, &tenant, event_type, data)
            }
        };
        let key = || generation.routing_key(&user, &tenant, event_type);
        Ok(Publication {
            routing_key: self.routing_key.unwrap_or_else(key),
            update,
        })
    }
}

async fn publish(
    State(dev): State<Dev>,
    request: Result<Json<PublishRequest>, JsonRejection>,
) -> Result<Response, BadRequest> {
    let Json(request) = request?;
    let Publication {
        routing_key,
        update,
    } = request.publication()?;
    let body = update.to_string().into();
    let queues = dev.exchange.publish(&routing_key, body).await;
    let answer = json!({"routingKey": routing_key, "queues": queues, "update": update});
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// What would be received of what `publish` would publish, in each envelope.
async fn compare(
    request: Result<Json<PublishRequest>, JsonRejection>,
) -> Result<Response, BadRequest> {
    let Json(request) = request?;
    let Publication { update, .. } = request.publication()?;
    match envelopes::compare(&update.to_string()) {
        Ok(comparison) => Ok(Json(comparison).into_response()),
        Err(rejection) => Err(BadRequest(format!("not delivered: {rejection}"))),
    }
}

async fn envelope(State(dev): State<Dev>) -> Json<Value> {
    let envelope = dev.envelope.to_possible_value();
    Json(json!({"envelope": envelope.map(|value| value.get_name().to_owned())}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeRequest {
    envelope: String,
}

/// Makes way for a gateway with another envelope, which follows on the same port. Until then,
/// `envelope` is answered with this one's.
async fn switch_envelope(
    State(dev): State<Dev>,
    request: Result<Json<EnvelopeRequest>, JsonRejection>,
) -> Result<Response, BadRequest> {
    let Json(request) = request?;
    let unknown = |_| BadRequest("envelope is auto, sections or original".into());
    let asked = Envelope::from_str(&request.envelope, false).map_err(unknown)?;
    dev.next_envelope.send_replace(asked);
    Ok((
        StatusCode::ACCEPTED,
        Json(json!({"envelope": request.envelope})),
    )
        .into_response())
}

/// What is wrong with a request, as JSON.
struct BadRequest(String);

impl IntoResponse for BadRequest {
    fn into_response(self) -> Response {
        error(StatusCode::BAD_REQUEST, &self.0)
    }
}

impl From<JsonRejection> for BadRequest {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.body_text())
    }
}

fn user_id(text: &str) -> Result<UserId, BadRequest> {
    UserId::parse(text).map_err(|why| BadRequest(format!("userId {why}")))
}

fn tenant_id(text: &str) -> Result<TenantId, BadRequest> {
    TenantId::parse(text).map_err(|why| BadRequest(format!("tenantId {why}")))
}

fn lifetime(text: &str) -> Result<Duration, BadRequest> {
    match humantime::parse_duration(text) {
        Ok(lifetime) if (MIN_LIFETIME..=TOKEN_LIFETIME).contains(&lifetime) => Ok(lifetime),
        Ok(_) => Err(BadRequest("expiresIn is not within 1s and 12h".into())),
        Err(why) => Err(BadRequest(format!("expiresIn: {why}"))),
    }
}
