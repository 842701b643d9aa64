//! A message of the stream, with its place. Pure.

use amqprs::channel::ConsumerMessage;
use bytes::Bytes;

use super::super::super::{consumer, place::Offset};
use crate::broker::Delivery;

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
    let Offset::At(offset) = Offset::of(&properties) else {
        return None;
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
