//! `RabbitMqService` as a Rust backend would embed it, against a real RabbitMQ.

mod common;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chat3_gateway::{
    Metrics, RabbitMqService,
    broker::{Broadcast, Broker as _, Delivery, Handler},
    config::{RabbitMqConfig, Topology},
    user::{TenantId, User, UserId},
};
use clap::ValueEnum;
use common::{Broker, DEADLINE, EXCHANGE, Link, Publisher, until, until_within};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// All tests run over the topology that `RABBITMQ_TOPOLOGY` names.
fn topology() -> Topology {
    let name = std::env::var("RABBITMQ_TOPOLOGY").unwrap_or_else(|_| "per-user".to_owned());
    Topology::from_str(&name, false).unwrap()
}

fn config(url: &str) -> RabbitMqConfig {
    RabbitMqConfig {
        url: url.parse().unwrap(),
        topology: topology(),
        shared_queues: 3,
        // The tests count one binding for each user.
        binding_keys: "user.{userId}.*".parse().unwrap(),
        reconnect_delay: Duration::from_millis(100),
        ..RabbitMqConfig::default()
    }
}

/// The number of queues of a connected service with this number of users.
fn queues(users: usize) -> usize {
    match topology() {
        Topology::PerUser => users,
        Topology::Shared => config("amqp://localhost").shared_queues.into(),
        Topology::Firehose | Topology::Stream => 1,
    }
}

/// Whether a user's coming asks the broker for something that it may refuse, and makes it
/// notice what is missing. A stream has nothing for a user: a link that works is probed every
/// 5 s, and meanwhile its users stay subscribed. `tests/e2e/stream.test.mjs` has its losses.
fn users_ask_the_broker() -> bool {
    topology() != Topology::Stream
}

/// The number of queues once all services are closed: a stream stays.
fn queues_left() -> usize {
    usize::from(topology() == Topology::Stream)
}

/// The number of connections: the stream's markers have their own.
fn connections() -> usize {
    1 + usize::from(topology() == Topology::Stream)
}

/// The number of channels of a service: for consumers, for declares, and for markers.
fn channels() -> usize {
    let consumers = match topology() {
        Topology::PerUser => 1,
        Topology::Shared | Topology::Firehose | Topology::Stream => queues(0),
    };
    consumers + 16 + (connections() - 1)
}

fn user(id: &str) -> User {
    User {
        id: UserId::parse(id).unwrap(),
        tenant: None,
    }
}

fn connect(broker: &Broker) -> RabbitMqService {
    RabbitMqService::connect(config(&broker.url()), Metrics::new())
}

/// A handler that passes bodies on, and the inbox in which they arrive.
fn inbox() -> (Handler, UnboundedReceiver<String>) {
    let (sender, receiver) = unbounded_channel();
    let handler = move |delivery: &Delivery| {
        let body = String::from_utf8(delivery.body.to_vec()).unwrap();
        // The test may have seen enough.
        let _ = sender.send(body);
    };
    (Arc::new(handler), receiver)
}

async fn next(inbox: &mut UnboundedReceiver<String>) -> String {
    let received = timeout(DEADLINE, inbox.recv()).await;
    received
        .expect("an update in time")
        .expect("a subscription")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscribed_user_receives_their_updates_in_order_until_unsubscribed() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
    let (handler, mut inbox) = inbox();
    let carl = user("carl");

    service.subscribe_user(&carl, handler).ready().await;
    assert!(service.is_connected());
    assert!(service.is_user_subscribed(&carl));
    assert_eq!(service.subscribers_count(), 1);
    assert_eq!(broker.queues().len(), queues(1));

    publisher
        .publish("user.bob.messageupdate", "not carl's")
        .await;
    for i in 0..300 {
        publisher
            .publish("user.carl.messageupdate", &i.to_string())
            .await;
    }
    for i in 0..300 {
        assert_eq!(next(&mut inbox).await, i.to_string());
    }

    service.unsubscribe_user(&carl);
    assert!(!service.is_user_subscribed(&carl));
    let gone = || broker.queues().len() == queues(0);
    until("the queue is gone", gone).await;
    // The handler was dropped with the subscription, and the sender of the inbox with it.
    let end = timeout(DEADLINE, inbox.recv()).await.unwrap();
    assert_eq!(end, None);

    service.close().await;
    assert!(!service.is_connected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_subscription_of_a_user_replaces_the_first() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
    let (first, mut old_inbox) = inbox();
    let (second, mut inbox) = inbox();
    let carl = user("carl");
    service.subscribe_user(&carl, first).ready().await;
    service.subscribe_user(&carl, second).ready().await;
    assert_eq!(broker.queues().len(), queues(1));
    publisher.publish("user.carl.messageupdate", "x").await;
    assert_eq!(next(&mut inbox).await, "x");
    assert_eq!(timeout(DEADLINE, old_inbox.recv()).await.unwrap(), None);
    service.close().await;
}

/// What may happen while users come and go. An event that takes something away gives it
/// back when it happens again.
#[derive(Debug, Clone, Copy)]
enum Fault {
    LinkCut,
    ConnectionsClosed,
    BrokerKilled,
    QueuesDeleted,
    /// Declares, or binds, are refused (403).
    Permission,
    /// Binds are refused (404), and queues lose their bindings.
    Exchange,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_meanwhile_exactly_the_desired_users_end_up_subscribed() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    // Shown when the test fails. The seed repeats the events, but not their timing.
    println!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    // First the events that end the link; then those that it must survive.
    let mut losses = [
        Fault::LinkCut,
        Fault::LinkCut,
        Fault::LinkCut,
        Fault::ConnectionsClosed,
        Fault::BrokerKilled,
        Fault::Permission,
    ];
    let mut refusals = [
        Fault::Permission,
        Fault::Permission,
        Fault::Permission,
        Fault::Exchange,
        Fault::Exchange,
        Fault::QueuesDeleted,
        Fault::QueuesDeleted,
    ];
    losses.shuffle(&mut rng);
    refusals.shuffle(&mut rng);

    let mut broker = Broker::start().await;
    drop(Publisher::connect(&broker).await);
    let link = Link::to(&broker).await;
    let config = RabbitMqConfig {
        // The delay doubles with each loss, and there are many.
        reconnect_delay: Duration::from_millis(2),
        ..config(&link.url())
    };
    let service = Arc::new(RabbitMqService::connect(config, Metrics::new()));
    let (sender, mut updates) = unbounded_channel();
    let mut desired = HashSet::new();
    for id in user_ids().step_by(2) {
        drop(service.subscribe_user(&user(&id), tagging(&id, &sender)));
        desired.insert(id);
    }
    let stop = CancellationToken::new();
    let churn_rng = StdRng::from_rng(&mut rng);
    let churn = tokio::spawn(churn(service.clone(), churn_rng, sender, stop.clone()));

    let mut permitted = true;
    let mut exists = true;
    for fault in losses.into_iter().chain(refusals) {
        println!("{fault:?}");
        match fault {
            Fault::LinkCut => link.cut(),
            Fault::ConnectionsClosed => drop(broker.ctl(&["close_all_connections", "test"])),
            Fault::BrokerKilled => broker.restart().await,
            Fault::QueuesDeleted => delete_queues(&broker),
            Fault::Permission => {
                permitted = !permitted;
                let (configure, read) = match (permitted, rng.random()) {
                    (true, _) => (".*", ".*"),
                    (false, true) => ("^chat3_updates$", ".*"),
                    (false, false) => (".*", "^chat3-gateway"),
                };
                broker.ctl(&["set_permissions", "rmuser", configure, ".*", read]);
            }
            Fault::Exchange => {
                exists = !exists;
                exchange(&broker, exists).await;
                if !exists {
                    loss_is_noticed(&service).await;
                }
            }
        }
    }
    stop.cancel();
    desired.extend(churn.await.unwrap());

    // A refused user waits for 30 s, and reconnects may be as far apart.
    let all = || service.subscribers_count() == desired.len();
    until_within(Duration::from_secs(120), "the desired subscriptions", all).await;
    for id in user_ids() {
        let is_desired = desired.contains(&id);
        assert_eq!(service.is_user_subscribed(&user(&id)), is_desired, "{id}");
    }
    // Users of a stream stay subscribed while its reader is refused, or attaches again.
    an_update_arrives(&broker, desired.iter().next().unwrap(), &mut updates).await;
    let queues_are_consumed = || {
        let (mut queues, mut consumed) = (broker.queues(), broker.consumed_queues());
        queues.sort();
        consumed.sort();
        queues.len() == self::queues(desired.len())
            && (readers_are_not_listed() || queues == consumed)
    };
    until("a consumed queue for each user", queues_are_consumed).await;
    let open = || (broker.connections(), broker.channels()) == (connections(), channels());
    until("as many connections and channels as it needs", open).await;

    // Each user is bound, and not to the updates of others.
    let publisher = Publisher::connect(&broker).await;
    for id in user_ids() {
        publisher.publish(&format!("user.{id}.x"), &id).await;
    }
    assert_eq!(received(&mut updates, desired.len()).await, desired);
    service.close().await;
    let left = || broker.queues().len() == queues_left();
    until("no queues of its own", left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_exchange_is_noticed_also_by_one_who_may_not_bind_any_more() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect_over(Topology::PerUser, &broker);
    let carl = user("carl");
    let subscribe = || service.subscribe_user(&carl, inbox().0);
    subscribe().ready().await;

    // RabbitMQ caches permissions per channel: after a refusal, there is a new one.
    let (configure, read) = ("^chat3_updates$", "^$");
    broker.ctl(&["set_permissions", "rmuser", configure, ".*", read]);
    drop(service.subscribe_user(&user("newcomer"), inbox().0));
    // Longer than the interval between two probes.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(service.is_user_subscribed(&carl), "who is bound stays so");

    publisher.delete_exchange(EXCHANGE).await;
    let noticed = || !service.is_user_subscribed(&carl);
    until("the loss is noticed", noticed).await;
    service.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_loses_a_queue_gets_another_while_more_users_come_and_go_than_the_broker_can_take()
 {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = Arc::new(connect_over(Topology::PerUser, &broker));
    let (handler, mut inbox) = inbox();
    service.subscribe_user(&user("carl"), handler).ready().await;
    let queue = broker.queues().remove(0);

    let (stop, (sender, _)) = (CancellationToken::new(), unbounded_channel());
    let crowd: Vec<_> = (0..4)
        .map(|seed| {
            let rng = StdRng::seed_from_u64(seed);
            tokio::spawn(churn(service.clone(), rng, sender.clone(), stop.clone()))
        })
        .collect();
    // Long enough that there is always more to do.
    tokio::time::sleep(Duration::from_secs(1)).await;
    delete_queue(&broker, &queue);

    let deadline = Instant::now() + DEADLINE;
    let received = loop {
        publisher.publish("user.carl.messageupdate", "x").await;
        match timeout(Duration::from_millis(100), inbox.recv()).await {
            Ok(received) => break received,
            Err(_) => assert!(Instant::now() < deadline, "carl has no queue"),
        }
    };
    assert_eq!(received.as_deref(), Some("x"));
    stop.cancel();
    for each in crowd {
        each.await.unwrap();
    }
    service.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_again_and_again_does_not_wear_out_the_others_connection() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let key = r"^user\.carl\.";
    broker.ctl(&[
        "set_topic_permissions",
        "rmuser",
        "chat3_updates",
        ".*",
        key,
    ]);
    // A firehose has one key for all users.
    for topology in [Topology::PerUser, Topology::Shared] {
        let metrics = Metrics::new();
        let config = RabbitMqConfig {
            topology,
            ..config(&broker.url())
        };
        let service = RabbitMqService::connect(config, metrics.clone());
        let (handler, mut inbox) = inbox();
        service.subscribe_user(&user("carl"), handler).ready().await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            for id in user_ids().take(40) {
                drop(service.subscribe_user(&user(&id), self::inbox().0));
                tokio::time::sleep(Duration::from_millis(1)).await;
                service.unsubscribe_user(&user(&id));
            }
        }
        // Each user is tried at most once, and one more in half a minute.
        let refused = metrics.subscriptions_refused.get();
        assert!((1..=41).contains(&refused), "{refused}");
        publisher.publish("user.carl.messageupdate", "x").await;
        assert_eq!(next(&mut inbox).await, "x");
        service.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_are_refused_a_few_try_it_and_all_are_back_with_the_permission() {
    if !users_ask_the_broker() {
        return;
    }
    let broker = Broker::start().await;
    drop(Publisher::connect(&broker).await);
    let (configure, read) = ("^chat3_updates$", "^$");
    broker.ctl(&["set_permissions", "rmuser", configure, ".*", read]);
    let metrics = Metrics::new();
    let service = RabbitMqService::connect(config(&broker.url()), metrics.clone());
    let handler = inbox().0;
    for i in 0..1_500 {
        service.subscribe_user(&user(&format!("usr_{i}")), handler.clone());
    }
    let refused = || metrics.subscriptions_refused.get();
    until("a few tries", || refused() >= 16).await;
    // Time for more attempts.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(refused() <= 17, "{}", refused());
    broker.ctl(&["set_permissions", "rmuser", ".*", ".*", ".*"]);
    let all = || service.subscribers_count() == 1_500;
    until_within(Duration::from_secs(90), "all are back", all).await;
    service.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcasts_arrive_again_when_the_way_between_instances_was_lost() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let connect = || {
        let config = RabbitMqConfig {
            control_exchange: "control".to_owned(),
            control_stream: String::new(),
            ..config(&broker.url())
        };
        RabbitMqService::connect(config, Metrics::new())
    };
    let (one, other) = (connect(), connect());
    let (sender, mut received) = unbounded_channel();
    other.on_broadcast(Arc::new(move |message: &Broadcast<'_>| {
        // The test may have seen enough.
        let _ = sender.send(message.body.to_vec());
    }));
    let control_queues = || {
        let mut queues = broker.queues();
        queues.retain(|queue| queue.contains(".control"));
        queues
    };
    until("both ways", || control_queues().len() == 2).await;
    for fault in [
        "",
        "a queue",
        "the exchange",
        "the exchange, which is made anew",
    ] {
        match fault {
            "" => {}
            "a queue" => control_queues()
                .iter()
                .for_each(|queue| delete_queue(&broker, queue)),
            _ => publisher.delete_exchange("control").await,
        }
        if fault.ends_with("anew") {
            publisher.declare_exchange("control", "fanout").await;
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "lost with {fault}");
            one.broadcast(fault.into()).await;
            let next = timeout(Duration::from_millis(200), received.recv()).await;
            if next.is_ok_and(|message| message.unwrap() == fault.as_bytes()) {
                break;
            }
        }
    }
    one.close().await;
    other.close().await;
}

fn user_ids() -> impl Iterator<Item = String> {
    (0..200).map(|i| format!("usr_{i}"))
}

/// A handler that passes bodies on, with the id of the user who received them.
fn tagging(id: &str, updates: &UnboundedSender<(String, String)>) -> Handler {
    let (id, updates) = (id.to_owned(), updates.clone());
    Arc::new(move |delivery: &Delivery| {
        let body = String::from_utf8(delivery.body.to_vec()).unwrap();
        // The test may be over.
        let _ = updates.send((id.clone(), body));
    })
}

/// Publishes the update "early" to a user, again and again, until it arrives.
async fn an_update_arrives(
    broker: &Broker,
    id: &str,
    updates: &mut UnboundedReceiver<(String, String)>,
) {
    let publisher = Publisher::connect(broker).await;
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        publisher.publish(&format!("user.{id}.x"), "early").await;
        match timeout(Duration::from_millis(100), updates.recv()).await {
            Ok(early) => return assert_eq!(early, Some((id.to_owned(), "early".to_owned()))),
            Err(_) => assert!(Instant::now() < deadline, "nothing is read"),
        }
    }
}

/// Waits until this number of users has received an update, each of them their own, and once.
async fn received(
    updates: &mut UnboundedReceiver<(String, String)>,
    users: usize,
) -> HashSet<String> {
    let mut received = HashSet::new();
    while received.len() < users {
        let update = timeout(DEADLINE, updates.recv()).await;
        let (id, body) = update.expect("an update in time").unwrap();
        if body != "early" {
            assert_eq!(id, body);
            assert!(received.insert(id));
        }
    }
    received
}

/// Lets every second user come and go until `stop`; returns the users subscribed then.
async fn churn(
    service: Arc<RabbitMqService>,
    mut rng: StdRng,
    updates: UnboundedSender<(String, String)>,
    stop: CancellationToken,
) -> HashSet<String> {
    let ids: Vec<_> = user_ids().skip(1).step_by(2).collect();
    let mut desired = HashSet::new();
    while !stop.is_cancelled() {
        let id = &ids[rng.random_range(0..ids.len())];
        if rng.random() {
            drop(service.subscribe_user(&user(id), tagging(id, &updates)));
            desired.insert(id.clone());
        } else {
            service.unsubscribe_user(&user(id));
            desired.remove(id);
        }
        tokio::time::sleep(Duration::from_micros(rng.random_range(1..2000))).await;
    }
    desired
}

/// Declares the exchange as Chat3 or an operator would.
async fn exchange(broker: &Broker, exists: bool) {
    // Connecting the publisher declares the exchange.
    let publisher = Publisher::connect(broker).await;
    if !exists {
        publisher.delete_exchange(EXCHANGE).await;
    }
}

/// Waits until the service knows that the exchange is gone: one that is back before is a
/// known limit.
async fn loss_is_noticed(service: &RabbitMqService) {
    if !users_ask_the_broker() {
        // Longer than the interval between two probes.
        return tokio::time::sleep(Duration::from_secs(6)).await;
    }
    for _ in 0..2 {
        let noticed = || service.subscribers_count() == 0;
        until("the loss is noticed", noticed).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// RabbitMQ 3.10 lists the consumers of all queues but of streams.
fn readers_are_not_listed() -> bool {
    topology() == Topology::Stream
}

/// Deletes some of the gateway's queues while they are consumed.
fn delete_queues(broker: &Broker) {
    delete(broker, "lists:sublist(rabbit_amqqueue:list(), 5)");
}

fn delete_queue(broker: &Broker, name: &str) {
    let name = format!(r#"rabbit_misc:r(<<"/">>, queue, <<"{name}">>)"#);
    delete(
        broker,
        &format!("[element(2, rabbit_amqqueue:lookup({name}))]"),
    );
}

/// Deletes queues, given as an Erlang list. AMQP cannot do that: it reserves exclusive
/// queues to their connection.
fn delete(broker: &Broker, queues: &str) {
    broker.ctl(&[
        "eval",
        &format!(
            r#"[catch rabbit_amqqueue:delete(Q, false, false, <<"test">>) || Q <- {queues}]."#
        ),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_hands_off_what_was_received() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
    let ((handler, mut inbox), (marking, mut marked)) = (inbox(), inbox());
    let slow: Handler = Arc::new(move |delivery: &Delivery| {
        std::thread::sleep(Duration::from_millis(2));
        handler.handle(delivery);
    });
    service.subscribe_user(&user("carl"), slow).ready().await;
    service.subscribe_user(&user("dora"), marking).ready().await;
    for i in 0..500 {
        publisher
            .publish("user.carl.messageupdate", &i.to_string())
            .await;
        if i == 100 {
            publisher.publish("user.dora.messageupdate", "x").await;
        }
    }
    // With common queues, this update comes after carl's; with separate ones, in parallel.
    next(&mut marked).await;
    service.close().await;
    let mut received = 0;
    while let Ok(body) = inbox.try_recv() {
        assert_eq!(body, received.to_string());
        received += 1;
    }
    // A prefetch of 100 had delivered at least this many by then.
    assert!(received > 50, "{received}");
    let left = || broker.queues().len() == queues_left();
    until("no queues of its own", left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_without_a_broker_returns() {
    let broker = Broker::start().await;
    let service = connect(&broker);
    service.subscribe_user(&user("carl"), inbox().0);
    drop(broker);
    timeout(DEADLINE, service.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_users_are_resubscribed_after_a_broker_restart() {
    let mut broker = Broker::start().await;
    drop(Publisher::connect(&broker).await);
    let service = connect(&broker);
    let handler = inbox().0;
    for i in 0..10_000 {
        service.subscribe_user(&user(&format!("usr_{i}")), handler.clone());
    }
    let deadline = Duration::from_secs(300);
    let all = || service.subscribers_count() == 10_000;
    until_within(deadline, "10,000 subscriptions", all).await;
    broker.restart().await;
    let back = Instant::now();
    let publisher = Publisher::connect(&broker).await;
    until("the link", || service.is_connected()).await;
    let linked = Instant::now();
    until_within(deadline, "10,000 subscriptions again", all).await;
    // `cargo test -- --nocapture` shows the time it took.
    println!(
        "10,000 users resubscribed {:?} after the broker was back, {:?} after the link was",
        back.elapsed(),
        linked.elapsed()
    );
    assert_eq!(broker.queues().len(), queues(10_000));

    let (handler, mut inbox) = inbox();
    let last = user("usr_9999");
    service.subscribe_user(&last, handler).ready().await;
    publisher.publish("user.usr_9999.messageupdate", "x").await;
    assert_eq!(next(&mut inbox).await, "x");
    // The end of the connection deletes the queues, which takes the broker a while.
    service.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_refusals_and_deletions_leave_no_queue_and_no_channel_behind() {
    if !users_ask_the_broker() {
        return;
    }
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
    for round in 0..100 {
        let carl = user(&format!("usr_{round}"));
        let mut subscribed = service.subscribe_user(&carl, inbox().0);
        // After many losses in a row, the next try may be half a minute away.
        timeout(2 * DEADLINE, subscribed.ready()).await.unwrap();
        if round % 10 == 0 {
            // A bind without an exchange is refused, and the server closes the channel.
            publisher.delete_exchange(EXCHANGE).await;
            service.subscribe_user(&user("usr_refused"), inbox().0);
            until("the loss", || !service.is_user_subscribed(&carl)).await;
            publisher.declare_exchange(EXCHANGE, "topic").await;
        }
        service.unsubscribe_user(&carl);
    }
    service.unsubscribe_user(&user("usr_refused"));
    let gone = || broker.queues().len() == queues(0);
    until("no queues of users", gone).await;
    let open = || broker.channels() == channels() + 1;
    until("the service's channels and the publisher's", open).await;
    service.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_do_not_wait_for_a_crowd_that_leaves() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let metrics = Metrics::new();
    let service = RabbitMqService::connect(config(&broker.url()), metrics.clone());
    let crowd: Vec<User> = (0..2500).map(|i| user(&format!("usr_{i}"))).collect();
    for user in &crowd {
        service.subscribe_user(user, inbox().0);
    }
    let deadline = Duration::from_secs(60);
    let all = || service.subscribers_count() == crowd.len();
    until_within(deadline, "2,500 subscriptions", all).await;
    for user in &crowd {
        service.unsubscribe_user(user);
    }
    let (handler, mut inbox) = inbox();
    let mut subscribed = service.subscribe_user(&user("newcomer"), handler);
    timeout(DEADLINE, subscribed.ready()).await.unwrap();
    // The bindings that users who left still have, in topologies that keep them.
    let still_there = match topology() {
        Topology::PerUser => usize::try_from(metrics.subscriptions.get()).unwrap(),
        Topology::Shared => bindings(&broker),
        Topology::Firehose | Topology::Stream => crowd.len(),
    };
    assert!(still_there > 1_000, "{still_there}");
    publisher.publish("user.newcomer.messageupdate", "x").await;
    assert_eq!(next(&mut inbox).await, "x");
    let one_left = || broker.queues().len() == queues(1);
    until_within(deadline, "one user's queues", one_left).await;
    service.close().await;
}

/// For tests of one topology, whatever `RABBITMQ_TOPOLOGY` says.
fn connect_over(topology: Topology, broker: &Broker) -> RabbitMqService {
    let config = RabbitMqConfig {
        topology,
        ..config(&broker.url())
    };
    RabbitMqService::connect(config, Metrics::new())
}

fn bindings(broker: &Broker) -> usize {
    let keys = broker.ctl(&["list_bindings", "--no-table-headers", "routing_key"]);
    keys.iter().filter(|key| key.starts_with("user.")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_stays_on_shared_queues_misses_nothing_while_others_come_and_go() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    for topology in [Topology::Shared, Topology::Firehose] {
        let service = Arc::new(connect_over(topology, &broker));
        let (sender, mut updates) = unbounded_channel();
        let stay: Vec<String> = user_ids().step_by(2).collect();
        for id in &stay {
            drop(service.subscribe_user(&user(id), tagging(id, &sender)));
        }
        let all = || service.subscribers_count() == stay.len();
        until("those who stay", all).await;
        let stop = CancellationToken::new();
        let rng = StdRng::seed_from_u64(1);
        let churn = tokio::spawn(churn(service.clone(), rng, sender.clone(), stop.clone()));
        for round in 0..50 {
            for id in user_ids() {
                let body = format!("{id} {round}");
                publisher.publish(&format!("user.{id}.x"), &body).await;
            }
            tokio::task::yield_now().await;
        }
        let mut rounds = HashMap::<String, Vec<usize>>::new();
        while stay
            .iter()
            .any(|id| rounds.get(id).is_none_or(|seen| seen.len() < 50))
        {
            let update = timeout(DEADLINE, updates.recv()).await;
            let (id, body) = update.expect("an update in time").unwrap();
            let (whose, round) = body.split_once(' ').unwrap();
            assert_eq!(id, whose);
            rounds.entry(id).or_default().push(round.parse().unwrap());
        }
        stop.cancel();
        churn.await.unwrap();
        for id in &stay {
            assert_eq!(rounds[id], (0..50).collect::<Vec<_>>(), "{id}");
        }
        service.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_one_id_in_two_tenants_share_a_key_until_the_last_has_left() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    for topology in [Topology::Shared, Topology::Firehose] {
        let service = connect_over(topology, &broker);
        let of = |tenant| User {
            tenant: Some(TenantId::parse(tenant).unwrap()),
            ..user("carl")
        };
        let ((one, mut first), (other, mut second)) = (inbox(), inbox());
        service.subscribe_user(&of("t1"), one).ready().await;
        service.subscribe_user(&of("t2"), other).ready().await;
        publisher.publish("user.carl.x", "1").await;
        assert_eq!(next(&mut first).await, "1");
        assert_eq!(next(&mut second).await, "1");
        service.unsubscribe_user(&of("t1"));
        assert_eq!(timeout(DEADLINE, first.recv()).await.unwrap(), None);
        if topology == Topology::Shared {
            // Time is under test: bindings linger for 10 s. By then t1's would be
            // unbound, and the key that it shares with t2 must not be.
            tokio::time::sleep(Duration::from_secs(11)).await;
        }
        publisher.publish("user.carl.x", "2").await;
        assert_eq!(next(&mut second).await, "2");
        service.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bindings_of_a_crowd_that_leaves_a_shared_queue_go_bit_by_bit() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect_over(Topology::Shared, &broker);
    let crowd: Vec<User> = (0..1000).map(|i| user(&format!("usr_{i}"))).collect();
    for user in &crowd {
        service.subscribe_user(user, inbox().0);
    }
    let all = || service.subscribers_count() == crowd.len();
    until("the crowd", all).await;
    assert_eq!(bindings(&broker), crowd.len());
    let leaving = Instant::now();
    for user in &crowd {
        service.unsubscribe_user(user);
    }
    // One user returns before that, to bindings that still exist.
    let (handler, mut inbox) = inbox();
    service.subscribe_user(&crowd[7], handler).ready().await;
    let still_there = bindings(&broker);
    // The bindings stay for 10 s, and counting them may take long.
    if leaving.elapsed() < Duration::from_secs(9) {
        assert_eq!(still_there, crowd.len());
    }
    // The counts in between.
    let mut seen = HashSet::new();
    let one_is_left = || {
        let left = bindings(&broker);
        seen.insert(left);
        left == 1
    };
    until_within(Duration::from_secs(60), "only one is left", one_is_left).await;
    assert!(seen.len() > 2, "all at once: {seen:?}");
    publisher.publish("user.usr_7.x", "x").await;
    assert_eq!(next(&mut inbox).await, "x");
    service.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firehose_counts_what_is_for_strangers_and_serves_ids_with_dots() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let metrics = Metrics::new();
    let config = RabbitMqConfig {
        topology: Topology::Firehose,
        ..config(&broker.url())
    };
    let service = RabbitMqService::connect(config, metrics.clone());
    let ((carls, mut carl), (dotted, mut dots)) = (inbox(), inbox());
    service.subscribe_user(&user("carl"), carls).ready().await;
    let with_dots = user("a.b@example.com");
    service.subscribe_user(&with_dots, dotted).ready().await;
    for i in 0..100 {
        publisher
            .publish(&format!("user.usr_{i}.x"), "strange")
            .await;
    }
    publisher.publish("user.carl.x", "carl's").await;
    publisher.publish("user.a.b@example.com.x", "dots").await;
    assert_eq!(next(&mut carl).await, "carl's");
    assert_eq!(next(&mut dots).await, "dots");
    assert_eq!(metrics.updates_unclaimed.get(), 100);
    service.close().await;
}
