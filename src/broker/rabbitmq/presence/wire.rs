//! The connection, and its channels: each publishes with confirms, and may consume. The end of
//! one channel is the end of the connection.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use amqprs::{
    BasicProperties,
    channel::{
        BasicAckArguments, BasicConsumeArguments, BasicGetArguments, BasicPublishArguments,
        Channel, ConfirmSelectArguments, ConsumerMessage,
    },
    error::Error,
};
use serde::Serialize;
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};
use tokio_util::sync::CancellationToken;

use super::super::{
    confirms::Outcome,
    connection::{OpenChannel, Watched, barrier},
    link_error::LinkError,
    shared::Shared,
};

/// Time limit of one request, and of the confirms of one batch. RabbitMQ takes nothing while it
/// is short of memory or disk.
const STEP: Duration = Duration::from_secs(20);

/// How long the next confirms are waited for where none came in time.
const STILL_UNANSWERED: Duration = Duration::from_millis(100);

/// Messages without a confirm after which a new connection is made. RabbitMQ 3.10 stops to read
/// one at 400.
const MOST_UNANSWERED: u64 = 200;

/// Limit of the goodbye to a broker that may not be listening.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Messages that are under way to this process at once, on each channel: of up to 60 KB.
const PREFETCH: u16 = 32;

pub(super) struct Wire {
    pub(super) connection: Watched,
    /// Tags of consumers that the server cancelled because their queue was deleted.
    pub(super) cancelled: UnboundedReceiver<String>,
    name: String,
}

/// A channel.
pub(super) struct Line {
    open: OpenChannel,
    /// How many messages [`Line::tell`] has published since RabbitMQ last answered.
    unanswered: u64,
    lost: CancellationToken,
    /// The author of what is published.
    name: String,
}

/// What is published, and where to.
pub(super) struct Letter {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) body: Vec<u8>,
    /// Whether RabbitMQ tells if no queue gets it.
    pub(super) mandatory: bool,
    pub(super) persistent: bool,
}

impl Letter {
    /// A message within the fleet.
    pub(super) fn within(fleet: &str, routing_key: &str, message: &impl Serialize) -> Self {
        Self {
            exchange: fleet.to_owned(),
            routing_key: routing_key.to_owned(),
            body: serde_json::to_vec(message).expect("plain JSON"),
            mandatory: true,
            persistent: false,
        }
    }
}

impl Wire {
    /// Connects and logs in.
    pub(super) async fn open(shared: &Shared) -> Result<Self, LinkError> {
        let name = format!("chat3-gateway {} presence", shared.instance);
        let (connection, cancelled) = Watched::open(&shared.config, &name).await?;
        Ok(Self {
            connection,
            cancelled,
            name: shared.instance.clone(),
        })
    }

    /// Opens a channel, in confirm mode.
    pub(super) async fn line(&self) -> Result<Line, LinkError> {
        self.another_line().await
    }

    /// As [`Wire::line`], for later.
    pub(super) fn another_line(&self) -> impl Future<Output = Result<Line, LinkError>> + use<> {
        let (lost, name) = (self.connection.lost.clone(), self.name.clone());
        let opening = self.connection.open_vital_channel();
        async move {
            let opening = async move {
                let open = opening.await?;
                open.channel
                    .confirm_select(ConfirmSelectArguments::default())
                    .await?;
                barrier(&open.channel, PREFETCH).await?;
                Ok::<_, LinkError>(open)
            };
            // In a separate task: a call to amqprs must not be dropped before it has ended.
            let open = match timeout(STEP, tokio::spawn(opening)).await {
                Ok(Ok(opened)) => opened?,
                Ok(Err(panic)) => return Err(LinkError::Amqp(panic.to_string())),
                Err(_) => return Err(LinkError::Timeout(STEP)),
            };
            Ok(Line {
                open,
                unanswered: 0,
                lost,
                name,
            })
        }
    }

    /// Closes the connection; bounded in time, because the broker may not answer.
    pub(super) async fn close(self) {
        self.connection.close(CLOSE_TIMEOUT).await;
    }
}

impl Line {
    /// Makes one request.
    pub(super) async fn ask<T, F>(
        &self,
        question: impl FnOnce(Channel) -> F,
    ) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let asking = self.open.ask(STEP, question(self.open.channel.clone()));
        tokio::select! {
            biased;
            answer = asking => answer,
            () = self.lost.cancelled() => Err(self.loss()),
        }
    }

    /// Publishes `letters`, in their order; returns when RabbitMQ has them all, with the routing
    /// keys of those that reached no queue.
    pub(super) async fn publish(&mut self, letters: Vec<Letter>) -> Result<Vec<String>, LinkError> {
        match self.publish_within(STEP, letters).await? {
            Some(outcome) if outcome.refused > 0 => {
                Err(LinkError::Amqp("it refused a message".to_owned()))
            }
            Some(outcome) => Ok(outcome.returned),
            None => Err(LinkError::Timeout(STEP)),
        }
    }

    /// Publishes `letters`, in their order, and goes on if RabbitMQ refuses them or does not
    /// answer: whether queues of others take them is none of this side's business. Returns how
    /// many were confirmed.
    ///
    /// # Errors
    /// Also if RabbitMQ has not answered for so long that it would soon read no more of this
    /// connection.
    pub(super) async fn tell(&mut self, letters: Vec<Letter>) -> Result<u64, LinkError> {
        let count = letters.len() as u64;
        let limit = match self.unanswered {
            0 => STEP,
            MOST_UNANSWERED.. => return Err(LinkError::Timeout(STEP)),
            _ => STILL_UNANSWERED,
        };
        let Some(outcome) = self.publish_within(limit, letters).await? else {
            self.open.confirms.forget();
            self.unanswered += count;
            return Ok(0);
        };
        self.unanswered = 0;
        Ok(count.saturating_sub(outcome.refused))
    }

    /// `None` if RabbitMQ has not answered all of it in time.
    async fn publish_within(
        &mut self,
        limit: Duration,
        letters: Vec<Letter>,
    ) -> Result<Option<Outcome>, LinkError> {
        let (confirms, name) = (self.open.confirms.clone(), self.name.clone());
        self.ask(|channel| async move {
            for letter in letters {
                confirms.publishing();
                let mut arguments =
                    BasicPublishArguments::new(&letter.exchange, &letter.routing_key);
                arguments.mandatory(letter.mandatory);
                let properties = BasicProperties::default()
                    .with_content_type("application/json")
                    .with_persistence(letter.persistent)
                    .with_app_id(&name)
                    .with_timestamp(millis_since_1970())
                    .finish();
                channel
                    .basic_publish(properties, letter.body, arguments)
                    .await?;
            }
            Ok(())
        })
        .await?;
        tokio::select! {
            outcome = timeout(limit, self.open.confirms.outcome()) => Ok(outcome.ok()),
            () = self.lost.cancelled() => Err(self.loss()),
        }
    }

    /// Consumes a queue.
    pub(super) async fn consume(
        &mut self,
        queue: &str,
        tag: &str,
    ) -> Result<UnboundedReceiver<ConsumerMessage>, LinkError> {
        let consume = BasicConsumeArguments::new(queue, tag)
            .manual_ack(true)
            .finish();
        self.ask(|channel| async move {
            let (_, messages) = channel.basic_consume_rx(consume).await?;
            Ok(messages)
        })
        .await
    }

    /// Takes the first message out of a queue. A message that is `kept` is unacknowledged, and comes
    /// back with the end of the channel. `None` if the queue is empty.
    pub(super) async fn get(&self, queue: &str, kept: bool) -> Result<Option<Vec<u8>>, LinkError> {
        let get = BasicGetArguments::new(queue).no_ack(!kept).finish();
        let got = self
            .ask(|channel| async move { channel.basic_get(get).await })
            .await?;
        Ok(got.map(|(_, _, body)| body))
    }

    /// Acknowledges everything up to `tag`; 0 for everything there is.
    pub(super) async fn acknowledge(&self, tag: u64) -> Result<(), LinkError> {
        let ack = BasicAckArguments::new(tag, true);
        self.ask(|channel| async move { channel.basic_ack(ack).await })
            .await
    }

    fn loss(&self) -> LinkError {
        match self.open.close_reason.get() {
            Some(close) => LinkError::Closed(close.clone()),
            None => LinkError::Amqp("the connection broke".to_owned()),
        }
    }
}

fn millis_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The keeper's clock: never goes back.
pub(super) struct Clock {
    start: tokio::time::Instant,
    started_at: u64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            start: tokio::time::Instant::now(),
            started_at: millis_since_1970(),
        }
    }

    pub(super) fn now(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis());
        self.started_at.saturating_add(elapsed.unwrap_or(u64::MAX))
    }
}
