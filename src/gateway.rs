//! The Socket.IO side: authenticates a socket, puts it into the hub and takes it
//! out again.
//!
//! Clients send nothing but CONNECT and DISCONNECT; events from them are ignored.
//!
//! Invariant: a socket that is let in was verified, has a session in the hub
//! before its CONNECT reply, and drops that session when it disconnects, also
//! when the disconnect overtakes the connect handler: the session lives in the
//! socket's own extensions, and nowhere else for longer than a call.

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware, routing::any_service};
use serde_json::Value;
use socketioxide::{
    ParserConfig, SocketIo,
    extract::{SocketRef, TryData},
    handler::ConnectHandler,
    socket::DisconnectReason,
};
use tower_http::{limit::RequestBodyLimitLayer, timeout::RequestBodyTimeoutLayer};
use tracing::{debug, info};

use crate::{
    auth::{Refusal, Verifier},
    hub::{Hub, Request, Session},
    metrics::Metrics,
    transport::{self, Transports},
};

/// Packets that a socket may lag behind. A burst must fit: 4,000 updates of two
/// events each. Memory is taken only as packets wait, in blocks of 32.
const SOCKET_BUFFER_PACKETS: usize = 8 * 1024;

/// Largest message from a client, in bytes. Clients send a token and little else.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Largest polling response, in bytes. With engineioxide's default of 100 KB, a
/// packet that no longer fits is set aside and lost if the client then upgrades
/// to websocket; what the buffer can hold must fit into one response.
const MAX_POLLING_PAYLOAD_BYTES: u64 = 1 << 40;

/// How long an Engine.IO session may exist without a namespace. Also how long
/// the session of a refused socket lives on.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest pause while the body of a polling request arrives.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the CONNECT reply waits for the user's subscription. A frontend
/// fetches its state after `connect` and relies on updates from then on; but
/// without a broker, it still has to connect.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

struct Gateway {
    verifier: Verifier,
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
}

/// The Socket.IO endpoint at `/socket.io/`, and the handle that closes its sockets.
/// It must be served by [`transport::serve`].
pub fn router(
    verifier: Verifier,
    hub: Arc<Hub>,
    transports: Transports,
    metrics: Metrics,
) -> (Router, SocketIo) {
    let guard = middleware::from_fn_with_state(transports.clone(), transport::guard);
    let gateway = Arc::new(Gateway {
        verifier,
        hub,
        transports,
        metrics,
    });
    let (service, io) = SocketIo::builder()
        .max_buffer_size(SOCKET_BUFFER_PACKETS)
        .max_payload(MAX_POLLING_PAYLOAD_BYTES)
        .ws_max_message_size(MAX_MESSAGE_BYTES)
        .ws_max_frame_size(MAX_MESSAGE_BYTES)
        .connect_timeout(CONNECT_TIMEOUT)
        // Clients send no binary; what they may send unasked stays small.
        .with_parser(
            ParserConfig::common()
                .max_incoming_binaries(1)
                .max_incoming_binary_buf_size(MAX_MESSAGE_BYTES),
        )
        .build_svc();
    let authenticate = move |socket: SocketRef, auth: TryData<Value>| {
        let gateway = gateway.clone();
        async move { gateway.authenticate(socket, auth.0.ok()).await }
    };
    io.ns("/", connected.with(authenticate));
    let router = Router::new()
        .route("/socket.io", any_service(service.clone()))
        .route("/socket.io/", any_service(service))
        .layer(RequestBodyLimitLayer::new(MAX_MESSAGE_BYTES))
        .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
        .layer(guard);
    (router, io)
}

impl Gateway {
    /// Runs before the CONNECT reply.
    async fn authenticate(&self, socket: SocketRef, auth: Option<Value>) -> Result<(), Refusal> {
        if self.transports.is_draining() {
            // A refused client would stay away for good; one that lost its
            // transport reconnects, elsewhere. So never answer.
            self.transports.close(&socket);
            return std::future::pending().await;
        }
        let verified = self
            .verifier
            .verify_presented(auth.as_ref(), socket.req_parts())
            .await;
        let identity = verified.inspect_err(|refusal| {
            self.metrics.connect_refused(refusal.label());
            info!(peer = transport::peer(&socket), reason = %refusal, "Connection refused");
        })?;
        let session = Arc::new(self.hub.join(identity.user(), &socket));
        socket.extensions.insert(session.clone());
        // Before the reply: a socket that disconnects at once finds its handler.
        socket.on_disconnect(disconnected);
        if self.hub.broker().is_connected() {
            // Without the subscription in time, updates start when it is there.
            let _ = tokio::time::timeout(SUBSCRIBE_TIMEOUT, session.subscribed()).await;
        }
        if let Some(pid) = session.admit(Request::of(auth.as_ref())) {
            let transports = &self.transports;
            transports.put_into_connect_reply(&socket, &pid.expose());
        }
        self.metrics.connects.inc();
        Ok(())
    }
}

/// Runs after the CONNECT reply, possibly after the disconnect.
async fn connected(socket: SocketRef) {
    let Some(session) = socket.extensions.get::<Arc<Session>>() else {
        return;
    };
    debug!(user_id = %session.user().id, transport = ?socket.transport_type(), "Socket connected");
    session.go_live(socket).await;
}

async fn disconnected(socket: SocketRef, reason: DisconnectReason) {
    if let Some(session) = socket.extensions.remove::<Arc<Session>>() {
        debug!(user_id = %session.user().id, ?reason, "Socket disconnected");
        if reason == DisconnectReason::ClientNSDisconnect {
            session.end();
        }
    }
}
