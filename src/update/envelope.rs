//! The shapes in which updates are sent, other than the one that they were
//! published in. Pure, like the rest of the module.
//!
//! Owns how a body is taken apart and what both shapes read of it; each shape has
//! a module. Values are passed on as they were published.
//!
//! Invariant: what [`Update::rewritten`] returns is JSON, of the same user and
//! tenant, and rewriting it again changes nothing.

mod original;
mod sections;

use std::{borrow::Cow, collections::HashSet, fmt};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::{RawValue, to_raw_value};

use super::{MAX_BODY_BYTES, SpecialisedEvent, Text, Update};

/// The shape in which updates are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Envelope {
    /// As published.
    #[default]
    Auto,
    /// As first documented, whichever generation published them.
    Original,
    /// A section for each entity, under the names of 2025: what antirek/chatapp reads.
    Sections,
}

impl Update<'_> {
    /// The update in this shape. `None` where it has it already, or cannot be given
    /// it: then it is sent as it was published.
    pub fn rewritten(&self, envelope: Envelope) -> Option<Bytes> {
        let rewritten = match envelope {
            Envelope::Auto => return None,
            Envelope::Original => original::rewrite(self)?,
            Envelope::Sections => sections::rewrite(self)?,
        };
        (rewritten.len() <= MAX_BODY_BYTES).then(|| rewritten.into())
    }
}

/// The event to send after `chat3:update` where updates are sent in sections.
pub(super) fn event_in_sections<'a>(update: &Update<'a>) -> Option<SpecialisedEvent<'a>> {
    sections::specialised_event(update)
}

/// Whether a `message.deleted` says that the message is there again.
fn is_taken_back(message: &Fields<'_>) -> bool {
    message
        .get("deleted")
        .is_some_and(|deleted| deleted.get() == "false")
}

/// `message.reactionUpdate`: who reacted how, and what the message has now.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReactionUpdate<'a> {
    #[serde(borrow)]
    reaction: Option<Text<'a>>,
    #[serde(borrow)]
    old_reaction: Option<Text<'a>>,
    /// In 2025-11-19 only.
    #[serde(borrow)]
    counts: Option<&'a RawValue>,
    #[serde(borrow)]
    reaction_set: Option<Vec<ReactionCount<'a>>>,
}

#[derive(Deserialize)]
struct ReactionCount<'a> {
    #[serde(borrow)]
    reaction: Text<'a>,
    #[serde(borrow)]
    count: &'a RawValue,
}

impl<'a> ReactionUpdate<'a> {
    fn of(message: &Fields<'a>) -> Option<Self> {
        serde_json::from_str(message.get("reactionUpdate")?.get()).ok()
    }

    fn verb(&self) -> &'static str {
        match (&self.reaction, &self.old_reaction) {
            (None, _) => "remove",
            (Some(_), Some(_)) => "update",
            (Some(_), None) => "add",
        }
    }

    fn counts(self) -> Option<Cow<'a, RawValue>> {
        if let Some(reactions) = self.reaction_set {
            let count =
                |reaction: ReactionCount<'a>| (reaction.reaction.0, Cow::Borrowed(reaction.count));
            return raw(&Fields(reactions.into_iter().map(count).collect()));
        }
        let is_object = |counts: &&RawValue| counts.get().starts_with('{');
        self.counts.filter(is_object).map(Cow::Borrowed)
    }
}

/// Fields of most objects in Chat3's bodies, so that they are allocated once.
const USUAL_FIELDS: usize = 12;

/// An object's fields in their order, each value as it was published.
#[derive(Default)]
struct Fields<'a>(Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

impl<'a> Fields<'a> {
    /// `None` if it is no object.
    fn parse(value: &'a RawValue) -> Option<Self> {
        serde_json::from_str(value.get()).ok()
    }

    /// The value that a browser would take: of a repeated field, the last one.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let is_it = |(field, _): &&(Cow<'a, str>, _)| field == name;
        match self.0.iter().rfind(is_it)?.1 {
            Cow::Borrowed(value) => Some(value),
            Cow::Owned(_) => None,
        }
    }

    /// The same, unless it is `null` or an empty string.
    fn given(&self, name: &str) -> Option<&'a RawValue> {
        let is_nothing = |value: &RawValue| matches!(value.get(), "null" | "\"\"");
        self.get(name).filter(|value| !is_nothing(value))
    }

    fn push(&mut self, name: Cow<'a, str>, value: &'a RawValue) {
        if self.0.is_empty() {
            self.0.reserve(USUAL_FIELDS);
        }
        self.0.push((name, Cow::Borrowed(value)));
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    /// Adds those of `others` that are not here.
    fn add_missing(&mut self, others: &Self) {
        let own: HashSet<&str> = self.0.iter().map(|(field, _)| &**field).collect();
        let missing = |(field, _): &&(Cow<'a, str>, _)| !own.contains(&**field);
        let missing: Vec<_> = others.0.iter().filter(missing).cloned().collect();
        self.0.extend(missing);
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some((Text(name), value)) = map.next_entry::<_, &RawValue>()? {
                    fields.push(name, value);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

fn raw<'a, T: Serialize + ?Sized>(value: &T) -> Option<Cow<'a, RawValue>> {
    to_raw_value(value).ok().map(Cow::Owned)
}
