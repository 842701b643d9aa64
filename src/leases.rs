//! How long each socket may stay: as long as its token, and until somebody ends it.
//!
//! Keeps no timer per socket: one order of all deadlines, and one task that waits
//! for the first. Knows no socket, only what identifies it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use socketioxide::socket::Sid;
use tokio::{sync::Notify, time::Instant};

use crate::auth::Identity;

/// The leases of all sockets.
pub struct Leases {
    /// How long before the end its holder is told.
    notice: Duration,
    /// How long after its expiry a token is still accepted.
    leeway: Duration,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    terms: HashMap<u64, Terms>,
    due: BTreeSet<(Instant, u64)>,
    granted: u64,
}

struct Terms {
    sid: Sid,
    identity: Identity,
    /// Whether its holder was told of the end.
    noticed: bool,
    /// Its place in the order of deadlines.
    due: Option<Instant>,
}

/// One socket's right to be there; given back by dropping it.
pub struct Lease {
    leases: Arc<Leases>,
    number: u64,
}

/// What [`Leases::next`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The token of this socket expires soon.
    Expiring(Sid, SystemTime),
    /// The token of this socket has expired.
    Expired(Sid),
}

impl Leases {
    pub fn new(notice: Duration, leeway: Duration) -> Arc<Self> {
        Arc::new(Self {
            notice,
            leeway,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Lets a socket stay as long as its token lives.
    pub fn grant(self: &Arc<Self>, sid: Sid, identity: Identity) -> Lease {
        let mut state = self.state();
        state.granted += 1;
        let number = state.granted;
        let terms = Terms {
            sid,
            identity,
            noticed: false,
            due: None,
        };
        state.terms.insert(number, terms);
        self.schedule(&mut state, number);
        Lease {
            leases: self.clone(),
            number,
        }
    }

    /// The sockets whose bearer is one of those.
    pub fn find(&self, is_one: impl Fn(&Identity) -> bool) -> Vec<Sid> {
        let state = self.state();
        let found = state.terms.values().filter(|terms| is_one(&terms.identity));
        found.map(|terms| terms.sid).collect()
    }

    /// Waits until something is due; each is returned once. For one task.
    pub async fn next(&self) -> Due {
        loop {
            let first = self.state().due.first().copied();
            let Some((due, number)) = first else {
                self.changed.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.changed.notified() => continue,
            }
            if let Some(due) = self.take(number) {
                return due;
            }
        }
    }

    fn take(&self, number: u64) -> Option<Due> {
        let mut state = self.state();
        let state = &mut *state;
        let now = SystemTime::now();
        let terms = state.terms.get_mut(&number)?;
        let expires_at = terms.identity.expires_at()?;
        let due = if now >= expires_at + self.leeway {
            Some(Due::Expired(terms.sid))
        } else if !terms.noticed && now + self.notice >= expires_at {
            terms.noticed = true;
            Some(Due::Expiring(terms.sid, expires_at))
        } else {
            // The clock was set back.
            None
        };
        if matches!(due, Some(Due::Expired(_))) {
            // It comes once.
            let place = terms.due.take();
            state.due.remove(&(place?, number));
        } else {
            self.schedule(state, number);
        }
        due
    }

    fn schedule(&self, state: &mut State, number: u64) {
        let Some(terms) = state.terms.get_mut(&number) else {
            return;
        };
        if let Some(due) = terms.due.take() {
            state.due.remove(&(due, number));
        }
        let Some(expires_at) = terms.identity.expires_at() else {
            return;
        };
        let at = match terms.noticed {
            true => expires_at + self.leeway,
            false => expires_at.checked_sub(self.notice).unwrap_or(expires_at),
        };
        let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
        // A token for a thousand years is as good as one without an end.
        let Some(due) = Instant::now().checked_add(wait) else {
            return;
        };
        terms.due = Some(due);
        let is_first = state.due.first().is_none_or(|first| due < first.0);
        state.due.insert((due, number));
        if is_first {
            self.changed.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Goes on with another token of the same user; `false` if it is another's.
    pub fn renew(&self, identity: Identity) -> bool {
        let mut state = self.leases.state();
        let Some(terms) = state.terms.get_mut(&self.number) else {
            return false;
        };
        if terms.identity.user() != identity.user() {
            return false;
        }
        terms.identity = identity;
        terms.noticed = false;
        self.leases.schedule(&mut state, self.number);
        true
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.state();
        if let Some(terms) = state.terms.remove(&self.number)
            && let Some(due) = terms.due
        {
            state.due.remove(&(due, self.number));
        }
    }
}
