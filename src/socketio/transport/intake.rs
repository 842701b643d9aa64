//! What one Engine.IO session may send: packets, bytes and other namespaces.
//!
//! Everything that a client sends is counted before Engine.IO sees it: each
//! websocket frame as it passes through the stream, each packet of a polling
//! request's body. Clients send a token, answers to pings and little else, and
//! nothing that they send may be answered without a bound: socketioxide answers
//! each CONNECT to a namespace that does not exist, with its name.
//!
//! Pure but for the clock; imports nothing of this crate.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Largest message or polling request from a client, in bytes; announced to clients
/// that poll. Clients send a token and little else.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Packets a second, or more where more events are allowed.
const PACKETS_PER_SECOND: u32 = 50;

/// Packets that may come at once, in seconds' worth: a tick that sends hundreds.
const BURST_SECONDS: u32 = 10;

/// Bytes a second: a full message.
const BYTES_PER_SECOND: u32 = 64 * 1024;

/// Bytes that may come at once.
const BURST_BYTES: u32 = 1024 * 1024;

/// CONNECTs to other namespaces than `/`. There are none; a frontend that expects
/// some asks once for each.
const OTHER_NAMESPACES: u32 = 10;

/// Longest name of a namespace, in bytes: what an answer repeats.
const MAX_NAMESPACE_BYTES: u8 = 128;

/// What separates the packets of a polling request (Engine.IO protocol v4).
const SEPARATOR: u8 = 0x1e;

/// How much a session may still send.
#[derive(Debug)]
pub(super) struct Budget {
    packets: DefaultDirectRateLimiter,
    bytes: DefaultDirectRateLimiter,
    other_namespaces: AtomicU32,
}

/// What was too much; the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Packets,
    Bytes,
    Namespaces,
}

impl Excess {
    /// As a metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Namespaces => "namespaces",
        }
    }
}

impl Budget {
    /// `events_per_second`: what a socket that was let in may send; 0 for any number.
    pub(super) fn new(events_per_second: u32) -> Self {
        let packets = match events_per_second {
            // Whoever takes any number has a use for it.
            0 => u32::MAX / BURST_SECONDS,
            // An event and the frames around it.
            events => events.saturating_mul(2).max(PACKETS_PER_SECOND),
        };
        let quota = |rate: u32, burst: u32| {
            let positive = |n| NonZeroU32::new(n).expect("the rates are positive");
            Quota::per_second(positive(rate)).allow_burst(positive(burst))
        };
        Self {
            packets: RateLimiter::direct(quota(packets, packets.saturating_mul(BURST_SECONDS))),
            bytes: RateLimiter::direct(quota(BYTES_PER_SECOND, BURST_BYTES)),
            other_namespaces: AtomicU32::new(0),
        }
    }

    /// Takes what was sent out of the budget.
    pub(super) fn take(&self, bytes: usize, sent: Sent) -> Result<(), Excess> {
        let is_over = |limiter: &DefaultDirectRateLimiter, n: u32| {
            NonZeroU32::new(n).is_some_and(|n| !matches!(limiter.check_n(n), Ok(Ok(()))))
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let namespaces = self
            .other_namespaces
            .fetch_add(sent.other_namespaces, Ordering::Relaxed)
            .saturating_add(sent.other_namespaces);
        if sent.has_long_name || namespaces > OTHER_NAMESPACES {
            return Err(Excess::Namespaces);
        }
        if is_over(&self.packets, sent.packets) {
            return Err(Excess::Packets);
        }
        if is_over(&self.bytes, bytes) {
            return Err(Excess::Bytes);
        }
        Ok(())
    }
}

/// What was found in bytes from a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sent {
    packets: u32,
    other_namespaces: u32,
    has_long_name: bool,
}

impl Sent {
    /// What a polling request's body holds.
    pub(super) fn in_payload(payload: &[u8]) -> Self {
        let mut sent = Self::default();
        for packet in payload.split(|&byte| byte == SEPARATOR) {
            sent.packets = sent.packets.saturating_add(1);
            let mut beginning = Beginning::default();
            for &byte in packet {
                if beginning == Beginning::Over {
                    break;
                }
                beginning.read(byte, &mut sent);
            }
        }
        sent
    }
}

/// Where in the beginning of a packet we are: `40/name,` asks for a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Beginning {
    #[default]
    Message,
    Connect,
    Slash,
    Name(u8),
    /// Of no interest any more.
    Over,
}

impl Beginning {
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

/// Follows the frames that a client sends (RFC 6455, 5.2), however they are cut
/// into reads. What is no valid frame is the websocket's to refuse.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; 14],
    /// Bytes of the header so far.
    have: u8,
    /// Bytes of the payload that are still to come.
    payload: u64,
    /// Bytes of it that came.
    read: usize,
    is_control: bool,
    /// Of the message, which may be spread over frames.
    beginning: Beginning,
}

impl Frames {
    /// What begins in `bytes`, which follow those of the last call.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Sent {
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

    /// Where the mask is, or would be.
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
        match opcode {
            // Goes on where the last frame of data ended.
            0 | 8.. => {}
            1 => self.beginning = Beginning::Message,
            _ => self.beginning = Beginning::Over,
        }
    }

    fn read_payload<'a>(&mut self, bytes: &'a [u8], sent: &mut Sent) -> &'a [u8] {
        let here = usize::try_from(self.payload).unwrap_or(usize::MAX);
        let (payload, rest) = bytes.split_at(here.min(bytes.len()));
        self.payload -= payload.len() as u64;
        for &byte in payload {
            if self.is_control || self.beginning == Beginning::Over {
                break;
            }
            let mask = match self.is_masked() {
                true => self.header[self.mask_at() + self.read % 4],
                false => 0,
            };
            self.beginning.read(byte ^ mask, sent);
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

    #[test]
    fn a_long_name_is_too_much_and_a_long_token_is_not() {
        let budget = Budget::new(10);
        let name = |length: u8| format!("40/{},", "x".repeat(usize::from(length) - 1));
        let take = |packet: &str| budget.take(packet.len(), Sent::in_payload(packet.as_bytes()));
        assert_eq!(take(&name(MAX_NAMESPACE_BYTES)), Ok(()));
        assert_eq!(
            take(&format!("40{{\"token\":\"{}\"}}", "x".repeat(8000))),
            Ok(())
        );
        assert_eq!(
            take(&name(MAX_NAMESPACE_BYTES + 1)),
            Err(Excess::Namespaces)
        );
    }

    #[test]
    fn what_a_frontend_may_send_at_once_fits_and_a_flood_does_not() {
        let allowed = |budget: Budget, bytes: usize, packet: Sent| {
            (0..100_000)
                .find_map(|n| budget.take(bytes, packet).err().map(|excess| (n, excess)))
                .unwrap()
        };
        let packet = Sent::in_payload(b"42[\"typing\"]");
        let (packets, excess) = allowed(Budget::new(10), 20, packet);
        assert_eq!(excess, Excess::Packets);
        assert!((500..1000).contains(&packets), "{packets}");
        let (messages, excess) = allowed(Budget::new(10), 60_000, packet);
        assert_eq!(excess, Excess::Bytes);
        assert!((15..40).contains(&messages), "{messages}");
        let (connects, excess) = allowed(Budget::new(10), 10, Sent::in_payload(b"40/a,"));
        assert_eq!((connects, excess), (OTHER_NAMESPACES, Excess::Namespaces));
        assert!((0..40).all(|_| Budget::new(10).take(2_000, packet).is_ok()));
        // More events than the default need more packets.
        let (packets, _) = allowed(Budget::new(1_000), 1, packet);
        assert!(packets >= 20_000, "{packets}");
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
