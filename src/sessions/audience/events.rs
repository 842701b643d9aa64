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

    /// The number of the event before these.
    pub(super) fn before(&self) -> u64 {
        self.first - 1
    }

    /// The number of the last event.
    pub(super) fn last(&self) -> u64 {
        self.first + u64::from(self.specialised.is_some())
    }

    /// Hands the events after number `seen` to a peer, and moves `seen` to the last one if the
    /// peer took them. `encoded` belongs to these events, and to `with_offsets`. Returns whether
    /// the peer took them.
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
        let took = match events {
            [Some(one), Some(two)] => peer.emit(&[one, two], encoded)?,
            [Some(one), None] => peer.emit(&[one], encoded)?,
            _ => true,
        };
        if took {
            *seen = (*seen).max(self.last());
        }
        Ok(took)
    }

    /// The names of the events after number `after`.
    pub(super) fn names(&self, after: u64) -> impl Iterator<Item = &'static str> {
        self.numbered(false)
            .filter_map(move |(number, event)| (number > after).then_some(event.name))
    }
}
