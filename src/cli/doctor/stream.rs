//! Whether `serve` can use the stream of the topology `stream`: RabbitMQ's version, what
//! exists under the stream's name, the rights on it, which nodes have it, whether it keeps
//! enough for recovery, and how fast a reader is.
//!
//! A stream that exists is not changed, and one that does not is not made.

mod limits;
mod reading;
mod replicas;
mod version;

use std::time::Duration;

use amqprs::{
    FieldTable, FieldValue,
    channel::{BasicConsumeArguments, QueueDeclareArguments, QueueUnbindArguments},
    consumer::DefaultConsumer,
};
use humantime::format_duration;

use self::{
    limits::{Difference, Limits},
    reading::Traffic,
};
use super::{
    exchange::{self, Exchange},
    grants::permissions,
    report::Report,
};
use crate::{
    broker::rabbitmq::{
        ACCESS_REFUSED, LinkError, NOT_FOUND, ServerClose, SideConnection, instance_id, stream,
    },
    config::{AmqpUrl, RabbitMqConfig, Topology},
};

const CHECK: &str = "stream";
const RETENTION: &str = "stream_retention";

const NO_STREAMS: &str = "streams need RabbitMQ 3.9 or newer, and, where it was upgraded from an older one, \
     rabbitmqctl enable_feature_flag stream_queue";

/// What there is under the stream's name.
enum Found {
    Stream(Limits, Vec<Difference>),
    /// A stream whose limits cannot be read from the refusal.
    OtherStream(ServerClose),
    Missing,
    /// Nothing, and RabbitMQ has no streams.
    Impossible(LinkError),
}

/// What to examine.
pub(super) struct Stream<'a> {
    /// With the node alone that is examined.
    pub(super) config: &'a RabbitMqConfig,
    /// All nodes of the settings.
    pub(super) nodes: &'a [AmqpUrl],
    /// The window of recovery.
    pub(super) window: Duration,
}

/// Reports that nothing was tried.
pub(super) fn skip(config: &RabbitMqConfig, why: &str, report: &mut Report) {
    if config.topology == Topology::Stream {
        report.unknown(CHECK, format!("not tried: {why}"));
    }
}

impl Stream<'_> {
    /// Examines the stream, in the topology that has one.
    pub(super) async fn examine(&self, side: &mut SideConnection, report: &mut Report) {
        if self.config.topology != Topology::Stream {
            return;
        }
        let (product, version) = side.product();
        version::examine(product, version, report);
        match self.find(side, report).await {
            Ok(Some(Found::Stream(limits, differences))) => {
                self.compare(&differences, report);
                let can_be_read = replicas::examine(self.config, self.nodes, report).await;
                let traffic = match can_be_read {
                    true => reading::examine(self.config, report).await,
                    false => Traffic::default(),
                };
                self.retention(limits, traffic, report);
            }
            Ok(Some(Found::OtherStream(close))) => {
                let name = &self.config.stream;
                report.warning(
                    CHECK,
                    format!("{name} exists with other limits, and keeps them: {close}"),
                    self.policy(),
                );
                if replicas::examine(self.config, self.nodes, report).await {
                    reading::examine(self.config, report).await;
                }
            }
            Ok(Some(Found::Impossible(error))) => report.problem(
                CHECK,
                format!("RabbitMQ ended the connection at the declaration of a stream: {error}"),
                NO_STREAMS,
            ),
            Ok(Some(Found::Missing)) => {
                let name = &self.config.stream;
                report.ok(
                    CHECK,
                    format!("{name} does not exist yet: serve makes it; RabbitMQ has streams"),
                );
                self.retention(limits::declared(self.config), Traffic::default(), report);
            }
            Ok(None) => {}
            Err(error) => report.problem(
                "connection",
                format!("broke while the stream was examined: {error}"),
                "RabbitMQ's own log says more",
            ),
        }
    }

    /// Finds what there is, and whether the rights on it are enough; reports why `serve` could
    /// not use it. An error means that the connection is gone.
    async fn find(
        &self,
        session: &mut SideConnection,
        report: &mut Report,
    ) -> Result<Option<Found>, LinkError> {
        let (config, grant) = (self.config, permissions(self.config));
        let name = &config.stream;
        let found = match look(session, config).await? {
            Ok(found) => found,
            Err(close) => {
                refused(&close, config, &grant, report);
                return Ok(None);
            }
        };
        if let Err(close) = rights(session, config, &found).await? {
            if is_no_stream(&close) {
                refused(&close, config, &grant, report);
            } else {
                let finding = format!("may not read {name}, or bind it: {close}");
                report.problem(CHECK, finding, grant);
            }
            return Ok(None);
        }
        let markers = stream::markers(config);
        match exchange::look_at(session, &markers, "fanout").await? {
            Exchange::AsExpected | Exchange::Missing => {}
            Exchange::NotPermitted => {
                report.problem(CHECK, format!("may not declare {markers}"), grant);
                return Ok(None);
            }
            other => {
                let finding = format!("{markers} is not as serve declares it: {other:?}");
                report.problem(CHECK, finding, format!("rabbitmqctl and the management page cannot change it: delete {markers}, which serve makes anew"));
                return Ok(None);
            }
        }
        Ok(Some(found))
    }

    /// Reports what a stream that exists has other than `serve` would declare.
    fn compare(&self, differences: &[Difference], report: &mut Report) {
        let name = &self.config.stream;
        let describe = |differences: &[Difference]| {
            let each: Vec<_> = differences.iter().map(Difference::describe).collect();
            each.join("; ")
        };
        if differences.is_empty() {
            report.ok(CHECK, format!("{name} exists as serve declares it"));
        } else if !differences.iter().any(Difference::matters) {
            report.ok(
                CHECK,
                format!(
                    "{name} exists with other arguments: {}",
                    describe(differences)
                ),
            );
        } else {
            let advice = match differences.iter().any(Difference::is_fixed) {
                true => "RabbitMQ removes whole segments, and no policy changes their size: delete the stream while no gateway runs, and serve makes it anew".to_owned(),
                false => format!(
                    "{}; or delete the stream while no gateway runs, and serve makes it anew (a policy that exists already is not told over AMQP)",
                    self.policy()
                ),
            };
            report.warning(
                CHECK,
                format!(
                    "{name} exists with other limits, and keeps them: {}",
                    describe(differences)
                ),
                advice,
            );
        }
    }

    /// The command that gives the stream the limits that `serve` declares.
    fn policy(&self) -> String {
        let Limits { age, bytes } = limits::declared(self.config);
        let (vhost, name) = (&self.config.url.first().vhost, &self.config.stream);
        let (age, bytes) = (age.unwrap_or_default().as_secs(), bytes.unwrap_or_default());
        format!(
            "rabbitmqctl set_policy -p {vhost} --apply-to queues chat3-gateway-stream '^{}$' \
             '{{\"max-age\":\"{age}s\",\"max-length-bytes\":{bytes}}}'",
            name.replace('.', "\\.")
        )
    }

    /// Reports whether the stream keeps what recovery may ask for.
    fn retention(&self, limits: Limits, traffic: Traffic, report: &mut Report) {
        let needed = RabbitMqConfig::stream_age_for(self.window);
        let verdict = Retention::of(limits, traffic, needed);
        let finding = Retention::describe(limits, traffic, needed);
        match verdict {
            Retention::Enough => report.ok(RETENTION, finding),
            Retention::TooShort => report.warning(
                RETENTION,
                finding,
                "raise RABBITMQ_STREAM_MAX_AGE, and the age of a stream that exists by a policy (max-age); or lower RECOVERY_WINDOW",
            ),
            Retention::TooSmall { .. } => report.warning(
                RETENTION,
                finding,
                "raise the stream's size by a policy (max-length-bytes), and see that the disk has room; or lower RECOVERY_WINDOW",
            ),
        }
    }
}

/// Whether a stream keeps updates for the time that is needed.
#[derive(Debug, PartialEq, Eq)]
enum Retention {
    Enough,
    /// Its age is less.
    TooShort,
    /// At the rate of what is published, its size is reached within this time.
    TooSmall {
        within: Duration,
    },
}

/// Bytes on disk of an update, where none could be looked at.
const USUAL_UPDATE: f64 = 900.0;

impl Retention {
    fn of(limits: Limits, traffic: Traffic, needed: Duration) -> Self {
        if limits.age.is_some_and(|age| age < needed) {
            return Self::TooShort;
        }
        match filled_within(limits, traffic) {
            Some(within) if within < needed => Self::TooSmall { within },
            _ => Self::Enough,
        }
    }

    fn describe(limits: Limits, traffic: Traffic, needed: Duration) -> String {
        let age = limits.age.map_or("any time".to_owned(), |age| {
            format_duration(age).to_string()
        });
        let bytes = limits.bytes.map_or("any size".to_owned(), megabytes);
        let keeps = format!("keeps updates for {age}, up to {bytes}");
        let needed_text = match needed.is_zero() {
            true => "; recovery is off".to_owned(),
            false => format!(
                ", and recovery needs {} (twice RECOVERY_WINDOW)",
                format_duration(needed)
            ),
        };
        let size = match filled_within(limits, traffic) {
            Some(within) => format!(
                "; at the rate of the last minute, that is {}",
                format_duration(Duration::from_secs(within.as_secs()))
            ),
            None => match limits.bytes.filter(|_| !needed.is_zero()) {
                Some(bytes) => format!(
                    "; enough up to {:.0} updates/s",
                    real(bytes) / traffic.message.unwrap_or(USUAL_UPDATE) / needed.as_secs_f64()
                ),
                None => String::new(),
            },
        };
        format!("{keeps}{needed_text}{size}")
    }
}

/// The time in which what is published fills the stream.
fn filled_within(limits: Limits, traffic: Traffic) -> Option<Duration> {
    let per_second = traffic.published? * traffic.message.unwrap_or(USUAL_UPDATE);
    Duration::try_from_secs_f64(real(limits.bytes?) / per_second).ok()
}

/// To three digits.
fn megabytes(bytes: u64) -> String {
    let megabytes = real(bytes) / 1e6;
    match megabytes {
        _ if megabytes >= 1_000.0 => format!("{:.1} GB", megabytes / 1e3),
        _ => format!("{megabytes:.0} MB"),
    }
}

/// Exact enough for what is told to people.
#[allow(clippy::cast_precision_loss)]
fn real(bytes: u64) -> f64 {
    bytes as f64
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
        Err(close) if close.is_of_a_queue_that_is_down() => return Ok(Err(close)),
        Err(close) if close.code == NOT_FOUND => return try_one(config).await,
        Err(close) => return Ok(Err(close)),
    }
    Ok(match limits::learn(session, config).await? {
        Ok((limits, differences)) => Ok(Found::Stream(limits, differences)),
        Err(close) if stream::has_other_limits(&close) => Ok(Found::OtherStream(close)),
        Err(close) => Err(close),
    })
}

/// Makes a stream of the gateway's own kind, and removes it. RabbitMQ may end the connection
/// instead, so it is one for this only.
async fn try_one(config: &RabbitMqConfig) -> Result<Result<Found, ServerClose>, LinkError> {
    let mut session = SideConnection::open(config, "doctor", &instance_id(config)).await?;
    let trial = RabbitMqConfig {
        stream: format!("{}.stream", session.prefix),
        ..config.clone()
    };
    let declared = declare(&mut session, stream::declaration(&trial)).await;
    let tried = match declared {
        Ok(Ok(())) => {
            let deleted = answer(session.delete(&trial.stream).await);
            deleted.map(|answer| answer.map(|()| Found::Missing))
        }
        Ok(Err(close)) => Ok(Err(close)),
        Err(error) => Ok(Ok(Found::Impossible(error))),
    };
    session.close().await;
    tried
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
    } else if close.is_of_a_queue_that_is_down() {
        report.problem(
            CHECK,
            format!("{name} is not up: {close}"),
            format!(
                "start the nodes that have it (rabbitmq-streams stream_status --vhost {} {name}); if it stays down, name another in RABBITMQ_STREAM, or see docs/SCALING.md",
                config.url.first().vhost
            ),
        );
    } else {
        report.problem(
            CHECK,
            format!("cannot declare a stream: {close}"),
            NO_STREAMS,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_must_keep_what_recovery_needs_in_age_and_in_size() {
        let needed = Duration::from_secs(240);
        let limits = |age, bytes| Limits {
            age: Some(Duration::from_secs(age)),
            bytes: Some(bytes),
        };
        let traffic = |published| Traffic {
            published: Some(published),
            message: Some(1_000.0),
            read: None,
        };
        let of = |limits, traffic| Retention::of(limits, traffic, needed);
        let quiet = Traffic::default();
        assert_eq!(of(limits(239, 1_000_000), quiet), Retention::TooShort);
        assert_eq!(of(limits(240, 1_000_000), quiet), Retention::Enough);
        assert_eq!(of(limits(240, 1_000_000), traffic(4.0)), Retention::Enough);
        let within = Duration::from_secs(200);
        assert_eq!(
            of(limits(240, 1_000_000), traffic(5.0)),
            Retention::TooSmall { within }
        );
        let unlimited = Limits {
            age: None,
            bytes: None,
        };
        assert_eq!(of(unlimited, traffic(1e6)), Retention::Enough);
        assert_eq!(
            Retention::describe(limits(3_600, 2_000_000_000), quiet, needed),
            "keeps updates for 1h, up to 2.0 GB, and recovery needs 4m (twice RECOVERY_WINDOW); enough up to 9259 updates/s"
        );
    }
}
