//! The end of a socket whose token expires: the client is warned with
//! `auth:expiring`, and the socket's transport is closed when the token is over.
//! [`Leases`](crate::socketio::leases::Leases) knows when.

use std::{sync::Arc, time::SystemTime};

use serde_json::json;
use socketioxide::extract::SocketRef;
use tracing::info;

use super::{CLOSED, Endpoint, timestamp};
use crate::{socketio::leases::Due, socketio::transport};

/// Sent some time before the socket's token expires: `{expiresAt}`.
const AUTH_EXPIRING: &str = "auth:expiring";

impl Endpoint {
    /// Announces the ends of leases, and closes the sockets whose lease is over.
    pub(super) async fn end_leases(self: Arc<Self>) {
        loop {
            match self.leases.next().await {
                Due::Expiring(sid, expires_at) => {
                    if let Some(socket) = self.socket(sid) {
                        announce(&socket, expires_at);
                    }
                }
                Due::Expired(sid) => {
                    if let Some(socket) = self.socket(sid) {
                        self.close_expired(&socket);
                    }
                }
            }
        }
    }

    fn close_expired(&self, socket: &SocketRef) {
        self.metrics.expired_sockets.inc();
        if let Some(line) = CLOSED.note("expired") {
            info!(
                peer = transport::peer(socket),
                left_out = line.left_out,
                "closing a socket whose token has expired"
            );
        }
        self.transports.close(socket);
    }
}

/// Tells a client when its token expires.
pub(super) fn announce(socket: &SocketRef, expires_at: SystemTime) {
    let expiry = json!({"expiresAt": timestamp(expires_at)});
    // A socket whose buffer is full is closed by the next update.
    let _ = socket.emit(AUTH_EXPIRING, &expiry);
}
