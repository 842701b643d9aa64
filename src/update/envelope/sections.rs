//! Updates of every generation as antirek/chatapp's own server sends them: a
//! section for each entity, under the event names of 2025.
//!
//! Owns what that page reads and where it looks for it (`docs/ENVELOPE.md` has the
//! table), and which events it listens to. Nothing that was published is left out.
//!
//! Chat3's bodies are taken apart in one pass: this is done for each update.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

use super::{Fields, ReactionUpdate, is_taken_back, raw};
use crate::update::{
    DIALOG_UPDATE, MESSAGE_NEW, MESSAGE_UPDATE, SpecialisedEvent, TYPING_UPDATE, Text, Update,
};

/// Counters of a dialog have changed, and are in the update. As a `dialog:update` it
/// would make the page fetch its list of dialogs for every message.
const COUNTERS: &str = "dialog.counter.update";

const TYPING: &str = "dialog.typing";

/// Those of which one makes a body that has sections.
const SECTIONS: [&str; 5] = ["dialog", "member", "message", "typing", "context"];

/// How long somebody is shown as typing, where the update does not say.
const TYPING_EXPIRES_MS: u32 = 5000;

/// Room for what is added to a body: names of sections, and values that stand twice.
const ADDED_BYTES: usize = 256;

/// The update in sections. `None` where it names no event, or where what should be a
/// section is none.
pub(super) fn rewrite(update: &Update<'_>) -> Option<Vec<u8>> {
    let event_type = event_type(update)?;
    let Body { fields, data } = serde_json::from_str(update.body.get()).ok()?;
    let data = data?.unless_flat(&event_type, update.data?);
    let dialog_id = fields.given("dialogId").or_else(|| data.dialog_id());
    let dialog_id = dialog_id.unwrap_or(RawValue::NULL);

    let mut out = Object::with_capacity(update.body.get().len() + ADDED_BYTES);
    out.all_but(&fields, &["eventType", "dialogId"]);
    out.text("eventType", &event_type);
    out.raw("dialogId", dialog_id);
    out.object("data", |out| {
        out.raw("dialog", data.dialog.unwrap_or(RawValue::NULL));
        out.raw("member", data.member.unwrap_or(RawValue::NULL));
        out.section("message", data.message.as_ref(), |out, message| {
            let is_new = event_type == "message.create";
            let created_at = fields.given("createdAt").filter(|_| is_new);
            write_message(out, message, created_at);
        });
        out.section("typing", data.typing.as_ref(), |out, typing| {
            for (name, value) in &typing.0 {
                match &**name {
                    "userInfo" => out.user(name, value),
                    _ => out.raw(name, value),
                }
            }
        });
        out.object("context", |out| {
            let own = data.context.given("dialogId");
            out.all_but(&data.context, &["eventType", "dialogId"]);
            out.raw("dialogId", own.unwrap_or(dialog_id));
            out.text("eventType", &event_type);
        });
        out.all_but(&data.others, &[]);
    });
    Some(out.end())
}

/// The event that the page listens to besides `chat3:update`. For updates in sections;
/// of one that could not be given them, as near as it comes.
pub(super) fn specialised_event<'a>(update: &Update<'a>) -> Option<SpecialisedEvent<'a>> {
    let event_type = event_type(update)?;
    let is_of = |family| update.family().is_none_or(|of| of == family);
    let (name, payload) = match &*event_type {
        "message.create" if is_of("update.message") => {
            let message = section(update, "message");
            // Anything else would be no message to the page.
            let message = message.filter(|message| message.get().starts_with('{'));
            (MESSAGE_NEW, Cow::Borrowed(message?))
        }
        TYPING if is_of("update.dialog") => (TYPING_UPDATE, typing(update)?),
        COUNTERS => return None,
        name if name.starts_with("message.") && is_of("update.message") => {
            (MESSAGE_UPDATE, Cow::Borrowed(update.body))
        }
        name if name.starts_with("dialog.") && is_of("update.dialog") => {
            (DIALOG_UPDATE, Cow::Borrowed(update.body))
        }
        _ => return None,
    };
    Some(SpecialisedEvent { name, payload })
}

/// The event's name of 2025, which tells apart what is now one event in several
/// updates. Names of 2025 are their own.
fn event_type<'u>(update: &'u Update<'_>) -> Option<Cow<'u, str>> {
    let published = update.event_type();
    let is_dialog = published.starts_with("dialog.");
    let name = match (update.family(), published) {
        (_, "") => return None,
        (Some("update.user"), _) if !published.starts_with("user.") => "user.stats.update",
        (_, "dialog.messages.bulk_read") => COUNTERS,
        (Some("update.dialog"), _) if !is_dialog => match section(update, "member") {
            Some(_) => COUNTERS,
            None => "dialog.update",
        },
        (_, "message.deleted") => match section(update, "message").and_then(Fields::parse) {
            Some(message) if is_taken_back(&message) => "message.update",
            _ => "message.delete",
        },
        (_, "message.status.create") => published,
        _ if published.starts_with("message.status.") => "message.status.update",
        _ => match published.strip_suffix(".changed") {
            Some(stem) => return Some(Cow::Owned(format!("{stem}.update"))),
            None => published,
        },
    };
    Some(Cow::Borrowed(name))
}

/// A section of the update's data.
fn section<'a>(update: &Update<'a>, name: &str) -> Option<&'a RawValue> {
    Fields::parse(update.data?)?.given(name)
}

/// The message, with what the page misses in it since 2025.
fn write_message(out: &mut Object, message: &Fields<'_>, created_at: Option<&RawValue>) {
    let is_missing = |name| message.given(name).is_none();
    let created_at = created_at.filter(|_| is_missing("createdAt"));
    let counts = ReactionUpdate::of(message).and_then(ReactionUpdate::counts);
    let counts = counts.filter(|_| is_missing("reactionCounts"));
    for (name, value) in &message.0 {
        match &**name {
            "createdAt" if created_at.is_some() => {}
            "reactionCounts" if counts.is_some() => {}
            "senderInfo" => out.user(name, value),
            _ => out.raw(name, value),
        }
    }
    if let Some(created_at) = created_at {
        out.raw("createdAt", created_at);
    }
    if let Some(counts) = counts {
        out.raw("reactionCounts", &counts);
    }
}

/// What the page calls a user who has no name, as Chat3's have since 2025-12.
fn display_name<'a>(user: &Fields<'a>) -> Option<&'a RawValue> {
    let meta = Fields::parse(user.given("meta")?)?;
    let is_text = |value: &&RawValue| value.get().starts_with('"');
    let name = |field| meta.given(field).filter(is_text);
    name("displayName").or_else(|| name("fullName"))
}

/// `typing:update`, which says who is typing where, and for how long.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TypingUpdate<'a> {
    dialog_id: &'a RawValue,
    user_id: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_info: Option<TypingUser<'a>>,
    expires_in_ms: &'a RawValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TypingUser<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a RawValue>,
    avatar: &'a RawValue,
}

/// The payload of `typing:update`, if the update says who is typing where.
fn typing<'a>(update: &Update<'a>) -> Option<Cow<'a, RawValue>> {
    let Body { fields, data } = serde_json::from_str(update.body.get()).ok()?;
    let data = data?;
    let typing = data.typing.as_ref()?;
    let user = typing.given("userInfo").and_then(Fields::parse);
    let of_user = |name| user.as_ref().and_then(|user| user.given(name));
    let dialog_id = fields.given("dialogId").or_else(|| data.dialog_id());
    let dialog_id = dialog_id.or_else(|| typing.given("dialogId"));
    let user_name = of_user("name").or_else(|| display_name(user.as_ref()?));
    let avatar = of_user("avatar").or_else(|| {
        let meta = Fields::parse(user.as_ref()?.given("meta")?)?;
        meta.given("avatar")
    });
    let expires = typing.given("expiresInMs");
    let expires = expires.or_else(|| data.context.given("expiresInMs"));
    let default_expiry = raw(&TYPING_EXPIRES_MS)?;
    raw(&TypingUpdate {
        dialog_id: dialog_id.or_else(|| fields.given("entityId"))?,
        user_id: typing.given("userId").or_else(|| of_user("userId"))?,
        user_name,
        user_info: user.as_ref().map(|_| TypingUser {
            user_id: of_user("userId"),
            name: user_name,
            avatar: avatar.unwrap_or(RawValue::NULL),
        }),
        expires_in_ms: expires.unwrap_or(&default_expiry),
    })
}

/// An update's body, taken apart as far as it is changed.
struct Body<'a> {
    /// Without `data`.
    fields: Fields<'a>,
    data: Option<Data<'a>>,
}

/// `data`: what is null counts as absent.
#[derive(Default)]
struct Data<'a> {
    dialog: Option<&'a RawValue>,
    member: Option<&'a RawValue>,
    message: Option<Fields<'a>>,
    typing: Option<Fields<'a>>,
    context: Fields<'a>,
    others: Fields<'a>,
    /// Whether one of those that have names here is there.
    has_sections: bool,
}

impl<'a> Data<'a> {
    /// Bodies of the first days are a message or a dialog, without sections.
    fn unless_flat(self, event_type: &str, whole: &'a RawValue) -> Self {
        if self.has_sections {
            self
        } else if event_type.starts_with("message.") {
            Self {
                message: Some(self.others),
                ..Self::default()
            }
        } else if event_type.starts_with("dialog.") {
            Self {
                dialog: Some(whole),
                ..Self::default()
            }
        } else {
            self
        }
    }

    fn dialog_id(&self) -> Option<&'a RawValue> {
        let of_dialog = || Fields::parse(self.dialog?)?.given("dialogId");
        let of_message = || self.message.as_ref()?.given("dialogId");
        let own = self.context.given("dialogId");
        own.or_else(of_dialog).or_else(of_message)
    }
}

impl<'de> Deserialize<'de> for Body<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Body<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an update")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut fields, mut data) = (Fields::default(), None);
                while let Some(Text(name)) = map.next_key()? {
                    match &*name {
                        "data" => data = map.next_value()?,
                        _ => fields.push(name, map.next_value()?),
                    }
                }
                Ok(Body { fields, data })
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

impl<'de> Deserialize<'de> for Data<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Data<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sections")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut data = Data::default();
                while let Some(Text(name)) = map.next_key()? {
                    data.has_sections |= SECTIONS.contains(&&*name);
                    match &*name {
                        "dialog" => data.dialog = map.next_value()?,
                        "member" => data.member = map.next_value()?,
                        "message" => data.message = map.next_value()?,
                        "typing" => data.typing = map.next_value()?,
                        "context" => {
                            let context: Option<_> = map.next_value()?;
                            data.context = context.unwrap_or_default();
                        }
                        _ => data.others.push(name, map.next_value()?),
                    }
                }
                Ok(data)
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

/// The text of an object that is being written.
struct Object {
    text: Vec<u8>,
}

impl Object {
    fn with_capacity(bytes: usize) -> Self {
        let mut text = Vec::with_capacity(bytes);
        text.push(b'{');
        Self { text }
    }

    fn end(mut self) -> Vec<u8> {
        self.text.push(b'}');
        self.text
    }

    fn name(&mut self, name: &str) {
        if self.text.last() != Some(&b'{') {
            self.text.push(b',');
        }
        // Most names are written as they are, without a serializer.
        if name
            .bytes()
            .all(|byte| !matches!(byte, 0..0x20 | b'"' | b'\\'))
        {
            self.text.push(b'"');
            self.text.extend(name.as_bytes());
            self.text.push(b'"');
        } else {
            self.string(name);
        }
        self.text.push(b':');
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut self.text, text).expect("a string is written to memory");
    }

    fn raw(&mut self, name: &str, value: &RawValue) {
        self.name(name);
        self.text.extend(value.get().as_bytes());
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.string(value);
    }

    fn object(&mut self, name: &str, write: impl FnOnce(&mut Self)) {
        self.name(name);
        self.text.push(b'{');
        write(self);
        self.text.push(b'}');
    }

    /// An object, or `null` where there is none.
    fn section(
        &mut self,
        name: &str,
        section: Option<&Fields<'_>>,
        write: impl FnOnce(&mut Self, &Fields<'_>),
    ) {
        match section {
            Some(section) => self.object(name, |out| write(out, section)),
            None => self.raw(name, RawValue::NULL),
        }
    }

    /// A user, with a name if one is known.
    fn user(&mut self, name: &str, value: &RawValue) {
        let user = Fields::parse(value).filter(|user| user.given("name").is_none());
        match user.and_then(|user| Some((display_name(&user)?, user))) {
            Some((display_name, user)) => self.object(name, |out| {
                out.all_but(&user, &["name"]);
                out.raw("name", display_name);
            }),
            None => self.raw(name, value),
        }
    }

    fn all_but(&mut self, fields: &Fields<'_>, left_out: &[&str]) {
        for (name, value) in &fields.0 {
            if !left_out.contains(&&**name) {
                self.raw(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::update::{CHAT3_UPDATE, Envelope, MAX_BODY_BYTES, MAX_NESTING};

    fn rewritten(body: &str) -> Option<String> {
        let update = Update::decode(body.as_bytes()).unwrap();
        let rewritten = update.rewritten(Envelope::Sections)?;
        Some(String::from_utf8(rewritten.to_vec()).unwrap())
    }

    fn sections_of(body: &Value) -> Value {
        let rewritten = rewritten(&body.to_string()).expect("it has sections");
        serde_json::from_str(&rewritten).unwrap()
    }

    /// The specialised event's name and payload.
    fn event(body: &str) -> Option<(&'static str, Value)> {
        let update = Update::decode(body.as_bytes()).unwrap();
        let event = update.specialised_event_in(Envelope::Sections)?;
        Some((
            event.name,
            serde_json::from_str(event.payload.get()).unwrap(),
        ))
    }

    fn event_of(body: &Value) -> Option<(&'static str, Value)> {
        event(&rewritten(&body.to_string()).expect("it has sections"))
    }

    fn update(event_type: &str, data: Value) -> Value {
        json!({"userId": "u", "eventType": event_type, "data": data})
    }

    fn current(event_type: &str, family: &str, data: Value) -> Value {
        json!({"userId": "u", "sourceEventType": event_type, "updateType": family, "data": data})
    }

    fn name_of(body: &Value) -> Value {
        let sections = sections_of(body);
        let name = &sections["eventType"];
        assert_eq!(name, &sections["data"]["context"]["eventType"]);
        name.clone()
    }

    #[test]
    fn every_generations_updates_become_what_the_pages_own_server_sends() {
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
                let expected = &fixture["sections"];
                let actual = rewritten(&fixture["body"].to_string()).expect(&name);
                // As text: the order of the fields counts.
                assert_eq!(actual, expected["body"].to_string(), "{name}");
                assert_eq!(rewritten(&actual).as_ref(), Some(&actual), "{name}: twice");
                let event = event(&actual);
                let emits: Vec<_> = event.iter().map(|(name, _)| *name).collect();
                assert_eq!(
                    json!([vec![CHAT3_UPDATE], emits].concat()),
                    expected["emits"],
                    "{name}"
                );
                let payload = match event {
                    None => Value::Null,
                    Some((MESSAGE_NEW, payload)) => {
                        assert_eq!(payload, expected["body"]["data"]["message"], "{name}");
                        Value::Null
                    }
                    Some((TYPING_UPDATE, payload)) => payload,
                    Some((_, payload)) => {
                        assert_eq!(payload, expected["body"], "{name}");
                        Value::Null
                    }
                };
                assert_eq!(payload, expected["typing"], "{name}");
                checked += 1;
            }
        }
        assert!(checked > 130, "{checked}");
    }

    #[test]
    fn events_have_their_names_of_2025() {
        let message = json!({"message": {"messageId": "m"}});
        for (published, expected) in [
            ("message.changed", "message.update"),
            ("message.reaction.changed", "message.reaction.update"),
            ("message.reaction.add", "message.reaction.add"),
            ("dialog.member.changed", "dialog.member.update"),
            ("user.changed", "user.update"),
            ("message.status.changed", "message.status.update"),
            ("message.status.read", "message.status.update"),
            ("message.status.create", "message.status.create"),
            ("message.deleted", "message.delete"),
            ("message.delete", "message.delete"),
            ("dialog.messages.bulk_read", "dialog.counter.update"),
            ("something.new", "something.new"),
        ] {
            assert_eq!(name_of(&update(published, message.clone())), expected);
        }
        let source = json!({"userId": "u", "sourceEventType": "message.changed", "data": message});
        assert_eq!(name_of(&source), "message.update");
        let context = json!({"message": {}, "context": {"eventType": "message.changed"}});
        assert_eq!(
            name_of(&json!({"userId": "u", "data": context})),
            "message.update"
        );
    }

    #[test]
    fn a_deletion_that_is_taken_back_is_an_update_of_the_message() {
        let name = |message: Value| {
            name_of(&current(
                "message.deleted",
                "update.message",
                json!({"message": message}),
            ))
        };
        assert_eq!(name(json!({"deleted": true})), "message.delete");
        assert_eq!(name(json!({"deleted": false})), "message.update");
    }

    #[test]
    fn counters_are_no_reason_to_fetch_the_dialogs() {
        let dialog = json!({"dialogId": "d"});
        let counted = json!({"dialog": dialog, "member": {"state": {"unreadCount": 3}}});
        for body in [
            current("message.create", "update.dialog", counted.clone()),
            current("pack.dialog.add", "update.dialog", counted.clone()),
            current(
                "dialog.messages.bulk_read",
                "update.dialog",
                counted.clone(),
            ),
            update("dialog.messages.bulk_read", counted.clone()),
        ] {
            assert_eq!(name_of(&body), "dialog.counter.update");
            assert_eq!(event_of(&body), None);
        }
        let renamed = current("pack.changed", "update.dialog", json!({"dialog": dialog}));
        assert_eq!(name_of(&renamed), "dialog.update");
        assert_eq!(event_of(&renamed).unwrap().0, DIALOG_UPDATE);
        let changed = current("dialog.member.changed", "update.dialog", counted);
        assert_eq!(event_of(&changed).unwrap().0, DIALOG_UPDATE);
        let user = json!({"user": {"userId": "u"}, "context": {}});
        let stats = current("message.create", "update.user", user.clone());
        assert_eq!(name_of(&stats), "user.stats.update");
        assert_eq!(event_of(&stats), None);
        assert_eq!(
            name_of(&current("user.changed", "update.user", user)),
            "user.update"
        );
    }

    #[test]
    fn only_an_updates_own_family_is_a_message_or_a_dialog() {
        let data = json!({"message": {"messageId": "m"}, "dialog": {"dialogId": "d"}});
        for family in ["update.pack", "update.user", "update.dialog"] {
            let new = current("message.create", family, data.clone());
            let event = event_of(&new).map(|(name, _)| name);
            assert_ne!(event, Some(MESSAGE_NEW), "{family}");
        }
        assert_eq!(
            event_of(&current("dialog.create", "update.message", data)),
            None
        );
    }

    #[test]
    fn the_dialog_is_found_wherever_it_stands() {
        let found = |data: Value| {
            let sections = sections_of(&update("message.update", data));
            assert_eq!(
                sections["dialogId"],
                sections["data"]["context"]["dialogId"]
            );
            sections["dialogId"].clone()
        };
        let (message, dialog) = (json!({"dialogId": "m"}), json!({"dialogId": "d"}));
        let context = json!({"dialogId": "c", "version": 4});
        assert_eq!(
            found(json!({"message": message, "dialog": dialog, "context": context})),
            "c"
        );
        let nowhere = json!({"dialogId": null});
        assert_eq!(
            found(json!({"message": message, "dialog": dialog, "context": nowhere})),
            "d"
        );
        assert_eq!(found(json!({"message": message, "dialog": null})), "m");
        assert_eq!(found(json!({"message": {}, "dialog": "d"})), Value::Null);
        assert_eq!(
            found(json!({"message": {"dialogId": 7}, "context": {"dialogId": ""}})),
            7
        );
        let mut body = update("message.update", json!({"context": context}));
        body["dialogId"] = json!("top");
        let sections = sections_of(&body);
        assert_eq!(sections["dialogId"], "top");
        let expected = json!({"version": 4, "dialogId": "c", "eventType": "message.update"});
        assert_eq!(sections["data"]["context"], expected);
    }

    #[test]
    fn sections_that_are_absent_are_null_and_others_follow() {
        let data = json!({"topic": {"topicId": "t"}, "context": {}, "pack": [1]});
        let sections = rewritten(&update("dialog.topic.create", data).to_string()).unwrap();
        let expected = concat!(
            r#""data":{"dialog":null,"member":null,"message":null,"typing":null,"#,
            r#""context":{"dialogId":null,"eventType":"dialog.topic.create"},"#,
            r#""topic":{"topicId":"t"},"pack":[1]}}"#
        );
        assert!(sections.ends_with(expected), "{sections}");
    }

    #[test]
    fn a_flat_body_is_its_message_or_its_dialog() {
        let flat = json!({"_id": "i", "content": "hello", "dialogId": "d"});
        let message = sections_of(&update("message.create", flat.clone()));
        assert_eq!(message["data"]["message"], flat);
        assert_eq!(message["data"]["dialog"], Value::Null);
        assert_eq!(message["dialogId"], "d");
        let dialog = sections_of(&update("dialog.create", flat.clone()));
        assert_eq!(dialog["data"]["dialog"], flat);
        let other = sections_of(&update("pack.changed", flat.clone()));
        assert_eq!(other["data"]["content"], "hello");
        assert_eq!(
            event_of(&update("message.create", flat.clone())),
            Some((MESSAGE_NEW, flat))
        );
    }

    #[test]
    fn a_new_message_alone_is_given_its_updates_time_as_it_is() {
        let created_at = |event_type: &str, message: Value| {
            let mut body = update(event_type, json!({"message": message}));
            body["createdAt"] = json!("1782133641618.015625");
            let sections = sections_of(&body);
            sections["data"]["message"].get("createdAt").cloned()
        };
        let time = Some(json!("1782133641618.015625"));
        assert_eq!(created_at("message.create", json!({})), time);
        assert_eq!(
            created_at("message.create", json!({"createdAt": null})),
            time
        );
        let own = json!({"createdAt": "2025-11-04T12:18:32.000Z"});
        assert_eq!(
            created_at("message.create", own.clone()),
            own.get("createdAt").cloned()
        );
        assert_eq!(created_at("message.update", json!({})), None);
    }

    #[test]
    fn reactions_are_counted() {
        let counts = |update: Value, message: Value| {
            let mut message = message;
            message["reactionUpdate"] = update;
            let data = json!({"message": message});
            let sections = sections_of(&self::update("message.reaction.changed", data));
            sections["data"]["message"].get("reactionCounts").cloned()
        };
        let set = json!([{"reaction": "👍", "count": 2}, {"reaction": "🔥", "count": 1}]);
        let expected = Some(json!({"👍": 2, "🔥": 1}));
        assert_eq!(counts(json!({"reactionSet": set}), json!({})), expected);
        assert_eq!(
            counts(json!({"reaction": null, "reactionSet": []}), json!({})),
            Some(json!({}))
        );
        assert_eq!(
            counts(json!({"counts": {"👍": 1}}), json!({})),
            Some(json!({"👍": 1}))
        );
        let own = json!({"reactionCounts": {"👎": 4}});
        assert_eq!(
            counts(json!({"reactionSet": set}), own),
            Some(json!({"👎": 4}))
        );
        assert_eq!(counts(json!("odd"), json!({})), None);
    }

    #[test]
    fn who_has_no_name_is_called_as_the_metadata_says() {
        let name = |sender: Value| {
            let data = json!({"message": {"senderInfo": sender}});
            sections_of(&update("message.create", data))["data"]["message"]["senderInfo"].clone()
        };
        let both = json!({"meta": {"displayName": "Anna", "fullName": "Anna B."}});
        assert_eq!(name(both)["name"], "Anna");
        let empty = json!({"name": null, "meta": {"displayName": "", "fullName": "Anna B."}});
        assert_eq!(name(empty)["name"], "Anna B.");
        let own = json!({"name": "Own", "meta": {"displayName": "Anna"}});
        assert_eq!(name(own)["name"], "Own");
        for unnamed in [json!(null), json!("u"), json!({"meta": {"displayName": 5}})] {
            assert_eq!(name(unnamed.clone()), unnamed);
        }
        let typing = json!({"typing": {"userInfo": {"meta": {"fullName": "Anna B."}}}});
        let sections = sections_of(&update("dialog.typing", typing));
        assert_eq!(sections["data"]["typing"]["userInfo"]["name"], "Anna B.");
    }

    #[test]
    fn typing_says_who_where_and_for_how_long() {
        let typing = |typing: Value| {
            let context = json!({"dialogId": "d"});
            let data = json!({"typing": typing, "context": context});
            event_of(&update("dialog.typing", data)).map(|(name, payload)| {
                assert_eq!(name, TYPING_UPDATE);
                payload
            })
        };
        assert_eq!(
            typing(json!({"userId": "b"})),
            Some(json!({"dialogId": "d", "userId": "b", "expiresInMs": 5000}))
        );
        let info = json!({"userId": "b", "meta": {"displayName": "Bo", "avatar": "/b.png"}});
        assert_eq!(
            typing(json!({"expiresInMs": 3000, "userInfo": info})),
            Some(
                json!({"dialogId": "d", "userId": "b", "userName": "Bo", "expiresInMs": 3000,
                "userInfo": {"userId": "b", "name": "Bo", "avatar": "/b.png"}})
            )
        );
        let unknown = json!({"userId": "b", "userInfo": {}});
        assert_eq!(
            typing(unknown).unwrap()["userInfo"],
            json!({"avatar": null})
        );
        assert_eq!(typing(json!({})), None);
        assert_eq!(typing(json!(null)), None);
        let mut somewhere = update("dialog.typing", json!({"typing": {"userId": "b"}}));
        assert_eq!(event_of(&somewhere), None);
        somewhere["entityId"] = json!("e");
        assert_eq!(event_of(&somewhere).unwrap().1["dialogId"], "e");
    }

    #[test]
    fn values_are_passed_on_as_they_were_published() {
        let body = r#"{ "new":1.10, "userId":"us\u0065r", "eventType":"message.update", "data":
            {"context":{ "z":1, "a":12345678901234567890 }, "message":{"messageId":"m\/1",
            "content":"cut \ud83d", "meta":{ "n":1.50 }}}}"#;
        let expected = concat!(
            r#"{"new":1.10,"userId":"us\u0065r","eventType":"message.update","dialogId":null,"#,
            r#""data":{"dialog":null,"member":null,"message":{"messageId":"m\/1","#,
            r#""content":"cut \ud83d","meta":{ "n":1.50 }},"typing":null,"context":{"z":1,"#,
            r#""a":12345678901234567890,"dialogId":null,"eventType":"message.update"}}}"#
        );
        assert_eq!(rewritten(body).unwrap(), expected);
    }

    #[test]
    fn what_cannot_have_sections_stays_as_it_is() {
        for body in [
            r#"{"userId":"u"}"#,
            r#"{"userId":"u","data":{"message":{}}}"#,
            r#"{"userId":"u","eventType":"message.create","data":null}"#,
            r#"{"userId":"u","eventType":"message.create","data":["a"]}"#,
            r#"{"userId":"u","eventType":"message.create","data":{"message":"text"}}"#,
            r#"{"userId":"u","eventType":"message.create","data":{"context":7}}"#,
        ] {
            assert_eq!(rewritten(body), None, "{body}");
            assert_eq!(event(body), None, "{body}");
        }
        let filler = "x".repeat(MAX_BODY_BYTES - 100);
        let body = update("message.update", json!({"message": {"content": filler}})).to_string();
        assert_eq!(rewritten(&body), None, "it would be too large");
        assert_eq!(event(&body).unwrap().0, MESSAGE_UPDATE);
    }

    #[test]
    fn a_flat_body_may_become_too_deep() {
        let levels = MAX_NESTING - 2;
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        let body = format!(
            r#"{{"userId":"u","eventType":"message.create","data":{{"x":{open}{close}}}}}"#
        );
        let rewritten = rewritten(&body).unwrap();
        assert!(Update::decode(rewritten.as_bytes()).is_err());
    }

    /// JSON of names and values that mean something, in places where they need not.
    fn odd_json() -> impl Strategy<Value = String> {
        let name = "data|dialog|member|message|typing|context|eventType|dialogId|createdAt|name|\
            meta|displayName|senderInfo|userInfo|reactionUpdate|reactionSet|counts|deleted|x";
        let leaf = prop_oneof![
            "null|true|false|1\\.10|\\[\\]|\\{\\}|\"\"|\"d\"|\"\\\\\\\\ud83d\"",
            "\"(message|dialog|user)\\.(create|changed|typing|deleted)\"",
        ];
        leaf.prop_recursive(5, 48, 6, move |inner| {
            let fields = proptest::collection::vec((name, inner.clone()), 0..6);
            let items = proptest::collection::vec(inner, 0..3);
            prop_oneof![
                // A repeated name is left as it is: it is for the code to get along with.
                4 => fields.prop_map(|fields| {
                    let field = |(name, value)| format!("\"{name}\":{value}");
                    let fields: Vec<_> = fields.into_iter().map(field).collect();
                    format!("{{{}}}", fields.join(","))
                }),
                1 => items.prop_map(|items| format!("[{}]", items.join(","))),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_update_stays_valid_its_users_and_the_same_when_rewritten_again(
            event_type in "(message|dialog|user|pack)\\.(create|changed|deleted|typing|x)",
            family in proptest::option::of("update\\.(message|dialog|user|x)"),
            data in odd_json(),
            more in odd_json(),
        ) {
            let family = family.map_or(String::new(), |family| format!(",\"updateType\":\"{family}\""));
            let body = format!(
                r#"{{"userId":"u","more":{more},"tenantId":"t","eventType":"{event_type}"{family},"data":{data}}}"#
            );
            let update = Update::decode(body.as_bytes()).unwrap();
            let _ = update.specialised_event_in(Envelope::Sections);
            if let Some(once) = update.rewritten(Envelope::Sections) {
                let again = Update::decode(&once).unwrap();
                let event = again.specialised_event_in(Envelope::Sections);
                prop_assert_eq!(again.user_id.as_str(), "u");
                prop_assert_eq!(again.tenant_id.as_ref().map(Text::as_str), Some("t"));
                prop_assert!(again.body.get().contains(&more));
                let twice = again.rewritten(Envelope::Sections).unwrap();
                prop_assert_eq!(&twice, &once);
                let payload = |event: Option<SpecialisedEvent<'_>>| {
                    event.map(|event| (event.name, event.payload.get().to_owned()))
                };
                let twice = Update::decode(&twice).unwrap();
                prop_assert_eq!(
                    payload(twice.specialised_event_in(Envelope::Sections)),
                    payload(event)
                );
            }
        }
    }
}
