//! `RabbitMqService` as a Rust backend would embed it, against a real RabbitMQ.

#[path = "../common/mod.rs"]
mod common;
mod crowds;
mod faults;
mod shared_queues;

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
