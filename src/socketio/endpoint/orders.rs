//! Operators' orders, carried out on this instance: sockets are sent away, and what
//! was revoked is remembered. Reading an order is the business of
//! [`revocation`](crate::socketio::revocation).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::json;
use socketioxide::{extract::SocketRef, socket::Sid};
use tracing::{debug, info, warn};

use super::{Endpoint, FAREWELL, admission::Admission};
use crate::{
    observability::sampled::Sampled,
    socketio::revocation::{Order, Target, is_user},
};

/// Sent to a socket that is sent away: `{reason}`.
const AUTH_REVOKED: &str = "auth:revoked";

/// Lines about orders.
static ORDERS: Sampled = Sampled::new();

/// How much earlier than it seems an order may have been made: clocks differ, and a lost
/// connection is noticed late.
const TOLERANCE: Duration = Duration::from_secs(30);

impl Endpoint {
    /// Sends away the sockets that `order` concerns; returns how many. The order was made just
    /// now, whatever the clock of its author says.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "order", skip_all, fields(target = %order.target)))]
    pub fn carry_out(self: &Arc<Self>, order: &Order) -> usize {
        let now = SystemTime::now();
        self.remember(order, now, now);
        self.send_away(order)
    }

    /// Carries out an order that was kept for this instance. What was made before `since` is no
    /// news: it sends away only whom it still refuses.
    pub fn catch_up_on(self: &Arc<Self>, order: &Order, since: SystemTime) {
        let now = SystemTime::now();
        self.remember(order, order.made, now);
        if order.made + TOLERANCE >= since {
            self.send_away(order);
            return;
        }
        debug!(target = %order.target, until = order.until, "Order from before");
        if order.until.is_some() && !order.is_over(now) {
            let sids = self.leases.revoke(|identity| order.refuses(identity, now));
            self.end_sessions(order, sids);
        }
    }

    fn remember(&self, order: &Order, made: SystemTime, now: SystemTime) {
        let forgotten = self.revocations.add(order, made, now);
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
    }

    fn send_away(self: &Arc<Self>, order: &Order) -> usize {
        if let Target::User(id, tenant) = &order.target {
            self.hub.end_away(|user| is_user(id, tenant.as_ref(), user));
        }
        let sids = self.leases.revoke(|identity| order.concerns(identity));
        self.end_sessions(order, sids)
    }

    fn end_sessions(self: &Arc<Self>, order: &Order, sids: Vec<Sid>) -> usize {
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
        // Whoever may publish orders must not fill the log with those that concern nobody.
        let line = match count {
            0 => ORDERS.note("nobody").map(|line| line.left_out),
            _ => Some(None),
        };
        if let Some(left_out) = line {
            let (target, reason, until) = (&order.target, &order.reason, order.until);
            info!(
                sockets = count,
                %target,
                ?reason,
                until,
                left_out,
                "Sockets sent away"
            );
        }
        if count == 0 {
            return 0;
        }
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
