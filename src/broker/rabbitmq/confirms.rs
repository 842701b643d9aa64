//! What RabbitMQ answers to what was published on one channel in confirm mode: taken, refused, or
//! returned because there was no queue for it.
//!
//! A return comes before the confirm of the same message. Channels in another mode get no
//! confirms, and what is returned there is not kept.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The confirms of one channel.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    state: Mutex<State>,
    all: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How many messages were published.
    published: u64,
    /// The messages without an answer.
    open: BTreeSet<u64>,
    batch: Outcome,
}

/// What became of the messages since the last [`Confirms::outcome`].
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) refused: u64,
    /// The routing keys of those that reached no queue.
    pub(super) returned: Vec<String>,
}

impl Confirms {
    /// A message is about to be published, the next on this channel.
    pub(super) fn publishing(&self) {
        let mut state = self.state();
        state.published += 1;
        let tag = state.published;
        state.open.insert(tag);
    }

    /// RabbitMQ answered a message, or all `multiple` up to it.
    pub(super) fn answered(&self, (tag, multiple): (u64, bool), is_taken: bool) {
        let mut state = self.state();
        let before = state.open.len();
        if multiple {
            state.open = state.open.split_off(&tag.saturating_add(1));
        } else {
            state.open.remove(&tag);
        }
        if !is_taken {
            state.batch.refused += (before - state.open.len()) as u64;
        }
        if state.open.is_empty() {
            self.all.notify_one();
        }
    }

    pub(super) fn returned(&self, routing_key: &str) {
        let mut state = self.state();
        if !state.open.is_empty() {
            state.batch.returned.push(routing_key.to_owned());
        }
    }

    /// Waits for all answers. On a channel that is lost they never come. One caller at a time.
    pub(super) async fn outcome(&self) -> Outcome {
        loop {
            {
                let mut state = self.state();
                if state.open.is_empty() {
                    return std::mem::take(&mut state.batch);
                }
            }
            self.all.notified().await;
        }
    }

    /// Waits for no answer any more, of any message so far.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.open = BTreeSet::new();
        state.batch = Outcome::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_outcome_is_known_when_every_message_is_answered_in_whatever_order() {
        let confirms = Confirms::default();
        // Of a channel that confirms nothing.
        confirms.returned("before");
        for _ in 0..6 {
            confirms.publishing();
        }
        confirms.returned("nowhere");
        for (tags, is_taken) in [((4, false), true), ((3, true), true), ((5, false), false)] {
            confirms.answered(tags, is_taken);
            let early = timeout(Duration::from_millis(1), confirms.outcome());
            assert!(early.await.is_err());
        }
        confirms.answered((6, false), true);
        let outcome = confirms.outcome().await;
        assert_eq!(
            (outcome.refused, outcome.returned),
            (1, vec!["nowhere".to_owned()])
        );
        // The next batch begins anew.
        confirms.publishing();
        confirms.answered((7, true), true);
        assert_eq!(confirms.outcome().await.refused, 0);
        // Answers to what was forgotten mean nothing.
        confirms.publishing();
        confirms.forget();
        confirms.publishing();
        confirms.answered((8, false), false);
        confirms.answered((9, false), true);
        assert_eq!(confirms.outcome().await.refused, 0);
    }
}
