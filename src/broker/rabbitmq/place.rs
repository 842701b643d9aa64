//! Where a reader stands in a stream, and how it goes on behind that place.
//!
//! No I/O: offsets and messages go in, decisions come out. RabbitMQ does not say whether an
//! offset still means what it meant. It silently raises an offset below the oldest one, it
//! silently sends nothing until the stream has reached an offset beyond the end, and after a
//! deletion or a lost tail it uses offsets again. Offsets also have gaps. So the reader asks for
//! its last message once more: only if the same message comes first, nothing was missed.
//!
//! Where the last message is gone, a reader of what is new goes on with a hole. A reader of
//! everything begins again: what it reads twice does no harm, what it never reads does.
//!
//! Invariant of the first: between two [`Verdict::Hole`]s, every readable message is handed on
//! exactly once and in order. Of the second: each readable message that RabbitMQ still has is
//! handed on at least once, but for what lies between unreadable messages at the very start.

use std::sync::LazyLock;

use amqprs::{BasicProperties, FieldName, FieldValue};

/// The argument that says where to begin.
pub(super) const OFFSET: &str = "x-stream-offset";

/// The header with a message's place, made once: each message is asked for it.
static HEADER: LazyLock<FieldName> = LazyLock::new(|| OFFSET.try_into().expect("a short name"));

/// No stream gets so far. A publisher can send two headers of that name: RabbitMQ 3.10 replaces
/// the first by its own, and passes on the second. Events are numbered by twice the offset.
const MAX_OFFSET: u64 = 1 << 60;

/// How often an attachment must end at the same place by an unreadable message before the next
/// offset is stepped over: the first time, the message that ended it may have been another
/// queue's, or another connection's.
const UNREADABLE_ENDS: u32 = 2;

/// The same for ends without a known cause, for a reader of everything: each of its attachments
/// is followed by a marker, so one that brings nothing new, again and again, meets something.
const OTHER_ENDS: u32 = 5;

/// How often an attachment may end before the last message came once more: then the place is
/// given up.
const BLIND_ENDS: u32 = 5;

/// How fast the search for a readable start grows.
const STRIDE: u64 = 16;

/// What a message says of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offset {
    /// Nothing: it did not come from a stream.
    None,
    /// What no stream says, but a publisher may.
    Forged,
    At(u64),
}

impl Offset {
    pub(super) fn of(properties: &BasicProperties) -> Self {
        match properties.headers().and_then(|it| it.get(&HEADER)) {
            None => Self::None,
            Some(FieldValue::l(offset)) => match u64::try_from(*offset) {
                Ok(offset) if offset < MAX_OFFSET => Self::At(offset),
                _ => Self::Forged,
            },
            Some(_) => Self::Forged,
        }
    }
}

/// Where to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartAt {
    /// At the oldest message there is.
    First,
    /// At what is published from now on.
    Next,
    Offset(u64),
}

impl StartAt {
    /// The consumer's argument.
    pub(super) fn argument(self) -> FieldValue {
        let text = |text: &str| FieldValue::S(text.try_into().expect("a short text"));
        match self {
            Self::First => text("first"),
            Self::Next => text("next"),
            Self::Offset(offset) => FieldValue::l(offset.try_into().unwrap_or(i64::MAX)),
        }
    }
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
    /// The place is gone, or was only tried: attach again.
    Again,
}

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By a message that cannot be read.
    Unreadable,
    /// Nothing came any more, although something should have.
    Silence,
    /// The connection was lost.
    Loss,
    /// The stream was deleted, or moved.
    Gone,
    /// For a reason that no message can be blamed for.
    Released,
}

/// The place.
#[derive(Debug)]
pub(super) struct Place {
    /// Without a place, and where it is gone, the reader begins at the oldest message.
    reads_everything: bool,
    /// The offset of the last message.
    last: Option<u64>,
    expected: Expected,
    /// The place was given up, and nothing has come since.
    is_given_up: bool,
    /// Something was handed on since the reader attached.
    has_advanced: bool,
    ends: Ends,
    /// The offset to go on at, past unreadable ones.
    past: Option<u64>,
    search: Option<Search>,
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
    /// Any, to learn whether the stream can be read from this offset on.
    Tried(u64),
}

/// Attachments that ended without an advance.
#[derive(Debug, Default)]
struct Ends {
    unreadable: u32,
    other: u32,
}

impl Ends {
    fn are_enough(&self) -> bool {
        self.unreadable >= UNREADABLE_ENDS || self.all() >= OTHER_ENDS
    }

    fn all(&self) -> u32 {
        self.unreadable + self.other
    }
}

/// The search for the first offset at which reading can begin, where the oldest message seems
/// to be unreadable: RabbitMQ does not tell the oldest offset otherwise.
#[derive(Debug, Clone, Copy, Default)]
struct Search {
    /// Reading from here on fails.
    bad: Option<u64>,
    /// Reading from here on works.
    good: Option<u64>,
}

impl Search {
    /// The offset to try.
    fn next(&self) -> u64 {
        match (self.bad, self.good) {
            (None, _) => 0,
            (Some(bad), None) => bad.saturating_mul(STRIDE).max(bad + 1).min(MAX_OFFSET),
            (Some(bad), Some(good)) => bad + (good - bad) / 2,
        }
    }

    /// Where reading begins, once that is known.
    fn found(&self) -> Option<u64> {
        self.good
            .filter(|good| self.bad.map_or(0, |bad| bad + 1) >= *good)
    }

    fn works_from(&mut self, offset: u64) {
        self.good = Some(offset.max(self.bad.map_or(0, |bad| bad + 1)));
    }

    fn fails_from(&mut self, offset: u64) {
        self.bad = Some(offset);
        self.good = self.good.filter(|good| *good > offset);
    }
}

impl Place {
    /// Of a reader of what is published from now on.
    pub(super) fn from_now_on() -> Self {
        Self::new(false)
    }

    /// Of a reader of everything that the stream has.
    pub(super) fn from_the_start() -> Self {
        Self::new(true)
    }

    fn new(reads_everything: bool) -> Self {
        Self {
            reads_everything,
            last: None,
            expected: Expected::Any,
            is_given_up: false,
            has_advanced: false,
            ends: Ends::default(),
            past: None,
            search: None,
        }
    }

    /// Where to attach. `at_once` tells that the loss before has only just happened: only
    /// then offsets are stepped over without another look at the last message.
    pub(super) fn attach(&mut self, at_once: bool) -> StartAt {
        self.has_advanced = false;
        if !at_once {
            self.past = None;
        }
        let (start, expected) = match (self.last, self.past, self.search) {
            (Some(_), Some(past), _) => (StartAt::Offset(past), Expected::Past(past)),
            (Some(last), None, _) => (StartAt::Offset(last), Expected::TheLast),
            (None, _, Some(search)) if let Some(offset) = search.found() => {
                (StartAt::Offset(offset), Expected::Any)
            }
            (None, _, Some(search)) => {
                let offset = search.next();
                (StartAt::Offset(offset), Expected::Tried(offset))
            }
            (None, _, None) if self.reads_everything => (StartAt::First, Expected::Any),
            (None, _, None) => (StartAt::Next, Expected::Any),
        };
        self.expected = expected;
        start
    }

    /// A message has come; `is_the_last` compares it with the last one.
    pub(super) fn receive(&mut self, offset: u64, is_the_last: impl FnOnce() -> bool) -> Verdict {
        let last = self.last;
        let is_behind = last.is_some_and(|last| offset > last);
        if matches!(self.expected, Expected::TheLast | Expected::Next)
            && last == Some(offset)
            && is_the_last()
        {
            self.expected = Expected::Next;
            return Verdict::Known;
        }
        let verdict = match self.expected {
            Expected::Tried(tried) => {
                self.tried(tried);
                return Verdict::Again;
            }
            Expected::Any => match self.search.take().and_then(|search| search.bad) {
                Some(unreadable) => Verdict::HandOnBehind { unreadable },
                None if self.is_given_up => Verdict::Hole,
                None => Verdict::HandOn,
            },
            Expected::Past(past) if is_behind && offset >= past => {
                let unreadable = last.map_or(past, |last| last + 1);
                Verdict::HandOnBehind { unreadable }
            }
            // Before that offset, it is new: when the reader attached, nothing was that far.
            Expected::Past(_) | Expected::Next if is_behind => Verdict::HandOn,
            Expected::TheLast | Expected::Past(_) if self.reads_everything => {
                self.give_up();
                return Verdict::Again;
            }
            // RabbitMQ repeats none. An offset that does not ascend is no place.
            Expected::TheLast | Expected::Past(_) | Expected::Next => Verdict::Hole,
        };
        self.last = Some(offset);
        self.expected = Expected::Next;
        self.is_given_up = false;
        self.has_advanced = true;
        self.ends = Ends::default();
        self.past = None;
        verdict
    }

    /// Whether what comes next is known to follow what was handed on before.
    pub(super) fn is_certain(&self) -> bool {
        match self.expected {
            Expected::Next => true,
            Expected::Any => self.reads_everything,
            Expected::TheLast | Expected::Past(_) | Expected::Tried(_) => false,
        }
    }

    /// Whether the reader attached only to learn whether it can.
    pub(super) fn is_trial(&self) -> bool {
        matches!(self.expected, Expected::Tried(_))
    }

    /// Whether there is a last message to go on behind.
    pub(super) fn is_known(&self) -> bool {
        self.last.is_some()
    }

    /// Messages may have been missed, whatever comes next.
    pub(super) fn give_up(&mut self) {
        *self = Self {
            is_given_up: !self.reads_everything && (self.is_given_up || self.last.is_some()),
            ..Self::new(self.reads_everything)
        };
    }

    /// Without a place, messages may have been missed.
    pub(super) fn doubt(&mut self) {
        self.is_given_up |= self.last.is_none();
    }

    /// The attachment has ended.
    pub(super) fn lose(&mut self, end: End) {
        match end {
            End::Released => return,
            End::Gone => return self.give_up(),
            End::Silence => return self.silent(),
            End::Unreadable if !self.has_advanced => self.ends.unreadable += 1,
            End::Loss if !self.has_advanced && self.reads_everything => self.ends.other += 1,
            End::Unreadable | End::Loss => {
                self.ends = Ends::default();
                self.past = None;
                return;
            }
        }
        let enough = self.ends.are_enough();
        match (self.expected, self.last) {
            (Expected::Next, Some(last)) if enough => self.step_to(last + 2),
            (Expected::Past(past), Some(_)) if enough => self.step_to(past + 1),
            (Expected::TheLast, _) if self.ends.all() >= BLIND_ENDS => self.give_up(),
            (Expected::Any, None) if enough && self.reads_everything => {
                let search = self.search.get_or_insert_default();
                if let Some(offset) = search.found() {
                    search.fails_from(offset);
                }
                self.ends = Ends::default();
            }
            // One end is enough: the search finds out if it was mistaken.
            (Expected::Tried(offset), None) if end == End::Unreadable || enough => {
                self.search.get_or_insert_default().fails_from(offset);
                self.ends = Ends::default();
            }
            _ => {}
        }
    }

    fn silent(&mut self) {
        self.ends = Ends::default();
        self.past = None;
        match self.expected {
            // The place is beyond the end: of a new stream, or of one that lost its tail.
            Expected::TheLast | Expected::Past(_) => self.give_up(),
            Expected::Tried(offset) => self.tried(offset),
            Expected::Any | Expected::Next => {}
        }
    }

    fn step_to(&mut self, offset: u64) {
        self.past = Some(offset);
        self.ends = Ends::default();
    }

    /// Reading from this offset on works.
    fn tried(&mut self, offset: u64) {
        self.search.get_or_insert_default().works_from(offset);
        self.expected = Expected::Any;
    }
}

#[cfg(test)]
mod tests;
