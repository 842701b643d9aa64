//! Whose turn it is to write, and what is written: the decisions of an `Outlet`, which knows the
//! socket.
//!
//! Pure; whoever calls says how bytes are written.

use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tungstenite::protocol::frame::FrameHeader;

use crate::socketio::transport::frames::Frames;

/// The name of the event that is a marker. Its argument is the session's number.
pub const MARKER: &str = "chat3-gateway:direct";

/// What a marker's frame begins with, behind its header of two bytes (RFC 6455, 5.2; Socket.IO
/// protocol v5).
const MARKER_START: &[u8] = br#"42["chat3-gateway:direct","#;

/// Bytes of frames that are held until they are written together; the last frames may go
/// beyond.
const MAX_HELD: usize = 64 * 1024;

/// Held frames that are written in one call.
const SLICES: usize = 64;

/// What became of a direct write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes that were written.
    pub bytes: usize,
    /// Whether all that was held is written.
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
    /// Follows what Socket.IO writes; `None` before the websocket.
    sent: Option<Frames>,
    held: Held,
    way: Way,
    /// Markers on their way through Socket.IO.
    markers: u32,
}

/// Whole frames of the session that writes directly, in pieces.
#[derive(Debug, Default)]
struct Held {
    pieces: Vec<Bytes>,
    bytes: usize,
    /// Whether the first piece is written in part. The rest of it goes before anything else.
    is_begun: bool,
}

impl Held {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    /// Takes away what was written.
    fn wrote(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        let mut whole = 0;
        while let Some(piece) = self.pieces.get(whole)
            && let Some(left) = bytes.checked_sub(piece.len())
        {
            bytes = left;
            whole += 1;
        }
        self.pieces.drain(..whole);
        self.is_begun = bytes > 0 || (self.is_begun && whole == 0);
        match self.pieces.first_mut() {
            Some(first) => first.advance(bytes),
            // Idle connections keep no memory for it.
            None => self.pieces = Vec::new(),
        }
    }

    /// Forgets the pieces that nothing was written of; returns their number.
    fn drop_whole(&mut self) -> usize {
        let pieces = self.pieces.len();
        self.pieces.truncate(usize::from(self.is_begun));
        self.bytes = self.pieces.iter().map(Bytes::len).sum();
        pieces - self.pieces.len()
    }
}

impl Writer {
    /// From now on, what is written are a websocket's frames.
    pub(super) fn begin_frames(&mut self) {
        self.sent = Some(Frames::default());
    }

    pub(super) fn is_between(&self) -> bool {
        !self.held.is_begun && self.sent.as_ref().is_some_and(Frames::is_between)
    }

    /// Whether the session's frames may follow what was written.
    pub(super) fn may_write(&self, session: u64) -> bool {
        let is_between = self.sent.as_ref().is_some_and(Frames::is_between);
        self.way == Way::Direct(session) && is_between
    }

    pub(super) fn ask(&mut self, session: u64) -> bool {
        // Sessions are numbered in their order, and an earlier one has ended.
        if matches!(self.way, Way::Asked(asked) | Way::Direct(asked) if asked >= session) {
            return false;
        }
        self.held.drop_whole();
        self.way = Way::Asked(session);
        self.markers += 1;
        true
    }

    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        while self.held.is_begun {
            let written = write(&self.held.pieces[0])?;
            self.held.wrote(written);
        }
        let written = write(bytes)?;
        if let Some(sent) = &mut self.sent {
            sent.read(&bytes[..written]);
        }
        Ok(written)
    }

    pub(super) fn next(&mut self, bytes: &[u8]) -> Next {
        let Some(sent) = self.sent.as_ref().filter(|_| self.markers > 0) else {
            return Next::Write(bytes.len());
        };
        // Within a header, nobody knows yet where the frame ends.
        let Some(mut at) = sent.left() else {
            return Next::Write(1);
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

    /// Undoes the latest calls of [`Self::hold`] of which nothing was written; returns their
    /// number.
    pub(super) fn undo(&mut self, session: u64) -> usize {
        match self.way == Way::Direct(session) {
            true => self.held.drop_whole(),
            false => 0,
        }
    }

    /// Holds a session's whole frames, which the next [`Self::flush`] writes. Returns whether
    /// they are held: they are not where the session may not write, or as much is held as may be.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] behind a close frame.
    pub(super) fn hold(&mut self, session: u64, frames: &Bytes) -> io::Result<bool> {
        if self.sent.as_ref().is_some_and(Frames::is_closing) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let holds = self.way == Way::Direct(session) && self.held.bytes < MAX_HELD;
        if holds {
            self.held.push(frames.clone());
        }
        Ok(holds)
    }

    /// Writes what is held for a session.
    ///
    /// # Errors
    /// Those of `write` but [`io::ErrorKind::WouldBlock`], and [`io::ErrorKind::BrokenPipe`]
    /// behind a close frame.
    pub(super) fn flush(
        &mut self,
        session: u64,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Written> {
        let mut written = Written {
            bytes: 0,
            is_all: false,
        };
        if self.sent.as_ref().is_some_and(Frames::is_closing) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.may_write(session) {
            written.is_all = self.way == Way::Direct(session) && self.held.pieces.is_empty();
            return Ok(written);
        }
        while !self.held.pieces.is_empty() {
            let pieces = self.held.pieces.iter().take(SLICES);
            let slices: SmallVec<[_; SLICES]> = pieces.map(|piece| IoSlice::new(piece)).collect();
            let outcome = write(&slices);
            drop(slices);
            match outcome {
                Ok(bytes) => {
                    self.held.wrote(bytes);
                    written.bytes += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(written),
                Err(error) => return Err(error),
            }
        }
        written.is_all = true;
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

    fn frames(payloads: &[Vec<u8>]) -> Bytes {
        payloads.iter().flat_map(|payload| frame(payload)).collect()
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

        fn take_all(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.take(
                &slices
                    .iter()
                    .flat_map(|slice| slice.to_vec())
                    .collect::<Vec<_>>(),
            )
        }
    }

    fn length(slices: &[IoSlice<'_>]) -> usize {
        slices.iter().map(|slice| slice.len()).sum()
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
        let events = frames(&[b"42[1]".to_vec()]);
        let refused =
            |_: &[IoSlice<'_>]| -> io::Result<usize> { unreachable!("nothing is written") };
        let nothing = Written {
            bytes: 0,
            is_all: false,
        };
        assert!(!writer.hold(SESSION, &events).unwrap());
        assert_eq!(writer.flush(SESSION, refused).unwrap(), nothing);
        assert!(writer.ask(SESSION) && !writer.ask(SESSION));
        assert!(!writer.hold(SESSION, &events).unwrap());
        assert_eq!(writer.flush(SESSION, refused).unwrap(), nothing);
        let theirs = [frame(b"40{}"), marker_of(SESSION), frame(b"2")].concat();
        assert_eq!(writer.next(&theirs), Next::Write(6));
        assert_eq!(
            writer.write(&theirs[..6], |bytes| Ok(bytes.len())).unwrap(),
            6
        );
        let marker = marker_of(SESSION).len();
        assert_eq!(writer.next(&theirs[6..]), Next::Skip(marker));
        assert!(!writer.ask(SESSION));
        assert!(writer.hold(SESSION, &events).unwrap());
        assert!(!writer.hold(OTHER, &events).unwrap());
        assert_eq!(writer.flush(OTHER, refused).unwrap(), nothing);
        let all = Written {
            bytes: 7,
            is_all: true,
        };
        assert_eq!(writer.flush(SESSION, |all| Ok(length(all))).unwrap(), all);
        writer.write(b"\x88\0", |bytes| Ok(bytes.len())).unwrap();
        assert!(writer.hold(SESSION, &events).is_err());
        assert!(writer.flush(SESSION, refused).is_err());
    }

    #[test]
    fn no_more_is_held_than_a_turn_of_frames() {
        let mut writer = of_frames();
        writer.way = Way::Direct(SESSION);
        let frames = Bytes::from(vec![0; MAX_HELD - 1]);
        assert!(writer.hold(SESSION, &frames).unwrap() && writer.hold(SESSION, &frames).unwrap());
        assert!(!writer.hold(SESSION, &frames).unwrap());
        assert!(writer.flush(SESSION, |all| Ok(length(all))).unwrap().is_all);
        assert!(writer.hold(SESSION, &frames).unwrap());
    }

    #[test]
    fn the_next_session_is_sent_nothing_of_an_earlier_one_but_the_rest_of_a_piece() {
        for begun in [0, 3] {
            let mut writer = of_frames();
            writer.way = Way::Direct(OTHER);
            let (one, two) = (frames(&[b"42[1]".to_vec()]), frames(&[b"42[2]".to_vec()]));
            assert!(writer.hold(OTHER, &one).unwrap() && writer.hold(OTHER, &two).unwrap());
            let mut wire = Wire {
                room: begun,
                ..Wire::default()
            };
            writer.flush(OTHER, |slices| wire.take_all(slices)).unwrap();
            writer.ask(SESSION);
            wire.room = 1_000;
            let marker = marker_of(SESSION);
            assert_eq!(writer.next(&marker), Next::Skip(marker.len()));
            writer
                .write(&frame(b"2"), |bytes| wire.take(bytes))
                .unwrap();
            let sent = payloads(&wire.bytes);
            assert_eq!(sent.len(), 1 + usize::from(begun > 0));
            assert!(
                writer
                    .flush(SESSION, |slices| wire.take_all(slices))
                    .unwrap()
                    .is_all
            );
            assert_eq!(payloads(&wire.bytes), sent);
        }
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
        Hold(usize, usize),
        /// The session writes what is held.
        Flush,
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
            6 => (1..3_usize, bytes()).prop_map(|(frames, bytes)| Step::Hold(frames, bytes)),
            3 => Just(Step::Flush),
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
            let take_all = |slices: &[IoSlice<'_>]| wire.borrow_mut().take_all(slices);
            let mut writer = of_frames();
            let (mut theirs, mut pending) = (Vec::new(), Vec::new());
            // The frames of each call that counts as made.
            let mut taken = Vec::new();
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
                    Step::Hold(number, bytes) => {
                        let more: Vec<_> = (events.len()..events.len() + number)
                            .map(|number| format!("e{number}{}", "y".repeat(bytes)).into_bytes())
                            .collect();
                        let held = writer.held.bytes;
                        if writer.hold(SESSION, &frames(&more)).unwrap() {
                            prop_assert!(held < MAX_HELD);
                            events.extend(more);
                            taken.push(number);
                        }
                    }
                    Step::Flush => {
                        let held = writer.held.bytes;
                        let written = writer.flush(SESSION, take_all).unwrap();
                        prop_assert!(!written.is_all || written.bytes == held);
                        prop_assert_eq!(written.bytes + writer.held.bytes, held);
                        if !written.is_all {
                            for _ in 0..writer.undo(SESSION) {
                                events.truncate(events.len() - taken.pop().unwrap());
                            }
                            prop_assert!(writer.held.pieces.len() <= 1);
                        }
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
            writer.flush(SESSION, take_all).unwrap();
            prop_assert!(pending.is_empty() && writer.held.pieces.is_empty());
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
