//! Publishes the gateway's own messages, over a separate connection.
//!
//! RabbitMQ blocks a connection that publishes while the broker is short of memory or disk,
//! and answers nothing on that connection any more. So the connection that consumes updates
//! publishes nothing. The publishing connection is opened with the first message, and kept.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::{
    BasicProperties, channel::BasicPublishArguments, connection::Connection, error::Error,
};
use bytes::Bytes;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tracing::debug;

use super::{
    connection::{OpenChannel, barrier, open_channel, open_connection},
    link_error::LinkError,
    shared::Shared,
};

/// How long the caller waits until RabbitMQ has a message.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Limit of the goodbye to a broker that may not be listening.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The barrier's argument, which means nothing to a channel that only publishes.
const PREFETCH: u16 = 1;

/// A way out. One message is published at a time.
pub(super) struct Outbox {
    shared: Arc<Shared>,
    /// In the connection's name.
    purpose: &'static str,
    publishing: Arc<Mutex<Option<Publishing>>>,
}

/// A message and where it goes.
struct Letter {
    exchange: String,
    routing_key: String,
    content_type: &'static str,
    body: Bytes,
    /// Milliseconds since 1970, as Chat3 sets them.
    written_at: u64,
}

struct Publishing {
    connection: Connection,
    channel: OpenChannel,
    /// A message that was sent, and not answered in time.
    unanswered: Option<JoinHandle<Result<(), Error>>>,
}

impl Outbox {
    pub(super) fn new(shared: Arc<Shared>, purpose: &'static str) -> Self {
        Self {
            shared,
            purpose,
            publishing: Arc::default(),
        }
    }

    /// Publishes a message; returns when RabbitMQ has it. One that it has not in time may
    /// arrive later; until then, none is sent after it.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<(), LinkError> {
        let letter = Letter {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            content_type,
            body,
            written_at: millis(SystemTime::now()),
        };
        // In a separate task: a call to amqprs must not be dropped before it has ended.
        let publish = {
            let (shared, publishing) = (self.shared.clone(), self.publishing.clone());
            let purpose = self.purpose;
            async move {
                let publishing = timeout(PUBLISH_TIMEOUT, publishing.lock()).await;
                let mut publishing = publishing.map_err(|_| LinkError::Timeout(PUBLISH_TIMEOUT))?;
                publish(&shared, purpose, &mut publishing, &letter).await
            }
        };
        match timeout(2 * PUBLISH_TIMEOUT, tokio::spawn(publish)).await {
            Ok(Ok(published)) => published,
            Ok(Err(panic)) => Err(LinkError::Amqp(panic.to_string())),
            Err(_) => Err(LinkError::Timeout(2 * PUBLISH_TIMEOUT)),
        }
    }

    /// Closes the connection, if there is one.
    pub(super) async fn close(&self) {
        let Ok(mut publishing) = timeout(CLOSE_TIMEOUT, self.publishing.lock()).await else {
            return;
        };
        let Some(Publishing { connection, .. }) = publishing.take() else {
            return;
        };
        let close = tokio::spawn(async move { connection.close().await });
        if timeout(CLOSE_TIMEOUT, close).await.is_err() {
            debug!(
                purpose = self.purpose,
                "RabbitMQ connection not closed in time"
            );
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

async fn publish(
    shared: &Shared,
    purpose: &'static str,
    publishing: &mut Option<Publishing>,
    letter: &Letter,
) -> Result<(), LinkError> {
    let is_usable = |publishing: &Publishing| {
        publishing.connection.is_open() && publishing.channel.channel.is_open()
    };
    if publishing.as_ref().is_some_and(|it| !is_usable(it)) {
        *publishing = None;
    }
    let way = match publishing {
        Some(way) => way,
        None => publishing.insert(open(shared, purpose).await?),
    };
    match way.unanswered.take() {
        Some(unanswered) if !unanswered.is_finished() => {
            way.unanswered = Some(unanswered);
            return Err(LinkError::Timeout(PUBLISH_TIMEOUT));
        }
        _ => {}
    }
    let properties = BasicProperties::default()
        .with_content_type(letter.content_type)
        .with_app_id(&shared.instance)
        .with_timestamp(letter.written_at)
        .finish();
    let arguments = BasicPublishArguments::new(&letter.exchange, &letter.routing_key);
    let (channel, body) = (way.channel.channel.clone(), letter.body.to_vec());
    let mut sent = tokio::spawn(async move {
        channel.basic_publish(properties, body, arguments).await?;
        barrier(&channel, PREFETCH).await
    });
    match timeout(PUBLISH_TIMEOUT, &mut sent).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(way.channel.refusal_or(error)),
        Ok(Err(panic)) => Err(LinkError::Amqp(panic.to_string())),
        Err(_) => {
            way.unanswered = Some(sent);
            Err(LinkError::Timeout(PUBLISH_TIMEOUT))
        }
    }
}

async fn open(shared: &Shared, purpose: &'static str) -> Result<Publishing, LinkError> {
    let config = shared.config.clone();
    let name = format!("chat3-gateway {} {purpose}", shared.instance);
    let opening = tokio::spawn(async move {
        let heartbeat = config.heartbeat;
        let opening = open_connection(&config.url, &config.tls, &name, heartbeat, PUBLISH_TIMEOUT);
        let (connection, _) = opening.await?;
        // Nothing is consumed there.
        let (cancelled, _) = mpsc::unbounded_channel();
        let channel = open_channel(&connection, None, &cancelled).await?;
        Ok::<_, LinkError>((connection, channel))
    });
    let (connection, channel) = match timeout(PUBLISH_TIMEOUT, opening).await {
        Ok(Ok(opened)) => opened?,
        Ok(Err(panic)) => return Err(LinkError::Amqp(panic.to_string())),
        Err(_) => return Err(LinkError::Timeout(PUBLISH_TIMEOUT)),
    };
    Ok(Publishing {
        connection,
        channel,
        unanswered: None,
    })
}
