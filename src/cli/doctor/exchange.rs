//! Examines an exchange without creating one.

use amqprs::{FieldValue, channel::ExchangeDeclareArguments};

use crate::broker::rabbitmq::{ACCESS_REFUSED, LinkError, SideConnection};

/// The state of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exchange {
    AsExpected,
    Missing,
    OtherType(String),
    /// The type is as expected; another property is not.
    Otherwise(String),
    /// The broker says nothing to a user who may not declare it.
    NotPermitted,
    Unclear(String),
}

/// Examines an exchange by a declaration that RabbitMQ must refuse: its
/// `alternate-exchange` is not a name. RabbitMQ compares an existing exchange with the
/// declaration first: type, durability, arguments. A missing exchange is not created.
pub(super) async fn look_at(
    side: &mut SideConnection,
    name: &str,
    kind: &str,
) -> Result<Exchange, LinkError> {
    let mut declare = ExchangeDeclareArguments::new(name, kind);
    declare.durable(true);
    let mut arguments = amqprs::FieldTable::new();
    let impossible = "alternate-exchange".try_into().expect("a short name");
    arguments.insert(impossible, FieldValue::t(true));
    declare.arguments(arguments);
    let asked = side.ask(|channel| async move { channel.exchange_declare(declare).await });
    match asked.await {
        Ok(()) => Ok(Exchange::Unclear("the broker is not RabbitMQ".to_owned())),
        Err(LinkError::Closed(close)) if close.code == ACCESS_REFUSED => Ok(Exchange::NotPermitted),
        Err(LinkError::Closed(close)) => Ok(by_refusal(&close.text)),
        Err(error) => Err(error),
    }
}

/// Reads from RabbitMQ's text what differs.
fn by_refusal(text: &str) -> Exchange {
    let current = || {
        let after = text.split("current is ").nth(1).unwrap_or("another");
        after.trim_matches('\'').to_owned()
    };
    if text.contains("arg 'type'") {
        Exchange::OtherType(current())
    } else if text.contains("inequivalent arg 'alternate-exchange'") {
        Exchange::AsExpected
    } else if text.contains("invalid type") {
        Exchange::Missing
    } else if text.contains("inequivalent arg") {
        let property = text.split('\'').nth(1).unwrap_or("a property");
        Exchange::Otherwise(format!("{property} is {}", current()))
    } else {
        Exchange::Unclear(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_tell_what_an_exchange_is() {
        let of = |what: &str, received: &str, current: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg '{what}' for exchange 'x' in vhost '/': received {received} but current is {current}"
            )
        };
        for (text, expected) in [
            (of("type", "'topic'", "'fanout'"), Exchange::OtherType("fanout".to_owned())),
            (of("durable", "'true'", "'false'"), Exchange::Otherwise("durable is false".to_owned())),
            (of("alternate-exchange", "the value 'true' of type 'bool'", "none"), Exchange::AsExpected),
            (
                "PRECONDITION_FAILED - invalid type 'bool' for arg 'alternate-exchange' in exchange 'x' in vhost '/'".to_owned(),
                Exchange::Missing,
            ),
            ("something else".to_owned(), Exchange::Unclear("something else".to_owned())),
        ] {
            assert_eq!(by_refusal(&text), expected, "{text}");
        }
    }
}
