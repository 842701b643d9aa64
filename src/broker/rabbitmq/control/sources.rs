//! What orders are consumed from: the stream, or an exclusive queue; and how that is declared.

use std::{hash::BuildHasher, time::SystemTime};

use amqprs::{
    FieldValue,
    channel::{
        BasicConsumeArguments, ConsumerMessage, ExchangeDeclareArguments, ExchangeType,
        QueueBindArguments, QueueDeclareArguments,
    },
};
use tracing::warn;

use super::{
    super::{
        arguments::table,
        consumer::published_at,
        link_error::{LinkError, ServerClose},
        place::{OFFSET, Offset, StartAt},
        topology::stream::has_other_limits,
    },
    wire::{Consumer, Wire},
};
use crate::config::RabbitMqConfig;

/// RabbitMQ removes whole segments, and looks for old ones only when it begins a new one. Its
/// default of 500 MB would keep orders for years. About a kilobyte makes it loop (osiris #170).
const SEGMENT_BYTES: i64 = 1_000_000;

/// The bound of the stream's size at the broker, whatever its age: room for more orders of the
/// usual size than an instance remembers.
const MAX_BYTES: i64 = 100_000_000;

/// A message, from whatever source.
pub(super) struct Message {
    pub(super) tag: u64,
    pub(super) offset: Offset,
    pub(super) exchange: String,
    pub(super) routing_key: String,
    /// The instance that published it, if one did.
    pub(super) author: Option<String>,
    pub(super) published_at: Option<SystemTime>,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// Every message has a tag, and amqprs gives the rest with it.
    pub(super) fn of(message: ConsumerMessage) -> Option<Self> {
        let deliver = message.deliver?;
        let properties = message.basic_properties.unwrap_or_default();
        Some(Self {
            tag: deliver.delivery_tag(),
            offset: Offset::of(&properties),
            exchange: deliver.exchange().clone(),
            routing_key: deliver.routing_key().clone(),
            author: properties.app_id().cloned(),
            published_at: properties.timestamp().and_then(time),
            body: message.content.unwrap_or_default(),
        })
    }

    /// What tells it from another message at the same place.
    pub(super) fn digest(&self, by: &impl BuildHasher) -> u64 {
        by.hash_one((
            &self.exchange,
            &self.routing_key,
            &self.author,
            self.published_at,
            &self.body,
        ))
    }
}

/// A timestamp in milliseconds, as the gateway writes it, or in seconds, as AMQP means it.
fn time(timestamp: u64) -> Option<SystemTime> {
    published_at(timestamp).or_else(|| published_at(timestamp.checked_mul(1_000)?))
}

/// The exchange of the markers of all instances. Not the exchange of the orders: instances with
/// a queue would take markers for malformed orders.
pub(crate) fn markers(config: &RabbitMqConfig) -> String {
    format!("{}.markers", config.control_stream)
}

/// The declaration of the stream.
pub(crate) fn declaration(config: &RabbitMqConfig) -> QueueDeclareArguments {
    let seconds = config.revocations_kept.as_secs().max(1);
    let text = |text: &str| FieldValue::S(text.try_into().expect("a short text"));
    let arguments = [
        ("x-queue-type", text("stream")),
        ("x-max-age", text(&format!("{seconds}s"))),
        ("x-max-length-bytes", FieldValue::l(MAX_BYTES)),
        (
            "x-stream-max-segment-size-bytes",
            FieldValue::l(SEGMENT_BYTES),
        ),
    ];
    QueueDeclareArguments::new(&config.control_stream)
        .durable(true)
        .arguments(table(arguments))
        .finish()
}

/// A refusal is `Ok(Err(_))`; an error means that the connection is lost.
type Answer<T> = Result<Result<T, ServerClose>, LinkError>;

/// Goes on if RabbitMQ has accepted it, and otherwise returns the refusal.
macro_rules! accepted {
    ($answer:expr) => {
        match $answer.await? {
            Ok(answer) => answer,
            Err(close) => return Ok(Err(close)),
        }
    };
}

/// Declares the exchange of the orders.
pub(super) async fn declare_exchange(wire: &mut Wire, name: &str) -> Answer<()> {
    let declare = ExchangeDeclareArguments::of_type(name, ExchangeType::Fanout)
        .durable(true)
        .finish();
    wire.ask(|channel| async move { channel.exchange_declare(declare).await })
        .await
}

/// Declares the stream, and uses one that exists with other limits as it is.
pub(super) async fn declare_stream(wire: &mut Wire, config: &RabbitMqConfig) -> Answer<()> {
    let declare = declaration(config);
    let declared =
        wire.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) });
    match declared.await? {
        Err(close) if has_other_limits(&close) => {
            warn!(
                stream = config.control_stream, reason = %close,
                "RabbitMQ has the stream of orders with other limits, and keeps them"
            );
            Ok(Ok(()))
        }
        other => Ok(other),
    }
}

/// Binds the stream to the orders and to the markers.
pub(super) async fn bind_stream(wire: &mut Wire, config: &RabbitMqConfig) -> Answer<()> {
    let markers = markers(config);
    accepted!(declare_exchange(wire, &markers));
    accepted!(bind(wire, &config.control_stream, &markers));
    bind(wire, &config.control_stream, &config.control_exchange).await
}

/// Consumes the stream.
pub(super) async fn consume_stream(
    wire: &mut Wire,
    config: &RabbitMqConfig,
    tag: &str,
    start: StartAt,
) -> Answer<Consumer> {
    let consume = BasicConsumeArguments::new(&config.control_stream, tag)
        .manual_ack(true)
        .arguments(table([(OFFSET, start.argument())]))
        .finish();
    wire.consume(consume).await
}

/// Declares an exclusive queue, which gets the orders from now on, and consumes it.
pub(super) async fn consume_queue(
    wire: &mut Wire,
    config: &RabbitMqConfig,
    queue: &str,
) -> Answer<Consumer> {
    let declare = QueueDeclareArguments::new(queue)
        .exclusive(true)
        .auto_delete(true)
        .finish();
    accepted!(wire.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) }));
    accepted!(bind(wire, queue, &config.control_exchange));
    let consume = BasicConsumeArguments::new(queue, queue)
        .manual_ack(true)
        .finish();
    wire.consume(consume).await
}

/// Binds a queue or a stream; does nothing if it is bound.
pub(super) async fn bind(wire: &mut Wire, queue: &str, exchange: &str) -> Answer<()> {
    let bind = QueueBindArguments::new(queue, exchange, "");
    wire.ask(|channel| async move { channel.queue_bind(bind).await })
        .await
}
