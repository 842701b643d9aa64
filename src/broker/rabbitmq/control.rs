//! The way between instances: a fanout exchange of the gateway's own, where each
//! instance has a queue while it is connected. Orders are published elsewhere (`orders`).
//!
//! Optional, and never in the way of updates: if RabbitMQ refuses it, there is a
//! warning and no broadcast.

use std::sync::Arc;

use amqprs::{
    BasicProperties, Deliver,
    channel::{
        BasicAckArguments, BasicConsumeArguments, Channel, ExchangeDeclareArguments,
        QueueBindArguments, QueueDeclareArguments,
    },
    consumer::AsyncConsumer,
    error::Error,
};
use async_trait::async_trait;
use tracing::debug;

use super::{
    Shared,
    connection::{LinkError, OpenChannel, barrier},
};

/// Orders on their way to us: small ones, unless somebody sends what is none.
const PREFETCH: u16 = 10;

/// An open way from the other instances; closed by dropping it.
pub(super) struct Control {
    exchange: String,
    queue: String,
    pub(super) channel: OpenChannel,
}

impl Control {
    /// Declares the exchange and an exclusive queue of that name, and consumes it.
    /// Not bounded in time: the caller is.
    pub(super) async fn open(
        shared: &Arc<Shared>,
        channel: OpenChannel,
        queue: String,
    ) -> Result<Self, LinkError> {
        let exchange = &shared.config.control_exchange;
        declare(&channel.channel, exchange, &queue, shared)
            .await
            .map_err(|error| channel.refusal_or(error))?;
        Ok(Self {
            exchange: exchange.clone(),
            queue,
            channel,
        })
    }

    /// Makes the binding once more, on [`Self::channel`]: refused if the exchange or
    /// the queue is gone. Where the exchange was made anew, that is the remedy.
    pub(super) fn bind_again(&self) -> impl Future<Output = Result<(), Error>> + use<> {
        let channel = self.channel.channel.clone();
        let bind = QueueBindArguments::new(&self.queue, &self.exchange, "");
        async move { channel.queue_bind(bind).await }
    }
}

async fn declare(
    channel: &Channel,
    exchange: &str,
    queue: &str,
    shared: &Arc<Shared>,
) -> Result<(), Error> {
    let declare =
        ExchangeDeclareArguments::of_type(exchange, amqprs::channel::ExchangeType::Fanout)
            .durable(true)
            .finish();
    channel.exchange_declare(declare).await?;
    let declare = QueueDeclareArguments::new(queue)
        .exclusive(true)
        .auto_delete(true)
        .finish();
    channel.queue_declare(declare).await?;
    channel
        .queue_bind(QueueBindArguments::new(queue, exchange, ""))
        .await?;
    // Bounds what amqprs buffers without bound.
    barrier(channel, PREFETCH).await?;
    let consume = BasicConsumeArguments::new(queue, queue)
        .manual_ack(true)
        .finish();
    let consumer = ControlConsumer(shared.clone());
    channel.basic_consume(consumer, consume).await?;
    Ok(())
}

struct ControlConsumer(Arc<Shared>);

#[async_trait]
impl AsyncConsumer for ControlConsumer {
    async fn consume(
        &mut self,
        channel: &Channel,
        deliver: Deliver,
        properties: BasicProperties,
        content: Vec<u8>,
    ) {
        if properties.app_id() != Some(&self.0.instance) {
            debug!(bytes = content.len(), "RabbitMQ control message received");
            if let Some(handler) = self.0.on_broadcast.get() {
                handler(&content);
            }
        }
        // What was sent behind its close would cost the connection.
        if channel.is_open() {
            let ack = BasicAckArguments::new(deliver.delivery_tag(), false);
            // An error means that the channel is gone, and the queue with it.
            let _ = channel.basic_ack(ack).await;
        }
    }
}
