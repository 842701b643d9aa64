//! Queues of several users.

use super::*;

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
