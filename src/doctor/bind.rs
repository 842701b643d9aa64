//! Whether the gateway may bind its queues to Chat3's exchange, with the keys that its
//! topology takes: topic permissions may allow some and not others.

use clap::ValueEnum;

use super::{Report, session::Session};
use crate::{
    config::{RabbitMqConfig, Topology},
    rabbitmq::{LinkError, NOT_FOUND},
    user::{TenantId, User, UserId},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    Yes,
    /// There is no exchange to bind to; the rights are there, but for those on keys.
    NoExchange,
    Refused,
}

/// Binds `queue` as `serve` would. An error means that the connection is gone.
pub(super) async fn examine(
    session: &mut Session,
    config: &RabbitMqConfig,
    queue: &str,
    grant: &str,
    report: &mut Report,
) -> Result<Bound, LinkError> {
    let exchange = &config.exchange;
    let keys = match config.topology {
        Topology::PerUser | Topology::Shared => users_keys(config, ""),
        Topology::Firehose => config.binding_keys.render_for_all().collect(),
    };
    let how = match config.topology {
        Topology::PerUser | Topology::Shared => config.binding_keys.to_string(),
        Topology::Firehose => keys.join(","),
    };
    let how = format!("with {how}, as in the topology {}", name(config.topology));
    match bind(session, config, queue, &keys).await {
        Ok(()) => {}
        Err(LinkError::Closed(close)) if close.code == NOT_FOUND => {
            let finding = format!(
                "may write to its queues and read {exchange}; with which keys it may bind, \
                 RabbitMQ tells only once {exchange} exists"
            );
            report.ok("bind", finding);
            return Ok(Bound::NoExchange);
        }
        Err(LinkError::Closed(close)) => {
            // RabbitMQ asks in this order, and names what it is about.
            let (what, advice) = if close.text.contains("access to topic") {
                let what = format!("the topic permissions do not allow to bind {how}");
                (what, topic_permissions(config))
            } else if close.text.contains("access to exchange") {
                ("no right to read the exchange".to_owned(), grant.to_owned())
            } else {
                let what = "no right to write to its own queues";
                (what.to_owned(), grant.to_owned())
            };
            report.problem("bind", format!("{what}: {close}"), advice);
            return Ok(Bound::Refused);
        }
        Err(error) => return Err(error),
    }
    let finding = format!("may bind its queues to {exchange} {how}");
    // Whose ids are several words, a firehose's keys miss: they are bound one by one.
    let dotted = match config.topology {
        Topology::PerUser | Topology::Shared => Ok(()),
        Topology::Firehose => bind(session, config, queue, &users_keys(config, ".x")).await,
    };
    match dotted {
        Ok(()) => report.ok("bind", finding),
        Err(LinkError::Closed(close)) => report.warning(
            "bind",
            format!("{finding}, but not for users with dots in their ids: {close}"),
            topic_permissions(config),
        ),
        Err(error) => return Err(error),
    }
    Ok(Bound::Yes)
}

/// Binds `queue` for a user whose updates nobody publishes.
pub(super) async fn to_nobody(
    session: &mut Session,
    config: &RabbitMqConfig,
    queue: &str,
) -> Result<(), LinkError> {
    bind(session, config, queue, &users_keys(config, "")).await
}

async fn bind(
    session: &mut Session,
    config: &RabbitMqConfig,
    queue: &str,
    keys: &[String],
) -> Result<(), LinkError> {
    for key in keys {
        session.bind(queue, &config.exchange, key).await?;
    }
    Ok(())
}

/// The keys of a user whom nobody knows; `ending` ends the id.
fn users_keys(config: &RabbitMqConfig, ending: &str) -> Vec<String> {
    let id = format!("doctor-{:016x}{ending}", rand::random::<u64>());
    let nobody = User {
        id: UserId::parse(&id).expect("hexadecimal digits are an id"),
        tenant: TenantId::parse("doctor").ok(),
    };
    config.binding_keys.render(&nobody).collect()
}

fn topic_permissions(config: &RabbitMqConfig) -> String {
    format!(
        "rabbitmqctl set_topic_permissions as in docs/SECURITY.md, with the pattern for {} and the topology {}",
        config.binding_keys,
        name(config.topology)
    )
}

/// As `RABBITMQ_TOPOLOGY` says it.
fn name(topology: Topology) -> String {
    let value = topology.to_possible_value().expect("none is hidden");
    value.get_name().to_owned()
}
