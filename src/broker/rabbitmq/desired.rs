//! The desired state: which users should be subscribed, whatever the broker does.
//!
//! Callers record what they want, the link takes what has changed and brings the
//! broker's actual state in line. So connects and disconnects that happen while the
//! broker is away, or in the middle of a resubscription, need no case of their own.
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
    /// Wants `user` subscribed; replaces an earlier subscription of the same user.
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

    /// Wants `user` not subscribed.
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
        let mut users = self.users();
        users.is_linked = false;
        users.joins.clear();
        users.leaves.clear();
        for subscription in users.subscriptions.values() {
            subscription.activation.deactivate();
        }
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

    /// `user`'s subscription at the broker was lost.
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

/// Takes the first users for whom the change is still the latest, up to `limit`; outdated
/// entries before them go.
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
