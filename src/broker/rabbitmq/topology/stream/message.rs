//! A message of the stream, with its place. Pure.

use std::sync::LazyLock;

use amqprs::{FieldName, FieldValue, channel::ConsumerMessage};

use super::super::super::consumer;
use crate::broker::Delivery;

/// The header with a message's place.
static OFFSET: LazyLock<FieldName> =
    LazyLock::new(|| "x-stream-offset".try_into().expect("a short name"));

/// No stream gets so far. RabbitMQ before 3.11 passes on a header of that name from a publisher
/// as well, and events are numbered by twice the offset.
const MAX_OFFSET: u64 = 1 << 60;

/// What came through the stream.
pub(super) struct Message<'a> {
    pub(super) offset: u64,
    pub(super) is_marker: bool,
    pub(super) delivery: Delivery<'a>,
}

/// Reads a message with its place; `markers` is the exchange of markers.
pub(super) fn parse<'a>(message: &'a ConsumerMessage, markers: &str) -> Option<Message<'a>> {
    let deliver = message.deliver.as_ref()?;
    let properties = message.basic_properties.as_ref()?;
    let offset = match properties.headers()?.get(&OFFSET)? {
        FieldValue::l(offset) => u64::try_from(*offset).ok().filter(|it| *it < MAX_OFFSET)?,
        _ => return None,
    };
    Some(Message {
        offset,
        is_marker: *deliver.exchange() == markers,
        delivery: Delivery {
            body: message.content.as_deref().unwrap_or_default(),
            routing_key: deliver.routing_key(),
            published_at: properties.timestamp().and_then(consumer::published_at),
            position: None,
        },
    })
}
