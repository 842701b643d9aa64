//! The policy for users whose subscription the broker refuses: they wait, and one of them
//! at a time is tried again.
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

/// How long at most, when those who are tried are refused again and again.
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
    /// Grows while those who are tried are refused again.
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

    /// How many of those who join may be tried in a round of `round`, while `subscribed`
    /// users are subscribed. While nothing is known to work, one user tries it for all.
    pub(super) fn limit(&self, subscribed: usize, round: usize) -> usize {
        match subscribed {
            0 if self.waiting.len() < TRIES_FOR_ALL => 1,
            _ => round,
        }
    }

    /// Whether `user` must wait, or else may be tried. One who was never tried waits as
    /// well while nobody gets through.
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
