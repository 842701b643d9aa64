//! Updates of every generation in the shape that was documented first: for
//! frontends that were written for it.
//!
//! Owns which field of today's bodies stands where in the documented shape
//! (`docs/ENVELOPE.md` is its table). Nothing that was published is left out.

use std::{
    borrow::Cow,
    time::{Duration, UNIX_EPOCH},
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Fields, ReactionUpdate, is_taken_back, raw};
use crate::update::{Text, Update};

/// The documented fields of an update, in the documented order.
const DOCUMENTED: [&str; 11] = [
    "_id",
    "tenantId",
    "userId",
    "dialogId",
    "entityId",
    "eventId",
    "eventType",
    "data",
    "published",
    "publishedAt",
    "createdAt",
];

/// What the types of messages begin with since 2025-11-08: `internal.text` was `text`.
const TYPE_PREFIX: &str = "internal.";

/// 2001 to 9999 in milliseconds: other numbers are no such times.
const TIMES_MS: std::ops::Range<u64> = 1_000_000_000_000..253_402_300_800_000;

/// The update in the documented shape. `None` where it has that shape, or none that
/// is known.
pub(super) fn rewrite(update: &Update<'_>) -> Option<Vec<u8>> {
    let body = Fields::parse(update.body)?;
    let sections = Fields::parse(update.data?)?;
    let (name, entity) = Subject::of(update).section(&sections)?;
    let event_type = event_type(update, &sections, &entity)?;

    let mut original = Fields::default();
    for field in DOCUMENTED {
        let published = body.get(field).map(Cow::Borrowed);
        let value = match field {
            "dialogId" => published
                .filter(|id| is_given(id))
                .or_else(|| dialog_id(&sections, &entity)),
            "eventType" => Some(raw(&event_type)?),
            "data" => Some(raw(&data(&body, &sections, name, &entity, &event_type)?)?),
            "publishedAt" | "createdAt" => published.map(time),
            _ => published,
        };
        original.0.extend(value.map(|value| (field.into(), value)));
    }
    original.add_missing(&body);
    serde_json::to_vec(&original).ok()
}

/// The name that the original had for this event, which tells apart as well
/// what is now one event in several updates.
fn event_type<'u>(
    update: &'u Update<'_>,
    sections: &Fields<'_>,
    entity: &Fields<'_>,
) -> Option<Cow<'u, str>> {
    let event_type = update.event_type();
    let family = update.family();
    match family {
        Some("update.dialog") if !event_type.starts_with("dialog.") => {
            // Otherwise a message would be added by its own copy, and again by this one.
            return Some(Cow::Borrowed(match sections.get("member") {
                Some(_) => "dialog.member.update",
                None => "dialog.update",
            }));
        }
        Some("update.user") if !event_type.starts_with("user.") => {
            return Some(Cow::Borrowed("user.stats.update"));
        }
        _ => {}
    }
    let verb = match event_type {
        "" => return None,
        "message.deleted" if is_taken_back(entity) => "update",
        "message.deleted" => "delete",
        "message.reaction.changed" | "message.reaction.update" => {
            ReactionUpdate::of(entity).map_or("update", |update| update.verb())
        }
        "message.status.changed" | "message.status.update" => {
            StatusUpdate::of(entity).map_or("update", |update| update.verb())
        }
        _ if event_type.ends_with(".changed") => "update",
        _ => return Some(Cow::Borrowed(event_type)),
    };
    let (stem, _) = event_type.rsplit_once('.')?;
    Some(Cow::Owned(format!("{stem}.{verb}")))
}

/// What an update is about: decides which section becomes `data`.
#[derive(Clone, Copy)]
enum Subject {
    Message,
    Dialog,
    Other,
}

impl Subject {
    fn of(update: &Update<'_>) -> Self {
        match update.family() {
            Some("update.message") => Self::Message,
            Some("update.dialog") => Self::Dialog,
            None if update.event_type().starts_with("message.") => Self::Message,
            None if update.event_type().starts_with("dialog.") => Self::Dialog,
            _ => Self::Other,
        }
    }

    /// The section and its name, if it is there.
    fn section<'a>(self, sections: &Fields<'a>) -> Option<(&'static str, Fields<'a>)> {
        let names: &[_] = match self {
            Self::Message => &["message"],
            Self::Dialog => &["dialog"],
            Self::Other => &["user", "userPackStats", "packStats"],
        };
        names
            .iter()
            .find_map(|name| Some((*name, Fields::parse(sections.get(name)?)?)))
    }
}

/// The documented `data`: the message or dialog itself, then what else there was.
fn data<'a>(
    body: &Fields<'a>,
    sections: &Fields<'a>,
    name: &str,
    entity: &Fields<'a>,
    event_type: &str,
) -> Option<Fields<'a>> {
    let mut data = Fields::default();
    let id = match name {
        "message" => "messageId",
        "dialog" => "dialogId",
        "user" => "userId",
        _ => "packId",
    };
    if let Some(id) = entity.get(id)
        && !entity.has("_id")
    {
        data.0.push(("_id".into(), Cow::Borrowed(id)));
    }
    for (field, value) in &entity.0 {
        let value = match &**field {
            "type" => without_prefix(value)?,
            "createdAt" | "updatedAt" => time(value.clone()),
            _ => value.clone(),
        };
        data.0.push((field.clone(), value));
    }
    if !data.has("reactionCounts")
        && let Some(counts) = ReactionUpdate::of(entity).and_then(ReactionUpdate::counts)
    {
        data.0.push(("reactionCounts".into(), counts));
    }
    // A new message was created moments before its update.
    if !data.has("createdAt")
        && event_type == "message.create"
        && let Some(created_at) = body.get("createdAt")
    {
        let created_at = time(Cow::Borrowed(created_at));
        data.0.push(("createdAt".into(), created_at));
    }
    let others = sections.0.iter().filter(|(section, _)| section != name);
    data.add_missing(&Fields(others.cloned().collect()));
    Some(data)
}

fn dialog_id<'a>(sections: &Fields<'a>, entity: &Fields<'a>) -> Option<Cow<'a, RawValue>> {
    let inside = |section| Fields::parse(sections.get(section)?)?.get("dialogId");
    let id = inside("dialog")
        .or_else(|| entity.get("dialogId"))
        .or_else(|| inside("context"));
    id.filter(|id| is_given(id)).map(Cow::Borrowed)
}

fn is_given(value: &RawValue) -> bool {
    value.get() != "null"
}

fn without_prefix<'a>(value: &Cow<'a, RawValue>) -> Option<Cow<'a, RawValue>> {
    let text: Option<Text<'_>> = serde_json::from_str(value.get()).ok();
    let text = text.as_ref().map(Text::as_str);
    match text.and_then(|text| text.strip_prefix(TYPE_PREFIX)) {
        Some(rest) => raw(rest),
        None => Some(value.clone()),
    }
}

/// Times were ISO 8601, and are milliseconds now: as a number, or as a string.
fn time(value: Cow<'_, RawValue>) -> Cow<'_, RawValue> {
    let text = value.get().trim_matches('"');
    let (ms, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let ms = ms.parse().ok().filter(|ms| TIMES_MS.contains(ms));
    let iso = ms.filter(|_| is_digits(fraction)).and_then(|ms| {
        let at = UNIX_EPOCH + Duration::from_millis(ms);
        raw(&humantime::format_rfc3339_millis(at).to_string())
    });
    iso.unwrap_or(value)
}

/// `message.statusUpdate`: whose status of the message is what now.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusUpdate<'a> {
    #[serde(borrow)]
    old_status: Option<Text<'a>>,
}

impl<'a> StatusUpdate<'a> {
    fn of(message: &Fields<'a>) -> Option<Self> {
        serde_json::from_str(message.get("statusUpdate")?.get()).ok()
    }

    fn verb(&self) -> &'static str {
        match self.old_status {
            None => "create",
            Some(_) => "update",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::update::{Envelope, MAX_BODY_BYTES};

    fn original(body: &str) -> Option<String> {
        let update = Update::decode(body.as_bytes()).unwrap();
        let original = update.rewritten(Envelope::Original)?;
        Some(String::from_utf8(original.to_vec()).unwrap())
    }

    fn original_of(body: &Value) -> Value {
        let original = original(&body.to_string()).expect("it has a known shape");
        serde_json::from_str(&original).unwrap()
    }

    fn events(body: &str) -> Vec<Value> {
        let update = Update::decode(body.as_bytes()).unwrap();
        let event = update.specialised_event();
        let whole = event
            .as_ref()
            .is_some_and(|event| event.payload.get() == update.body.get());
        event.map_or_else(Vec::new, |event| vec![json!(event.name), json!(whole)])
    }

    #[test]
    fn every_generations_updates_take_the_documented_shape() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let (mut changed, mut unchanged) = (0, 0);
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let generation: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            for fixture in generation["updates"].as_array().unwrap() {
                let name = format!("{} of {}", fixture["name"], path.display());
                let body = fixture["body"].to_string();
                let actual = original(&body);
                // As text: the order of the fields counts.
                let expected = fixture.get("original").map(Value::to_string);
                assert_eq!(actual, expected, "{name}");
                let Some(actual) = actual else {
                    unchanged += 1;
                    continue;
                };
                assert_eq!(events(&actual), events(&body), "{name}");
                assert_eq!(original(&actual), None, "{name}: twice is as good as once");
                changed += 1;
            }
        }
        assert_eq!(unchanged, 13, "the flat bodies of the first days");
        assert!(changed > 80, "{changed}");
    }

    #[test]
    fn a_new_message_is_added_once() {
        let update = |update_type: &str, data: Value| {
            let body = json!({"userId": "u", "sourceEventType": "message.create",
                "updateType": update_type, "data": data});
            original_of(&body)["eventType"].clone()
        };
        let dialog = json!({"dialogId": "d"});
        let message = json!({"dialog": dialog, "message": {"messageId": "m"}});
        assert_eq!(update("update.message", message), "message.create");
        let with_member = json!({"dialog": dialog, "member": {"userId": "u"}});
        assert_eq!(update("update.dialog", with_member), "dialog.member.update");
        assert_eq!(
            update("update.dialog", json!({"dialog": dialog})),
            "dialog.update"
        );
        let user = json!({"user": {"userId": "u"}});
        assert_eq!(update("update.user", user), "user.stats.update");
    }

    #[test]
    fn an_event_that_only_the_context_names_is_named() {
        let data = json!({"message": {"messageId": "m"},
            "context": {"eventType": "message.update", "dialogId": "d"}});
        let original = original_of(&json!({"userId": "u", "data": data}));
        assert_eq!(original["eventType"], "message.update");
        assert_eq!(original["dialogId"], "d");
        assert_eq!(original["data"]["_id"], "m");
    }

    #[test]
    fn reactions_are_told_apart_and_counted() {
        let reaction = |update: Value| {
            let data = json!({"message": {"messageId": "m", "reactionUpdate": update}});
            let body =
                json!({"userId": "u", "eventType": "message.reaction.changed", "data": data});
            let original = original_of(&body);
            let counts = original["data"].get("reactionCounts").cloned();
            (original["eventType"].as_str().unwrap().to_owned(), counts)
        };
        let set =
            json!([{"reaction": "👍", "count": 2, "me": false}, {"reaction": "🔥", "count": 1}]);
        assert_eq!(
            reaction(json!({"reaction": "🔥", "reactionSet": set})),
            (
                "message.reaction.add".into(),
                Some(json!({"👍": 2, "🔥": 1}))
            )
        );
        assert_eq!(
            reaction(json!({"reaction": "🔥", "oldReaction": "👍", "counts": {"🔥": 1}})),
            ("message.reaction.update".into(), Some(json!({"🔥": 1})))
        );
        assert_eq!(
            reaction(json!({"reaction": null, "oldReaction": "👍", "reactionSet": []})),
            ("message.reaction.remove".into(), Some(json!({})))
        );
        // What is not understood is passed on as it is.
        for odd in [
            json!("odd"),
            json!({"reaction": "👍", "reactionSet": "odd"}),
        ] {
            assert_eq!(reaction(odd), ("message.reaction.update".into(), None));
        }
    }

    #[test]
    fn the_first_status_of_a_message_is_created_and_the_next_updates_it() {
        let status = |update: Value| {
            let data = json!({"message": {"messageId": "m", "statusUpdate": update}});
            let body = json!({"userId": "u", "eventType": "message.status.changed", "data": data});
            original_of(&body)["eventType"].clone()
        };
        assert_eq!(status(json!({"oldStatus": null})), "message.status.create");
        assert_eq!(status(json!({})), "message.status.create");
        let read = json!({"oldStatus": "unread"});
        assert_eq!(status(read), "message.status.update");
        assert_eq!(status(json!(null)), "message.status.update");
    }

    #[test]
    fn a_deletion_is_told_from_its_being_taken_back() {
        let name = |message: Value| {
            let body = json!({"userId": "u", "sourceEventType": "message.deleted",
                "updateType": "update.message", "data": {"message": message}});
            original_of(&body)["eventType"].clone()
        };
        assert_eq!(name(json!({"deleted": true})), "message.delete");
        assert_eq!(name(json!({})), "message.delete");
        assert_eq!(name(json!({"deleted": false})), "message.update");
    }

    #[test]
    fn times_are_iso_8601_again() {
        let time = |value: Value| {
            let value = serde_json::value::to_raw_value(&value).unwrap();
            time(Cow::Owned(value)).get().to_owned()
        };
        let expected = "\"2026-06-22T13:07:21.618Z\"";
        assert_eq!(time(json!("1782133641618.015625")), expected);
        assert_eq!(time(json!(1_782_133_641_618.9)), expected);
        assert_eq!(time(json!(1_782_133_641_618_u64)), expected);
        for other in [
            json!("2025-11-04T12:18:32.000Z"),
            json!(null),
            json!(1_782_133_641),
            json!(253_402_300_800_000_u64),
            json!(-1),
            json!("1782133641618.x"),
            json!("soon"),
            json!({}),
        ] {
            assert_eq!(time(other.clone()), other.to_string());
        }
    }

    #[test]
    fn values_are_passed_on_as_they_were_published() {
        let body = r#"{ "new":1.10, "userId":"us\u0065r", "eventType":"message.update", "data":
            {"context":{ "z":1, "a":12345678901234567890 }, "message":{"messageId":"m\/1",
            "content":"cut \ud83d", "type":"internal.text", "meta":{ "n":1.50 }}}}"#;
        let expected = concat!(
            r#"{"userId":"us\u0065r","eventType":"message.update","data":{"_id":"m\/1","#,
            r#""messageId":"m\/1","content":"cut \ud83d","type":"text","meta":{ "n":1.50 },"#,
            r#""context":{ "z":1, "a":12345678901234567890 }},"new":1.10}"#
        );
        assert_eq!(original(body).unwrap(), expected);
    }

    #[test]
    fn what_has_no_known_shape_stays_as_it_is() {
        for body in [
            r#"{"userId":"u"}"#,
            r#"{"userId":"u","eventType":"message.create","data":null}"#,
            r#"{"userId":"u","eventType":"message.create","data":{"content":"flat"}}"#,
            r#"{"userId":"u","eventType":"message.create","data":{"message":"a string"}}"#,
            r#"{"userId":"u","eventType":"message.create","data":{"dialog":{"dialogId":"d"}}}"#,
            r#"{"userId":"u","data":{"user":{"userId":"u"}}}"#,
        ] {
            assert_eq!(original(body), None, "{body}");
        }
        let filler = "x".repeat(MAX_BODY_BYTES - 100);
        let body = format!(
            r#"{{"userId":"u","eventType":"dialog.update","data":{{"dialog":{{"dialogId":"{filler}"}}}}}}"#
        );
        assert_eq!(original(&body), None, "it would be too large twice");
    }

    proptest! {
        #[test]
        fn an_update_stays_its_users_and_becomes_the_same_events(
            event in "(message|dialog|user|pack)\\.(create|changed|reaction\\.changed|x)",
            family in proptest::option::of("update\\.(message|dialog|user|x)"),
            sections in proptest::collection::vec("message|dialog|user|member|_id", 0..4),
        ) {
            let section = |name: &String| (name.clone(), json!({"dialogId": "d", "_id": "i"}));
            let data: serde_json::Map<_, _> = sections.iter().map(section).collect();
            let mut body = json!({"userId": "u", "tenantId": "t", "eventType": event, "data": data});
            if let Some(family) = family {
                body["updateType"] = json!(family);
            }
            if let Some(original) = original(&body.to_string()) {
                prop_assert_eq!(events(&original), events(&body.to_string()));
                let original: Value = serde_json::from_str(&original).unwrap();
                prop_assert_eq!(&original["userId"], "u");
                prop_assert_eq!(&original["tenantId"], "t");
            }
        }
    }
}
