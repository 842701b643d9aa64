use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::update::{CHAT3_UPDATE, Envelope, MAX_BODY_BYTES, MAX_NESTING, Text, fixtures};

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
    let checked = fixtures::each(|name, fixture| {
        let expected = &fixture["sections"];
        let actual = rewritten(&fixture["body"].to_string()).expect(name);
        // As text: the order of the fields counts.
        assert_eq!(actual, expected["body"].to_string(), "{name}");
        assert_eq!(rewritten(&actual).as_ref(), Some(&actual), "{name}: twice");
        let event = event(&actual);
        let emits: Vec<_> = event.iter().map(|(name, _)| *name).collect();
        let emits = json!([vec![CHAT3_UPDATE], emits].concat());
        assert_eq!(emits, expected["emits"], "{name}");
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
    });
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
fn a_user_without_a_name_gets_the_name_in_the_metadata() {
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
fn a_body_that_cannot_have_sections_stays_unchanged() {
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
    let body =
        format!(r#"{{"userId":"u","eventType":"message.create","data":{{"x":{open}{close}}}}}"#);
    let rewritten = rewritten(&body).unwrap();
    assert!(Update::decode(rewritten.as_bytes()).is_err());
}

/// JSON of names and values that have a meaning, in arbitrary places.
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
            // A repeated name is left in place, since the code must cope with one.
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
