//! Opens what is to be consumed from: the stream, if RabbitMQ lets it, or else a queue; and
//! looks whether it is still bound.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{
    super::{
        super::{
            link_error::{LinkError, ServerClose},
            outbox::Outbox,
            place::End,
            shared::Shared,
        },
        sources,
        wire::{Consumer, Wire},
    },
    Listener, Sources,
};

/// The wait before what RabbitMQ refuses is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));

/// A connection that follows a loss this soon may step over unreadable messages. Longer than
/// the longest pause between connections.
const AT_ONCE: Duration = Duration::from_secs(120);

/// How often RabbitMQ refused something in a row, and when to try again.
#[derive(Default)]
pub(super) struct Refusals {
    count: u32,
    pub(super) again_at: Option<Instant>,
    is_reported: bool,
}

impl Refusals {
    pub(super) fn note(&mut self) {
        let wait = RETRY.0.saturating_mul(1 << self.count.min(16));
        self.again_at = Some(Instant::now() + wait.min(RETRY.1));
        self.count += 1;
    }

    /// It will be refused for a while.
    pub(super) fn rest(&mut self) {
        self.again_at = Some(Instant::now() + RETRY.1);
    }

    fn are_due(&self) -> bool {
        self.again_at.is_none_or(|at| at <= Instant::now())
    }
}

/// The stream, attached.
pub(super) struct Attachment {
    pub(super) consumer: Consumer,
    pub(super) marker: String,
    /// Of the marker.
    pub(super) publishing: Option<AbortOnDropHandle<()>>,
    pub(super) begun: Instant,
    /// Until the end, as of the attachment, is reached.
    pub(super) is_reading: bool,
    /// Since when orders are news.
    pub(super) since: SystemTime,
    pub(super) orders: u64,
    pub(super) heard_at: Instant,
}

impl Listener {
    /// Opens what should be open and is not.
    pub(super) async fn open(
        &mut self,
        wire: &mut Wire,
        epoch: u64,
        sources: &mut Sources,
    ) -> Result<(), LinkError> {
        if sources.stream.is_some() || sources.awaits_handler {
            return Ok(());
        }
        let config = &self.shared.config;
        let wants_stream = config.keeps_orders() && self.stream_refusals.are_due();
        if sources.queue.is_some() && !wants_stream {
            return Ok(());
        }
        if sources.queue.is_none() {
            if !self.refusals.are_due() {
                return Ok(());
            }
            let exchange = config.control_exchange.clone();
            if let Err(close) = sources::declare_exchange(wire, &exchange).await? {
                self.refused(&close);
                return Ok(());
            }
        }
        if wants_stream {
            // What ends the connection is no reason to try again at once, either.
            self.stream_refusals.note();
            match self.attach(wire, epoch, sources).await? {
                Ok(()) => {
                    self.refusals = Refusals::default();
                    self.shared.set_control_connected(true);
                    return Ok(());
                }
                Err(close) => self.stream_refused(&close),
            }
        }
        if sources.queue.is_none() {
            self.attachments += 1;
            let name = format!(
                "chat3-gateway.{}.{epoch}.control{}",
                self.shared.instance, self.attachments
            );
            match sources::consume_queue(wire, &self.shared.config, &name).await? {
                Ok(consumer) => {
                    sources.queue = Some(consumer);
                    self.heard_elsewhere = true;
                    self.refusals = Refusals::default();
                    self.shared.set_control_connected(true);
                }
                Err(close) => self.refused(&close),
            }
        }
        self.shared.reading_orders.send_replace(false);
        Ok(())
    }

    pub(super) fn refused(&mut self, reason: &ServerClose) {
        warn!(%reason, "RabbitMQ control exchange not usable: orders do not reach other instances");
        self.refusals.note();
        self.shared.set_control_connected(false);
        self.shared.reading_orders.send_replace(false);
    }

    pub(super) fn stream_refused(&mut self, reason: &dyn fmt::Display) {
        let stream = &self.shared.config.control_stream;
        if std::mem::replace(&mut self.stream_refusals.is_reported, true) {
            debug!(stream, %reason, "RabbitMQ control stream still not usable");
            return;
        }
        warn!(
            stream, %reason,
            "RabbitMQ control stream not usable: orders are not kept for instances that are away or \
             start later; it is tried again"
        );
    }

    /// Attaches the stream at the reader's place.
    pub(super) async fn attach(
        &mut self,
        wire: &mut Wire,
        epoch: u64,
        sources: &mut Sources,
    ) -> Result<Result<(), ServerClose>, LinkError> {
        let renews = std::mem::take(&mut self.renews);
        let config = &self.shared.config;
        if let Err(close) = sources::declare_stream(wire, config).await? {
            return Ok(Err(close));
        }
        if !self.shared.are_broadcasts_handled() {
            let bound = sources::bind_stream(wire, config).await?;
            sources.awaits_handler = bound.is_ok();
            if sources.awaits_handler {
                self.stream_refusals.again_at = None;
            }
            return Ok(bound);
        }
        if !renews {
            self.shared.reading_orders.send_replace(true);
        }
        let at_once = self.lost_at.is_none_or(|at| at.elapsed() < AT_ONCE);
        let start = self.place.attach(at_once);
        self.attachments += 1;
        let tag = format!(
            "chat3-gateway.{}.{epoch}.orders{}",
            self.shared.instance, self.attachments
        );
        debug!(?start, "RabbitMQ control stream attached");
        sources.is_attaching = true;
        let attached = sources::consume_stream(wire, config, &tag, start).await?;
        sources.is_attaching = false;
        let consumer = match attached {
            Ok(consumer) => consumer,
            Err(close) => return Ok(Err(close)),
        };
        // What ends the connection from now on may be a message.
        self.stream_refusals.again_at = None;
        let is_known = self.place.is_known() && !self.heard_elsewhere;
        let now = Instant::now();
        let stream = sources.stream.insert(Attachment {
            consumer,
            marker: self.attachments.to_string(),
            publishing: None,
            begun: now,
            is_reading: true,
            since: match is_known {
                true => SystemTime::UNIX_EPOCH,
                false => self.heard_until,
            },
            orders: 0,
            heard_at: now,
        });
        // Only what is a stream, which the consumer has proved.
        if let Err(close) = sources::bind_stream(wire, &self.shared.config).await? {
            self.leave_stream(sources, End::Released);
            self.stream_refusals.note();
            return Ok(Err(close));
        }
        stream.publishing = Some(publish(&self.shared, &self.outbox, stream.marker.clone()));
        Ok(Ok(()))
    }

    /// Ends the consumer of the stream; it is attached again at once.
    pub(super) fn leave_stream(&mut self, sources: &mut Sources, end: End) {
        if let Some(stream) = sources.stream.take() {
            self.place.lose(end);
            drop(stream.consumer.close());
            self.shared.metrics.control_stream.set(0);
        }
        self.stream_refusals.again_at = None;
    }

    /// Binds once more: an instance that gets no orders must not report that it does. If the
    /// exchange was made anew, this binding is the remedy.
    pub(super) async fn mend(
        &mut self,
        wire: &mut Wire,
        sources: &mut Sources,
    ) -> Result<(), LinkError> {
        let config = &self.shared.config;
        let bound_is = match (&sources.stream, &sources.queue) {
            (Some(_), _) => config.control_stream.clone(),
            (None, _) if sources.awaits_handler => config.control_stream.clone(),
            (None, Some(queue)) => queue.tag.clone(),
            (None, None) => return Ok(()),
        };
        match sources::bind(wire, &bound_is, &config.control_exchange).await? {
            Ok(()) => {
                let is_reading = sources.stream.as_ref().is_some_and(|it| it.is_reading);
                if !is_reading && !sources.awaits_handler {
                    self.heard_until = SystemTime::now();
                }
            }
            Err(reason) => {
                warn!(%reason, "RabbitMQ control channel lost: orders of the last moments may be missing");
                self.leave_stream(sources, End::Released);
                if let Some(queue) = sources.queue.take() {
                    drop(queue.close());
                }
                sources.awaits_handler = false;
                self.shared.set_control_connected(false);
            }
        }
        Ok(())
    }
}

/// Publishes a marker, in a task.
fn publish(shared: &Arc<Shared>, outbox: &Arc<Outbox>, marker: String) -> AbortOnDropHandle<()> {
    let (shared, outbox) = (shared.clone(), outbox.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let exchange = sources::markers(&shared.config);
        let body = marker.into();
        let published = outbox.publish(&exchange, &shared.instance, "text/plain", body);
        if let Err(error) = published.await {
            warn!(%error, "RabbitMQ does not take a marker for the stream of orders: its end shows by silence");
        }
    }))
}
