//! A connection beside the link: for trying what RabbitMQ may refuse, and for listening
//! to the exchange for a while.
//!
//! Invariant: nothing outlives the connection, and nothing that happens to it affects
//! the link. Its queues are exclusive and short, and RabbitMQ deletes them with it.

// More of it than serving takes is for the command `doctor`.
#![cfg_attr(not(feature = "cli"), allow(dead_code))]

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use amqprs::{
    BasicProperties, Deliver, FieldValue,
    channel::{
        BasicAckArguments, BasicConsumeArguments, Channel, QueueBindArguments,
        QueueDeclareArguments, QueueDeleteArguments,
    },
    connection::Connection,
    consumer::AsyncConsumer,
    error::Error,
};
use async_trait::async_trait;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{
    channels::spare_channels,
    connection::{OpenChannel, barrier, open_channel, open_connection},
    link_error::LinkError,
};
use crate::{
    broker::survey::{self, Generation},
    config::{BindingKeys, RabbitMqConfig},
    update::Update,
    user::{TenantId, User, UserId},
};

/// Time limit of each request to RabbitMQ.
const STEP: Duration = Duration::from_secs(5);

/// Time limit of closing: the connection may be dead, and this process may be stopping.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The most bytes that a queue keeps if this side is slower than Chat3.
const MAX_WAITING_BYTES: i64 = 8 << 20;

/// Unacknowledged updates of each queue: few, since their size is unknown.
const PREFETCH: u16 = 50;

/// Updates of all queues that wait to be examined. Their bodies are already dropped.
const WAITING: usize = 200;

/// A connection, and a channel that is replaced after each refusal.
pub(crate) struct SideConnection {
    connection: Connection,
    /// The prefix of the names of its queues.
    pub(crate) prefix: String,
    channel: Option<OpenChannel>,
    cancelled: mpsc::UnboundedSender<String>,
    /// Cancellations are ignored: this side deletes its own queues.
    _cancelled: mpsc::UnboundedReceiver<String>,
}

impl SideConnection {
    /// Connects and logs in as the link does. `purpose` and `instance` become part of the
    /// names of the connection and its queues.
    pub(crate) async fn open(
        config: &RabbitMqConfig,
        purpose: &str,
        instance: &str,
    ) -> Result<Self, LinkError> {
        let name = format!("chat3-gateway {purpose} {instance}");
        let (limit, heartbeat) = (config.connect_timeout, config.heartbeat);
        let opening = open_connection(&config.url, &config.tls, &name, heartbeat, limit);
        let (connection, _) = opening.await?;
        let (cancelled, receiver) = mpsc::unbounded_channel();
        Ok(Self {
            connection,
            prefix: format!("chat3-gateway.{instance}.{purpose}"),
            channel: None,
            cancelled,
            _cancelled: receiver,
        })
    }

    /// Checks that RabbitMQ allows as many channels on a connection as the link opens.
    pub(crate) fn check_channels(&self, config: &RabbitMqConfig) -> Result<(), LinkError> {
        spare_channels(&self.connection, config).map(drop)
    }

    /// What the broker calls itself: its product and version.
    pub(crate) fn product(&self) -> (&str, &str) {
        let properties = self.connection.server_properties();
        (properties.product(), properties.version())
    }

    /// Makes one request. A refusal is [`LinkError::Closed`]; the next request then gets a
    /// new channel.
    pub(crate) async fn ask<T, F>(
        &mut self,
        question: impl FnOnce(Channel) -> F,
    ) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let on = match self.channel.take() {
            Some(open) => open,
            None => self.another_channel().await?,
        };
        let answer = on.ask(STEP, question(on.channel.clone())).await;
        if answer.is_ok() {
            self.channel = Some(on);
        }
        answer
    }

    /// Declares an exclusive queue as the gateway does, of at most `most` updates.
    pub(crate) async fn declare(&mut self, queue: &str, most: i64) -> Result<(), LinkError> {
        let mut declare = QueueDeclareArguments::new(queue);
        declare.exclusive(true).auto_delete(true);
        let mut arguments = amqprs::FieldTable::new();
        for (limit, value) in [
            ("x-max-length", most),
            ("x-max-length-bytes", MAX_WAITING_BYTES),
        ] {
            let limit = limit.try_into().expect("a short name");
            arguments.insert(limit, FieldValue::l(value));
        }
        declare.arguments(arguments);
        self.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) })
            .await
    }

    pub(crate) async fn bind(
        &mut self,
        queue: &str,
        exchange: &str,
        key: &str,
    ) -> Result<(), LinkError> {
        let bind = QueueBindArguments::new(queue, exchange, key);
        self.ask(|channel| async move { channel.queue_bind(bind).await })
            .await
    }

    /// Binds `queue` with each of the keys, up to the first that is refused.
    pub(crate) async fn bind_all(
        &mut self,
        queue: &str,
        exchange: &str,
        keys: &[String],
    ) -> Result<(), LinkError> {
        for key in keys {
            self.bind(queue, exchange, key).await?;
        }
        Ok(())
    }

    /// Binds `queue` to the exchange of updates with `#`. If topic permissions refuse that,
    /// binds it with every permitted key that a gateway might use: for all users, and for
    /// `users`.
    pub(crate) async fn bind_widely(
        &mut self,
        queue: &str,
        config: &RabbitMqConfig,
        users: &[User],
    ) -> Result<Scope, LinkError> {
        let exchange = &config.exchange;
        let refusal = match self.bind(queue, exchange, "#").await {
            Ok(()) => return Ok(Scope::Everything),
            Err(LinkError::Closed(close)) => close,
            Err(error) => return Err(error),
        };
        let mut permitted = Vec::new();
        if refusal.text.contains("access to topic") {
            for template in templates(&config.binding_keys) {
                let for_all = template.render_for_all().collect();
                if self
                    .is_permitted(queue, exchange, for_all, &mut permitted)
                    .await?
                {
                    continue;
                }
                for user in users {
                    let own = template.render(user).collect();
                    // A template that is refused for one user is refused for all.
                    if !self
                        .is_permitted(queue, exchange, own, &mut permitted)
                        .await?
                    {
                        break;
                    }
                }
            }
        }
        Ok(match permitted.is_empty() {
            true => Scope::Nothing(LinkError::Closed(refusal)),
            false => Scope::Some(permitted),
        })
    }

    async fn is_permitted(
        &mut self,
        queue: &str,
        exchange: &str,
        keys: Vec<String>,
        permitted: &mut Vec<String>,
    ) -> Result<bool, LinkError> {
        for key in keys {
            if permitted.contains(&key) {
                continue;
            }
            match self.bind(queue, exchange, &key).await {
                Ok(()) => permitted.push(key),
                Err(LinkError::Closed(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    pub(crate) async fn delete(&mut self, queue: &str) -> Result<(), LinkError> {
        let delete = QueueDeleteArguments::new(queue);
        self.ask(|channel| async move { channel.queue_delete(delete).await.map(drop) })
            .await
    }

    /// Prepares to listen; [`Listening::to`] adds queues.
    pub(crate) async fn listen(&self) -> Result<Listening, LinkError> {
        let on = self.another_channel().await?;
        let channel = on.channel.clone();
        on.ask(STEP, async move { barrier(&channel, PREFETCH).await })
            .await?;
        let (sender, heard) = mpsc::channel(WAITING);
        Ok(Listening {
            on,
            sender: sender.downgrade(),
            first: Some(sender),
            heard,
        })
    }

    async fn another_channel(&self) -> Result<OpenChannel, LinkError> {
        let open = open_channel(&self.connection, None, &self.cancelled);
        timeout(STEP, open)
            .await
            .unwrap_or(Err(LinkError::Timeout(STEP)))
    }

    pub(crate) async fn close(self) {
        let closing = async move {
            if let Some(open) = self.channel {
                let _ = open.channel.close().await;
            }
            // RabbitMQ deletes the exclusive queues with the connection in any case.
            let _ = self.connection.close().await;
        };
        let _ = timeout(CLOSE_TIMEOUT, tokio::spawn(closing)).await;
    }
}

/// What RabbitMQ permits to listen to.
pub(crate) enum Scope {
    Everything,
    /// Updates that match these keys.
    Some(Vec<String>),
    /// Nothing, and why.
    Nothing(LinkError),
}

/// The configured templates and those of all generations, one by one.
fn templates(configured: &BindingKeys) -> Vec<BindingKeys> {
    let known = Generation::ALL.iter().flat_map(|each| each.templates());
    let mut texts: Vec<&str> = configured.templates().collect();
    for text in known {
        if !texts.contains(text) {
            texts.push(text);
        }
    }
    texts.into_iter().map(survey::one).collect()
}

/// The updates that arrive in some queues.
pub(crate) struct Listening {
    on: OpenChannel,
    /// Only the consumers hold it: when they are gone, so is the connection.
    sender: mpsc::WeakSender<Heard>,
    first: Option<mpsc::Sender<Heard>>,
    heard: mpsc::Receiver<Heard>,
}

/// One update, as one of the queues received it. Its body is not kept.
pub(crate) struct Heard {
    /// The number that was given to [`Listening::to`].
    pub(crate) queue: usize,
    pub(crate) routing_key: String,
    /// The user that the body names; `None` if it is not an update, or the id is invalid.
    pub(crate) user: Option<User>,
    /// As published.
    pub(crate) timestamp: Option<u64>,
    pub(crate) at: SystemTime,
}

impl Listening {
    /// Listens to one more queue.
    pub(crate) async fn to(&mut self, queue: &str, number: usize) -> Result<(), LinkError> {
        let sender = self.first.take().or_else(|| self.sender.upgrade());
        let sender = sender.ok_or_else(broke)?;
        let ear = Ear { sender, number };
        let consume = BasicConsumeArguments::new(queue, queue);
        let channel = self.on.channel.clone();
        let consume = async move { channel.basic_consume(ear, consume).await.map(drop) };
        self.on.ask(STEP, consume).await
    }

    /// Waits for the next update; `None` after `until`.
    pub(crate) async fn next(&mut self, until: Instant) -> Result<Option<Heard>, LinkError> {
        match timeout_at(until, self.heard.recv()).await {
            Ok(Some(heard)) => Ok(Some(heard)),
            Ok(None) => Err(broke()),
            Err(_) => Ok(None),
        }
    }
}

fn broke() -> LinkError {
    LinkError::Amqp("the connection broke".to_owned())
}

struct Ear {
    sender: mpsc::Sender<Heard>,
    number: usize,
}

#[async_trait]
impl AsyncConsumer for Ear {
    async fn consume(
        &mut self,
        channel: &Channel,
        deliver: Deliver,
        properties: BasicProperties,
        body: Vec<u8>,
    ) {
        let heard = Heard {
            queue: self.number,
            routing_key: deliver.routing_key().clone(),
            user: recipient(&body),
            timestamp: properties.timestamp(),
            at: SystemTime::now(),
        };
        // An error means that listening is over; without an acknowledgement, deliveries stop.
        if self.sender.send(heard).await.is_ok() {
            let ack = BasicAckArguments::new(deliver.delivery_tag(), false);
            let _ = channel.basic_ack(ack).await;
        }
    }
}

/// The user that the body names, with its tenant.
fn recipient(body: &[u8]) -> Option<User> {
    let update = Update::decode(body).ok()?;
    let tenant = update.tenant_id().map(TenantId::parse);
    Some(User {
        id: UserId::parse(update.user_id()).ok()?,
        tenant: tenant.transpose().ok()?,
    })
}
