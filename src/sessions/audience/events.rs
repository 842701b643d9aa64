//! The events of one update, numbered, on their way to sockets.

use crate::{
    sessions::{
        log::Log,
        offset::{Offset, Place},
        peer::{Closed, Event, Peer},
    },
    update::{CHAT3_UPDATE, SpecialisedEvent, Update},
};

/// The events of one update, with their offsets.
pub(super) struct Events<'a> {
    update: &'a Update<'a>,
    specialised: Option<SpecialisedEvent<'a>>,
    first: u64,
    /// Empty where nobody is sent offsets.
    offsets: [String; 2],
}

impl<'a> Events<'a> {
    /// The events of an update that has the number `first`, and the next if there are two, in
    /// the log.
    pub(super) fn of_log(
        log: &Log,
        first: u64,
        update: &'a Update<'a>,
        specialised: Option<SpecialisedEvent<'a>>,
    ) -> Self {
        let offset = |number| log.offset(number).to_string();
        Self {
            update,
            specialised,
            first,
            offsets: [offset(first), offset(first + 1)],
        }
    }

    /// The events of the update of this number in the history. The last event has twice the
    /// number and one, the one before it one less.
    pub(super) fn of_history(
        number: u64,
        place: Option<Place>,
        update: &'a Update<'a>,
        specialised: Option<SpecialisedEvent<'a>>,
    ) -> Self {
        let offset = |is_last| {
            let offset = place.map(|place| Offset::Shared { place, is_last });
            offset.map_or_else(String::new, |offset| offset.to_string())
        };
        let is_one = specialised.is_none();
        Self {
            update,
            specialised,
            first: 2 * number + u64::from(is_one),
            offsets: [offset(is_one), offset(true)],
        }
    }

    /// Each event with its number.
    fn numbered(&self, with_offsets: bool) -> impl Iterator<Item = (u64, Event<'_>)> {
        let whole = (CHAT3_UPDATE, self.update.body);
        let specialised = self.specialised.as_ref();
        let specialised = specialised.map(|event| (event.name, &*event.payload));
        let events = [Some(whole), specialised].into_iter().flatten();
        let numbered = (self.first..).zip(&self.offsets).zip(events);
        numbered.map(move |((number, offset), (name, payload))| {
            let offset = with_offsets.then_some(offset.as_str());
            let event = Event {
                name,
                payload,
                offset,
            };
            (number, event)
        })
    }

    /// Hands the events after number `seen` to a peer, and moves `seen` to the last one that the
    /// peer took. `encoded` belongs to these events, and to `with_offsets`. Returns whether the
    /// peer takes more.
    pub(super) fn emit<P: Peer>(
        &self,
        peer: &P,
        seen: &mut u64,
        with_offsets: bool,
        encoded: &mut P::Encoded,
    ) -> Result<bool, Closed> {
        let mut events = [None; 2];
        let after = self
            .numbered(with_offsets)
            .filter(|(number, _)| number > seen);
        for (slot, (_, event)) in events.iter_mut().zip(after) {
            *slot = Some(event);
        }
        let handed = match events {
            [Some(one), Some(two)] => peer.emit(&[one, two], encoded)?,
            [Some(one), None] => peer.emit(&[one], encoded)?,
            _ => return Ok(true),
        };
        *seen = (*seen).max(self.first - 1) + handed.events as u64;
        Ok(handed.takes_more)
    }

    /// The names of the events after number `after`, up to and including `until`.
    pub(super) fn names(&self, after: u64, until: u64) -> impl Iterator<Item = &'static str> {
        let is_between = move |number: u64| number > after && number <= until;
        self.numbered(false)
            .filter_map(move |(number, event)| is_between(number).then_some(event.name))
    }
}
