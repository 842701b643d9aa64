//! Acknowledgements in batches: one frame, and so one system call, for many
//! deliveries.
//!
//! Delivery tags count up from 1 per channel. Consumers settle them in any order;
//! `basic.ack` with `multiple` covers everything up to a tag. Invariant: a tag is
//! covered only when it and all tags below it are settled.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use amqprs::channel::{BasicAckArguments, Channel};
use tokio::{sync::Notify, time::timeout};
use tracing::debug;

/// How long a settled delivery may wait for others to be acknowledged with it. The wait
/// costs only the broker's memory: at most the prefetch of each consumer.
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);

/// The acknowledgements of one channel.
pub(super) struct Acks {
    prefix: Mutex<Prefix>,
    /// Settled deliveries that are acknowledged without waiting for more, so that the
    /// consumer does not run out of prefetch.
    batch: u64,
    begun: Notify,
    full: Notify,
}

impl Acks {
    /// Acknowledgements for consumers with `prefetch` unacknowledged deliveries each.
    pub(super) fn new(prefetch: u16) -> Self {
        Self {
            prefix: Mutex::default(),
            batch: u64::from(prefetch / 4).max(1),
            begun: Notify::new(),
            full: Notify::new(),
        }
    }

    /// Notes that the delivery with this tag has been handed off.
    pub(super) fn settle(&self, tag: u64) {
        let (before, now) = {
            let mut prefix = self.prefix();
            let before = prefix.waiting();
            prefix.settle(tag);
            (before, prefix.waiting())
        };
        if before == 0 && now > 0 {
            self.begun.notify_one();
        }
        if before < self.batch && now >= self.batch {
            self.full.notify_one();
        }
    }

    /// Acknowledges as the prefix advances: a full batch at once, less after a delay.
    pub(super) async fn run(&self, channel: &Channel) {
        loop {
            self.begun.notified().await;
            // A notification from an earlier batch only makes this one early.
            let _ = timeout(MAX_ACK_DELAY, self.full.notified()).await;
            // Let consumers that are ready to run settle first.
            tokio::task::yield_now().await;
            self.flush(channel).await;
        }
    }

    /// Acknowledges what is settled so far.
    pub(super) async fn flush(&self, channel: &Channel) {
        let Some(tag) = self.prefix().take() else {
            return;
        };
        if channel
            .basic_ack(BasicAckArguments::new(tag, true))
            .await
            .is_err()
        {
            // The link is lost, and its exclusive queues with it: nothing is redelivered.
            debug!("RabbitMQ acknowledgement not sent");
        }
    }

    fn prefix(&self) -> std::sync::MutexGuard<'_, Prefix> {
        self.prefix.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The settled tags: all up to `complete`, and some above a gap.
#[derive(Debug, Default)]
struct Prefix {
    complete: u64,
    acknowledged: u64,
    /// At most the prefetch of each consumer.
    above_a_gap: BTreeSet<u64>,
}

impl Prefix {
    fn settle(&mut self, tag: u64) {
        if tag != self.complete + 1 {
            self.above_a_gap.insert(tag);
            return;
        }
        self.complete = tag;
        while self.above_a_gap.remove(&(self.complete + 1)) {
            self.complete += 1;
        }
    }

    /// How many deliveries could be acknowledged now.
    fn waiting(&self) -> u64 {
        self.complete - self.acknowledged
    }

    /// Returns the tag to acknowledge up to, if it has advanced.
    fn take(&mut self) -> Option<u64> {
        let new = self.complete > self.acknowledged;
        self.acknowledged = self.complete;
        new.then_some(self.complete)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_unsettled_is_ever_acknowledged_and_in_the_end_everything_is(
            order in Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle(),
            takes in proptest::collection::vec(any::<bool>(), 60),
        ) {
            let mut prefix = Prefix::default();
            let mut settled = BTreeSet::new();
            let mut acknowledged = 0;
            for (tag, take) in order.into_iter().zip(takes) {
                prefix.settle(tag);
                settled.insert(tag);
                if take && let Some(up_to) = prefix.take() {
                    prop_assert!((1..=up_to).all(|tag| settled.contains(&tag)));
                    prop_assert!(up_to > acknowledged);
                    acknowledged = up_to;
                }
            }
            prop_assert_eq!(prefix.take().unwrap_or(acknowledged), 60);
            prop_assert!(prefix.above_a_gap.is_empty());
        }
    }
}
