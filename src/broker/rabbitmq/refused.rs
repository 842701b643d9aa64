//! The policy for users whose subscription the broker refuses, mostly with a 403: they
//! wait, and one of them at a time is tried again. What counts as a refusal is the
//! reconciler's decision.
//!
//! Each refusal costs a channel, of which a connection has a limited number, and only an
//! operator can mend the cause. So tries are rare, and rarer the longer they fail; and
//! once one succeeds, all who wait are tried: what refused one may have refused all.
//!
//! Pure: time is an argument. Invariant: users who wait are not tried, except the one on
//! trial; no user waits for ever while others are tried.

use std::time::Duration;

use indexmap::IndexSet;
use tokio::time::Instant;

use crate::user::User;

/// How long refused subscriptions rest.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause, when RabbitMQ refuses each user who is tried.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(120);

/// If as many users are refused and none gets through, the others wait untried.
const TRIES_FOR_ALL: usize = 16;

/// Users who were refused on one link.
pub(super) struct Refused {
    /// The longest waiting first. Users stay here when they leave: one who comes back
    /// every second is not tried as often.
    waiting: IndexSet<User>,
    on_trial: Option<User>,
    retry_at: Instant,
    /// Grows while RabbitMQ refuses each user who is tried.
    pause: Duration,
    retries: usize,
}

impl Refused {
    /// `known` were refused on the connection before, and are not tried at once.
    pub(super) fn new(known: IndexSet<User>, now: Instant) -> Self {
        Self {
            waiting: known,
            on_trial: None,
            retry_at: now + RETRY_PAUSE,
            pause: RETRY_PAUSE,
            retries: 0,
        }
    }

    /// How many joining users may be tried in a round of `round`, while `subscribed` users
    /// are subscribed. While nothing is known to work, one user is tried on behalf of all.
    pub(super) fn limit(&self, subscribed: usize, round: usize) -> usize {
        match subscribed {
            0 if self.waiting.len() < TRIES_FOR_ALL => 1,
            _ => round,
        }
    }

    /// Whether `user` must wait before the next try. A user who was never tried waits too,
    /// while RabbitMQ accepts nobody.
    pub(super) fn holds(&mut self, user: &User, subscribed: usize) -> bool {
        let nobody_gets_through = subscribed == 0 && self.waiting.len() >= TRIES_FOR_ALL;
        if nobody_gets_through && self.on_trial.as_ref() != Some(user) {
            self.waiting.insert(user.clone());
        }
        self.waiting.contains(user)
    }

    /// The broker has refused `user`.
    pub(super) fn add(&mut self, user: User, now: Instant) {
        if self.waiting.is_empty() && self.on_trial.is_none() {
            self.pause = RETRY_PAUSE;
            self.retry_at = now + self.pause;
        }
        self.waiting.insert(user);
    }

    /// When the next user is tried, if any waits.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.retry_at)
    }

    /// Picks the user to try next, of those who are still `wanted`.
    pub(super) fn retry(&mut self, wanted: impl Fn(&User) -> bool, now: Instant) -> Option<User> {
        self.waiting.retain(wanted);
        // The longest waiting and the last in turn: that one may not have been tried.
        self.retries += 1;
        let user = match self.retries % 2 {
            1 => self.waiting.shift_remove_index(0),
            _ => self.waiting.pop(),
        };
        if user.is_some() {
            self.on_trial.clone_from(&user);
        }
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(MAX_RETRY_PAUSE);
        user
    }

    /// The trial of one of `users` is over, if one of them was on trial. Returns whom to
    /// try now: if that user is subscribed, all.
    pub(super) fn conclude(
        &mut self,
        users: &[User],
        is_subscribed: impl Fn(&User) -> bool,
    ) -> Vec<User> {
        let tried = self.on_trial.take_if(|user| users.contains(user));
        if !tried.is_some_and(|user| is_subscribed(&user)) {
            return Vec::new();
        }
        self.pause = RETRY_PAUSE;
        self.waiting.drain(..).collect()
    }

    /// Those who wait, for the next connection to know.
    pub(super) fn take_all(&mut self) -> IndexSet<User> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::user::UserId;

    const SECOND: Duration = Duration::from_secs(1);

    fn user(id: usize) -> User {
        User {
            id: UserId::parse(&format!("u{id}")).unwrap(),
            tenant: None,
        }
    }

    fn none() -> Refused {
        Refused::new(IndexSet::new(), Instant::now())
    }

    fn all(_: &User) -> bool {
        true
    }

    #[test]
    fn one_who_was_refused_waits_and_is_tried_ever_more_rarely() {
        let mut refused = none();
        let mut now = Instant::now() + 100 * SECOND;
        assert!(!refused.holds(&user(1), 0));
        assert_eq!(refused.retry_at(), None);
        refused.add(user(1), now);
        assert!(refused.holds(&user(1), 1));
        let mut pauses = Vec::new();
        for _ in 0..5 {
            let at = refused.retry_at().unwrap();
            pauses.push(at.duration_since(now).as_secs());
            now = at;
            assert_eq!(refused.retry(all, now), Some(user(1)));
            // On trial, nothing holds the user, and nobody else is tried.
            assert!(!refused.holds(&user(1), 0));
            assert_eq!(refused.retry_at(), None);
            refused.add(user(1), now);
            assert_eq!(refused.conclude(&[user(1)], |_| false), []);
        }
        assert_eq!(pauses, [30, 30, 60, 120, 120]);
    }

    #[test]
    fn the_first_who_gets_through_frees_all_and_the_pauses_begin_anew() {
        let mut refused = none();
        let start = Instant::now();
        for id in 1..=3 {
            refused.add(user(id), start);
        }
        for _ in 0..3 {
            let tried = refused.retry(all, start).unwrap();
            refused.add(tried.clone(), start);
            // Others were subscribed meanwhile; that tells nothing.
            assert_eq!(refused.conclude(&[user(9)], all), []);
            assert_eq!(refused.conclude(&[tried], |_| false), []);
        }
        let tried = refused.retry(all, start).unwrap();
        let mut freed = refused.conclude(&[user(9), tried.clone()], all);
        freed.push(tried);
        freed.sort_by_key(|user| user.id.as_str().to_owned());
        assert_eq!(freed, [user(1), user(2), user(3)]);
        assert_eq!(refused.retry_at(), None);
        refused.add(user(1), start);
        assert_eq!(refused.retry_at(), Some(start + RETRY_PAUSE));
        // Of the trial that is over, nothing more follows.
        assert_eq!(refused.conclude(&[user(3)], all), []);
    }

    #[test]
    fn a_user_who_has_left_is_not_tried() {
        let mut refused = none();
        let now = Instant::now();
        for id in 1..=3 {
            refused.add(user(id), now);
        }
        assert_eq!(refused.retry(|it| *it == user(2), now), Some(user(2)));
        assert_eq!(refused.retry(|_| false, now), None);
        assert_eq!(refused.retry_at(), None);
    }

    #[test]
    fn a_retry_in_vain_ends_no_trial() {
        let mut refused = none();
        let now = Instant::now();
        refused.add(user(1), now);
        assert_eq!(refused.retry(all, now), Some(user(1)));
        // It has not been applied yet; there is nobody else to try.
        assert_eq!(refused.retry(all, now), None);
        refused.add(user(2), now);
        assert_eq!(refused.conclude(&[user(1)], all), [user(2)]);
    }

    #[test]
    fn while_nothing_is_known_to_work_one_user_tries_it_for_all() {
        let mut refused = none();
        let now = Instant::now();
        assert_eq!((refused.limit(0, 256), refused.limit(1, 256)), (1, 256));
        for id in 1..=TRIES_FOR_ALL {
            assert!(!refused.holds(&user(id), 0));
            assert_eq!(refused.limit(0, 256), 1);
            refused.add(user(id), now);
        }
        // As many were refused, and nobody got through: the others wait untried.
        assert_eq!(refused.limit(0, 256), 256);
        assert!(refused.holds(&user(100), 0));
        assert!(!refused.holds(&user(101), 1));
        // And all of them, when one gets through.
        let tried = refused.retry(all, now).unwrap();
        assert!(!refused.holds(&tried, 0));
        let freed = refused.conclude(&[tried], all);
        assert_eq!(freed.len(), TRIES_FOR_ALL);
        assert!(freed.contains(&user(100)));
    }

    #[test]
    fn the_next_connection_knows_who_was_refused() {
        let now = Instant::now();
        let mut before = none();
        before.add(user(1), now);
        let mut refused = Refused::new(before.take_all(), now);
        assert_eq!(before.retry_at(), None);
        assert!(refused.holds(&user(1), 0));
        assert_eq!(refused.retry_at(), Some(now + RETRY_PAUSE));
    }

    proptest! {
        /// Some users are permitted, others are not, and that changes.
        #[test]
        fn nobody_waits_for_ever_and_nobody_who_waits_is_tried(
            users in 1..25_usize,
            permitted in vec((any::<u8>(), any::<bool>()), 0..30),
        ) {
            let mut refused = none();
            let mut now = Instant::now();
            let mut is_permitted: HashMap<User, bool> = HashMap::new();
            let mut subscribed = HashSet::new();
            let mut pending: Vec<User> = (0..users).map(user).collect();
            // At first as it happens; then for so long that each has a turn; then all may.
            let end = permitted.len() + 2 * users;
            for step in 0..=end {
                if let Some((id, may)) = permitted.get(step) {
                    is_permitted.insert(user(usize::from(*id) % users), *may);
                }
                let waiting: Vec<User> = refused.waiting.iter().cloned().collect();
                // The rounds of a link, until nothing is left to do.
                while !pending.is_empty() {
                    let limit = refused.limit(subscribed.len(), 4).min(pending.len());
                    let round: Vec<User> = pending.drain(..limit).collect();
                    let count = subscribed.len();
                    for user in &round {
                        if refused.holds(user, count) {
                            continue;
                        }
                        let is_on_trial = refused.on_trial.as_ref() == Some(user);
                        prop_assert!(is_on_trial || !waiting.contains(user) || count > 0);
                        if step == end || is_permitted.get(user).copied().unwrap_or_default() {
                            subscribed.insert(user.clone());
                        } else {
                            refused.add(user.clone(), now);
                        }
                    }
                    pending.extend(refused.conclude(&round, |user| subscribed.contains(user)));
                }
                prop_assert_eq!(refused.waiting.len() + subscribed.len(), users);
                prop_assert!(refused.waiting.iter().all(|user| !subscribed.contains(user)));
                if let Some(at) = refused.retry_at() {
                    prop_assert!(at <= now + MAX_RETRY_PAUSE);
                    now = now.max(at);
                    pending.extend(refused.retry(all, now));
                }
                if step == end {
                    break;
                }
            }
            // One trial more than the last, which is permitted: all are subscribed.
            while !pending.is_empty() {
                let round = std::mem::take(&mut pending);
                let free = round.iter().filter(|user| !refused.holds(user, subscribed.len()));
                subscribed.extend(free.cloned().collect::<Vec<_>>());
                pending = refused.conclude(&round, |user| subscribed.contains(user));
            }
            prop_assert_eq!(subscribed.len(), users);
        }

        /// Where all are refused, each is tried in turn.
        #[test]
        fn each_who_waits_has_a_turn(users in 1..40_usize) {
            let mut refused = none();
            let now = Instant::now();
            for id in 0..users {
                refused.add(user(id), now);
            }
            let mut tried = HashSet::new();
            for _ in 0..2 * users {
                let user = refused.retry(all, now).unwrap();
                refused.add(user.clone(), now);
                prop_assert_eq!(refused.conclude(std::slice::from_ref(&user), |_| false), []);
                tried.insert(user);
            }
            prop_assert_eq!(tried.len(), users);
        }
    }
}
