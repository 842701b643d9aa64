//! Which Socket.IO events an update becomes, by name and payload. Pure.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Text, Update};

/// Carries every update, whole.
pub const CHAT3_UPDATE: &str = "chat3:update";
/// Carries `update.data` of a `message.create`.
pub const MESSAGE_NEW: &str = "message:new";
/// Carries every other `message.*` update, whole.
pub const MESSAGE_UPDATE: &str = "message:update";
/// Carries every `dialog.*` update, whole.
pub const DIALOG_UPDATE: &str = "dialog:update";
/// Carries who is typing, in [`Envelope::Sections`](super::Envelope::Sections) only.
pub const TYPING_UPDATE: &str = "typing:update";

/// The specialised event that follows `chat3:update`, with its payload.
#[derive(Debug, Clone)]
pub struct SpecialisedEvent<'a> {
    pub name: &'static str,
    pub payload: Cow<'a, RawValue>,
}

impl<'a> Update<'a> {
    /// The event that the first documentation has for this update.
    ///
    /// In the current generation one domain event yields several updates, told
    /// apart by `updateType`; each family feeds its own event and no other.
    pub fn specialised_event(&self) -> Option<SpecialisedEvent<'a>> {
        let event_type = self.event_type();
        let (is_message, is_dialog) = match self.family() {
            None => (
                event_type.starts_with("message."),
                event_type.starts_with("dialog."),
            ),
            Some("update.message") => (event_type.starts_with("message."), false),
            Some("update.dialog") => (false, true),
            Some(_) => (false, false),
        };
        if is_dialog {
            return Some(SpecialisedEvent {
                name: DIALOG_UPDATE,
                payload: Cow::Borrowed(self.body),
            });
        }
        if !is_message {
            return None;
        }
        if event_type == "message.create" {
            // Without data there is no message to show; `chat3:update` is sent all the same.
            return self.data.map(|data| SpecialisedEvent {
                name: MESSAGE_NEW,
                payload: Cow::Borrowed(data),
            });
        }
        Some(SpecialisedEvent {
            name: MESSAGE_UPDATE,
            payload: Cow::Borrowed(self.body),
        })
    }

    /// The update's family within its domain event (`updateType`), since 2026-05-31.
    pub(super) fn family(&self) -> Option<&str> {
        self.update_type.as_ref().map(Text::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::update::fixtures;

    fn events(body: &Value) -> Vec<&'static str> {
        let body = body.to_string();
        let update = Update::decode(body.as_bytes()).unwrap();
        let specialised = update.specialised_event().map(|event| event.name);
        [CHAT3_UPDATE].into_iter().chain(specialised).collect()
    }

    #[test]
    fn every_generations_updates_become_the_documented_events() {
        let checked = fixtures::each(|name, fixture| {
            assert_eq!(json!(events(&fixture["body"])), fixture["emits"], "{name}");
        });
        assert!(checked > 90, "{checked}");
    }

    #[test]
    fn the_first_event_field_present_names_the_event() {
        let data = json!({"context": {"eventType": "dialog.create"}});
        let body = |fields: Value| {
            let mut body = json!({"userId": "u", "data": data});
            let fields = fields.as_object().unwrap().clone();
            body.as_object_mut().unwrap().extend(fields);
            body
        };
        let message = body(json!({"eventType": "message.update", "sourceEventType": "x"}));
        assert_eq!(events(&message), [CHAT3_UPDATE, MESSAGE_UPDATE]);
        let source = body(json!({"sourceEventType": "message.create"}));
        assert_eq!(events(&source), [CHAT3_UPDATE, MESSAGE_NEW]);
        assert_eq!(events(&body(json!({}))), [CHAT3_UPDATE, DIALOG_UPDATE]);
        assert_eq!(events(&json!({"userId": "u"})), [CHAT3_UPDATE]);
        assert_eq!(events(&json!({"userId": "u", "data": 5})), [CHAT3_UPDATE]);
        // There is no message to show.
        let empty = json!({"userId": "u", "eventType": "message.create"});
        assert_eq!(events(&empty), [CHAT3_UPDATE]);
    }
}
