//! Brings the actual state of one connection in line with the desired one, a round of
//! changes at a time.
//!
//! Owns what holds in every topology: in which order changes are applied, and what the
//! broker's refusals of a bind or a declare mean. A 404 means that the exchange is missing
//! or that a queue was deleted; after any other refusal the user waits (`refused`). How a
//! user is subscribed is the topology's business.
//!
//! Invariant: a change that was taken is applied, or given back, or its user waits among
//! the refused.

use std::{collections::HashMap, sync::Arc};

use amqprs::channel::QueueBindArguments;
use indexmap::IndexSet;
use tokio::time::Instant;
use tracing::warn;

use super::{
    desired::{Change, Subscription},
    link_error::{LinkError, NOT_FOUND, ServerClose},
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
    warned_of_stream: bool,
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
            warned_of_stream: false,
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

    /// Brings users to the desired state. A change that is already applied has no effect.
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

    /// Subscribes users together, or, where the broker refuses, one by one: only the users
    /// who are refused wait.
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

    /// Interprets an error which says that the exchange does not exist, or the stream is not up.
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
            // Bindings are deleted with their exchange, without notice: no queue gets updates.
            return LinkError::Amqp(close.to_string());
        }
        if close.is_of_a_queue_that_is_down() {
            if !std::mem::replace(&mut self.warned_of_stream, true) {
                warn!(reason = %close, "RabbitMQ stream is not up; updates will flow when it is");
            }
        } else if !std::mem::replace(&mut self.warned_of_missing_exchange, true) {
            warn!(
                exchange = self.shared.config.exchange, reason = %close,
                "RabbitMQ exchange not found; updates will flow when Chat3 has created it"
            );
        }
        LinkError::Closed(close)
    }

    /// Notes that a queue was deleted. Unless the topology did that, its users are
    /// subscribed again.
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

    /// When to [`tidy`](Self::tidy), if there is anything to remove.
    pub(super) fn tidy_at(&self) -> Option<Instant> {
        self.topology.tidy_at()
    }

    /// Removes some queues or bindings that are no longer needed.
    pub(super) async fn tidy(&mut self, channels: &C) -> Result<(), LinkError> {
        self.topology.tidy(channels).await
    }

    /// How many users are subscribed.
    pub(super) fn count(&self) -> usize {
        self.topology.count()
    }

    /// A binding that exists.
    pub(super) fn a_binding(&self) -> Option<QueueBindArguments> {
        self.topology.a_binding()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, HashSet},
        sync::{Mutex, MutexGuard},
    };

    use async_trait::async_trait;
    use futures_util::FutureExt;
    use proptest::{collection::vec, prelude::*};

    use super::{super::topology::Refusal, *};
    use crate::{
        broker::Delivery, config::RabbitMqConfig, observability::metrics::Metrics, user::UserId,
    };

    fn user(id: usize) -> User {
        User {
            id: UserId::parse(&format!("u{id}")).unwrap(),
            tenant: None,
        }
    }

    fn close(code: u16, text: &str) -> ServerClose {
        ServerClose::new(code, text, (50, 20))
    }

    /// A broker in memory, which subscribes the users whom it does not refuse.
    #[derive(Default)]
    struct Memory {
        is_exchange_missing: bool,
        refused: HashSet<User>,
        subscribed: BTreeMap<String, (User, u64)>,
        tries: usize,
    }

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Memory>>);

    impl Fake {
        fn memory(&self) -> MutexGuard<'_, Memory> {
            self.0.lock().unwrap()
        }
    }

    #[async_trait]
    impl Topology<()> for Fake {
        async fn prepare(&mut self, (): &()) -> Result<(), LinkError> {
            Ok(())
        }

        async fn subscribe(
            &mut self,
            (): &(),
            mut users: Vec<(User, Subscription)>,
        ) -> Result<Vec<Refusal>, LinkError> {
            let mut memory = self.memory();
            let mut refusals = Vec::new();
            while !users.is_empty() {
                let rest = users.split_off(users.len().min(2));
                let users = std::mem::replace(&mut users, rest);
                memory.tries += 1;
                if memory.is_exchange_missing {
                    let close = close(404, "NOT_FOUND - no exchange 'x' in vhost '/'");
                    refusals.push(Refusal { users, close });
                    continue;
                }
                if users.iter().any(|(user, _)| memory.refused.contains(user)) {
                    let close = close(403, "ACCESS_REFUSED");
                    refusals.push(Refusal { users, close });
                    continue;
                }
                for (user, subscription) in users {
                    subscription.activation.activate();
                    let queue = user.id.as_str().to_owned();
                    let before = memory.subscribed.insert(queue, (user, subscription.serial));
                    assert!(
                        before.is_none(),
                        "the old queue goes before the new one comes"
                    );
                }
            }
            Ok(refusals)
        }

        async fn unsubscribe(&mut self, (): &(), users: Vec<User>) -> Result<(), LinkError> {
            let mut memory = self.memory();
            for user in users {
                let removed = memory.subscribed.remove(user.id.as_str());
                assert!(
                    removed.is_some(),
                    "each user once, and only who is subscribed"
                );
            }
            Ok(())
        }

        async fn tidy(&mut self, (): &()) -> Result<(), LinkError> {
            Ok(())
        }

        fn tidy_at(&self) -> Option<Instant> {
            None
        }

        fn forget(&mut self, queue: &str) -> Vec<User> {
            let removed = self.memory().subscribed.remove(queue);
            removed.into_iter().map(|(user, _)| user).collect()
        }

        fn serial(&self, user: &User) -> Option<u64> {
            let memory = self.memory();
            memory
                .subscribed
                .get(user.id.as_str())
                .map(|(_, serial)| *serial)
        }

        fn count(&self) -> usize {
            self.memory().subscribed.len()
        }

        fn do_without(&mut self, _: &User, _: &ServerClose) -> bool {
            false
        }

        fn a_binding(&self) -> Option<QueueBindArguments> {
            let memory = self.memory();
            let queue = memory.subscribed.keys().next()?;
            Some(QueueBindArguments::new(queue, "x", "key"))
        }

        fn round(&self) -> usize {
            4
        }
    }

    struct Bench {
        shared: Arc<Shared>,
        fake: Fake,
        reconciler: Reconciler<()>,
    }

    impl Bench {
        fn new() -> Self {
            let shared = Shared::new(RabbitMqConfig::default(), Metrics::new());
            let shared = Arc::new(shared);
            let fake = Fake::default();
            shared.desired.link_up();
            Self {
                reconciler: Self::reconciler(&shared, &fake),
                shared,
                fake,
            }
        }

        fn reconciler(shared: &Arc<Shared>, fake: &Fake) -> Reconciler<()> {
            Reconciler::new(shared.clone(), Box::new(fake.clone()), IndexSet::new())
        }

        fn reconnect(&mut self) {
            self.shared.desired.link_down();
            self.fake.memory().subscribed.clear();
            self.reconciler = Self::reconciler(&self.shared, &self.fake);
            self.shared.desired.link_up();
        }

        fn subscribe(&self, ids: impl IntoIterator<Item = usize>) {
            for id in ids {
                let _ = self
                    .shared
                    .desired
                    .subscribe(&user(id), Arc::new(|_: &Delivery<'_>| {}));
            }
        }

        fn refuse(&self, ids: impl IntoIterator<Item = usize>) {
            self.fake.memory().refused = ids.into_iter().map(user).collect();
        }

        fn round(&mut self) -> Result<Round, LinkError> {
            let round = self.reconciler.round(&());
            round.now_or_never().expect("memory does not wait")
        }

        /// Rounds until nothing is left to do.
        fn settle(&mut self) {
            let mut rounds = 0;
            while self.round().unwrap() == Round::Applied {
                rounds += 1;
                assert!(rounds < 200, "it comes to an end");
            }
        }

        fn subscribed(&self) -> Vec<String> {
            self.fake.memory().subscribed.keys().cloned().collect()
        }
    }

    #[test]
    fn users_end_up_as_desired_and_a_replaced_subscription_is_made_anew() {
        let mut bench = Bench::new();
        bench.subscribe(0..6);
        bench.settle();
        assert_eq!(bench.subscribed(), ["u0", "u1", "u2", "u3", "u4", "u5"]);
        let before = bench.reconciler.topology.serial(&user(1));
        bench.subscribe([1]);
        bench.shared.desired.unsubscribe(&user(2));
        bench.settle();
        assert_eq!(bench.subscribed(), ["u0", "u1", "u3", "u4", "u5"]);
        assert_ne!(bench.reconciler.topology.serial(&user(1)), before);
        assert_eq!(bench.shared.desired.active_count(), 5);
    }

    #[test]
    fn a_refused_user_waits_alone_and_is_tried_again() {
        let mut bench = Bench::new();
        bench.refuse([2]);
        bench.subscribe(0..6);
        bench.settle();
        assert_eq!(bench.subscribed(), ["u0", "u1", "u3", "u4", "u5"]);
        assert!(bench.reconciler.retry_at().is_some());
        assert_eq!(bench.shared.metrics.subscriptions_refused.get(), 1);
        // Returning does not help.
        bench.shared.desired.unsubscribe(&user(2));
        bench.subscribe([2]);
        bench.settle();
        assert_eq!(bench.shared.metrics.subscriptions_refused.get(), 1);
        bench.reconciler.retry();
        bench.settle();
        assert_eq!(bench.shared.metrics.subscriptions_refused.get(), 2);
        bench.refuse([]);
        bench.reconciler.retry();
        bench.settle();
        assert_eq!(bench.subscribed().len(), 6);
        assert_eq!(bench.reconciler.retry_at(), None);
    }

    #[test]
    fn where_all_are_refused_a_few_try_it_and_the_first_who_gets_through_frees_all() {
        let mut bench = Bench::new();
        bench.refuse(0..100);
        bench.subscribe(0..100);
        bench.settle();
        assert_eq!(bench.fake.memory().tries, 16);
        bench.refuse([]);
        bench.reconciler.retry();
        bench.settle();
        assert_eq!(bench.subscribed().len(), 100);
    }

    #[test]
    fn the_next_connection_does_not_try_who_was_refused_on_this_one() {
        let mut bench = Bench::new();
        bench.refuse([2]);
        bench.subscribe(0..3);
        bench.settle();
        let known = bench.reconciler.take_refused();
        assert_eq!(known.iter().collect::<Vec<_>>(), [&user(2)]);
        bench.reconnect();
        bench.reconciler =
            Reconciler::new(bench.shared.clone(), Box::new(bench.fake.clone()), known);
        bench.settle();
        assert_eq!(bench.subscribed(), ["u0", "u1"]);
        assert_eq!(bench.shared.metrics.subscriptions_refused.get(), 1);
        assert!(bench.reconciler.retry_at().is_some());
    }

    #[test]
    fn users_wait_for_a_missing_exchange() {
        let mut bench = Bench::new();
        bench.fake.memory().is_exchange_missing = true;
        bench.subscribe(0..3);
        for _ in 0..3 {
            let error = bench.round().unwrap_err();
            assert!(matches!(error, LinkError::Closed(close) if close.code == 404));
        }
        assert_eq!(bench.shared.desired.pending(), 3);
        bench.fake.memory().is_exchange_missing = false;
        bench.settle();
        assert_eq!(bench.subscribed().len(), 3);
        assert_eq!(bench.shared.metrics.subscriptions_refused.get(), 0);
    }

    #[test]
    fn an_exchange_that_vanishes_while_users_are_bound_ends_the_link() {
        let mut bench = Bench::new();
        bench.subscribe(0..3);
        bench.settle();
        bench.fake.memory().is_exchange_missing = true;
        bench.subscribe([3]);
        let error = bench.round().unwrap_err();
        assert!(matches!(error, LinkError::Amqp(_)), "{error}");
    }

    #[test]
    fn who_loses_a_queue_gets_another() {
        let mut bench = Bench::new();
        bench.subscribe(0..3);
        bench.settle();
        bench.reconciler.forget_queue("u1");
        assert_eq!(bench.shared.desired.active_count(), 2);
        bench.reconciler.forget_queue("of somebody else");
        bench.settle();
        assert_eq!(bench.subscribed(), ["u0", "u1", "u2"]);
        assert_eq!(bench.shared.desired.active_count(), 3);
    }

    /// What may happen, in any order.
    #[derive(Debug, Clone)]
    enum Event {
        Subscribe(usize),
        Unsubscribe(usize),
        Round,
        Refuse(Vec<usize>),
        Retry,
        DeleteQueue(usize),
        MissExchange(bool),
        Reconnect,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (0..6_usize).prop_map(Event::Subscribe),
            4 => (0..6_usize).prop_map(Event::Unsubscribe),
            8 => Just(Event::Round),
            2 => vec(0..6_usize, 0..4).prop_map(Event::Refuse),
            2 => Just(Event::Retry),
            2 => (0..6_usize).prop_map(Event::DeleteQueue),
            1 => any::<bool>().prop_map(Event::MissExchange),
            1 => Just(Event::Reconnect),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_exactly_the_desired_users_end_up_subscribed(
            events in vec(event(), 0..80),
        ) {
            let mut bench = Bench::new();
            let mut wanted = BTreeMap::new();
            for event in events {
                match event {
                    Event::Subscribe(id) => {
                        let handler = Arc::new(|_: &Delivery<'_>| {});
                        wanted.insert(id, bench.shared.desired.subscribe(&user(id), handler));
                    }
                    Event::Unsubscribe(id) => {
                        bench.shared.desired.unsubscribe(&user(id));
                        wanted.remove(&id);
                    }
                    Event::Round => match bench.round() {
                        Ok(_) => {}
                        Err(LinkError::Closed(close)) if close.code == NOT_FOUND => {}
                        // Users are bound to an exchange that is gone.
                        Err(_) => bench.reconnect(),
                    },
                    Event::Refuse(ids) => bench.refuse(ids),
                    Event::Retry => bench.reconciler.retry(),
                    Event::DeleteQueue(id) => bench.reconciler.forget_queue(&format!("u{id}")),
                    Event::MissExchange(missing) => {
                        bench.fake.memory().is_exchange_missing = missing;
                    }
                    Event::Reconnect => bench.reconnect(),
                }
            }
            bench.fake.memory().is_exchange_missing = false;
            bench.refuse([]);
            bench.settle();
            // Of those who had been refused, one is enough.
            if bench.reconciler.retry_at().is_some() {
                bench.reconciler.retry();
                bench.settle();
            }
            let names: Vec<_> = wanted.keys().map(|id| format!("u{id}")).collect();
            prop_assert_eq!(bench.subscribed(), names);
            prop_assert_eq!(bench.shared.desired.active_count(), wanted.len());
            for subscribed in wanted.values() {
                prop_assert!(subscribed.stretch().is_some(), "the latest one is active");
            }
        }
    }
}
