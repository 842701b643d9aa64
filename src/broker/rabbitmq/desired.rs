//! The desired state: which users should be subscribed, whatever the broker does.
//!
//! Callers record what they want, the link takes what has changed and brings the
//! broker's actual state in line. So connects and disconnects that happen while the
//! broker is away, or in the middle of a resubscription, need no special case.
//!
//! Pure bookkeeping: no I/O and no clock. Invariant: while a link is up, every user is
//! in the desired state, or taken by the link, or among the pending changes.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use indexmap::IndexSet;
use tokio::sync::Notify;

use crate::{
    broker::{Activation, Handler, Subscribed},
    user::User,
};

/// A subscription that a caller wants.
#[derive(Clone)]
pub(super) struct Subscription {
    /// Tells two subscriptions of the same user apart.
    pub(super) serial: u64,
    pub(super) handler: Handler,
    pub(super) activation: Activation,
}

/// A user to bring to the desired state.
pub(super) struct Change {
    pub(super) user: User,
    /// What is desired now; `None` if nothing is.
    pub(super) desired: Option<Subscription>,
}

/// Shared by the callers, who write it, and the link, which follows it.
#[derive(Default)]
pub(super) struct Desired {
    users: Mutex<Users>,
    changed: Notify,
}

#[derive(Default)]
struct Users {
    subscriptions: HashMap<User, Subscription>,
    /// Users who changed since the link looked, each once, however often a user comes
    /// and goes. An entry is outdated if the user has changed again since: that user is
    /// then in the other set. Kept only while a link is up: a new one starts from all
    /// subscriptions.
    joins: IndexSet<User>,
    leaves: IndexSet<User>,
    is_linked: bool,
    last_serial: u64,
}

impl Desired {
    /// Records that `user` should be subscribed; replaces an earlier subscription.
    pub(super) fn subscribe(&self, user: &User, handler: Handler) -> Subscribed {
        let (activation, subscribed) = Subscribed::new();
        let mut users = self.users();
        users.last_serial += 1;
        let subscription = Subscription {
            serial: users.last_serial,
            handler,
            activation,
        };
        users.subscriptions.insert(user.clone(), subscription);
        users.note_change(user.clone());
        drop(users);
        self.changed.notify_one();
        subscribed
    }

    /// Records that `user` should not be subscribed.
    pub(super) fn unsubscribe(&self, user: &User) {
        let mut users = self.users();
        if users.subscriptions.remove(user).is_some() {
            users.note_change(user.clone());
            drop(users);
            self.changed.notify_one();
        }
    }

    /// Returns when something has changed since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A new link has no subscriptions: every desired one is a change.
    pub(super) fn link_up(&self) {
        let mut users = self.users();
        users.is_linked = true;
        users.joins = users.subscriptions.keys().cloned().collect();
        users.leaves.clear();
    }

    /// All subscriptions are lost with the link.
    pub(super) fn link_down(&self) {
        self.unlink();
        for subscription in self.users().subscriptions.values() {
            subscription.activation.deactivate();
        }
    }

    /// The link is lost, but the broker keeps the updates: no subscription is lost with it.
    pub(super) fn unlink(&self) {
        let mut users = self.users();
        users.is_linked = false;
        users.joins.clear();
        users.leaves.clear();
    }

    /// Everybody who is subscribed may have missed updates.
    pub(super) fn renew(&self) {
        for subscription in self.users().subscriptions.values() {
            subscription.activation.renew();
        }
    }

    /// All subscriptions that are wanted now.
    pub(super) fn subscriptions(&self) -> Vec<(User, Subscription)> {
        let users = self.users();
        let all = users.subscriptions.iter();
        all.map(|(user, subscription)| (user.clone(), subscription.clone()))
            .collect()
    }

    /// Takes users who have changed, each once: up to `limit` who wait for updates, then
    /// up to `limit` who have left and wait for nothing.
    pub(super) fn take(&self, limit: usize) -> Vec<Change> {
        let mut users = self.users();
        let Users {
            subscriptions,
            joins,
            leaves,
            ..
        } = &mut *users;
        let joining = take_current(joins, limit, |user| subscriptions.contains_key(user));
        let leaving = take_current(leaves, limit, |user| !subscriptions.contains_key(user));
        joining
            .into_iter()
            .chain(leaving)
            .map(|user| Change {
                desired: subscriptions.get(&user).cloned(),
                user,
            })
            .collect()
    }

    /// Gives back users who were taken and could not be brought to the desired state, or
    /// have fallen out of it.
    pub(super) fn give_back(&self, taken: impl IntoIterator<Item = User>) {
        let mut users = self.users();
        for user in taken {
            users.note_change(user);
        }
    }

    /// How many users wait for the link, at most.
    pub(super) fn pending(&self) -> usize {
        let users = self.users();
        users.joins.len() + users.leaves.len()
    }

    pub(super) fn contains(&self, user: &User) -> bool {
        self.users().subscriptions.contains_key(user)
    }

    /// Notes that `user` is subscribed at the broker.
    pub(super) fn activate(&self, user: &User) {
        if let Some(subscription) = self.users().subscriptions.get(user) {
            subscription.activation.activate();
        }
    }

    /// Notes that the subscription of `user` at the broker was lost.
    pub(super) fn deactivate(&self, user: &User) {
        if let Some(subscription) = self.users().subscriptions.get(user) {
            subscription.activation.deactivate();
        }
    }

    /// Whether `user` is subscribed at the broker.
    pub(super) fn is_active(&self, user: &User) -> bool {
        let users = self.users();
        let subscription = users.subscriptions.get(user);
        subscription.is_some_and(|subscription| subscription.activation.is_active())
    }

    /// How many users are subscribed at the broker.
    pub(super) fn active_count(&self) -> usize {
        self.users().active().count()
    }

    /// Whether anybody is subscribed at the broker.
    pub(super) fn has_active(&self) -> bool {
        self.users().active().next().is_some()
    }

    /// Some of the users who are subscribed at the broker.
    pub(super) fn some_active(&self, count: usize) -> Vec<User> {
        self.users().active().take(count).cloned().collect()
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        // Consistent whenever it is unlocked: a panic elsewhere does not make it wrong.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Users {
    fn note_change(&mut self, user: User) {
        if self.is_linked {
            match self.subscriptions.contains_key(&user) {
                true => self.joins.insert(user),
                false => self.leaves.insert(user),
            };
        }
    }

    fn active(&self) -> impl Iterator<Item = &User> {
        let active = self.subscriptions.iter();
        active
            .filter(|(_, subscription)| subscription.activation.is_active())
            .map(|(user, _)| user)
    }
}

/// Takes up to `limit` users from the front, and drops entries that a later change of the
/// same user has outdated.
fn take_current(
    changes: &mut IndexSet<User>,
    limit: usize,
    is_current: impl Fn(&User) -> bool,
) -> Vec<User> {
    let mut taken = Vec::new();
    let mut seen = 0;
    for user in &*changes {
        if taken.len() == limit {
            break;
        }
        seen += 1;
        if is_current(user) {
            taken.push(user.clone());
        }
    }
    changes.drain(..seen);
    taken
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use futures_util::FutureExt;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{broker::Delivery, user::UserId};

    fn user(id: impl ToString) -> User {
        User {
            id: UserId::parse(&format!("u{}", id.to_string())).unwrap(),
            tenant: None,
        }
    }

    fn nothing() -> Handler {
        Arc::new(|_: &Delivery<'_>| {})
    }

    fn names(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|it| it.user.id.as_str()).collect()
    }

    #[test]
    fn who_waits_for_updates_goes_first_and_each_kind_in_its_order() {
        let desired = Desired::default();
        desired.link_up();
        for id in 0..6 {
            let _ = desired.subscribe(&user(id), nothing());
        }
        assert_eq!(
            names(&desired.take(6)),
            ["u0", "u1", "u2", "u3", "u4", "u5"]
        );
        for id in [3, 1, 2] {
            desired.unsubscribe(&user(id));
        }
        for id in [7, 6, 8] {
            let _ = desired.subscribe(&user(id), nothing());
        }
        assert_eq!(desired.pending(), 6);
        assert_eq!(names(&desired.take(2)), ["u7", "u6", "u3", "u1"]);
        assert_eq!(names(&desired.take(2)), ["u8", "u2"]);
        assert!(desired.take(2).is_empty());
    }

    #[test]
    fn one_who_leaves_and_returns_keeps_the_place_and_is_taken_once() {
        let desired = Desired::default();
        desired.link_up();
        for id in [0, 1] {
            let _ = desired.subscribe(&user(id), nothing());
        }
        desired.unsubscribe(&user(0));
        let _ = desired.subscribe(&user(0), nothing());
        assert_eq!(names(&desired.take(1)), ["u0"]);
        assert_eq!(names(&desired.take(9)), ["u1"]);
        assert_eq!((desired.take(9).len(), desired.pending()), (0, 0));
    }

    #[test]
    fn an_outdated_entry_takes_nobodys_place() {
        let desired = Desired::default();
        desired.link_up();
        for id in [0, 1] {
            let _ = desired.subscribe(&user(id), nothing());
        }
        desired.unsubscribe(&user(0));
        // One who joins, and the one who has left.
        assert_eq!(names(&desired.take(1)), ["u1", "u0"]);
    }

    #[test]
    fn without_a_link_changes_are_not_kept() {
        let desired = Desired::default();
        for id in 0..100 {
            let _ = desired.subscribe(&user(id), nothing());
            desired.unsubscribe(&user(id));
        }
        desired.give_back([user(1)]);
        assert_eq!((desired.pending(), desired.take(9).len()), (0, 0));
    }

    #[test]
    fn a_change_wakes_who_waits_for_one_and_an_idle_unsubscribe_does_not() {
        let desired = Desired::default();
        let woken = || desired.changed().now_or_never().is_some();
        let _ = desired.subscribe(&user(1), nothing());
        assert!(woken());
        assert!(!woken());
        desired.unsubscribe(&user(1));
        assert!(woken());
        desired.unsubscribe(&user(1));
        assert!(!woken());
    }

    #[test]
    fn a_replaced_subscription_is_another_one() {
        let desired = Desired::default();
        desired.link_up();
        let serial = || desired.take(1)[0].desired.as_ref().unwrap().serial;
        let _ = desired.subscribe(&user(1), nothing());
        let first = serial();
        let _ = desired.subscribe(&user(1), nothing());
        assert_ne!(first, serial());
    }

    #[test]
    fn active_users_are_counted_and_found() {
        let desired = Desired::default();
        desired.link_up();
        for id in 0..3 {
            let _ = desired.subscribe(&user(id), nothing());
        }
        assert!(!desired.has_active());
        for change in desired.take(2) {
            change.desired.unwrap().activation.activate();
        }
        assert_eq!((desired.active_count(), desired.has_active()), (2, true));
        assert_eq!(
            (desired.some_active(1).len(), desired.some_active(9).len()),
            (1, 2)
        );
        assert!(desired.is_active(&user(0)) && !desired.is_active(&user(2)));
        assert!(desired.contains(&user(2)) && !desired.contains(&user(3)));
        desired.deactivate(&user(0));
        assert_eq!(desired.some_active(9), [user(1)]);
        desired.link_down();
        assert!(!desired.has_active());
    }

    /// What may happen, in any order.
    #[derive(Debug, Clone)]
    enum Event {
        Subscribe(usize),
        Unsubscribe(usize),
        /// The link takes changes, if it has finished those before.
        Take(usize),
        /// The link has applied what it took, or could not.
        Finish(bool),
        /// The broker deletes a user's queue.
        Lose(usize),
        Up,
        Down,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..5_usize).prop_map(Event::Subscribe),
            4 => (0..5_usize).prop_map(Event::Unsubscribe),
            4 => (1..4_usize).prop_map(Event::Take),
            4 => any::<bool>().prop_map(Event::Finish),
            1 => (0..5_usize).prop_map(Event::Lose),
            1 => Just(Event::Up),
            1 => Just(Event::Down),
        ]
    }

    /// A link that applies what it takes, beside the plain truth of what was asked for.
    #[derive(Default)]
    struct Model {
        wanted: BTreeMap<usize, Subscribed>,
        actual: HashMap<User, Subscription>,
        taken: Vec<Change>,
        is_linked: bool,
        /// The last subscription that was applied for each user.
        applied: HashMap<User, u64>,
    }

    impl Model {
        fn take(&mut self, desired: &Desired, limit: usize) {
            self.taken = desired.take(limit);
            let joins = self.taken.iter().filter(|change| change.desired.is_some());
            let joins = joins.count();
            assert!(joins <= limit && self.taken.len() - joins <= limit);
            let mut once: Vec<_> = self.taken.iter().map(|change| &change.user).collect();
            once.sort_by_key(|user| user.id.as_str());
            once.dedup();
            assert_eq!(once.len(), self.taken.len(), "each user once");
        }

        fn apply(&mut self) {
            for Change { user, desired } in self.taken.drain(..) {
                self.actual.remove(&user);
                if let Some(subscription) = desired {
                    let last = self.applied.insert(user.clone(), subscription.serial);
                    assert!(last.is_none_or(|last| last <= subscription.serial), "order");
                    subscription.activation.activate();
                    self.actual.insert(user, subscription);
                }
            }
        }

        fn down(&mut self, desired: &Desired) {
            self.is_linked = false;
            self.taken.clear();
            self.actual.clear();
            desired.link_down();
        }

        fn up(&mut self, desired: &Desired) {
            // Never two links at once.
            self.down(desired);
            self.is_linked = true;
            desired.link_up();
        }

        fn happen(&mut self, desired: &Desired, event: &Event) {
            match *event {
                Event::Subscribe(id) => {
                    let subscribed = desired.subscribe(&user(id), nothing());
                    self.wanted.insert(id, subscribed);
                }
                Event::Unsubscribe(id) => {
                    desired.unsubscribe(&user(id));
                    self.wanted.remove(&id);
                }
                Event::Take(limit) if self.taken.is_empty() => self.take(desired, limit),
                Event::Take(_) => {}
                Event::Finish(true) => self.apply(),
                Event::Finish(false) => {
                    desired.give_back(self.taken.drain(..).map(|change| change.user));
                }
                Event::Lose(id) => {
                    if self.actual.remove(&user(id)).is_some() {
                        desired.deactivate(&user(id));
                        desired.give_back([user(id)]);
                    }
                }
                Event::Up => self.up(desired),
                Event::Down => self.down(desired),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_the_link_ends_in_what_was_wanted_last(
            events in vec(event(), 0..60),
            limit in 1..4_usize,
        ) {
            let desired = Desired::default();
            let mut model = Model::default();
            for event in &events {
                model.happen(&desired, event);
                if !model.is_linked {
                    prop_assert!(desired.take(9).is_empty());
                    prop_assert_eq!(desired.active_count(), 0);
                }
            }
            // The rest is applied, on the same link if there is one.
            if !model.is_linked {
                model.up(&desired);
            }
            model.apply();
            for round in 0.. {
                model.take(&desired, limit);
                if model.taken.is_empty() {
                    break;
                }
                model.apply();
                prop_assert!(round < 10, "5 users are brought in line in 10 rounds");
            }
            let actual: Vec<_> = {
                let ids = model.actual.keys().map(|user| user.id.as_str().to_owned());
                let mut ids: Vec<_> = ids.collect();
                ids.sort();
                ids
            };
            let wanted: Vec<_> = model.wanted.keys().map(|id| format!("u{id}")).collect();
            prop_assert_eq!(actual, wanted);
            prop_assert_eq!(desired.active_count(), model.wanted.len());
            // It is the caller's latest subscription that is active.
            for subscribed in model.wanted.values() {
                prop_assert!(subscribed.stretch().is_some());
            }
        }
    }
}
