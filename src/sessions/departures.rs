//! Sessions that are away, in the order in which they lost their sockets.
//!
//! Invariant: a session is on the list exactly while its user's audience holds its
//! [`Departure`]. So the list is never longer than the number of sessions that are
//! away, however long the window is and however often clients come and go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use crate::user::User;

/// The list; clones share it. Its lock is the innermost: nothing else is locked under it.
#[derive(Clone, Default)]
pub(super) struct Departures(Arc<Mutex<BTreeMap<(Instant, u64), User>>>);

/// A session that is away; dropping it takes the session off the list.
pub(super) struct Departure {
    list: Departures,
    at: Instant,
    session: u64,
}

impl Departures {
    /// Records that `session` of `user` lost its socket at `at`.
    pub(super) fn note(&self, user: &User, session: u64, at: Instant) -> Departure {
        self.lock().insert((at, session), user.clone());
        Departure {
            list: self.clone(),
            at,
            session,
        }
    }

    /// Removes and returns the session that left first, if it left before `moment`.
    pub(super) fn take_before(&self, moment: Instant) -> Option<(User, u64)> {
        let mut list = self.lock();
        let first = list.first_entry()?;
        let (at, session) = *first.key();
        (at < moment).then(|| (first.remove(), session))
    }

    /// All sessions that are away, earliest departure first.
    pub(super) fn all(&self) -> Vec<(User, u64)> {
        let list = self.lock();
        list.iter()
            .map(|((_, session), user)| (user.clone(), *session))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), User>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Departure {
    /// When the session lost its socket.
    pub(super) fn at(&self) -> Instant {
        self.at
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        self.list.lock().remove(&(self.at, self.session));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::user::UserId;

    fn user(id: &str) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: None,
        }
    }

    #[test]
    fn the_longest_away_come_first_and_who_returned_is_gone() {
        let (list, now) = (Departures::default(), Instant::now());
        let carl = list.note(&user("carl"), 1, now);
        let bob = list.note(&user("bob"), 2, now);
        let _alice = list.note(&user("alice"), 3, now);
        drop(bob);
        assert_eq!(list.all(), [(user("carl"), 1), (user("alice"), 3)]);
        assert_eq!(list.take_before(carl.at()), None);
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(list.take_before(later), Some((user("carl"), 1)));
        drop(carl);
        assert_eq!(list.all(), [(user("alice"), 3)]);
    }

    #[test]
    fn a_client_that_comes_and_goes_leaves_nothing_behind() {
        let (list, now) = (Departures::default(), Instant::now());
        let mut away = list.note(&user("carl"), 0, now);
        for session in 1..10_000 {
            away = list.note(&user("carl"), session, now);
        }
        assert_eq!(list.all().len(), 1);
        drop(away);
        assert!(list.all().is_empty());
    }
}
