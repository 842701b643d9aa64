//! The way between instances: a fanout exchange of the gateway's own, where each
//! instance has a queue while it is connected.
//!
//! Optional, and never in the way of updates: if RabbitMQ refuses it, there is a
//! warning and no broadcast.

use std::sync::Arc;

use amqprs::{
    BasicProperties, Deliver,
    channel::{
        BasicConsumeArguments, BasicPublishArguments, Channel, ExchangeDeclareArguments,
        QueueBindArguments, QueueDeclareArguments,
    },
    consumer::AsyncConsumer,
    error::Error,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{
    Shared,
    connection::{LinkError, OpenChannel},
};

/// Messages that wait to be sent; more are not taken.
const WAITING_MESSAGES: usize = 1_000;

/// An open way to the other instances; closed by dropping it.
pub(super) struct Control {
    exchange: String,
    queue: String,
    pub(super) channel: OpenChannel,
    _publishing: AbortOnDropHandle<()>,
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
        let (sender, messages) = mpsc::channel(WAITING_MESSAGES);
        shared.broadcasts.send_replace(Some(sender));
        let publishing = publish(
            channel.channel.clone(),
            exchange.clone(),
            shared.instance.clone(),
            messages,
        );
        Ok(Self {
            exchange: exchange.clone(),
            queue,
            channel,
            _publishing: AbortOnDropHandle::new(tokio::spawn(publishing)),
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
    let consume = BasicConsumeArguments::new(queue, queue)
        .auto_ack(true)
        .finish();
    let consumer = ControlConsumer(shared.clone());
    channel.basic_consume(consumer, consume).await?;
    Ok(())
}

async fn publish(
    channel: Channel,
    exchange: String,
    instance: String,
    mut messages: mpsc::Receiver<Bytes>,
) {
    while let Some(message) = messages.recv().await {
        // Publishing on a channel that RabbitMQ has closed costs the connection.
        if !channel.is_open() {
            warn!("RabbitMQ closed the control channel: orders do not reach other instances");
            return;
        }
        let properties = BasicProperties::default()
            .with_content_type("application/json")
            .with_app_id(&instance)
            .finish();
        let arguments = BasicPublishArguments::new(&exchange, "");
        let sent = channel
            .basic_publish(properties, message.to_vec(), arguments)
            .await;
        if let Err(error) = sent {
            warn!(%error, "RabbitMQ control message not sent");
        }
    }
}

struct ControlConsumer(Arc<Shared>);

#[async_trait]
impl AsyncConsumer for ControlConsumer {
    async fn consume(
        &mut self,
        _: &Channel,
        _: Deliver,
        properties: BasicProperties,
        content: Vec<u8>,
    ) {
        if properties.app_id() == Some(&self.0.instance) {
            return;
        }
        debug!(bytes = content.len(), "RabbitMQ control message received");
        if let Some(handler) = self.0.on_broadcast.get() {
            handler(&content);
        }
    }
}
