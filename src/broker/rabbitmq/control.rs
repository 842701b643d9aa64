//! How orders arrive from other instances: through the gateway's fanout exchange, over a
//! connection of their own. `orders` publishes them.
//!
//! RabbitMQ keeps them in a small stream, which each instance reads from the start, and later
//! from where it was: an order holds on instances that start after it, or were cut off. Where
//! there can be no stream, an instance has a queue while it is connected.
//!
//! - `listener`: the reader's loop, for one connection after the other
//! - `sources`: what it consumes from, and how that is declared
//! - `wire`: the connection
//!
//! Optional, and never in the way of updates: whatever is published here, and whatever RabbitMQ
//! refuses here, ends this connection at most.

mod listener;
mod sources;
mod wire;

use std::sync::Arc;

use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

#[cfg(feature = "cli")] // For the doctor.
pub(crate) use self::sources::{declaration, markers};
use self::{listener::Listener, wire::Wire};
use super::{backoff::Backoff, shared::Shared};

/// Listens to orders until the service is closed, if a control exchange is configured.
pub(super) async fn listen(shared: Arc<Shared>) {
    if shared.config.control_exchange.is_empty() {
        return;
    }
    let nodes = shared.config.url.nodes().len();
    let mut backoff = Backoff::new(shared.config.reconnect_delay, nodes);
    let mut listener = Listener::new(shared.clone());
    // The link reports the same outage.
    let mut is_reported = false;
    for epoch in 0_u64.. {
        let opened = tokio::select! {
            opened = Wire::open(&shared) => opened,
            () = shared.close.cancelled() => break,
        };
        let delay = match opened {
            Ok(mut wire) => {
                let up_since = Instant::now();
                let lost = listener.run(&mut wire, epoch).await;
                wire.close().await;
                let Err(reason) = lost else {
                    break;
                };
                warn!(%reason, "RabbitMQ connection for orders closed");
                is_reported = true;
                let now = Instant::now();
                backoff.after_loss(&reason, now.duration_since(up_since), now)
            }
            Err(error) if is_reported => {
                debug!(%error, "RabbitMQ connection for orders not made");
                backoff.after_failure(&error)
            }
            Err(error) => {
                is_reported = true;
                warn!(%error, "RabbitMQ connection for orders not made: none arrive");
                backoff.after_failure(&error)
            }
        };
        // Sockets do not wait for orders that cannot be read.
        shared.reading_orders.send_replace(false);
        tokio::select! {
            () = sleep(delay) => {}
            () = shared.close.cancelled() => break,
        }
    }
    shared.reading_orders.send_replace(false);
}
