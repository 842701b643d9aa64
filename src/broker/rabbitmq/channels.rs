//! One connection to RabbitMQ and its channels.
//!
//! What amqprs leaves to its user decides the design (source of 2.1.5):
//! - Replies are matched by method type per channel, and the reply to a dropped
//!   future goes to the next caller. So a channel has one RPC in flight, each in a
//!   separate task that is never dropped; after a timeout the whole connection is
//!   thrown away.
//! - Nothing reports every kind of loss, except the `Drop` of the callbacks that
//!   the reader and the dispatchers own: see the module `connection`.
//! - A channel that the server closes takes its consumers along. So declares and
//!   binds, which may fail, have separate channels.
//!
//! RabbitMQ handles the declares of one channel one after the other, and each waits for its
//! metadata store. So there are several channels for declares.
//!
//! This module knows nothing of users.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use amqprs::{
    channel::{BasicConsumeArguments, Channel, ConsumerMessage},
    connection::Connection,
};
use futures_util::future::join_all;
use tokio::{
    sync::{Mutex, mpsc::UnboundedReceiver},
    time::timeout,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, warn};

use super::{
    acks::Acks,
    connection::{OpenChannel, Watched, barrier},
    consumer::{self, Turn},
    link_error::{LinkError, ServerClose},
    shared::Shared,
};
use crate::{
    broker::Delivery,
    config::{RabbitMqConfig, Topology},
};

/// The largest frame that `RabbitMqService::THREAD_STACK_BYTES` is measured for:
/// RabbitMQ's default. It tells the client, which cannot ask for a smaller one.
const MAX_FRAME_BYTES: u32 = 131_072;

/// Time limit of one RPC. A broker that needs longer is in no state to deliver.
const RPC_TIMEOUT: Duration = Duration::from_secs(20);

/// Channels for declares, binds and deletes. RabbitMQ 3.10 on two cores takes 400
/// users a second over one, and 1,000 over 16: then its cores are busy.
pub(super) const ADMIN_CHANNELS: usize = 16;

/// amqprs never reuses the id of a channel that the server closed, and panics when all
/// ids are used: 2,047 with RabbitMQ's default `channel_max`. The connection is replaced
/// before that, after this many reopened channels or as many as `channel_max` leaves.
const MAX_REOPENED_CHANNELS: usize = 1_000;

/// Time limit for handing off what consumers still hold when a link ends. Handlers do
/// not block; only an acknowledgement into a dead connection could.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Channels {
    pub(super) connection: Watched,
    /// For declares, binds and deletes. Each is replaced when the server closes it.
    admins: Vec<Mutex<OpenChannel>>,
    /// For consumes, cancels and acknowledgements. The loss of one is the link's loss.
    pub(super) consumers: Vec<Consumers>,
    prefetch: u16,
    /// Tags of consumers that the server cancelled because their queue was deleted.
    pub(super) cancelled: UnboundedReceiver<String>,
    /// Consumers that have not yet handed off everything they received.
    handing_off: TaskTracker,
    received: Arc<AtomicU64>,
    /// Channels that may still be opened in the place of closed ones.
    reopenable: Mutex<usize>,
}

/// A channel and the acknowledgements of its consumers.
pub(super) struct Consumers {
    pub(super) channel: OpenChannel,
    acks: Arc<Acks>,
    acknowledging: AbortOnDropHandle<()>,
}

/// The broker's answer to a request; a refusal is an answer, too.
pub(super) type Answer<T> = Result<T, ServerClose>;

/// How many consumer channels a topology uses.
fn consumer_channels(config: &RabbitMqConfig) -> usize {
    match config.topology {
        Topology::PerUser | Topology::Firehose | Topology::Stream => 1,
        // RabbitMQ serves each channel in a separate process.
        Topology::Shared => config.shared_queues.into(),
    }
}

/// How many channels a connection has left beside those that a link opens at once.
/// amqprs ignores the limit, and RabbitMQ closes a connection that exceeds it.
pub(super) fn spare_channels(
    connection: &Connection,
    config: &RabbitMqConfig,
) -> Result<usize, LinkError> {
    let needed = ADMIN_CHANNELS + consumer_channels(config);
    let allowed = match connection.channel_max() {
        0 => u16::MAX,
        limit => limit,
    };
    let spare = usize::from(allowed).checked_sub(needed);
    spare.ok_or(LinkError::TooFewChannels { allowed, needed })
}

impl Channels {
    /// Connects and opens the channels. Not bounded in time: the caller is.
    pub(super) async fn open(shared: &Shared) -> Result<Self, LinkError> {
        let config = &shared.config;
        let name = format!("chat3-gateway {}", shared.instance);
        let (connection, cancelled) = Watched::open(config, &name).await?;
        let frame_max = connection.amqp.frame_max();
        if !(1..=MAX_FRAME_BYTES).contains(&frame_max) {
            warn!(
                frame_max,
                "RabbitMQ has a frame_max above {MAX_FRAME_BYTES}: a message with headers nested that deep could end the process"
            );
        }
        let reopenable = spare_channels(&connection.amqp, config)?;
        let consumers = consumer_channels(config);
        let mut channels = Self {
            connection,
            admins: Vec::with_capacity(ADMIN_CHANNELS),
            consumers: Vec::with_capacity(consumers),
            prefetch: config.prefetch(),
            cancelled,
            handing_off: TaskTracker::new(),
            received: shared.received.clone(),
            reopenable: Mutex::new(reopenable.min(MAX_REOPENED_CHANNELS)),
        };
        for _ in 0..ADMIN_CHANNELS {
            let admin = channels.open_channel().await?;
            channels.admins.push(Mutex::new(admin));
        }
        for _ in 0..consumers {
            let consumers = channels.open_consumers().await?;
            channels.consumers.push(consumers);
        }
        Ok(channels)
    }

    async fn open_consumers(&self) -> Result<Consumers, LinkError> {
        let channel = self.connection.open_vital_channel().await?;
        // The prefetch, per consumer, bounds a buffer that amqprs does not bound.
        barrier(&channel.channel, self.prefetch).await?;
        let acks = Arc::new(Acks::new(self.prefetch));
        let acknowledging = {
            let (acks, channel) = (acks.clone(), channel.channel.clone());
            tokio::spawn(async move { acks.run(&channel).await })
        };
        Ok(Consumers {
            channel,
            acks,
            acknowledging: AbortOnDropHandle::new(acknowledging),
        })
    }

    /// Opens a channel, the loss of which is not the link's. Not bounded in time: the
    /// caller is.
    pub(super) async fn open_channel(&self) -> Result<OpenChannel, LinkError> {
        self.connection.open_channel().await
    }

    /// Opens a channel in the place of one that the server has closed; an error when the
    /// connection should make way for a new one.
    pub(super) async fn replace_channel(&self) -> Result<OpenChannel, LinkError> {
        let mut reopenable = self.reopenable.lock().await;
        *reopenable = reopenable.checked_sub(1).ok_or(LinkError::Worn)?;
        timeout(RPC_TIMEOUT, self.open_channel())
            .await
            .unwrap_or(Err(LinkError::Timeout(RPC_TIMEOUT)))
    }

    /// Runs one RPC, or one pipelined sequence that ends in an RPC, on an admin channel.
    /// If the broker refuses, and so closes the channel, another one is opened. An error
    /// means that the link is lost.
    pub(super) async fn on_admin<T, F>(
        &self,
        admin: usize,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<Answer<T>, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, amqprs::error::Error>> + Send + 'static,
    {
        let mut on = self.admins[admin].lock().await;
        match self.rpc(&on, call(on.channel.clone())).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(LinkError::Closed(close)) if !self.connection.lost.is_cancelled() => {
                *on = self.replace_channel().await?;
                Ok(Err(close))
            }
            Err(error) => Err(error),
        }
    }

    /// Runs steps on an admin channel, pipelined, and then one barrier, which only an
    /// accepted sequence passes. What was accepted before a refusal stays.
    pub(super) async fn pipeline<S, F>(
        &self,
        admin: usize,
        steps: Vec<S>,
        step: impl Fn(Channel, S) -> F + Send + 'static,
    ) -> Result<Answer<()>, LinkError>
    where
        S: Send + 'static,
        F: Future<Output = Result<(), amqprs::error::Error>> + Send + 'static,
    {
        let prefetch = self.prefetch;
        let sequence = |channel: Channel| async move {
            for each in steps {
                // A frame on a channel that the server has closed ends the connection.
                if channel.is_open() {
                    step(channel.clone(), each).await?;
                }
            }
            barrier(&channel, prefetch).await
        };
        self.on_admin(admin, sequence).await
    }

    /// Starts consumers of queues, pipelined: without waiting for each answer, then
    /// one barrier. The name of a queue is also the tag of its consumer.
    pub(super) async fn consume<D>(
        &self,
        on: &Consumers,
        queues: Vec<(String, D)>,
    ) -> Result<(), LinkError>
    where
        D: Fn(&Delivery<'_>, &mut Turn) + Send + 'static,
    {
        let (channel, prefetch) = (on.channel.channel.clone(), self.prefetch);
        let (acks, handing_off) = (on.acks.clone(), self.handing_off.clone());
        let received = self.received.clone();
        let sequence = async move {
            for (queue, deliver) in queues {
                let arguments = BasicConsumeArguments::new(&queue, &queue)
                    .manual_ack(true)
                    .exclusive(true)
                    .no_wait(true)
                    .finish();
                let (_, messages) = channel.basic_consume_rx(arguments).await?;
                let received = received.clone();
                let deliver = move |delivery: &Delivery<'_>, turn: &mut Turn| {
                    received.fetch_add(1, Ordering::Relaxed);
                    deliver(delivery, turn);
                };
                handing_off.spawn(consumer::consume(messages, acks.clone(), deliver));
            }
            barrier(&channel, prefetch).await
        };
        self.rpc(&on.channel, sequence).await
    }

    /// Starts one consumer. `read` takes its messages until there are no more.
    pub(super) async fn consume_with<F>(
        &self,
        on: &Consumers,
        arguments: BasicConsumeArguments,
        read: impl FnOnce(UnboundedReceiver<ConsumerMessage>, Arc<Acks>) -> F + Send + 'static,
    ) -> Result<(), LinkError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (channel, prefetch) = (on.channel.channel.clone(), self.prefetch);
        let (acks, handing_off) = (on.acks.clone(), self.handing_off.clone());
        let sequence = async move {
            let (_, messages) = channel.basic_consume_rx(arguments).await?;
            handing_off.spawn(read(messages, acks));
            barrier(&channel, prefetch).await
        };
        self.rpc(&on.channel, sequence).await
    }

    /// Runs one RPC, or one pipelined sequence that ends in an RPC.
    pub(super) async fn rpc<T: Send + 'static>(
        &self,
        on: &OpenChannel,
        call: impl Future<Output = Result<T, amqprs::error::Error>> + Send + 'static,
    ) -> Result<T, LinkError> {
        tokio::select! {
            answered = on.ask(RPC_TIMEOUT, call) => answered,
            () = self.connection.lost.cancelled() => Err(self.loss()),
        }
    }

    /// Why the link is lost, if it is; otherwise `error`.
    pub(super) fn loss_or(&self, error: LinkError) -> LinkError {
        match self.connection.lost.is_cancelled() {
            true => self.loss(),
            false => error,
        }
    }

    pub(super) fn loss(&self) -> LinkError {
        let loss = self.connection.loss();
        let mut consumers = self.consumers.iter();
        match consumers.find_map(|on| on.channel.close_reason.get()) {
            Some(close) if !matches!(loss, LinkError::Closed(_)) => {
                LinkError::Closed(close.clone())
            }
            _ => loss,
        }
    }

    /// Ends all consumers at once: the answer to `channel.close` comes after all
    /// deliveries, so nothing more is received. The queues are auto-delete and go.
    pub(super) async fn stop_consuming(&mut self) {
        for on in &mut self.consumers {
            on.acknowledging.abort();
            // After `channel.close`, an acknowledgement would end the connection (504),
            // and lose the deliveries that are in flight.
            let _ = (&mut on.acknowledging).await;
        }
        self.flush_acks().await;
        let stop = async |on: &Consumers| {
            let channel = on.channel.channel.clone();
            if let Err(error) = self.rpc(&on.channel, channel.close()).await {
                debug!(error = %self.loss_or(error), "RabbitMQ consumers not stopped");
            }
        };
        join_all(self.consumers.iter().map(stop)).await;
    }

    /// Acknowledges what has been handed off and not yet acknowledged.
    async fn flush_acks(&self) {
        let flush = |on: &Consumers| {
            let (acks, channel) = (on.acks.clone(), on.channel.channel.clone());
            async move { acks.flush(&channel).await }
        };
        // Only a dead connection makes this wait.
        let flushes = join_all(self.consumers.iter().map(flush));
        if timeout(DRAIN_TIMEOUT, flushes).await.is_err() {
            debug!("RabbitMQ acknowledgements not sent in time");
        }
    }

    /// The consumers that have not yet handed off everything they received.
    pub(super) fn handing_off(&self) -> TaskTracker {
        self.handing_off.clone()
    }

    /// Waits until everything received has been handed off and acknowledged, after
    /// the consumers were cancelled or the connection was lost or closed.
    pub(super) async fn handed_off(consumers: &TaskTracker) {
        consumers.close();
        if timeout(DRAIN_TIMEOUT, consumers.wait()).await.is_err() {
            debug!("RabbitMQ consumers did not end in time");
        }
    }

    /// Closes the connection; bounded in time, because the broker may not answer.
    pub(super) async fn close(self) {
        let closing = async move {
            // Dropping an open channel would spawn a closing handshake.
            for on in self.consumers {
                let _ = on.channel.channel.close().await;
            }
            for admin in self.admins {
                let _ = admin.into_inner().channel.close().await;
            }
            self.connection.amqp.close().await
        };
        // In a separate task: the future of an RPC must never be dropped.
        match timeout(DRAIN_TIMEOUT, tokio::spawn(closing)).await {
            Ok(Ok(Ok(()))) => {}
            other => debug!(?other, "RabbitMQ connection not closed cleanly"),
        }
    }
}
