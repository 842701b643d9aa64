//! The connection over which orders come, and its channels.
//!
//! A refusal costs a channel, whose number amqprs does not use again: the connection is renewed
//! before they are used up.

use std::{future::Future, sync::Arc, time::Duration};

use amqprs::{
    channel::{BasicConsumeArguments, Channel, ConsumerMessage},
    error::Error,
};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::super::{
    acks::Acks,
    connection::{OpenChannel, Watched, barrier},
    link_error::{LinkError, ServerClose},
    shared::Shared,
};

/// Time limit of one request. A broker that needs longer is in no state to deliver.
const STEP: Duration = Duration::from_secs(20);

/// Limit of the goodbye to a broker that may not be listening.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Unacknowledged orders. Orders are small, but anything may be published here.
const PREFETCH: u16 = 16;

/// How many channels are opened on one connection.
const MOST_CHANNELS: u16 = 200;

pub(super) struct Wire {
    pub(super) connection: Watched,
    /// Tags of consumers that the server cancelled because their queue was deleted.
    pub(super) cancelled: UnboundedReceiver<String>,
    openable: u16,
    admin: Option<OpenChannel>,
}

/// A consumer, on a channel of its own.
pub(super) struct Consumer {
    pub(super) tag: String,
    channel: OpenChannel,
    messages: UnboundedReceiver<ConsumerMessage>,
    acks: Arc<Acks>,
    acknowledging: AbortOnDropHandle<()>,
}

impl Wire {
    /// Connects and logs in.
    pub(super) async fn open(shared: &Shared) -> Result<Self, LinkError> {
        let name = format!("chat3-gateway {} listener", shared.instance);
        let (connection, cancelled) = Watched::open(&shared.config, &name).await?;
        let openable = match connection.amqp.channel_max() {
            0 => MOST_CHANNELS,
            limit => limit.min(MOST_CHANNELS),
        };
        Ok(Self {
            connection,
            cancelled,
            openable,
            admin: None,
        })
    }

    /// Makes one request. A refusal is `Ok(Err(_))`; an error means that the connection is lost.
    pub(super) async fn ask<T, F>(
        &mut self,
        question: impl FnOnce(Channel) -> F,
    ) -> Result<Result<T, ServerClose>, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let on = match self.admin.take() {
            Some(open) if open.channel.is_open() => open,
            _ => self.another_channel().await?,
        };
        let answer = self.answer(&on, question(on.channel.clone())).await?;
        if answer.is_ok() {
            self.admin = Some(on);
        }
        Ok(answer)
    }

    /// Starts a consumer. A refusal is `Ok(Err(_))`.
    pub(super) async fn consume(
        &mut self,
        arguments: BasicConsumeArguments,
    ) -> Result<Result<Consumer, ServerClose>, LinkError> {
        let on = self.another_channel().await?;
        let (channel, tag) = (on.channel.clone(), arguments.consumer_tag.clone());
        let consuming = async move {
            // The prefetch bounds a buffer that amqprs does not bound.
            barrier(&channel, PREFETCH).await?;
            let (_, messages) = channel.basic_consume_rx(arguments).await?;
            Ok(messages)
        };
        let messages = match self.answer(&on, consuming).await? {
            Ok(messages) => messages,
            Err(close) => return Ok(Err(close)),
        };
        let acks = Arc::new(Acks::new(PREFETCH));
        let acknowledging = {
            let (acks, channel) = (acks.clone(), on.channel.clone());
            tokio::spawn(async move { acks.run(&channel).await })
        };
        Ok(Ok(Consumer {
            tag,
            channel: on,
            messages,
            acks,
            acknowledging: AbortOnDropHandle::new(acknowledging),
        }))
    }

    async fn answer<T: Send + 'static>(
        &self,
        on: &OpenChannel,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<Result<T, ServerClose>, LinkError> {
        let answered = tokio::select! {
            answered = on.ask(STEP, call) => answered,
            () = self.connection.lost.cancelled() => return Err(self.connection.loss()),
        };
        match answered {
            Ok(answer) => Ok(Ok(answer)),
            Err(LinkError::Closed(close)) if !self.connection.lost.is_cancelled() => Ok(Err(close)),
            Err(error) => Err(self.connection.loss_or(error)),
        }
    }

    async fn another_channel(&mut self) -> Result<OpenChannel, LinkError> {
        self.openable = self.openable.checked_sub(1).ok_or(LinkError::Worn)?;
        // In a separate task: a call to amqprs must not be dropped before it has ended.
        match timeout(STEP, tokio::spawn(self.connection.open_channel())).await {
            Ok(Ok(opened)) => opened.map_err(|error| self.connection.loss_or(error)),
            Ok(Err(panic)) => Err(LinkError::Amqp(panic.to_string())),
            Err(_) => Err(LinkError::Timeout(STEP)),
        }
    }

    /// Closes the connection; bounded in time, because the broker may not answer.
    pub(super) async fn close(self) {
        let closing = tokio::spawn(async move {
            if let Some(admin) = self.admin {
                let _ = admin.channel.close().await;
            }
            self.connection.amqp.close().await
        });
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            debug!("RabbitMQ connection for orders not closed in time");
        }
    }
}

impl Consumer {
    /// The next message; `None` when the consumer has ended. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Option<ConsumerMessage> {
        self.messages.recv().await
    }

    /// Whether the server ended it, rather than its channel.
    pub(super) fn was_cancelled(&self) -> bool {
        self.messages.is_closed() && self.channel.channel.is_open()
    }

    /// The message with this tag was handed on.
    pub(super) fn settle(&self, tag: u64) {
        self.acks.settle(tag);
    }

    /// Ends the consumer, and deletes its queue if that is exclusive. Goes on without a waiter,
    /// who waits for a second at most.
    pub(super) fn close(self) -> impl Future<Output = ()> {
        // An acknowledgement after the close would end the connection (504).
        drop(self.acknowledging);
        let channel = self.channel.channel;
        let closing = tokio::spawn(async move { channel.close().await });
        async move { drop(timeout(CLOSE_TIMEOUT, closing).await) }
    }
}
