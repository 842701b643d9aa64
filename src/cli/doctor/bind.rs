//! Checks whether the gateway may bind its queues to Chat3's exchange with the keys of its
//! topology: topic permissions may permit some keys and refuse others.

use clap::ValueEnum;

use super::{grants::topic_permissions, report::Report};
use crate::{
    broker::rabbitmq::{LinkError, NOT_FOUND, SideConnection},
    broker::survey,
    config::{BindingKeys, RabbitMqConfig, Topology},
    user::{TenantId, User, UserId},
};

pub(super) enum Bound {
    /// Binding is permitted with these of the configured templates.
    With(BindingKeys),
    /// There is no exchange to bind to. The rights are sufficient, except perhaps on keys.
    NoExchange,
    Refused,
}

/// Binds `queue` as `serve` would, with each template. An error means that the connection
/// is lost.
pub(super) async fn examine(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    queue: &str,
    grant: &str,
    report: &mut Report,
) -> Result<Bound, LinkError> {
    let exchange = &config.exchange;
    let (mut permitted, mut refused) = (Vec::new(), Vec::new());
    let mut refusal = None;
    for text in config.binding_keys.templates() {
        let template = survey::one(text);
        let close = match side
            .bind_all(queue, &config.exchange, &keys(config, &template))
            .await
        {
            Ok(()) => {
                permitted.push(text);
                continue;
            }
            Err(LinkError::Closed(close)) => close,
            Err(error) => return Err(error),
        };
        if close.code == NOT_FOUND {
            let finding = format!(
                "may write to its queues and read {exchange}; with which keys it may bind, \
                 RabbitMQ tells only once {exchange} exists"
            );
            report.ok("bind", finding);
            return Ok(Bound::NoExchange);
        }
        // RabbitMQ checks in this order, and its text names the resource.
        if !close.text.contains("access to topic") {
            let what = match close.text.contains("access to exchange") {
                true => "no right to read the exchange",
                false => "no right to write to its own queues",
            };
            report.problem("bind", format!("{what}: {close}"), grant);
            return Ok(Bound::Refused);
        }
        refused.push(text);
        refusal.get_or_insert(close);
    }
    let how = |templates: &[&str]| {
        let keys = match config.topology {
            Topology::PerUser | Topology::Shared => templates.join(","),
            Topology::Stream => "#".to_owned(),
            Topology::Firehose => {
                let keys = templates.iter().flat_map(|text| {
                    let keys: Vec<_> = survey::one(text).render_for_all().collect();
                    keys
                });
                keys.collect::<Vec<_>>().join(",")
            }
        };
        format!("with {keys}, as in the topology {}", name(config.topology))
    };
    let with = match (permitted.is_empty(), refusal) {
        (true, refusal) => {
            let refusal = refusal.map_or_else(String::new, |close| format!(": {close}"));
            let finding = format!(
                "the topic permissions do not allow to bind {}{refusal}",
                how(&refused)
            );
            report.problem("bind", finding, topic_permissions(config));
            return Ok(Bound::Refused);
        }
        (false, Some(close)) => {
            let finding = format!(
                "may bind its queues to {exchange} {}, but not with {}: {close}",
                how(&permitted),
                refused.join(",")
            );
            let advice = format!(
                "name in RABBITMQ_BINDING_KEYS only what your Chat3 needs, or permit all: {}",
                topic_permissions(config)
            );
            report.warning("bind", finding, advice);
            permitted.join(",").parse()
        }
        (false, None) => {
            dots(side, config, queue, &how(&permitted), report).await?;
            Ok(config.binding_keys.clone())
        }
    };
    Ok(Bound::With(
        with.expect("some of a list's templates are a list"),
    ))
}

/// The keys of a firehose miss users whose ids have several words; `serve` binds each of
/// those users. Checks that this is permitted, too.
async fn dots(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    queue: &str,
    how: &str,
    report: &mut Report,
) -> Result<(), LinkError> {
    let finding = format!("may bind its queues to {} {how}", config.exchange);
    let dotted = match config.topology {
        Topology::PerUser | Topology::Shared | Topology::Stream => Ok(()),
        Topology::Firehose => {
            let keys: Vec<_> = config.binding_keys.render(&nobody(".x")).collect();
            side.bind_all(queue, &config.exchange, &keys).await
        }
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
    Ok(())
}

/// Binds `queue` for a user who does not exist.
pub(super) async fn to_nobody(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    permitted: &BindingKeys,
    queue: &str,
) -> Result<(), LinkError> {
    let keys: Vec<_> = permitted.render(&nobody("")).collect();
    side.bind_all(queue, &config.exchange, &keys).await
}

/// The keys that the topology binds for a template.
fn keys(config: &RabbitMqConfig, template: &BindingKeys) -> Vec<String> {
    match config.topology {
        Topology::PerUser | Topology::Shared => template.render(&nobody("")).collect(),
        Topology::Firehose => template.render_for_all().collect(),
        Topology::Stream => vec!["#".to_owned()],
    }
}

/// A user who does not exist; `ending` is the end of the id.
fn nobody(ending: &str) -> User {
    let id = format!("doctor-{:016x}{ending}", rand::random::<u64>());
    User {
        id: UserId::parse(&id).expect("hexadecimal digits are an id"),
        tenant: TenantId::parse("doctor").ok(),
    }
}

/// The value of `RABBITMQ_TOPOLOGY`.
fn name(topology: Topology) -> String {
    let value = topology.to_possible_value().expect("none is hidden");
    value.get_name().to_owned()
}
