//! Messages that amqprs cannot read: a text that is not UTF-8, a header of an unknown
//! type. amqprs then gives up the connection, and says why only in its log (source of
//! 2.1.5), where [`Unreadable`] listens. Whoever owns the process's subscriber adds its
//! layer; without the layer such a loss has no cause.

use std::{
    fmt::Debug,
    sync::{Mutex, PoisonError},
};

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

/// The cause that amqprs logged last, until the loss of that connection is handled. The
/// task of amqprs that logs the cause ends the connection right after it.
static CAUSE: Mutex<Option<&'static str>> = Mutex::new(None);

/// Tells the service which message RabbitMQ's client library could not read.
///
/// The library (amqprs) gives up the connection then, and gives the cause only to its log.
/// With [`Unreadable::layer`] in the process's subscriber, the service counts such messages
/// and reconnects at once; without it, they look like any lost connection.
///
/// ```
/// use chat3_gateway::Unreadable;
/// use tracing_subscriber::{layer::SubscriberExt, registry};
///
/// let subscriber = registry().with(Unreadable::layer());
/// # drop(subscriber);
/// ```
pub struct Unreadable;

impl Unreadable {
    /// Why the connection that just ended could not be read any further, if that is why.
    pub(super) fn take_cause() -> Option<&'static str> {
        CAUSE.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Unreadable {
    /// The layer for the process's subscriber.
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
fn cause(line: &str) -> Option<&'static str> {
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

#[cfg(test)]
mod tests {
    use super::cause;

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
