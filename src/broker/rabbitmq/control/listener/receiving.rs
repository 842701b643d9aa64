//! Takes messages from what is open, and hands the orders among them on.

use std::time::SystemTime;

use amqprs::channel::ConsumerMessage;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    super::{
        super::place::{End, Offset, Place, Verdict},
        sources::{self, Message},
    },
    Listener, Sources,
    opening::{Attachment, Refusals},
};
use crate::broker::Broadcast;

/// What follows a message of the stream.
pub(super) enum Next {
    Continue,
    CaughtUp,
    AttachAgain,
    /// What was taken for a stream is none.
    NoStream,
}

impl Listener {
    pub(super) fn take_from_stream(
        &mut self,
        sources: &mut Sources,
        message: Option<ConsumerMessage>,
    ) {
        let Some(stream) = &mut sources.stream else {
            return;
        };
        let Some(message) = message else {
            // The notice may come later.
            let end = match stream.consumer.was_cancelled() {
                true => End::Gone,
                false => End::Released,
            };
            warn!("RabbitMQ ended the consumer of the control stream; attaching again");
            return self.leave_stream(sources, end);
        };
        match self.receive(stream, message) {
            Next::Continue => {}
            Next::CaughtUp => self.caught_up(sources),
            Next::AttachAgain => self.leave_stream(sources, End::Released),
            Next::NoStream => {
                self.leave_stream(sources, End::Released);
                self.place = Place::from_the_start();
                self.stream_refusals.rest();
                self.stream_refused(&"what has its name is no stream");
            }
        }
    }

    pub(super) fn receive(&mut self, stream: &mut Attachment, message: ConsumerMessage) -> Next {
        let Some(message) = Message::of(message) else {
            return Next::Continue;
        };
        stream.heard_at = Instant::now();
        let offset = match message.offset {
            Offset::At(offset) => offset,
            Offset::Forged => {
                stream.consumer.settle(message.tag);
                self.hand_on_from_stream(stream, &message);
                return Next::Continue;
            }
            Offset::None => {
                // Not settled: it goes to whoever else takes it for a stream, too.
                self.hand_on(&message, None);
                return Next::NoStream;
            }
        };
        stream.consumer.settle(message.tag);
        let is_trial = self.place.is_trial();
        let digest = message.digest(&self.hasher);
        match self.place.receive(offset, || digest == self.last) {
            // An order that is handed on twice does no harm.
            Verdict::HandOn | Verdict::Hole => {}
            Verdict::HandOnBehind { unreadable } => {
                self.shared.metrics.messages_unreadable.inc();
                warn!(
                    offset = unreadable,
                    "RabbitMQ message in the control stream stepped over: the AMQP library cannot read it"
                );
            }
            Verdict::Known => return Next::Continue,
            Verdict::Again => {
                if !is_trial {
                    warn!(
                        "RabbitMQ control stream no longer has the last place: reading all orders"
                    );
                }
                return Next::AttachAgain;
            }
        }
        self.last = digest;
        let config = &self.shared.config;
        if message.exchange == sources::markers(config) {
            let is_own = message.routing_key == self.shared.instance
                && message.body == stream.marker.as_bytes();
            return match is_own && stream.is_reading {
                true => Next::CaughtUp,
                false => Next::Continue,
            };
        }
        self.hand_on_from_stream(stream, &message);
        Next::Continue
    }

    fn hand_on_from_stream(&self, stream: &mut Attachment, message: &Message) {
        if message.exchange == self.shared.config.control_exchange {
            stream.orders += u64::from(stream.is_reading);
            self.hand_on(message, stream.is_reading.then_some(stream.since));
        }
    }

    pub(super) fn take_from_queue(
        &mut self,
        sources: &mut Sources,
        message: Option<ConsumerMessage>,
    ) {
        let Some(queue) = &mut sources.queue else {
            return;
        };
        match message.and_then(Message::of) {
            Some(message) => {
                self.hand_on(&message, None);
                queue.settle(message.tag);
            }
            None => sources.queue = None,
        }
    }

    pub(super) fn hand_on(&self, message: &Message, kept_since: Option<SystemTime>) {
        if message.author.as_ref() == Some(&self.shared.instance) {
            return;
        }
        debug!(
            bytes = message.body.len(),
            "RabbitMQ control message received"
        );
        if kept_since.is_some() {
            self.shared.metrics.orders_read.inc();
        }
        self.shared.broadcast_came(&Broadcast {
            body: &message.body,
            published_at: message.published_at,
            kept_since,
        });
    }

    /// The end of the stream is reached: from now on, orders come as they are made.
    pub(super) fn caught_up(&mut self, sources: &mut Sources) {
        let Some(stream) = &mut sources.stream else {
            return;
        };
        stream.is_reading = false;
        stream.publishing = None;
        let (orders, took) = (stream.orders, stream.begun.elapsed());
        info!(orders, ?took, "RabbitMQ control stream read to its end");
        if let Some(queue) = sources.queue.take() {
            drop(queue.close());
        }
        self.heard_until = SystemTime::now();
        self.heard_elsewhere = false;
        self.stream_refusals = Refusals::default();
        self.shared.metrics.control_stream.set(1);
        self.shared.reading_orders.send_replace(false);
        let outbox = self.outbox.clone();
        tokio::spawn(async move { outbox.close().await });
    }
}
