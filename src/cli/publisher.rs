//! Updates as Chat3 publishes them, for the `publish` command and the development mode.
//! Nothing here runs in production.
//!
//! A [`Generation`] selects the routing keys and bodies: [`original`] has those that were
//! first documented, [`current`] those of today.

pub mod current;
pub mod original;

use std::{
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use amqprs::{
    BasicProperties,
    channel::{BasicPublishArguments, ConfirmSelectArguments, ExchangeDeclareArguments},
};
use anyhow::Context;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::{
    broker::rabbitmq::{self, ACCESS_REFUSED, LinkError},
    cli::command_line::{Generation, PublishArgs},
    user::{TenantId, UserId},
};

impl Generation {
    /// The event types of this generation, in the order of its documentation.
    pub fn types(self) -> Vec<&'static str> {
        match self {
            Self::Current => current::TYPES.into(),
            Self::V0_0_77 => current::TYPES_OF_0_0_77.into(),
            Self::Original => {
                let documented = original::DOCUMENTED_TYPES.into_iter();
                documented.chain(original::OTHER_TYPES).collect()
            }
        }
    }

    /// Data that fits `event_type`.
    pub fn sample_data(self, event_type: &str) -> Value {
        match self {
            Self::Current | Self::V0_0_77 => current::sample_data(event_type),
            Self::Original => original::sample_data(event_type),
        }
    }

    /// A whole update for `user`, with fresh ids and times.
    pub fn update(self, user: &UserId, tenant: &TenantId, event_type: &str, data: Value) -> Value {
        match self {
            Self::Current | Self::V0_0_77 => current::update(user, tenant, event_type, data),
            Self::Original => original::update(user, tenant, event_type, data),
        }
    }

    /// The routing key of an event for `user`.
    pub fn routing_key(self, user: &UserId, tenant: &TenantId, event_type: &str) -> String {
        match self {
            Self::Current => current::routing_key(user, tenant, event_type),
            Self::V0_0_77 => current::routing_key_of_0_0_77(user, event_type),
            Self::Original => original::routing_key(user, event_type),
        }
    }
}

/// Longest time for TCP connect, TLS and AMQP handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time until RabbitMQ has taken an update.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

const NOT_TAKEN: &str = "RabbitMQ does not take what is published (it takes nothing while it is short of memory or disk)";

const HEARTBEAT: Duration = Duration::from_secs(10);

const SAMPLE_DIALOG: &str = "dlg_9x2k7m4p";

fn merged(base: Value, extra: Value) -> Value {
    let object = |value: Value| match value {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    let mut base = object(base);
    base.extend(object(extra));
    Value::Object(base)
}

/// 24 hexadecimal digits, like an `ObjectId` of MongoDB.
fn object_id() -> String {
    format!("{:024x}", rand::random::<u128>() >> 32)
}

fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// The result of one `publish`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// How many were published.
    pub count: u64,
    /// How many of them reached no queue.
    pub unrouted: u64,
    /// The routing key of all of them.
    pub routing_key: String,
}

/// Publishes as the arguments of the `publish` command say.
///
/// # Errors
/// When RabbitMQ cannot be reached or refuses.
pub async fn publish(args: &PublishArgs) -> anyhow::Result<Published> {
    let address = &args.rabbitmq.url;
    let certificates = &args.rabbitmq.tls;
    let name = "chat3-gateway publish";
    let opening =
        rabbitmq::open_connection(address, certificates, name, HEARTBEAT, CONNECT_TIMEOUT);
    let (connection, _) = opening
        .await
        .with_context(|| format!("cannot connect to RabbitMQ at {address}"))?;
    let (cancelled, _no_consumers) = mpsc::unbounded_channel();
    let on = rabbitmq::open_channel(&connection, None, &cancelled);
    let on = tokio::time::timeout(CONNECT_TIMEOUT, on).await;
    let on = on.context("RabbitMQ does not answer")??;
    let channel = on.channel.clone();
    let exchange = &args.rabbitmq.exchange;
    // Chat3 declares the exchange the same way: a repeated declaration is no conflict.
    let declare = ExchangeDeclareArguments::new(exchange, "topic")
        .durable(true)
        .finish();
    let declaring = channel.clone();
    let declared = on.ask(CONNECT_TIMEOUT, async move {
        declaring.exchange_declare(declare).await
    });
    declared.await.map_err(|error| match error {
        // The advice of the error itself is for the gateway's login, which has no right to publish.
        LinkError::Closed(close) if close.code == ACCESS_REFUSED => anyhow::anyhow!(
            "cannot declare the exchange {exchange}: {close}; publish needs configure and write \
             on it: use Chat3's own login in RABBITMQ_URL"
        ),
        error => {
            anyhow::Error::new(error).context(format!("cannot declare the exchange {exchange}"))
        }
    })?;
    let confirming = channel.clone();
    on.ask(CONNECT_TIMEOUT, async move {
        let confirm = ConfirmSelectArguments::default();
        confirming.confirm_select(confirm).await
    })
    .await?;
    let generation = args.generation;
    let routing_key = match &args.routing_key {
        Some(key) => key.clone(),
        None => generation.routing_key(&args.user, &args.tenant, &args.event),
    };
    let pause = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let mut ticks = pause.map(tokio::time::interval);
    for _ in 0..args.count {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let data = args.data.clone();
        let data = data.unwrap_or_else(|| generation.sample_data(&args.event));
        let update = generation.update(&args.user, &args.tenant, &args.event, data);
        let properties = BasicProperties::default()
            .with_content_type("application/json")
            .with_persistence(true)
            .with_timestamp(unix_milliseconds())
            .finish();
        // Mandatory: RabbitMQ returns an update that reaches no queue.
        let arguments = BasicPublishArguments::new(exchange, &routing_key)
            .mandatory(true)
            .finish();
        let publish = channel.basic_publish(properties, update.to_string().into_bytes(), arguments);
        let published = tokio::time::timeout(PUBLISH_TIMEOUT, publish).await;
        published.context(NOT_TAKEN)??;
    }
    // RabbitMQ handles a channel in order: when it answers the close, it has received every
    // update and sent back those that it returns.
    let closing = channel.clone();
    let closed = on.ask(PUBLISH_TIMEOUT, async move { closing.close().await });
    closed.await.context(NOT_TAKEN)?;
    let _ = tokio::time::timeout(PUBLISH_TIMEOUT, connection.close()).await;
    Ok(Published {
        count: args.count,
        unrouted: on.returned.load(Ordering::Relaxed),
        routing_key,
    })
}

fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
