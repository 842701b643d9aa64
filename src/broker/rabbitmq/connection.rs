//! Opening connections and channels, and learning of their end.
//!
//! amqprs reports no loss reliably. What is reliable is that its reader and
//! dispatchers drop the callbacks that they own. So each callback holds a guard,
//! and records what the server said when it closed.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use amqprs::{
    Ack as PublisherAck, BasicProperties, Cancel, Close, CloseChannel, Nack as PublisherNack,
    Return,
    callbacks::{ChannelCallback, ConnectionCallback},
    channel::{BasicQosArguments, Channel},
    connection::{Connection, OpenConnectionArguments},
    error::Error,
    tls::TlsAdaptor,
};
use async_trait::async_trait;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};
use tracing::{debug, instrument::WithSubscriber, subscriber::NoSubscriber, warn};

use super::{
    confirms::Confirms,
    link_error::{LinkError, ServerClose, login_error},
    unreadable::Unreadable,
};
use crate::{
    config::{AmqpUrl, AmqpUrls, RabbitMqConfig, RabbitMqTls},
    tls,
};

/// Long enough for another task to hand a frame to the writer.
const CLOSE_OK_DELAY: Duration = Duration::from_millis(100);

/// Connects to one of the nodes and logs in; returns the node's address as well.
///
/// The nodes are tried in turn from a random one on, so that instances spread over them.
/// `limit` is divided among the nodes: one that does not answer leaves time for the others.
pub(crate) async fn open_connection(
    urls: &AmqpUrls,
    certificates: &RabbitMqTls,
    name: &str,
    heartbeat: Duration,
    limit: Duration,
) -> Result<(Connection, AmqpUrl), LinkError> {
    let nodes = urls.nodes();
    let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let (share, first) = (limit / count, rand::random_range(0..nodes.len()));
    let mut failure = LinkError::Timeout(limit);
    for node in nodes[first..].iter().chain(&nodes[..first]) {
        let opening = open_node(node, certificates, name, heartbeat);
        let opened = timeout(share, opening).await;
        match opened.unwrap_or(Err(LinkError::Timeout(share))) {
            Ok(connection) => return Ok((connection, node.clone())),
            Err(error) => {
                if nodes.len() > 1 {
                    warn!(address = %node, %error, "RabbitMQ node not usable");
                }
                failure = error;
            }
        }
    }
    Err(failure)
}

/// Connects to a node and logs in. Not bounded in time: the caller is.
async fn open_node(
    url: &AmqpUrl,
    certificates: &RabbitMqTls,
    name: &str,
    heartbeat: Duration,
) -> Result<Connection, LinkError> {
    let host = match url.host.contains(':') {
        true => format!("[{}]", url.host),
        false => url.host.clone(),
    };
    let mut arguments = OpenConnectionArguments::new(&host, url.port, &url.user, &url.password);
    arguments
        .virtual_host(&url.vhost)
        .connection_name(name)
        .heartbeat(heartbeat.as_secs().try_into().unwrap_or(u16::MAX));
    if url.tls {
        let config = tls::client_config(certificates.ca_file(), certificates.client())?;
        let connector = TlsConnector::from(Arc::new(config));
        let adaptor = TlsAdaptor::new(connector, url.host.clone());
        arguments.tls_adaptor(adaptor);
    }
    // amqprs traces what it sends, which here includes the password. It panics, in the
    // task that asks, at input that no RabbitMQ sends.
    let open = async move { Connection::open(&arguments).await };
    let open = tokio::spawn(open.with_subscriber(NoSubscriber::default()));
    match AbortOnDropHandle::new(open).await {
        Ok(opened) => opened.map_err(|error| login_error(error, url.tls)),
        Err(_) => Err(LinkError::Foreign),
    }
}

/// A connection, and how it ended.
pub(super) struct Watched {
    pub(super) amqp: Connection,
    name: String,
    /// The node that the connection leads to.
    pub(super) node: AmqpUrl,
    /// Cancelled when the connection is gone for any reason.
    pub(super) lost: CancellationToken,
    close_reason: Arc<OnceLock<ServerClose>>,
    unreadable: Arc<OnceLock<&'static str>>,
    cancelled: mpsc::UnboundedSender<String>,
}

impl Watched {
    /// Connects and logs in. Also returns a receiver of the tags of consumers that the server
    /// cancels because their queue was deleted.
    pub(super) async fn open(
        config: &RabbitMqConfig,
        name: &str,
    ) -> Result<(Self, mpsc::UnboundedReceiver<String>), LinkError> {
        let (limit, heartbeat) = (config.connect_timeout, config.heartbeat);
        let opening = open_connection(&config.url, &config.tls, name, heartbeat, limit);
        let (amqp, node) = opening.await?;
        let lost = CancellationToken::new();
        let close_reason = Arc::new(OnceLock::new());
        let unreadable = Arc::new(OnceLock::new());
        amqp.register_callback(OnConnection {
            close_reason: close_reason.clone(),
            unreadable: unreadable.clone(),
            _lost: lost.clone().drop_guard(),
        })
        .await?;
        let (cancelled, tags) = mpsc::unbounded_channel();
        let watched = Self {
            amqp,
            name: name.to_owned(),
            node,
            lost,
            close_reason,
            unreadable,
            cancelled,
        };
        Ok((watched, tags))
    }

    /// Opens a channel. Not bounded in time: the caller is.
    pub(super) fn open_channel(
        &self,
    ) -> impl Future<Output = Result<OpenChannel, LinkError>> + Send + use<> {
        let (connection, cancelled) = (self.amqp.clone(), self.cancelled.clone());
        async move { open_channel(&connection, None, &cancelled).await }
    }

    /// As [`Watched::open_channel`], and the end of the channel is the loss of the connection.
    pub(super) fn open_vital_channel(
        &self,
    ) -> impl Future<Output = Result<OpenChannel, LinkError>> + Send + use<> {
        let (connection, cancelled) = (self.amqp.clone(), self.cancelled.clone());
        let lost = self.lost.clone();
        async move {
            let lost = Some(lost.drop_guard());
            open_channel(&connection, lost, &cancelled).await
        }
    }

    /// Why the connection is lost.
    pub(super) fn loss(&self) -> LinkError {
        match self.close_reason.get() {
            Some(close) => LinkError::Closed(close.clone()),
            None => self
                .unreadable()
                .unwrap_or_else(|| LinkError::Amqp("the connection broke".to_owned())),
        }
    }

    /// Why the connection is lost, if it is; otherwise `error`.
    pub(super) fn loss_or(&self, error: LinkError) -> LinkError {
        match self.lost.is_cancelled() {
            true => self.loss(),
            false => error,
        }
    }

    /// Why the connection's input could not be read any further.
    pub(super) fn unreadable(&self) -> Option<LinkError> {
        self.unreadable
            .get()
            .map(|cause| LinkError::Unreadable(cause))
    }

    /// Starts to close the connection. The returned future waits for the end of it, for `limit` at
    /// most, because the broker may not be listening. Dropping the future stops nothing.
    pub(super) fn close(self, limit: Duration) -> impl Future<Output = ()> {
        let closing = tokio::spawn(self.amqp.close());
        async move {
            match timeout(limit, closing).await {
                Ok(Ok(Ok(()))) => {}
                other => debug!(
                    ?other,
                    connection = self.name,
                    "RabbitMQ connection not closed cleanly"
                ),
            }
        }
    }
}

/// Opens a channel. `lost` is dropped with it, however the channel ends.
pub(crate) async fn open_channel(
    connection: &Connection,
    lost: Option<DropGuard>,
    cancelled: &mpsc::UnboundedSender<String>,
) -> Result<OpenChannel, LinkError> {
    let channel = connection.open_channel(None).await?;
    let close_reason = Arc::new(OnceLock::new());
    let returned = Arc::new(AtomicU64::new(0));
    let confirms = Arc::new(Confirms::default());
    channel
        .register_callback(OnChannel {
            close_reason: close_reason.clone(),
            cancelled: cancelled.clone(),
            returned: returned.clone(),
            confirms: confirms.clone(),
            _lost: lost,
        })
        .await?;
    Ok(OpenChannel {
        channel,
        close_reason,
        returned,
        confirms,
    })
}

/// Returns when the server has accepted everything sent on `channel` so far. After a
/// refusal, which closes the channel, the answer never comes.
pub(crate) async fn barrier(channel: &Channel, prefetch: u16) -> Result<(), Error> {
    // Setting the same prefetch again is the cheapest RPC without effect. The prefetch is
    // per consumer: RabbitMQ 4.3 denies the global form.
    channel
        .basic_qos(BasicQosArguments::new(0, prefetch, false))
        .await
}

/// A channel, and why the server closed it.
pub(crate) struct OpenChannel {
    pub(crate) channel: Channel,
    pub(super) close_reason: Arc<OnceLock<ServerClose>>,
    /// Counts messages that were published as mandatory and reached no queue.
    #[cfg_attr(not(feature = "cli"), allow(dead_code))] // For `publish`.
    pub(crate) returned: Arc<AtomicU64>,
    pub(super) confirms: Arc<Confirms>,
}

impl OpenChannel {
    /// Waits for one RPC on this channel, or for a sequence that ends in one, for
    /// at most `limit`. The call runs in a separate task, which nothing drops: amqprs
    /// gives the answer to a dropped call to the next one.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, LinkError> {
        match timeout(limit, tokio::spawn(call)).await {
            Ok(Ok(answer)) => answer.map_err(|error| self.refusal_or(error)),
            Ok(Err(panic)) => Err(LinkError::Amqp(panic.to_string())),
            Err(_) => Err(LinkError::Timeout(limit)),
        }
    }

    /// What the server said when it closed the channel, if it did; otherwise `error`,
    /// which says only that a call did not succeed.
    pub(super) fn refusal_or(&self, error: Error) -> LinkError {
        match self.close_reason.get() {
            Some(close) => LinkError::Closed(close.clone()),
            None => error.into(),
        }
    }
}

/// Owned by amqprs's reader, and dropped when the connection is gone for any reason.
struct OnConnection {
    close_reason: Arc<OnceLock<ServerClose>>,
    unreadable: Arc<OnceLock<&'static str>>,
    _lost: DropGuard,
}

impl Drop for OnConnection {
    fn drop(&mut self) {
        if let Some(cause) = Unreadable::take_cause() {
            let _ = self.unreadable.set(cause);
        }
    }
}

#[async_trait]
impl ConnectionCallback for OnConnection {
    async fn close(&mut self, _: &Connection, close: Close) -> Result<(), Error> {
        let _ = self.close_reason.set(ServerClose::new(
            close.reply_code(),
            close.reply_text(),
            (close.class_id(), close.method_id()),
        ));
        Ok(())
    }

    // RabbitMQ sends neither: only to clients that announce the capability
    // `connection.blocked`, which amqprs does not.
    async fn blocked(&mut self, _: &Connection, _: String) {}

    async fn unblocked(&mut self, _: &Connection) {}

    async fn secret_updated(&mut self, _: &Connection) {}
}

/// Owned by the dispatcher of a channel, and dropped when the channel is gone.
struct OnChannel {
    close_reason: Arc<OnceLock<ServerClose>>,
    cancelled: mpsc::UnboundedSender<String>,
    returned: Arc<AtomicU64>,
    confirms: Arc<Confirms>,
    _lost: Option<DropGuard>,
}

#[async_trait]
impl ChannelCallback for OnChannel {
    async fn close(&mut self, channel: &Channel, close: CloseChannel) -> Result<(), Error> {
        let _ = self.close_reason.set(ServerClose::new(
            close.reply_code(),
            close.reply_text(),
            (close.class_id(), close.method_id()),
        ));
        // amqprs answers `close-ok` when this returns, and a frame after that ends the
        // connection (504). Frames that are on their way to the writer get there
        // meanwhile; RPCs that begin now fail when the dispatcher has ended.
        sleep(CLOSE_OK_DELAY).await;
        match channel.is_connection_open() {
            true => Ok(()),
            // amqprs would panic on an answer that nothing can take any more.
            false => Err(Error::ChannelCloseError("connection lost".to_owned())),
        }
    }

    async fn cancel(&mut self, _: &Channel, cancel: Cancel) -> Result<(), Error> {
        // An error means that the link is already closing.
        let _ = self.cancelled.send(cancel.consumer_tag().clone());
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: PublisherAck) {
        let tags = (ack.delivery_tag(), ack.mutiple());
        self.confirms.answered(tags, true);
    }

    async fn publish_nack(&mut self, _: &Channel, nack: PublisherNack) {
        let tags = (nack.delivery_tag(), nack.multiple());
        self.confirms.answered(tags, false);
    }

    async fn publish_return(&mut self, _: &Channel, back: Return, _: BasicProperties, _: Vec<u8>) {
        self.returned.fetch_add(1, Ordering::Relaxed);
        self.confirms.returned(back.routing_key());
    }
}
