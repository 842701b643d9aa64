//! One connection to RabbitMQ, over which things are tried that may be refused.
//!
//! Invariant: nothing outlives the connection. Queues are exclusive, and exchanges
//! are looked at in a way that cannot make one.

use std::{future::Future, time::Duration};

use amqprs::{
    FieldValue,
    channel::{
        Channel, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments,
        QueueDeleteArguments,
    },
    connection::Connection,
    error::Error,
};
use tokio::{sync::mpsc, time::timeout};

use crate::rabbitmq::{ACCESS_REFUSED, LinkError, OpenChannel, open_channel};

/// Limit of each question to RabbitMQ.
const STEP: Duration = Duration::from_secs(5);

/// The connection may be closing, and so may we.
const GOODBYE: Duration = Duration::from_secs(2);

/// What an exchange is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exchange {
    AsExpected,
    Missing,
    OtherType(String),
    /// The type is right; another property is not.
    Otherwise(String),
    /// The broker does not tell who may not declare it.
    NotPermitted,
    Unclear(String),
}

/// A connection, and a channel that is opened anew after each refusal.
pub(super) struct Session {
    connection: Connection,
    /// What the gateway's queues of this process are named with.
    pub(super) prefix: String,
    channel: Option<OpenChannel>,
    cancelled: mpsc::UnboundedSender<String>,
    _cancelled: mpsc::UnboundedReceiver<String>,
}

impl Session {
    /// Over an open connection, with queues of this process's names.
    pub(super) fn over(connection: Connection, instance: &str) -> Self {
        let (cancelled, receiver) = mpsc::unbounded_channel();
        Self {
            connection,
            prefix: format!("chat3-gateway.{instance}.doctor"),
            channel: None,
            cancelled,
            _cancelled: receiver,
        }
    }

    /// A channel of its own, for a consumer.
    pub(super) async fn another_channel(&self) -> Result<OpenChannel, LinkError> {
        let open = open_channel(&self.connection, None, &self.cancelled);
        timeout(STEP, open)
            .await
            .unwrap_or(Err(LinkError::Timeout(STEP)))
    }

    /// Asks RabbitMQ one thing. A refusal is [`LinkError::Closed`], and the next
    /// question has a new channel.
    pub(super) async fn ask<T, F>(
        &mut self,
        question: impl FnOnce(Channel) -> F,
    ) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let on = match self.channel.take() {
            Some(open) => open,
            None => self.another_channel().await?,
        };
        let answer = on.ask(STEP, question(on.channel.clone())).await;
        if answer.is_ok() {
            self.channel = Some(on);
        }
        answer
    }

    /// Declares an exclusive queue as `serve` does, bounded.
    pub(super) async fn declare(&mut self, queue: &str, most: i64) -> Result<(), LinkError> {
        let mut declare = QueueDeclareArguments::new(queue);
        declare.exclusive(true).auto_delete(true);
        let mut arguments = amqprs::FieldTable::new();
        let limit = "x-max-length".try_into().expect("a short name");
        arguments.insert(limit, FieldValue::l(most));
        declare.arguments(arguments);
        self.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) })
            .await
    }

    pub(super) async fn bind(
        &mut self,
        queue: &str,
        exchange: &str,
        key: &str,
    ) -> Result<(), LinkError> {
        let bind = QueueBindArguments::new(queue, exchange, key);
        self.ask(|channel| async move { channel.queue_bind(bind).await })
            .await
    }

    pub(super) async fn delete(&mut self, queue: &str) -> Result<(), LinkError> {
        let delete = QueueDeleteArguments::new(queue);
        self.ask(|channel| async move { channel.queue_delete(delete).await.map(drop) })
            .await
    }

    /// What an exchange is, by a declaration that RabbitMQ must refuse: its
    /// `alternate-exchange` is no name. What is there is compared with it first,
    /// type before durability before arguments; where nothing is there, nothing is made.
    pub(super) async fn look_at_exchange(
        &mut self,
        name: &str,
        kind: &str,
    ) -> Result<Exchange, LinkError> {
        let mut declare = ExchangeDeclareArguments::new(name, kind);
        declare.durable(true);
        let mut arguments = amqprs::FieldTable::new();
        let impossible = "alternate-exchange".try_into().expect("a short name");
        arguments.insert(impossible, FieldValue::t(true));
        declare.arguments(arguments);
        let asked = self.ask(|channel| async move { channel.exchange_declare(declare).await });
        match asked.await {
            Ok(()) => Ok(Exchange::Unclear("the broker is not RabbitMQ".to_owned())),
            Err(LinkError::Closed(close)) if close.code == ACCESS_REFUSED => {
                Ok(Exchange::NotPermitted)
            }
            Err(LinkError::Closed(close)) => Ok(by_refusal(&close.text)),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn close(self) {
        let goodbye = async move {
            if let Some(open) = self.channel {
                let _ = open.channel.close().await;
            }
            // Exclusive queues go with the connection, whatever comes back.
            let _ = self.connection.close().await;
        };
        let _ = timeout(GOODBYE, tokio::spawn(goodbye)).await;
    }
}

/// Reads RabbitMQ's words for what differs.
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
