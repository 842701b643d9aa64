//! Readers of streams that lose, repeat and spoil what they keep.

use proptest::prelude::*;

use super::*;

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
            StartAt::First => 0,
            StartAt::Offset(offset) => offset,
        };
        let entries = self.entries.iter();
        entries.filter(|(at, _)| *at >= from).copied().collect()
    }
}

/// Reads until the end or until `limit` messages have come; returns what was handed on.
/// Each attachment at which nothing comes is followed by a marker, as in the gateway.
fn read(stream: &mut Stream, place: &mut Place, limit: usize) -> Vec<u64> {
    let (mut handed_on, mut attached) = (Vec::new(), 0);
    'attach: loop {
        attached += 1;
        assert!(attached < 1_000, "it never gets past it: {place:?}");
        // The first one follows a cut, which may have been long.
        let start = place.attach(attached > 1);
        let mut coming = stream.from(start);
        if coming.is_empty() {
            stream.publish(true);
            coming.extend(stream.entries.last().copied());
        }
        for (came, (offset, message)) in coming.into_iter().enumerate() {
            if came >= limit {
                return handed_on;
            }
            if !stream.is_readable(message) {
                place.lose(End::Unreadable);
                continue 'attach;
            }
            match place.receive(offset, message) {
                Verdict::Known => {}
                Verdict::HandOn | Verdict::HandOnBehind { .. } => handed_on.push(message),
                Verdict::Again => continue 'attach,
            }
        }
        return handed_on;
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

proptest! {
    #[test]
    fn every_readable_message_that_is_still_there_is_handed_on(
        events in proptest::collection::vec(event(), 0..80),
    ) {
        let mut stream = Stream::default();
        let mut place = Place::default();
        stream.publish(true);
        let mut handed_on: std::collections::HashSet<u64> =
            read(&mut stream, &mut place, usize::MAX).into_iter().collect();
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
                    place.lose(End::Loss);
                    handed_on.extend(read(&mut stream, &mut place, limit));
                }
            }
        }
        // What lies between unreadable ones may be missing, if the oldest is one of them.
        let begins_unreadable = stream.entries.first()
            .is_some_and(|(_, message)| !stream.is_readable(*message));
        let last_unreadable = stream.entries.iter().rev()
            .find(|(_, message)| begins_unreadable && !stream.is_readable(*message));
        let missing: Vec<_> = stream.entries.iter()
            .filter(|(at, _)| last_unreadable.is_none_or(|(unreadable, _)| at > unreadable))
            .filter(|(_, message)| stream.is_readable(*message) && !handed_on.contains(message))
            .collect();
        prop_assert!(missing.is_empty(), "{:?} left out", missing);
    }

    #[test]
    fn a_start_that_cannot_be_read_is_stepped_over_and_nothing_behind_it(
        oldest in 0..1_000_000_u64, count in 0..20_u64,
    ) {
        let mut stream = Stream { end: oldest, ..Stream::default() };
        stream.publish(false);
        for _ in 0..count {
            stream.publish(true);
        }
        let mut place = Place::default();
        let handed_on = read(&mut stream, &mut place, usize::MAX);
        let expected: Vec<u64> = (2..=stream.published).collect();
        prop_assert!(expected.ends_with(&handed_on), "{:?}", handed_on);
        prop_assert!(handed_on.len() as u64 >= count, "{:?}", handed_on);
    }
}

fn at(offset: u64) -> Place {
    let mut place = Place::default();
    place.attach(false);
    place.receive(offset, 1);
    place
}

#[test]
fn the_second_end_at_an_unreadable_message_steps_over_one_offset() {
    let mut place = at(7);
    place.lose(End::Unreadable);
    for _ in 0..2 {
        assert_eq!(place.attach(true), StartAt::Offset(7));
        assert_eq!(place.receive(7, 1), Verdict::Known);
        place.lose(End::Unreadable);
    }
    for past in [9, 10] {
        for _ in 0..2 {
            assert_eq!(place.attach(true), StartAt::Offset(past));
            place.lose(End::Unreadable);
        }
    }
    assert_eq!(place.attach(true), StartAt::Offset(11));
    let verdict = place.receive(11, 2);
    assert_eq!(verdict, Verdict::HandOnBehind { unreadable: 8 });
}

#[test]
fn without_a_known_cause_it_takes_more_ends() {
    let mut place = at(7);
    place.lose(End::Loss);
    for _ in 0..OTHER_ENDS {
        assert_eq!(place.attach(true), StartAt::Offset(7));
        place.receive(7, 1);
        place.lose(End::Loss);
    }
    assert_eq!(place.attach(true), StartAt::Offset(9));
    // What came only now is not left out.
    assert_eq!(place.receive(8, 2), Verdict::HandOn);
}

#[test]
fn connections_that_break_at_the_start_cost_no_message() {
    let mut place = Place::default();
    for _ in 0..OTHER_ENDS {
        assert_eq!(place.attach(true), StartAt::First);
        place.lose(End::Loss);
    }
    assert_eq!(place.attach(true), StartAt::Offset(0));
    assert_eq!(place.receive(0, 1), Verdict::Again);
    // What follows it must not be taken for what was tried.
    place.lose(End::Unreadable);
    assert_eq!(place.attach(true), StartAt::Offset(0));
    assert_eq!(place.receive(0, 1), Verdict::HandOn);
}

#[test]
fn a_reader_that_attaches_anew_of_its_own_accord_steps_over_nothing() {
    let mut place = at(7);
    for _ in 0..20 {
        place.lose(End::Released);
        assert_eq!(place.attach(true), StartAt::Offset(7));
        assert_eq!(place.receive(7, 1), Verdict::Known);
    }
}

#[test]
fn a_place_that_is_gone_is_given_up_for_the_start() {
    for gone in [
        |place: &mut Place| assert_eq!(place.receive(7, 2), Verdict::Again),
        |place: &mut Place| assert_eq!(place.receive(9, 1), Verdict::Again),
        |place: &mut Place| place.lose(End::Silence),
        |place: &mut Place| place.lose(End::Gone),
    ] {
        let mut place = at(7);
        place.lose(End::Loss);
        assert_eq!(place.attach(true), StartAt::Offset(7));
        gone(&mut place);
        assert_eq!(place.attach(true), StartAt::First);
        assert_eq!(place.receive(0, 3), Verdict::HandOn);
    }
}
