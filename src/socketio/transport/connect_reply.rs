//! Puts what recovery needs into a socket's CONNECT reply.
//!
//! `socket.io-client` (4.6 and later) recovers a connection if the reply to its
//! CONNECT carries a private session id: `40{"sid":"…","pid":"…"}` (Socket.IO
//! protocol v5, connection state recovery), and its `socket.id` is that `sid`, the
//! same as before. socketioxide writes nothing but the socket's own `sid`, and its
//! encoder cannot be replaced. But the reply is known to the byte before it is written:
//! it names a session id that nothing else written until then repeats. So the reply is
//! replaced where bytes leave the process, in the websocket's stream or in the response
//! to a poll.
//!
//! Once socketioxide can write both itself, this file and its callers go.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use socketioxide::socket::Sid;

/// A CONNECT reply that is still to be written, and the packet to write in its place.
pub(super) struct ConnectReply {
    packet: String,
    replacement: String,
    written: AtomicBool,
}

impl ConnectReply {
    /// The reply to `sid`, whose client knows itself as `id`. `pid` is put into JSON as
    /// it is: it must be plain ASCII, and short enough for a packet of under 126 bytes
    /// (see [`frame`]).
    pub(super) fn new(sid: Sid, id: Sid, pid: &str) -> Self {
        Self {
            packet: format!(r#"40{{"sid":"{sid}"}}"#),
            replacement: format!(r#"40{{"sid":"{id}","pid":"{pid}"}}"#),
            written: AtomicBool::new(false),
        }
    }

    /// Whether the reply was written: only the first one is replaced.
    pub(super) fn is_written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// The payload of a polling response with the reply replaced, if it holds the reply.
    pub(super) fn in_payload(&self, payload: &[u8]) -> Option<Bytes> {
        let packet = self.packet.as_bytes();
        let at = find(payload, packet)?;
        self.written.store(true, Ordering::Release);
        let parts = [
            &payload[..at],
            self.replacement.as_bytes(),
            &payload[at + packet.len()..],
        ];
        Some(parts.concat().into())
    }

    /// How to replace the reply's frame in what a websocket is about to write, if it holds
    /// the reply.
    pub(super) fn in_frames(&self, frames: &[u8]) -> Option<Replacement> {
        let frame_of_packet = frame(&self.packet);
        let at = find(frames, &frame_of_packet)?;
        self.written.store(true, Ordering::Release);
        Some(Replacement {
            at,
            length: frame_of_packet.len(),
            frame: frame(&self.replacement),
        })
    }
}

impl fmt::Debug for ConnectReply {
    /// Without the `pid`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectReply")
    }
}

/// Where a frame stands, and the `frame` to write in its place.
pub(super) struct Replacement {
    pub(super) at: usize,
    pub(super) length: usize,
    pub(super) frame: Bytes,
}

/// An unmasked websocket text frame (RFC 6455, 5.2) of a payload under 126 bytes.
fn frame(payload: &str) -> Bytes {
    let length = u8::try_from(payload.len()).expect("the payload is short");
    assert!(length < 126, "longer payloads have a longer header");
    [&[0x81, length], payload.as_bytes()].concat().into()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PID: &str = "0123456789abcdef0123456789abcdef";

    fn reply() -> (ConnectReply, Sid) {
        let sid = Sid::new();
        (ConnectReply::new(sid, sid, PID), sid)
    }

    #[test]
    fn the_reply_is_replaced_among_other_packets() {
        let (reply, sid) = reply();
        let payload = format!("2\u{1e}40{{\"sid\":\"{sid}\"}}\u{1e}42[\"a\",\"{sid}\"]");
        let replaced = reply.in_payload(payload.as_bytes()).unwrap();
        let expected =
            format!("2\u{1e}40{{\"sid\":\"{sid}\",\"pid\":\"{PID}\"}}\u{1e}42[\"a\",\"{sid}\"]");
        assert_eq!(replaced, expected);
        assert!(reply.is_written());
    }

    #[test]
    fn the_reply_names_the_client_as_it_knows_itself() {
        let (sid, id) = (Sid::new(), Sid::new());
        let reply = ConnectReply::new(sid, id, PID);
        let payload = format!(r#"40{{"sid":"{sid}"}}"#);
        let replaced = reply.in_payload(payload.as_bytes()).unwrap();
        assert_eq!(replaced, format!(r#"40{{"sid":"{id}","pid":"{PID}"}}"#));
    }

    #[test]
    fn the_reply_is_replaced_among_other_frames() {
        let (reply, sid) = reply();
        let plain = frame(&format!(r#"40{{"sid":"{sid}"}}"#));
        let frames = [&frame("2")[..], &plain, &frame("42[]")].concat();
        let replaced = reply.in_frames(&frames).unwrap();
        assert_eq!(replaced.at, 3);
        assert_eq!(replaced.length, plain.len());
        let with_pid = format!(r#"40{{"sid":"{sid}","pid":"{PID}"}}"#);
        assert_eq!(replaced.frame[..2], [0x81, 69]);
        assert_eq!(replaced.frame[2..], *with_pid.as_bytes());
    }

    #[test]
    fn nothing_else_is_taken_for_the_reply() {
        let (reply, sid) = reply();
        let foreign = format!(r#"40{{"sid":"{}"}}"#, Sid::new());
        let open = format!(r#"0{{"sid":"{sid}","upgrades":[]}}"#);
        for packet in [&foreign, &open, "", "40", "3probe"] {
            assert!(reply.in_payload(packet.as_bytes()).is_none(), "{packet}");
            if packet.len() < 126 {
                assert!(reply.in_frames(&frame(packet)).is_none(), "{packet}");
            }
        }
        assert!(!reply.is_written());
    }

    proptest! {
        #[test]
        fn everything_around_the_reply_stays_as_it_is(
            before in proptest::collection::vec(any::<u8>(), 0..200),
            after in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let (reply, sid) = reply();
            prop_assert!(reply.in_frames(&before).is_none());
            let plain = frame(&format!(r#"40{{"sid":"{sid}"}}"#));
            let written = [&before, &plain[..], &after].concat();
            let replaced = reply.in_frames(&written).unwrap();
            prop_assert_eq!(&written[..replaced.at], &before);
            prop_assert_eq!(&written[replaced.at + replaced.length..], &after);
        }
    }
}
