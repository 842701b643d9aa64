//! Whether the exchange still exists: asked from time to time, since bindings go with
//! their exchange, unannounced, and a user who was bound would wait for ever.
//!
//! Owns how to ask; a question that is not permitted costs a channel each time, so it is
//! given up. Pure: time is an argument, and the link asks.

use std::time::Duration;

use tokio::time::Instant;

use super::connection::{NOT_FOUND, ServerClose};

/// How often to ask.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// How long not to ask when no question is permitted.
const REST: Duration = Duration::from_secs(600);

/// What to ask the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Make a binding that exists once more: what the gateway has the rights for.
    Bind,
    /// Declare the exchange passively, for which some versions want more rights.
    Declare,
}

/// Which question is permitted, as far as is known.
pub(super) struct ExchangeProbe {
    question: Question,
    resting_since: Option<Instant>,
}

impl ExchangeProbe {
    pub(super) fn new() -> Self {
        Self {
            question: Question::Bind,
            resting_since: None,
        }
    }

    /// What to ask now, if anything.
    pub(super) fn question(&self, now: Instant) -> Option<Question> {
        let is_resting = self
            .resting_since
            .is_some_and(|since| now.duration_since(since) < REST);
        (!is_resting).then_some(self.question)
    }

    /// The broker refused the question; an error means that the exchange is gone.
    pub(super) fn refused(&mut self, close: ServerClose, now: Instant) -> Result<(), ServerClose> {
        // The end of the queue's consumer tells the rest.
        if close.missing_queue().is_some() {
            return Ok(());
        }
        if close.code == NOT_FOUND {
            return Err(close);
        }
        // A permission was withdrawn, from newcomers: users who are bound stay so.
        if self.question == Question::Bind && self.resting_since.is_none() {
            self.question = Question::Declare;
        } else {
            self.question = Question::Bind;
            self.resting_since = Some(now);
        }
        Ok(())
    }
}
