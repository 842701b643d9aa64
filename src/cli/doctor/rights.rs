//! Checks what RabbitMQ permits the gateway to do: its rights on its queues, on Chat3's
//! exchange and on the control exchange.
//!
//! Rights are tried on an exclusive queue like the gateway's, which is deleted afterwards.

use amqprs::{
    channel::{BasicConsumeArguments, ExchangeUnbindArguments},
    consumer::DefaultConsumer,
};

use super::{
    bind::{self, Bound},
    control_stream,
    exchange::{self, Exchange},
    grants::permissions,
    presence,
    report::Report,
};
use crate::{
    broker::rabbitmq::{ACCESS_REFUSED, LinkError, SideConnection},
    config::{BindingKeys, RabbitMqConfig},
};

/// Examines the rights. Returns the connection and what was found out, if updates can be
/// listened to, or why they cannot.
pub(super) async fn examine(
    mut side: SideConnection,
    config: &RabbitMqConfig,
    report: &mut Report,
) -> Result<(SideConnection, Rights), &'static str> {
    match rights(&mut side, config, report).await {
        Ok(rights) if rights.may_consume => Ok((side, rights)),
        Ok(_) => {
            side.close().await;
            Err("no queue of its own can be read")
        }
        Err(error) => {
            report.problem("connection", lost(&error), "RabbitMQ's own log says more");
            Err("the connection broke")
        }
    }
}

/// Reports that the rights were not tried.
pub(super) fn skip(config: &RabbitMqConfig, why: &str, report: &mut Report) {
    report.unknown("rights", format!("not tried: {why}"));
    report.unknown("exchange", format!("not tried: {why}"));
    if !config.control_exchange.is_empty() {
        report.unknown("control_exchange", format!("not tried: {why}"));
    }
}

/// What is known of the rights and the exchange before listening.
pub(super) struct Rights {
    /// The queue that is bound for a user who does not exist, if there is one.
    pub(super) probe: Option<String>,
    pub(super) exchange: Exchange,
    /// The configured binding keys that are permitted, as far as is known.
    pub(super) permitted: BindingKeys,
    may_consume: bool,
}

/// Tries the gateway's rights one by one. An error means that the connection is lost.
async fn rights(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    report: &mut Report,
) -> Result<Rights, LinkError> {
    let queue = format!("{}.probe", side.prefix);
    let grant = permissions(config);
    let mut rights = Rights {
        probe: None,
        exchange: Exchange::Unclear(String::new()),
        permitted: config.binding_keys.clone(),
        may_consume: false,
    };
    match side.declare(&queue, 10).await {
        Ok(()) => report.ok("configure", "may declare its queues, chat3-gateway.*"),
        Err(LinkError::Closed(close)) if close.code == ACCESS_REFUSED => {
            report.problem(
                "configure",
                format!("may not declare its queues: {close}"),
                grant,
            );
            for check in ["bind", "consume", "exchange"] {
                report.unknown(check, "not tried: there is no queue to try it with");
            }
            control(side, config, None, report).await?;
            return Ok(rights);
        }
        Err(LinkError::Closed(close)) => {
            let advice = "RabbitMQ's own log says what it does not support or allow";
            report.problem(
                "configure",
                format!("cannot declare its queues: {close}"),
                advice,
            );
            for check in ["bind", "consume", "exchange"] {
                report.unknown(check, "not tried: there is no queue to try it with");
            }
            return Ok(rights);
        }
        Err(error) => return Err(error),
    }
    let bound = bind::examine(side, config, &queue, &grant, report).await?;
    let consume = BasicConsumeArguments::new(&queue, &queue)
        .auto_ack(true)
        .finish();
    let consumer = DefaultConsumer::new(true);
    let consuming =
        side.ask(|channel| async move { channel.basic_consume(consumer, consume).await });
    match consuming.await {
        Ok(_) => {
            rights.may_consume = true;
            report.ok("consume", "may read its queues");
        }
        Err(LinkError::Closed(close)) => {
            report.problem(
                "consume",
                format!("may not read its queues: {close}"),
                grant.clone(),
            );
        }
        Err(error) => return Err(error),
    }
    rights.exchange = updates_exchange(side, config, &bound, report).await?;
    control(side, config, Some(&queue), report).await?;
    control_stream::examine(side, config, report).await?;
    presence::examine(side, config, report).await?;
    // Its consumer was only a try; a new queue listens later.
    match side.delete(&queue).await {
        Ok(()) | Err(LinkError::Closed(_)) => {}
        Err(error) => return Err(error),
    }
    if let Bound::With(permitted) = bound {
        let queue = format!("{}.nobody", side.prefix);
        let declared = side.declare(&queue, 10).await;
        if declared.is_ok()
            && bind::to_nobody(side, config, &permitted, &queue)
                .await
                .is_ok()
        {
            rights.probe = Some(queue);
        }
        rights.permitted = permitted;
    }
    Ok(rights)
}

async fn updates_exchange(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    bound: &Bound,
    report: &mut Report,
) -> Result<Exchange, LinkError> {
    let name = &config.exchange;
    let missing =
        |report: &mut Report| {
            report.problem(
            "exchange",
            format!("{name} does not exist in vhost {}", config.url.first().vhost),
            "start Chat3's Update Worker against this broker and vhost, which makes it; or check \
             RABBITMQ_UPDATES_EXCHANGE (rabbitmqctl list_exchanges name type)",
        );
        };
    if matches!(bound, Bound::NoExchange) {
        missing(report);
        return Ok(Exchange::Missing);
    }
    let found = exchange::look_at(side, name, "topic").await?;
    match &found {
        Exchange::AsExpected => report.ok("exchange", format!("{name} is a durable topic exchange")),
        Exchange::Missing => missing(report),
        Exchange::OtherType(kind) => report.problem(
            "exchange",
            format!("{name} is a {kind} exchange, not topic: users get other users' updates, or none (the gateway drops foreign ones)"),
            "is RABBITMQ_UPDATES_EXCHANGE the right one? If so, delete it while Chat3 is stopped; Chat3 makes it anew, as topic",
        ),
        Exchange::Otherwise(what) => report.warning(
            "exchange",
            format!("{name} is a topic exchange, but {what}"),
            "Chat3 declares it durable and plain: somebody else made it, and Chat3 may fail to start",
        ),
        // Published updates may show the type: see `updates`.
        Exchange::NotPermitted if matches!(bound, Bound::With(_)) => {}
        Exchange::NotPermitted => report.unknown("exchange", "not told to a user without rights on it"),
        Exchange::Unclear(why) => report.unclear(
            "exchange",
            format!("{name}: its type cannot be told: {why}"),
            "rabbitmqctl list_exchanges name type must say topic",
        ),
    }
    Ok(found)
}

/// Tries the rights on the control exchange, without sending other instances a message.
async fn control(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    queue: Option<&str>,
    report: &mut Report,
) -> Result<(), LinkError> {
    let name = config.control_exchange.as_str();
    if name.is_empty() {
        return Ok(());
    }
    if name == config.exchange {
        report.problem(
            "control_exchange",
            format!("{name} is Chat3's exchange for updates"),
            "name another in RABBITMQ_CONTROL_EXCHANGE",
        );
        return Ok(());
    }
    let found = exchange::look_at(side, name, "fanout").await?;
    let advice = format!(
        "{} Without it, orders to send users away reach one instance only",
        permissions(config)
    );
    let state = match found {
        Exchange::AsExpected => "exists, as fanout",
        Exchange::Missing => "does not exist yet: serve makes it",
        Exchange::NotPermitted => {
            report.problem(
                "control_exchange",
                format!("no right to declare {name} (configure)"),
                advice,
            );
            return Ok(());
        }
        Exchange::OtherType(kind) => {
            let finding = format!("{name} is a {kind} exchange, not fanout");
            report.problem(
                "control_exchange",
                finding,
                "delete it, or name another in RABBITMQ_CONTROL_EXCHANGE",
            );
            return Ok(());
        }
        Exchange::Otherwise(why) | Exchange::Unclear(why) => {
            let finding = format!("{name} is not as serve declares it: {why}");
            report.problem(
                "control_exchange",
                finding,
                "delete it, or name another in RABBITMQ_CONTROL_EXCHANGE",
            );
            return Ok(());
        }
    };
    // RabbitMQ checks rights before existence: a refusal is 403, a missing exchange 404.
    let is_refused = |answer: &Result<(), LinkError>| matches!(answer, Err(LinkError::Closed(close)) if close.code == ACCESS_REFUSED);
    let nothing = format!("doctor-{:016x}", rand::random::<u64>());
    if let Some(queue) = queue {
        let bound = side.bind(queue, name, &nothing).await;
        if is_refused(&bound) {
            report.problem(
                "control_exchange",
                format!("no right to read {name}"),
                advice,
            );
            return Ok(());
        }
    }
    // Removing a binding that does not exist needs the right to write, and does nothing.
    let unbind = ExchangeUnbindArguments::new(name, name, &nothing);
    let unbound = side.ask(|channel| async move { channel.exchange_unbind(unbind).await });
    if is_refused(&unbound.await) {
        report.problem(
            "control_exchange",
            format!("no right to write to {name}"),
            advice,
        );
        return Ok(());
    }
    report.ok(
        "control_exchange",
        format!("{name} {state}; may declare, read and write it"),
    );
    Ok(())
}

fn lost(error: &LinkError) -> String {
    format!("broke while the rights were tried: {error}")
}
