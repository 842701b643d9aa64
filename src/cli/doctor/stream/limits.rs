//! The limits of a stream that exists: its arguments, read from RabbitMQ's refusals.
//!
//! RabbitMQ tells an argument only by refusing another value of it. So the declaration is
//! repeated with each value that a refusal names, until it is accepted. Policies, which
//! override the limits, are not told over AMQP 0-9-1.

use std::time::Duration;

use amqprs::{FieldTable, FieldValue, channel::QueueDeclareArguments};

use crate::{
    broker::rabbitmq::{LinkError, ServerClose, SideConnection, stream},
    config::RabbitMqConfig,
};

/// More arguments than a stream can have.
const MAX_ARGUMENTS: usize = 16;

const MAX_AGE: &str = "x-max-age";
const MAX_BYTES: &str = "x-max-length-bytes";
const SEGMENT_BYTES: &str = "x-stream-max-segment-size-bytes";

/// What a stream keeps, as its arguments say; `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) age: Option<Duration>,
    pub(super) bytes: Option<u64>,
}

/// An argument that is not as `serve` declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    name: String,
    is: Option<String>,
    declared: Option<String>,
}

impl Difference {
    /// Whether it concerns what the stream keeps.
    pub(super) fn matters(&self) -> bool {
        [MAX_AGE, MAX_BYTES, SEGMENT_BYTES].contains(&&*self.name)
    }

    /// Whether no policy can change it.
    pub(super) fn is_fixed(&self) -> bool {
        self.name == SEGMENT_BYTES
    }

    pub(super) fn describe(&self) -> String {
        let or_nothing = |value: &Option<String>| value.clone().unwrap_or("not set".to_owned());
        let (is, declared) = (or_nothing(&self.is), or_nothing(&self.declared));
        format!("{} is {is}, serve declares {declared}", self.name)
    }
}

/// What serve declares.
pub(super) fn declared(config: &RabbitMqConfig) -> Limits {
    of(&stream::limits(config))
}

/// Learns the arguments of the stream, which exists. A refusal for another reason is
/// returned.
pub(super) async fn learn(
    session: &mut SideConnection,
    config: &RabbitMqConfig,
) -> Result<Result<(Limits, Vec<Difference>), ServerClose>, LinkError> {
    let mut arguments = stream::limits(config);
    let mut differences = Vec::new();
    loop {
        let declare = QueueDeclareArguments::new(&config.stream)
            .durable(true)
            .arguments(arguments.clone())
            .finish();
        let close = match super::declare(session, declare).await? {
            Ok(()) => return Ok(Ok((of(&arguments), differences))),
            Err(close) => close,
        };
        let current = stream::has_other_limits(&close).then(|| current(&close.text));
        let Some((name, value)) = current.flatten() else {
            return Ok(Err(close));
        };
        let key = name.clone().try_into();
        let (Ok(key), true) = (key, differences.len() < MAX_ARGUMENTS) else {
            return Ok(Err(close));
        };
        let is = value.as_ref().and_then(text);
        // First removed, because `insert` counts the bytes of a value that it replaces.
        let before = arguments.remove(&key);
        if let Some(value) = value {
            arguments.insert(key, value);
        }
        let declared = before.as_ref().and_then(text);
        differences.push(Difference { name, is, declared });
    }
}

/// The argument that RabbitMQ refused, and the value that it has.
fn current(refusal: &str) -> Option<(String, Option<FieldValue>)> {
    let name = refusal
        .split("inequivalent arg '")
        .nth(1)?
        .split('\'')
        .next()?;
    let current = refusal.split("current is ").nth(1)?;
    if current == "none" {
        return Some((name.to_owned(), None));
    }
    let value = current.strip_prefix("the value ").unwrap_or(current);
    let (value, _) = value.strip_prefix('\'')?.split_once('\'')?;
    let value = match value.parse() {
        Ok(number) => FieldValue::l(number),
        Err(_) if ["true", "false"].contains(&value) => FieldValue::t(value == "true"),
        Err(_) => FieldValue::S(value.to_owned().try_into().ok()?),
    };
    Some((name.to_owned(), Some(value)))
}

fn of(arguments: &FieldTable) -> Limits {
    let argument = |name: &str| {
        let value = arguments.get(&name.try_into().expect("a short name"))?;
        text(value)
    };
    Limits {
        age: argument(MAX_AGE).and_then(|age| parse_age(&age)),
        bytes: argument(MAX_BYTES).and_then(|bytes| bytes.parse().ok()),
    }
}

fn text(value: &FieldValue) -> Option<String> {
    match value {
        FieldValue::S(text) => Some(text.to_string()),
        FieldValue::l(number) => Some(number.to_string()),
        FieldValue::t(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// An age as RabbitMQ writes it: a number and a unit, `Y`, `M`, `D`, `h`, `m` or `s`.
fn parse_age(age: &str) -> Option<Duration> {
    const DAY: u64 = 24 * 60 * 60;
    let unit = age.chars().last()?;
    let seconds = match unit {
        'Y' => 365 * DAY,
        'M' => 30 * DAY,
        'D' => DAY,
        'h' => 60 * 60,
        'm' => 60,
        's' => 1,
        _ => return None,
    };
    let number: u64 = age.strip_suffix(unit)?.parse().ok()?;
    Some(Duration::from_secs(number.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_tell_the_value_of_an_argument() {
        let of = |current: &str| {
            let refusal = format!(
                "PRECONDITION_FAILED - inequivalent arg 'x-max-age' for queue 'q' in vhost '/': received the value '1s' of type 'longstr' but current is {current}"
            );
            let (name, value) = super::current(&refusal)?;
            assert_eq!(name, "x-max-age");
            Some(value.and_then(|value| text(&value)))
        };
        let some = |text: &str| Some(Some(text.to_owned()));
        assert_eq!(of("the value '3600s' of type 'longstr'"), some("3600s"));
        assert_eq!(of("'6m'"), some("6m"));
        assert_eq!(of("the value '42' of type 'signedint'"), some("42"));
        assert_eq!(of("the value 'true' of type 'bool'"), some("true"));
        assert_eq!(of("none"), Some(None));
        // RabbitMQ's texts end after 255 bytes.
        assert_eq!(of("the value '36"), None);
        assert_eq!(super::current("PRECONDITION_FAILED - another"), None);
    }

    #[test]
    fn ages_are_read_as_rabbitmq_writes_them() {
        for (age, seconds) in [("90s", 90), ("5m", 300), ("1h", 3_600), ("7D", 604_800)] {
            assert_eq!(parse_age(age), Some(Duration::from_secs(seconds)), "{age}");
        }
        for age in ["", "s", "1", "1w", "-1s", "é"] {
            assert_eq!(parse_age(age), None, "{age}");
        }
    }

    #[test]
    fn what_serve_declares_is_read_back() {
        let config = RabbitMqConfig::default();
        let Limits { age, bytes } = declared(&config);
        assert_eq!(age, Some(config.stream_max_age()));
        assert!(bytes.is_some());
    }
}
