//! What the updates of a message say about its reactions and its deletion.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{fields::Fields, raw};
use crate::update::Text;

/// Whether a `message.deleted` takes the deletion back.
pub(super) fn is_taken_back(message: &Fields<'_>) -> bool {
    message
        .get("deleted")
        .is_some_and(|deleted| deleted.get() == "false")
}

/// `message.reactionUpdate`: who reacted how, and which reactions the message has now.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReactionUpdate<'a> {
    #[serde(borrow)]
    reaction: Option<Text<'a>>,
    #[serde(borrow)]
    old_reaction: Option<Text<'a>>,
    /// In the generation of 2025-11-19 only.
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
    pub(super) fn of(message: &Fields<'a>) -> Option<Self> {
        serde_json::from_str(message.get("reactionUpdate")?.get()).ok()
    }

    /// Whether a reaction was added, changed or removed, as the names of 2025 say it.
    pub(super) fn verb(&self) -> &'static str {
        match (&self.reaction, &self.old_reaction) {
            (None, _) => "remove",
            (Some(_), Some(_)) => "update",
            (Some(_), None) => "add",
        }
    }

    /// How often the message has each reaction.
    pub(super) fn counts(self) -> Option<Cow<'a, RawValue>> {
        if let Some(reactions) = self.reaction_set {
            let count =
                |reaction: ReactionCount<'a>| (reaction.reaction.0, Cow::Borrowed(reaction.count));
            return raw(&Fields(reactions.into_iter().map(count).collect()));
        }
        let is_object = |counts: &&RawValue| counts.get().starts_with('{');
        self.counts.filter(is_object).map(Cow::Borrowed)
    }
}
