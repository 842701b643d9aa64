//! Reads along with what a client sends: how many packets there are, and which of
//! them ask for another namespace.
//!
//! A websocket's bytes are followed frame by frame, a polling request's body packet by
//! packet. What is too much is `budget`'s to say, and what is not a valid frame is the
//! websocket's to refuse.
//!
//! Pure; imports nothing of this crate.

/// Longest name of a namespace, in bytes: socketioxide's answer repeats the name.
pub(super) const MAX_NAMESPACE_BYTES: u8 = 128;

/// What separates the packets of a polling request (Engine.IO protocol v4).
const SEPARATOR: u8 = 0x1e;

/// What bytes from a client hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub(super) packets: u32,
    /// CONNECTs to namespaces other than `/`.
    pub(super) other_namespaces: u32,
    /// A namespace's name is over [`MAX_NAMESPACE_BYTES`].
    pub(super) has_long_name: bool,
}

impl Sent {
    /// Counts what a polling request's body holds.
    pub(super) fn in_payload(payload: &[u8]) -> Self {
        let mut sent = Self::default();
        for packet in payload.split(|&byte| byte == SEPARATOR) {
            sent.packets = sent.packets.saturating_add(1);
            let mut start = PacketStart::default();
            for &byte in packet {
                if start == PacketStart::Over {
                    break;
                }
                start.read(byte, &mut sent);
            }
        }
        sent
    }
}

/// How far the start of a packet has been read: `40/name,` asks for a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum PacketStart {
    #[default]
    Message,
    Connect,
    Slash,
    Name(u8),
    /// The rest of the packet does not matter.
    Over,
}

impl PacketStart {
    fn read(&mut self, byte: u8, sent: &mut Sent) {
        *self = match (*self, byte) {
            (Self::Message, b'4') => Self::Connect,
            (Self::Connect, b'0') => Self::Slash,
            (Self::Slash, b'/') => {
                sent.other_namespaces = sent.other_namespaces.saturating_add(1);
                Self::Name(1)
            }
            (Self::Name(length), byte) if byte != b',' => {
                if length < MAX_NAMESPACE_BYTES {
                    Self::Name(length + 1)
                } else {
                    sent.has_long_name = true;
                    Self::Over
                }
            }
            _ => Self::Over,
        };
    }
}

/// Follows the frames that a peer sends (RFC 6455, 5.2), however they are cut
/// into reads or writes.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; 14],
    /// Bytes of the header so far.
    have: u8,
    /// Bytes of the payload that are still to come.
    payload: u64,
    /// Bytes of the payload that were read.
    read: usize,
    is_control: bool,
    is_closing: bool,
    /// Of the message, which may be spread over several frames.
    start: PacketStart,
}

impl Frames {
    /// Counts what begins in `bytes`, which follow those of the last call.
    pub fn read(&mut self, mut bytes: &[u8]) -> Sent {
        let mut sent = Sent::default();
        while let [first, rest @ ..] = bytes {
            if self.payload > 0 {
                bytes = self.read_payload(bytes, &mut sent);
                continue;
            }
            self.header[usize::from(self.have)] = *first;
            self.have += 1;
            bytes = rest;
            if self.has_header() {
                self.begin_payload();
                sent.packets = sent.packets.saturating_add(1);
            }
        }
        sent
    }

    /// Whether what was read so far ends with a frame.
    pub fn is_between(&self) -> bool {
        self.have == 0 && self.payload == 0
    }

    /// Bytes of the current frame that are still to come; `None` within its header.
    pub fn left(&self) -> Option<usize> {
        let left = usize::try_from(self.payload).unwrap_or(usize::MAX);
        (self.have == 0).then_some(left)
    }

    /// Whether a close frame has begun, which is a peer's last one.
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Offset of the mask in the header, or of the payload where there is no mask.
    fn mask_at(&self) -> usize {
        match self.header[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    fn is_masked(&self) -> bool {
        self.header[1] & 0x80 != 0
    }

    /// Whether all bytes of the header are there.
    fn has_header(&self) -> bool {
        let mask = if self.is_masked() { 4 } else { 0 };
        self.have >= 2 && usize::from(self.have) == self.mask_at() + mask
    }

    fn begin_payload(&mut self) {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte));
        self.payload = match self.header[1] & 0x7f {
            126 => number(&self.header[2..4]),
            127 => number(&self.header[2..10]),
            length => length.into(),
        };
        self.read = 0;
        self.have = 0;
        let opcode = self.header[0] & 0x0f;
        self.is_control = opcode & 8 != 0;
        self.is_closing |= opcode == 8;
        match opcode {
            // Continuations go on where the last frame of data ended; control frames come
            // between.
            0 | 8.. => {}
            1 => self.start = PacketStart::Message,
            _ => self.start = PacketStart::Over,
        }
    }

    fn read_payload<'a>(&mut self, bytes: &'a [u8], sent: &mut Sent) -> &'a [u8] {
        let here = usize::try_from(self.payload).unwrap_or(usize::MAX);
        let (payload, rest) = bytes.split_at(here.min(bytes.len()));
        self.payload -= payload.len() as u64;
        for &byte in payload {
            if self.is_control || self.start == PacketStart::Over {
                break;
            }
            let mask = match self.is_masked() {
                true => self.header[self.mask_at() + self.read % 4],
                false => 0,
            };
            self.start.read(byte ^ mask, sent);
            self.read += 1;
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTINUATION: u8 = 0;
    const TEXT: u8 = 1;
    const BINARY: u8 = 2;
    const PING: u8 = 9;

    fn frame(opcode: u8, is_final: bool, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
        let masked = if mask.is_some() { 0x80 } else { 0 };
        let mut frame = vec![opcode | if is_final { 0x80 } else { 0 }];
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length @ ..126), _) => frame.push(masked + length),
            (_, Ok(length)) => {
                frame.push(masked + 126);
                frame.extend(length.to_be_bytes());
            }
            _ => {
                frame.push(masked + 127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend(mask.unwrap_or_default().iter().filter(|_| mask.is_some()));
        let mask = mask.unwrap_or_default();
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
        frame
    }

    fn masked(opcode: u8, payload: &str) -> Vec<u8> {
        frame(opcode, true, Some([7, 0, 255, 42]), payload.as_bytes())
    }

    #[test]
    fn a_connect_to_another_namespace_is_seen_wherever_it_is() {
        for (packet, expected) in [
            ("40", 0),
            ("40{\"token\":\"/\"}", 0),
            ("40/a,", 1),
            ("40/a", 1),
            ("42/a,[\"b\"]", 0),
            ("3", 0),
            ("", 0),
        ] {
            let sent = Frames::default().read(&masked(TEXT, packet));
            let in_payload = Sent::in_payload(packet.as_bytes());
            assert_eq!(sent, in_payload, "{packet}");
            assert_eq!(sent.other_namespaces, expected, "{packet}");
            assert_eq!(sent.packets, 1, "{packet}");
        }
        let sent = Sent::in_payload("3\u{1e}40/a,\u{1e}\u{1e}40/b".as_bytes());
        assert_eq!((sent.packets, sent.other_namespaces), (4, 2));
        assert_eq!(
            Frames::default()
                .read(&masked(BINARY, "40/a,"))
                .other_namespaces,
            0
        );
    }

    #[test]
    fn a_message_in_pieces_with_a_ping_between_is_one_message() {
        let mask = Some([1, 2, 3, 4]);
        let bytes = [
            frame(TEXT, false, mask, b"4"),
            frame(PING, true, mask, b"40/x"),
            frame(CONTINUATION, false, mask, b"0/"),
            frame(CONTINUATION, true, mask, b"a,"),
            frame(TEXT, true, mask, b"40/b"),
        ];
        let sent = Frames::default().read(&bytes.concat());
        assert_eq!((sent.packets, sent.other_namespaces), (5, 2));
    }

    prop_compose! {
        fn any_frame()(
            opcode in prop_oneof![Just(TEXT), Just(BINARY), Just(CONTINUATION), Just(PING)],
            mask in any::<Option<[u8; 4]>>(),
            payload in prop_oneof![
                Just(b"40/chat,{}".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..300),
                proptest::collection::vec(any::<u8>(), 65_530..65_540),
            ],
        ) -> Vec<u8> {
            frame(opcode, true, mask, &payload)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_are_counted_once_however_they_are_cut(
            frames in proptest::collection::vec(any_frame(), 0..8),
            cuts in proptest::collection::vec(1..2_000_usize, 1..50),
        ) {
            let bytes = frames.concat();
            let whole = Frames::default().read(&bytes);
            prop_assert_eq!(whole.packets as usize, frames.len());
            let (mut cut, mut rest) = (Frames::default(), &bytes[..]);
            let mut sum = Sent::default();
            for length in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*length).min(rest.len()));
                let sent = cut.read(now);
                sum.packets += sent.packets;
                sum.other_namespaces += sent.other_namespaces;
                sum.has_long_name |= sent.has_long_name;
                rest = later;
            }
            prop_assert_eq!(sum, whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            Frames::default().read(&bytes);
            Sent::in_payload(&bytes);
        }
    }
}
