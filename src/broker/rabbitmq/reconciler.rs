//! Brings the actual state of one connection in line with the desired one, a round of
//! changes at a time.
//!
//! Owns what holds in every topology: in which order changes are applied, and what
//! becomes of users whom the broker refuses, of a missing exchange, of deleted queues.
//! How a user is subscribed is the topology's business.
//!
//! Invariant: a change that was taken is applied, or given back, or its user waits among
//! the refused.

use std::{collections::HashMap, sync::Arc};

use amqprs::channel::QueueBindArguments;
use indexmap::IndexSet;
use tokio::time::Instant;
use tracing::warn;

use super::{
    connection::{LinkError, NOT_FOUND, ServerClose},
    desired::{Change, Subscription},
    refused::Refused,
    shared::Shared,
    topology::Topology,
};
use crate::user::User;

pub(super) struct Reconciler<C> {
    shared: Arc<Shared>,
    topology: Box<dyn Topology<C>>,
    refused: Refused,
    warned_of_missing_exchange: bool,
}

/// What a round has found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Round {
    Applied,
    NothingToDo,
}

impl<C: Sync> Reconciler<C> {
    /// `refused` were refused on the connection before.
    pub(super) fn new(
        shared: Arc<Shared>,
        topology: Box<dyn Topology<C>>,
        refused: IndexSet<User>,
    ) -> Self {
        Self {
            shared,
            topology,
            refused: Refused::new(refused, Instant::now()),
            warned_of_missing_exchange: false,
        }
    }

    /// Applies some of the changes that are pending. An error 404 means that the exchange
    /// is missing and nobody is subscribed; any other, that the link is lost.
    pub(super) async fn round(&mut self, channels: &C) -> Result<Round, LinkError> {
        if let Err(error) = self.topology.prepare(channels).await {
            return Err(self.explain(error));
        }
        let (subscribed, round) = (self.topology.count(), self.topology.round());
        let changes = self
            .shared
            .desired
            .take(self.refused.limit(subscribed, round));
        if changes.is_empty() {
            return Ok(Round::NothingToDo);
        }
        let users: Vec<User> = changes.iter().map(|change| change.user.clone()).collect();
        if let Err(error) = self.apply(channels, changes).await {
            self.shared.desired.give_back(users);
            return Err(error);
        }
        let is_subscribed = |user: &User| self.topology.serial(user).is_some();
        let released = self.refused.conclude(&users, is_subscribed);
        self.shared.desired.give_back(released);
        Ok(Round::Applied)
    }

    /// Brings users to the desired state. Applying a change twice, or one that is
    /// already true, does nothing.
    async fn apply(&mut self, channels: &C, changes: Vec<Change>) -> Result<(), LinkError> {
        let subscribed = self.topology.count();
        let mut missing: HashMap<User, Subscription> = HashMap::new();
        let mut outdated = Vec::new();
        for Change { user, desired } in changes {
            let actual_serial = self.topology.serial(&user);
            let desired_serial = desired.as_ref().map(|desired| desired.serial);
            if actual_serial == desired_serial || self.refused.holds(&user, subscribed) {
                continue;
            }
            if actual_serial.is_some() {
                outdated.push(user.clone());
            }
            if let Some(desired) = desired {
                missing.insert(user, desired);
            }
        }
        self.topology.unsubscribe(channels, outdated).await?;
        self.subscribe(channels, missing.into_iter().collect())
            .await
    }

    /// Subscribes all at once, or, where the broker refuses something, one by one:
    /// a user who is refused waits alone.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "subscribe", skip_all, fields(otel.kind = "client", users = users.len())))]
    async fn subscribe(
        &mut self,
        channels: &C,
        users: Vec<(User, Subscription)>,
    ) -> Result<(), LinkError> {
        let refusals = self.topology.subscribe(channels, users).await?;
        for refusal in refusals {
            let (users, close) = (refusal.users, refusal.close);
            if let Some(queue) = close.missing_queue() {
                self.forget_queue(queue);
                let users = users.into_iter().map(|(user, _)| user);
                self.shared.desired.give_back(users);
                continue;
            }
            if close.code == NOT_FOUND {
                return Err(self.explain(LinkError::Closed(close)));
            }
            if users.len() > 1 {
                for user in users {
                    Box::pin(self.subscribe(channels, vec![user])).await?;
                }
                continue;
            }
            if users
                .iter()
                .any(|(user, _)| self.topology.do_without(user, &close))
            {
                Box::pin(self.subscribe(channels, users)).await?;
                continue;
            }
            let error = LinkError::Closed(close);
            for (user, _) in users {
                self.shared.metrics.subscriptions_refused.inc();
                warn!(user_id = %user.id, %error, "RabbitMQ refused a subscription");
                self.refused.add(user, Instant::now());
            }
        }
        Ok(())
    }

    /// If a bind said that the exchange does not exist: what that means.
    fn explain(&mut self, error: LinkError) -> LinkError {
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
                exchange = self.shared.config.exchange, reason = %close,
                "RabbitMQ exchange not found; updates will flow when Chat3 has created it"
            );
        }
        LinkError::Closed(close)
    }

    /// A queue was deleted. If the topology did not do that, its users are subscribed
    /// anew.
    pub(super) fn forget_queue(&mut self, queue: &str) {
        let users = self.topology.forget(queue);
        if !users.is_empty() {
            warn!(
                queue,
                users = users.len(),
                "RabbitMQ deleted a queue; subscribing its users anew"
            );
        }
        for user in &users {
            self.shared.desired.deactivate(user);
        }
        self.shared.desired.give_back(users);
    }

    /// When a user who was refused is tried again, if there is any.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.refused.retry_at()
    }

    /// Tries one of the users who were refused.
    pub(super) fn retry(&mut self) {
        let desired = &self.shared.desired;
        let is_desired = |user: &User| desired.contains(user);
        desired.give_back(self.refused.retry(is_desired, Instant::now()));
    }

    /// Users who were refused, for the next connection to know.
    pub(super) fn take_refused(&mut self) -> IndexSet<User> {
        self.refused.take_all()
    }

    /// When there is something to [`tidy`](Self::tidy).
    pub(super) fn tidy_at(&self) -> Option<Instant> {
        self.topology.tidy_at()
    }

    /// Removes some of what is of no use any more.
    pub(super) async fn tidy(&mut self, channels: &C) -> Result<(), LinkError> {
        self.topology.tidy(channels).await
    }

    /// How many users are subscribed.
    pub(super) fn count(&self) -> usize {
        self.topology.count()
    }

    /// One of the bindings that exist.
    pub(super) fn a_binding(&self) -> Option<QueueBindArguments> {
        self.topology.a_binding()
    }
}
