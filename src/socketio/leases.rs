//! How long each socket may stay: where a token's expiry is tracked, and where it ends a
//! socket's lease.
//!
//! A lease ends with its token, or when somebody revokes it. There is no timer for each
//! socket: `table` holds all deadlines in their order, and one task waits for the first
//! ([`Leases::next`]). Knows no socket, only the id that identifies it; who closes the
//! socket is the endpoint.

mod table;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use socketioxide::socket::Sid;
use tokio::{sync::Notify, time::sleep};

use self::table::Table;
pub use self::table::{Due, End};
use crate::auth::{Identity, Refusal};

/// The leases of all sockets.
pub struct Leases {
    table: Mutex<Table>,
    /// There is an earlier deadline than the one that [`Leases::next`] waits for.
    is_earlier: Notify,
}

/// One socket's right to stay; given back by dropping it.
pub struct Lease {
    leases: Arc<Leases>,
    number: u64,
}

impl Leases {
    /// `notice`: how long before the end of a lease its holder is told. `leeway`: how long
    /// after its expiry a token is still accepted.
    pub fn new(notice: Duration, leeway: Duration) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table::new(notice, leeway)),
            is_earlier: Notify::new(),
        })
    }

    /// Lets a socket stay as long as its token lives.
    pub fn grant(self: &Arc<Self>, sid: Sid, identity: Identity) -> Lease {
        let mut table = self.table();
        let number = table.grant(sid, identity);
        self.notify_if_first(&table, number);
        Lease {
            leases: self.clone(),
            number,
        }
    }

    /// Ends the leases of these bearers. Returns their sockets.
    pub fn revoke(&self, is_one: impl Fn(&Identity) -> bool) -> Vec<Sid> {
        self.table().revoke(is_one)
    }

    /// Waits until something is due, and returns it once. Must be called by one task only.
    pub async fn next(&self) -> Due {
        loop {
            let first = {
                let mut table = self.table();
                if let Some(due) = table.take(SystemTime::now()) {
                    return due;
                }
                table.first()
            };
            let Some(first) = first else {
                self.is_earlier.notified().await;
                continue;
            };
            let wait = first.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = sleep(wait) => {}
                () = self.is_earlier.notified() => {}
            }
        }
    }

    fn notify_if_first(&self, table: &Table, number: u64) {
        if table.is_first(number) {
            self.is_earlier.notify_one();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Why the lease is over, if it is. Must be asked once the socket can be found by its
    /// [`Sid`]: nobody could act on an end that came before.
    pub fn end(&self) -> Option<End> {
        self.leases.table().end_of(self.number)
    }

    /// The expiry that fell due for announcement, if it did. Must be asked at the same
    /// moment as [`Lease::end`], for the same reason.
    pub fn noticed(&self) -> Option<SystemTime> {
        self.leases.table().noticed(self.number)
    }

    /// Extends the lease by another token of the same user, unless `check` refuses that
    /// token. Nobody revokes while `check` runs, and a revocation that comes later meets the
    /// new token.
    ///
    /// # Errors
    /// When the token is refused, or is another user's, or the lease is over.
    pub fn renew(
        &self,
        identity: Identity,
        check: impl FnOnce(&Identity) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut table = self.leases.table();
        table.renew(self.number, identity, check)?;
        self.leases.notify_if_first(&table, self.number);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.table().give_back(self.number);
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

    fn leases() -> Arc<Leases> {
        Leases::new(Duration::from_secs(60), Duration::ZERO)
    }

    fn in_seconds(seconds: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn the_task_that_waits_is_woken_by_an_earlier_deadline_and_by_no_later_one() {
        let leases = leases();
        let waiting = {
            let leases = leases.clone();
            tokio::spawn(async move { leases.next().await })
        };
        tokio::task::yield_now().await;
        let later = Sid::new();
        let _later = leases.grant(later, an_identity("carl", Some(in_seconds(3600))));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        // Due at once, since the notice is a minute.
        let (soon, end) = (Sid::new(), in_seconds(30));
        let lease = leases.grant(soon, an_identity("carl", Some(end)));
        let due = timeout(Duration::from_secs(30), waiting).await;
        assert_eq!(due.unwrap().unwrap(), Due::Expiring(soon, end));
        assert_eq!(lease.noticed(), Some(end));
        assert_eq!(lease.end(), None);
    }

    #[tokio::test]
    async fn a_deadline_is_waited_for() {
        let leases = Leases::new(Duration::from_millis(1), Duration::ZERO);
        let (sid, end) = (Sid::new(), SystemTime::now() + Duration::from_millis(200));
        let _lease = leases.grant(sid, an_identity("carl", Some(end)));
        let due = timeout(Duration::from_secs(30), leases.next()).await;
        assert_eq!(due, Ok(Due::Expiring(sid, end)));
        let now = SystemTime::now();
        assert!(now >= end - Duration::from_millis(1), "{now:?} {end:?}");
    }

    #[tokio::test]
    async fn a_lease_without_an_end_or_for_a_thousand_years_is_never_due() {
        let leases = leases();
        let _endless = leases.grant(Sid::new(), an_identity("carl", None));
        let millennium = in_seconds(1000 * 365 * 24 * 3600);
        let _long = leases.grant(Sid::new(), an_identity("carl", Some(millennium)));
        let next = timeout(Duration::from_millis(50), leases.next());
        assert!(next.await.is_err());
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
            // In the sequence of an order: the revocation is remembered first, then the leases end.
            let order = threads.spawn(|| {
                wait_for(&has_begun);
                is_revoked.store(true, Ordering::SeqCst);
                leases.revoke(|identity| identity.token_id() == Some("new"))
            });
            let renewed = lease.renew(a_token("carl", None, None, Some("new")), |_| {
                assert!(!is_revoked.load(Ordering::SeqCst));
                has_begun.store(true, Ordering::SeqCst);
                // The order has now reached the leases, or is about to.
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
