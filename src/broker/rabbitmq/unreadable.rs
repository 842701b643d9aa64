//! Messages that amqprs cannot read: a text that is not UTF-8, a header of an unknown
//! type. amqprs then gives up the connection, and says why only in its log (source of
//! 2.1.5), where [`Unreadable`] listens: in the command, which owns the
//! process's subscriber. Elsewhere such a loss has no cause.

use std::sync::{Mutex, PoisonError};

#[cfg(feature = "cli")]
pub(crate) use self::listening::is_of_amqprs;

/// What amqprs said last, until the connection that it said it of is gone: both are
/// done by one task, in one breath.
static CAUSE: Mutex<Option<&'static str>> = Mutex::new(None);

/// Hears why amqprs gave up a connection. Without it, such a loss has no name.
pub struct Unreadable;

impl Unreadable {
    /// Why the connection that just ended could not be read any further, if that is why.
    pub(super) fn take_cause() -> Option<&'static str> {
        CAUSE.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(feature = "cli")]
mod listening {
    use std::{fmt::Debug, sync::PoisonError};

    use tracing::{
        Event, Level, Metadata, Subscriber,
        field::{Field, Visit},
    };
    use tracing_subscriber::{
        Layer,
        filter::{LevelFilter, filter_fn},
        layer::Context,
        registry::LookupSpan,
    };

    use super::{CAUSE, Unreadable};

    impl Unreadable {
        /// The layer for a subscriber.
        pub fn layer<S: Subscriber + for<'s> LookupSpan<'s>>() -> impl Layer<S> {
            let errors =
                filter_fn(|metadata| is_of_amqprs(metadata) && *metadata.level() == Level::ERROR);
            Self.with_filter(errors.with_max_level_hint(LevelFilter::ERROR))
        }
    }

    /// Its lines are never written: at the level `trace` they hold logins and bodies.
    pub(crate) fn is_of_amqprs(metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("amqprs")
    }

    impl<S: Subscriber> Layer<S> for Unreadable {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            event.record(&mut Message);
        }
    }

    struct Message;

    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "message"
                && let Some(cause) = cause(&format!("{value:?}"))
            {
                *CAUSE.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
            }
        }
    }

    /// Reads why a frame could not be read. The words of amqprs are not repeated: they may
    /// quote the message.
    pub(super) fn cause(line: &str) -> Option<&'static str> {
        let (_, error) = line.split_once("failure of reading frame, cause: ")?;
        if !error.starts_with("framing error") && !error.starts_with("serde error") {
            return None;
        }
        Some(if error.contains("content = ") {
            "a key, property or header in it is not UTF-8"
        } else if error.contains("unknown variant") {
            "a header in it is of an unknown type"
        } else {
            "it is malformed"
        })
    }
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::listening::cause;

    #[test]
    fn an_unreadable_message_is_distinguished_from_a_lost_connection() {
        let line = |error| {
            format!("socket will be closed due to failure of reading frame, cause: {error}")
        };
        for (error, expected) in [
            (
                "framing error: serde error: len = 2, content = [FF, FE]",
                Some("not UTF-8"),
            ),
            (
                "framing error: serde error: unknown variant `L`, expected one of",
                Some("unknown type"),
            ),
            ("framing error: corrupted frame", Some("malformed")),
            ("network io error: Connection reset by peer", None),
            ("peer shutdown", None),
        ] {
            let cause = cause(&line(error));
            assert_eq!(cause.is_some(), expected.is_some(), "{error}");
            assert!(
                cause
                    .unwrap_or_default()
                    .contains(expected.unwrap_or_default())
            );
        }
    }
}
