//! Operators' orders, carried out on this instance: sockets are sent away, and what
//! was revoked is remembered. Reading an order is the business of
//! [`revocation`](crate::socketio::revocation).

use std::{sync::Arc, time::SystemTime};

use serde_json::json;
use socketioxide::extract::SocketRef;
use tracing::{info, warn};

use super::{Endpoint, FAREWELL, admission::Admission};
use crate::{
    observability::sampled::Sampled,
    socketio::revocation::{Order, Target, is_user},
};

/// Sent to a socket that is sent away: `{reason}`.
const AUTH_REVOKED: &str = "auth:revoked";

/// Lines about orders.
static ORDERS: Sampled = Sampled::new();

impl Endpoint {
    /// Sends away the sockets that `order` concerns; returns how many.
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
            if let Some(admission) = Admission::of(socket) {
                // From now on the socket gets no update, and none can be recovered.
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
}
