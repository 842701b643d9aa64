//! Updates of every generation in the shape that was documented first, for frontends
//! that were written for it.
//!
//! Owns which field of today's bodies stands where in the documented shape
//! (`docs/ENVELOPE.md` has the table).
//!
//! Invariant: nothing that was published is left out.

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    time::{Duration, UNIX_EPOCH},
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    fields::Fields,
    raw,
    reactions::{ReactionUpdate, is_taken_back},
};
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

/// The prefix of message types since 2025-11-08: `internal.text` was `text`.
const TYPE_PREFIX: &str = "internal.";

/// The years 2001 to 9999 in milliseconds: other numbers are not times.
const TIMES_MS: std::ops::Range<u64> = 1_000_000_000_000..253_402_300_800_000;

/// The update in the documented shape. `None` if the update has that shape already, or
/// one that is not known.
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

/// The name that the first documentation has for this event. It also tells apart the
/// several updates of what is now one event.
fn event_type<'u>(
    update: &'u Update<'_>,
    sections: &Fields<'_>,
    entity: &Fields<'_>,
) -> Option<Cow<'u, str>> {
    let event_type = update.event_type();
    let family = update.family();
    match family {
        Some("update.dialog") if !event_type.starts_with("dialog.") => {
            // A frontend would add the message twice: from its own update, and from this one.
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

/// What an update is about, which decides the section that becomes `data`.
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

    /// The section and its name, if the update has it.
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

/// The documented `data`: the message or dialog itself, then the other sections.
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

/// A time in ISO 8601, as all were first; now they are milliseconds, as a number or as a
/// string.
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

/// `message.statusUpdate`: what a user's status of the message is now.
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
