//! A message of the stream, with its place. Pure.

use amqprs::channel::ConsumerMessage;

use super::super::super::{consumer, place::Offset};
use crate::broker::Delivery;

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
    let Offset::At(offset) = Offset::of(properties) else {
        return None;
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
