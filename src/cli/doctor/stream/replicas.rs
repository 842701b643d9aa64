//! Which nodes have a replica of a stream: RabbitMQ refuses to read it on a node that has
//! none.
//!
//! AMQP 0-9-1 tells nothing of nodes that are not in `RABBITMQ_URL`.

use amqprs::{
    FieldTable, FieldValue,
    channel::{BasicCancelArguments, BasicConsumeArguments, BasicQosArguments},
    consumer::DefaultConsumer,
};

use super::super::report::Report;
use crate::{
    broker::rabbitmq::{LinkError, ServerClose, SideConnection, instance_id},
    config::{AmqpUrl, RabbitMqConfig},
};

const CHECK: &str = "stream_replica";

/// Tries each of the nodes; returns whether the first has a replica.
pub(super) async fn examine(
    config: &RabbitMqConfig,
    nodes: &[AmqpUrl],
    report: &mut Report,
) -> bool {
    let name = &config.stream;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for node in nodes {
        match has_one(config, node).await {
            Ok(Ok(())) => with.push(node),
            Ok(Err(close)) if close.text.contains("replica") => without.push(node),
            Ok(Err(close)) => {
                let finding = format!("{node}: {name} cannot be read: {close}");
                report.problem(CHECK, finding, "RabbitMQ's own log says more");
            }
            Err(error) => report.unknown(CHECK, format!("{node}: not tried: {error}")),
        }
    }
    let status = format!(
        "rabbitmq-streams stream_status --vhost {} {name}",
        config.url.first().vhost
    );
    for node in &without {
        let finding = format!("{node} has no replica of {name}: no instance can read there");
        let advice = format!(
            "rabbitmq-streams add_replica --vhost {} {name} NODE, with its name of rabbitmqctl cluster_status",
            node.vhost
        );
        match with.is_empty() {
            true => report.problem(CHECK, finding, advice),
            false => report.warning(CHECK, finding, advice),
        }
    }
    if !with.is_empty() {
        let which = match (with.len(), nodes.len()) {
            (_, 1) => "the node has a replica".to_owned(),
            (with, all) => format!("{with} of the {all} nodes have a replica"),
        };
        report.ok(
            CHECK,
            format!("{which}; AMQP does not tell of other nodes, {status} does"),
        );
    }
    with.contains(&config.url.first())
}

/// Begins to read at the node, and leaves.
async fn has_one(
    config: &RabbitMqConfig,
    node: &AmqpUrl,
) -> Result<Result<(), ServerClose>, LinkError> {
    let alone = RabbitMqConfig {
        url: node.clone().into(),
        ..config.clone()
    };
    let mut side = SideConnection::open(&alone, "doctor-replica", &instance_id(config)).await?;
    let mut consume = BasicConsumeArguments::new(&config.stream, "replica");
    let mut arguments = FieldTable::new();
    let next = FieldValue::S("next".try_into().expect("a short text"));
    arguments.insert("x-stream-offset".try_into().expect("a short name"), next);
    consume.arguments(arguments);
    // Cancelled, because RabbitMQ 3.10 counts a reader that just leaves for ever.
    let cancel = BasicCancelArguments::new("replica");
    let consumed = side.ask(|channel| async move {
        channel
            .basic_qos(BasicQosArguments::new(0, 1, false))
            .await?;
        channel
            .basic_consume(DefaultConsumer::new(false), consume)
            .await?;
        channel.basic_cancel(cancel).await.map(drop)
    });
    let consumed = super::answer(consumed.await);
    side.close().await;
    consumed
}
