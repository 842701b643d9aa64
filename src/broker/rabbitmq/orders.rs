//! Publishes orders to the other instances, over a separate connection.
//!
//! While RabbitMQ is short of memory or disk, it blocks every connection that publishes,
//! without notice, and answers nothing on it. So the connection that receives updates
//! publishes nothing. This one is opened with the first order, and kept.

use std::{sync::Arc, time::Duration};

use amqprs::{
    BasicProperties, channel::BasicPublishArguments, connection::Connection, error::Error,
};
use bytes::Bytes;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    connection::{OpenChannel, barrier, open_channel, open_connection},
    link_error::LinkError,
    shared::Shared,
};

/// How long the caller waits until RabbitMQ has accepted an order.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit of closing the connection: the broker may not answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The argument of the barrier, without meaning on a channel that only publishes.
const PREFETCH: u16 = 1;

/// The publisher of orders: one at a time.
pub(super) struct Orders {
    shared: Arc<Shared>,
    publishing: Arc<Mutex<Option<Publishing>>>,
}

struct Publishing {
    connection: Connection,
    channel: OpenChannel,
    /// An order that was sent and not confirmed in time.
    unanswered: Option<JoinHandle<Result<(), Error>>>,
}

impl Orders {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            publishing: Arc::default(),
        }
    }

    /// Publishes `message`; returns whether RabbitMQ has accepted it. A message that is
    /// not accepted in time may still arrive; until then, no other is sent.
    pub(super) async fn publish(&self, message: Bytes) -> bool {
        // In a separate task: a call into amqprs must run to its end.
        let publish = {
            let (shared, publishing) = (self.shared.clone(), self.publishing.clone());
            async move {
                let publishing = timeout(PUBLISH_TIMEOUT, publishing.lock()).await;
                let mut publishing = publishing.map_err(|_| LinkError::Timeout(PUBLISH_TIMEOUT))?;
                publish(&shared, &mut publishing, &message).await
            }
        };
        let published = match timeout(2 * PUBLISH_TIMEOUT, tokio::spawn(publish)).await {
            Ok(Ok(published)) => published,
            Ok(Err(panic)) => Err(LinkError::Amqp(panic.to_string())),
            Err(_) => Err(LinkError::Timeout(2 * PUBLISH_TIMEOUT)),
        };
        if let Err(error) = &published {
            self.shared.metrics.orders_not_broadcast.inc();
            match error {
                LinkError::Closed(reason) => {
                    warn!(%reason, "RabbitMQ closed the control channel: the order does not reach other instances");
                }
                LinkError::Timeout(_) => warn!(
                    %error,
                    "RabbitMQ control message not sent in time: the order reaches other instances late or \
                     never; RabbitMQ takes none while it is short of memory or disk"
                ),
                _ => {
                    warn!(%error, "RabbitMQ control message not sent: the order does not reach other instances");
                }
            }
        }
        published.is_ok()
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
            debug!("RabbitMQ connection of orders not closed in time");
        }
    }
}

async fn publish(
    shared: &Shared,
    publishing: &mut Option<Publishing>,
    message: &Bytes,
) -> Result<(), LinkError> {
    let is_usable = |publishing: &Publishing| {
        publishing.connection.is_open() && publishing.channel.channel.is_open()
    };
    if publishing.as_ref().is_some_and(|it| !is_usable(it)) {
        *publishing = None;
    }
    let way = match publishing {
        Some(way) => way,
        None => publishing.insert(open(shared).await?),
    };
    match way.unanswered.take() {
        Some(unanswered) if !unanswered.is_finished() => {
            way.unanswered = Some(unanswered);
            return Err(LinkError::Timeout(PUBLISH_TIMEOUT));
        }
        _ => {}
    }
    let properties = BasicProperties::default()
        .with_content_type("application/json")
        .with_app_id(&shared.instance)
        .finish();
    let arguments = BasicPublishArguments::new(&shared.config.control_exchange, "");
    let (channel, message) = (way.channel.channel.clone(), message.to_vec());
    let mut sent = tokio::spawn(async move {
        channel
            .basic_publish(properties, message, arguments)
            .await?;
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

async fn open(shared: &Shared) -> Result<Publishing, LinkError> {
    let config = shared.config.clone();
    let name = format!("chat3-gateway {} orders", shared.instance);
    let opening = tokio::spawn(async move {
        let heartbeat = config.heartbeat;
        let opening = open_connection(&config.url, &config.tls, &name, heartbeat, PUBLISH_TIMEOUT);
        let (connection, _) = opening.await?;
        // Nothing is consumed on this connection.
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
