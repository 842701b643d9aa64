//! The Socket.IO side: authenticates a socket, puts it into the hub and takes it
//! out again.
//!
//! Clients send nothing but CONNECT, DISCONNECT and `auth:refresh`; other events
//! from them are ignored. A socket stays as long as its token lives, or until an
//! order sends it away.
//!
//! Invariant: a socket that is let in was verified, has a session in the hub
//! before its CONNECT reply, and drops that session when it disconnects, also
//! when the disconnect overtakes the connect handler: the session lives in the
//! socket's own extensions, and nowhere else for longer than a call.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request as HttpRequest, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any_service},
};
use serde_json::{Value, json};
use socketioxide::{
    ParserConfig, SocketIo,
    extract::{AckSender, Event, SocketRef, TryData},
    handler::ConnectHandler,
    socket::{DisconnectReason, Sid},
};
use tokio::sync::Mutex as AsyncMutex;
use tracing::{debug, info, warn};
use url::form_urlencoded;

use crate::{
    auth::{Identity, Refusal, Verifier},
    config::HttpConfig,
    observability::metrics::Metrics,
    observability::sampled::Sampled,
    sessions::{Admitted, Hub, Request, Session},
    socketio::leases::{Due, End, Lease, Leases},
    socketio::limits::{
        ConnectLimit, EventLimit, RefusalLimit, SessionConnects, Slot, Slots, Verdict,
        client_network,
    },
    socketio::refused_tokens::RefusedTokens,
    socketio::revocation::{Order, Revocations, Target, is_user},
    socketio::transport::{
        self, Connection, Engine, MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, PING_INTERVAL,
        PING_TIMEOUT, Transports,
    },
};

/// Sent some time before the socket's token expires: `{expiresAt}`.
const AUTH_EXPIRING: &str = "auth:expiring";
/// Sent to a socket that is sent away: `{reason}`.
const AUTH_REVOKED: &str = "auth:revoked";
/// Sent by a client with its next token.
const AUTH_REFRESH: &str = "auth:refresh";

/// Packets that a socket may lag behind: so many that the limit in bytes (see
/// `hub::audience`) is met first, however small they are. Memory is taken only as
/// packets wait, in blocks of 32.
const SOCKET_BUFFER_PACKETS: usize = 64 * 1024;

/// A websocket's read buffer, in bytes: clients send pongs. Longer messages are
/// read in pieces of this size.
const READ_BUFFER_BYTES: usize = 512;

/// Attachments of an event from a client, which are collected before it is ignored:
/// as many as Node's `socket.io-parser` takes.
const MAX_ATTACHMENTS: usize = 10;

/// How long an Engine.IO session may exist without a namespace. Also how long
/// the session of a refused socket lives on.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the CONNECT reply waits for the user's subscription. A frontend
/// fetches its state after `connect` and relies on updates from then on; but
/// without a broker, it still has to connect.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a socket that is sent away has to read why, before its transport is
/// closed.
const FAREWELL: Duration = Duration::from_millis(250);

/// Tokens are refused from this length on.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Lines about those who are refused.
static REFUSED: Sampled = Sampled::new();

/// Lines about orders.
static ORDERS: Sampled = Sampled::new();

/// Lines about sockets that are closed.
static CLOSED: Sampled = Sampled::new();

static REFRESH_REFUSED: Sampled = Sampled::new();

/// What a gateway serves its sockets from.
pub struct Gateway {
    verifier: Verifier,
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
    leases: Arc<Leases>,
    revocations: Revocations,
    connect_limit: ConnectLimit,
    slots: Slots,
    refusal_limit: RefusalLimit,
    refused_tokens: RefusedTokens,
    config: HttpConfig,
    /// Whether handshakes are being refused for [`HttpConfig::max_sockets`].
    is_full: AtomicBool,
    io: SocketIo,
}

/// What a socket that was let in holds; dropped when it disconnects.
struct Admission {
    session: Session,
    lease: Lease,
    events: EventLimit,
    /// Held by the one [`AUTH_REFRESH`] that is looked at; the others wait in their order.
    refreshing: AsyncMutex<()>,
}

/// What an Engine.IO session holds from its handshake to its end.
struct Seat {
    _slot: Slot,
    /// Whom it counts for.
    client: IpAddr,
    connects: SessionConnects,
    /// What was presented with the handshake itself, until a socket is let in.
    presented: Mutex<Option<Arc<Parts>>>,
}

impl Seat {
    fn of(socket: &SocketRef) -> Option<&Arc<Self>> {
        socket.req_parts().extensions.get()
    }

    fn presented(&self) -> MutexGuard<'_, Option<Arc<Parts>>> {
        self.presented
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gateway {
    pub fn new(
        verifier: Verifier,
        hub: Arc<Hub>,
        transports: Transports,
        io: SocketIo,
        metrics: Metrics,
        config: HttpConfig,
    ) -> Arc<Self> {
        let (rate, proxies) = (
            config.max_connects_per_second,
            config.trusted_proxies.clone(),
        );
        Arc::new(Self {
            leases: Leases::new(config.expiry_notice, verifier.leeway()),
            connect_limit: ConnectLimit::new(rate, proxies),
            refusal_limit: RefusalLimit::new(config.max_refusals_per_second),
            refused_tokens: RefusedTokens::new(),
            revocations: Revocations::default(),
            slots: Slots::default(),
            is_full: AtomicBool::new(false),
            io,
            verifier,
            hub,
            transports,
            metrics,
            config,
        })
    }

    /// Lets sockets in from now on, and returns the routes at `/socket.io/`. `service`
    /// comes from [`socket_io`]. Must be called once, inside a Tokio runtime; the routes
    /// must be served by [`transport::serve`].
    pub fn serve(self: Arc<Self>, service: MethodRouter) -> Router {
        let gateway = self.clone();
        let authenticate = move |socket: SocketRef, auth: TryData<Value>| {
            let gateway = gateway.clone();
            async move { gateway.authenticate(socket, auth.0.ok()).await }
        };
        let gateway = self.clone();
        let connected = move |socket: SocketRef| {
            let gateway = gateway.clone();
            async move { gateway.connected(socket).await }
        };
        self.io.ns("/", connected.with(authenticate));
        tokio::spawn(self.clone().end_leases());
        Router::new()
            .route("/socket.io", service.clone())
            .route("/socket.io/", service)
            .layer(middleware::from_fn_with_state(
                self.transports.clone(),
                transport::guard,
            ))
            .layer(middleware::from_fn_with_state(self, limit_handshakes))
    }

    /// Runs before the CONNECT reply.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "connect", skip_all, fields(otel.kind = "server", sid = %socket.id)))]
    async fn authenticate(
        self: Arc<Self>,
        socket: SocketRef,
        auth: Option<Value>,
    ) -> Result<(), Refusal> {
        if self.transports.is_draining() {
            // A refused client would stay away for good; one that lost its
            // transport reconnects, elsewhere. So never answer.
            self.transports.close(&socket);
            return std::future::pending().await;
        }
        let connects = self.check_connects(&socket)?;
        let client = client(&socket);
        let admission = match self.admit(&socket, client, auth).await {
            Ok(admission) => admission,
            Err(refusal @ (Refusal::AddressRefusals | Refusal::Overloaded)) => {
                self.turn_back(&socket, client, refusal).await;
                return Err(refusal);
            }
            Err(refusal) => {
                self.refusal_limit.note(client);
                self.metrics.connect_refused(refusal.label());
                if let Some(line) = REFUSED.note(refusal.label()) {
                    let (peer, left_out) = (transport::peer(&socket), line.left_out);
                    info!(peer, reason = %refusal, left_out, "Connection refused");
                }
                return Err(refusal);
            }
        };
        connects.succeeded();
        socket.extensions.insert(admission.clone());
        // Before the reply: a socket that disconnects at once finds its handler.
        let gateway = self.clone();
        socket.on_disconnect(async move |socket: SocketRef, reason: DisconnectReason| {
            gateway.disconnected(&socket, reason);
        });
        let gateway = self.clone();
        socket.on_fallback(
            move |socket: SocketRef, event: Event, data: TryData<Value>, ack| {
                let gateway = gateway.clone();
                async move { gateway.event(socket, event.0, data.0.ok(), ack).await }
            },
        );
        let session = &admission.session;
        if self.hub.broker().is_connected() {
            // Without the subscription in time, updates start when it is there.
            let _ = tokio::time::timeout(SUBSCRIBE_TIMEOUT, session.subscribed()).await;
        }
        if let Some(Admitted { id, pid }) = session.admit() {
            let transports = &self.transports;
            transports.put_into_connect_reply(&socket, id, &pid.expose());
        }
        self.metrics.connects.inc();
        Ok(())
    }

    /// One handshake, which is limited, is no way to any number of CONNECTs.
    fn check_connects(&self, socket: &SocketRef) -> Result<SessionConnects, Refusal> {
        let connects = Seat::of(socket).map(|seat| seat.connects.clone());
        let connects = connects.unwrap_or_default();
        match connects.check() {
            Verdict::Allowed => return Ok(connects),
            Verdict::Ignored => {}
            Verdict::TooMany => {
                let refusal = Refusal::TooManyConnects;
                self.metrics.connect_refused(refusal.label());
                if let Some(line) = REFUSED.note(refusal.label()) {
                    warn!(
                        peer = transport::peer(socket),
                        left_out = line.left_out,
                        "closing a connection that asks to connect again and again"
                    );
                }
                self.transports.close(socket);
            }
        }
        Err(Refusal::TooManyConnects)
    }

    /// Closes the transport of a client whose token was not looked at. Once refused,
    /// a client stays away, while from this it comes back by itself.
    async fn turn_back(&self, socket: &SocketRef, client: IpAddr, refusal: Refusal) {
        self.metrics.connect_refused(refusal.label());
        if let Some(line) = REFUSED.note(refusal.label()) {
            let left_out = line.left_out;
            warn!(%client, reason = %refusal, left_out, "Connection closed; it may come back");
        }
        self.transports.close(socket);
        // The refusal that follows must find the polling session closed.
        tokio::time::sleep(FAREWELL).await;
    }

    async fn admit(
        &self,
        socket: &SocketRef,
        client: IpAddr,
        auth: Option<Value>,
    ) -> Result<Arc<Admission>, Refusal> {
        if self.refusal_limit.is_exceeded(client) {
            return Err(Refusal::AddressRefusals);
        }
        let presented = Seat::of(socket).and_then(|seat| seat.presented().clone());
        let presented = presented.unwrap_or_else(|| Arc::new(without_credentials()));
        let presented = self.verifier.presented(auth.as_ref(), &presented);
        let token = presented.map(Cow::into_owned);
        // What may wait below holds no more than it needs.
        let request = Request::of(auth.as_ref());
        drop(auth);
        // Whoever presents none, or nonsense, is slowed down like one who presents the same.
        let known_as: &str = token.as_deref().unwrap_or_else(|refusal| refusal.label());
        if let Some(again) = self.refused_tokens.find(client, known_as) {
            let place = self.refused_tokens.place().ok_or(Refusal::Overloaded)?;
            tokio::time::sleep(again.wait).await;
            drop(place);
            if let (Ok(_), Some(refusal)) = (&token, again.verdict) {
                return Err(refusal);
            }
        }
        let admission = match &token {
            Ok(token) => self.let_in(socket, client, token, request).await,
            Err(refusal) => Err(*refusal),
        };
        match &admission {
            Ok(_) => self.refused_tokens.forget(client, known_as),
            Err(Refusal::AddressRefusals | Refusal::Overloaded) => {}
            Err(refusal) => self.refused_tokens.note(client, known_as, *refusal),
        }
        admission
    }

    async fn let_in(
        &self,
        socket: &SocketRef,
        client: IpAddr,
        token: &str,
        request: Request,
    ) -> Result<Arc<Admission>, Refusal> {
        let is_wanted = || !self.refusal_limit.is_exceeded(client);
        let verified = self.verifier.verify_for(client, token, is_wanted);
        let identity = verified.await?;
        if !self.hub.broker().has_room_for(identity.user()) {
            return Err(Refusal::IdsTooLong);
        }
        let lease = self.leases.grant(socket.id, identity.clone());
        // After the lease: whoever is revoked from now on is so by it.
        self.check_revocation(&identity)?;
        let limit = self.config.max_sockets_per_user;
        let session = self.hub.join(identity.user(), socket, request, limit);
        let session = session.ok_or(Refusal::TooManySockets)?;
        if let Some(seat) = Seat::of(socket) {
            seat.presented().take();
        }
        Ok(Arc::new(Admission {
            session,
            lease,
            events: EventLimit::new(self.config.max_events_per_second),
            refreshing: AsyncMutex::default(),
        }))
    }

    fn check_revocation(&self, identity: &Identity) -> Result<(), Refusal> {
        match self.revocations.refuse(identity, SystemTime::now()) {
            true => Err(Refusal::TokenRevoked),
            false => Ok(()),
        }
    }

    /// Runs after the CONNECT reply, possibly after the disconnect.
    async fn connected(&self, socket: SocketRef) {
        let Some(admission) = socket.extensions.get::<Arc<Admission>>() else {
            return;
        };
        let session = &admission.session;
        debug!(user_id = %session.user().id, transport = ?socket.transport_type(), "Socket connected");
        // Until now, whoever wanted to end its lease did not find the socket.
        if let Some(end) = admission.lease.end() {
            if end == End::Revoked {
                session.end();
            }
            return self.transports.close(&socket);
        }
        if let Some(expires_at) = admission.lease.noticed() {
            announce_expiry(&socket, expires_at);
        }
        session.go_live(socket).await;
    }

    /// An event from a client: the one that is understood is [`AUTH_REFRESH`].
    async fn event(&self, socket: SocketRef, event: String, data: Option<Value>, ack: AckSender) {
        let Some(admission) = socket.extensions.get::<Arc<Admission>>() else {
            return;
        };
        match admission.events.check() {
            Verdict::Allowed => {}
            Verdict::Ignored => return,
            Verdict::TooMany => {
                if let Some(line) = CLOSED.note("noisy") {
                    let (user_id, left_out) = (&admission.session.user().id, line.left_out);
                    warn!(%user_id, left_out, "closing a socket that sends too many events");
                }
                self.metrics.noisy_sockets.inc();
                return self.transports.close(&socket);
            }
        }
        if event != AUTH_REFRESH {
            return;
        }
        let _turn = admission.refreshing.lock().await;
        if !socket.connected() {
            return;
        }
        let client = client(&socket);
        let refreshed = self.refresh(&admission, client, data.as_ref()).await;
        let answer = match &refreshed {
            Ok(expires_at) => json!({"ok": true, "expiresAt": expires_at.map(timestamp)}),
            Err(refusal) => json!({"ok": false, "error": refusal.to_string()}),
        };
        if let Err(refusal) = refreshed {
            self.metrics.refresh_refused(refusal.label());
            if let Some(line) = REFRESH_REFUSED.note(refusal.label()) {
                let (user_id, left_out) = (&admission.session.user().id, line.left_out);
                info!(%user_id, reason = %refusal, left_out, "Token refresh refused");
            }
        }
        // An error means that the socket is gone or did not ask for an answer.
        let _ = ack.send(&(answer,));
    }

    /// Extends a socket's lease by another token of its user.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "refresh", skip_all, fields(otel.kind = "server")))]
    async fn refresh(
        &self,
        admission: &Admission,
        client: IpAddr,
        token: Option<&Value>,
    ) -> Result<Option<SystemTime>, Refusal> {
        let token = match token {
            Some(Value::String(token)) => token,
            None | Some(Value::Null) => return Err(Refusal::TokenMissing),
            Some(_) => return Err(Refusal::TokenInvalid),
        };
        let identity = self.verifier.verify_for(client, token, || true).await?;
        let expires_at = identity.expires_at();
        let check = |identity: &Identity| self.check_revocation(identity);
        admission.lease.renew(identity, check)?;
        Ok(expires_at)
    }

    /// Announces the ends of leases, and closes the sockets whose lease is over.
    async fn end_leases(self: Arc<Self>) {
        loop {
            match self.leases.next().await {
                Due::Expiring(sid, expires_at) => {
                    if let Some(socket) = self.socket(sid) {
                        announce_expiry(&socket, expires_at);
                    }
                }
                Due::Expired(sid) => {
                    if let Some(socket) = self.socket(sid) {
                        self.metrics.expired_sockets.inc();
                        if let Some(line) = CLOSED.note("expired") {
                            info!(
                                peer = transport::peer(&socket),
                                left_out = line.left_out,
                                "closing a socket whose token has expired"
                            );
                        }
                        self.transports.close(&socket);
                    }
                }
            }
        }
    }

    /// Sends sockets away, here. Returns how many.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "order", skip_all, fields(target = %order.target)))]
    pub fn carry_out(self: &Arc<Self>, order: &Order) -> usize {
        let forgotten = self.revocations.add(order, SystemTime::now());
        if forgotten > 0 {
            self.metrics.revocations_forgotten.inc_by(forgotten as u64);
            if let Some(line) = ORDERS.note("forgotten") {
                let left_out = line.left_out;
                warn!(
                    forgotten,
                    left_out,
                    "Too many revocations: the oldest are forgotten, and their tokens accepted"
                );
            }
        }
        if let Target::User(id, tenant) = &order.target {
            self.hub.end_away(|user| is_user(id, tenant.as_ref(), user));
        }
        let sids = self.leases.revoke(|identity| order.concerns(identity));
        let sockets: Vec<SocketRef> = sids
            .into_iter()
            .filter_map(|sid| self.socket(sid))
            .collect();
        for socket in &sockets {
            if let Some(admission) = socket.extensions.get::<Arc<Admission>>() {
                // No further update, and no recovery of what comes from now on.
                admission.session.end();
                let _ = socket.emit(AUTH_REVOKED, &json!({"reason": order.reason}));
            }
        }
        let count = sockets.len();
        let (target, reason, until) = (&order.target, &order.reason, order.until);
        info!(
            sockets = count,
            %target,
            ?reason,
            until,
            "Sockets sent away"
        );
        self.metrics.revoked_sockets.inc_by(count as u64);
        let transports = self.transports.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            for socket in &sockets {
                transports.close(socket);
            }
        });
        count
    }

    /// Soon over: socketioxide forgets the socket only then.
    fn disconnected(self: &Arc<Self>, socket: &SocketRef, reason: DisconnectReason) {
        let Some(admission) = socket.extensions.remove::<Arc<Admission>>() else {
            return;
        };
        let session = &admission.session;
        debug!(user_id = %session.user().id, ?reason, "Socket disconnected");
        let has_left = reason == DisconnectReason::ClientNSDisconnect;
        if has_left {
            session.end();
        }
        // Now, and not when the last task that holds it lets go.
        session.leave();
        if has_left {
            // Its connection is the client's to close. One that is kept has to be used:
            // nothing else limits those that carry no socket.
            let (gateway, sid) = (self.clone(), socket.id);
            let close = self.transports.closer(socket);
            tokio::spawn(async move {
                tokio::time::sleep(CONNECT_TIMEOUT).await;
                if gateway.socket(sid).is_none() {
                    close();
                }
            });
        }
    }

    fn socket(&self, sid: Sid) -> Option<SocketRef> {
        self.io.get_socket(sid)
    }
}

/// Socket.IO itself, before it has a namespace: what hands it websockets, what answers
/// its requests, and the handle to its sockets.
pub fn socket_io() -> (Engine, MethodRouter, SocketIo) {
    let (service, io) = SocketIo::builder()
        .ping_interval(PING_INTERVAL)
        .ping_timeout(PING_TIMEOUT)
        .max_buffer_size(SOCKET_BUFFER_PACKETS)
        // With the default of 100 KB, a packet that no longer fits into a response is
        // set aside, and lost if the client then upgrades to websocket.
        .max_payload(MAX_PAYLOAD_BYTES)
        .ws_read_buffer_size(READ_BUFFER_BYTES)
        .ws_max_message_size(MAX_MESSAGE_BYTES)
        .ws_max_frame_size(MAX_MESSAGE_BYTES)
        .connect_timeout(CONNECT_TIMEOUT)
        // Clients need to send no binary; what they may send unasked stays small.
        .with_parser(
            ParserConfig::common()
                .max_incoming_binaries(MAX_ATTACHMENTS)
                .max_incoming_binary_buf_size(MAX_MESSAGE_BYTES),
        )
        .build_svc();
    (Engine::new(service.clone()), any_service(service), io)
}

/// Turns away handshakes over the limits. Clients retry them by themselves, while
/// after a refused CONNECT they would stay away.
async fn limit_handshakes(
    State(gateway): State<Arc<Gateway>>,
    Extension(connection): Extension<Connection>,
    mut request: HttpRequest,
    next: Next,
) -> Response {
    if transport::session_id(request.uri()).is_some() {
        return next.run(request).await;
    }
    let max_sockets = gateway.config.max_sockets;
    let Some(slot) = gateway.slots.take(max_sockets) else {
        gateway.metrics.connect_refused("server_full");
        if !gateway.is_full.swap(true, Ordering::Relaxed)
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
    gateway.is_full.store(false, Ordering::Relaxed);
    if let Err(address) = gateway
        .connect_limit
        .check(connection.peer(), request.headers())
    {
        gateway.metrics.connect_refused("address_rate");
        debug!(%address, "Connection refused: too many handshakes from one address");
        return turn_away(
            StatusCode::TOO_MANY_REQUESTS,
            "too many connections from this address",
        );
    }
    let proxies = &gateway.config.trusted_proxies;
    let client = client_network(connection.peer(), request.headers(), proxies);
    if gateway.refusal_limit.is_exceeded(client) {
        let refusal = Refusal::AddressRefusals;
        gateway.metrics.connect_refused(refusal.label());
        if let Some(line) = REFUSED.note("handshake") {
            let left_out = line.left_out;
            warn!(%client, left_out, "Connections refused: {refusal} (MAX_REFUSALS_PER_SECOND)");
        }
        return turn_away(
            StatusCode::TOO_MANY_REQUESTS,
            "too many refused connections from this address",
        );
    }
    let presented = credentials(&request, gateway.verifier.allows_query());
    let seat = Seat {
        _slot: slot,
        client,
        connects: SessionConnects::default(),
        presented: Mutex::new(presented.map(Arc::new)),
    };
    request.extensions_mut().insert(Arc::new(seat));
    next.run(request).await
}

/// What of a handshake a token may be in, in memory of its own.
fn credentials(request: &HttpRequest, allow_query: bool) -> Option<Parts> {
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

fn without_credentials() -> Parts {
    HttpRequest::new(Body::empty()).into_parts().0
}

/// Whom a socket counts for.
fn client(socket: &SocketRef) -> IpAddr {
    Seat::of(socket).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |seat| seat.client)
}

fn turn_away(status: StatusCode, message: &'static str) -> Response {
    (status, [(header::RETRY_AFTER, "1")], message).into_response()
}

fn announce_expiry(socket: &SocketRef, expires_at: SystemTime) {
    let expiry = json!({"expiresAt": timestamp(expires_at)});
    // A full buffer has its own consequences.
    let _ = socket.emit(AUTH_EXPIRING, &expiry);
}

/// As JavaScript's `Date` reads it: RFC 3339, whose years have four digits.
fn timestamp(time: SystemTime) -> String {
    let end_of_years = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.min(end_of_years)).to_string()
}
