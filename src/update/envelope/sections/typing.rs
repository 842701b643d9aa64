//! Who is typing, where and for how long: the payload of `typing:update`.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

use super::body::Body;
use crate::update::{
    Update,
    envelope::{fields::Fields, raw},
};

/// How long somebody is shown as typing if the update does not say.
const TYPING_EXPIRES_MS: u32 = 5000;

/// The payload, in the order in which the page's own server writes it.
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

/// The payload, if the update says who is typing and where.
pub(super) fn payload<'a>(update: &Update<'a>) -> Option<Cow<'a, RawValue>> {
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

/// The name by which the page calls a user without one: Chat3's users have none since
/// 2025-12.
pub(super) fn display_name<'a>(user: &Fields<'a>) -> Option<&'a RawValue> {
    let meta = Fields::parse(user.given("meta")?)?;
    let is_text = |value: &&RawValue| value.get().starts_with('"');
    let name = |field| meta.given(field).filter(is_text);
    name("displayName").or_else(|| name("fullName"))
}
