//! The consumer of a queue: takes messages from amqprs, calls the handlers, and settles. The
//! messages that are there together form a turn, and the handlers send when the turn ends.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::{BasicProperties, channel::ConsumerMessage};
use smallvec::SmallVec;
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::error;

use super::acks::Acks;
use crate::broker::{Delivery, Handler};

/// Bytes of messages after which a turn ends, so that other tasks get theirs.
const TURN_BYTES: usize = 64 * 1024;

/// What a message costs besides its body, in bytes of a turn.
const MESSAGE_BYTES: usize = 256;

/// What each socket that it is handed to costs.
const SOCKET_BYTES: usize = 4;

/// A consumer's turn: the messages that are there, up to a limit. The handlers flush at its end.
#[derive(Default)]
pub(super) struct Turn {
    bytes: usize,
    /// The handlers that have something to flush. A user may have a consumer of its own.
    unflushed: SmallVec<[Handler; 1]>,
}

impl Turn {
    /// Calls a handler. One that panics must neither end its user's subscription nor leave
    /// a gap that holds up all acknowledgements.
    pub(super) fn hand_off(&mut self, handler: &Handler, delivery: &Delivery<'_>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| handler.handle(delivery)));
        if outcome.is_err() {
            error!(routing_key = ?delivery.routing_key, "RabbitMQ update handler panicked");
        }
        // One that panicked may have something to flush as well.
        let sockets = outcome.unwrap_or(1);
        self.bytes = self
            .bytes
            .saturating_add(sockets.saturating_mul(SOCKET_BYTES));
        let is_noted = || {
            self.unflushed
                .last()
                .is_some_and(|last| Arc::ptr_eq(last, handler))
        };
        if sockets > 0 && !is_noted() {
            self.unflushed.push(handler.clone());
        }
    }

    fn is_long(&self) -> bool {
        self.bytes >= TURN_BYTES
    }

    fn take(
        &mut self,
        message: &ConsumerMessage,
        take: &mut impl FnMut(&ConsumerMessage, &mut Self),
    ) {
        self.bytes += MESSAGE_BYTES + message.content.as_ref().map_or(0, Vec::len);
        take(message, self);
    }

    /// Has the handlers send what they were handed.
    fn end(&mut self) {
        self.bytes = 0;
        for handler in self.unflushed.drain(..) {
            if catch_unwind(AssertUnwindSafe(|| handler.flush())).is_err() {
                error!("RabbitMQ update handler panicked");
            }
        }
    }
}

/// Calls `take` with each message until the consumer has ended. What amqprs buffers in
/// `messages` is bounded by the prefetch.
pub(super) async fn in_turns(
    mut messages: UnboundedReceiver<ConsumerMessage>,
    mut take: impl FnMut(&ConsumerMessage, &mut Turn),
) {
    let mut turn = Turn::default();
    // A user may have a consumer: what is here while it waits is small.
    while (messages.recv().await)
        .map(|message| turn.take(&message, &mut take))
        .is_some()
    {
        while !turn.is_long()
            && (messages.try_recv())
                .map(|message| turn.take(&message, &mut take))
                .is_ok()
        {}
        let is_long = turn.is_long();
        turn.end();
        if is_long {
            tokio::task::yield_now().await;
        }
    }
}

/// Hands a queue's updates to `deliver` until the consumer has ended, and settles each.
pub(super) async fn consume(
    messages: UnboundedReceiver<ConsumerMessage>,
    acks: Arc<Acks>,
    deliver: impl Fn(&Delivery<'_>, &mut Turn) + Send,
) {
    let take = move |message: &ConsumerMessage, turn: &mut Turn| {
        // Every message has one.
        let Some(method) = &message.deliver else {
            return;
        };
        let properties = message.basic_properties.as_ref();
        let timestamp = properties.and_then(BasicProperties::timestamp);
        let delivery = Delivery {
            body: message.content.as_deref().unwrap_or_default(),
            routing_key: method.routing_key(),
            published_at: timestamp.and_then(published_at),
            position: None,
        };
        deliver(&delivery, turn);
        acks.settle(method.delivery_tag());
    };
    in_turns(messages, take).await;
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
        let handler: Handler = Arc::new(|_: &Delivery<'_>| {});
        let deliver = move |delivery: &Delivery<'_>, turn: &mut Turn| {
            turn.hand_off(&handler, delivery);
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
