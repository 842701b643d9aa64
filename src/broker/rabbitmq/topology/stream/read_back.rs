//! Reading back: at its start, an instance reads what the stream had before, so that clients
//! of earlier processes and of other instances go on where they were.
//!
//! Connections of their own read runs of the stream, the newest run first: who comes back
//! right after a restart missed little. Each run must end at the entry that is the oldest
//! here. The reader of new updates is not touched.
//!
//! [`attempts`](super::attempts) keeps a message that ends the process from doing so at every
//! start.
//!
//! Invariant: what is added to the history is exactly what the stream has before it, but for
//! messages that nobody can read. Nothing is tried without end.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::{
    FieldValue,
    channel::{BasicAckArguments, BasicCancelArguments},
    error::Error,
};
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    super::super::{
        connection::{Watched, barrier},
        link_error::LinkError,
        shared::Shared,
    },
    attempts::Attempt,
    message::{Message, parse},
};
use crate::broker::history::{Entry, History};

/// Offsets of the first run. On RabbitMQ 3.10 they take about half a second.
const FIRST_RUN: u64 = 2_500;

/// Offsets of the longest run.
const LONGEST_RUN: u64 = 40_000;

/// Messages that RabbitMQ sends before they are acknowledged.
const PREFETCH: u16 = 200;

/// A run has ended if nothing comes for this long.
const SILENCE: Duration = Duration::from_secs(10);

/// Connections that may end before a run is complete, as each step over an unreadable message
/// does.
const MAX_FAILURES: u32 = 20;

/// Between two connections, if one failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Time limit of closing a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The tag of the consumer.
const TAG: &str = "history";

/// Messages after which others get a turn.
const TURN: usize = 32;

/// Reads back as much as the history is to keep.
pub(super) async fn run(shared: Arc<Shared>, history: Arc<History>, markers: String) {
    shared.metrics.history_reading.set(1);
    let begun = Instant::now();
    let reading = ReadBack {
        shared: &shared,
        history: &history,
        markers: &markers,
        failures: 0,
    };
    match reading.attempt().await {
        Ok(true) => {
            let updates = history.look().count();
            info!(updates, took = ?begun.elapsed(), "RabbitMQ stream read back");
        }
        Ok(false) => warn!(
            "RabbitMQ stream not read back: the last instances here ended while they read; \
                 clients from before the start do not recover"
        ),
        Err(_) if shared.stop_consuming.is_cancelled() => {}
        Err(error) => warn!(
            %error,
            "RabbitMQ stream not read back: clients from before the start do not recover"
        ),
    }
    history.is_read_back();
}

struct ReadBack<'a> {
    shared: &'a Arc<Shared>,
    history: &'a History,
    markers: &'a str,
    failures: u32,
}

/// Where to begin to read.
#[derive(Debug, Clone, Copy)]
enum From {
    Time(SystemTime),
    Offset(u64),
}

/// Offsets ascend, on one connection. One that does not follows one that a publisher has
/// forged: what was skipped for it cannot be known.
#[derive(Default)]
struct Order {
    newest: u64,
    is_broken: bool,
}

impl Order {
    fn goes_on_with(&mut self, offset: u64) -> bool {
        self.is_broken |= offset < self.newest;
        self.newest = offset;
        !self.is_broken
    }
}

/// A part of the stream, oldest message first.
#[derive(Default)]
struct Run {
    messages: VecDeque<Entry>,
    bytes: usize,
    /// Whether the message at its end came.
    is_complete: bool,
    /// Whether there was no room for all of it.
    is_cut: bool,
}

impl ReadBack<'_> {
    /// Reads back, unless the last attempts have ended with their process.
    async fn attempt(mut self) -> Result<bool, LinkError> {
        let stopping = self.shared.stop_consuming.clone();
        let attempt = loop {
            match Attempt::begin(self.shared).await {
                Ok(Some(attempt)) => break attempt,
                Ok(None) => return Ok(false),
                Err(error) if stopping.is_cancelled() => return Err(error),
                Err(error) => self.failed(error).await?,
            }
        };
        let read = select! {
            read = self.read() => read,
            () = stopping.cancelled() => Ok(()),
        };
        // A process that is stopped has survived it.
        attempt.end(self.shared.clone()).await;
        read.map(|()| true)
    }

    async fn read(&mut self) -> Result<(), LinkError> {
        let bounds = self.history.bounds();
        if bounds.bytes == 0 || bounds.age.is_zero() {
            return Ok(());
        }
        let mut until = loop {
            match self.history.begins() {
                Some(begins) => break begins,
                None if !self.history.is_reading() => return Ok(()),
                None => sleep(PAUSE).await,
            }
        };
        // RabbitMQ begins at the chunk of that time, and so perhaps a little earlier.
        let since = SystemTime::now().checked_sub(bounds.age);
        let since = since.unwrap_or(SystemTime::UNIX_EPOCH);
        let (oldest, run) = self.probe(since, until).await?;
        if let Some(run) = run {
            self.history.prepend(until, run.messages.into());
            return Ok(());
        }
        let mut length = FIRST_RUN;
        while until > oldest {
            let from = until.saturating_sub(length).max(oldest);
            let run = self.read_run(from, until).await?;
            debug!(
                from,
                until,
                messages = run.messages.len(),
                "RabbitMQ stream run read back"
            );
            if !self.history.prepend(until, run.messages.into()) || run.is_cut {
                break;
            }
            // Offsets have gaps: a run may be empty.
            let Some(begins) = self.history.begins() else {
                break;
            };
            let is_empty = begins == until;
            until = begins;
            length = (length * 2).min(LONGEST_RUN);
            if is_empty {
                // The next run is longer and includes this one.
                length = length.max(2 * (until - from));
                if from == oldest {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The first offset since a time, and all from there on if that is little.
    async fn probe(
        &mut self,
        since: SystemTime,
        until: u64,
    ) -> Result<(u64, Option<Run>), LinkError> {
        loop {
            let mut run = Run::default();
            let mut oldest = None;
            let mut order = Order::default();
            let is_short = |offset: u64| until.saturating_sub(offset) <= FIRST_RUN;
            let ended = self
                .consume(From::Time(since), |message| {
                    let offset = message.offset;
                    if !order.goes_on_with(offset) {
                        return false;
                    }
                    let first = *oldest.get_or_insert(offset);
                    self.add(&mut run, &message, until);
                    is_short(first) && offset < until
                })
                .await;
            match (oldest, ended) {
                (Some(oldest), Ok(())) if run.is_complete => return Ok((oldest, Some(run))),
                (Some(oldest), _) => return Ok((oldest, None)),
                (None, Err(error)) => self.failed(error).await?,
                (None, Ok(())) => return Ok((until, None)),
            }
        }
    }

    /// Reads all messages from `from` to `until`. The message at `until` must come last.
    async fn read_run(&mut self, from: u64, until: u64) -> Result<Run, LinkError> {
        let mut run = Run::default();
        let mut next = from;
        loop {
            let mut order = Order::default();
            let ended = self
                .consume(From::Offset(next), |message| {
                    let offset = message.offset;
                    if !order.goes_on_with(offset) {
                        return false;
                    }
                    // RabbitMQ begins at the chunk of an offset, and amqprs may repeat.
                    if offset >= next {
                        next = offset + 1;
                        self.add(&mut run, &message, until);
                    }
                    offset < until
                })
                .await;
            if run.is_complete {
                return Ok(run);
            }
            if order.is_broken {
                return Err(LinkError::Stopped);
            }
            let error = match ended {
                Ok(()) => LinkError::Stopped,
                Err(error) => error,
            };
            if matches!(error, LinkError::Unreadable(_)) {
                // Nothing else comes over this connection: it is the next message.
                self.shared.metrics.messages_unreadable.inc();
                warn!(
                    offset = next,
                    "RabbitMQ message in the stream stepped over while reading back: the AMQP library cannot read it"
                );
                next += 1;
            }
            self.failed(error).await?;
        }
    }

    /// Adds a message before `until` to a run.
    fn add(&self, run: &mut Run, message: &Message<'_>, until: u64) {
        let offset = message.offset;
        if offset >= until {
            // The offset alone may be one that a publisher has forged.
            let past = self.history.look();
            run.is_complete = offset == until && past.may_have_at(until, &message.delivery);
            return;
        }
        let (delivery, is_update) = (&message.delivery, !message.is_marker);
        let entry = self.history.earlier(offset, delivery, is_update);
        run.add(entry, self.history.room());
    }

    /// Counts a connection that ended too early.
    async fn failed(&mut self, error: LinkError) -> Result<(), LinkError> {
        self.failures += 1;
        if self.failures > MAX_FAILURES {
            return Err(error);
        }
        debug!(%error, "RabbitMQ stream not read back yet");
        sleep(PAUSE).await;
        Ok(())
    }

    /// Hands messages to `take` over a connection of its own, until it returns `false`.
    async fn consume(
        &self,
        from: From,
        mut take: impl FnMut(Message<'_>) -> bool,
    ) -> Result<(), LinkError> {
        let config = &self.shared.config;
        let name = format!("chat3-gateway history {}", self.shared.instance);
        let (connection, _keep) = Watched::open(config, &name).await?;
        let ended = async {
            let on = connection.open_channel().await?;
            let channel = on.channel.clone();
            let offset = match from {
                From::Offset(offset) => FieldValue::l(offset.try_into().unwrap_or(i64::MAX)),
                From::Time(time) => {
                    let since = time.duration_since(SystemTime::UNIX_EPOCH);
                    FieldValue::T(since.unwrap_or_default().as_secs())
                }
            };
            let consume = super::consumption(&config.stream, TAG, offset);
            let consuming = async move {
                barrier(&channel, PREFETCH).await?;
                let (_, messages) = channel.basic_consume_rx(consume).await?;
                Ok(messages)
            };
            let mut messages = on.ask(SILENCE, consuming).await?;
            let mut count = 0;
            loop {
                let message = match timeout(SILENCE, messages.recv()).await {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        // The cause is known when the connection is gone.
                        let _ = timeout(SILENCE, connection.lost.cancelled()).await;
                        let broke = Error::InternalChannelError("the connection broke".to_owned());
                        return Err(connection
                            .unreadable()
                            .unwrap_or_else(|| on.refusal_or(broke)));
                    }
                    Err(_) => return Err(LinkError::Timeout(SILENCE)),
                };
                count += 1;
                let tag = message.deliver.as_ref().map(amqprs::Deliver::delivery_tag);
                if let Some(message) = parse(&message, self.markers)
                    && !take(message)
                {
                    // RabbitMQ 3.10 goes on counting a consumer that was not cancelled.
                    let (channel, cancel) = (on.channel.clone(), BasicCancelArguments::new(TAG));
                    let cancel = async move { channel.basic_cancel(cancel).await.map(drop) };
                    let _ = on.ask(CLOSE_TIMEOUT, cancel).await;
                    return Ok(());
                }
                if count % usize::from(PREFETCH / 4) == 0
                    && let Some(tag) = tag
                {
                    let ack = BasicAckArguments::new(tag, true);
                    on.channel.basic_ack(ack).await?;
                }
                if count % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        .await;
        // Nobody waits: a connection that is lost takes its time.
        drop(connection.close(CLOSE_TIMEOUT));
        ended
    }
}

impl Run {
    /// Adds a message, and drops the oldest beyond `most` bytes.
    fn add(&mut self, entry: Entry, most: usize) {
        self.bytes += entry.bytes();
        self.messages.push_back(entry);
        while self.bytes > most
            && let Some(oldest) = self.messages.pop_front()
        {
            self.is_cut = true;
            self.bytes -= oldest.bytes();
        }
    }
}
