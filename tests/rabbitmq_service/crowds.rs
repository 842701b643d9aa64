//! Many users at once.

use super::*;

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
