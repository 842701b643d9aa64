//! One update's events, on their way to sockets: encoded for one, or once for a
//! crowd. Also how far a socket lags behind what was handed to it.

use serde_json::value::RawValue;
use socketioxide::{SendError, extract::SocketRef};

use super::{crowd::Crowd, log::Log};
use crate::{
    transport::Transports,
    update::{CHAT3_UPDATE, SpecialisedEvent, Update},
};

/// What an event takes besides its payload, at least: its name and offset.
const FRAMING_BYTES: usize = 32;

/// How far a socket lags behind.
#[derive(Default)]
pub(super) struct Lag {
    /// Bytes of events handed to the socket.
    handed: u64,
    /// Bytes that its peer had taken of them when that was last looked up.
    taken: u64,
}

impl Lag {
    /// Notes that so many bytes were handed to the socket.
    pub(super) fn add(&mut self, bytes: u64) {
        self.handed += bytes;
    }

    /// Whether more than `limit` bytes wait for the socket; looks it up only
    /// where that may be.
    pub(super) fn exceeds(
        &mut self,
        limit: usize,
        socket: &SocketRef,
        transports: &Transports,
    ) -> bool {
        let limit = limit as u64;
        if self.handed - self.taken > limit {
            self.taken = transports.taken(socket);
            // Framing counts as taken only: over time it would outrun what was handed.
            self.handed = self.handed.max(self.taken);
        }
        self.handed - self.taken > limit
    }
}

/// The events of one update, with their offsets.
pub(super) struct Events<'a> {
    update: &'a Update<'a>,
    specialised: Option<SpecialisedEvent<'a>>,
    first: u64,
    offsets: [String; 2],
}

/// One of them.
struct Event<'a> {
    number: u64,
    name: &'static str,
    payload: &'a RawValue,
    offset: &'a str,
}

impl Event<'_> {
    fn bytes(&self) -> u64 {
        (FRAMING_BYTES + self.payload.get().len()) as u64
    }
}

impl<'a> Events<'a> {
    /// The events of an update whose first one has the number `first`.
    pub(super) fn new(log: &Log, first: u64, update: &'a Update<'a>) -> Self {
        let offset = |number| log.offset(number).to_string();
        Self {
            update,
            specialised: update.specialised_event(),
            first,
            offsets: [offset(first), offset(first + 1)],
        }
    }

    fn each(&self) -> impl Iterator<Item = Event<'_>> {
        let whole = (CHAT3_UPDATE, self.update.body);
        let specialised = self.specialised.map(|event| (event.name, event.payload));
        let events = [Some(whole), specialised].into_iter().flatten();
        let numbered = (self.first..).zip(&self.offsets).zip(events);
        numbered.map(|((number, offset), (name, payload))| Event {
            number,
            name,
            payload,
            offset,
        })
    }

    /// Emits the events after number `seen`, which follows them.
    pub(super) fn emit(
        &self,
        socket: &SocketRef,
        seen: &mut u64,
        with_offsets: bool,
        lag: &mut Lag,
    ) -> Result<(), SendError> {
        for event in self.each() {
            if event.number <= *seen {
                continue;
            }
            // A tuple's items are the event's arguments, also if one is an array.
            match with_offsets {
                true => socket.emit(event.name, &(event.payload, event.offset))?,
                false => socket.emit(event.name, &(event.payload,))?,
            }
            *seen = event.number;
            lag.add(event.bytes());
        }
        Ok(())
    }

    /// Emits the events to a crowd's room of live sockets; `false` if one missed
    /// something.
    pub(super) fn emit_to_crowd(&self, crowd: &Crowd, one: &SocketRef, with_offsets: bool) -> bool {
        self.each().all(|event| match with_offsets {
            true => crowd.emit(one, true, event.name, &(event.payload, event.offset)),
            false => crowd.emit(one, false, event.name, &(event.payload,)),
        })
    }

    /// What they add to a socket's [`Lag`].
    pub(super) fn bytes(&self) -> u64 {
        self.each().map(|event| event.bytes()).sum()
    }

    /// The names of the events after number `after`, up to and including `until`.
    pub(super) fn names(&self, after: u64, until: u64) -> impl Iterator<Item = &'static str> {
        let is_between = move |event: &Event| event.number > after && event.number <= until;
        self.each().filter(is_between).map(|event| event.name)
    }
}
