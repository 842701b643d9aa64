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

use crate::auth::{Identity, Refusal};

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
    /// Whether its holder was to be told of the end.
    noticed: bool,
    ended: Option<End>,
    /// Its place in the order of deadlines.
    due: Option<Instant>,
}

/// One socket's right to be there; given back by dropping it.
pub struct Lease {
    leases: Arc<Leases>,
    number: u64,
}

/// Why a lease is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Expired,
    Revoked,
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
            ended: None,
            due: None,
        };
        state.terms.insert(number, terms);
        self.schedule(&mut state, number);
        Lease {
            leases: self.clone(),
            number,
        }
    }

    /// Ends the leases whose bearer is one of those. Returns their sockets.
    pub fn revoke(&self, is_one: impl Fn(&Identity) -> bool) -> Vec<Sid> {
        let mut state = self.state();
        let terms = state.terms.values_mut();
        let revoked = terms.filter(|terms| is_one(&terms.identity)).map(|terms| {
            terms.ended = Some(End::Revoked);
            terms.sid
        });
        revoked.collect()
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
        let due = if now >= self.end(expires_at) {
            terms.ended = terms.ended.or(Some(End::Expired));
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
            true => self.end(expires_at),
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

    /// When a token of that expiry is no longer accepted: its last second counts.
    fn end(&self, expires_at: SystemTime) -> SystemTime {
        let after = self.leeway + Duration::from_secs(1);
        expires_at.checked_add(after).unwrap_or(expires_at)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Whether it is over. To be asked once its socket can be found by its [`Sid`]:
    /// what happened before reached nobody.
    pub fn end(&self) -> Option<End> {
        let state = self.leases.state();
        state.terms.get(&self.number).and_then(|terms| terms.ended)
    }

    /// The expiry of which its holder was to be told already. To be asked likewise.
    pub fn noticed(&self) -> Option<SystemTime> {
        let state = self.leases.state();
        let terms = state.terms.get(&self.number).filter(|terms| terms.noticed);
        terms.and_then(|terms| terms.identity.expires_at())
    }

    /// Goes on with another token of the same user, unless `check` refuses that: while
    /// it looks, nobody revokes, and whoever revokes afterwards meets the new token.
    pub fn renew(
        &self,
        identity: Identity,
        check: impl FnOnce(&Identity) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut state = self.leases.state();
        let terms = state.terms.get_mut(&self.number);
        let terms = terms.ok_or(Refusal::AnotherUser)?;
        if terms.ended.is_some() || terms.identity.user() != identity.user() {
            return Err(Refusal::AnotherUser);
        }
        check(&identity)?;
        terms.identity = identity;
        terms.noticed = false;
        self.leases.schedule(&mut state, self.number);
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use tokio::time::timeout;

    use super::*;
    use crate::auth::tests::{a_token, an_identity};

    const MOMENT: Duration = Duration::from_millis(700);

    fn leases() -> Arc<Leases> {
        Leases::new(Duration::from_secs(2), Duration::ZERO)
    }

    fn in_seconds(seconds: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn the_first_end_comes_first_each_once_and_none_that_was_given_back() {
        let leases = leases();
        let sids = [Sid::new(), Sid::new(), Sid::new()];
        let ends = [in_seconds(1), in_seconds(5), in_seconds(1)];
        let mut held: Vec<_> = sids
            .into_iter()
            .zip(ends)
            .map(|(sid, end)| leases.grant(sid, an_identity("carl", Some(end))))
            .collect();
        let _endless = leases.grant(Sid::new(), an_identity("carl", None));
        held.remove(2);
        for expected in [
            Due::Expiring(sids[0], ends[0]),
            Due::Expired(sids[0]),
            Due::Expiring(sids[1], ends[1]),
            Due::Expired(sids[1]),
        ] {
            let due = timeout(Duration::from_secs(4), leases.next()).await;
            assert_eq!(due, Ok(expected));
        }
        assert!(timeout(MOMENT, leases.next()).await.is_err());
        drop(held);
        assert_eq!(leases.state().terms.len(), 1);
        assert!(leases.state().due.is_empty());
    }

    #[tokio::test]
    async fn another_token_of_the_same_user_extends_the_lease_and_nobody_elses() {
        let leases = leases();
        let sid = Sid::new();
        let lease = leases.grant(sid, an_identity("carl", Some(in_seconds(1))));
        let renew = |identity| lease.renew(identity, |_| Ok(()));
        let another = renew(an_identity("bob", Some(in_seconds(9))));
        assert_eq!(another, Err(Refusal::AnotherUser));
        assert!(matches!(leases.next().await, Due::Expiring(..)));
        let end = in_seconds(3);
        assert_eq!(renew(an_identity("carl", Some(end))), Ok(()));
        // Not at its first end, and told again of the second.
        let due = timeout(Duration::from_secs(3), leases.next()).await;
        assert_eq!(due, Ok(Due::Expiring(sid, end)));
        assert_eq!(renew(an_identity("carl", None)), Ok(()));
        assert!(
            timeout(Duration::from_secs(4), leases.next())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_token_that_is_revoked_while_it_renews_a_lease_ends_that() {
        let leases = leases();
        let sid = Sid::new();
        let lease = leases.grant(sid, a_token("carl", None, None, Some("old")));
        let (has_begun, is_revoked) = (AtomicBool::new(false), AtomicBool::new(false));
        let wait_for = |flag: &AtomicBool| {
            while !flag.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        };
        thread::scope(|threads| {
            // As an order does it: remembered first, then the leases.
            let order = threads.spawn(|| {
                wait_for(&has_begun);
                is_revoked.store(true, Ordering::SeqCst);
                leases.revoke(|identity| identity.token_id() == Some("new"))
            });
            let renewed = lease.renew(a_token("carl", None, None, Some("new")), |_| {
                assert!(!is_revoked.load(Ordering::SeqCst));
                has_begun.store(true, Ordering::SeqCst);
                // The order is now at the leases, or nearly so.
                wait_for(&is_revoked);
                Ok(())
            });
            assert_eq!(renewed, Ok(()));
            assert_eq!(order.join().unwrap(), [sid]);
        });
        assert_eq!(lease.end(), Some(End::Revoked));
        let refused = lease.renew(an_identity("carl", None), |_| Ok(()));
        assert_eq!(refused, Err(Refusal::AnotherUser));
    }
}
