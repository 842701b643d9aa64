//! The wire model of one Chat3 update: decodes a body, and holds what the gateway reads of
//! it. Pure: no I/O, no state.
//!
//! - `recipient`: whether the update may be shown to a user ([`Update::check_recipient`])
//! - `events`: which Socket.IO events the update becomes
//! - `envelope`: other shapes in which it can be sent ([`Update::rewritten`])
//!
//! Chat3 has published six generations of bodies. The gateway reads only the few fields
//! that all of them need, and forwards the text as it came. Decoding borrows from the
//! body: no tree is built, and nothing is written again unless the operator wants another
//! shape.
//!
//! Invariant: an [`Update`] that exists is one JSON object of bounded nesting with one
//! `userId`.

mod envelope;
mod events;
mod nesting;
mod recipient;

#[cfg(test)]
mod fixtures;

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::{
    envelope::Envelope,
    events::{
        CHAT3_UPDATE, DIALOG_UPDATE, MESSAGE_NEW, MESSAGE_UPDATE, SpecialisedEvent, TYPING_UPDATE,
    },
    nesting::MAX_NESTING,
};

/// Largest body that is forwarded, in bytes. Chat3's largest known body (a
/// 10,000-character Cyrillic message) has about 21 KB. 1 MiB leaves room for generous
/// metadata, and still bounds what one update may occupy in a socket's buffer.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Why a body is not delivered. [`Rejection::label`] is the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("the body is empty")]
    Empty,
    #[error("the body is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    #[error("the body is nested deeper than {MAX_NESTING} levels")]
    TooDeep,
    #[error("the body is not JSON")]
    NotJson,
    #[error("the body is not an update: no object with a string userId")]
    NotAnUpdate,
    #[error("the update is for another user")]
    ForeignUser,
    #[error("the update is for another tenant")]
    ForeignTenant,
}

impl Rejection {
    /// The reason as a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLarge => "too_large",
            Self::TooDeep => "too_deep",
            Self::NotJson => "not_json",
            Self::NotAnUpdate => "not_an_update",
            Self::ForeignUser => "foreign_user",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}

/// One decoded update, which borrows from its body.
#[derive(Debug)]
pub struct Update<'a> {
    /// The whole body, as published.
    pub body: &'a RawValue,
    user_id: Text<'a>,
    tenant_id: Option<Text<'a>>,
    event_type: Option<Text<'a>>,
    update_type: Option<Text<'a>>,
    data: Option<&'a RawValue>,
}

/// Tells an update from all others, by the fields of Chat3's own unique index.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Key<'a> {
    tenant_id: Option<&'a Text<'a>>,
    event_id: Text<'a>,
    user_id: &'a Text<'a>,
    update_type: &'a Text<'a>,
    entity_id: Option<Text<'a>>,
}

impl<'a> Update<'a> {
    /// Decodes a body of any of Chat3's generations.
    pub fn decode(body: &'a [u8]) -> Result<Self, Rejection> {
        if body.is_empty() {
            return Err(Rejection::Empty);
        }
        if body.len() > MAX_BODY_BYTES {
            return Err(Rejection::TooLarge);
        }
        let text = std::str::from_utf8(body).map_err(|_| Rejection::NotJson)?;
        let body: &RawValue = serde_json::from_str(text).map_err(|_| Rejection::NotJson)?;
        // serde would also read a struct from an array, field by field.
        if !body.get().starts_with('{') {
            return Err(Rejection::NotAnUpdate);
        }
        if nesting::is_too_deep(body.get()) {
            return Err(Rejection::TooDeep);
        }
        // A repeated key is an error here, while a browser would take its last value: an
        // ambiguous `userId` must not pass the check by its first one.
        let read: Read<'a> =
            serde_json::from_str(body.get()).map_err(|_| Rejection::NotAnUpdate)?;
        let event_type = read
            .event_type
            .or(read.source_event_type)
            .or_else(|| context_event_type(read.data?));
        Ok(Self {
            body,
            user_id: read.user_id,
            tenant_id: read.tenant_id,
            event_type,
            update_type: read.update_type,
            data: read.data,
        })
    }

    /// The domain event, e.g. `message.create`; empty if the body names none.
    pub fn event_type(&self) -> &str {
        self.event_type.as_ref().map_or("", Text::as_str)
    }

    /// What identifies the update since 2026-05-31. Chat3 before 0.0.87 may publish an
    /// update twice. `None` for updates of earlier generations, which may say something new
    /// under the same ids.
    pub fn key(&self) -> Option<Key<'_>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Ids<'a> {
            #[serde(borrow)]
            event_id: Text<'a>,
            #[serde(borrow)]
            entity_id: Option<Text<'a>>,
        }
        let update_type = self.update_type.as_ref()?;
        let ids: Ids<'_> = serde_json::from_str(self.body.get()).ok()?;
        Some(Key {
            tenant_id: self.tenant_id.as_ref(),
            event_id: ids.event_id,
            user_id: &self.user_id,
            update_type,
            entity_id: ids.entity_id,
        })
    }
}

/// The fields that are read. The event field was renamed over the generations:
/// `eventType`, then `sourceEventType`, for a while only `data.context.eventType`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read<'a> {
    #[serde(borrow)]
    user_id: Text<'a>,
    #[serde(borrow)]
    tenant_id: Option<Text<'a>>,
    #[serde(borrow)]
    event_type: Option<Text<'a>>,
    #[serde(borrow)]
    source_event_type: Option<Text<'a>>,
    #[serde(borrow)]
    update_type: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// A string that borrows from the body unless it contains escapes. (serde borrows for a
/// bare `Cow`, but not for one inside an `Option`; hence the newtype.)
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    fn as_str(&self) -> &str {
        &self.0
    }
}

/// `data.context.eventType`.
fn context_event_type(data: &RawValue) -> Option<Text<'_>> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        context: Context<'a>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Context<'a> {
        #[serde(borrow)]
        event_type: Text<'a>,
    }
    let data: Data<'_> = serde_json::from_str(data.get()).ok()?;
    Some(data.context.event_type)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn rejection(body: impl AsRef<[u8]>) -> Rejection {
        Update::decode(body.as_ref()).unwrap_err()
    }

    #[test]
    fn ambiguous_recipients_are_no_updates() {
        for body in [
            r#"{"userId":"a","userId":"b"}"#,
            r#"{"userId":"a","\u0075serId":"b"}"#,
            r#"{"userId":"a","tenantId":"x","tenantId":"y"}"#,
            r#"["t","a"]"#,
            r#"{"userId":["a"]}"#,
        ] {
            assert_eq!(rejection(body), Rejection::NotAnUpdate, "{body}");
        }
    }

    #[test]
    fn a_repetition_is_told_by_its_key() {
        let body = json!({"tenantId": "t", "userId": "u", "eventId": "e", "entityId": "m",
            "updateType": "update.message", "createdAt": "1", "data": {}});
        let with = |field: &str, value: Value| {
            let mut other = body.clone();
            other[field] = value;
            other.to_string()
        };
        let first = body.to_string();
        let first = Update::decode(first.as_bytes()).unwrap();
        let has_key_of_first = |other: &str| {
            let other = Update::decode(other.as_bytes()).unwrap();
            other.key().is_some() && other.key() == first.key()
        };
        assert!(has_key_of_first(&with("createdAt", json!("2"))));
        assert!(has_key_of_first(&with("data", json!({"member": {}}))));
        for field in ["tenantId", "eventId", "entityId", "updateType"] {
            assert!(!has_key_of_first(&with(field, json!("x"))), "{field}");
        }
        // Without these fields, no update has a key.
        assert!(!has_key_of_first(&with("eventId", Value::Null)));
        assert!(!has_key_of_first(&with("updateType", Value::Null)));
    }

    #[test]
    fn nesting_is_limited_and_strings_do_not_count() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!(r#"{{"userId":"u","s":"\"[[[[","data":{open}{close}}}"#)
        };
        assert!(Update::decode(nested(MAX_NESTING - 1).as_bytes()).is_ok());
        assert_eq!(rejection(nested(MAX_NESTING)), Rejection::TooDeep);
        assert_eq!(rejection(nested(50_000)), Rejection::TooDeep);
    }

    #[test]
    fn a_body_that_is_no_json_is_rejected() {
        assert_eq!(rejection(""), Rejection::Empty);
        assert_eq!(rejection([0xff]), Rejection::NotJson);
        assert_eq!(rejection(" "), Rejection::NotJson);
        assert_eq!(rejection("{} {}"), Rejection::NotJson);
        assert_eq!(
            rejection(vec![b' '; MAX_BODY_BYTES + 1]),
            Rejection::TooLarge
        );
    }

    #[test]
    fn a_body_of_the_largest_size_passes() {
        let empty = r#"{"userId":"u","x":""}"#.len();
        let body =
            |bytes: usize| format!(r#"{{"userId":"u","x":"{}"}}"#, "x".repeat(bytes - empty));
        assert!(Update::decode(body(MAX_BODY_BYTES).as_bytes()).is_ok());
        assert_eq!(rejection(body(MAX_BODY_BYTES + 1)), Rejection::TooLarge);
    }

    #[test]
    fn rejections_have_the_labels_of_the_metric() {
        for (rejection, label) in [
            (Rejection::Empty, "empty"),
            (Rejection::TooLarge, "too_large"),
            (Rejection::TooDeep, "too_deep"),
            (Rejection::NotJson, "not_json"),
            (Rejection::NotAnUpdate, "not_an_update"),
            (Rejection::ForeignUser, "foreign_user"),
            (Rejection::ForeignTenant, "foreign_tenant"),
        ] {
            assert_eq!(rejection.label(), label);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Update::decode(&body);
        }
    }
}
