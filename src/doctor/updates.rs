//! What is being published right now: listens for a while and looks at routing keys
//! and timestamps. Bodies are dropped unread.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use amqprs::{
    BasicProperties, Deliver,
    channel::{BasicAckArguments, BasicConsumeArguments, Channel},
    consumer::AsyncConsumer,
};
use async_trait::async_trait;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    Report, Section,
    broker::Rights,
    keys::{Generation, classify, reaches, shape},
    report::counted,
    session::{Exchange, Session},
};
use crate::{
    config::RabbitMqConfig,
    rabbitmq::{ACCESS_REFUSED, LinkError, NOT_FOUND, OpenChannel, barrier},
};

/// Enough to know; a busy exchange is not listened to any longer.
const ENOUGH: usize = 5_000;

/// What the broker keeps for us at most, if we are slower than Chat3.
const MAX_WAITING: i64 = 1_000;

/// Updates on their way to us.
const PREFETCH: u16 = 200;

const STEP: Duration = Duration::from_secs(5);

/// Clock differences that tokens tolerate, with the default `JWT_LEEWAY`.
const TOLERATED: Duration = Duration::from_secs(5);

/// From here on tokens are refused that should not be, whatever the leeway.
const INTOLERABLE: Duration = Duration::from_secs(60);

/// Timestamps from here on are milliseconds (see `rabbitmq::consumer`).
const FIRST_MILLISECONDS: u64 = 100_000_000_000;

/// Kinds of keys that are shown.
const MAX_SHAPES: usize = 5;

/// Listens, and says what that tells about keys, exchange and clock.
pub(super) async fn examine(
    session: &mut Session,
    config: &RabbitMqConfig,
    rights: &Rights,
    listen: Duration,
    report: &mut Report,
) {
    let everything = format!("{}.listen", session.prefix);
    let bound = match session.declare(&everything, MAX_WAITING).await {
        Ok(()) => session.bind(&everything, &config.exchange, "#").await,
        Err(error) => Err(error),
    };
    let may_listen = bound.is_ok();
    let seen = if may_listen || rights.probe.is_some() {
        if may_listen {
            report.announce(&format!(
                "listening to {} for {} (a temporary queue, bound with #)",
                config.exchange,
                humantime::format_duration(listen)
            ));
        }
        let queues = [
            (&everything, may_listen),
            (rights.probe.as_ref().unwrap_or(&everything), false),
        ];
        let queues = match (&rights.probe, may_listen) {
            (Some(_), true) => &queues[..],
            (Some(_), false) => &queues[1..],
            (None, _) => &queues[..1],
        };
        hear(session, queues, listen).await
    } else {
        Ok(Heard::default())
    };
    let heard = match seen {
        Ok(heard) => heard,
        Err(error) => {
            let advice = "RabbitMQ's own log says more";
            report.problem("listening", format!("failed: {error}"), advice);
            skip("listening failed", report);
            return;
        }
    };
    told_exchange(config, rights, &heard, report);
    report.begin(Section::Updates);
    match bound {
        Ok(()) => tell(config, rights, listen, &heard, report),
        Err(LinkError::Closed(close)) if close.text.contains("access to topic") => {
            let finding =
                "the topic permissions keep this user from listening to everything, as they should";
            let advice =
                "to check keys and clock, run doctor once with RABBITMQ_URL of Chat3's own user";
            report.unclear("keys", finding, advice);
            skip_all(&["bindings", "clock"], "nothing was listened to", report);
        }
        Err(LinkError::Closed(close)) if close.code == ACCESS_REFUSED => {
            skip_all(
                &["keys", "bindings", "clock"],
                "the rights above are missing",
                report,
            );
        }
        Err(LinkError::Closed(close)) if close.code == NOT_FOUND => {
            skip_all(
                &["keys", "bindings", "clock"],
                "there is no exchange",
                report,
            );
        }
        Err(error) => {
            let why = format!("nothing was listened to: {error}");
            skip_all(&["keys", "bindings", "clock"], &why, report);
        }
    }
}

/// Notes what was not tried.
pub(super) fn skip(why: &str, report: &mut Report) {
    report.begin(Section::Updates);
    skip_all(&["keys", "bindings", "clock"], why, report);
}

fn skip_all(checks: &[&'static str], why: &str, report: &mut Report) {
    for check in checks {
        report.unknown(check, format!("not tried: {why}"));
    }
}

/// One update, without its body.
struct Seen {
    routing_key: String,
    timestamp: Option<u64>,
    at: SystemTime,
    /// Of the queue that must get everything, not of the one that must get nothing.
    expected: bool,
}

#[derive(Default)]
struct Heard {
    updates: Vec<Seen>,
    /// Updates for a user whom nobody publishes to.
    for_nobody: usize,
}

struct Ear {
    sender: mpsc::Sender<Seen>,
    expected: bool,
}

#[async_trait]
impl AsyncConsumer for Ear {
    async fn consume(
        &mut self,
        channel: &Channel,
        deliver: Deliver,
        properties: BasicProperties,
        _: Vec<u8>,
    ) {
        let seen = Seen {
            routing_key: deliver.routing_key().clone(),
            timestamp: properties.timestamp(),
            at: SystemTime::now(),
            expected: self.expected,
        };
        // Errors mean that it is over. Without the acknowledgement no more come.
        if self.sender.send(seen).await.is_ok() {
            let ack = BasicAckArguments::new(deliver.delivery_tag(), false);
            let _ = channel.basic_ack(ack).await;
        }
    }
}

/// Consumes the queues until the time is over or enough has come.
async fn hear(
    session: &mut Session,
    queues: &[(&String, bool)],
    listen: Duration,
) -> Result<Heard, LinkError> {
    let (sender, mut receiver) = mpsc::channel(PREFETCH.into());
    let on: OpenChannel = session.another_channel().await?;
    let channel = on.channel.clone();
    let consumers: Vec<_> = queues
        .iter()
        .map(|(queue, expected)| {
            let ear = Ear {
                sender: sender.clone(),
                expected: *expected,
            };
            (ear, BasicConsumeArguments::new(queue, queue))
        })
        .collect();
    drop(sender);
    on.ask(STEP, async move {
        barrier(&channel, PREFETCH).await?;
        for (ear, consume) in consumers {
            channel.basic_consume(ear, consume).await?;
        }
        Ok(())
    })
    .await?;
    let mut heard = Heard::default();
    let end = Instant::now() + listen;
    while heard.updates.len() + heard.for_nobody < ENOUGH {
        match timeout_at(end, receiver.recv()).await {
            Ok(Some(seen)) if seen.expected => heard.updates.push(seen),
            Ok(Some(_)) => heard.for_nobody += 1,
            Ok(None) => return Err(LinkError::Amqp("the connection broke".to_owned())),
            Err(_) => break,
        }
    }
    Ok(heard)
}

/// What the behaviour of the exchange tells, where RabbitMQ itself did not.
fn told_exchange(config: &RabbitMqConfig, rights: &Rights, heard: &Heard, report: &mut Report) {
    let name = &config.exchange;
    if heard.for_nobody > 0 && !matches!(rights.exchange, Exchange::OtherType(_)) {
        return report.problem(
            "exchange",
            format!("{name} is no topic exchange: updates came for a user who does not exist"),
            "is RABBITMQ_UPDATES_EXCHANGE the right one? rabbitmqctl list_exchanges name type must say topic",
        );
    }
    if rights.exchange != Exchange::NotPermitted || rights.probe.is_none() {
        return;
    }
    match heard.updates.is_empty() {
        false => report.ok(
            "exchange",
            format!("{name} exists, and behaves as a topic exchange"),
        ),
        true => report.unclear(
            "exchange",
            format!("{name} exists; its type is told only to those who may declare it"),
            "rabbitmqctl list_exchanges name type must say topic",
        ),
    }
}

fn tell(
    config: &RabbitMqConfig,
    rights: &Rights,
    listen: Duration,
    heard: &Heard,
    report: &mut Report,
) {
    let listened = humantime::format_duration(listen);
    if heard.updates.is_empty() {
        let finding = format!(
            "nothing was published to {} within {listened}",
            config.exchange
        );
        let advice = match rights.exchange {
            Exchange::OtherType(_) => "mend the exchange first",
            _ => {
                "send a message in the chat while this listens, or longer: --listen 1m; if nothing comes then, Chat3's Update Worker does not publish here"
            }
        };
        report.warning("keys", finding, advice);
        return skip_all(&["bindings", "clock"], "nothing was published", report);
    }
    let mut generations: BTreeMap<Generation, usize> = BTreeMap::new();
    let mut missed: BTreeMap<Generation, usize> = BTreeMap::new();
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    let mut users = BTreeSet::new();
    let mut reached = 0;
    for seen in &heard.updates {
        let Some((generation, id)) = classify(&seen.routing_key) else {
            *unknown.entry(shape(&seen.routing_key)).or_default() += 1;
            continue;
        };
        users.insert(id);
        *generations.entry(generation).or_default() += 1;
        match reaches(&config.binding_keys, &seen.routing_key, id) {
            true => reached += 1,
            false => *missed.entry(generation).or_default() += 1,
        }
    }
    let updates = counted(heard.updates.len(), "update");
    let users = counted(users.len(), "user");
    report.ok(
        "listening",
        format!("{updates} for {users} within {listened}"),
    );
    for (generation, count) in &generations {
        let (since, form) = (generation.since(), generation.form());
        report.ok(
            "keys",
            format!("{count} × {form}, as of Chat3 since {since}"),
        );
    }
    if !unknown.is_empty() {
        let shapes = unknown
            .iter()
            .take(MAX_SHAPES)
            .map(|(shape, count)| format!("{count} × {shape}"));
        let shapes = shapes.collect::<Vec<_>>().join(", ");
        report.warning(
            "keys",
            format!("keys of no known generation of Chat3: {shapes}"),
            "something else publishes here, or a newer Chat3: compare its keys with RABBITMQ_BINDING_KEYS by hand",
        );
    }
    bindings(config, reached, &missed, report);
    clock(&heard.updates, report);
}

fn bindings(
    config: &RabbitMqConfig,
    reached: usize,
    missed: &BTreeMap<Generation, usize>,
    report: &mut Report,
) {
    let configured = &config.binding_keys;
    let count: usize = missed.values().sum();
    if count == 0 && reached == 0 {
        return report.unknown(
            "bindings",
            "cannot be told: no key is of a known generation",
        );
    }
    if count == 0 {
        return report.ok("bindings", format!("{configured} matches all of them"));
    }
    // What works now stays; what is missed comes in addition.
    let mut templates: Vec<&str> = Vec::new();
    if reached > 0 {
        templates.extend(configured.templates());
    }
    for generation in missed.keys() {
        if !templates.contains(&generation.template()) {
            templates.push(generation.template());
        }
    }
    let advice = format!(
        "set RABBITMQ_BINDING_KEYS='{}' (and the topic permissions, if there are any: docs/SECURITY.md)",
        templates.join(",")
    );
    let finding = match reached {
        0 => format!("{configured} matches none of them: nobody gets an update"),
        _ => format!("{configured} misses {count} of {} updates", count + reached),
    };
    report.problem("bindings", finding, advice);
}

/// Compares the publisher's timestamps with this machine's time.
fn clock(updates: &[Seen], report: &mut Report) {
    // Positive: this machine's clock is ahead. The least is without time spent in queues.
    let ahead = updates.iter().filter_map(|seen| {
        let stamp = seen.timestamp?;
        let (stamp, here) = (i128::from(stamp), seen.at.duration_since(UNIX_EPOCH).ok()?);
        let here = i128::try_from(here.as_millis()).ok()?;
        // Chat3 writes milliseconds; AMQP means seconds, which are known to a second only.
        if stamp >= i128::from(FIRST_MILLISECONDS) {
            return Some(here - stamp);
        }
        let difference = here - stamp * 1000;
        Some(difference - difference.clamp(0, 1000))
    });
    let Some(ahead) = ahead.min_by_key(|difference| difference.abs()) else {
        return report.unknown("clock", "cannot be told: the updates have no timestamp");
    };
    let difference = Duration::from_millis(u64::try_from(ahead.unsigned_abs()).unwrap_or(u64::MAX));
    let seconds = difference.as_secs_f64();
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let finding = match ahead > 0 {
        true => format!(
            "{seconds:.1} s {direction} the publisher's timestamps, or updates are that late"
        ),
        false => format!("{seconds:.1} s {direction} the publisher's timestamps"),
    };
    let advice = "synchronise the clocks (timedatectl; chronyc tracking): tokens expire too early or are not valid yet, and latencies are wrong";
    if difference > INTOLERABLE {
        report.problem("clock", finding, advice);
    } else if difference > TOLERATED {
        report.warning("clock", finding, advice);
    } else {
        report.ok(
            "clock",
            format!("within {seconds:.1} s of the publisher's timestamps"),
        );
    }
}
