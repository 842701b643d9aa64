//! Reads back what a stream has, for a short time: how fast one reader is, against how much
//! is published.
//!
//! On a connection of its own, because a message that the AMQP library cannot read ends the
//! connection. What is read is counted and dropped.

use std::time::Duration;

use amqprs::{
    BasicProperties, Deliver, FieldTable, FieldValue,
    channel::{
        BasicAckArguments, BasicCancelArguments, BasicConsumeArguments, BasicQosArguments, Channel,
    },
    consumer::AsyncConsumer,
};
use async_trait::async_trait;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::super::report::Report;
use crate::{
    broker::rabbitmq::{LinkError, SideConnection, instance_id},
    config::RabbitMqConfig,
};

const CHECK: &str = "stream_reading";

/// How long to read for the reader's speed.
const READ: Duration = Duration::from_secs(2);

/// How long the first message may take: attaching takes RabbitMQ half a second.
const ATTACH: Duration = Duration::from_secs(3);

/// After this long without a message, the end is reached.
const QUIET: Duration = Duration::from_millis(300);

/// What is published is counted in this much of the past, as RabbitMQ writes intervals.
const PAST: Duration = Duration::from_secs(60);
const PAST_TEXT: &str = "60s";

/// Fewer messages say nothing of the speed: RabbitMQ sends as many at once.
const ENOUGH: u64 = 1_000;

/// Messages between two acknowledgements.
const ACK_EVERY: u64 = 100;

/// RabbitMQ and AMQP's frames add about this much to a body in a segment.
const OVERHEAD: u64 = 230;

/// What a reader got.
#[derive(Debug, Default, Clone, Copy)]
struct Read {
    count: u64,
    bytes: u64,
    /// The offsets of the first message and the last.
    first: Option<u64>,
    last: Option<u64>,
    /// From the first message to the last.
    took: Duration,
    broke: bool,
}

/// What is known of a stream's traffic.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Traffic {
    /// Messages read in a second, if there were enough.
    pub(super) read: Option<f64>,
    /// Messages published in a second of the last minute, if any were.
    pub(super) published: Option<f64>,
    /// Bytes on disk of an average message.
    pub(super) message: Option<f64>,
}

/// Reads, and reports how the reader's speed suits what is published.
pub(super) async fn examine(config: &RabbitMqConfig, report: &mut Report) -> Traffic {
    report.announce(&format!(
        "reading back what {} has, for up to {READ:?}",
        config.stream
    ));
    match measure(config).await {
        Ok((all, traffic)) => {
            tell(&all, traffic, report);
            traffic
        }
        Err(error) => {
            let advice = "RabbitMQ's own log says more";
            report.problem(CHECK, format!("the stream cannot be read: {error}"), advice);
            Traffic::default()
        }
    }
}

async fn measure(config: &RabbitMqConfig) -> Result<(Read, Traffic), LinkError> {
    let instance = instance_id(config);
    let open = || SideConnection::open(config, "doctor-reader", &instance);
    let mut side = open().await?;
    let first = FieldValue::S("first".try_into().expect("a short text"));
    let all = read(&mut side, config, "all", first, READ).await?;
    if all.broke {
        side = open().await?;
    }
    let past = FieldValue::S(PAST_TEXT.try_into().expect("a short text"));
    let since = read(&mut side, config, "since", past, QUIET).await;
    let last = FieldValue::S("last".try_into().expect("a short text"));
    let until = match &since {
        Ok(since) if !since.broke => read(&mut side, config, "until", last, QUIET).await,
        _ => Ok(Read::default()),
    };
    side.close().await;
    let per = |count: u64, time: Duration| real(count) / time.as_secs_f64().max(0.001);
    // Attaching at a time begins with its chunk, which may be older: then it is more.
    let published = match (since?.first, until?.last) {
        (Some(since), Some(until)) if until >= since => Some(per(until - since + 1, PAST)),
        _ => None,
    };
    let traffic = Traffic {
        read: (all.count > ENOUGH).then(|| per(all.count - 1, all.took)),
        published,
        message: (all.bytes + all.count * OVERHEAD)
            .checked_div(all.count)
            .map(real),
    };
    Ok((all, traffic))
}

fn tell(all: &Read, traffic: Traffic, report: &mut Report) {
    if all.broke {
        let behind = match all.last {
            Some(offset) => format!(" behind offset {offset}"),
            None => String::new(),
        };
        report.warning(
            CHECK,
            format!("the connection ended while the stream was read{behind}"),
            "probably a message that the AMQP library cannot read: the gateway steps over it, and says so in its log",
        );
    }
    let published = match traffic.published {
        Some(rate) => format!("{}/s were published in the last minute", round(rate)),
        None => "nothing was published in the last minute".to_owned(),
    };
    let Some(read) = traffic.read else {
        if !all.broke {
            let finding = format!(
                "{published}; {} in the stream are too few to tell how fast a reader is",
                all.count
            );
            report.unknown(CHECK, finding);
        }
        return;
    };
    let finding = format!("reads {} updates/s; {published}", round(read));
    match headroom(read, traffic.published) {
        Headroom::Enough => report.ok(CHECK, finding),
        Headroom::Little => report.warning(
            CHECK,
            format!("{finding}: little is left for bursts, and for what was missed"),
            FASTER,
        ),
        Headroom::None => report.problem(
            CHECK,
            format!("{finding}: every instance falls behind, for ever"),
            FASTER,
        ),
    }
}

const FASTER: &str = "RabbitMQ 4.2 and later read several times as fast; more cores for it; or RABBITMQ_TOPOLOGY=shared, which keeps nothing (docs/SCALING.md)";

#[derive(Debug, PartialEq, Eq)]
enum Headroom {
    Enough,
    Little,
    None,
}

/// Whether a reader of this speed keeps up. An instance that was away must catch up with
/// what it missed besides, and the measurement has the stream's reader compete with
/// those of the running instances.
fn headroom(read: f64, published: Option<f64>) -> Headroom {
    match published {
        Some(published) if read < published => Headroom::None,
        Some(published) if read < 3.0 * published => Headroom::Little,
        _ => Headroom::Enough,
    }
}

/// Without the loss that a cast could have: what is counted here is small.
fn real(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

fn round(rate: f64) -> String {
    match rate {
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

/// Reads from `from` on, for `time` at most or until the end is reached.
async fn read(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    tag: &'static str,
    from: FieldValue,
    time: Duration,
) -> Result<Read, LinkError> {
    let prefetch = config.prefetch();
    // More than RabbitMQ sends ahead: the consumer never waits.
    let (sender, mut came) = mpsc::channel(usize::from(prefetch) + 1);
    let counter = Counter {
        came: sender,
        unacknowledged: 0,
    };
    let mut consume = BasicConsumeArguments::new(&config.stream, tag);
    let mut arguments = FieldTable::new();
    arguments.insert("x-stream-offset".try_into().expect("a short name"), from);
    consume.arguments(arguments);
    side.ask(|channel| async move {
        channel
            .basic_qos(BasicQosArguments::new(0, prefetch, false))
            .await?;
        channel.basic_consume(counter, consume).await.map(drop)
    })
    .await?;
    let mut read = Read::default();
    let mut begun = None;
    let mut until = Instant::now() + ATTACH;
    while let Ok(message) = timeout_at(until, came.recv()).await {
        let Some(message) = message else {
            read.broke = true;
            return Ok(read);
        };
        let now = Instant::now();
        let begun = *begun.get_or_insert(now);
        read.count += 1;
        read.bytes += message.bytes;
        read.first = read.first.or(message.offset);
        read.last = message.offset.or(read.last);
        read.took = now.duration_since(begun);
        if read.took >= time {
            break;
        }
        until = (begun + time).min(now + QUIET);
    }
    let cancel = BasicCancelArguments::new(tag);
    side.ask(|channel| async move { channel.basic_cancel(cancel).await.map(drop) })
        .await?;
    Ok(read)
}

struct Message {
    offset: Option<u64>,
    bytes: u64,
}

/// Its drop ends the reading.
struct Counter {
    came: mpsc::Sender<Message>,
    unacknowledged: u64,
}

#[async_trait]
impl AsyncConsumer for Counter {
    async fn consume(
        &mut self,
        channel: &Channel,
        deliver: Deliver,
        properties: BasicProperties,
        body: Vec<u8>,
    ) {
        let offset = "x-stream-offset".try_into().expect("a short name");
        let offset = match properties
            .headers()
            .and_then(|headers| headers.get(&offset))
        {
            Some(FieldValue::l(offset)) => (*offset).try_into().ok(),
            _ => None,
        };
        let bytes = body.len() as u64;
        // An error means that reading is over; without an acknowledgement, deliveries stop.
        if self.came.send(Message { offset, bytes }).await.is_err() {
            return;
        }
        self.unacknowledged += 1;
        if self.unacknowledged == ACK_EVERY {
            self.unacknowledged = 0;
            let ack = BasicAckArguments::new(deliver.delivery_tag(), true);
            let _ = channel.basic_ack(ack).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_needs_more_than_what_is_published() {
        assert_eq!(headroom(5_000.0, None), Headroom::Enough);
        assert_eq!(headroom(5_000.0, Some(1_000.0)), Headroom::Enough);
        assert_eq!(headroom(5_000.0, Some(2_000.0)), Headroom::Little);
        assert_eq!(headroom(5_000.0, Some(6_000.0)), Headroom::None);
    }
}
