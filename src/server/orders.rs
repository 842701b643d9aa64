//! Orders that come over the control exchange, from the other instances.

use std::{sync::Arc, time::SystemTime};

use tracing::warn;

use crate::{
    broker::Broker,
    observability::sampled::Sampled,
    socketio::{
        endpoint::Endpoint,
        revocation::{Order, OrderText},
    },
};

/// Log lines about messages on the control exchange that are not orders.
static NO_ORDER: Sampled = Sampled::new();

/// Longest reason in such a log line.
const MAX_REASON_CHARS: usize = 200;

/// Carries out the orders that other instances broadcast, for as long as `endpoint` lives.
pub fn carry_out(endpoint: &Arc<Endpoint>, broker: &dyn Broker) {
    let endpoint = Arc::downgrade(endpoint);
    broker.on_broadcast(Arc::new(move |message| {
        let Some(endpoint) = endpoint.upgrade() else {
            return;
        };
        let text = OrderText::read(message).map_err(|error| error.to_string());
        let order = text.and_then(|text| {
            let order = Order::parse(text, SystemTime::now());
            order.map_err(|error| error.to_string())
        });
        match order {
            Ok(order) => drop(endpoint.carry_out(&order)),
            Err(reason) => {
                if let Some(line) = NO_ORDER.note("") {
                    // The reason may quote the message.
                    let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
                    let left_out = line.left_out;
                    warn!(reason, left_out, "RabbitMQ control message ignored");
                }
            }
        }
    }));
}
