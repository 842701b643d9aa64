//! Readers of streams that lose, repeat and spoil what they keep.

use std::ops::{Deref, DerefMut};

use amqprs::FieldTable;
use proptest::prelude::*;

use super::*;

/// A place, with the last message as its owner keeps it.
struct Kept<M> {
    place: Place,
    last: Option<M>,
}

impl<M: PartialEq> Kept<M> {
    fn new(place: Place) -> Self {
        Self { place, last: None }
    }

    fn receive(&mut self, offset: u64, message: M) -> Verdict {
        let is_the_last = || self.last.as_ref() == Some(&message);
        let verdict = self.place.receive(offset, is_the_last);
        if !matches!(verdict, Verdict::Known | Verdict::Again) {
            self.last = Some(message);
        }
        verdict
    }
}

impl<M> Deref for Kept<M> {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl<M> DerefMut for Kept<M> {
    fn deref_mut(&mut self) -> &mut Place {
        &mut self.place
    }
}

// ---- Against a model of a stream -------------------------------------------------------------

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
            StartAt::Next => self.end,
            StartAt::Offset(offset) => offset,
        };
        let entries = self.entries.iter();
        entries.filter(|(at, _)| *at >= from).copied().collect()
    }

    fn suffer(&mut self, event: &Event) {
        match *event {
            Event::Publish => self.publish(true),
            Event::PublishUnreadable => self.publish(false),
            Event::Gap(count) => self.end += count,
            Event::Retention(count) => {
                self.entries.drain(..count.min(self.entries.len()));
            }
            Event::LostTail(count) => {
                let left = self.entries.len().saturating_sub(count);
                if let Some((offset, _)) = self.entries.get(left) {
                    self.end = *offset;
                }
                self.entries.truncate(left);
            }
            Event::Recreation => {
                self.entries.clear();
                self.end = 0;
            }
            Event::Cut(_) => {}
        }
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

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => Just(Event::Publish),
        1 => Just(Event::PublishUnreadable),
        1 => (1..4_u64).prop_map(Event::Gap),
        3 => (0..6_usize).prop_map(Event::Cut),
        1 => (1..20_usize).prop_map(Event::Retention),
        1 => (1..6_usize).prop_map(Event::LostTail),
        1 => Just(Event::Recreation),
    ];
    let last = [Event::Publish, Event::Cut(usize::MAX)];
    proptest::collection::vec(event, 0..80).prop_map(move |mut events| {
        events.extend(last.clone());
        events
    })
}

/// Reads until the end, or until `limit` messages have come; attaches anew after each
/// unreadable one. Returns what was handed on, and whether there was a hole before it.
///
/// Each attachment of a reader of everything at which nothing comes is followed by a marker,
/// as in the gateway.
fn read(stream: &mut Stream, place: &mut Kept<u64>, limit: usize) -> (Vec<u64>, bool) {
    let (mut handed_on, mut hole, mut attached) = (Vec::new(), false, 0);
    'attach: loop {
        attached += 1;
        assert!(attached < 1_000, "it never gets past it: {:?}", place.place);
        // The first one of a reader of everything follows a cut, which may have been long.
        let at_once = attached > 1 || !place.reads_everything;
        let start = place.attach(at_once);
        let mut coming = stream.from(start);
        if coming.is_empty() && place.reads_everything {
            stream.publish(true);
            coming.extend(stream.entries.last().copied());
        }
        for (came, (offset, message)) in coming.into_iter().enumerate() {
            if came >= limit {
                break;
            }
            if !stream.is_readable(message) {
                place.lose(End::Unreadable);
                continue 'attach;
            }
            match place.receive(offset, message) {
                Verdict::Known => {}
                Verdict::HandOn | Verdict::HandOnBehind { .. } => handed_on.push(message),
                Verdict::Hole => {
                    assert!(handed_on.is_empty(), "a hole in the middle");
                    hole = true;
                    handed_on.push(message);
                }
                Verdict::Again => continue 'attach,
            }
        }
        return (handed_on, hole);
    }
}

proptest! {
    #[test]
    fn nothing_is_missed_or_doubled_without_a_hole_and_a_hole_is_only_where_the_place_is_gone(
        events in events(),
    ) {
        let mut stream = Stream::default();
        let mut place = Kept::new(Place::from_now_on());
        stream.publish(true);
        place.attach(false);
        prop_assert_eq!(place.receive(0, 1), Verdict::HandOn);
        let mut newest = 1;
        for event in events {
            stream.suffer(&event);
            let Event::Cut(limit) = event else { continue };
            place.lose(End::Loss);
            let last = place.place.last.zip(place.last);
            let is_intact = last.is_some_and(|last| stream.entries.contains(&last));
            let (handed_on, hole) = read(&mut stream, &mut place, limit);
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

    #[test]
    fn every_readable_message_that_is_still_there_is_handed_on(events in events()) {
        let mut stream = Stream::default();
        let mut place = Kept::new(Place::from_the_start());
        stream.publish(true);
        let mut handed_on: std::collections::HashSet<u64> =
            read(&mut stream, &mut place, usize::MAX).0.into_iter().collect();
        for event in events {
            stream.suffer(&event);
            if let Event::Cut(limit) = event {
                place.lose(End::Loss);
                handed_on.extend(read(&mut stream, &mut place, limit).0);
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
        let mut place = Kept::new(Place::from_the_start());
        let (handed_on, _) = read(&mut stream, &mut place, usize::MAX);
        let expected: Vec<u64> = (2..=stream.published).collect();
        prop_assert!(expected.ends_with(&handed_on), "{:?}", handed_on);
        prop_assert!(handed_on.len() as u64 >= count, "{:?}", handed_on);
    }

    /// Publishers may write what they like where RabbitMQ passes on their header.
    #[test]
    fn forged_offsets_cost_a_reader_of_everything_no_message(
        offsets in proptest::collection::vec(proptest::option::of(0..MAX_OFFSET), 1..40),
    ) {
        let mut place = Kept::new(Place::from_the_start());
        place.attach(false);
        for (at, forged) in (0_u64..).zip(offsets) {
            let verdict = place.receive(forged.unwrap_or(at), at);
            prop_assert!(matches!(verdict, Verdict::HandOn | Verdict::Hole), "{:?}", verdict);
        }
    }
}

// ---- One step after another ------------------------------------------------------------------

/// Both kinds of places, each with its last message at `offset`.
fn both_at(offset: u64) -> [Kept<&'static str>; 2] {
    [Place::from_now_on(), Place::from_the_start()].map(|place| at(place, offset))
}

fn at(place: Place, offset: u64) -> Kept<&'static str> {
    let mut place = Kept::new(place);
    place.attach(false);
    place.receive(offset, "the last");
    place
}

#[test]
fn the_first_end_at_an_unreadable_message_steps_over_nothing() {
    for mut place in both_at(7) {
        place.lose(End::Unreadable);
        for _ in 0..2 {
            assert_eq!(place.attach(true), StartAt::Offset(7));
            assert_eq!(place.receive(7, "the last"), Verdict::Known);
            assert!(place.is_certain());
            place.lose(End::Unreadable);
        }
        assert_eq!(place.attach(true), StartAt::Offset(9));
        let verdict = place.receive(9, "behind");
        assert_eq!(verdict, Verdict::HandOnBehind { unreadable: 8 });
    }
}

#[test]
fn a_gap_before_the_unreadable_message_is_stepped_over_one_offset_at_a_time() {
    for mut place in both_at(7) {
        place.lose(End::Unreadable);
        for _ in 0..2 {
            place.attach(true);
            place.receive(7, "the last");
            place.lose(End::Unreadable);
        }
        for past in [9, 10, 11] {
            for _ in 0..2 {
                assert_eq!(place.attach(true), StartAt::Offset(past));
                place.lose(End::Unreadable);
            }
        }
        assert_eq!(place.attach(true), StartAt::Offset(12));
        let verdict = place.receive(12, "behind");
        assert_eq!(verdict, Verdict::HandOnBehind { unreadable: 8 });
    }
}

#[test]
fn after_a_while_the_last_message_is_looked_at_again_before_anything_is_stepped_over() {
    let gone = [Verdict::Hole, Verdict::Again];
    for (mut place, gone) in both_at(7).into_iter().zip(gone) {
        for _ in 0..2 {
            place.lose(End::Unreadable);
            place.attach(true);
            place.receive(7, "the last");
        }
        place.lose(End::Unreadable);
        assert_eq!(place.attach(false), StartAt::Offset(7));
        assert_eq!(place.receive(7, "another"), gone);
    }
}

#[test]
fn the_last_message_that_comes_late_is_known() {
    for mut place in both_at(7) {
        place.lose(End::Loss);
        place.attach(true);
        assert!(!place.is_certain());
        assert_eq!(place.receive(7, "the last"), Verdict::Known);
        assert!(place.is_certain());
    }
}

#[test]
fn an_offset_that_does_not_ascend_is_handed_on_and_a_hole() {
    for mut place in both_at(7) {
        assert_eq!(place.receive(1 << 40, "forged"), Verdict::HandOn);
        assert_eq!(place.receive(8, "next"), Verdict::Hole);
        assert_eq!(place.receive(9, "the one behind"), Verdict::HandOn);
    }
}

#[test]
fn what_no_stream_says_is_no_place() {
    let of = |value: Option<FieldValue>| {
        let mut headers = FieldTable::new();
        if let Some(value) = value {
            headers.insert(OFFSET.try_into().unwrap(), value);
        }
        Offset::of(BasicProperties::default().with_headers(headers))
    };
    assert_eq!(Offset::of(&BasicProperties::default()), Offset::None);
    assert_eq!(of(None), Offset::None);
    assert_eq!(of(Some(FieldValue::l(7))), Offset::At(7));
    for forged in [
        FieldValue::l(-1),
        FieldValue::l(i64::MAX),
        FieldValue::t(true),
    ] {
        assert_eq!(of(Some(forged)), Offset::Forged);
    }
}

#[test]
fn a_reader_of_what_is_new_has_a_hole_with_whatever_comes_after_its_place_was_given_up() {
    let mut place = at(Place::from_now_on(), 7);
    place.give_up();
    assert_eq!(place.attach(false), StartAt::Next);
    assert_eq!(place.receive(3, "what comes"), Verdict::Hole);
    assert_eq!(place.receive(4, "next"), Verdict::HandOn);
    assert_eq!(place.receive(4, "next"), Verdict::Known);
}

#[test]
fn silence_where_the_last_message_should_come_means_that_the_place_is_gone() {
    let mut place = at(Place::from_now_on(), 7);
    // A reader that had messages has only stopped.
    place.lose(End::Silence);
    assert_eq!(place.attach(true), StartAt::Offset(7));
    place.lose(End::Silence);
    assert_eq!(place.attach(true), StartAt::Next);
    assert_eq!(place.receive(0, "of a new stream"), Verdict::Hole);
}

#[test]
fn who_was_subscribed_without_a_place_may_have_missed_messages() {
    let mut place = Kept::new(Place::from_now_on());
    place.attach(false);
    place.lose(End::Loss);
    place.doubt();
    place.attach(false);
    assert_eq!(place.receive(3, "what comes"), Verdict::Hole);
}

#[test]
fn connections_that_break_step_over_nothing_for_a_reader_of_what_is_new() {
    let mut place = at(Place::from_now_on(), 7);
    for _ in 0..20 {
        place.lose(End::Loss);
        assert_eq!(place.attach(true), StartAt::Offset(7));
        assert_eq!(place.receive(7, "the last"), Verdict::Known);
    }
}

#[test]
fn without_a_known_cause_it_takes_a_reader_of_everything_more_ends() {
    let mut place = at(Place::from_the_start(), 7);
    place.lose(End::Loss);
    for _ in 0..OTHER_ENDS {
        assert_eq!(place.attach(true), StartAt::Offset(7));
        place.receive(7, "the last");
        place.lose(End::Loss);
    }
    assert_eq!(place.attach(true), StartAt::Offset(9));
    // What came only now is not left out.
    assert_eq!(place.receive(8, "new"), Verdict::HandOn);
}

#[test]
fn connections_that_break_at_the_start_cost_no_message() {
    let mut place = Kept::new(Place::from_the_start());
    for _ in 0..OTHER_ENDS {
        assert_eq!(place.attach(true), StartAt::First);
        place.lose(End::Loss);
    }
    assert_eq!(place.attach(true), StartAt::Offset(0));
    assert_eq!(place.receive(0, "the first"), Verdict::Again);
    // What follows it must not be taken for what was tried.
    place.lose(End::Unreadable);
    assert_eq!(place.attach(true), StartAt::Offset(0));
    assert_eq!(place.receive(0, "the first"), Verdict::HandOn);
}

#[test]
fn a_search_that_nothing_answers_stays_within_what_a_stream_can_reach() {
    let mut place = Kept::<&str>::new(Place::from_the_start());
    for _ in 0..1_000 {
        if let StartAt::Offset(offset) = place.attach(true) {
            assert!(offset <= MAX_OFFSET);
        }
        place.lose(End::Unreadable);
    }
}

#[test]
fn a_reader_that_attaches_anew_of_its_own_accord_steps_over_nothing() {
    for mut place in both_at(7) {
        for _ in 0..20 {
            place.lose(End::Released);
            assert_eq!(place.attach(true), StartAt::Offset(7));
            assert_eq!(place.receive(7, "the last"), Verdict::Known);
        }
    }
}

#[test]
fn a_reader_of_everything_gives_up_a_place_that_is_gone_for_the_start() {
    type Gone = fn(&mut Kept<&'static str>);
    let gone: [Gone; 4] = [
        |place| assert_eq!(place.receive(7, "another"), Verdict::Again),
        |place| assert_eq!(place.receive(9, "the last"), Verdict::Again),
        |place| place.lose(End::Silence),
        |place| place.lose(End::Gone),
    ];
    for gone in gone {
        let mut place = at(Place::from_the_start(), 7);
        place.lose(End::Loss);
        assert_eq!(place.attach(true), StartAt::Offset(7));
        gone(&mut place);
        assert_eq!(place.attach(true), StartAt::First);
        assert_eq!(place.receive(0, "the first"), Verdict::HandOn);
    }
}
