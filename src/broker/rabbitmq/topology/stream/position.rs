//! Where the reader stands in the stream, and how it goes on behind that place.
//!
//! No I/O: offsets and messages go in, decisions come out. RabbitMQ does not say whether
//! an offset still means what it meant. It silently raises an offset below the oldest one,
//! it silently sends nothing until the stream has reached an offset beyond the end, and
//! after a deletion or a lost tail offsets are used again. Offsets also have gaps. So the
//! reader asks for its last message once more: only if the same message comes first,
//! nothing was missed.
//!
//! Invariant: between two [`Verdict::Hole`]s, every readable message of the stream is
//! handed on exactly once and in order.

/// How often the connection must end at the same place by an unreadable message before
/// the next offset is stepped over: the first time, the message that ended it may have been
/// another queue's.
const ENDS_AT_ONE_PLACE: u32 = 2;

/// How often the connection may end by an unreadable message before anything has come,
/// although the reader's last message was readable: then the place is given up.
const BLIND_ENDS: u32 = 5;

/// Where to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartAt {
    /// At what is published from now on.
    Next,
    Offset(u64),
}

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It follows what was handed on before.
    HandOn,
    /// It follows what was handed on before, but for unreadable messages from this offset on.
    HandOnBehind { unreadable: u64 },
    /// It was handed on before.
    Known,
    /// It is handed on, and messages before it may have been missed.
    Hole,
}

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By a message that cannot be read.
    Unreadable,
    /// Nothing came any more, although something should have.
    Silence,
    Other,
}

/// The reader's place.
#[derive(Debug)]
pub(super) struct Position {
    /// The offset of the last message.
    last: Option<u64>,
    expected: Expected,
    /// The place was given up, and nothing has come since.
    is_given_up: bool,
    /// Something was handed on since the reader attached.
    has_advanced: bool,
    /// Connections that an unreadable message ended without an advance.
    ends: u32,
    /// The offset to go on at, past unreadable ones.
    past: Option<u64>,
}

/// What the next message must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Any: there is no place to compare it with.
    Any,
    /// The last one, once more.
    TheLast,
    /// One behind the last, at this offset or later.
    Past(u64),
    /// One behind the last.
    Next,
}

impl Default for Position {
    fn default() -> Self {
        Self {
            last: None,
            expected: Expected::Any,
            is_given_up: false,
            has_advanced: false,
            ends: 0,
            past: None,
        }
    }
}

impl Position {
    /// Where to attach. `at_once` tells that the loss before has only just happened: only
    /// then offsets are stepped over without another look at the last message.
    pub(super) fn attach(&mut self, at_once: bool) -> StartAt {
        self.has_advanced = false;
        if !at_once {
            self.past = None;
        }
        let (start, expected) = match (&self.last, self.past) {
            (None, _) => (StartAt::Next, Expected::Any),
            (Some(_), Some(past)) => (StartAt::Offset(past), Expected::Past(past)),
            (Some(last), None) => (StartAt::Offset(*last), Expected::TheLast),
        };
        self.expected = expected;
        start
    }

    /// A message has come; `is_the_last` compares it with the last one.
    pub(super) fn receive(&mut self, offset: u64, is_the_last: impl FnOnce() -> bool) -> Verdict {
        let last = self.last;
        let is_behind = last.is_some_and(|last| offset > last);
        let verdict = match self.expected {
            Expected::Any if self.is_given_up => Verdict::Hole,
            Expected::Any => Verdict::HandOn,
            Expected::TheLast => {
                if last == Some(offset) && is_the_last() {
                    self.expected = Expected::Next;
                    return Verdict::Known;
                }
                Verdict::Hole
            }
            Expected::Past(past) if is_behind && offset >= past => {
                let unreadable = last.map_or(past, |last| last + 1);
                Verdict::HandOnBehind { unreadable }
            }
            // Before that offset, it is new: when the reader attached, nothing was that far.
            Expected::Past(_) | Expected::Next if is_behind => Verdict::HandOn,
            // RabbitMQ repeats none. An offset that does not ascend is no place.
            Expected::Next if last == Some(offset) && is_the_last() => return Verdict::Known,
            Expected::Past(_) | Expected::Next => Verdict::Hole,
        };
        self.last = Some(offset);
        self.expected = Expected::Next;
        self.is_given_up = false;
        self.has_advanced = true;
        self.ends = 0;
        self.past = None;
        verdict
    }

    /// Whether messages follow those that were handed on before: where the reader attached
    /// is no longer in doubt.
    pub(super) fn is_certain(&self) -> bool {
        self.expected == Expected::Next
    }

    /// Messages may have been missed, whatever comes next.
    pub(super) fn give_up(&mut self) {
        self.is_given_up |= self.last.take().is_some();
        self.expected = Expected::Any;
        self.past = None;
        self.ends = 0;
    }

    /// Without a place, messages may have been missed.
    pub(super) fn doubt(&mut self) {
        self.is_given_up |= self.last.is_none();
    }

    /// The attachment has ended.
    pub(super) fn lose(&mut self, end: End) {
        let is_uncertain = !matches!(self.expected, Expected::Next);
        if end == End::Silence && is_uncertain {
            // The place is beyond the end: of a new stream, or of one that lost its tail.
            self.give_up();
        }
        if end != End::Unreadable || self.has_advanced {
            self.ends = 0;
            self.past = None;
            return;
        }
        self.ends += 1;
        let Some(last) = self.last else {
            return;
        };
        match self.expected {
            Expected::Next if self.ends >= ENDS_AT_ONE_PLACE => {
                self.past = Some(last + 2);
                self.ends = 0;
            }
            Expected::Past(past) if self.ends >= ENDS_AT_ONE_PLACE => {
                self.past = Some(past + 1);
                self.ends = 0;
            }
            Expected::TheLast if self.ends >= BLIND_ENDS => self.give_up(),
            Expected::Any | Expected::TheLast | Expected::Past(_) | Expected::Next => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A position, with the last message as its owner keeps it.
    struct Kept<M> {
        position: Position,
        last: Option<M>,
    }

    impl<M> Default for Kept<M> {
        fn default() -> Self {
            Self {
                position: Position::default(),
                last: None,
            }
        }
    }

    impl<M: PartialEq> Kept<M> {
        fn receive(&mut self, offset: u64, message: M) -> Verdict {
            let is_the_last = || self.last.as_ref() == Some(&message);
            let verdict = self.position.receive(offset, is_the_last);
            if verdict != Verdict::Known {
                self.last = Some(message);
            }
            verdict
        }
    }

    impl<M> std::ops::Deref for Kept<M> {
        type Target = Position;

        fn deref(&self) -> &Position {
            &self.position
        }
    }

    impl<M> std::ops::DerefMut for Kept<M> {
        fn deref_mut(&mut self) -> &mut Position {
            &mut self.position
        }
    }

    /// A stream as RabbitMQ keeps it: offsets with gaps, and messages of which some cannot
    /// be read.
    #[derive(Default)]
    struct Stream {
        entries: Vec<(u64, u64)>,
        end: u64,
        published: u64,
        unreadable: Vec<u64>,
    }

    impl Stream {
        fn publish(&mut self, is_readable: bool) {
            self.published += 1;
            if !is_readable {
                self.unreadable.push(self.published);
            }
            self.entries.push((self.end, self.published));
            self.end += 1;
        }

        fn is_readable(&self, message: u64) -> bool {
            !self.unreadable.contains(&message)
        }

        /// What a reader gets that attaches there.
        fn from(&self, start: StartAt) -> Vec<(u64, u64)> {
            let from = match start {
                StartAt::Next => self.end,
                StartAt::Offset(offset) => offset,
            };
            let entries = self.entries.iter();
            entries.filter(|(at, _)| *at >= from).copied().collect()
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Publish,
        PublishUnreadable,
        Gap(u64),
        /// The connection is lost after so many messages.
        Cut(usize),
        /// The oldest are gone.
        Retention(usize),
        /// The newest are gone, and their offsets are used again.
        LostTail(usize),
        Recreation,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            8 => Just(Event::Publish),
            1 => Just(Event::PublishUnreadable),
            1 => (1..4_u64).prop_map(Event::Gap),
            3 => (0..6_usize).prop_map(Event::Cut),
            1 => (1..20_usize).prop_map(Event::Retention),
            1 => (1..6_usize).prop_map(Event::LostTail),
            1 => Just(Event::Recreation),
        ]
    }

    /// Reads until the end, or until `limit` messages have come; attaches anew after each
    /// unreadable one. Returns what was handed on, and whether there was a hole before it.
    fn read(stream: &Stream, position: &mut Kept<u64>, limit: usize) -> (Vec<u64>, bool) {
        let (mut handed_on, mut hole, mut attached) = (Vec::new(), false, 0);
        'attach: loop {
            attached += 1;
            assert!(attached < 1_000, "it never gets past it");
            let start = position.attach(true);
            for (came, (offset, message)) in stream.from(start).into_iter().enumerate() {
                if came >= limit {
                    break;
                }
                if !stream.is_readable(message) {
                    position.lose(End::Unreadable);
                    continue 'attach;
                }
                match position.receive(offset, message) {
                    Verdict::Known => {}
                    Verdict::HandOn | Verdict::HandOnBehind { .. } => handed_on.push(message),
                    Verdict::Hole => {
                        assert!(handed_on.is_empty(), "a hole in the middle");
                        hole = true;
                        handed_on.push(message);
                    }
                }
            }
            return (handed_on, hole);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_missed_or_doubled_without_a_hole_and_a_hole_is_only_where_the_place_is_gone(
            events in proptest::collection::vec(event(), 0..80),
        ) {
            let mut stream = Stream::default();
            let mut position = Kept::default();
            stream.publish(true);
            position.attach(false);
            prop_assert_eq!(position.receive(0, 1), Verdict::HandOn);
            let mut newest = 1;
            for event in events.into_iter().chain([Event::Publish, Event::Cut(usize::MAX)]) {
                match event {
                    Event::Publish => stream.publish(true),
                    Event::PublishUnreadable => stream.publish(false),
                    Event::Gap(count) => stream.end += count,
                    Event::Retention(count) => {
                        stream.entries.drain(..count.min(stream.entries.len()));
                    }
                    Event::LostTail(count) => {
                        let left = stream.entries.len().saturating_sub(count);
                        if let Some((offset, _)) = stream.entries.get(left) {
                            stream.end = *offset;
                        }
                        stream.entries.truncate(left);
                    }
                    Event::Recreation => {
                        stream.entries.clear();
                        stream.end = 0;
                    }
                    Event::Cut(limit) => {
                        position.lose(End::Other);
                        let last = position.position.last.zip(position.last);
                        let is_intact = last.is_some_and(|last| stream.entries.contains(&last));
                        let (handed_on, hole) = read(&stream, &mut position, limit);
                        prop_assert_eq!(hole, !is_intact && !handed_on.is_empty());
                        for message in &handed_on {
                            prop_assert!(*message > newest, "{} again", message);
                            newest = *message;
                        }
                        if let (true, Some(last)) = (is_intact, last) {
                            let behind = stream.from(StartAt::Offset(last.0 + 1));
                            let all: Vec<_> = behind.into_iter()
                                .map(|(_, message)| message)
                                .filter(|message| stream.is_readable(*message))
                                .collect();
                            prop_assert!(all.starts_with(&handed_on), "{:?} of {:?}", handed_on, all);
                            if limit == usize::MAX {
                                prop_assert_eq!(handed_on, all);
                            }
                        }
                    }
                }
            }
        }
    }

    fn at(offset: u64) -> Kept<&'static str> {
        let mut position = Kept::default();
        position.attach(false);
        position.receive(offset, "the last");
        position
    }

    #[test]
    fn the_first_end_at_an_unreadable_message_steps_over_nothing() {
        let mut position = at(7);
        position.lose(End::Unreadable);
        for _ in 0..2 {
            assert_eq!(position.attach(true), StartAt::Offset(7));
            assert_eq!(position.receive(7, "the last"), Verdict::Known);
            assert!(position.is_certain());
            position.lose(End::Unreadable);
        }
        assert_eq!(position.attach(true), StartAt::Offset(9));
        assert_eq!(
            position.receive(9, "behind"),
            Verdict::HandOnBehind { unreadable: 8 }
        );
    }

    #[test]
    fn a_gap_before_the_unreadable_message_is_stepped_over_one_offset_at_a_time() {
        let mut position = at(7);
        position.lose(End::Unreadable);
        for _ in 0..2 {
            position.attach(true);
            position.receive(7, "the last");
            position.lose(End::Unreadable);
        }
        for past in [9, 10, 11] {
            for _ in 0..2 {
                assert_eq!(position.attach(true), StartAt::Offset(past));
                position.lose(End::Unreadable);
            }
        }
        assert_eq!(position.attach(true), StartAt::Offset(12));
        let verdict = position.receive(12, "behind");
        assert_eq!(verdict, Verdict::HandOnBehind { unreadable: 8 });
    }

    #[test]
    fn after_a_while_the_last_message_is_looked_at_again_before_anything_is_stepped_over() {
        let mut position = at(7);
        for _ in 0..3 {
            position.lose(End::Unreadable);
            position.attach(true);
            position.receive(7, "the last");
        }
        position.lose(End::Unreadable);
        assert_eq!(position.attach(false), StartAt::Offset(7));
        assert_eq!(position.receive(7, "another"), Verdict::Hole);
    }

    #[test]
    fn a_place_that_was_given_up_is_a_hole_with_whatever_comes() {
        let mut position = at(7);
        position.give_up();
        assert_eq!(position.attach(false), StartAt::Next);
        assert_eq!(position.receive(3, "what comes"), Verdict::Hole);
        assert_eq!(position.receive(4, "next"), Verdict::HandOn);
        assert_eq!(position.receive(4, "next"), Verdict::Known);
    }

    #[test]
    fn silence_where_the_last_message_should_come_means_that_the_place_is_gone() {
        let mut position = at(7);
        // A reader that had messages has only stopped.
        position.lose(End::Silence);
        assert_eq!(position.attach(true), StartAt::Offset(7));
        position.lose(End::Silence);
        assert_eq!(position.attach(true), StartAt::Next);
        assert_eq!(position.receive(0, "of a new stream"), Verdict::Hole);
    }

    #[test]
    fn the_last_message_that_comes_late_is_known() {
        let mut position = at(7);
        position.lose(End::Other);
        position.attach(true);
        assert!(!position.is_certain());
        assert_eq!(position.receive(7, "the last"), Verdict::Known);
        assert!(position.is_certain());
    }

    #[test]
    fn an_offset_that_does_not_ascend_is_a_hole() {
        let mut position = at(7);
        assert_eq!(position.receive(1 << 40, "forged"), Verdict::HandOn);
        assert_eq!(position.receive(8, "next"), Verdict::Hole);
        assert_eq!(position.receive(9, "the one behind"), Verdict::HandOn);
    }

    #[test]
    fn who_was_subscribed_without_a_place_may_have_missed_messages() {
        let mut position = Kept::default();
        position.attach(false);
        position.lose(End::Other);
        position.doubt();
        position.attach(false);
        assert_eq!(position.receive(3, "what comes"), Verdict::Hole);
    }
}
