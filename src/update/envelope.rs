//! The shapes in which updates can be sent, other than the one they were published in.
//!
//! Each shape has a module; `fields` and `reactions` are what both read with. Values are
//! passed on as they were published. Pure, like the rest of `update`.
//!
//! Invariant: [`Update::rewritten`] returns JSON of the same user and tenant, and
//! rewriting that again changes nothing.

mod fields;
mod original;
mod reactions;
mod sections;

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{MAX_BODY_BYTES, SpecialisedEvent, Update};

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
    /// The update in this shape. `None` if the update has the shape already or cannot be
    /// given it: such an update is sent as it was published.
    pub fn rewritten(&self, envelope: Envelope) -> Option<Bytes> {
        let rewritten = match envelope {
            Envelope::Auto => return None,
            Envelope::Original => original::rewrite(self)?,
            Envelope::Sections => sections::rewrite(self)?,
        };
        (rewritten.len() <= MAX_BODY_BYTES).then(|| rewritten.into())
    }
}

impl<'a> Update<'a> {
    /// The event to send after `chat3:update`, if the update has one, where updates are
    /// sent in this shape. Must be asked of the update in the shape in which it is sent.
    pub fn specialised_event_in(&self, envelope: Envelope) -> Option<SpecialisedEvent<'a>> {
        match envelope {
            Envelope::Auto | Envelope::Original => self.specialised_event(),
            Envelope::Sections => sections::specialised_event(self),
        }
    }
}

fn raw<'a, T: Serialize + ?Sized>(value: &T) -> Option<Cow<'a, RawValue>> {
    to_raw_value(value).ok().map(Cow::Owned)
}
