//! Updates as Chat3 publishes them: for the `publish` command and the
//! development mode. Nothing here runs while the gateway serves production.
//!
//! Bodies have the documented original shape (keys `user.{userId}.{slug}`);
//! [`current`] has today's.

pub mod current;

use std::time::{Duration, SystemTime};

use amqprs::{
    BasicProperties,
    channel::{BasicPublishArguments, ConfirmSelectArguments, ExchangeDeclareArguments},
};
use anyhow::Context;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::{
    config::PublishArgs,
    rabbitmq,
    user::{TenantId, UserId},
};

/// The documented update types, in the order of the documentation.
pub const DOCUMENTED_TYPES: [&str; 13] = [
    "message.create",
    "message.update",
    "message.delete",
    "message.reaction.add",
    "message.reaction.update",
    "message.reaction.remove",
    "message.status.create",
    "message.status.update",
    "dialog.create",
    "dialog.update",
    "dialog.delete",
    "dialog.member.add",
    "dialog.member.remove",
];

/// Further types that Chat3 has published.
pub const OTHER_TYPES: [&str; 3] = ["dialog.typing", "dialog.member.update", "user.update"];

/// The routing key of an event for a user, as Chat3's first generation built it.
pub fn routing_key(user: &UserId, event_type: &str) -> String {
    let slug = match event_type {
        "dialog.typing" => "typing",
        "dialog.member.update" => "dialogmemberupdate",
        other if other.starts_with("message.") => "messageupdate",
        other if other.starts_with("dialog.") => "dialogupdate",
        _ => "userupdate",
    };
    format!("user.{user}.{slug}")
}

/// A whole update for `user`, with fresh ids and times.
pub fn update(user: &UserId, tenant: &TenantId, event_type: &str, data: Value) -> Value {
    let now = timestamp();
    let dialog_id = data.get("dialogId").cloned();
    let entity_id = data.get("_id").cloned();
    json!({
        "_id": object_id(),
        "tenantId": tenant.as_str(),
        "userId": user.as_str(),
        "dialogId": dialog_id.unwrap_or_else(|| json!(SAMPLE_DIALOG)),
        "entityId": entity_id.unwrap_or_else(|| json!(object_id())),
        "eventId": object_id(),
        "eventType": event_type,
        "data": data,
        "published": true,
        "publishedAt": now,
        "createdAt": now,
    })
}

/// Limit of TCP connect, TLS and AMQP handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const HEARTBEAT: Duration = Duration::from_secs(10);

const SAMPLE_DIALOG: &str = "dlg_9x2k7m4p";

/// Data that fits `event_type`: a message, a dialog, or what else it is about.
pub fn sample_data(event_type: &str) -> Value {
    let mut data = match event_type {
        "dialog.member.add" | "dialog.member.remove" | "dialog.member.update" => dialog(json!({
            "member": {"userId": "usr_x7m2n4k9", "role": "member", "joinedAt": timestamp()},
        })),
        "dialog.typing" => dialog(json!({
            "typing": {"userId": "usr_x7m2n4k9", "expiresInMs": 5000},
        })),
        other if other.starts_with("dialog.") => dialog(json!({})),
        "message.create" => message(json!({})),
        "message.update" => message(json!({"content": "Hello! (edited)", "isEdited": true})),
        "message.delete" => message(json!({"isDeleted": true, "deletedAt": timestamp()})),
        "message.reaction.add" | "message.reaction.update" => message(json!({
            "reactionUpdate": {"userId": "usr_x7m2n4k9", "reaction": "👍"},
            "reactionCounts": {"👍": 1},
        })),
        "message.reaction.remove" => message(json!({
            "reactionUpdate": {"userId": "usr_x7m2n4k9", "reaction": "👍"},
            "reactionCounts": {},
        })),
        "message.status.create" => message(json!({
            "statusUpdate": {"userId": "usr_x7m2n4k9", "status": "delivered"},
        })),
        "message.status.update" => message(json!({
            "statusUpdate": {"userId": "usr_x7m2n4k9", "status": "read"},
        })),
        other if other.starts_with("message.") => message(json!({})),
        _ => json!({"userId": "usr_x7m2n4k9", "name": "Carl Johnson"}),
    };
    if event_type == "dialog.delete" {
        data["isDeleted"] = json!(true);
    }
    data
}

fn message(extra: Value) -> Value {
    merged(
        json!({
            "_id": object_id(),
            "dialogId": SAMPLE_DIALOG,
            "senderId": "usr_x7m2n4k9",
            "type": "text",
            "content": "Hello!",
            "createdAt": timestamp(),
            "meta": {"channelType": "whatsapp"},
        }),
        extra,
    )
}

fn dialog(extra: Value) -> Value {
    merged(
        json!({
            "_id": SAMPLE_DIALOG,
            "dialogId": SAMPLE_DIALOG,
            "name": "Team chat",
            "createdBy": "usr_x7m2n4k9",
            "createdAt": timestamp(),
            "meta": {},
        }),
        extra,
    )
}

fn merged(base: Value, extra: Value) -> Value {
    let object = |value: Value| match value {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    let mut base = object(base);
    base.extend(object(extra));
    Value::Object(base)
}

/// 24 hexadecimal digits, like MongoDB's.
fn object_id() -> String {
    format!("{:024x}", rand::random::<u128>() >> 32)
}

fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Publishes as the `publish` command was told, and returns how many updates.
///
/// # Errors
/// When RabbitMQ cannot be reached or refuses.
pub async fn publish(args: &PublishArgs) -> anyhow::Result<u64> {
    let address = &args.rabbitmq.url;
    let certificates = &args.rabbitmq.tls;
    let connection =
        rabbitmq::open_connection(address, certificates, "chat3-gateway publish", HEARTBEAT);
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, connection)
        .await
        .context("no answer in time")
        .and_then(|opened| Ok(opened?))
        .with_context(|| format!("cannot connect to RabbitMQ at {address}"))?;
    let (cancelled, _no_consumers) = mpsc::unbounded_channel();
    let on = rabbitmq::open_channel(&connection, None, &cancelled).await?;
    let channel = on.channel.clone();
    let exchange = &args.rabbitmq.exchange;
    // As Chat3 declares it: the same declaration twice is no conflict.
    let declare = ExchangeDeclareArguments::new(exchange, "topic")
        .durable(true)
        .finish();
    let declaring = channel.clone();
    on.ask(CONNECT_TIMEOUT, async move {
        declaring.exchange_declare(declare).await
    })
    .await
    .with_context(|| format!("cannot declare the exchange {exchange}"))?;
    channel
        .confirm_select(ConfirmSelectArguments::default())
        .await?;
    let routing_key = match &args.routing_key {
        Some(key) => key.clone(),
        None => routing_key(&args.user, &args.event),
    };
    let pause = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let mut ticks = pause.map(tokio::time::interval);
    for _ in 0..args.count {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let data = args.data.clone();
        let data = data.unwrap_or_else(|| sample_data(&args.event));
        let update = update(&args.user, &args.tenant, &args.event, data);
        let properties = BasicProperties::default()
            .with_content_type("application/json")
            .with_persistence(true)
            .with_timestamp(unix_milliseconds())
            .finish();
        let arguments = BasicPublishArguments::new(exchange, &routing_key);
        channel
            .basic_publish(properties, update.to_string().into_bytes(), arguments)
            .await?;
    }
    // RPCs are answered in order: what was published before this one has arrived.
    channel.close().await?;
    connection.close().await?;
    Ok(args.count)
}

fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::Update;

    #[test]
    fn samples_are_updates_that_the_gateway_delivers() {
        let user = UserId::parse("usr_a").unwrap();
        let tenant = TenantId::parse("tnt_default").unwrap();
        for event_type in DOCUMENTED_TYPES.into_iter().chain(OTHER_TYPES) {
            let body = update(&user, &tenant, event_type, sample_data(event_type)).to_string();
            let update = Update::decode(body.as_bytes()).unwrap();
            assert_eq!(update.event_type(), event_type);
            let specialised = update.specialised_event().map(|event| event.name);
            let expected = match event_type {
                "message.create" => Some("message:new"),
                other if other.starts_with("message.") => Some("message:update"),
                other if other.starts_with("dialog.") => Some("dialog:update"),
                _ => None,
            };
            assert_eq!(specialised, expected, "{event_type}");
        }
    }
}
