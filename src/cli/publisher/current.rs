//! Updates as today's Chat3 publishes them (0.0.86, since 2026-09-28), and as Chat3 has
//! published them since 0.0.77 (2026-05-31), when routing keys had no tenant. Chat3 turns a
//! domain event into several updates; this module makes the one that describes the event.

use serde_json::{Value, json};

use super::{SAMPLE_DIALOG, merged, object_id};
use crate::user::{TenantId, UserId};

const SENDER: &str = "usr_x7m2n4k9";

/// The domain events that reach frontends.
pub const TYPES: [&str; 14] = [
    "message.create",
    "message.changed",
    "message.deleted",
    "message.reaction.changed",
    "message.status.changed",
    "dialog.create",
    "dialog.changed",
    "dialog.delete",
    "dialog.member.add",
    "dialog.member.changed",
    "dialog.member.remove",
    "dialog.typing",
    "user.add",
    "user.changed",
];

/// The domain events of 0.0.77, which did not publish deletions.
pub const TYPES_OF_0_0_77: [&str; 13] = [
    "message.create",
    "message.changed",
    "message.reaction.changed",
    "message.status.changed",
    "dialog.create",
    "dialog.changed",
    "dialog.delete",
    "dialog.member.add",
    "dialog.member.changed",
    "dialog.member.remove",
    "dialog.typing",
    "user.add",
    "user.changed",
];

/// `update.{dialog|user}.{tenantId}.{userType}.{userId}.{message|dialog|user}`
pub fn routing_key(user: &UserId, tenant: &TenantId, event_type: &str) -> String {
    let (scope, family) = (scope(event_type), family(event_type));
    format!("update.{scope}.{tenant}.user.{user}.{family}")
}

/// `update.{dialog|user}.{userType}.{userId}.{message|dialog|user}`
pub fn routing_key_of_0_0_77(user: &UserId, event_type: &str) -> String {
    let (scope, family) = (scope(event_type), family(event_type));
    format!("update.{scope}.user.{user}.{family}")
}

/// A whole update for `user`, with a fresh event id. There is no `_id`.
pub fn update(user: &UserId, tenant: &TenantId, event_type: &str, data: Value) -> Value {
    let entity_id = data.pointer("/context/entityId").cloned();
    json!({
        "tenantId": tenant.as_str(),
        "userId": user.as_str(),
        "entityId": entity_id.unwrap_or_else(|| json!(user.as_str())),
        "eventId": format!("evt_{:032x}", rand::random::<u128>()),
        "sourceEventType": event_type,
        "updateType": format!("update.{}", family(event_type)),
        "data": data,
        "published": false,
        "createdAt": now(),
    })
}

/// Data that fits `event_type`: sections, and the context that names them.
pub fn sample_data(event_type: &str) -> Value {
    let (section, about, updated, entity) = match event_type {
        "dialog.typing" => {
            let typing = json!({"userId": SENDER, "expiresInMs": 5000});
            ("typing", typing, "typing", SAMPLE_DIALOG.to_owned())
        }
        other if other.starts_with("dialog.member.") => {
            let member = json!({"userId": SENDER, "state": {"unreadCount": 0}});
            ("member", member, "member", SAMPLE_DIALOG.to_owned())
        }
        _ if family(event_type) == "message" => {
            let id = format!("msg_{}", &object_id()[..20]);
            let (extra, updated) = message_change(event_type);
            let base = json!({
                "messageId": id,
                "dialogId": SAMPLE_DIALOG,
                "senderId": SENDER,
                "type": "internal.text",
                "content": "Hello!",
                "meta": {},
            });
            ("message", merged(base, extra), updated, id)
        }
        _ if family(event_type) == "dialog" => {
            let context = context("dialog", "dialog", SAMPLE_DIALOG);
            return json!({"dialog": dialog(), "context": context});
        }
        _ => {
            let user = json!({
                "userId": SENDER,
                "type": "user",
                "meta": {"displayName": "Carl Johnson"},
            });
            let context = context("user", "user.meta", SENDER);
            return json!({"user": user, "context": context});
        }
    };
    let context = context(section, updated, &entity);
    json!({"dialog": dialog(), section: about, "context": context})
}

fn scope(event_type: &str) -> &'static str {
    match family(event_type) {
        "user" => "user",
        _ => "dialog",
    }
}

fn family(event_type: &str) -> &'static str {
    match event_type.split('.').next() {
        Some("message") => "message",
        Some("dialog" | "pack") => "dialog",
        _ => "user",
    }
}

fn message_change(event_type: &str) -> (Value, &'static str) {
    match event_type {
        "message.changed" => {
            let edited = json!({
                "content": "Hello! (edited)",
                "edited": true,
                "editedAt": now(),
                "editedBy": SENDER,
            });
            (edited, "message.content")
        }
        "message.deleted" => {
            let deleted = json!({"deleted": true, "deletedAt": now(), "deletedBy": SENDER});
            (deleted, "message.deleted")
        }
        "message.reaction.changed" => {
            let set = json!([{"reaction": "👍", "count": 1, "me": false}]);
            let change = json!({"userId": SENDER, "reaction": "👍", "reactionSet": set});
            (json!({"reactionUpdate": change}), "message.reaction")
        }
        "message.status.changed" => {
            let change = json!({"userId": SENDER, "status": "read", "oldStatus": "unread"});
            (json!({"statusUpdate": change}), "message.status")
        }
        _ => (json!({}), "message"),
    }
}

fn dialog() -> Value {
    json!({
        "dialogId": SAMPLE_DIALOG,
        "createdAt": now(),
        "meta": {"title": "Team chat"},
        "stats": {"unreadCount": 0},
    })
}

fn context(section: &str, updated: &str, entity: &str) -> Value {
    let sections = match section {
        "dialog" | "user" => json!([section]),
        other => json!(["dialog", other]),
    };
    json!({
        "version": 4,
        "entityId": entity,
        "includedSections": sections,
        "updatedFields": [updated],
    })
}

/// Milliseconds with a fraction, as text.
fn now() -> String {
    format!("{}.000000", super::unix_milliseconds())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::Update;

    #[test]
    fn samples_are_updates_that_the_gateway_delivers() {
        let user = UserId::parse("usr_a").unwrap();
        let tenant = TenantId::parse("tnt_default").unwrap();
        for event_type in TYPES {
            let body = update(&user, &tenant, event_type, sample_data(event_type)).to_string();
            let update = Update::decode(body.as_bytes()).unwrap();
            assert_eq!(update.event_type(), event_type);
            let event = update.specialised_event().map(|event| event.name);
            let expected = match family(event_type) {
                "message" if event_type == "message.create" => Some("message:new"),
                "message" => Some("message:update"),
                "dialog" => Some("dialog:update"),
                _ => None,
            };
            assert_eq!(event, expected, "{event_type}");
        }
    }
}
