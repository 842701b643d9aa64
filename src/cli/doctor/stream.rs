//! Whether `serve` can use the stream of the topology `stream`: what exists under the
//! stream's name, whether RabbitMQ supports streams, and the rights on the stream.
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
    report::Report,
};
use crate::{
    broker::rabbitmq::{ACCESS_REFUSED, LinkError, NOT_FOUND, ServerClose, SideConnection, stream},
    config::{RabbitMqConfig, Topology},
};

const CHECK: &str = "stream";

const NO_STREAMS: &str = "streams need RabbitMQ 3.9 or newer, and, where it was upgraded from an older one, \
     rabbitmqctl enable_feature_flag stream_queue";

/// What there is under the stream's name.
enum Found {
    AsDeclared,
    OtherLimits(ServerClose),
    Missing,
}

/// Examines the stream. An error means that the connection is gone.
pub(super) async fn examine(
    session: &mut SideConnection,
    config: &RabbitMqConfig,
    grant: &str,
    report: &mut Report,
) -> Result<(), LinkError> {
    if config.topology != Topology::Stream {
        return Ok(());
    }
    let name = &config.stream;
    let found = match look(session, config).await? {
        Ok(found) => found,
        Err(close) => {
            refused(&close, config, grant, report);
            return Ok(());
        }
    };
    if let Err(close) = rights(session, config, &found).await? {
        if is_no_stream(&close) {
            refused(&close, config, grant, report);
            return Ok(());
        }
        let finding = format!("may not read {name}, or bind it: {close}");
        report.problem(CHECK, finding, grant);
        return Ok(());
    }
    let markers = stream::markers(config);
    match exchange::look_at(session, &markers, "fanout").await? {
        Exchange::AsExpected | Exchange::Missing => {}
        Exchange::NotPermitted => {
            report.problem(CHECK, format!("may not declare {markers}"), grant);
            return Ok(());
        }
        other => {
            let finding = format!("{markers} is not as serve declares it: {other:?}");
            report.problem(CHECK, finding, format!("rabbitmqctl and the management page cannot change it: delete {markers}, which serve makes anew"));
            return Ok(());
        }
    }
    match found {
        Found::AsDeclared => report.ok(CHECK, format!("{name} exists as serve declares it")),
        Found::Missing => report.ok(
            CHECK,
            format!("{name} does not exist yet: serve makes it; RabbitMQ has streams"),
        ),
        Found::OtherLimits(close) => report.warning(
            CHECK,
            format!("{name} exists with other limits, and keeps them: {close}"),
            "RABBITMQ_STREAM_MAX_AGE holds for a new stream only: set a policy (max-age, max-length-bytes) \
             for this one, or delete it while no gateway runs",
        ),
    }
    Ok(())
}

/// Looks at what has the stream's name, or else tries whether there can be a stream.
async fn look(
    session: &mut SideConnection,
    config: &RabbitMqConfig,
) -> Result<Result<Found, ServerClose>, LinkError> {
    let passive = QueueDeclareArguments::new(&config.stream)
        .passive(true)
        .finish();
    match declare(session, passive).await? {
        Ok(()) => {}
        Err(close) if close.code == NOT_FOUND => return try_one(session, config).await,
        Err(close) => return Ok(Err(close)),
    }
    Ok(match declare(session, stream::declaration(config)).await? {
        Ok(()) => Ok(Found::AsDeclared),
        Err(close) if stream::has_other_limits(&close) => Ok(Found::OtherLimits(close)),
        Err(close) => Err(close),
    })
}

/// Makes a stream of the gateway's own kind, and removes it.
async fn try_one(
    session: &mut SideConnection,
    config: &RabbitMqConfig,
) -> Result<Result<Found, ServerClose>, LinkError> {
    let trial = RabbitMqConfig {
        stream: format!("{}.stream", session.prefix),
        ..config.clone()
    };
    if let Err(close) = declare(session, stream::declaration(&trial)).await? {
        return Ok(Err(close));
    }
    let delete = QueueDeleteArguments::new(&trial.stream);
    let deleted =
        session.ask(|channel| async move { channel.queue_delete(delete).await.map(drop) });
    answer(deleted.await).map(|answer| answer.map(|()| Found::Missing))
}

async fn declare(
    session: &mut SideConnection,
    declare: QueueDeclareArguments,
) -> Result<Result<(), ServerClose>, LinkError> {
    let declared =
        session.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) });
    answer(declared.await)
}

/// Tries to bind and to read; RabbitMQ looks at rights before it looks at anything else.
async fn rights(
    session: &mut SideConnection,
    config: &RabbitMqConfig,
    found: &Found,
) -> Result<Result<(), ServerClose>, LinkError> {
    let (name, exchange) = (&config.stream, &config.exchange);
    // A key that nobody publishes with: topic permissions are examined elsewhere.
    let nothing = format!("doctor-{:016x}", rand::random::<u64>());
    match answer(session.bind(name, exchange, &nothing).await)? {
        Ok(()) => {
            let unbind = QueueUnbindArguments::new(name, exchange, &nothing);
            let unbound = session.ask(|channel| async move { channel.queue_unbind(unbind).await });
            let _ = answer(unbound.await)?;
        }
        Err(close) if close.code == ACCESS_REFUSED && !close.text.contains("access to topic") => {
            return Ok(Err(close));
        }
        Err(_) => {}
    }
    if matches!(found, Found::Missing) {
        return Ok(Ok(()));
    }
    // Without a prefetch, RabbitMQ refuses it, once it has looked at the rights.
    let mut consume = BasicConsumeArguments::new(name, "doctor");
    let mut arguments = FieldTable::new();
    let next = FieldValue::S("next".try_into().expect("a short text"));
    arguments.insert("x-stream-offset".try_into().expect("a short name"), next);
    consume.arguments(arguments);
    let nobody = DefaultConsumer::new(true);
    let consumed = session
        .ask(|channel| async move { channel.basic_consume(nobody, consume).await.map(drop) });
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

/// Whether RabbitMQ refused to read a queue like a stream.
fn is_no_stream(close: &ServerClose) -> bool {
    close.text.contains("x-stream-offset")
}

fn refused(close: &ServerClose, config: &RabbitMqConfig, grant: &str, report: &mut Report) {
    let name = &config.stream;
    if close.code == ACCESS_REFUSED {
        report.problem(CHECK, format!("may not declare {name}: {close}"), grant);
    } else if close.text.contains("inequivalent arg") || is_no_stream(close) {
        report.problem(
            CHECK,
            format!("{name} exists and is no stream: {close}"),
            "delete it, or name another in RABBITMQ_STREAM",
        );
    } else {
        report.problem(
            CHECK,
            format!("cannot declare a stream: {close}"),
            NO_STREAMS,
        );
    }
}
