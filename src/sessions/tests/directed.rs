//! What the model leaves out: several users, limits, and catching up in real time.

use std::{sync::Arc, time::Duration};

use super::double::{EVENT_BYTES, Exchange, Wire, tenants_user, user};
use crate::{
    broker::Broker,
    config::{Envelope, HttpConfig, RecoveryConfig},
    observability::metrics::Metrics,
    sessions::{Admitted, Hub, ResumeRequest, Session, audience::Fed, hub::Presence},
    user::User,
};

const AMPLE: usize = 1 << 30;

struct House {
    hub: Arc<Hub<Wire>>,
    exchange: Arc<Exchange>,
    metrics: Metrics,
}

impl House {
    fn new(config: &HttpConfig) -> Self {
        Self::on(config, Metrics::new())
    }

    fn on(config: &HttpConfig, metrics: Metrics) -> Self {
        let exchange = Arc::new(Exchange::default());
        exchange.set_up(true);
        let hub = Hub::without_expiry(exchange.clone(), config, metrics.clone());
        Self {
            hub,
            exchange,
            metrics,
        }
    }

    /// A socket of `user`, admitted and live.
    fn connect(&self, user: &User, request: ResumeRequest) -> (Session<Wire>, Wire) {
        let (session, wire, _) = self.admit(user, request);
        catch_up(&session, &wire);
        (session, wire)
    }

    fn admit(
        &self,
        user: &User,
        request: ResumeRequest,
    ) -> (Session<Wire>, Wire, Option<Admitted<u32>>) {
        let session = Session::join(&self.hub, user, request, 0).unwrap();
        let wire = Wire::new(u32::try_from(session.number()).unwrap(), AMPLE, false);
        let admitted = session.admit(u32::try_from(session.number()).unwrap());
        (session, wire, admitted)
    }

    fn publish(&self, user: &User, bytes: usize) {
        let id = user.id.as_str();
        let padding = "x".repeat(bytes);
        let body = format!(r#"{{"userId":"{id}","padding":"{padding}"}}"#);
        assert!(self.exchange.publish(user, body));
    }

    fn kept(&self) -> usize {
        self.hub.shared.kept.bytes()
    }

    fn says(&self, line: &str) {
        let text = self.metrics.render();
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
}

fn catch_up(session: &Session<Wire>, wire: &Wire) {
    while session.audience.feed(session.number(), wire) == Fed::Turn {}
}

fn config(recovery: RecoveryConfig) -> HttpConfig {
    HttpConfig {
        recovery,
        ..HttpConfig::default()
    }
}

fn recovery() -> RecoveryConfig {
    RecoveryConfig {
        window: Duration::from_secs(120),
        max_updates: 1_000,
        max_bytes: 1 << 20,
        total_bytes: AMPLE,
    }
}

/// Catch-ups that are spawned run only where a test waits.
fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap()
}

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
    // Together they keep too much, and each of them does not.
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
    let wire = Wire::new(1, AMPLE, false);
    session.admit(1);
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
    // Away in the order c, b, a; two have sockets.
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
    house.hub.expire();
    assert_eq!(
        house.exchange.subscribers_count(),
        2,
        "the window is not over yet"
    );
    house.hub.shared.clock.advance(Duration::from_secs(1));
    house.hub.expire();
    assert_eq!(house.exchange.subscribers_count(), 1);
    house.says("chat3_gateway_recoveries_lost_total{reason=\"expired\"} 1");
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
    house.hub.expire();
    assert!(house.kept() > 0);
    house.hub.shared.clock.advance(Duration::from_secs(1));
    house.hub.expire();
    assert_eq!(house.kept(), 0);
}

/// How many events of one update each a socket takes before it lags.
fn handed_ahead(polls: bool) -> usize {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let session = Session::join(&house.hub, &carl, ResumeRequest::New, 0).unwrap();
    let wire = Wire::new(0, AMPLE, polls);
    session.admit(0);
    catch_up(&session, &wire);
    for _ in 0..60 {
        house.publish(&carl, 1);
    }
    assert!(wire.waits());
    let handed = wire.handed();
    // Handed on from the log only as the client takes it.
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), handed);
    wire.take(2);
    catch_up(&session, &wire);
    assert_eq!(wire.handed(), handed + 2);
    assert!(!wire.is_closed());
    handed
}

#[test]
fn a_socket_is_handed_no_more_ahead_than_the_limit() {
    let over = |bytes: u64| usize::try_from(bytes / EVENT_BYTES).unwrap() + 1;
    assert_eq!(handed_ahead(false), over(64 * 1024));
    assert_eq!(handed_ahead(true), over(512 * 1024));
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
    let (session, wire) = house.connect(&carl, ResumeRequest::New);
    let (_other, takes) = house.connect(&carl, ResumeRequest::New);
    let mut published = 0;
    let mut publish = || {
        house.publish(&carl, 900_000);
        takes.take(1);
        published += 1;
        catch_up(&session, &wire);
    };
    // Four are handed ahead; then 8 MiB may wait, and what is kept anyway.
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
fn a_full_buffer_cuts_one_socket_or_all_that_may_have_missed_something() {
    let runtime = runtime();
    let _context = runtime.enter();
    let house = House::new(&config(recovery()));
    let carl = user("carl");
    let small = |request| {
        let (session, _, _) = house.admit(&carl, request);
        let wire = Wire::new(0, 1, false);
        catch_up(&session, &wire);
        (session, wire)
    };
    let (_one, first) = small(ResumeRequest::New);
    house.publish(&carl, 1);
    assert!(!first.is_closed());
    house.publish(&carl, 1);
    assert!(first.is_closed());
    let (_two, second) = small(ResumeRequest::New);
    let (_three, ample) = house.connect(&carl, ResumeRequest::New);
    let (_four, without_offsets) = house.connect(&carl, ResumeRequest::OptOut);
    house.publish(&carl, 1);
    house.publish(&carl, 1);
    // Nobody knows which of the two that are sent offsets has missed it.
    assert!(second.is_closed() && ample.is_closed());
    assert!(!without_offsets.is_closed());
    house.publish(&carl, 1);
    assert_eq!(without_offsets.handed(), 3);
    house.says("chat3_gateway_slow_sockets_total 3");
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
    let (_carls, far) = house.connect(&carl, ResumeRequest::New);
    let (_doras, near) = house.connect(&dora, ResumeRequest::New);
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
    // Too much by dora's socket alone, which is not far behind.
    let house = House::new(&config(RecoveryConfig {
        max_bytes: 100_000,
        total_bytes: 400_000,
        ..recovery()
    }));
    let (_doras, near) = house.connect(&dora, ResumeRequest::New);
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
        let (session, stuck) = house.connect(&carl, ResumeRequest::New);
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
        let wire = Wire::new(0, AMPLE, false);
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
fn a_socket_that_wrote_all_is_believed_whatever_was_counted() {
    runtime().block_on(async {
        let house = House::new(&config(recovery()));
        let carl = user("carl");
        let (session, wire) = house.connect(&carl, ResumeRequest::New);
        for _ in 0..5 {
            house.publish(&carl, 1);
        }
        assert!(wire.waits());
        // Its client took them, but not by its count.
        wire.state().has_taken_all = true;
        let caught_up = house.hub.caught_up();
        tokio::time::timeout(Duration::from_secs(5), caught_up)
            .await
            .unwrap();
        assert_eq!(wire.handed(), 5);
        drop(session);
    });
}

#[test]
fn nobody_waits_for_sockets_that_take_nothing() {
    runtime().block_on(async {
        let house = House::new(&config(recovery()));
        let carl = user("carl");
        let (session, wire) = house.connect(&carl, ResumeRequest::New);
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
        // More than the limit, and then one more.
        for _ in 0..3 {
            house.publish(&carl, 3_000);
        }
        until(&|| house.kept() == 0).await;
        drop(session);
        assert_eq!(house.exchange.subscribers_count(), 1);
        until(&|| house.exchange.subscribers_count() == 0).await;
    });
}
