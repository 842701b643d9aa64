//! A queue's consumer: from amqprs's message to the handlers, and settled.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::channel::ConsumerMessage;
use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::error;

use super::acks::Acks;
use crate::broker::{Delivery, Handler};

/// Bytes of updates after which the sockets get their turn to write: on one thread
/// they would else only lag further behind while a burst is handed to them.
const TURN_BYTES: usize = 8 * 1024;

/// Hands a queue's updates to `deliver` until the consumer has ended, and settles
/// each. What amqprs buffers in `messages` is bounded by the prefetch.
pub(super) async fn consume(
    mut messages: UnboundedReceiver<ConsumerMessage>,
    acks: Arc<Acks>,
    deliver: impl Fn(&Delivery) + Send,
) {
    let mut in_turn = 0;
    while let Some(message) = messages.recv().await {
        // Each message has them.
        let Some(deliver_method) = message.deliver else {
            continue;
        };
        let properties = message.basic_properties.unwrap_or_default();
        let content = message.content.unwrap_or_default();
        in_turn += content.len();
        deliver(&Delivery {
            // It may be kept for long: without the room that was left while reading.
            body: Bytes::from(content.into_boxed_slice()),
            routing_key: deliver_method.routing_key().clone(),
            published_at: properties.timestamp().and_then(published_at),
        });
        acks.settle(deliver_method.delivery_tag());
        if in_turn >= TURN_BYTES {
            in_turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// A handler that panics must not take its user's subscription along, nor hold up
/// everybody's acknowledgements with a gap.
pub(super) fn hand_off(handler: &Handler, delivery: &Delivery) {
    if catch_unwind(AssertUnwindSafe(|| handler(delivery))).is_err() {
        error!(routing_key = ?delivery.routing_key, "RabbitMQ update handler panicked");
    }
}

/// Chat3 stamps messages in milliseconds, although AMQP 0-9-1 means seconds.
/// Seconds are too coarse to measure a latency with and are left out.
fn published_at(timestamp: u64) -> Option<SystemTime> {
    // In milliseconds this is the year 1973, in seconds the year 5138.
    const FIRST_MILLISECONDS: u64 = 100_000_000_000;
    (timestamp >= FIRST_MILLISECONDS)
        .then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(timestamp)))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_millisecond_timestamps_measure_latency() {
        assert_eq!(published_at(1_763_551_369), None);
        assert!(published_at(1_763_551_369_397).is_some());
        // Whatever a publisher sends, nothing overflows.
        let _ = published_at(u64::MAX);
    }
}
