//! One update's events, on their way to sockets: encoded for one, or once for a
//! crowd. Also how far a socket lags behind what was handed to it.

use serde_json::value::RawValue;
use socketioxide::{SendError, TransportType, extract::SocketRef};

use super::{crowd::Crowd, log::Log};
use crate::{
    socketio::transport::Transports,
    update::{CHAT3_UPDATE, SpecialisedEvent, Update},
};

/// How far a socket lags behind.
#[derive(Default)]
pub(super) struct Lag {
    /// Bytes of events handed to the socket.
    handed: u64,
    /// Bytes that its peer had taken of them when that was last looked up.
    taken: u64,
}

impl Lag {
    /// Notes that nothing waits for the socket any more.
    pub(super) fn clear(&mut self) {
        self.handed = self.taken;
    }

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
            // Pings and the like count as taken only: over time they would outrun
            // what was handed.
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
    /// Bytes of the event on the wire: `42["name",payload,"offset"]` (Socket.IO
    /// protocol v5) in a websocket frame of the server's (RFC 6455), or in a polling
    /// response, where what separates it from others is left out. Never more than
    /// will be taken: a socket must not seem to lag for ever.
    fn bytes(&self, form: Form) -> u64 {
        let offset = match form.with_offset {
            true => ",\"\"".len() + self.offset.len(),
            false => 0,
        };
        let packet = "42[\"\",]".len() + self.name.len() + self.payload.get().len() + offset;
        let header = match (form.over, packet) {
            (TransportType::Polling, _) => 0,
            (TransportType::Websocket, ..126) => 2,
            (TransportType::Websocket, ..=0xffff) => 4,
            (TransportType::Websocket, _) => 10,
        };
        (packet + header) as u64
    }
}

/// What a socket's events look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) with_offset: bool,
    pub(super) over: TransportType,
}

impl Form {
    pub(super) fn of(socket: &SocketRef, with_offset: bool) -> Self {
        let over = socket.transport_type();
        Self { with_offset, over }
    }
}

impl<'a> Events<'a> {
    /// The events of an update whose first one has the number `first`.
    pub(super) fn new(
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

    fn each(&self) -> impl Iterator<Item = Event<'_>> {
        let whole = (CHAT3_UPDATE, self.update.body);
        let specialised = self.specialised.as_ref();
        let specialised = specialised.map(|event| (event.name, &*event.payload));
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
        let form = Form::of(socket, with_offsets);
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
            lag.add(event.bytes(form));
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
    pub(super) fn bytes(&self, form: Form) -> u64 {
        self.each().map(|event| event.bytes(form)).sum()
    }

    /// The names of the events after number `after`, up to and including `until`.
    pub(super) fn names(&self, after: u64, until: u64) -> impl Iterator<Item = &'static str> {
        let is_between = move |event: &Event| event.number > after && event.number <= until;
        self.each().filter(is_between).map(|event| event.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_counted_as_what_is_written() {
        for length in [1, 80, 81, 90, 91, 92, 700, 65_505, 65_506, 65_520, 65_521] {
            let payload = serde_json::value::to_raw_value(&"x".repeat(length)).unwrap();
            let event = Event {
                number: 1,
                name: "message:new",
                payload: &payload,
                offset: "0badcafe-1f",
            };
            let args = [
                (false, String::new()),
                (true, r#","0badcafe-1f""#.to_owned()),
            ];
            for (with_offset, offset) in args {
                let packet = format!(r#"42["message:new",{payload}{offset}]"#);
                let mut frame = Vec::new();
                put_into_frame(&packet, &mut frame);
                let over = TransportType::Websocket;
                assert_eq!(event.bytes(Form { with_offset, over }), frame.len() as u64);
                let over = TransportType::Polling;
                assert_eq!(event.bytes(Form { with_offset, over }), packet.len() as u64);
            }
        }
    }

    /// A server's text frame, RFC 6455, 5.2.
    fn put_into_frame(text: &str, frame: &mut Vec<u8>) {
        frame.push(0x81);
        match (u8::try_from(text.len()), u16::try_from(text.len())) {
            (Ok(length @ ..126), _) => frame.push(length),
            (_, Ok(length)) => {
                frame.push(126);
                frame.extend(length.to_be_bytes());
            }
            _ => {
                frame.push(127);
                frame.extend((text.len() as u64).to_be_bytes());
            }
        }
        frame.extend(text.as_bytes());
    }
}
