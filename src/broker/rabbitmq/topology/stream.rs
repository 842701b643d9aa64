//! One stream that all instances read: `stream`.
//!
//! RabbitMQ keeps what Chat3 publishes in a stream, which is bound to the exchange for
//! everything, and each instance reads all of it. A lost connection then loses nothing: the
//! next one goes on where the last one ended (`Place`), and users' subscriptions stay
//! unbroken meanwhile. Who gets which update is found by the routing key (`Routes`), so
//! users need nothing at the broker.
//!
//! The stream and the exchange of the markers outlive the gateway. The reader outlives the
//! connection; what is here lives as long as the link.

mod attempts;
mod message;
mod pulse;
mod read_back;
mod reader;

use std::{collections::HashMap, sync::Arc, time::Duration};

use amqprs::{
    FieldTable, FieldValue,
    channel::{
        BasicConsumeArguments, Channel, ExchangeDeclareArguments, QueueBindArguments,
        QueueDeclareArguments,
    },
    error::Error,
};
use async_trait::async_trait;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

pub(in super::super) use self::reader::Reader;
use super::{
    super::{
        acks::Acks,
        arguments::table,
        channels::Channels,
        desired::Subscription,
        link_error::{LinkError, NOT_FOUND, PRECONDITION_FAILED, ServerClose},
        outbox::Outbox,
        place,
        shared::Shared,
    },
    Refusal, Topology,
};
use crate::{config::RabbitMqConfig, observability::metrics::GaugeGuard, user::User};

/// Everything that the exchange carries.
const EVERYTHING: &str = "#";

/// Users who are subscribed before the link looks for other work.
const ROUND: usize = 1_000;

/// How long to wait after attaching until the place is certain: attaching takes RabbitMQ
/// half a second, and the first marker follows at once.
const CERTAIN_WITHIN: Duration = Duration::from_secs(5);

/// How often to look whether the reader lives.
const LOOK: Duration = Duration::from_secs(1);

/// RabbitMQ removes whole segments of a stream, and looks for old ones only when it begins
/// a new one. Its default is 500 MB.
const SEGMENT_BYTES: i64 = 20_000_000;

/// The bound of the stream's size at the broker, whatever its age.
const MAX_BYTES: i64 = 2_000_000_000;

pub(super) struct Stream {
    shared: Arc<Shared>,
    reader: Arc<Reader>,
    epoch: u64,
    /// The tag of the consumer, while there is one.
    consumer: Option<String>,
    is_bound: bool,
    /// Whether the exchange was missing at the last try.
    was_missing: bool,
    members: HashMap<User, Member>,
    markers: Option<AbortOnDropHandle<()>>,
    look_at: Instant,
}

struct Member {
    serial: u64,
    _gauge: GaugeGuard,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, epoch: u64, reader: Arc<Reader>) -> Self {
        Self {
            shared,
            reader,
            epoch,
            consumer: None,
            is_bound: false,
            was_missing: false,
            members: HashMap::new(),
            markers: None,
            look_at: Instant::now(),
        }
    }

    /// Declares the stream, and uses one that exists with other limits as it is.
    async fn declare(&self, channels: &Channels) -> Result<(), LinkError> {
        let declare = declaration(&self.shared.config);
        let declared = self
            .ask(channels, |channel| async move {
                channel.queue_declare(declare).await.map(drop)
            })
            .await;
        match declared {
            Err(LinkError::Closed(close)) if has_other_limits(&close) => {
                warn!(
                    stream = self.shared.config.stream, reason = %close,
                    "RabbitMQ has the stream with other limits, and keeps them"
                );
                Ok(())
            }
            Err(LinkError::Closed(close)) if close.code == PRECONDITION_FAILED => {
                Err(LinkError::NoStream(close))
            }
            other => other,
        }
    }

    /// Binds the stream to the updates and to the markers.
    async fn bind(&mut self, channels: &Channels) -> Result<(), LinkError> {
        let config = &self.shared.config;
        let markers = markers(config);
        let declare = ExchangeDeclareArguments::new(&markers, "fanout")
            .durable(true)
            .finish();
        self.ask(channels, |channel| async move {
            channel.exchange_declare(declare).await
        })
        .await?;
        let bind = QueueBindArguments::new(&config.stream, &markers, "");
        self.ask(
            channels,
            |channel| async move { channel.queue_bind(bind).await },
        )
        .await?;
        let bind = self.binding();
        let bound = self
            .ask(
                channels,
                |channel| async move { channel.queue_bind(bind).await },
            )
            .await;
        // Between the exchange's creation and the binding, updates pass the stream by; what
        // comes until then, such as markers, proves nothing.
        let is_missing = matches!(&bound, Err(LinkError::Closed(close)) if close.code == NOT_FOUND);
        if std::mem::replace(&mut self.was_missing, is_missing) || is_missing {
            self.reader.give_up();
        }
        bound
    }

    async fn ask<F>(
        &self,
        channels: &Channels,
        question: impl FnOnce(Channel) -> F,
    ) -> Result<(), LinkError>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let answer = channels.on_admin(0, question).await?;
        answer.map_err(LinkError::Closed)
    }

    fn binding(&self) -> QueueBindArguments {
        let config = &self.shared.config;
        QueueBindArguments::new(&config.stream, &config.exchange, EVERYTHING)
    }

    /// Consumes from the reader's place on.
    async fn attach(&mut self, channels: &Channels) -> Result<(), LinkError> {
        self.is_bound = false;
        let (attachment, start) = self.reader.attach();
        let tag = format!(
            "chat3-gateway.{}.{}.stream{attachment}",
            self.shared.instance, self.epoch
        );
        debug!(?start, "RabbitMQ stream attached");
        let consume = consumption(&self.shared.config.stream, &tag, start.argument());
        let (shared, reader) = (self.shared.clone(), self.reader.clone());
        let read = move |messages, acks: Arc<Acks>| async move {
            reader.read(&shared, attachment, messages, &acks).await;
        };
        let on = &channels.consumers[0];
        channels.consume_with(on, consume, read).await?;
        self.consumer = Some(tag);
        self.members.clear();
        Ok(())
    }

    /// Waits until the reader's place is certain, and activates all subscriptions.
    async fn settle(&mut self, channels: &Channels) -> Result<(), LinkError> {
        let publishing = publish_markers(self.shared.clone(), self.reader.clone());
        self.markers = Some(AbortOnDropHandle::new(tokio::spawn(publishing)));
        tokio::select! {
            () = self.reader.certain() => {}
            () = channels.connection.lost.cancelled() => return Err(channels.loss()),
            () = self.shared.stop_consuming.cancelled() => {}
            // Markers come, or RabbitMQ takes none and so no updates either.
            () = sleep(CERTAIN_WITHIN) => debug!("RabbitMQ stream is silent"),
        }
        self.reader.settle(&self.shared);
        // Those who came since are activated by themselves.
        for (user, subscription) in self.shared.desired.subscriptions() {
            self.activate(&user, &subscription);
        }
        Ok(())
    }

    fn activate(&mut self, user: &User, subscription: &Subscription) {
        info!(user_id = %user.id, "User subscribed to updates");
        let member = Member {
            serial: subscription.serial,
            _gauge: GaugeGuard::new(&self.shared.metrics.subscriptions),
        };
        self.members.insert(user.clone(), member);
        subscription.activation.activate();
    }
}

#[async_trait]
impl Topology for Stream {
    async fn prepare(&mut self, channels: &Channels) -> Result<(), LinkError> {
        if self.consumer.is_none() {
            self.declare(channels).await?;
            self.attach(channels).await?;
        }
        if !self.is_bound {
            // Only what is a stream, which the consumer has proved.
            self.bind(channels).await?;
            self.is_bound = true;
            self.settle(channels).await?;
        }
        Ok(())
    }

    async fn subscribe(
        &mut self,
        channels: &Channels,
        users: Vec<(User, Subscription)>,
    ) -> Result<Vec<Refusal>, LinkError> {
        self.prepare(channels).await?;
        for (user, subscription) in users {
            self.activate(&user, &subscription);
        }
        Ok(Vec::new())
    }

    async fn unsubscribe(&mut self, _: &Channels, users: Vec<User>) -> Result<(), LinkError> {
        for user in users {
            self.members.remove(&user);
            info!(user_id = %user.id, "User unsubscribed from updates");
        }
        Ok(())
    }

    /// Has nothing to remove, and looks whether the reader lives.
    async fn tidy(&mut self, _: &Channels) -> Result<(), LinkError> {
        self.look_at = Instant::now() + LOOK;
        if self.reader.has_stopped() {
            self.shared.metrics.stream_stops.inc();
            return Err(LinkError::Stopped);
        }
        Ok(())
    }

    fn tidy_at(&self) -> Option<Instant> {
        self.consumer.as_ref().map(|_| self.look_at)
    }

    /// Nobody has lost a subscription: the reader goes on where it was, if that is still
    /// there, or else finds out.
    fn forget(&mut self, queue: &str) -> Vec<User> {
        if self.consumer.take_if(|tag| tag == queue).is_some() {
            self.is_bound = false;
            self.reader.lose_consumer();
            warn!(
                stream = self.shared.config.stream,
                "RabbitMQ ended the consumer of the stream; attaching again"
            );
        }
        Vec::new()
    }

    fn serial(&self, user: &User) -> Option<u64> {
        self.members.get(user).map(|member| member.serial)
    }

    fn count(&self) -> usize {
        self.members.len()
    }

    fn do_without(&mut self, _: &User, _: &ServerClose) -> bool {
        false
    }

    fn a_binding(&self) -> Option<QueueBindArguments> {
        self.is_bound.then(|| self.binding())
    }

    fn round(&self) -> usize {
        ROUND
    }
}

/// The exchange of the markers of all instances. Not the default exchange: a right to write
/// to that would be one to write to every queue.
pub(crate) fn markers(config: &RabbitMqConfig) -> String {
    format!("{}.markers", config.stream)
}

/// The declaration of the stream.
pub(crate) fn declaration(config: &RabbitMqConfig) -> QueueDeclareArguments {
    QueueDeclareArguments::new(&config.stream)
        .durable(true)
        .arguments(limits(config))
        .finish()
}

/// The arguments of the declaration: what the stream is, and what it keeps.
pub(crate) fn limits(config: &RabbitMqConfig) -> FieldTable {
    let seconds = config.stream_max_age().as_secs().max(1);
    let text = |text: &str| FieldValue::S(text.try_into().expect("a short text"));
    table([
        ("x-queue-type", text("stream")),
        ("x-max-age", text(&format!("{seconds}s"))),
        ("x-max-length-bytes", FieldValue::l(MAX_BYTES)),
        (
            "x-stream-max-segment-size-bytes",
            FieldValue::l(SEGMENT_BYTES),
        ),
    ])
}

fn consumption(stream: &str, tag: &str, offset: FieldValue) -> BasicConsumeArguments {
    BasicConsumeArguments::new(stream, tag)
        .manual_ack(true)
        .no_wait(true)
        .arguments(table([(place::OFFSET, offset)]))
        .finish()
}

/// Whether RabbitMQ refused the declaration because the stream exists, with other arguments
/// than those of a queue's kind.
pub(crate) fn has_other_limits(close: &ServerClose) -> bool {
    close.code == PRECONDITION_FAILED
        && close.text.contains("inequivalent arg 'x-")
        && !close.text.contains("inequivalent arg 'x-queue-type'")
}

/// Publishes markers until it is dropped.
async fn publish_markers(shared: Arc<Shared>, reader: Arc<Reader>) {
    let exchange = markers(&shared.config);
    let outbox = Outbox::new(shared.clone(), "markers");
    let mut ticks = interval(pulse::INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned = false;
    loop {
        ticks.tick().await;
        let number = reader.begin_marker();
        let body = number.to_string().into();
        match outbox
            .publish(&exchange, &shared.instance, "text/plain", body)
            .await
        {
            Ok(()) => reader.marker_taken(number),
            Err(error) if !warned => {
                warned = true;
                warn!(%error, "RabbitMQ does not take markers for the stream: a reader that stops would not be noticed");
            }
            Err(error) => debug!(%error, "RabbitMQ marker not sent"),
        }
    }
}
