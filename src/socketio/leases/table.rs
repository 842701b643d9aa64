//! The terms of all leases, and their deadlines in order. Pure: the time comes from the
//! caller.
//!
//! Invariants: a lease has at most one deadline, and [`Table::take`] returns the earliest
//! one first. Each token's coming end falls due once, and its end once.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

use socketioxide::socket::Sid;

use crate::auth::{Identity, Refusal};

/// Why a lease is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Expired,
    Revoked,
}

/// What has fallen due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The token of this socket expires soon.
    Expiring(Sid, SystemTime),
    /// The token of this socket has expired.
    Expired(Sid),
}

pub(super) struct Table {
    /// How long before its end a lease's holder is told.
    notice: Duration,
    /// How long after its expiry a token is still accepted.
    leeway: Duration,
    terms: HashMap<u64, Terms>,
    /// The deadlines, with the numbers of their leases.
    deadlines: BTreeSet<(SystemTime, u64)>,
    granted: u64,
}

struct Terms {
    sid: Sid,
    identity: Identity,
    /// The coming end has fallen due for announcement.
    noticed: bool,
    ended: Option<End>,
    /// The lease's place in [`Table::deadlines`].
    deadline: Option<SystemTime>,
}

impl Table {
    pub(super) fn new(notice: Duration, leeway: Duration) -> Self {
        Self {
            notice,
            leeway,
            terms: HashMap::new(),
            deadlines: BTreeSet::new(),
            granted: 0,
        }
    }

    /// Adds a lease and returns its number.
    pub(super) fn grant(&mut self, sid: Sid, identity: Identity) -> u64 {
        self.granted += 1;
        let terms = Terms {
            sid,
            identity,
            noticed: false,
            ended: None,
            deadline: None,
        };
        self.terms.insert(self.granted, terms);
        self.schedule(self.granted);
        self.granted
    }

    pub(super) fn give_back(&mut self, number: u64) {
        if let Some(terms) = self.terms.remove(&number)
            && let Some(deadline) = terms.deadline
        {
            self.deadlines.remove(&(deadline, number));
        }
    }

    /// See [`Lease::renew`](super::Lease::renew).
    pub(super) fn renew(
        &mut self,
        number: u64,
        identity: Identity,
        check: impl FnOnce(&Identity) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let terms = self.terms.get_mut(&number);
        let terms = terms.ok_or(Refusal::AnotherUser)?;
        if terms.ended.is_some() || terms.identity.user() != identity.user() {
            return Err(Refusal::AnotherUser);
        }
        check(&identity)?;
        terms.identity = identity;
        terms.noticed = false;
        self.schedule(number);
        Ok(())
    }

    pub(super) fn revoke(&mut self, is_one: impl Fn(&Identity) -> bool) -> Vec<Sid> {
        let terms = self.terms.values_mut();
        let revoked = terms.filter(|terms| is_one(&terms.identity)).map(|terms| {
            terms.ended = Some(End::Revoked);
            terms.sid
        });
        revoked.collect()
    }

    /// The earliest deadline.
    pub(super) fn first(&self) -> Option<SystemTime> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Whether this lease has the earliest deadline.
    pub(super) fn is_first(&self, number: u64) -> bool {
        self.deadlines.first().is_some_and(|(_, it)| *it == number)
    }

    /// Takes what fell due first, if anything has by now.
    pub(super) fn take(&mut self, now: SystemTime) -> Option<Due> {
        let (at, number) = *self.deadlines.first()?;
        if at > now {
            return None;
        }
        let end_of = |expires_at| end(expires_at, self.leeway);
        let terms = self.terms.get_mut(&number);
        let terms = terms.expect("a deadline is that of a lease");
        let expires_at = terms.identity.expires_at();
        let expires_at = expires_at.expect("a lease with a deadline has an end");
        if now >= end_of(expires_at) {
            terms.ended = terms.ended.or(Some(End::Expired));
            terms.deadline = None;
            self.deadlines.remove(&(at, number));
            return Some(Due::Expired(terms.sid));
        }
        terms.noticed = true;
        let due = Due::Expiring(terms.sid, expires_at);
        self.schedule(number);
        Some(due)
    }

    pub(super) fn end_of(&self, number: u64) -> Option<End> {
        self.terms.get(&number).and_then(|terms| terms.ended)
    }

    pub(super) fn noticed(&self, number: u64) -> Option<SystemTime> {
        let terms = self.terms.get(&number).filter(|terms| terms.noticed);
        terms.and_then(|terms| terms.identity.expires_at())
    }

    /// Gives a lease its next deadline, in place of the last one.
    fn schedule(&mut self, number: u64) {
        let Some(terms) = self.terms.get_mut(&number) else {
            return;
        };
        if let Some(deadline) = terms.deadline.take() {
            self.deadlines.remove(&(deadline, number));
        }
        let Some(expires_at) = terms.identity.expires_at() else {
            return;
        };
        let at = match terms.noticed {
            true => end(expires_at, self.leeway),
            false => expires_at.checked_sub(self.notice).unwrap_or(expires_at),
        };
        terms.deadline = Some(at);
        self.deadlines.insert((at, number));
    }
}

/// When a token of that expiry is no longer accepted: its last second counts.
fn end(expires_at: SystemTime, leeway: Duration) -> SystemTime {
    let after = leeway + Duration::from_secs(1);
    expires_at.checked_add(after).unwrap_or(expires_at)
}
