//! One user's consumer: from amqprs's delivery to the handler, and settled.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::{BasicProperties, Deliver, channel::Channel, consumer::AsyncConsumer};
use async_trait::async_trait;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

use super::acks::Acks;
use crate::broker::{Delivery, Handler};

/// Hands one user's updates to its handler, then settles them.
pub(super) struct UserConsumer {
    pub(super) handler: Handler,
    pub(super) acks: Arc<Acks>,
    pub(super) _handing_off: TaskTrackerToken,
}

#[async_trait]
impl AsyncConsumer for UserConsumer {
    async fn consume(
        &mut self,
        _: &Channel,
        deliver: Deliver,
        properties: BasicProperties,
        content: Vec<u8>,
    ) {
        let delivery = Delivery {
            // It may be kept for long: without the room that was left while reading.
            body: content.into_boxed_slice().into(),
            routing_key: deliver.routing_key().clone(),
            published_at: properties.timestamp().and_then(published_at),
        };
        // A handler that panics must not take its user's subscription along, nor
        // hold up everybody's acknowledgements with a gap.
        let handed_off = catch_unwind(AssertUnwindSafe(|| (self.handler)(&delivery)));
        if handed_off.is_err() {
            error!(routing_key = ?delivery.routing_key, "RabbitMQ update handler panicked");
        }
        self.acks.settle(deliver.delivery_tag());
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
