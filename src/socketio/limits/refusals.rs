//! Limits how often clients are refused, by address.
//!
//! Invariants: a client that is let in uses nothing up; memory is bounded.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::BURST_SECONDS;

/// [`BURST_SECONDS`] as a time.
const BURST: Duration = Duration::from_secs(BURST_SECONDS as u64);

/// Addresses whose refusals are remembered at once. Further addresses are not limited: a
/// client with that many is not stopped by a limit for each.
const MAX_REFUSED_ADDRESSES: usize = 65_536;

/// Limits how often each client
/// ([`client_network`](super::client_network)) may be refused.
///
/// It is asked before an attempt that may be refused, and told after a refusal.
pub struct RefusalLimit {
    /// What one refusal costs. `None`: no limit.
    price: Option<Duration>,
    paid: Mutex<Paid>,
}

#[derive(Default)]
struct Paid {
    /// Until when each client has used its rate up.
    until: HashMap<IpAddr, Instant>,
    swept: Option<Instant>,
}

impl RefusalLimit {
    /// `per_second` refusals per client on average, five times as many at once; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        let rate = NonZeroU32::new(per_second);
        Self {
            price: rate.map(|rate| Duration::from_secs(1) / rate.get()),
            paid: Mutex::default(),
        }
    }

    /// Whether this client has been refused too often to be looked at again now.
    pub fn is_exceeded(&self, client: IpAddr) -> bool {
        self.is_exceeded_at(client, Instant::now())
    }

    /// Notes that this client was refused.
    pub fn note(&self, client: IpAddr) {
        self.note_at(client, Instant::now());
    }

    fn is_exceeded_at(&self, client: IpAddr, now: Instant) -> bool {
        let Some(price) = self.price else {
            return false;
        };
        let paid = self.lock();
        let until = paid.until.get(&client);
        until.is_some_and(|until| *until + price > now + BURST)
    }

    fn note_at(&self, client: IpAddr, now: Instant) {
        let Some(price) = self.price else {
            return;
        };
        let mut paid = self.lock();
        let paid = &mut *paid;
        if paid.until.len() >= MAX_REFUSED_ADDRESSES && !paid.until.contains_key(&client) {
            // A flood must not cost a sweep for each of its addresses.
            let is_due = |swept: Instant| now.saturating_duration_since(swept) > BURST;
            if paid.swept.is_none_or(is_due) {
                paid.until.retain(|_, until| *until > now);
                paid.swept = Some(now);
            }
            if paid.until.len() >= MAX_REFUSED_ADDRESSES {
                return;
            }
        }
        let until = paid.until.entry(client).or_insert(now);
        // Refusals of attempts that ran at the same time do not add up.
        *until = ((*until).max(now) + price).min(now + BURST);
    }

    fn lock(&self) -> MutexGuard<'_, Paid> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_a_rate_by_address_that_whoever_is_let_in_does_not_use() {
        let limit = RefusalLimit::new(2);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let start = Instant::now();
        let refused_at = |client, millis| {
            let now = start + Duration::from_millis(millis);
            let looked_at = !limit.is_exceeded_at(client, now);
            if looked_at {
                limit.note_at(client, now);
            }
            looked_at
        };
        assert_eq!((0..50).filter(|_| refused_at(one, 0)).count(), 10);
        assert!(refused_at(other, 0));
        // Two a second, however often it asks.
        let in_ten_seconds = (1..=10_000).filter(|millis| refused_at(one, *millis));
        assert_eq!(in_ten_seconds.count(), 20);
        // A thousand attempts at the same time do not shut the client out for longer.
        for _ in 0..1_000 {
            limit.note_at(one, start + Duration::from_secs(20));
        }
        assert!(!refused_at(one, 20_000));
        assert!(refused_at(one, 20_600));
        let unlimited = RefusalLimit::new(0);
        assert!((0..1_000).all(|_| {
            unlimited.note(one);
            !unlimited.is_exceeded(one)
        }));
    }

    #[test]
    fn the_memory_for_refused_addresses_is_bounded_and_freed() {
        let limit = RefusalLimit::new(1);
        let start = Instant::now();
        let count = u32::try_from(MAX_REFUSED_ADDRESSES).unwrap();
        for number in 0..count + 10 {
            limit.note_at(IpAddr::V4(number.into()), start);
        }
        assert_eq!(limit.lock().until.len(), MAX_REFUSED_ADDRESSES);
        let later = start + 2 * BURST;
        limit.note_at("192.0.2.1".parse().unwrap(), later);
        assert_eq!(limit.lock().until.len(), 1);
    }
}
