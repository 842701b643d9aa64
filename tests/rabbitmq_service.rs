//! `RabbitMqService` as a Rust backend would embed it, against a real RabbitMQ.

mod common;

use std::{sync::Arc, time::Duration};

use chat3_gateway::{
    RabbitMqService,
    broker::{Delivery, Handler},
    config::RabbitMqConfig,
    metrics::Metrics,
    user::{User, UserId},
};
use common::{Broker, DEADLINE, Publisher, until, until_within};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

fn user(id: &str) -> User {
    User {
        id: UserId::parse(id).unwrap(),
        tenant: None,
    }
}

fn connect(broker: &Broker) -> RabbitMqService {
    let config = RabbitMqConfig {
        url: broker.url().parse().unwrap(),
        reconnect_delay: Duration::from_millis(100),
        ..RabbitMqConfig::default()
    };
    RabbitMqService::connect(config, Metrics::new())
}

/// A handler that passes on bodies, and where they arrive.
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

#[tokio::test]
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
    assert_eq!(broker.queues().len(), 1);

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
    until("the queue is gone", || broker.queues().is_empty()).await;
    // The handler went with the subscription, and with it the inbox's sender.
    let end = timeout(DEADLINE, inbox.recv()).await.unwrap();
    assert_eq!(end, None);

    service.close().await;
    assert!(!service.is_connected());
}

#[tokio::test]
async fn a_second_subscription_of_a_user_replaces_the_first() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
    let (first, mut old_inbox) = inbox();
    let (second, mut inbox) = inbox();
    let carl = user("carl");
    service.subscribe_user(&carl, first).ready().await;
    service.subscribe_user(&carl, second).ready().await;
    assert_eq!(broker.queues().len(), 1);
    publisher.publish("user.carl.messageupdate", "x").await;
    assert_eq!(next(&mut inbox).await, "x");
    assert_eq!(timeout(DEADLINE, old_inbox.recv()).await.unwrap(), None);
    service.close().await;
}

#[tokio::test]
async fn whatever_happens_meanwhile_exactly_the_wished_users_end_up_subscribed() {
    let mut broker = Broker::start().await;
    drop(Publisher::connect(&broker).await);
    let service = Arc::new(connect(&broker));
    let users: Vec<User> = (0..200).map(|i| user(&format!("usr_{i}"))).collect();
    for _ in 0..3 {
        let churn = {
            let (service, users) = (service.clone(), users.clone());
            tokio::spawn(async move {
                for _ in 0..3000 {
                    let user = &users[rand::random_range(0..users.len())];
                    if rand::random() {
                        service.subscribe_user(user, inbox().0);
                    } else {
                        service.unsubscribe_user(user);
                    }
                    tokio::time::sleep(Duration::from_micros(300)).await;
                }
            })
        };
        broker.restart().await;
        churn.await.unwrap();
    }
    for (i, user) in users.iter().enumerate() {
        match i % 2 {
            0 => drop(service.subscribe_user(user, inbox().0)),
            _ => service.unsubscribe_user(user),
        }
    }
    // The reconnect delay has grown with each restart, to 30 s at most.
    let all = || service.subscribers_count() == 100;
    until_within(Duration::from_secs(60), "100 subscriptions", all).await;
    until("100 queues", || broker.queues().len() == 100).await;
    for (i, user) in users.iter().enumerate() {
        assert_eq!(service.is_user_subscribed(user), i % 2 == 0, "{user:?}");
    }
    service.close().await;
    until("no queues", || broker.queues().is_empty()).await;
}

#[tokio::test]
async fn closing_hands_off_what_was_received() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
    let (handler, mut inbox) = inbox();
    service.subscribe_user(&user("carl"), handler).ready().await;
    for i in 0..500 {
        publisher
            .publish("user.carl.messageupdate", &i.to_string())
            .await;
    }
    assert_eq!(next(&mut inbox).await, "0");
    service.close().await;
    let mut expected = 1;
    while let Ok(body) = inbox.try_recv() {
        assert_eq!(body, expected.to_string());
        expected += 1;
    }
    until("no queues", || broker.queues().is_empty()).await;
}

#[tokio::test]
async fn closing_without_a_broker_returns() {
    let broker = Broker::start().await;
    let service = connect(&broker);
    service.subscribe_user(&user("carl"), inbox().0);
    drop(broker);
    timeout(DEADLINE, service.close()).await.unwrap();
}

#[tokio::test]
async fn ten_thousand_users_are_resubscribed_after_a_broker_restart() {
    let mut broker = Broker::start().await;
    drop(Publisher::connect(&broker).await);
    let service = connect(&broker);
    let handler = inbox().0;
    for i in 0..10_000 {
        service.subscribe_user(&user(&format!("usr_{i}")), handler.clone());
    }
    let deadline = Duration::from_secs(120);
    let all = || service.subscribers_count() == 10_000;
    until_within(deadline, "10,000 subscriptions", all).await;
    broker.restart().await;
    let publisher = Publisher::connect(&broker).await;
    until_within(deadline, "10,000 subscriptions again", all).await;
    assert_eq!(broker.queues().len(), 10_000);

    let (handler, mut inbox) = inbox();
    let last = user("usr_9999");
    service.subscribe_user(&last, handler).ready().await;
    publisher.publish("user.usr_9999.messageupdate", "x").await;
    assert_eq!(next(&mut inbox).await, "x");
    // The broker takes its time to remove as many queues: the connection's end does it.
    service.close().await;
}

#[tokio::test]
async fn a_hundred_refusals_and_deletions_leave_no_queue_and_no_channel_behind() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
    for round in 0..100 {
        let carl = user(&format!("usr_{round}"));
        let subscribed = service.subscribe_user(&carl, inbox().0);
        if round % 10 == 0 {
            // Without its exchange a bind is refused, and the server closes the channel.
            publisher.delete_exchange().await;
            service.subscribe_user(&user("usr_refused"), inbox().0);
            until("the loss", || !service.is_user_subscribed(&carl)).await;
            publisher.declare_exchange().await;
        }
        let mut subscribed = subscribed;
        timeout(DEADLINE, subscribed.ready()).await.unwrap();
        service.unsubscribe_user(&carl);
    }
    service.unsubscribe_user(&user("usr_refused"));
    until("no queues", || broker.queues().is_empty()).await;
    // Two of the service, one of the publisher.
    until("three channels", || broker.channels() == 3).await;
    service.close().await;
}

#[tokio::test]
async fn newcomers_do_not_wait_for_a_crowd_that_leaves() {
    let broker = Broker::start().await;
    let publisher = Publisher::connect(&broker).await;
    let service = connect(&broker);
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
    // As long as a socket's CONNECT waits at most.
    let mut subscribed = service.subscribe_user(&user("newcomer"), handler);
    timeout(Duration::from_secs(2), subscribed.ready())
        .await
        .unwrap();
    publisher.publish("user.newcomer.messageupdate", "x").await;
    assert_eq!(next(&mut inbox).await, "x");
    until_within(deadline, "one queue", || broker.queues().len() == 1).await;
    service.close().await;
}
