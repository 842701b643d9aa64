//! Whether `serve` can tell who is online: the exchange for the events, the kind of queues that
//! the instances share, and the rights.
//!
//! What exists is not changed, and nothing is left behind.

use amqprs::{
    FieldTable,
    channel::{ExchangeUnbindArguments, QueueDeclareArguments, QueueDeleteArguments},
};

use super::{
    exchange::{self, Exchange},
    grants::permissions,
    report::Report,
};
use crate::{
    broker::rabbitmq::{
        ACCESS_REFUSED, LinkError, NOT_FOUND, ServerClose, SideConnection,
        presence::{Names, declaration},
    },
    config::RabbitMqConfig,
};

const CHECK: &str = "presence";

/// Examines what presence needs. An error means that the connection is gone.
pub(super) async fn examine(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    report: &mut Report,
) -> Result<(), LinkError> {
    if !config.tells_presence() {
        return Ok(());
    }
    let name = config.presence_exchange.as_str();
    if [&config.exchange, &config.control_exchange].contains(&&config.presence_exchange) {
        let finding = format!("{name} is the exchange of the updates or of the orders");
        report.problem(CHECK, finding, "name another in PRESENCE_EXCHANGE");
        return Ok(());
    }
    match exchange::look_at(side, name, "topic").await? {
        Exchange::AsExpected | Exchange::Missing => {}
        Exchange::NotPermitted => {
            let finding = format!("no right to declare {name} (configure)");
            report.problem(CHECK, finding, permissions(config));
            return Ok(());
        }
        other => {
            let finding = format!("{name} is not as serve declares it: {other:?}");
            let advice = "delete it, or name another in PRESENCE_EXCHANGE";
            report.problem(CHECK, finding, advice);
            return Ok(());
        }
    }
    let names = Names::new(config);
    // Removing a binding that does not exist needs the right to write, and does nothing. RabbitMQ
    // checks rights before existence: a refusal is 403, a missing exchange 404.
    let nothing = format!("doctor-{:016x}", rand::random::<u64>());
    let unbind = ExchangeUnbindArguments::new(name, &names.fleet, &nothing);
    let unbound = side.ask(|channel| async move { channel.exchange_unbind(unbind).await });
    if let Err(close) = answer(unbound.await)?
        && close.code == ACCESS_REFUSED
    {
        let finding = format!("no right to write to {name}");
        report.problem(CHECK, finding, permissions(config));
        return Ok(());
    }
    for (queue, arguments) in names.queues() {
        let passive = QueueDeclareArguments::new(queue).passive(true).finish();
        let looked = match declare(side, passive).await? {
            Ok(()) => declare(side, declaration(queue, arguments)).await?,
            Err(close) if close.code == NOT_FOUND && !close.is_of_a_queue_that_is_down() => {
                try_one(side, arguments).await?
            }
            Err(close) => Err(close),
        };
        if let Err(close) = looked {
            report.problem(
                CHECK,
                format!("a queue cannot be used: {close}"),
                "the queues of presence are quorum queues, which need RabbitMQ 3.8 or newer; one that exists with \
                 other arguments must be deleted while no gateway runs",
            );
            return Ok(());
        }
    }
    report.ok(
        CHECK,
        format!("{name} can be published to, and RabbitMQ has the queues that instances share"),
    );
    Ok(())
}

/// Declares a queue of this kind, and deletes it.
async fn try_one(
    side: &mut SideConnection,
    arguments: FieldTable,
) -> Result<Result<(), ServerClose>, LinkError> {
    let name = format!("{}.quorum", side.prefix);
    let delete = QueueDeleteArguments::new(&name);
    if let Err(close) = declare(side, declaration(&name, arguments)).await? {
        return Ok(Err(close));
    }
    let deleted = side.ask(|channel| async move { channel.queue_delete(delete).await.map(drop) });
    answer(deleted.await)
}

async fn declare(
    side: &mut SideConnection,
    declare: QueueDeclareArguments,
) -> Result<Result<(), ServerClose>, LinkError> {
    let declared =
        side.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) });
    answer(declared.await)
}

/// A refusal is an answer, too.
fn answer(asked: Result<(), LinkError>) -> Result<Result<(), ServerClose>, LinkError> {
    match asked {
        Ok(()) => Ok(Ok(())),
        Err(LinkError::Closed(close)) => Ok(Err(close)),
        Err(error) => Err(error),
    }
}
