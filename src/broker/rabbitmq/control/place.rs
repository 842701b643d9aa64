//! Where the reader of orders stands in their stream, and how it goes on.
//!
//! No I/O: offsets and digests of messages go in, decisions come out. RabbitMQ silently
//! raises an offset below the oldest one, silently sends nothing before the stream has reached
//! one beyond the end, and uses offsets again in a stream that was made anew. So the reader asks for its last message
//! once more. If that does not come first, the reader reads everything from the start: an
//! order that is read twice does no harm, one that is never read does.
//!
//! Invariant: from the first start on, each readable message that RabbitMQ still has is handed
//! on at least once, but for what lies between unreadable messages at the very start.

/// How often an attachment must end at the same place by an unreadable message before the
/// next offset is stepped over. The cause of an end can be another connection's.
const UNREADABLE_ENDS: u32 = 2;

/// The same for ends without a known cause. Each attachment is followed by a marker of the
/// gateway's own, so one that brings nothing new, again and again, meets something.
const OTHER_ENDS: u32 = 5;

/// How often an attachment may end before the last message came once more: then the place is
/// given up.
const BLIND_ENDS: u32 = 5;

/// How fast the search for a readable start grows.
const STRIDE: u64 = 16;

/// Where to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartAt {
    /// At the oldest message there is.
    First,
    Offset(u64),
}

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the next one.
    HandOn,
    /// It is the next one, but for unreadable messages from this offset on.
    HandOnBehind { unreadable: u64 },
    /// It was handed on before.
    Known,
    /// The place is gone, or was only tried: attach again.
    Again,
}

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By a message that cannot be read.
    Unreadable,
    /// Nothing came, although something should have.
    Silence,
    /// The connection was lost.
    Loss,
    /// The stream was deleted, or moved.
    Gone,
    /// For a reason that no message can be blamed for.
    Released,
}

/// The place. Messages are compared by a digest.
#[derive(Debug, Default)]
pub(super) struct Place {
    last: Option<(u64, u64)>,
    expected: Expected,
    /// Something was handed on since the reader attached.
    has_advanced: bool,
    ends: Ends,
    /// The offset to go on at, past unreadable ones.
    past: Option<u64>,
    search: Option<Search>,
}

/// What the next message must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Expected {
    /// Any: the reader begins at the start.
    #[default]
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

/// Connections that ended without an advance.
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
            (Some(bad), None) => bad.saturating_mul(STRIDE).max(bad.saturating_add(1)),
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
    /// Where to attach. `at_once` tells that the loss before has only just happened: only
    /// then offsets are stepped over without another look at the last message.
    pub(super) fn attach(&mut self, at_once: bool) -> StartAt {
        self.has_advanced = false;
        if !at_once {
            self.past = None;
        }
        let (start, expected) = match (self.last, self.past, self.search) {
            (Some(_), Some(past), _) => (StartAt::Offset(past), Expected::Past(past)),
            (Some((last, _)), None, _) => (StartAt::Offset(last), Expected::TheLast),
            (None, _, Some(search)) if let Some(offset) = search.found() => {
                (StartAt::Offset(offset), Expected::Any)
            }
            (None, _, Some(search)) => {
                let offset = search.next();
                (StartAt::Offset(offset), Expected::Tried(offset))
            }
            (None, _, None) => (StartAt::First, Expected::Any),
        };
        self.expected = expected;
        start
    }

    /// A message has come.
    pub(super) fn receive(&mut self, offset: u64, digest: u64) -> Verdict {
        let is_behind = self.last.is_none_or(|(last, _)| offset > last);
        let verdict = match self.expected {
            Expected::Tried(tried) => {
                self.tried(tried.min(offset));
                return Verdict::Again;
            }
            Expected::Any => match self.search.take().and_then(|search| search.bad) {
                Some(unreadable) => Verdict::HandOnBehind { unreadable },
                None => Verdict::HandOn,
            },
            Expected::TheLast if self.last == Some((offset, digest)) => {
                self.expected = Expected::Next;
                return Verdict::Known;
            }
            Expected::Past(past) if is_behind && offset >= past => {
                let unreadable = self.last.map_or(past, |(last, _)| last + 1);
                Verdict::HandOnBehind { unreadable }
            }
            // Before that offset, it is new: when the reader attached, nothing was that far.
            Expected::Past(_) | Expected::Next if is_behind => Verdict::HandOn,
            Expected::TheLast | Expected::Past(_) => {
                self.give_up();
                return Verdict::Again;
            }
            Expected::Next => return Verdict::Known,
        };
        self.last = Some((offset, digest));
        self.expected = Expected::Next;
        self.has_advanced = true;
        self.ends = Ends::default();
        self.past = None;
        verdict
    }

    /// Whether what comes next was not handed on before.
    pub(super) fn is_certain(&self) -> bool {
        matches!(self.expected, Expected::Next | Expected::Any)
    }

    /// Whether the reader attached only to learn whether it can.
    pub(super) fn is_trial(&self) -> bool {
        matches!(self.expected, Expected::Tried(_))
    }

    /// Whether reading begins at the start the next time.
    pub(super) fn is_at_start(&self) -> bool {
        self.last.is_none()
    }

    /// The attachment has ended.
    pub(super) fn lose(&mut self, end: End) {
        match end {
            End::Released => return,
            End::Gone => return self.give_up(),
            End::Silence => return self.silent(),
            _ if self.has_advanced => {
                self.ends = Ends::default();
                return;
            }
            End::Unreadable => self.ends.unreadable += 1,
            End::Loss => self.ends.other += 1,
        }
        let enough = self.ends.are_enough();
        match (self.expected, self.last) {
            (Expected::Next, Some((last, _))) if enough => self.step_to(last + 2),
            (Expected::Past(past), Some(_)) if enough => self.step_to(past + 1),
            (Expected::TheLast, _) if self.ends.all() >= BLIND_ENDS => self.give_up(),
            (Expected::Any, None) if enough => {
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

    fn give_up(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests;
