//! Finds the recipients of an update from a common queue by its routing key.
//!
//! The link's task writes, the queue's consumer reads. Invariant: an update reaches,
//! once each, exactly the users to whom the broker would have routed it if each had a
//! separate queue.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use smallvec::SmallVec;
use tracing::debug;

use super::super::consumer::Turn;
use crate::{
    broker::{Delivery, Handler},
    config::BindingKeys,
    observability::metrics::Metrics,
    user::{User, UserId},
};

/// The recipients of one queue.
pub(super) struct Routes {
    binding_keys: BindingKeys,
    metrics: Metrics,
    recipients: Mutex<HashMap<UserId, Arc<[Recipient]>>>,
}

/// One of the users with the same id, who differ by tenant.
#[derive(Clone)]
struct Recipient {
    user: User,
    handler: Handler,
}

impl Routes {
    pub(super) fn new(binding_keys: BindingKeys, metrics: Metrics) -> Self {
        Self {
            binding_keys,
            metrics,
            recipients: Mutex::default(),
        }
    }

    /// Adds `user`; replaces an earlier handler of the same user.
    pub(super) fn insert(&self, user: &User, handler: Handler) {
        let mut recipients = self.recipients();
        let recipient = Recipient {
            user: user.clone(),
            handler,
        };
        let others = recipients.get(&user.id).map(|all| without(all, user));
        let all = others.into_iter().flatten().chain([recipient]);
        let all = all.collect();
        recipients.insert(user.id.clone(), all);
    }

    pub(super) fn remove(&self, user: &User) {
        let mut recipients = self.recipients();
        if let Entry::Occupied(mut entry) = recipients.entry(user.id.clone()) {
            let others = without(entry.get(), user);
            match others.is_empty() {
                true => drop(entry.remove()),
                false => drop(entry.insert(others.into())),
            }
        }
    }

    pub(super) fn clear(&self) {
        self.recipients().clear();
    }

    /// Hands an update to each user it is addressed to; returns whether there is one.
    pub(super) fn deliver(&self, delivery: &Delivery<'_>, turn: &mut Turn) -> bool {
        let mut is_claimed = false;
        for recipient in self
            .find(delivery.routing_key)
            .iter()
            .flat_map(|all| all.iter())
        {
            if self
                .binding_keys
                .are_for(&recipient.user, delivery.routing_key)
            {
                is_claimed = true;
                turn.hand_off(&recipient.handler, delivery);
            }
        }
        if !is_claimed {
            self.metrics.updates_unclaimed.inc();
            debug!(routing_key = ?delivery.routing_key, "RabbitMQ update for nobody online");
        }
        is_claimed
    }

    /// The users whom the routing key may mean. No lock is held while handlers run.
    fn find(&self, routing_key: &str) -> SmallVec<[Arc<[Recipient]>; 1]> {
        let mut found = SmallVec::<[Arc<[Recipient]>; 1]>::new();
        let recipients = self.recipients();
        self.binding_keys.for_each_id(routing_key, |id| {
            if let Some(all) = recipients.get(id)
                && !found.iter().any(|other| Arc::ptr_eq(other, all))
            {
                found.push(all.clone());
            }
        });
        found
    }

    fn recipients(&self) -> MutexGuard<'_, HashMap<UserId, Arc<[Recipient]>>> {
        self.recipients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn without(all: &[Recipient], user: &User) -> Vec<Recipient> {
    let others = all.iter().filter(|recipient| recipient.user != *user);
    others.cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::user::TenantId;

    fn user(id: &str, tenant: Option<&str>) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        }
    }

    fn counting() -> (Handler, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let handler = move |_: &Delivery<'_>| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        (Arc::new(handler), count)
    }

    fn deliver(routes: &Routes, routing_key: &str) {
        let delivery = Delivery {
            body: b"x",
            routing_key,
            published_at: None,
            position: None,
        };
        routes.deliver(&delivery, &mut Turn::default());
    }

    #[test]
    fn an_update_reaches_each_of_its_users_once_and_nobody_else() {
        // Both templates match; so do all users called carl.
        let keys = "user.{userId}.*,user.{userId}.#".parse().unwrap();
        let metrics = Metrics::new();
        let routes = Routes::new(keys, metrics.clone());
        let users = [
            user("carl", Some("t1")),
            user("carl", Some("t2")),
            user("bob", None),
        ];
        let counts = users.each_ref().map(|user| {
            let (handler, count) = counting();
            routes.insert(user, handler);
            count
        });
        let received = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        deliver(&routes, "user.carl.x");
        assert_eq!(received(), [1, 1, 0]);
        deliver(&routes, "user.mallory.x");
        deliver(&routes, "what.ever");
        assert_eq!(metrics.updates_unclaimed.get(), 2);
        routes.remove(&users[0]);
        deliver(&routes, "user.carl.x");
        assert_eq!(received(), [1, 2, 0]);
        routes.remove(&users[1]);
        deliver(&routes, "user.carl.x");
        assert_eq!(received(), [1, 2, 0]);
        assert_eq!(metrics.updates_unclaimed.get(), 3);
    }

    #[test]
    fn a_handler_that_panics_takes_nothing_from_the_next() {
        let routes = Routes::new("user.{userId}.*".parse().unwrap(), Metrics::new());
        routes.insert(
            &user("carl", Some("t1")),
            Arc::new(|_: &Delivery<'_>| panic!("on purpose")),
        );
        let (handler, count) = counting();
        routes.insert(&user("carl", Some("t2")), handler);
        deliver(&routes, "user.carl.x");
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
