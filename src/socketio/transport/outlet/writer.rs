//! Whose turn it is to write, and what is written: the decisions of an `Outlet`, which knows the
//! socket.
//!
//! Pure; whoever calls says how bytes are written.

use std::io;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tungstenite::protocol::frame::FrameHeader;

use crate::socketio::transport::frames::Frames;

/// The name of the event that is a marker. Its argument is the session's number.
pub const MARKER: &str = "chat3-gateway:direct";

/// What a marker's frame begins with, behind its header of two bytes (RFC 6455, 5.2; Socket.IO
/// protocol v5).
const MARKER_START: &[u8] = br#"42["chat3-gateway:direct","#;

/// Frames that are written together.
#[derive(Debug, Default)]
pub struct Packed {
    pub bytes: Vec<u8>,
    /// Where each frame ends.
    pub ends: SmallVec<[usize; 2]>,
}

/// What became of a direct write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Frames that were taken, from the first. The last one may be written in part.
    pub frames: usize,
    /// Bytes that were written.
    pub bytes: usize,
    /// Whether all of it was written.
    pub is_all: bool,
}

/// How to go on with what Socket.IO is about to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Up to so many bytes may be written.
    Write(usize),
    /// So many bytes are a marker, and count as written.
    Skip(usize),
}

/// Who writes events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Way {
    #[default]
    Engine,
    /// The session of this number, once its marker is out.
    Asked(u64),
    Direct(u64),
}

/// The decisions, without a socket.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Follows what is written; `None` before the websocket.
    sent: Option<Frames>,
    /// What is left of a direct frame.
    rest: Bytes,
    way: Way,
    /// Markers on their way through Socket.IO.
    markers: u32,
}

impl Writer {
    /// From now on, what is written are a websocket's frames.
    pub(super) fn begin_frames(&mut self) {
        self.sent = Some(Frames::default());
    }

    pub(super) fn is_between(&self) -> bool {
        self.rest.is_empty() && self.sent.as_ref().is_some_and(Frames::is_between)
    }

    /// Whether the session's frames may follow what was written.
    pub(super) fn may_write(&self, session: u64) -> bool {
        let is_between = self.sent.as_ref().is_some_and(Frames::is_between);
        self.way == Way::Direct(session) && (is_between || !self.rest.is_empty())
    }

    pub(super) fn ask(&mut self, session: u64) -> bool {
        // Sessions are numbered in their order, and an earlier one has ended.
        if matches!(self.way, Way::Asked(asked) | Way::Direct(asked) if asked >= session) {
            return false;
        }
        self.way = Way::Asked(session);
        self.markers += 1;
        true
    }

    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.write_rest(&mut write)?;
        let written = write(bytes)?;
        if let Some(sent) = &mut self.sent {
            sent.read(&bytes[..written]);
        }
        Ok(written)
    }

    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if some is still left.
    fn write_rest(
        &mut self,
        write: &mut impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut bytes = 0;
        while !self.rest.is_empty() {
            let written = write(&self.rest)?;
            if let Some(sent) = &mut self.sent {
                sent.read(&self.rest[..written]);
            }
            self.rest.advance(written);
            bytes += written;
        }
        Ok(bytes)
    }

    pub(super) fn next(&mut self, bytes: &[u8]) -> Next {
        let Some(sent) = self.sent.as_ref().filter(|_| self.markers > 0) else {
            return Next::Write(bytes.len());
        };
        let mut at = match (self.rest.is_empty(), sent.left()) {
            // Socket.IO's next frame begins behind the rest.
            (false, _) => 0,
            (true, Some(left)) => left,
            // Within a header, so that nobody knows yet where the frame ends.
            (true, None) => return Next::Write(1),
        };
        while let Some(frame) = bytes.get(at..) {
            if let Some((session, length)) = marker(frame) {
                if at > 0 {
                    return Next::Write(at);
                }
                self.markers -= 1;
                if self.way == Way::Asked(session) {
                    self.way = Way::Direct(session);
                }
                return Next::Skip(length);
            }
            let Some(length) = frame_length(frame) else {
                break;
            };
            at = at.saturating_add(length);
        }
        Next::Write(bytes.len())
    }

    pub(super) fn write_directly(
        &mut self,
        session: u64,
        packed: &Packed,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<Written> {
        let mut written = Written {
            frames: 0,
            bytes: 0,
            is_all: false,
        };
        let Some(sent) = &self.sent else {
            return Ok(written);
        };
        if sent.is_closing() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.may_write(session) {
            return Ok(written);
        }
        let rest = self.rest.len();
        let outcome = self.write_rest(&mut write).and_then(|bytes| {
            written.bytes = bytes;
            match packed.bytes.is_empty() {
                true => Ok(0),
                false => write(&packed.bytes),
            }
        });
        let taken = match outcome {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                written.bytes = rest - self.rest.len();
                return Ok(written);
            }
            Err(error) => return Err(error),
        };
        let (sent, all) = (&packed.bytes[..taken], packed.bytes.len());
        if let Some(frames) = &mut self.sent {
            frames.read(sent);
        }
        written.bytes += taken;
        written.is_all = taken == all;
        written.frames = packed.ends.partition_point(|&end| end <= taken);
        let begun = written
            .frames
            .checked_sub(1)
            .map_or(0, |last| packed.ends[last]);
        if taken > begun {
            // The frame counts as taken, and its rest goes before anything else.
            self.rest = Bytes::copy_from_slice(&packed.bytes[taken..packed.ends[written.frames]]);
            written.frames += 1;
        }
        Ok(written)
    }
}

/// The session of a marker's frame, and the frame's length.
fn marker(frame: &[u8]) -> Option<(u64, usize)> {
    let [0x81, length @ ..126, rest @ ..] = frame else {
        return None;
    };
    let payload = rest.get(..usize::from(*length))?;
    let number = payload.strip_prefix(MARKER_START)?.strip_suffix(b"]")?;
    let number = std::str::from_utf8(number).ok()?.parse().ok()?;
    Some((number, 2 + payload.len()))
}

/// The length of a server's frame, with its header; `None`: the header is incomplete.
fn frame_length(frame: &[u8]) -> Option<usize> {
    let (header, length) = FrameHeader::parse(&mut io::Cursor::new(frame)).ok()??;
    let length_of_header = header.len(length);
    usize::try_from(length).ok()?.checked_add(length_of_header)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, cmp::min};

    use proptest::prelude::*;

    use super::*;

    const OTHER: u64 = 7;
    const SESSION: u64 = 8;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let header = FrameHeader {
            opcode: tungstenite::protocol::frame::coding::OpCode::Data(
                tungstenite::protocol::frame::coding::Data::Text,
            ),
            ..FrameHeader::default()
        };
        header.format(payload.len() as u64, &mut frame).unwrap();
        frame.extend_from_slice(payload);
        frame
    }

    fn marker_of(session: u64) -> Vec<u8> {
        frame(format!(r#"42["{MARKER}",{session}]"#).as_bytes())
    }

    fn packed(payloads: &[Vec<u8>]) -> Packed {
        let mut packed = Packed::default();
        for payload in payloads {
            packed.bytes.extend(frame(payload));
            packed.ends.push(packed.bytes.len());
        }
        packed
    }

    /// The payloads of whole frames.
    fn payloads(mut wire: &[u8]) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        while !wire.is_empty() {
            let length = frame_length(wire).unwrap();
            let mut cursor = io::Cursor::new(wire);
            let (header, payload) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            payloads.push(wire[header.len(payload)..length].to_vec());
            wire = &wire[length..];
        }
        payloads
    }

    /// A system's buffer, which takes as much as there is room for.
    #[derive(Default)]
    struct Wire {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Wire {
        fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = min(bytes.len(), self.room);
            if taken == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room -= taken;
            self.bytes.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }
    }

    fn of_frames() -> Writer {
        Writer {
            sent: Some(Frames::default()),
            ..Writer::default()
        }
    }

    #[test]
    fn nothing_is_written_directly_before_the_marker_is_out_or_behind_a_close_frame() {
        let mut writer = of_frames();
        let events = packed(&[b"42[1]".to_vec()]);
        let refused = |_: &[u8]| -> io::Result<usize> { unreachable!("nothing is written") };
        let nothing = Written {
            frames: 0,
            bytes: 0,
            is_all: false,
        };
        assert_eq!(
            writer.write_directly(SESSION, &events, refused).unwrap(),
            nothing
        );
        assert!(writer.ask(SESSION) && !writer.ask(SESSION));
        assert_eq!(
            writer.write_directly(SESSION, &events, refused).unwrap(),
            nothing
        );
        let theirs = [frame(b"40{}"), marker_of(SESSION), frame(b"2")].concat();
        assert_eq!(writer.next(&theirs), Next::Write(6));
        assert_eq!(
            writer.write(&theirs[..6], |bytes| Ok(bytes.len())).unwrap(),
            6
        );
        let marker = marker_of(SESSION).len();
        assert_eq!(writer.next(&theirs[6..]), Next::Skip(marker));
        assert!(!writer.ask(SESSION));
        let written = writer.write_directly(SESSION, &events, |bytes| Ok(bytes.len()));
        assert_eq!(
            written.unwrap(),
            Written {
                frames: 1,
                bytes: 7,
                is_all: true
            }
        );
        assert_eq!(
            writer.write_directly(OTHER, &events, refused).unwrap(),
            nothing
        );
        writer.write(b"\x88\0", |bytes| Ok(bytes.len())).unwrap();
        assert!(writer.write_directly(SESSION, &events, refused).is_err());
    }

    #[test]
    fn an_earlier_sessions_marker_opens_nothing_and_is_taken_away() {
        let mut writer = of_frames();
        assert!(writer.ask(OTHER) && writer.ask(SESSION));
        let length = marker_of(OTHER).len();
        assert_eq!(writer.next(&marker_of(OTHER)), Next::Skip(length));
        assert!(!writer.may_write(OTHER) && !writer.may_write(SESSION));
        assert_eq!(writer.next(&marker_of(SESSION)), Next::Skip(length));
        assert!(writer.may_write(SESSION));
        // Whatever looks like one now is an event of somebody's.
        assert_eq!(writer.next(&marker_of(SESSION)), Next::Write(length));
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Socket.IO has another frame, of so many bytes.
        Theirs(usize),
        /// Socket.IO writes what it has.
        Write,
        /// A session has so many frames of so many bytes.
        Direct(usize, usize),
        /// The session begins.
        Ask,
        /// The peer takes so many bytes.
        Room(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || prop_oneof![0..40_usize, 120..130_usize, 65_530..65_540_usize];
        prop_oneof![
            3 => bytes().prop_map(Step::Theirs),
            6 => Just(Step::Write),
            4 => (0..3_usize, bytes()).prop_map(|(frames, bytes)| Step::Direct(frames, bytes)),
            1 => Just(Step::Ask),
            6 => prop_oneof![0..20_usize, 100..70_000_usize].prop_map(Step::Room),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn frames_of_both_writers_stay_whole_and_in_order(
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            let wire = RefCell::new(Wire::default());
            let take = |bytes: &[u8]| wire.borrow_mut().take(bytes);
            let mut writer = of_frames();
            let (mut theirs, mut pending) = (Vec::new(), Vec::new());
            let (mut events, mut asked_at) = (Vec::new(), None);
            let write = |writer: &mut Writer, pending: &mut Vec<u8>| {
                match writer.next(pending) {
                    Next::Skip(length) => drop(pending.drain(..length)),
                    Next::Write(most) => match writer.write(&pending[..most], take) {
                        Ok(written) => drop(pending.drain(..written)),
                        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    },
                }
            };
            for step in steps.into_iter().chain([Step::Room(usize::MAX / 2)]) {
                match step {
                    Step::Theirs(bytes) => {
                        let payload = format!("t{}{}", theirs.len(), "x".repeat(bytes));
                        pending.extend(frame(payload.as_bytes()));
                        theirs.push(payload.into_bytes());
                    }
                    Step::Write if pending.is_empty() => {}
                    Step::Write => write(&mut writer, &mut pending),
                    Step::Direct(frames, bytes) => {
                        let number = events.len();
                        let more: Vec<_> = (number..number + frames)
                            .map(|number| format!("e{number}{}", "y".repeat(bytes)).into_bytes())
                            .collect();
                        let rest = writer.rest.len();
                        let written = writer.write_directly(SESSION, &packed(&more), take).unwrap();
                        prop_assert!(!written.is_all || writer.rest.is_empty());
                        prop_assert!(written.frames <= frames);
                        prop_assert!(written.bytes <= rest + packed(&more).bytes.len());
                        events.extend(more.into_iter().take(written.frames));
                    }
                    Step::Ask => {
                        if writer.ask(SESSION) {
                            asked_at = Some(theirs.len());
                            pending.extend(marker_of(SESSION));
                        }
                    }
                    Step::Room(bytes) => wire.borrow_mut().room = bytes,
                }
            }
            for _ in 0..1_000 {
                if !pending.is_empty() {
                    write(&mut writer, &mut pending);
                }
            }
            writer.write_directly(SESSION, &Packed::default(), take).unwrap();
            prop_assert!(pending.is_empty());
            let written = payloads(&wire.borrow().bytes);
            let (direct, rest): (Vec<_>, Vec<_>) =
                written.iter().cloned().partition(|payload| payload.starts_with(b"e"));
            prop_assert_eq!(direct, events);
            prop_assert_eq!(rest, theirs);
            let first = written.iter().position(|payload| payload.starts_with(b"e"));
            if let Some(first) = first {
                prop_assert!(asked_at.is_some_and(|before| first >= before), "before the marker");
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut writer = of_frames();
            writer.ask(SESSION);
            writer.next(&bytes);
            writer.write(&bytes, |bytes| Ok(bytes.len())).unwrap();
            writer.next(&bytes);
        }
    }
}
