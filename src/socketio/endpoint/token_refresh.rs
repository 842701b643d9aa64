//! What connected clients send: `auth:refresh` with the next token, which extends
//! the socket's lease. All other events are counted against the limit and ignored.

use std::{net::IpAddr, time::SystemTime};

use serde_json::{Value, json};
use socketioxide::extract::{AckSender, SocketRef};
use tracing::{info, warn};

use super::{CLOSED, Endpoint, admission::Admission, handshake, timestamp};
use crate::{
    auth::{Identity, Refusal},
    observability::sampled::Sampled,
    socketio::limits::Verdict,
};

/// Sent by a client with its next token.
const AUTH_REFRESH: &str = "auth:refresh";

/// Lines about tokens that cannot extend a lease.
static REFRESH_REFUSED: Sampled = Sampled::new();

impl Endpoint {
    /// Handles an event from a client.
    pub(super) async fn event(
        &self,
        socket: SocketRef,
        event: String,
        data: Option<Value>,
        ack: AckSender,
    ) {
        let Some(admission) = Admission::of(&socket) else {
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
        let client = handshake::client(&socket);
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

    /// Extends a socket's lease with another token of its user.
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
}
