//! The consumer of a queue: takes messages from amqprs, calls the handlers, and settles.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::{BasicProperties, channel::ConsumerMessage};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::error;

use super::acks::Acks;
use crate::broker::{Delivery, Handler};

/// Bytes of updates after which a consumer yields, so that the sockets can write: on one
/// thread they would otherwise lag further behind during a burst.
const TURN_BYTES: usize = 8 * 1024;

/// A consumer's turn, which ends with enough bytes.
#[derive(Default)]
pub(super) struct Turn {
    bytes: usize,
}

impl Turn {
    /// As many bytes were handed off; yields if that is enough for one turn.
    pub(super) async fn took(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= TURN_BYTES {
            self.bytes = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Hands a queue's updates to `deliver`, which returns whether they are for somebody, until the
/// consumer has ended, and settles each. What amqprs buffers in `messages` is bounded by the
/// prefetch.
pub(super) async fn consume(
    mut messages: UnboundedReceiver<ConsumerMessage>,
    acks: Arc<Acks>,
    deliver: impl Fn(&Delivery<'_>) -> bool + Send,
) {
    let mut turn = Turn::default();
    // A user may have a consumer: what is here while it waits is small.
    while let Some(bytes) = messages
        .recv()
        .await
        .map(|message| take(&message, &acks, &deliver))
    {
        turn.took(bytes).await;
    }
}

/// Hands a message to `deliver`, and settles it. Returns the bytes that sockets have to write
/// now.
fn take(message: &ConsumerMessage, acks: &Acks, deliver: impl Fn(&Delivery<'_>) -> bool) -> usize {
    // Every message has one.
    let Some(method) = &message.deliver else {
        return 0;
    };
    let properties = message.basic_properties.as_ref();
    let timestamp = properties.and_then(BasicProperties::timestamp);
    let body = message.content.as_deref().unwrap_or_default();
    let is_claimed = deliver(&Delivery {
        body,
        routing_key: method.routing_key(),
        published_at: timestamp.and_then(published_at),
        position: None,
    });
    acks.settle(method.delivery_tag());
    if is_claimed { body.len() } else { 0 }
}

/// Calls a handler. One that panics must neither end its user's subscription nor leave
/// a gap that holds up all acknowledgements.
pub(super) fn hand_off(handler: &Handler, delivery: &Delivery<'_>) {
    if catch_unwind(AssertUnwindSafe(|| handler(delivery))).is_err() {
        error!(routing_key = ?delivery.routing_key, "RabbitMQ update handler panicked");
    }
}

/// Reads a timestamp in milliseconds, as Chat3 sets it, although AMQP 0-9-1 means
/// seconds. Seconds are too coarse to measure a latency with and are ignored.
pub(super) fn published_at(timestamp: u64) -> Option<SystemTime> {
    // In milliseconds this is the year 1973, in seconds the year 5138.
    const FIRST_MILLISECONDS: u64 = 100_000_000_000;
    (timestamp >= FIRST_MILLISECONDS)
        .then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(timestamp)))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user has one in the topology `per-user`. A message alone takes 544 bytes.
    #[test]
    fn a_consumer_that_waits_is_small() {
        let (_sender, messages) = tokio::sync::mpsc::unbounded_channel();
        let handler: Handler = Arc::new(|_| {});
        let deliver = move |delivery: &Delivery<'_>| {
            hand_off(&handler, delivery);
            true
        };
        let consuming = consume(messages, Arc::new(Acks::new(1)), deliver);
        assert!(size_of_val(&consuming) <= 256);
    }

    #[test]
    fn only_millisecond_timestamps_measure_latency() {
        assert_eq!(published_at(1_763_551_369), None);
        assert!(published_at(1_763_551_369_397).is_some());
        // Whatever a publisher sends, nothing overflows.
        let _ = published_at(u64::MAX);
    }
}
