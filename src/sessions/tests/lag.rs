//! Sockets that lag: how far they may, how they catch up, and when they are cut.

use std::time::Duration;

use super::{
    double::{Wire, user},
    house::{AMPLE, House, catch_up, config, recovery, runtime},
};
use crate::{
    config::{HttpConfig, RecoveryConfig},
    sessions::{Offset, ResumeRequest, Session, audience::Fed},
};

#[test]
fn a_socket_is_handed_what_it_takes_and_the_rest_waits() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (session, wire) = house.connect_narrow(&carl, ResumeRequest::New, 4);
    for _ in 0..10 {
        house.publish(&carl, 1);
    }
    assert!(wire.waits());
    assert_eq!(wire.handed(), 4);
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), 4);
    wire.take(2);
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), 6);
    wire.take(usize::MAX);
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), 10);
    assert!(!wire.waits() && !wire.is_closed());
}

#[test]
fn the_events_of_an_update_are_handed_over_together_and_go_on_where_they_were_cut() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let message = r#"{"userId":"carl","eventType":"message.update"}"#;
    let (session, wire) = house.connect_narrow(&carl, ResumeRequest::New, 3);
    wire.state().sends = 0;
    assert!(house.exchange.publish(&carl, message));
    assert_eq!((wire.handed(), wire.state().sends), (2, 1));
    assert!(house.exchange.publish(&carl, message));
    assert_eq!(wire.handed(), 3);
    wire.take(3);
    catch_up(&session, &wire);
    let names: Vec<_> = wire.state().emitted.iter().map(|it| it.name).collect();
    let pair = ["chat3:update", "message:update"];
    assert_eq!(names, [pair, pair].concat());
    for name in pair {
        house.says(&format!(
            "chat3_gateway_events_emitted_total{{event=\"{name}\"}} 2"
        ));
    }
}

#[test]
fn a_socket_is_live_once_all_that_it_took_is_sent() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (session, wire, _) = house.admit(&carl, ResumeRequest::New);
    wire.open(false);
    assert_eq!(session.audience.feed(session.number(), &wire), Fed::Full);
    house.publish(&carl, 1);
    assert_eq!(wire.handed(), 0);
    wire.open(true);
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), 1);
    house.publish(&carl, 1);
    assert_eq!(wire.handed(), 2);
}

#[test]
fn a_socket_for_which_too_much_waits_is_cut() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(RecoveryConfig {
        max_bytes: 1_000_000,
        ..recovery()
    }));
    let carl = user("carl");
    let (_session, wire) = house.connect_narrow(&carl, ResumeRequest::New, 4);
    let (_other, takes) = house.connect(&carl, ResumeRequest::New);
    let mut published = 0;
    let mut publish = || {
        house.publish(&carl, 900_000);
        takes.take(1);
        published += 1;
    };
    // Four are handed ahead. Beyond these, 8 MiB may wait besides what is kept anyway.
    for _ in 0..4 + 10 {
        publish();
        assert!(!wire.is_closed());
    }
    let waiting = house.hub.audiences()[0].waiting_bytes();
    assert!(waiting > 9_000_000 && waiting < 9_100_000, "{waiting}");
    publish();
    assert!(wire.is_closed());
    house.says("chat3_gateway_slow_sockets_total 1");
    assert_eq!(house.hub.audiences()[0].waiting_bytes(), 0);
    assert!(!takes.is_closed());
    assert_eq!(takes.handed(), published);
    assert!(house.kept() < 1_100_000, "what waited is not kept for it");
}

#[test]
fn a_socket_that_takes_nothing_holds_up_no_other_and_the_events_are_encoded_twice() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (one, stuck) = house.connect_narrow(&carl, ResumeRequest::New, 1);
    let (_two, ample) = house.connect(&carl, ResumeRequest::New);
    let (_three, without_offsets) = house.connect(&carl, ResumeRequest::OptOut);
    for _ in 0..3 {
        house.publish(&carl, 1);
    }
    assert_eq!(stuck.handed(), 1);
    assert_eq!((ample.handed(), without_offsets.handed()), (3, 3));
    let offset = |wire: &Wire| wire.state().emitted[0].offset.is_some();
    assert!(offset(&ample) && !offset(&without_offsets));
    stuck.take(1);
    catch_up(&one, &stuck);
    assert_eq!(stuck.handed(), 2);
    assert!(!stuck.is_closed());
    house.says("chat3_gateway_slow_sockets_total 0");
}

#[test]
fn where_memory_is_short_the_sockets_that_lag_furthest_are_cut_first() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(RecoveryConfig {
        max_bytes: 100_000,
        total_bytes: 2_000_000,
        ..recovery()
    }));
    let (carl, dora) = (user("carl"), user("dora"));
    let (_carls, far) = house.connect_narrow(&carl, ResumeRequest::New, 4);
    let (_doras, near) = house.connect_narrow(&dora, ResumeRequest::New, 4);
    for _ in 0..4 {
        house.publish(&carl, 1);
        house.publish(&dora, 1);
    }
    house.publish(&dora, 500_000);
    house.publish(&carl, 900_000);
    house.publish(&carl, 900_000);
    assert!(house.kept() > 2_000_000);
    house.hub.evict();
    assert!(far.is_closed() && !near.is_closed());
    assert!(house.kept() > 500_000);
    // Dora's socket alone makes it too much, though it is not far behind.
    let house = House::new(&config(RecoveryConfig {
        max_bytes: 100_000,
        total_bytes: 400_000,
        ..recovery()
    }));
    let (_doras, near) = house.connect_narrow(&dora, ResumeRequest::New, 4);
    for _ in 0..4 {
        house.publish(&dora, 1);
    }
    house.publish(&dora, 500_000);
    house.hub.evict();
    assert!(near.is_closed());
    assert!(house.kept() < 10_000);
}

#[test]
fn a_socket_that_takes_nothing_for_too_long_is_cut() {
    runtime().block_on(async {
        let house = House::new(&HttpConfig {
            socket_write_timeout: Duration::from_millis(40),
            ..config(recovery())
        });
        let carl = user("carl");
        let (session, stuck) = house.connect_narrow(&carl, ResumeRequest::New, 4);
        for _ in 0..10 {
            house.publish(&carl, 1);
        }
        assert_eq!(stuck.handed(), 4);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!stuck.is_closed());
        let fed = tokio::time::timeout(Duration::from_secs(5), async {
            while !stuck.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        fed.await.unwrap();
        assert_eq!(stuck.handed(), 4);
        drop(session);
    });
}

#[test]
fn a_socket_that_lags_is_handed_everything_at_the_pace_of_its_client() {
    runtime().block_on(async {
        let house = House::new(&config(recovery()));
        let carl = user("carl");
        let (session, _, _) = house.admit(&carl, ResumeRequest::New);
        let wire = Wire::new(0, 4);
        for _ in 0..30 {
            house.publish(&carl, 1);
        }
        let clients = {
            let wire = wire.clone();
            tokio::spawn(async move {
                while wire.handed() < 30 {
                    wire.take(3);
                    let ahead = wire.untaken();
                    assert!(ahead <= 4, "{ahead}");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        };
        session.go_live(wire.clone()).await;
        assert!(!wire.waits() && !wire.is_closed());
        clients.await.unwrap();
        wire.take(usize::MAX);
        house.hub.caught_up().await;
        house.publish(&carl, 1);
        assert_eq!(wire.handed(), 31);
    });
}

#[test]
fn nobody_waits_for_sockets_that_take_nothing() {
    runtime().block_on(async {
        let house = House::new(&config(recovery()));
        let carl = user("carl");
        let (session, wire) = house.connect_narrow(&carl, ResumeRequest::New, 4);
        for _ in 0..6 {
            house.publish(&carl, 1);
        }
        let waiting = house.hub.caught_up();
        let waiting = tokio::time::timeout(Duration::from_millis(300), waiting).await;
        assert!(waiting.is_err(), "it may still take something");
        house.hub.shared.clock.advance(Duration::ZERO);
        drop((session, wire));
    });
}

#[test]
fn a_replay_that_does_not_fit_waits_until_the_client_takes_some() {
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (session, wire, _) = house.admit(&carl, ResumeRequest::New);
    wire.state().capacity = 4;
    for _ in 0..6 {
        house.publish(&carl, 1);
    }
    assert!(!wire.waits());
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), 4);
    assert!(wire.waits(), "the transport is told that more waits");
    wire.take(4);
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), 6);
    assert!(!wire.waits());
}

#[test]
fn what_waited_while_a_socket_lagged_can_be_recovered() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (session, wire, admitted) = house.admit(&carl, ResumeRequest::New);
    wire.state().capacity = 4;
    catch_up(&session, &wire);
    let pid = admitted.unwrap().pid;
    // Live for so long that an event's age tells whether the event has arrived.
    house.hub.shared.clock.advance(Duration::from_secs(200));
    for _ in 0..5 {
        house.publish(&carl, 1);
    }
    let newest = wire.state().emitted.last().unwrap().offset.clone();
    house.hub.shared.clock.advance(Duration::from_secs(100));
    drop(session);
    assert_eq!(wire.handed(), 4, "the fifth was never handed on");
    let offset = newest.and_then(|offset| Offset::parse(&offset));
    let resume = ResumeRequest::Resume { pid, offset };
    let (session, wire, admitted) = house.admit(&carl, resume);
    assert_eq!(admitted.unwrap().pid, pid);
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), 1);
}

#[test]
fn a_replay_that_is_too_long_is_cut_wherever_it_stops() {
    // With room in the buffer the replay stops for the writer's turn; without, it is full.
    for (capacity, stops) in [(AMPLE, Fed::Turn), (0, Fed::Full)] {
        let house = House::new(&config(RecoveryConfig {
            max_bytes: 1_000_000,
            ..recovery()
        }));
        let carl = user("carl");
        let (session, ..) = house.admit(&carl, ResumeRequest::New);
        let wire = Wire::new(1, capacity);
        for _ in 0..12 {
            house.publish(&carl, 900_000);
        }
        assert_eq!(session.audience.feed(session.number(), &wire), stops);
        assert!(wire.is_closed(), "{stops:?}");
        house.says("chat3_gateway_slow_sockets_total 1");
        assert_eq!(session.audience.feed(session.number(), &wire), Fed::Over);
        assert!(house.kept() < 1_000_000);
    }
}

#[test]
fn only_a_socket_that_is_still_behind_is_given_up() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (session, wire, admitted) = house.admit(&carl, ResumeRequest::New);
    let give_up = |session: &Session<Wire>| {
        session.audience.give_up(session.number(), &wire, "a test");
    };
    catch_up(&session, &wire);
    give_up(&session);
    assert!(!wire.is_closed(), "it has caught up meanwhile");
    house.publish(&carl, 1);
    assert_eq!(wire.handed(), 1);
    session.leave();
    give_up(&session);
    let resume = ResumeRequest::Resume {
        pid: admitted.unwrap().pid,
        offset: None,
    };
    let (resumed, _, again) = house.admit(&carl, resume);
    assert_eq!(again.unwrap().pid, admitted.unwrap().pid, "it was away");
    house.says("chat3_gateway_slow_sockets_total 0");
    give_up(&resumed);
    assert!(wire.is_closed());
    house.says("chat3_gateway_slow_sockets_total 1");
}

#[test]
fn a_socket_is_cut_only_if_more_waits_for_it_than_the_threshold() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (_session, wire) = house.connect_narrow(&carl, ResumeRequest::New, 4);
    let audience = house.hub.audiences().remove(0);
    for _ in 0..6 {
        house.publish(&carl, 1);
    }
    let waiting = audience.waiting_bytes();
    assert!(waiting > 0);
    assert!(!audience.cut_behind(waiting));
    assert!(!wire.is_closed());
    assert!(audience.cut_behind(waiting - 1));
    assert!(wire.is_closed());
    assert!(!audience.cut_behind(0), "it is cut already");
}

#[test]
fn a_socket_that_lags_a_little_survives_those_who_are_away() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(RecoveryConfig {
        total_bytes: 1_000_000,
        ..recovery()
    }));
    let (carl, dora) = (user("carl"), user("dora"));
    let (_doras, lags) = house.connect_narrow(&dora, ResumeRequest::New, 4);
    for _ in 0..4 {
        house.publish(&dora, 1);
    }
    house.publish(&dora, 500_000);
    assert!(lags.waits());
    drop(house.connect(&carl, ResumeRequest::New));
    house.publish(&carl, 900_000);
    house.hub.evict();
    assert!(!lags.is_closed());
    assert!(!house.hub.describe(&carl.id).is_subscribed);
    assert!(house.kept() > 500_000);
}
