//! The fact about one connection: kept in line with the wishes until it is lost.
//!
//! Owns what holds in every topology: in which order changes are applied, what
//! becomes of users whom the broker refuses, of a missing exchange, of deleted
//! queues. How a user is subscribed is the `Topology`'s.
//!
//! The next round of changes begins when the one before has been answered, which
//! keeps the operations on one user in order.

use std::{collections::HashMap, future::ready, sync::Arc, time::Duration};

use amqprs::channel::ExchangeDeclareArguments;
use indexmap::IndexSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{
    Shared, Wish,
    channels::Channels,
    connection::{LinkError, NOT_FOUND, ServerClose},
    topology::{self, Topology},
};
use crate::{config::AmqpUrl, user::User};

/// How often a long resubscription reports in the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How often a missing exchange is looked for. Users wait for it, so it is short.
const EXCHANGE_RETRY: Duration = Duration::from_secs(2);

/// How often it is looked whether the exchange still exists.
const EXCHANGE_PROBE: Duration = Duration::from_secs(5);

/// How long the exchange is not looked for when neither way is permitted.
const PROBE_RETRY: Duration = Duration::from_secs(600);

/// How long refused subscriptions rest. Only an operator can mend them.
pub(super) const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// How long at most, when those who try it are refused again and again.
const MAX_REFUSED_RETRY: Duration = Duration::from_secs(120);

/// If as many users are refused and none gets through, the others wait untried.
const TRIES_FOR_ALL: usize = 16;

pub(super) struct Link {
    channels: Channels,
    topology: Box<dyn Topology>,
    /// Users whose subscription the broker refused, the longest waiting first. They
    /// stay when they leave: one who comes back every second is not tried as often.
    parked: IndexSet<User>,
    /// When the next of them is tried.
    retry_at: Instant,
    /// Grows while those who are tried are refused again.
    retry_pause: Duration,
    retries: usize,
    /// One of them who is being tried.
    retried: Option<User>,
    warned_of_missing_exchange: bool,
    probe: Probe,
}

/// How it is looked whether the exchange still exists. What is not permitted would
/// cost a channel each time.
#[derive(Clone, Copy)]
enum Probe {
    /// A binding is made once more: what the gateway has the rights for.
    Bind,
    /// The exchange is declared passively, for which some versions want more rights.
    Look,
    /// It is not asked for a while, since then.
    Refused(Instant),
}

/// What follows a round of changes.
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
    Lost(LinkError),
    /// Refusals have used up the connection's channels; by these users.
    Worn(IndexSet<User>),
}

impl Link {
    /// Connects and opens the channels. Users of whom it is known that the broker
    /// refuses them are not tried at once.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "rabbitmq_connect", skip_all, fields(otel.kind = "client", epoch)))]
    pub(super) async fn open(
        shared: &Arc<Shared>,
        epoch: u64,
        refused: &IndexSet<User>,
    ) -> Result<Self, LinkError> {
        let open = Channels::open(shared, epoch);
        let limit = shared.config.connect_timeout;
        let channels = timeout(limit, open)
            .await
            .unwrap_or(Err(LinkError::Timeout(limit)))?;
        Ok(Self {
            channels,
            topology: topology::new(shared, epoch),
            parked: refused.clone(),
            retry_at: Instant::now() + REFUSED_RETRY,
            retry_pause: REFUSED_RETRY,
            retries: 0,
            retried: None,
            warned_of_missing_exchange: false,
            probe: Probe::Bind,
        })
    }

    /// The node that the link is connected to.
    pub(super) fn node(&self) -> &AmqpUrl {
        &self.channels.node
    }

    /// Keeps the broker's state in line with the wishes until the link is lost.
    ///
    /// One round of changes at a time: users who come and go without end, and are
    /// refused perhaps, keep nothing else waiting.
    pub(super) async fn run(&mut self, shared: &Arc<Shared>) -> Ended {
        let mut probe = interval(EXCHANGE_PROBE);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        probe.reset();
        let mut report_at = None;
        loop {
            let next = match self.apply_round(shared).await {
                Ok(next) => next,
                Err(LinkError::Closed(close)) if close.code == NOT_FOUND => Next::AwaitExchange,
                Err(error) => return self.ended(error),
            };
            if next == Next::Continue {
                self.report_progress(shared, report_at.get_or_insert_with(in_a_while));
            } else {
                report_at = None;
            }
            let retry_at = (!self.parked.is_empty()).then_some(self.retry_at);
            let tidy_at = self.topology.tidy_at();
            let due =
                async |at: Option<Instant>| sleep_until(at.unwrap_or_else(Instant::now)).await;
            tokio::select! {
                // What is rare comes first.
                biased;
                () = self.channels.lost.cancelled() => return Ended::Lost(self.channels.loss()),
                () = shared.stop_consuming.cancelled() => return Ended::Stopped,
                Some(queue) = self.channels.cancelled.recv() => {
                    self.forget_queue(shared, &queue);
                    // Of our own deletes, there are many in each round.
                    while let Ok(queue) = self.channels.cancelled.try_recv() {
                        self.forget_queue(shared, &queue);
                    }
                }
                _ = probe.tick() => {
                    let probed = match self.probe_exchange(shared).await {
                        Ok(()) => self.channels.mend_control(shared).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = probed {
                        return self.ended(error);
                    }
                }
                () = due(retry_at), if retry_at.is_some() => self.unpark(shared),
                () = due(tidy_at), if tidy_at.is_some() => {
                    if let Err(error) = self.topology.tidy(&mut self.channels).await {
                        return self.ended(error);
                    }
                }
                () = ready(()), if next == Next::Continue => {}
                () = shared.changed.notified(), if next == Next::AwaitChange => {}
                () = sleep(EXCHANGE_RETRY), if next == Next::AwaitExchange => {}
            }
        }
    }

    fn ended(&mut self, error: LinkError) -> Ended {
        match self.channels.loss_or(error) {
            LinkError::Worn => Ended::Worn(std::mem::take(&mut self.parked)),
            error => Ended::Lost(error),
        }
    }

    async fn apply_round(&mut self, shared: &Shared) -> Result<Next, LinkError> {
        if let Err(error) = self.topology.prepare(&mut self.channels).await {
            return Err(self.explain(shared, error));
        }
        // While nothing is known to work, one user tries it for all.
        let limit = match self.topology.users_count() {
            0 if self.parked.len() < TRIES_FOR_ALL => 1,
            _ => self.topology.round(),
        };
        let changes = shared.take_changes(limit);
        if changes.is_empty() {
            return Ok(Next::AwaitChange);
        }
        let users: Vec<User> = changes.iter().map(|(user, _)| user.clone()).collect();
        if let Err(error) = self.apply(shared, changes).await {
            shared.return_changes(users);
            return Err(error);
        }
        let retried = self.retried.take_if(|user| users.contains(user));
        if retried.is_some_and(|user| self.topology.serial(&user).is_some()) {
            // What refused one may have refused all.
            self.retry_pause = REFUSED_RETRY;
            shared.return_changes(self.parked.drain(..).collect());
        }
        Ok(Next::Continue)
    }

    fn report_progress(&self, shared: &Shared, at: &mut Instant) {
        if Instant::now() < *at {
            return;
        }
        *at = in_a_while();
        let (subscribed, to_do) = (self.topology.users_count(), shared.changes_count());
        info!(subscribed, to_do, "RabbitMQ subscriptions in progress");
    }

    /// Brings the given users to the state that is wished. Applying a change
    /// twice, or one that is already true, does nothing.
    async fn apply(
        &mut self,
        shared: &Shared,
        changes: Vec<(User, Option<Wish>)>,
    ) -> Result<(), LinkError> {
        let none_gets_through =
            self.topology.users_count() == 0 && self.parked.len() >= TRIES_FOR_ALL;
        let mut missing: HashMap<User, Wish> = HashMap::new();
        let mut outdated = Vec::new();
        for (user, wish) in changes {
            let active_serial = self.topology.serial(&user);
            let wished_serial = wish.as_ref().map(|wish| wish.serial);
            if active_serial == wished_serial || self.parked.contains(&user) {
                continue;
            }
            if none_gets_through && self.retried.as_ref() != Some(&user) {
                self.park(user);
                continue;
            }
            if active_serial.is_some() {
                outdated.push(user.clone());
            }
            if let Some(wish) = wish {
                missing.insert(user, wish);
            }
        }
        self.topology
            .unsubscribe(&mut self.channels, outdated)
            .await?;
        self.subscribe(shared, missing.into_iter().collect()).await
    }

    /// Subscribes all at once, or, where the broker refuses something, one by one:
    /// a user who is refused waits alone.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "subscribe", skip_all, fields(otel.kind = "client", users = wishes.len())))]
    async fn subscribe(
        &mut self,
        shared: &Shared,
        wishes: Vec<(User, Wish)>,
    ) -> Result<(), LinkError> {
        let refused = self.topology.subscribe(&mut self.channels, wishes).await?;
        for (batch, close) in refused {
            if let Some(queue) = close.missing_queue() {
                self.forget_queue(shared, queue);
                shared.return_changes(batch.into_iter().map(|(user, _)| user).collect());
                continue;
            }
            if close.code == NOT_FOUND {
                return Err(self.explain(shared, LinkError::Closed(close)));
            }
            if batch.len() > 1 {
                for wish in batch {
                    Box::pin(self.subscribe(shared, vec![wish])).await?;
                }
                continue;
            }
            if batch
                .iter()
                .any(|(user, _)| self.topology.do_without(user, &close))
            {
                Box::pin(self.subscribe(shared, batch)).await?;
                continue;
            }
            let error = LinkError::Closed(close);
            for (user, _) in batch {
                shared.metrics.subscriptions_refused.inc();
                warn!(user_id = %user.id, %error, "RabbitMQ refused a subscription");
                self.park(user);
            }
        }
        Ok(())
    }

    /// If a bind said that the exchange does not exist: what that means.
    fn explain(&mut self, shared: &Shared, error: LinkError) -> LinkError {
        let LinkError::Closed(
            close @ ServerClose {
                code: NOT_FOUND, ..
            },
        ) = error
        else {
            return error;
        };
        if self.topology.a_binding().is_some() {
            // Bindings go with their exchange, unannounced: all queues are deaf.
            return LinkError::Amqp(close.to_string());
        }
        if !std::mem::replace(&mut self.warned_of_missing_exchange, true) {
            warn!(
                exchange = shared.config.exchange, reason = %close,
                "RabbitMQ exchange not found; updates will flow when Chat3 has created it"
            );
        }
        LinkError::Closed(close)
    }

    fn park(&mut self, user: User) {
        if self.parked.is_empty() && self.retried.is_none() {
            self.retry_pause = REFUSED_RETRY;
            self.retry_at = Instant::now() + self.retry_pause;
        }
        self.parked.insert(user);
    }

    /// Takes up again one of the users who were refused. One at a time: each further
    /// refusal costs a channel, of which a connection has a limited number.
    fn unpark(&mut self, shared: &Shared) {
        self.parked.retain(|user| shared.is_wished(user));
        // The longest waiting and the last in turn: that one may not have been tried.
        self.retries += 1;
        let user = match self.retries % 2 {
            1 => self.parked.shift_remove_index(0),
            _ => self.parked.pop(),
        };
        if let Some(user) = user {
            self.retried = Some(user.clone());
            shared.return_changes(vec![user]);
        }
        self.retry_at = Instant::now() + self.retry_pause;
        self.retry_pause = (self.retry_pause * 2).min(MAX_REFUSED_RETRY);
    }

    /// Asks the broker for the exchange. Bindings go with it, and nothing else would
    /// tell: one who is bound waits for ever.
    async fn probe_exchange(&mut self, shared: &Shared) -> Result<(), LinkError> {
        let Some(bind) = self.topology.a_binding() else {
            return Ok(());
        };
        let admin = &self.channels.admins[0];
        let channel = admin.channel.clone();
        let asked = match self.probe {
            Probe::Refused(since) if since.elapsed() < PROBE_RETRY => return Ok(()),
            Probe::Bind | Probe::Refused(_) => {
                let bind = async move { channel.queue_bind(bind).await };
                self.channels.rpc(admin, bind).await
            }
            Probe::Look => {
                let look = ExchangeDeclareArguments::new(&shared.config.exchange, "topic")
                    .passive(true)
                    .finish();
                let look = async move { channel.exchange_declare(look).await };
                self.channels.rpc(admin, look).await
            }
        };
        match asked {
            // Its consumer's end tells the rest.
            Err(LinkError::Closed(close)) if close.missing_queue().is_some() => {
                self.channels.reopen_admin(0).await
            }
            // A permission was withdrawn, from newcomers: who is bound stays so.
            Err(LinkError::Closed(close))
                if close.code != NOT_FOUND && !self.channels.lost.is_cancelled() =>
            {
                self.probe = match self.probe {
                    Probe::Bind => Probe::Look,
                    Probe::Look | Probe::Refused(_) => Probe::Refused(Instant::now()),
                };
                self.channels.reopen_admin(0).await
            }
            other => other,
        }
    }

    /// A queue was deleted. If that was not our wish: its users are subscribed anew.
    fn forget_queue(&mut self, shared: &Shared, queue: &str) {
        let users = self.topology.forget(queue);
        if !users.is_empty() {
            warn!(
                queue,
                users = users.len(),
                "RabbitMQ deleted a queue; subscribing its users anew"
            );
        }
        for user in &users {
            shared.deactivate(user);
        }
        shared.return_changes(users);
    }

    /// Ends all consumers, after which nothing more is received.
    pub(super) async fn stop_consuming(&mut self) {
        self.channels.stop_consuming().await;
    }

    /// The consumers that have not handed off all they received.
    pub(super) fn handing_off(&self) -> TaskTracker {
        self.channels.handing_off()
    }

    /// Says goodbye to the broker.
    pub(super) async fn close(self) {
        self.channels.close().await;
    }
}

/// When to report progress the next time.
fn in_a_while() -> Instant {
    Instant::now() + PROGRESS_EVERY
}
