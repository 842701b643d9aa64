//! Limits on how often clients connect: by address, and within one Engine.IO session.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use axum::http::HeaderMap;
use governor::{DefaultKeyedRateLimiter, RateLimiter};

use super::{
    Verdict,
    addresses::{client_address, network},
    quota,
};
use crate::config::TrustedProxies;

/// Connects between two removals of idle addresses.
const CLEAN_UP_EVERY: u32 = 10_000;

/// Limits the rate of connects of each address.
#[derive(Clone)]
pub struct ConnectLimit(Arc<ByAddress>);

struct ByAddress {
    /// `None`: no limit.
    limiter: Option<DefaultKeyedRateLimiter<IpAddr>>,
    proxies: TrustedProxies,
    checked: AtomicU32,
}

impl ConnectLimit {
    /// `per_second` connects per address on average, five times as many at once;
    /// 0: no limit.
    pub fn new(per_second: u32, proxies: TrustedProxies) -> Self {
        Self(Arc::new(ByAddress {
            limiter: quota(per_second).map(RateLimiter::keyed),
            proxies,
            checked: AtomicU32::new(0),
        }))
    }

    /// Whether one more connect of this client is allowed.
    ///
    /// # Errors
    /// With the client's address, if it is not allowed.
    pub fn check(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), IpAddr> {
        let Some(limiter) = &self.0.limiter else {
            return Ok(());
        };
        let address = client_address(peer.ip(), headers, &self.0.proxies);
        if self
            .0
            .checked
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(CLEAN_UP_EVERY)
        {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        limiter.check_key(&network(address)).map_err(|_| address)
    }
}

/// How often an Engine.IO session may ask to be let in. A client asks once, and opens a
/// new session after a refusal or a disconnect.
const CONNECTS_PER_SESSION: u32 = 10;

/// How many of these may be refused.
const REFUSALS_PER_SESSION: u32 = 3;

/// Counts how often an Engine.IO session asks to be let in; clones count together.
#[derive(Clone, Default)]
pub struct SessionConnects(Arc<Asked>);

#[derive(Default)]
struct Asked {
    connects: AtomicU32,
    /// Connects that were not let in, or not yet.
    in_vain: AtomicU32,
    is_closed: AtomicBool,
}

impl SessionConnects {
    /// Judges one more connect.
    pub fn check(&self) -> Verdict {
        let connects = self.0.connects.fetch_add(1, Ordering::Relaxed);
        let in_vain = self.0.in_vain.fetch_add(1, Ordering::Relaxed);
        if connects < CONNECTS_PER_SESSION && in_vain < REFUSALS_PER_SESSION {
            return Verdict::Allowed;
        }
        match self.0.is_closed.swap(true, Ordering::Relaxed) {
            false => Verdict::TooMany,
            true => Verdict::Ignored,
        }
    }

    /// Notes that a connect was let in.
    pub fn succeeded(&self) {
        self.0.in_vain.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_refused_a_few_times_and_may_come_and_go_more_often() {
        let refused = SessionConnects::default();
        let verdicts: Vec<_> = (0..5).map(|_| refused.check()).collect();
        let mut expected = vec![Verdict::Allowed; 3];
        expected.extend([Verdict::TooMany, Verdict::Ignored]);
        assert_eq!(verdicts, expected);
        let let_in = SessionConnects::default();
        let verdicts = (0..20).map(|_| {
            let verdict = let_in.check();
            let_in.succeeded();
            verdict
        });
        let allowed = verdicts.filter(|verdict| *verdict == Verdict::Allowed);
        assert_eq!(allowed.count(), 10);
    }

    #[test]
    fn each_address_has_a_rate_of_its_own() {
        let limit = ConnectLimit::new(2, TrustedProxies::default());
        let allowed = |peer: &str| {
            let peer = peer.parse().unwrap();
            (0..50)
                .filter(|_| limit.check(peer, &HeaderMap::new()).is_ok())
                .count()
        };
        assert!((10..13).contains(&allowed("1.1.1.1:1")));
        assert!((10..13).contains(&allowed("1.1.1.2:1")));
        assert!((10..13).contains(&allowed("[2001:db8::1]:1")));
        // The same subscriber.
        assert!(allowed("[2001:db8::2]:1") < 3);
        let unlimited = ConnectLimit::new(0, TrustedProxies::default());
        let peer = "1.1.1.1:1".parse().unwrap();
        assert!((0..10_000).all(|_| unlimited.check(peer, &HeaderMap::new()).is_ok()));
    }
}
