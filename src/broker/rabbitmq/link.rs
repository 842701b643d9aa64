//! One connection to the broker, from its opening to its loss: an event loop that brings
//! the actual state in line with the desired one (`reconciler`), a round at a time.
//!
//! Owns which event is handled first: the loss of the connection, deleted queues, a
//! missing exchange, the next round.
//!
//! The next round begins when the one before has been answered, which keeps the
//! operations on one user in order.

use std::{future::ready, sync::Arc, time::Duration};

use amqprs::channel::ExchangeDeclareArguments;
use indexmap::IndexSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tracing::info;

use super::{
    channels::Channels,
    exchange_probe::{self, ExchangeProbe, Question},
    link_error::{LinkError, NOT_FOUND},
    reconciler::{Reconciler, Round},
    shared::Shared,
    topology::{self, Reader},
};
use crate::{config::AmqpUrl, user::User};

/// How often a long resubscription reports in the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How often a missing exchange is tried again. Users wait for it, so it is short.
const EXCHANGE_RETRY: Duration = Duration::from_secs(2);

pub(super) struct Link {
    shared: Arc<Shared>,
    channels: Channels,
    reconciler: Reconciler<Channels>,
    probe: ExchangeProbe,
}

/// What follows a round.
#[derive(PartialEq)]
enum Next {
    Continue,
    AwaitChange,
    AwaitExchange,
}

/// How a link ended.
pub(super) enum Ended {
    /// The service is closing.
    Stopped,
    Lost {
        reason: LinkError,
        /// The refused users, if their refusals used up the connection's channels. The next
        /// link does not try them at once.
        refused: IndexSet<User>,
    },
}

impl Link {
    /// Connects and opens the channels. `refused` are users of whom it is known that the
    /// broker refuses them.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "rabbitmq_connect", skip_all, fields(otel.kind = "client", epoch)))]
    pub(super) async fn open(
        shared: &Arc<Shared>,
        epoch: u64,
        refused: &IndexSet<User>,
        reader: Option<&Arc<Reader>>,
    ) -> Result<Self, LinkError> {
        let limit = shared.config.connect_timeout;
        let channels = timeout(limit, Channels::open(shared))
            .await
            .unwrap_or(Err(LinkError::Timeout(limit)))?;
        Ok(Self {
            channels,
            reconciler: Reconciler::new(
                shared.clone(),
                topology::new(shared, epoch, reader),
                refused.clone(),
            ),
            probe: ExchangeProbe::new(),
            shared: shared.clone(),
        })
    }

    /// The node that the link is connected to.
    pub(super) fn node(&self) -> &AmqpUrl {
        &self.channels.connection.node
    }

    /// Keeps the actual state in line with the desired one until the link is lost.
    ///
    /// One round of changes at a time: users who come and go without end, and are
    /// perhaps refused, keep nothing else waiting.
    pub(super) async fn run(&mut self) -> Ended {
        let shared = self.shared.clone();
        let mut probe = interval(exchange_probe::INTERVAL);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        probe.reset();
        let mut report_at = None;
        loop {
            let next = match self.reconciler.round(&self.channels).await {
                Ok(Round::Applied) => Next::Continue,
                Ok(Round::NothingToDo) => Next::AwaitChange,
                Err(LinkError::Closed(close)) if close.code == NOT_FOUND => Next::AwaitExchange,
                Err(error) => return self.ended(error),
            };
            if next == Next::Continue {
                self.report_progress(report_at.get_or_insert_with(in_a_while));
            } else {
                report_at = None;
            }
            let retry_at = self.reconciler.retry_at();
            let tidy_at = self.reconciler.tidy_at();
            let due =
                async |at: Option<Instant>| sleep_until(at.unwrap_or_else(Instant::now)).await;
            tokio::select! {
                // Rare events come first.
                biased;
                () = self.channels.connection.lost.cancelled() => return self.ended(self.channels.loss()),
                () = shared.stop_consuming.cancelled() => return Ended::Stopped,
                Some(queue) = self.channels.cancelled.recv() => {
                    self.reconciler.forget_queue(&queue);
                    // Each round deletes many queues of our own.
                    while let Ok(queue) = self.channels.cancelled.try_recv() {
                        self.reconciler.forget_queue(&queue);
                    }
                }
                _ = probe.tick() => {
                    if let Err(error) = self.probe_exchange().await {
                        return self.ended(error);
                    }
                }
                () = due(retry_at), if retry_at.is_some() => self.reconciler.retry(),
                () = due(tidy_at), if tidy_at.is_some() => {
                    if let Err(error) = self.reconciler.tidy(&self.channels).await {
                        return self.ended(error);
                    }
                }
                () = ready(()), if next == Next::Continue => {}
                () = shared.desired.changed(), if next == Next::AwaitChange => {}
                () = sleep(EXCHANGE_RETRY), if next == Next::AwaitExchange => {}
            }
        }
    }

    fn ended(&mut self, error: LinkError) -> Ended {
        let reason = self.channels.loss_or(error);
        let refused = match reason {
            LinkError::Worn => self.reconciler.take_refused(),
            _ => IndexSet::new(),
        };
        Ended::Lost { reason, refused }
    }

    fn report_progress(&self, at: &mut Instant) {
        if Instant::now() < *at {
            return;
        }
        *at = in_a_while();
        let (subscribed, to_do) = (self.reconciler.count(), self.shared.desired.pending());
        info!(subscribed, to_do, "RabbitMQ subscriptions in progress");
    }

    /// Asks for the exchange, which does not report its loss.
    async fn probe_exchange(&mut self) -> Result<(), LinkError> {
        let Some(bind) = self.reconciler.a_binding() else {
            return Ok(());
        };
        let Some(question) = self.probe.question(Instant::now()) else {
            return Ok(());
        };
        let declare = ExchangeDeclareArguments::new(&self.shared.config.exchange, "topic")
            .passive(true)
            .finish();
        let ask = |channel: amqprs::channel::Channel| async move {
            match question {
                Question::Bind => channel.queue_bind(bind).await,
                Question::Declare => channel.exchange_declare(declare).await,
            }
        };
        match self.channels.on_admin(0, ask).await? {
            Ok(()) => Ok(()),
            Err(close) => {
                let refused = self.probe.refused(close, Instant::now());
                refused.map_err(LinkError::Closed)
            }
        }
    }

    /// Ends all consumers, after which nothing more is received.
    pub(super) async fn stop_consuming(&mut self) {
        self.channels.stop_consuming().await;
    }

    /// The consumers that have not yet handed off everything they received.
    pub(super) fn handing_off(&self) -> TaskTracker {
        self.channels.handing_off()
    }

    /// Closes the connection.
    pub(super) async fn close(self) {
        self.channels.close().await;
    }
}

/// When to report progress the next time.
fn in_a_while() -> Instant {
    Instant::now() + PROGRESS_EVERY
}
