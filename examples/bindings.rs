//! Measures how long subscribing users takes, by the number of their bindings: at first,
//! and after a restart of the broker. Starts a private RabbitMQ.
//!
//! ```sh
//! cargo run --release --example bindings -- 5000
//! ```

#[allow(dead_code)] // A harness of the tests, of which this example uses a part.
#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chat3_gateway::{
    Metrics, RabbitMqService,
    broker::Delivery,
    config::{BindingKeys, RabbitMqConfig, Topology},
    user::{TenantId, User, UserId},
};
use common::{Broker, Publisher, until_within};

const DEADLINE: Duration = Duration::from_secs(600);

fn main() -> anyhow::Result<()> {
    let users = std::env::args().nth(1).map_or(Ok(5_000), |n| n.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(users))
}

async fn measure(users: usize) -> anyhow::Result<()> {
    let one: BindingKeys = "update.*.{tenantId}.*.{userId}.*".parse()?;
    println!("{users} users       bindings    subscribed  after a restart");
    for topology in [Topology::PerUser, Topology::Shared] {
        for keys in [one.clone(), BindingKeys::default()] {
            let count = keys.templates().len();
            let (first, again) = subscribe(users, topology, keys).await?;
            println!("{topology:<16?} {count:>8} {first:>12.1?} {again:>16.1?}");
        }
    }
    Ok(())
}

/// Time until all users are subscribed, and time until they are subscribed again once the
/// gateway is connected to the restarted broker.
async fn subscribe(
    users: usize,
    topology: Topology,
    binding_keys: BindingKeys,
) -> anyhow::Result<(Duration, Duration)> {
    let mut broker = Broker::start().await;
    drop(Publisher::connect(&broker).await);
    let config = RabbitMqConfig {
        url: broker.url().parse()?,
        topology,
        binding_keys,
        reconnect_delay: Duration::from_millis(100),
        ..RabbitMqConfig::default()
    };
    let service = RabbitMqService::connect(config, Metrics::new());
    until_within(DEADLINE, "a connection", || service.is_connected()).await;
    let start = Instant::now();
    for i in 0..users {
        let user = User {
            id: UserId::parse(&format!("usr_{i}"))?,
            tenant: Some(TenantId::parse("tnt_default")?),
        };
        drop(service.subscribe_user(&user, Arc::new(|_: &Delivery<'_>| {})));
    }
    let all = || service.subscribers_count() == users;
    until_within(DEADLINE, "all subscriptions", all).await;
    let first = start.elapsed();
    broker.restart().await;
    until_within(DEADLINE, "a connection again", || service.is_connected()).await;
    let start = Instant::now();
    until_within(DEADLINE, "all subscriptions again", all).await;
    let again = start.elapsed();
    service.close().await;
    Ok((first, again))
}
