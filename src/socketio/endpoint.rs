//! The Socket.IO endpoint: wires a socket's life together, from its handshake to
//! its disconnect.
//!
//! - [`handshake`]: the limits on a new Engine.IO session, and what it presents
//! - [`admission`]: a CONNECT is authenticated and joined to the sessions
//! - [`token_expiry`]: a socket is warned before its token expires, then closed
//! - [`token_refresh`]: a socket presents its next token
//! - [`orders`]: an operator sends sockets away
//!
//! Clients send nothing but CONNECT, DISCONNECT and `auth:refresh`; all other
//! events are ignored.
//!
//! Invariant: a socket that is let in was verified, has a session before its
//! CONNECT reply, and drops that session when it disconnects, even if the
//! disconnect overtakes the connect handler. For that, the session lives in the
//! socket's own extensions, and nothing else holds it for longer than a call.

mod admission;
mod handshake;
mod orders;
mod token_expiry;
mod token_refresh;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use axum::{
    Router, middleware,
    routing::{MethodRouter, any_service},
};
use serde_json::Value;
use socketioxide::{
    ParserConfig, SocketIo,
    extract::{SocketRef, TryData},
    handler::ConnectHandler,
    socket::{DisconnectReason, Sid},
};
use tracing::debug;

use self::admission::Admission;
use crate::{
    auth::{Identity, Refusal, Verifier},
    config::HttpConfig,
    observability::metrics::Metrics,
    observability::sampled::Sampled,
    socketio::Hub,
    socketio::leases::{End, Leases},
    socketio::limits::{ConnectLimit, RefusalLimit, Slots},
    socketio::peer::SocketPeer,
    socketio::refused_tokens::RefusedTokens,
    socketio::revocation::Revocations,
    socketio::transport::{
        self, Engine, MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, PING_INTERVAL, PING_TIMEOUT, Transports,
    },
};

/// Packets that a socket's buffer holds: enough for the limit in bytes (see
/// `socketio::peer::polled`) to be met first, however small the packets are. The
/// buffer takes memory only for packets that wait, in blocks of 32.
const SOCKET_BUFFER_PACKETS: usize = 64 * 1024;

/// A websocket's read buffer, in bytes. It is small because clients send little
/// more than pongs; longer messages are read in pieces of this size.
const READ_BUFFER_BYTES: usize = 512;

/// Binary attachments of one event from a client, which are collected before the
/// event is ignored. As many as Node's `socket.io-parser` accepts.
const MAX_ATTACHMENTS: usize = 10;

/// How long an Engine.IO session may exist without a namespace, and how long the
/// session of a refused socket lives on.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client has to read why its socket ends before the transport is
/// closed.
const FAREWELL: Duration = Duration::from_millis(250);

/// Lines about connections that are refused.
static REFUSED: Sampled = Sampled::new();

/// Lines about sockets that are closed.
static CLOSED: Sampled = Sampled::new();

/// Everything that the sockets of one gateway share.
pub struct Endpoint {
    io: SocketIo,
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
}

impl Endpoint {
    pub fn new(
        verifier: Verifier,
        hub: Arc<Hub>,
        transports: Transports,
        io: SocketIo,
        metrics: Metrics,
        config: HttpConfig,
    ) -> Arc<Self> {
        let proxies = config.trusted_proxies.clone();
        Arc::new(Self {
            io,
            leases: Leases::new(config.expiry_notice, verifier.leeway()),
            connect_limit: ConnectLimit::new(config.max_connects_per_second, proxies),
            refusal_limit: RefusalLimit::new(config.max_refusals_per_second),
            refused_tokens: RefusedTokens::new(),
            revocations: Revocations::new(config.recovery.window),
            slots: Slots::default(),
            is_full: AtomicBool::new(false),
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
        self.handle_connects();
        tokio::spawn(self.clone().end_leases());
        Router::new()
            .route("/socket.io", service.clone())
            .route("/socket.io/", service)
            .layer(middleware::from_fn_with_state(
                self.transports.clone(),
                transport::guard,
            ))
            .layer(middleware::from_fn_with_state(self, handshake::limit))
    }

    fn handle_connects(self: &Arc<Self>) {
        let endpoint = self.clone();
        let authenticate = move |socket: SocketRef, auth: TryData<Value>| {
            let endpoint = endpoint.clone();
            async move { endpoint.authenticate(socket, auth.0.ok()).await }
        };
        let endpoint = self.clone();
        let connected = move |socket: SocketRef| {
            let endpoint = endpoint.clone();
            async move { endpoint.connected(socket).await }
        };
        self.io.ns("/", connected.with(authenticate));
    }

    /// Runs after the CONNECT reply, possibly after the disconnect.
    async fn connected(&self, socket: SocketRef) {
        let Some(admission) = Admission::of(&socket) else {
            return;
        };
        let session = &admission.session;
        debug!(user_id = %session.user().id, transport = ?socket.transport_type(), "Socket connected");
        // Whoever ended the lease before now did not find the socket.
        if let Some(end) = admission.lease.end() {
            if end == End::Revoked {
                session.end();
            }
            return self.transports.close(&socket);
        }
        if let Some(expires_at) = admission.lease.noticed() {
            token_expiry::announce(&socket, expires_at);
        }
        let peer = SocketPeer::new(socket, self.transports.clone(), session.number());
        session.go_live(peer).await;
    }

    /// Runs before socketioxide forgets the socket.
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
        // Now, rather than when the last task that holds the admission ends.
        session.leave();
        if has_left {
            // The client has to close its connection. A connection that is kept must be
            // used: nothing else limits connections without a socket.
            let (endpoint, sid) = (self.clone(), socket.id);
            let close = self.transports.closer(socket);
            tokio::spawn(async move {
                tokio::time::sleep(CONNECT_TIMEOUT).await;
                if endpoint.socket(sid).is_none() {
                    close();
                }
            });
        }
    }

    /// `None` too once the server has closed its sockets: `SocketIo::get_socket` would panic.
    fn socket(&self, sid: Sid) -> Option<SocketRef> {
        self.io.of("/")?.get_socket(sid)
    }

    fn check_revocation(&self, identity: &Identity) -> Result<(), Refusal> {
        match self.revocations.refuse(identity, SystemTime::now()) {
            true => Err(Refusal::TokenRevoked),
            false => Ok(()),
        }
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
        // Clients have no reason to send binary data; what they send anyway stays small.
        .with_parser(
            ParserConfig::common()
                .max_incoming_binaries(MAX_ATTACHMENTS)
                .max_incoming_binary_buf_size(MAX_MESSAGE_BYTES),
        )
        .build_svc();
    (Engine::new(service.clone()), any_service(service), io)
}

/// A time as JavaScript's `Date` reads it: RFC 3339, whose years have four digits.
fn timestamp(time: SystemTime) -> String {
    let end_of_years = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.min(end_of_years)).to_string()
}
