//! Events as they stand on the wire: `42["name",payload,"offset"]` (Socket.IO protocol v5) in a
//! text frame of a server (RFC 6455, 5.2).
//!
//! Pure. Names are the gateway's own, and offsets plain ASCII, so that neither needs escapes.

use bytes::Bytes;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

use crate::sessions::peer::Event;

/// Bytes of an event's packet.
pub(super) fn packet_bytes(event: &Event<'_>) -> usize {
    let offset = event
        .offset
        .map_or(0, |offset| r#","""#.len() + offset.len());
    r#"42["",]"#.len() + event.name.len() + event.payload.get().len() + offset
}

/// Puts events into frames.
pub(super) fn pack(events: &[Event<'_>]) -> Bytes {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Text),
        ..FrameHeader::default()
    };
    let frame_bytes = |event| {
        let packet = packet_bytes(event);
        header.len(packet as u64) + packet
    };
    let mut frames = Vec::with_capacity(events.iter().map(frame_bytes).sum());
    for event in events {
        let bytes = &mut frames;
        let written = header.format(packet_bytes(event) as u64, bytes);
        written.expect("a vector takes everything");
        bytes.extend_from_slice(br#"42[""#);
        bytes.extend_from_slice(event.name.as_bytes());
        bytes.extend_from_slice(br#"","#);
        bytes.extend_from_slice(event.payload.get().as_bytes());
        if let Some(offset) = event.offset {
            bytes.extend_from_slice(br#",""#);
            bytes.extend_from_slice(offset.as_bytes());
            bytes.push(b'"');
        }
        bytes.push(b']');
    }
    frames.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_packed_as_socket_io_would_write_them() {
        for length in [1, 80, 81, 90, 91, 92, 700, 65_505, 65_506, 65_520, 65_521] {
            let payload = serde_json::value::to_raw_value(&"x".repeat(length)).unwrap();
            let args = [
                (None, String::new()),
                (Some("0badcafe-1f"), r#","0badcafe-1f""#.to_owned()),
            ];
            let mut packed = Vec::new();
            let mut expected = Vec::new();
            for (offset, written) in args {
                let event = Event {
                    name: "message:new",
                    payload: &payload,
                    offset,
                };
                let text = format!(r#"42["message:new",{payload}{written}]"#);
                assert_eq!(packet_bytes(&event), text.len());
                put_into_frame(&text, &mut expected);
                let frames = pack(&[event]);
                packed.extend(frames);
            }
            assert_eq!(packed, expected);
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
