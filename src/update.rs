//! The wire model of one Chat3 update: what the gateway reads of a body, and
//! which Socket.IO events the body becomes. Pure: no I/O, no state.
//!
//! Chat3 has published six generations of bodies; the gateway reads only the
//! few fields that all of them need and forwards the text as it came. Decoding
//! borrows from the body; nothing is built into a tree, and nothing written again
//! but where the operator wants another shape ([`Update::rewritten`]).
//!
//! Invariant: an [`Update`] that exists is one JSON object of bounded nesting
//! with a `userId`. Whether it may be shown to a user is [`Update::check_recipient`].

mod envelope;

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::envelope::Envelope;
use crate::user::User;

/// Carries every update, whole.
pub const CHAT3_UPDATE: &str = "chat3:update";
/// Carries `update.data` of a `message.create`.
pub const MESSAGE_NEW: &str = "message:new";
/// Carries every other `message.*` update, whole.
pub const MESSAGE_UPDATE: &str = "message:update";
/// Carries every `dialog.*` update, whole.
pub const DIALOG_UPDATE: &str = "dialog:update";
/// Carries who is typing, in [`Envelope::Sections`] alone.
pub const TYPING_UPDATE: &str = "typing:update";

/// Largest body that is forwarded, in bytes. Chat3's largest known body (a
/// 10,000-character Cyrillic message) has about 21 KB; 1 MiB leaves room for
/// generous metadata and still bounds what one update may occupy in a socket's buffer.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Deepest nesting that is forwarded: `serde_json`'s own recursion limit, and a
/// depth that every client's JSON parser is known to survive.
pub const MAX_NESTING: usize = 128;

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

/// One decoded update, borrowing from the body it was decoded from.
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

/// Tells an update from all others, as Chat3's own unique index does.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Key<'a> {
    tenant_id: Option<&'a Text<'a>>,
    event_id: Text<'a>,
    user_id: &'a Text<'a>,
    update_type: &'a Text<'a>,
    entity_id: Option<Text<'a>>,
}

/// The specialised event that accompanies `chat3:update`, with its payload.
#[derive(Debug, Clone)]
pub struct SpecialisedEvent<'a> {
    pub name: &'static str,
    pub payload: Cow<'a, RawValue>,
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
        // serde would also fill a struct from an array, field by field.
        if !body.get().starts_with('{') {
            return Err(Rejection::NotAnUpdate);
        }
        if openings(body.get()) > MAX_NESTING && nesting(body.get()) > MAX_NESTING {
            return Err(Rejection::TooDeep);
        }
        // A repeated key is an error here, while a browser would take its last
        // value: an ambiguous `userId` must not pass the check on the first.
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

    /// The domain event, e.g. `message.create`; empty when the body names none.
    pub fn event_type(&self) -> &str {
        self.event_type.as_ref().map_or("", Text::as_str)
    }

    /// The id of the user whom it is for, as published.
    pub fn user_id(&self) -> &str {
        self.user_id.as_str()
    }

    /// The tenant of that user, if the body names one.
    pub fn tenant_id(&self) -> Option<&str> {
        self.tenant_id.as_ref().map(Text::as_str)
    }

    /// What Chat3 has one update of since 2026-05-31; before 0.0.87 it may publish
    /// that twice. `None` for updates of earlier generations: theirs may say
    /// something new under the same names.
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

    /// Refuses an update that is not `user`'s own. Routing keys alone do not
    /// decide this: they carry no tenant, and ids may contain dots.
    pub fn check_recipient(&self, user: &User) -> Result<(), Rejection> {
        if self.user_id.as_str() != user.id.as_str() {
            return Err(Rejection::ForeignUser);
        }
        match (&user.tenant, &self.tenant_id) {
            (None, _) => Ok(()),
            (Some(expected), Some(actual)) if expected.as_str() == actual.as_str() => Ok(()),
            (Some(_), _) => Err(Rejection::ForeignTenant),
        }
    }

    /// The family of the update within its domain event, since 2026-05-31.
    fn family(&self) -> Option<&str> {
        self.update_type.as_ref().map(Text::as_str)
    }

    /// The event to send after `chat3:update` where updates are sent in this shape, if
    /// this update has one. To be asked of the update that is sent.
    pub fn specialised_event_in(&self, envelope: Envelope) -> Option<SpecialisedEvent<'a>> {
        match envelope {
            Envelope::Auto | Envelope::Original => self.specialised_event(),
            Envelope::Sections => envelope::event_in_sections(self),
        }
    }

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
            // Without data there is no message to show; `chat3:update` still tells.
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

/// A string that borrows unless it contains escapes. (serde borrows for a bare
/// `Cow`, but not for one inside an `Option`: hence the newtype.)
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    fn as_str(&self) -> &str {
        &self.0
    }
}

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

/// How many arrays and objects JSON text may hold: what has few is not nested deep.
/// Counted without a look at strings, which takes a tenth of the time.
fn openings(json: &str) -> usize {
    let is_opening = |byte: &u8| matches!(byte, b'{' | b'[');
    json.as_bytes()
        .iter()
        .filter(|byte| is_opening(byte))
        .count()
}

/// The deepest nesting of arrays and objects in valid JSON text.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth -= 1,
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => {
                            bytes.next();
                        }
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::user::{TenantId, UserId};

    fn user(id: &str, tenant: Option<&str>) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        }
    }

    fn rejection(body: impl AsRef<[u8]>) -> Rejection {
        Update::decode(body.as_ref()).unwrap_err()
    }

    fn events(body: &Value) -> Vec<&'static str> {
        let body = body.to_string();
        let update = Update::decode(body.as_bytes()).unwrap();
        let specialised = update.specialised_event().map(|event| event.name);
        [CHAT3_UPDATE].into_iter().chain(specialised).collect()
    }

    #[test]
    fn every_generations_updates_become_the_documented_events() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let mut checked = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let generation: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            for fixture in generation["updates"].as_array().unwrap() {
                let name = format!("{} of {}", fixture["name"], path.display());
                assert_eq!(json!(events(&fixture["body"])), fixture["emits"], "{name}");
                checked += 1;
            }
        }
        assert!(checked > 90, "{checked}");
    }

    #[test]
    fn the_first_event_field_there_is_names_the_event() {
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

    #[test]
    fn recipients_are_compared_after_unescaping() {
        let body = r#"{"\u0075serId":"us\u0065r","tenantId":"t"}"#;
        let update = Update::decode(body.as_bytes()).unwrap();
        assert_eq!(update.check_recipient(&user("user", Some("t"))), Ok(()));
        assert_eq!(update.check_recipient(&user("user", None)), Ok(()));
        let foreign = update.check_recipient(&user("us\\u0065r", None));
        assert_eq!(foreign, Err(Rejection::ForeignUser));
        let foreign = update.check_recipient(&user("user", Some("T")));
        assert_eq!(foreign, Err(Rejection::ForeignTenant));
        let without_tenant = Update::decode(br#"{"userId":"user"}"#).unwrap();
        let foreign = without_tenant.check_recipient(&user("user", Some("t")));
        assert_eq!(foreign, Err(Rejection::ForeignTenant));
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
        // Of these, nobody can tell.
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
    fn what_is_no_json_is_rejected() {
        assert_eq!(rejection(""), Rejection::Empty);
        assert_eq!(rejection([0xff]), Rejection::NotJson);
        assert_eq!(rejection(" "), Rejection::NotJson);
        assert_eq!(rejection("{} {}"), Rejection::NotJson);
        assert_eq!(
            rejection(vec![b' '; MAX_BODY_BYTES + 1]),
            Rejection::TooLarge
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Update::decode(&body);
        }

        #[test]
        fn only_the_recipient_passes(id in "[a-z.]{1,4}", other in "[a-z.]{1,4}") {
            let body = json!({"userId": id}).to_string();
            let update = Update::decode(body.as_bytes()).unwrap();
            let passes = update.check_recipient(&user(&other, None)).is_ok();
            prop_assert_eq!(passes, id == other);
        }
    }
}
