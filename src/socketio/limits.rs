//! How much a client may ask for: connects by address and by session, refusals by
//! address, events by socket; and how many sessions there may be.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::HeaderMap;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::TrustedProxies;

/// Seconds' worth of the allowed rate that may come at once.
const BURST_SECONDS: u32 = 5;

/// The same as a time.
const BURST: Duration = Duration::from_secs(BURST_SECONDS as u64);

/// How many connects pass between two removals of addresses that are idle.
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

    /// Whether one more connect of this client is allowed, and from which address
    /// it comes.
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

/// How often an Engine.IO session may ask to be let in. A client asks once, and makes
/// a new session after a refusal or a disconnect.
const CONNECTS_PER_SESSION: u32 = 10;

/// How often of these it may be refused.
const REFUSALS_PER_SESSION: u32 = 3;

/// Counts how often an Engine.IO session asks to be let in; clones count together.
#[derive(Clone, Default)]
pub struct SessionConnects(Arc<Asked>);

#[derive(Default)]
struct Asked {
    connects: AtomicU32,
    /// Those that were not let in, or not yet.
    in_vain: AtomicU32,
    is_closed: AtomicBool,
}

impl SessionConnects {
    /// Judges one more.
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

    /// Notes that one was let in.
    pub fn succeeded(&self) {
        self.0.in_vain.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Addresses whose refusals are remembered at once. Further ones are not limited:
/// whoever has that many addresses is not stopped by a limit for each.
const MAX_REFUSED_ADDRESSES: usize = 65_536;

/// Limits how often each client ([`client_network`]) may be refused.
///
/// Unlike [`ConnectLimit`], it is asked before what may end in a refusal, and told
/// after it: who is let in costs nothing.
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
            // Not for each of a flood.
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
        // Those that were on their way do not add up.
        *until = ((*until).max(now) + price).min(now + BURST);
    }

    fn lock(&self) -> MutexGuard<'_, Paid> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many sessions there are, of all clients together; clones count together.
#[derive(Clone, Default)]
pub struct Slots(Arc<AtomicU32>);

/// One session's place among them, until it is dropped.
pub struct Slot(Slots);

impl Slots {
    /// A slot, if `limit` allows one more; 0: no limit.
    pub fn take(&self, limit: u32) -> Option<Slot> {
        let limit = if limit == 0 { u32::MAX } else { limit };
        let one_more = |taken| (taken < limit).then(|| taken + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| Slot(self.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Limits the rate of one socket's events.
pub struct EventLimit {
    /// `None`: no limit.
    limiter: Option<DefaultDirectRateLimiter>,
    exceeded: AtomicBool,
}

/// What the limit says of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// The first one too many.
    TooMany,
    /// One after that.
    Ignored,
}

impl EventLimit {
    /// As [`ConnectLimit::new`], for one socket.
    pub fn new(per_second: u32) -> Self {
        Self {
            limiter: quota(per_second).map(RateLimiter::direct),
            exceeded: AtomicBool::new(false),
        }
    }

    /// Judges one more event.
    pub fn check(&self) -> Verdict {
        let is_exceeded = || match &self.limiter {
            Some(limiter) => limiter.check().is_err(),
            None => false,
        };
        match self.exceeded.load(Ordering::Relaxed) || is_exceeded() {
            false => Verdict::Allowed,
            true if self.exceeded.swap(true, Ordering::Relaxed) => Verdict::Ignored,
            true => Verdict::TooMany,
        }
    }
}

fn quota(per_second: u32) -> Option<Quota> {
    let burst = NonZeroU32::new(per_second.saturating_mul(BURST_SECONDS))?;
    NonZeroU32::new(per_second).map(|rate| Quota::per_second(rate).allow_burst(burst))
}

/// What counts as one client: its address, or the network of an IPv6 subscriber.
pub fn client_network(peer: SocketAddr, headers: &HeaderMap, proxies: &TrustedProxies) -> IpAddr {
    network(client_address(peer.ip(), headers, proxies))
}

/// Who connects: the peer, or, if that is a trusted proxy, whom it names in
/// `X-Forwarded-For`. That header may be written by anybody and is added to by
/// each proxy, so it is read from its end, as far as the proxies are trusted.
fn client_address(peer: IpAddr, headers: &HeaderMap, proxies: &TrustedProxies) -> IpAddr {
    let values = headers.get_all("x-forwarded-for").iter();
    let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let named = values.iter().rev().flat_map(|value| value.rsplit(','));
    let mut address = peer.to_canonical();
    for named in named {
        if !proxies.contain(address) {
            break;
        }
        let Some(named) = parse_address(named.trim()) else {
            break;
        };
        address = named;
    }
    address
}

/// An address, with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let address = text
        .parse()
        .or_else(|_| text.parse().map(|address: SocketAddr| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// What counts as one client: an IPv6 subscriber has a whole /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_client_is_whom_the_last_untrusted_hop_names() {
        let proxies: TrustedProxies = "10.0.0.0/8, 192.168.1.1, fd00::/8".parse().unwrap();
        for (peer, values, expected) in [
            ("1.1.1.1", &["2.2.2.2"][..], "1.1.1.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["2.2.2.2"], "2.2.2.2"),
            // What the client wrote itself comes first.
            ("10.0.0.1", &["9.9.9.9, 2.2.2.2"], "2.2.2.2"),
            ("10.0.0.1", &["9.9.9.9", "2.2.2.2, 192.168.1.1"], "2.2.2.2"),
            ("10.0.0.1", &["nonsense, 10.9.9.9"], "10.9.9.9"),
            ("::ffff:10.0.0.1", &["2.2.2.2:4711"], "2.2.2.2"),
            ("fd00::1", &["[2001:db8::7]:80"], "2001:db8::7"),
        ] {
            let address = client_address(peer.parse().unwrap(), &headers(values), &proxies);
            assert_eq!(
                address,
                expected.parse::<IpAddr>().unwrap(),
                "{peer} {values:?}"
            );
        }
    }

    #[test]
    fn slots_are_taken_until_they_are_dropped() {
        let slots = Slots::default();
        let taken: Vec<Slot> = (0..20).filter_map(|_| slots.take(10)).collect();
        assert_eq!(taken.len(), 10);
        drop(taken);
        assert!(slots.take(1).is_some());
        let unlimited: Vec<Option<Slot>> = (0..1000).map(|_| slots.take(0)).collect();
        assert!(unlimited.iter().all(Option::is_some));
    }

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
        // Those that were looked at all at once do not shut it out for longer.
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
