//! Orders that come over the control exchange, from the other instances.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::warn;

use crate::{
    broker::{Broadcast, Broker},
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

/// The oldest time of an order that is believed: no order matters for longer.
const OLDEST: Duration = Duration::from_secs(2 * 366 * 24 * 60 * 60);

/// Carries out the orders that other instances broadcast, for as long as `endpoint` lives.
pub fn carry_out(endpoint: &Arc<Endpoint>, broker: &dyn Broker) {
    let endpoint = Arc::downgrade(endpoint);
    broker.on_broadcast(Arc::new(move |message| {
        let Some(endpoint) = endpoint.upgrade() else {
            return;
        };
        match (read(message, SystemTime::now()), message.kept_since) {
            (Ok(order), None) => drop(endpoint.carry_out(&order)),
            (Ok(order), Some(since)) => endpoint.catch_up_on(&order, since),
            (Err(reason), _) => {
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

/// Reads an order. When a kept one was made is known from its text, from its timestamp, or, as
/// older versions of the gateway wrote it, from `issuedBefore`; otherwise it counts as new.
fn read(message: &Broadcast<'_>, now: SystemTime) -> Result<Order, String> {
    let mut text = OrderText::read(message.body).map_err(|error| error.to_string())?;
    let millis = |since: Duration| u64::try_from(since.as_millis()).ok();
    if text.at.is_none() && message.kept_since.is_some() {
        let issued_before = text.issued_before.filter(|_| text.until.is_none());
        let issued_before = issued_before.map(Duration::from_secs);
        let published = message
            .published_at
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        text.at = published.or(issued_before).and_then(millis);
    }
    let oldest = now.checked_sub(OLDEST).unwrap_or(now);
    let oldest = oldest.duration_since(SystemTime::UNIX_EPOCH).ok();
    text.at = text.at.filter(|at| Some(*at) >= oldest.and_then(millis));
    Order::parse(text, now).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn when_a_kept_order_was_made_is_known_from_its_text_its_timestamp_or_an_older_gateways_text() {
        let (at_900, issued) = (NOW - 900, NOW - 700);
        for (rest, published, kept, made) in [
            (String::new(), None, true, NOW),
            (String::new(), Some(NOW - 800), true, NOW - 800),
            // A live order is made now, whatever the clock of its author says.
            (String::new(), Some(NOW - 800), false, NOW),
            (
                format!(r#","at":{at_900}000"#),
                Some(NOW - 800),
                true,
                at_900,
            ),
            (format!(r#","at":{at_900}000"#), None, false, at_900),
            (format!(r#","issuedBefore":{issued}"#), None, true, issued),
            // With `until`, an operator may have chosen it.
            (
                format!(r#","issuedBefore":{issued},"until":{NOW}"#),
                None,
                true,
                NOW,
            ),
            // No time at all.
            (r#","at":1800000000"#.to_owned(), None, true, NOW),
            (String::new(), Some(5), true, NOW),
            (String::new(), Some(NOW + 60), true, NOW),
        ] {
            let body = format!(r#"{{"userId":"carl"{rest}}}"#);
            let message = Broadcast {
                body: body.as_bytes(),
                published_at: published.map(at),
                kept_since: kept.then_some(at(NOW)),
            };
            let order = read(&message, at(NOW)).unwrap();
            assert_eq!(order.made, at(made), "{body} {published:?} {kept}");
        }
    }
}
