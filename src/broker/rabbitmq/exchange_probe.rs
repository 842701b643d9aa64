//! Whether the exchange still exists: asked from time to time, since bindings go with
//! their exchange, unannounced, and a user who was bound would wait for ever.
//!
//! Owns how to ask; a question that is not permitted costs a channel each time, so it is
//! given up. Pure: time is an argument, and the link asks.

use std::time::Duration;

use tokio::time::Instant;

use super::link_error::{NOT_FOUND, ServerClose};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn close(code: u16, text: &str) -> ServerClose {
        ServerClose::new(code, text, (50, 20))
    }

    fn forbidden() -> ServerClose {
        close(403, "ACCESS_REFUSED - access to exchange 'x' refused")
    }

    #[test]
    fn a_question_that_is_refused_gives_way_to_the_next_and_both_rest() {
        let mut probe = ExchangeProbe::new();
        let mut now = Instant::now();
        assert_eq!(probe.question(now), Some(Question::Bind));
        probe.refused(forbidden(), now).unwrap();
        assert_eq!(probe.question(now), Some(Question::Declare));
        for _ in 0..3 {
            probe.refused(forbidden(), now).unwrap();
            assert_eq!(probe.question(now), None);
            assert_eq!(probe.question(now + REST - INTERVAL), None);
            now += REST;
            // After the rest, one refusal is enough to rest again.
            assert_eq!(probe.question(now), Some(Question::Bind));
        }
    }

    #[test]
    fn a_missing_exchange_is_the_end_and_a_missing_queue_is_not() {
        let mut probe = ExchangeProbe::new();
        let now = Instant::now();
        let queue = close(404, "NOT_FOUND - no queue 'q' in vhost '/'");
        probe.refused(queue, now).unwrap();
        assert_eq!(probe.question(now), Some(Question::Bind));
        let exchange = close(404, "NOT_FOUND - no exchange 'x' in vhost '/'");
        assert_eq!(probe.refused(exchange, now).unwrap_err().code, 404);
        probe.refused(forbidden(), now).unwrap();
        let exchange = close(404, "NOT_FOUND - no exchange 'x' in vhost '/'");
        assert!(probe.refused(exchange, now).is_err());
    }
}
