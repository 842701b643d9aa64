//! A message of the stream, with its place. Pure.

use amqprs::{FieldValue, channel::ConsumerMessage};
use bytes::Bytes;

use super::super::super::consumer;
use crate::broker::Delivery;

/// The header with a message's place.
const OFFSET: &str = "x-stream-offset";

/// No stream gets so far. RabbitMQ before 3.11 passes on a header of that name from a publisher
/// as well, and events are numbered by twice the offset.
const MAX_OFFSET: u64 = 1 << 60;

/// What came through the stream.
pub(super) struct Message {
    pub(super) offset: u64,
    pub(super) is_marker: bool,
    pub(super) delivery: Delivery,
}

/// Reads a message with its place; `markers` is the exchange of markers.
pub(super) fn parse(message: ConsumerMessage, markers: &str) -> Option<Message> {
    let deliver = message.deliver?;
    let properties = message.basic_properties.unwrap_or_default();
    let header = OFFSET.try_into().expect("a short name");
    let offset = match properties.headers()?.get(&header)? {
        FieldValue::l(offset) => u64::try_from(*offset).ok().filter(|it| *it < MAX_OFFSET)?,
        _ => return None,
    };
    let content = message.content.unwrap_or_default();
    Some(Message {
        offset,
        is_marker: *deliver.exchange() == markers,
        delivery: Delivery {
            // It may be kept for long: without the room that was left while reading.
            body: Bytes::from(content.into_boxed_slice()),
            routing_key: deliver.routing_key().clone(),
            published_at: properties.timestamp().and_then(consumer::published_at),
            position: None,
        },
    })
}
