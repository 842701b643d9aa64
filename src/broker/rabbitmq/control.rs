//! How orders arrive from other instances: through the gateway's fanout exchange, where
//! each instance has a queue while it is connected. `orders` publishes them.
//!
//! Optional, and never in the way of updates: if RabbitMQ refuses it, there is a
//! warning and no broadcast.

use std::{sync::Arc, time::Duration};

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
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::{
    channels::Channels,
    connection::{OpenChannel, barrier},
    link_error::LinkError,
    shared::Shared,
};

/// Unacknowledged orders. Orders are small, but anything may be published here.
const PREFETCH: u16 = 10;

/// How often consuming is tried again while RabbitMQ refuses it.
const RETRY: Duration = Duration::from_secs(120);

/// Time limit for consuming again.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// The consumer of orders on one link. Dropping it closes its channel.
pub(super) struct Control {
    shared: Arc<Shared>,
    epoch: u64,
    /// `None` while RabbitMQ refuses to let it consume.
    consumed: Option<Consumed>,
    tried_at: Instant,
    tries: u64,
}

struct Consumed {
    queue: String,
    channel: OpenChannel,
}

impl Control {
    /// Starts consuming orders, if a control exchange is configured. An error means that
    /// the link is lost. Not bounded in time: the caller is.
    pub(super) async fn open(
        shared: &Arc<Shared>,
        epoch: u64,
        channels: &Channels,
    ) -> Result<Option<Self>, LinkError> {
        if shared.config.control_exchange.is_empty() {
            return Ok(None);
        }
        let mut control = Self {
            shared: shared.clone(),
            epoch,
            consumed: None,
            tried_at: Instant::now(),
            tries: 0,
        };
        control.consume(channels.open_channel().await?).await;
        Ok(Some(control))
    }

    /// Consumes again if the exchange or the queue is gone: an instance that gets no
    /// orders must not report that it does.
    pub(super) async fn mend(&mut self, channels: &Channels) -> Result<(), LinkError> {
        if let Some(consumed) = &self.consumed {
            // Refused if the exchange or the queue is gone. If the exchange was recreated,
            // this binding is the remedy.
            let channel = consumed.channel.channel.clone();
            let bind =
                QueueBindArguments::new(&consumed.queue, &self.shared.config.control_exchange, "");
            let bind = async move { channel.queue_bind(bind).await };
            let Err(reason) = channels.rpc(&consumed.channel, bind).await else {
                return Ok(());
            };
            if channels.lost.is_cancelled() {
                return Err(channels.loss());
            }
            warn!(%reason, "RabbitMQ control channel lost: orders of the last moments may be missing");
            self.consumed = None;
        } else if self.tried_at.elapsed() < RETRY {
            return Ok(());
        }
        let channel = channels.replace_channel().await?;
        timeout(OPEN_TIMEOUT, self.consume(channel))
            .await
            .map_err(|_| LinkError::Timeout(OPEN_TIMEOUT))
    }

    async fn consume(&mut self, channel: OpenChannel) {
        self.tried_at = Instant::now();
        // The previous queue may not be gone yet, so the name is a new one.
        let queue = format!(
            "chat3-gateway.{}.{}.control{}",
            self.shared.instance, self.epoch, self.tries
        );
        self.tries += 1;
        self.consumed = match consume(&channel.channel, &queue, &self.shared).await {
            Ok(()) => Some(Consumed { queue, channel }),
            Err(error) => {
                let error = channel.refusal_or(error);
                warn!(%error, "RabbitMQ control exchange not usable: orders do not reach other instances");
                None
            }
        };
        self.shared.set_control_connected(self.consumed.is_some());
    }
}

/// Declares the exchange and the exclusive queue `queue`, and consumes the queue.
async fn consume(channel: &Channel, queue: &str, shared: &Arc<Shared>) -> Result<(), Error> {
    let exchange = &shared.config.control_exchange;
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
    // The prefetch bounds a buffer that amqprs does not bound.
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
            self.0.broadcast_came(&content);
        }
        // A frame after the close of the channel would end the connection.
        if channel.is_open() {
            let ack = BasicAckArguments::new(deliver.delivery_tag(), false);
            // An error means that the channel is gone, and the queue with it.
            let _ = channel.basic_ack(ack).await;
        }
    }
}
