//! Updates in the documented original shape (since 2025-10-31): keys of three words,
//! flat bodies with an `eventType`.

use serde_json::{Value, json};

use super::{SAMPLE_DIALOG, merged, object_id, timestamp};
use crate::user::{TenantId, UserId};

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

/// The routing key of an event for a user, as the original generation built it.
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
