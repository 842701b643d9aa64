use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::update::{Envelope, MAX_BODY_BYTES, fixtures};

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
    let (mut changed, mut unchanged) = (0, 0);
    fixtures::each(|name, fixture| {
        let body = fixture["body"].to_string();
        let actual = original(&body);
        // As text: the order of the fields counts.
        let expected = fixture.get("original").map(Value::to_string);
        assert_eq!(actual, expected, "{name}");
        let Some(actual) = actual else {
            unchanged += 1;
            return;
        };
        assert_eq!(events(&actual), events(&body), "{name}");
        assert_eq!(original(&actual), None, "{name}: twice is as good as once");
        changed += 1;
    });
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
        let body = json!({"userId": "u", "eventType": "message.reaction.changed", "data": data});
        let original = original_of(&body);
        let counts = original["data"].get("reactionCounts").cloned();
        (original["eventType"].as_str().unwrap().to_owned(), counts)
    };
    let set = json!([{"reaction": "👍", "count": 2, "me": false}, {"reaction": "🔥", "count": 1}]);
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
    // Values that are not understood are passed on unchanged.
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
fn a_body_of_an_unknown_shape_stays_unchanged() {
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
