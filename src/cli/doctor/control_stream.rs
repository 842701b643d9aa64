//! Whether `serve` can have the stream in which RabbitMQ keeps orders: what exists under its
//! name, whether RabbitMQ has streams, and the rights on it. Without it, orders still reach the
//! instances that are there: every finding is a warning.
//!
//! A stream that exists is not changed, and one that does not is not made.

use amqprs::{
    FieldTable, FieldValue,
    channel::{
        BasicConsumeArguments, QueueDeclareArguments, QueueDeleteArguments, QueueUnbindArguments,
    },
    consumer::DefaultConsumer,
};

use super::{
    exchange::{self, Exchange},
    grants::permissions,
    report::Report,
};
use crate::{
    broker::rabbitmq::{
        ACCESS_REFUSED, LinkError, NOT_FOUND, ServerClose, SideConnection, control, stream,
    },
    config::RabbitMqConfig,
};

const CHECK: &str = "control_stream";

const WITHOUT: &str =
    "Without the stream, orders reach only the instances that are connected when they are given";

/// Examines the stream. An error means that the connection is gone.
pub(super) async fn examine(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    report: &mut Report,
) -> Result<(), LinkError> {
    if !config.keeps_orders() {
        return Ok(());
    }
    let name = &config.control_stream;
    if config.shares_a_stream() {
        let finding = format!("{name} is the stream of the updates");
        report.problem(CHECK, finding, "name another in RABBITMQ_CONTROL_STREAM");
        return Ok(());
    }
    let passive = QueueDeclareArguments::new(name).passive(true).finish();
    let found = match declare(side, passive).await? {
        Ok(()) => declare(side, control::declaration(config))
            .await?
            .map(|()| true),
        Err(close) if close.code == NOT_FOUND => try_one(side, config).await?.map(|()| false),
        Err(close) => Err(close),
    };
    let (exists, limits) = match found {
        Ok(exists) => (exists, None),
        Err(close) if stream::has_other_limits(&close) => (true, Some(close)),
        Err(close) => {
            let finding = format!("{name} cannot be used: {close}");
            report.warning(CHECK, finding, advice(&close, config));
            return Ok(());
        }
    };
    if exists && let Err(close) = read(side, name).await? {
        let finding = format!("{name} cannot be used: {close}");
        report.warning(CHECK, finding, advice(&close, config));
        return Ok(());
    }
    let markers = control::markers(config);
    match exchange::look_at(side, &markers, "fanout").await? {
        Exchange::AsExpected | Exchange::Missing => {}
        Exchange::NotPermitted => {
            let finding = format!("may not declare {markers}");
            report.warning(CHECK, finding, permissions(config));
            return Ok(());
        }
        other => {
            let finding = format!("{markers} is not as serve declares it: {other:?}");
            report.warning(CHECK, finding, format!("delete {markers}. {WITHOUT}"));
            return Ok(());
        }
    }
    match (exists, limits) {
        (_, Some(close)) => report.warning(
            CHECK,
            format!("{name} exists with other limits, and keeps them: {close}"),
            "REVOCATIONS_KEPT holds for a new stream only: set a policy (max-age) for this one, or \
             delete it while no gateway runs",
        ),
        (true, None) => report.ok(CHECK, format!("{name} exists and can be read")),
        (false, None) => report.ok(
            CHECK,
            format!("{name} does not exist yet: serve makes it; RabbitMQ has streams"),
        ),
    }
    Ok(())
}

fn advice(close: &ServerClose, config: &RabbitMqConfig) -> String {
    let what = if close.code == ACCESS_REFUSED {
        permissions(config)
    } else if close.text.contains("inequivalent arg") || is_no_stream(close) {
        "delete what has the name, or name another in RABBITMQ_CONTROL_STREAM.".to_owned()
    } else {
        "streams need RabbitMQ 3.9 or newer, and, where it was upgraded from an older one, \
         rabbitmqctl enable_feature_flag stream_queue; or set RABBITMQ_CONTROL_STREAM to nothing."
            .to_owned()
    };
    format!("{what} {WITHOUT}")
}

/// Whether RabbitMQ refused to read a queue like a stream.
fn is_no_stream(close: &ServerClose) -> bool {
    close.text.contains("x-stream-offset")
}

/// Makes a stream of the gateway's own kind, and removes it.
async fn try_one(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
) -> Result<Result<(), ServerClose>, LinkError> {
    let trial = RabbitMqConfig {
        control_stream: format!("{}.orders", side.prefix),
        ..config.clone()
    };
    if let Err(close) = declare(side, control::declaration(&trial)).await? {
        return Ok(Err(close));
    }
    let delete = QueueDeleteArguments::new(&trial.control_stream);
    let deleted = side.ask(|channel| async move { channel.queue_delete(delete).await.map(drop) });
    if let Err(close) = answer(deleted.await)? {
        return Ok(Err(close));
    }
    // Removing a binding that does not exist needs the right to write, and does nothing.
    let (name, exchange) = (&config.control_stream, &config.control_exchange);
    let nothing = format!("doctor-{:016x}", rand::random::<u64>());
    let unbind = QueueUnbindArguments::new(name, exchange, &nothing);
    let unbound = side.ask(|channel| async move { channel.queue_unbind(unbind).await });
    Ok(match answer(unbound.await)? {
        Err(close) if close.code == ACCESS_REFUSED => Err(close),
        _ => Ok(()),
    })
}

async fn declare(
    side: &mut SideConnection,
    declare: QueueDeclareArguments,
) -> Result<Result<(), ServerClose>, LinkError> {
    let declared =
        side.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) });
    answer(declared.await)
}

/// Tries to read. Without a prefetch, RabbitMQ refuses it, once it has looked at the rights.
async fn read(side: &mut SideConnection, name: &str) -> Result<Result<(), ServerClose>, LinkError> {
    let mut consume = BasicConsumeArguments::new(name, "doctor");
    let mut arguments = FieldTable::new();
    let next = FieldValue::S("next".try_into().expect("a short text"));
    arguments.insert("x-stream-offset".try_into().expect("a short name"), next);
    consume.arguments(arguments);
    let nobody = DefaultConsumer::new(true);
    let consumed =
        side.ask(|channel| async move { channel.basic_consume(nobody, consume).await.map(drop) });
    Ok(match answer(consumed.await)? {
        Err(close) if close.code == ACCESS_REFUSED || is_no_stream(&close) => Err(close),
        _ => Ok(()),
    })
}

/// A refusal is an answer, too.
fn answer(asked: Result<(), LinkError>) -> Result<Result<(), ServerClose>, LinkError> {
    match asked {
        Ok(()) => Ok(Ok(())),
        Err(LinkError::Closed(close)) => Ok(Err(close)),
        Err(error) => Err(error),
    }
}
