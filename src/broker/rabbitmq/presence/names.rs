//! What presence has at RabbitMQ, and how it is declared.
//!
//! Both queues are quorum queues: in a cluster they survive the loss of a node. Their names begin
//! as all of the gateway's queues do, so they need no further rights.

use amqprs::{
    FieldTable, FieldValue,
    channel::{ExchangeDeclareArguments, ExchangeType, QueueBindArguments, QueueDeclareArguments},
};

use super::{
    super::{arguments::table, link_error::LinkError},
    wire::Line,
};
use crate::config::RabbitMqConfig;

/// The routing key of the keeper's queue. No instance has this name: theirs end with digits.
pub(super) const TO_KEEPER: &str = "keeper";

/// The routing key of the ledger.
pub(super) const TO_LEDGER: &str = "ledger";

/// The routing key of all instances' queues.
pub(super) const TO_ALL: &str = "all";

/// Bytes of reports that wait for a keeper. More are lost, which the next keeper notices.
const MOST_WAITING: i64 = 64 << 20;

/// How often a message is given to a keeper that then loses its connection: it may be the reason.
const MOST_DELIVERIES: i32 = 5;

/// The names.
pub(crate) struct Names {
    /// The topic exchange for consumers.
    pub(crate) events: String,
    /// The direct exchange between instances.
    pub(crate) fleet: String,
    pub(crate) keeper: String,
    pub(crate) ledger: String,
}

impl Names {
    /// The names of the fleet that publishes to the configured exchange.
    pub(crate) fn new(config: &RabbitMqConfig) -> Self {
        let events = config.presence_exchange.clone();
        let fleet = format!("chat3-gateway.presence.{events}");
        Self {
            keeper: format!("{fleet}.keeper"),
            ledger: format!("{fleet}.ledger"),
            fleet,
            events,
        }
    }

    /// The keeper's queue and the ledger, with their arguments.
    pub(crate) fn queues(&self) -> [(&str, FieldTable); 2] {
        let kind = || {
            let quorum = "quorum".try_into().expect("a short text");
            ("x-queue-type", FieldValue::S(quorum))
        };
        let keeper = table([
            kind(),
            ("x-single-active-consumer", FieldValue::t(true)),
            ("x-delivery-limit", FieldValue::I(MOST_DELIVERIES)),
            ("x-max-length-bytes", FieldValue::l(MOST_WAITING)),
        ]);
        [(&self.keeper, keeper), (&self.ledger, table([kind()]))]
    }

    /// Declares everything, and the instance's own queue.
    pub(super) async fn declare(
        &self,
        line: &Line,
        own: &str,
        instance: &str,
    ) -> Result<(), LinkError> {
        let exchanges = [
            (&self.events, ExchangeType::Topic),
            (&self.fleet, ExchangeType::Direct),
        ];
        let [keeper, ledger] = self
            .queues()
            .map(|(name, arguments)| declaration(name, arguments));
        let own_queue = QueueDeclareArguments::new(own)
            .exclusive(true)
            .auto_delete(true)
            .finish();
        let bindings = [
            (self.keeper.as_str(), TO_KEEPER),
            (self.ledger.as_str(), TO_LEDGER),
            (own, TO_ALL),
            (own, instance),
        ];
        for (name, kind) in exchanges {
            let declare = ExchangeDeclareArguments::of_type(name, kind)
                .durable(true)
                .finish();
            line.ask(|channel| async move { channel.exchange_declare(declare).await })
                .await?;
        }
        for declare in [keeper, ledger, own_queue] {
            line.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) })
                .await?;
        }
        for (queue, key) in bindings {
            let bind = QueueBindArguments::new(queue, &self.fleet, key);
            line.ask(|channel| async move { channel.queue_bind(bind).await })
                .await?;
        }
        Ok(())
    }
}

/// The declaration of a queue that stays.
pub(crate) fn declaration(name: &str, arguments: FieldTable) -> QueueDeclareArguments {
    QueueDeclareArguments::new(name)
        .durable(true)
        .arguments(arguments)
        .finish()
}
