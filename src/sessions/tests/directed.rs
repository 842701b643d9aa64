//! Cases that the model leaves out: several users, and the limits of recovery.

use std::{sync::Arc, time::Duration};

use super::{
    double::{Exchange, Wire, tenants_user, user},
    house::{AMPLE, House, catch_up, config, recovery, runtime},
};
use crate::{
    broker::Broker,
    config::{Envelope, HttpConfig, RecoveryConfig},
    observability::metrics::Metrics,
    sessions::{Hub, ResumeRequest, Session, hub::Presence},
};

#[test]
fn two_hubs_on_one_metrics_share_no_limit() {
    let metrics = Metrics::new();
    let recovery = || RecoveryConfig {
        total_bytes: 20_000,
        ..recovery()
    };
    let one = House::on(&config(recovery()), metrics.clone());
    let other = House::on(&config(recovery()), metrics.clone());
    let (carl, dora) = (user("carl"), user("dora"));
    let (gone, ..) = other.connect(&dora, ResumeRequest::New);
    let (_session, _) = one.connect(&carl, ResumeRequest::New);
    other.publish(&dora, 15_000);
    drop(gone);
    one.publish(&carl, 15_000);
    // Together they keep more than the limit; each alone keeps less.
    assert!(metrics.kept_bytes.get() > 30_000);
    let (kept_by_one, kept_by_other) = (one.kept(), other.kept());
    assert!(kept_by_one > 15_000 && kept_by_one < 20_000);
    one.hub.evict();
    other.hub.evict();
    assert_eq!((one.kept(), other.kept()), (kept_by_one, kept_by_other));
    assert_eq!((one.hub.users_count(), one.hub.sockets_count()), (1, 1));
    assert_eq!((other.hub.users_count(), other.hub.sockets_count()), (0, 0));
    one.says("chat3_gateway_users 1");
    one.says("chat3_gateway_users_away 1");
    one.says("chat3_gateway_sockets 1");
    one.says("chat3_gateway_recovery_updates 2");
    drop((one, other));
}

#[test]
fn a_user_has_as_many_sockets_as_the_limit_and_the_one_that_is_resumed() {
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (first, _, admitted) = house.admit(&carl, ResumeRequest::New);
    let (second, ..) = house.admit(&carl, ResumeRequest::New);
    let join = |request| Session::join(&house.hub, &carl, request, 2);
    assert!(join(ResumeRequest::New).is_none());
    assert!(join(ResumeRequest::OptOut).is_none());
    let resume = ResumeRequest::Resume {
        pid: admitted.unwrap().pid,
        offset: None,
    };
    assert!(join(resume).is_some());
    drop(second);
    assert!(
        join(ResumeRequest::New).is_some(),
        "one that is away has no socket"
    );
    assert!(Session::join(&house.hub, &carl, ResumeRequest::New, 1).is_none());
    assert!(Session::join(&house.hub, &user("dora"), ResumeRequest::New, 1).is_some());
    drop(first);
    assert!(Session::join(&house.hub, &carl, ResumeRequest::New, 1).is_some());
}

#[test]
fn a_user_is_described_over_all_tenants_while_subscribed() {
    let house = House::new(&config(recovery()));
    let (one, other) = (tenants_user("carl", "t1"), tenants_user("carl", "t2"));
    let resumable = house.connect(&one, ResumeRequest::New);
    let opted_out = house.connect(&other, ResumeRequest::OptOut);
    let _dora = house.connect(&user("dora"), ResumeRequest::New);
    let describe = |id: &str| house.hub.describe(&user(id).id);
    let is = |is_subscribed, sockets| Presence {
        is_subscribed,
        sockets,
    };
    assert_eq!(describe("carl"), is(true, 2));
    assert_eq!(describe("dora"), is(true, 1));
    assert_eq!(describe("erin"), is(false, 0));
    drop(opted_out);
    assert_eq!(describe("carl"), is(true, 1));
    assert_eq!(house.hub.broker().subscribers_count(), 2);
    drop(resumable);
    assert_eq!(describe("carl"), is(true, 0), "it may return");
    house.hub.end_away(|user| user.id.as_str() == "erin");
    assert_eq!(describe("carl"), is(true, 0));
    house.hub.end_away(|user| user.id.as_str() == "carl");
    assert_eq!(describe("carl"), is(false, 0));
    assert_eq!(describe("dora"), is(true, 1));
}

#[test]
fn only_the_recipients_own_updates_are_handed_on() {
    let house = House::new(&config(recovery()));
    let (carl, stranger) = (tenants_user("carl", "t1"), user("carl"));
    let (_session, wire) = house.connect(&carl, ResumeRequest::New);
    for body in [
        r#"{"userId":"dora","tenantId":"t1"}"#,
        r#"{"userId":"carl","tenantId":"t2"}"#,
        r#"{"userId":"carl"}"#,
        "no JSON",
    ] {
        house.exchange.publish(&carl, body);
    }
    assert!(!house.exchange.publish(&stranger, r#"{"userId":"carl"}"#));
    assert!(wire.state().emitted.is_empty());
    assert_eq!(house.kept(), 0);
    for (reason, count) in [("foreign_user", 1), ("foreign_tenant", 2), ("not_json", 1)] {
        house.says(&format!(
            "chat3_gateway_updates_rejected_total{{reason=\"{reason}\"}} {count}"
        ));
    }
    house
        .exchange
        .publish(&carl, r#"{"userId":"carl","tenantId":"t1"}"#);
    assert_eq!(wire.handed(), 1);
    house.says("chat3_gateway_updates_received_total 5");
    house.says("chat3_gateway_updates_delivered_total 1");
}

#[test]
fn every_update_is_counted_as_delivered_kept_or_rejected() {
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let session = Session::join(&house.hub, &carl, ResumeRequest::OptOut, 0).unwrap();
    house.publish(&carl, 1);
    house.says("chat3_gateway_updates_rejected_total{reason=\"no_socket\"} 1");
    let wire = Wire::new(1, AMPLE);
    session.admit(1, |_| false);
    house.publish(&carl, 1);
    house.says("chat3_gateway_updates_kept_total 1");
    catch_up(&session, &wire);
    house.says("chat3_gateway_events_emitted_total{event=\"chat3:update\"} 1");
    let (away, ..) = house.connect(&carl, ResumeRequest::New);
    house
        .exchange
        .publish(&carl, r#"{"userId":"carl","eventType":"dialog.update"}"#);
    house.says("chat3_gateway_events_emitted_total{event=\"chat3:update\"} 3");
    house.says("chat3_gateway_events_emitted_total{event=\"dialog:update\"} 2");
    house.says("chat3_gateway_updates_delivered_total 1");
    drop((session, away));
    house.publish(&carl, 1);
    house.says("chat3_gateway_updates_kept_total 2");
    house.says("chat3_gateway_updates_received_total 4");
}

#[test]
fn a_repeated_update_is_dropped_where_that_is_asked_for() {
    let body = r#"{"userId":"carl","updateType":"update.message","eventId":"e1"}"#;
    for (drops_repeated, events) in [(true, 1), (false, 2)] {
        let house = House::new(&HttpConfig {
            drop_repeated_updates: drops_repeated,
            envelope: Envelope::Auto,
            ..HttpConfig::default()
        });
        let carl = user("carl");
        let (_session, wire) = house.connect(&carl, ResumeRequest::New);
        house.exchange.publish(&carl, body);
        house.exchange.publish(&carl, body);
        assert_eq!(wire.handed(), events);
    }
}

#[test]
fn without_a_window_no_session_is_resumed_and_nothing_is_kept() {
    let house = House::new(&config(RecoveryConfig {
        window: Duration::ZERO,
        ..recovery()
    }));
    let carl = user("carl");
    let (session, wire, admitted) = house.admit(&carl, ResumeRequest::New);
    assert!(admitted.is_none());
    catch_up(&session, &wire);
    house.publish(&carl, 1);
    assert_eq!(wire.state().emitted[0].offset, None);
    assert_eq!(house.kept(), 0);
    drop(session);
    assert_eq!(house.exchange.subscribers_count(), 0);
}

#[test]
fn how_a_request_to_resume_was_answered_is_counted() {
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (session, _, admitted) = house.admit(&carl, ResumeRequest::New);
    let resume = ResumeRequest::Resume {
        pid: admitted.unwrap().pid,
        offset: None,
    };
    drop(session);
    let (resumed, ..) = house.admit(&carl, resume);
    let outcome = |outcome, count| {
        house.says(&format!(
            "chat3_gateway_recoveries_total{{outcome=\"{outcome}\"}} {count}"
        ));
    };
    outcome("recovered", 1);
    house.admit(&carl, ResumeRequest::Unreadable);
    outcome("unreadable", 1);
    house.exchange.set_up(false);
    let (_session, ..) = house.admit(&carl, resume);
    outcome("gap", 1);
    house.admit(&carl, resume);
    outcome("unknown", 1);
    drop(resumed);
}

#[test]
fn the_oldest_of_too_many_sessions_that_are_away_is_given_up() {
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let _stays = house.connect(&carl, ResumeRequest::New);
    let mut pids = Vec::new();
    for _ in 0..1_025 {
        house.hub.shared.clock.advance(Duration::from_millis(1));
        let (session, _, admitted) = house.admit(&carl, ResumeRequest::New);
        pids.push(admitted.unwrap().pid);
        drop(session);
    }
    house.says("chat3_gateway_recoveries_lost_total{reason=\"too_many\"} 1");
    assert_eq!(house.hub.shared.departures.all().len(), 1_024);
    let resume = |pid| {
        let request = ResumeRequest::Resume { pid, offset: None };
        let (_session, _, admitted) = house.admit(&carl, request);
        admitted.unwrap().pid == pid
    };
    assert!(resume(pids[1]));
    assert!(!resume(pids[0]));
    assert!(resume(pids[1_024]));
}

#[test]
fn the_users_away_longest_lose_recovery_first() {
    let house = House::new(&config(RecoveryConfig {
        total_bytes: 10_000,
        ..recovery()
    }));
    let users: Vec<_> = ["a", "b", "c", "d", "e"].map(user).into();
    let connections: Vec<_> = users
        .iter()
        .map(|user| house.connect(user, ResumeRequest::New))
        .collect();
    for user in &users {
        house.publish(user, 2_000);
    }
    let total = house.kept();
    assert!(total > 10_000);
    let mut connections = connections.into_iter();
    // They leave in the order c, b, a; d and e keep their sockets.
    let (a, b, c) = (connections.next(), connections.next(), connections.next());
    for gone in [c, b, a] {
        house.hub.shared.clock.advance(Duration::from_secs(1));
        drop(gone);
    }
    house.hub.evict();
    let is_here = |id: &str| house.hub.describe(&user(id).id).is_subscribed;
    assert!(!is_here("c"));
    assert!(is_here("a") && is_here("b") && is_here("d"));
    assert!(house.kept() <= 9_000 && house.kept() > 4_000);
    house.says("chat3_gateway_recoveries_lost_total{reason=\"memory\"} 1");
    house.publish(&user("d"), 9_000);
    house.hub.evict();
    assert!(!is_here("a") && !is_here("b"));
    assert!(is_here("d") && is_here("e"));
    assert!(house.kept() <= 9_000);
    house.says("chat3_gateway_recoveries_lost_total{reason=\"memory\"} 3");
    drop(connections);
}

#[test]
fn a_user_who_returned_is_not_away() {
    let house = House::new(&config(RecoveryConfig {
        total_bytes: 1_000,
        ..recovery()
    }));
    let carl = user("carl");
    let (first, ..) = house.connect(&carl, ResumeRequest::New);
    let (_second, ..) = house.connect(&carl, ResumeRequest::New);
    drop(first);
    house.publish(&carl, 2_000);
    house.hub.evict();
    assert_eq!(house.kept(), 0);
    assert_eq!(house.hub.describe(&carl.id).sockets, 1);
    // The session that is away can no longer be resumed.
    house.says("chat3_gateway_recoveries_lost_total{reason=\"memory\"} 1");
}

#[test]
fn sessions_that_are_away_end_with_the_window() {
    let house = House::new(&config(recovery()));
    let (carl, dora) = (user("carl"), user("dora"));
    let carls = house.connect(&carl, ResumeRequest::New);
    let doras = house.connect(&dora, ResumeRequest::New);
    house.hub.shared.clock.advance(Duration::ZERO);
    drop(carls);
    house.hub.shared.clock.advance(Duration::from_secs(60));
    drop(doras);
    house.hub.shared.clock.advance(Duration::from_secs(60));
    house.hub.expire().for_each(drop);
    assert_eq!(
        house.exchange.subscribers_count(),
        2,
        "the window is not over yet"
    );
    house.hub.shared.clock.advance(Duration::from_secs(1));
    house.hub.expire().for_each(drop);
    assert_eq!(house.exchange.subscribers_count(), 1);
    house.says("chat3_gateway_recoveries_lost_total{reason=\"expired\"} 1");
}

#[test]
fn a_session_leaves_once() {
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (session, _) = house.connect(&carl, ResumeRequest::New);
    house.hub.shared.clock.advance(Duration::ZERO);
    session.leave();
    session.leave();
    assert_eq!(house.hub.shared.departures.all().len(), 1);
    house.hub.shared.clock.advance(Duration::from_secs(60));
    drop(session);
    house.hub.shared.clock.advance(Duration::from_secs(61));
    house.hub.expire().for_each(drop);
    assert_eq!(
        house.exchange.subscribers_count(),
        0,
        "the window began when it left first"
    );
}

#[test]
fn what_has_arrived_is_not_kept() {
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let (_session, wire) = house.connect(&carl, ResumeRequest::New);
    house.hub.shared.clock.advance(Duration::from_secs(61));
    house.publish(&carl, 100);
    wire.take(1);
    house.hub.shared.clock.advance(Duration::from_secs(60));
    house.hub.expire().for_each(drop);
    assert!(house.kept() > 0);
    house.hub.shared.clock.advance(Duration::from_secs(1));
    house.hub.expire().for_each(drop);
    assert_eq!(house.kept(), 0);
}

#[test]
fn a_session_that_was_taken_over_or_ended_gets_nothing_more() {
    runtime().block_on(async {
        let house = House::new(&config(recovery()));
        let carl = user("carl");
        let (old, stale, admitted) = house.admit(&carl, ResumeRequest::New);
        let resume = ResumeRequest::Resume {
            pid: admitted.unwrap().pid,
            offset: None,
        };
        let (new, fresh) = house.connect(&carl, resume);
        old.go_live(stale.clone()).await;
        assert!(stale.is_closed(), "another connection has taken over");
        house.publish(&carl, 1);
        assert_eq!(fresh.handed(), 1);
        drop(old);
        assert_eq!(house.hub.sockets_count(), 1);
        new.end();
        house.exchange.publish(&carl, r#"{"userId":"carl"}"#);
        new.go_live(fresh.clone()).await;
        assert!(!fresh.is_closed(), "its client is told why first");
        assert_eq!(fresh.handed(), 1);
        assert_eq!(house.exchange.subscribers_count(), 0);
        assert_eq!(new.user(), &carl);
    });
}

#[test]
fn a_hub_ends_and_evicts_in_the_background() {
    runtime().block_on(async {
        let config = config(RecoveryConfig {
            window: Duration::from_millis(80),
            total_bytes: 5_000,
            ..recovery()
        });
        let exchange = Arc::new(Exchange::default());
        exchange.set_up(true);
        let hub: Arc<Hub<Wire>> = Hub::new(exchange.clone(), &config, Metrics::new());
        let carl = user("carl");
        let house = House {
            hub,
            exchange,
            metrics: Metrics::new(),
        };
        let (session, _) = house.connect(&carl, ResumeRequest::New);
        let until = async |is: &dyn Fn() -> bool| {
            let wait = async {
                while !is() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(5), wait)
                .await
                .unwrap();
        };
        tokio::time::timeout(Duration::from_secs(5), session.subscribed())
            .await
            .unwrap();
        // The third update arrives when more than the limit is kept already.
        for _ in 0..3 {
            house.publish(&carl, 3_000);
        }
        until(&|| house.kept() == 0).await;
        drop(session);
        assert_eq!(house.exchange.subscribers_count(), 1);
        until(&|| house.exchange.subscribers_count() == 0).await;
    });
}
