//! A Socket.IO socket as the sessions' [`Peer`]: how an event is encoded, what it
//! costs on the wire, and what the transport under the socket tells.

mod crowd;

use std::time::Duration;

use socketioxide::{SendError, SocketError, TransportType, extract::SocketRef, socket::Sid};

use self::crowd::Rooms;
use crate::{
    sessions::peer::{EmitError, Event, Peer},
    socketio::transport::{PING_INTERVAL, PING_TIMEOUT, Transports},
};

/// A socket, and the transports that know its connection.
#[derive(Clone)]
pub struct SocketPeer {
    socket: SocketRef,
    transports: Transports,
}

impl SocketPeer {
    pub fn new(socket: SocketRef, transports: Transports) -> Self {
        Self { socket, transports }
    }

    fn is_websocket(&self) -> bool {
        self.socket.transport_type() == TransportType::Websocket
    }
}

impl Peer for SocketPeer {
    type Id = Sid;
    type Crowd = Rooms;

    /// A ping is sent after an interval and not answered in time; the rest allows for a
    /// process that is late itself.
    const LOSS_NOTICED_WITHIN: Duration = PING_INTERVAL
        .saturating_add(PING_TIMEOUT)
        .saturating_add(Duration::from_secs(15));

    fn id(&self) -> Sid {
        self.socket.id
    }

    fn emit(&self, event: &Event<'_>) -> Result<(), EmitError> {
        // A tuple's items are the event's arguments, also if one is an array.
        let emitted = match event.offset {
            Some(offset) => self.socket.emit(event.name, &(event.payload, offset)),
            None => self.socket.emit(event.name, &(event.payload,)),
        };
        emitted.map_err(|error| match error {
            SendError::Socket(SocketError::InternalChannelFull) => EmitError::Full,
            SendError::Socket(SocketError::Closed) => EmitError::Closed,
            SendError::Serialize(_) => EmitError::Unencodable,
        })
    }

    fn wire_bytes(&self, event: &Event<'_>) -> u64 {
        wire_bytes(event, self.socket.transport_type())
    }

    fn taken(&self) -> u64 {
        self.transports.taken(&self.socket)
    }

    fn has_taken_all(&self) -> bool {
        self.is_websocket() && self.transports.has_written_all(&self.socket)
    }

    fn polls(&self) -> bool {
        !self.is_websocket()
    }

    fn more_waits(&self, waits: bool) {
        self.transports.more_waits(&self.socket, waits);
    }

    fn is_connected(&self) -> bool {
        self.socket.connected()
    }

    fn close(&self) {
        self.transports.close(&self.socket);
    }
}

/// Bytes of an event on the wire: `42["name",payload,"offset"]` (Socket.IO protocol v5)
/// in an unmasked websocket frame (RFC 6455), or in a polling response. The separators
/// of a polling response are left out, because the count must never exceed what is
/// taken.
fn wire_bytes(event: &Event<'_>, over: TransportType) -> u64 {
    let offset = event
        .offset
        .map_or(0, |offset| ",\"\"".len() + offset.len());
    let packet = "42[\"\",]".len() + event.name.len() + event.payload.get().len() + offset;
    let header = match (over, packet) {
        (TransportType::Polling, _) => 0,
        (TransportType::Websocket, ..126) => 2,
        (TransportType::Websocket, ..=0xffff) => 4,
        (TransportType::Websocket, _) => 10,
    };
    (packet + header) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_counted_as_what_is_written() {
        for length in [1, 80, 81, 90, 91, 92, 700, 65_505, 65_506, 65_520, 65_521] {
            let payload = serde_json::value::to_raw_value(&"x".repeat(length)).unwrap();
            let args = [
                (None, String::new()),
                (Some("0badcafe-1f"), r#","0badcafe-1f""#.to_owned()),
            ];
            for (offset, written) in args {
                let event = Event {
                    name: "message:new",
                    payload: &payload,
                    offset,
                };
                let packet = format!(r#"42["message:new",{payload}{written}]"#);
                let mut frame = Vec::new();
                put_into_frame(&packet, &mut frame);
                let over_websocket = wire_bytes(&event, TransportType::Websocket);
                assert_eq!(over_websocket, frame.len() as u64);
                let over_polling = wire_bytes(&event, TransportType::Polling);
                assert_eq!(over_polling, packet.len() as u64);
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
