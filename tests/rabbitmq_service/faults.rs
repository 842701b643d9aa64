//! What is lost or refused while users come and go, and what is there again afterwards.

use super::*;

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
