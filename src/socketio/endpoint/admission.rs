//! Admission: what happens between a client's CONNECT and the reply to it. The token
//! is verified, the user's session begins, and a socket that must not come in is
//! refused or has its transport closed.
//!
//! The two ways to turn a client down differ in what the client does next:
//! `socket.io-client` stays away after a refusal, and reconnects by itself after a
//! lost transport.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use serde_json::Value;
use socketioxide::{
    extract::{Event, SocketRef, TryData},
    socket::{DisconnectReason, Sid},
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    Endpoint, FAREWELL, REFUSED,
    handshake::{self, Seat},
};
use crate::{
    auth::Refusal,
    sessions::{Admitted, ResumeRequest, Session},
    socketio::leases::Lease,
    socketio::limits::{EventLimit, SessionConnects, Verdict},
    socketio::peer::SocketPeer,
    socketio::transport::{self, Transports},
};

/// How long the CONNECT reply waits for the user's subscription, and for the updates that the
/// client missed to be read back. A frontend fetches its state after `connect` and relies on
/// updates from then on; one that gets in without a subscription is told to fetch once more.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// The same while RabbitMQ is away, which may be for a moment or for long: without it, a
/// frontend still has to connect.
const AWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a CONNECT waits until the orders that the broker has kept are read: they may refuse
/// its token. Without a broker, a client still has to connect.
const ORDERS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a CONNECT waits for all of this together. The session of a client that is not let in
/// within `CONNECT_TIMEOUT` of its handshake ends, and the CONNECT comes a little later.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a socket that was let in holds; dropped when it disconnects.
pub(super) struct Admission {
    // Dropped first: its session is about to leave.
    _watch: Watch,
    pub(super) session: Session<SocketPeer>,
    pub(super) lease: Lease,
    pub(super) events: EventLimit,
    /// Held while one `auth:refresh` is handled; others wait in their order.
    pub(super) refreshing: AsyncMutex<()>,
}

impl Admission {
    /// The admission of a socket, unless the socket has disconnected.
    pub(super) fn of(socket: &SocketRef) -> Option<Arc<Self>> {
        socket.extensions.get()
    }
}

/// Has the transports watch a socket until it is dropped: its connection may have to
/// be closed.
struct Watch {
    transports: Transports,
    sid: Sid,
    session: u64,
}

impl Watch {
    fn new(transports: &Transports, socket: &SocketRef, session: u64) -> Self {
        transports.watch(socket, session);
        Self {
            transports: transports.clone(),
            sid: socket.id,
            session,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.transports.forget(self.sid, self.session);
    }
}

impl Endpoint {
    /// Runs before the CONNECT reply.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "connect", skip_all, fields(otel.kind = "server", sid = %socket.id)))]
    pub(super) async fn authenticate(
        self: Arc<Self>,
        socket: SocketRef,
        auth: Option<Value>,
    ) -> Result<(), Refusal> {
        if self.transports.is_draining() {
            // A refused client would stay away for good, while one that loses its
            // transport reconnects elsewhere. So this CONNECT is never answered.
            self.transports.close(&socket);
            return std::future::pending().await;
        }
        let until = Instant::now() + PATIENCE;
        let connects = self.check_connects(&socket)?;
        let client = handshake::client(&socket);
        let admission = match self.admit(&socket, client, auth, until).await {
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
        // Before the reply, so that a socket that disconnects at once finds its handler.
        self.handle_events(&socket);
        let session = &admission.session;
        self.make_ready(session, until).await;
        if self.transports.is_draining() {
            // What would be answered now, such as that nothing can be recovered, holds for this
            // instance alone.
            self.transports.close(&socket);
            return std::future::pending().await;
        }
        // An order for this user may have been given anywhere, also while its client was away.
        let is_ended = |begun| self.revocations.forbids_recovery(session.user(), begun);
        if let Some(Admitted { id, pid }) = session.admit(socket.id, is_ended) {
            let transports = &self.transports;
            transports.put_into_connect_reply(&socket, id, &pid.expose());
        }
        self.metrics.connects.inc();
        Ok(())
    }

    /// Waits for the session's subscription, and for what its client missed, as long as a
    /// client can be kept waiting.
    async fn make_ready(&self, session: &Session<SocketPeer>, until: Instant) {
        let ready = async {
            session.subscribed().await;
            session.reached().await;
        };
        tokio::pin!(ready);
        let is_ready = timeout(AWAY_TIMEOUT, &mut ready).await.is_ok();
        if !is_ready && self.hub.broker().is_connected() {
            let rest = READY_TIMEOUT.saturating_sub(AWAY_TIMEOUT);
            let _ = timeout_at(until.min(Instant::now() + rest), ready).await;
        }
    }

    fn handle_events(self: &Arc<Self>, socket: &SocketRef) {
        let endpoint = self.clone();
        socket.on_disconnect(async move |socket: SocketRef, reason: DisconnectReason| {
            endpoint.disconnected(&socket, reason);
        });
        let endpoint = self.clone();
        socket.on_fallback(
            move |socket: SocketRef, event: Event, data: TryData<Value>, ack| {
                let endpoint = endpoint.clone();
                async move { endpoint.event(socket, event.0, data.0.ok(), ack).await }
            },
        );
    }

    /// Limits the CONNECTs of one Engine.IO session: handshakes are limited, so one
    /// handshake must not allow any number of CONNECTs.
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

    /// Closes the transport of a client whose token was not looked at, so that the
    /// client reconnects later.
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

    /// Finds the token and slows down clients whose tokens were refused before.
    async fn admit(
        &self,
        socket: &SocketRef,
        client: IpAddr,
        auth: Option<Value>,
        until: Instant,
    ) -> Result<Arc<Admission>, Refusal> {
        if self.refusal_limit.is_exceeded(client) {
            return Err(Refusal::AddressRefusals);
        }
        let presented = Seat::of(socket).and_then(|seat| seat.presented().clone());
        let presented = presented.unwrap_or_else(|| Arc::new(handshake::without_credentials()));
        let presented = self.verifier.presented(auth.as_ref(), &presented);
        let token = presented.map(Cow::into_owned);
        // A task that waits below holds no more memory than it needs.
        let request = ResumeRequest::of(auth.as_ref());
        drop(auth);
        // A client without a token, or with nonsense, is slowed down like every other
        // client that presents the same.
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
            Ok(token) => self.let_in(socket, client, token, request, until).await,
            Err(refusal) => Err(*refusal),
        };
        match &admission {
            Ok(_) => self.refused_tokens.forget(client, known_as),
            Err(Refusal::AddressRefusals | Refusal::Overloaded) => {}
            Err(refusal) => self.refused_tokens.note(client, known_as, *refusal),
        }
        admission
    }

    /// Verifies the token and begins a session of its user.
    async fn let_in(
        &self,
        socket: &SocketRef,
        client: IpAddr,
        token: &str,
        request: ResumeRequest,
        until: Instant,
    ) -> Result<Arc<Admission>, Refusal> {
        let is_wanted = || !self.refusal_limit.is_exceeded(client);
        let verified = self.verifier.verify_for(client, token, is_wanted);
        let identity = verified.await?;
        if !self.hub.broker().has_room_for(identity.user()) {
            return Err(Refusal::IdsTooLong);
        }
        let read = self.hub.broker().broadcasts_read();
        let orders_until = until.min(Instant::now() + ORDERS_TIMEOUT);
        if timeout_at(orders_until, read).await.is_err()
            && let Some(line) = REFUSED.note("orders not read")
        {
            let left_out = line.left_out;
            warn!(
                left_out,
                "Socket let in before the kept orders were read; they are carried out on it then"
            );
        }
        let lease = self.leases.grant(socket.id, identity.clone());
        // After the lease is granted: a later revocation finds the lease.
        self.check_revocation(&identity)?;
        let limit = self.config.max_sockets_per_user;
        let session = Session::join(&self.hub, identity.user(), request, limit);
        let session = session.ok_or(Refusal::TooManySockets)?;
        let watch = Watch::new(&self.transports, socket, session.number());
        if let Some(seat) = Seat::of(socket) {
            seat.presented().take();
        }
        Ok(Arc::new(Admission {
            _watch: watch,
            session,
            lease,
            events: EventLimit::new(self.config.max_events_per_second),
            refreshing: AsyncMutex::default(),
        }))
    }
}
