//! Updates of every generation as antirek/chatapp's own server sends them: a
//! section for each entity, under the event names of 2025.
//!
//! Owns where the page looks for what it reads (`docs/ENVELOPE.md` has the table), and
//! which events the page listens to. How a body is taken apart is `body`'s, how it is
//! written `object`'s, and who is typing `typing`'s to know.
//!
//! Invariant: nothing that was published is left out.

mod body;
mod object;
mod typing;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde_json::value::RawValue;

use self::{body::Body, object::Object};
use super::{
    fields::Fields,
    reactions::{ReactionUpdate, is_taken_back},
};
use crate::update::{
    DIALOG_UPDATE, MESSAGE_NEW, MESSAGE_UPDATE, SpecialisedEvent, TYPING_UPDATE, Update,
};

/// The event of an update that holds a dialog's new counters. As a `dialog:update` it
/// would make the page fetch its list of dialogs for every message.
const COUNTERS: &str = "dialog.counter.update";

/// The event of an update that says who is typing.
const TYPING: &str = "dialog.typing";

/// Bytes that are added to a body, roughly: names of sections, and values that are
/// written twice.
const ADDED_BYTES: usize = 256;

/// The update in sections. `None` if the update names no event, or if a value that should
/// be a section is not an object.
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

/// The event that the page listens to besides `chat3:update`, for an update in sections.
/// An update that could not be given sections becomes the nearest event.
pub(super) fn specialised_event<'a>(update: &Update<'a>) -> Option<SpecialisedEvent<'a>> {
    let event_type = event_type(update)?;
    let is_of = |family| update.family().is_none_or(|of| of == family);
    let (name, payload) = match &*event_type {
        "message.create" if is_of("update.message") => {
            let message = section(update, "message");
            // The page would not take anything else for a message.
            let message = message.filter(|message| message.get().starts_with('{'));
            (MESSAGE_NEW, Cow::Borrowed(message?))
        }
        TYPING if is_of("update.dialog") => (TYPING_UPDATE, typing::payload(update)?),
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

/// The name that the event had in 2025, when several updates of what is now one event had
/// a name each. A name of 2025 stays as it is.
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

/// Writes a message, with what the page misses in messages since 2025.
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
