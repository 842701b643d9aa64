//! How many connections there may be, and which of them gives way to another.
//!
//! A connection that carries a socket which was let in stays. All others must be few:
//! those of one address (an IPv6 /64 counts as one; trusted proxies have no limit),
//! and those of all addresses together, so that file descriptors remain for what else
//! the process needs. A connection beyond these limits takes the place of the one that
//! has waited longest for a request. Where none waits, an address's newcomer is closed,
//! and a newcomer to a full gateway is served health checks only.
//!
//! Pure: the numbers of connections go in, and the one that gives way comes out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use crate::{config::TrustedProxies, socketio::limits::network};

/// Descriptors kept for the log, RabbitMQ and the like; half of them for health checks.
const RESERVED_DESCRIPTORS: usize = 64;

/// The connections that are open, and the limits on them.
pub(super) struct Capacity {
    /// Limit on one address's connections that carry no socket.
    of_address: usize,
    /// Limit on all connections, of whatever kind.
    all: usize,
    /// How many more connections are accepted for health checks.
    reserve: usize,
    proxies: TrustedProxies,
    open: usize,
    /// The connections that do not carry a websocket's socket.
    places: HashMap<u64, Place>,
    /// Connections that wait for a request, by their turn: the longest wait comes first.
    waiting: BTreeMap<u64, u64>,
    turns: u64,
    addresses: HashMap<IpAddr, Address>,
}

struct Place {
    /// `None`: no limit applies.
    address: Option<IpAddr>,
    activity: Activity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// Waits for a request, since this turn.
    Waiting(u64),
    /// Has a request that is being answered.
    Busy,
    /// Has such a request, of a socket that was let in.
    Carrying,
}

#[derive(Default)]
struct Address {
    connections: usize,
    waiting: BTreeSet<u64>,
}

/// What happens to a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Welcome,
    /// Takes the place of this connection, which must be closed.
    InPlaceOf(u64, Lack),
    /// Is served health checks only.
    ProbesOnly,
    Closed(Lack),
}

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    OfAddress,
    OfAll,
}

impl Lack {
    /// The limit as a metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::OfAddress => "address",
            Self::OfAll => "full",
        }
    }
}

impl Capacity {
    /// `of_address`: how many connections without a socket an address may have, 0
    /// for any number. `descriptors`: how many the process may have open.
    pub(super) fn new(of_address: u32, proxies: TrustedProxies, descriptors: usize) -> Self {
        let reserved = RESERVED_DESCRIPTORS.min(descriptors / 2);
        Self {
            of_address: match of_address {
                0 => usize::MAX,
                limit => usize::try_from(limit).unwrap_or(usize::MAX),
            },
            all: descriptors - reserved,
            reserve: reserved / 2,
            proxies,
            open: 0,
            places: HashMap::new(),
            waiting: BTreeMap::new(),
            turns: 0,
            addresses: HashMap::new(),
        }
    }

    /// A connection was accepted. Unless it is closed at once, it waits for a request.
    pub(super) fn enter(&mut self, number: u64, peer: IpAddr) -> Entry {
        let peer = peer.to_canonical();
        let is_limited = self.of_address < usize::MAX && !self.proxies.contain(peer);
        let address = is_limited.then(|| network(peer));
        let here = address.and_then(|address| self.addresses.get(&address));
        let entry = if here.is_some_and(|here| here.connections >= self.of_address) {
            let longest = here.and_then(|here| here.waiting.first());
            let longest = longest.and_then(|turn| self.waiting.get(turn));
            match longest {
                Some(&number) => Entry::InPlaceOf(number, Lack::OfAddress),
                None => Entry::Closed(Lack::OfAddress),
            }
        } else if self.open < self.all {
            Entry::Welcome
        } else {
            match self.waiting.first_key_value() {
                Some((_, &number)) => Entry::InPlaceOf(number, Lack::OfAll),
                None if self.open < self.all + self.reserve => Entry::ProbesOnly,
                None => Entry::Closed(Lack::OfAll),
            }
        };
        if let Entry::InPlaceOf(number, _) = entry {
            self.remove(number);
        }
        self.open += 1;
        if !matches!(entry, Entry::Closed(_)) {
            let activity = Activity::Busy;
            self.places.insert(number, Place { address, activity });
            self.count(address, Activity::Busy, 1);
            self.waits(number);
        }
        entry
    }

    /// A request of the connection is being answered.
    pub(super) fn busy(&mut self, number: u64) {
        self.change(number, Activity::Busy);
    }

    /// That request is one of a socket that was let in.
    pub(super) fn carries(&mut self, number: u64) {
        self.change(number, Activity::Carrying);
    }

    /// The connection waits for a request.
    pub(super) fn waits(&mut self, number: u64) {
        let turn = self.turns;
        self.turns += 1;
        self.change(number, Activity::Waiting(turn));
    }

    /// The connection no longer counts: it carries a socket until it ends, or was told to
    /// close.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(Place { address, activity }) = self.places.remove(&number) {
            self.count(address, activity, -1);
            if let Activity::Waiting(turn) = activity {
                self.waiting.remove(&turn);
            }
        }
    }

    /// The connection has ended.
    pub(super) fn leave(&mut self, number: u64) {
        self.remove(number);
        self.open -= 1;
    }

    fn change(&mut self, number: u64, activity: Activity) {
        let Some(place) = self.places.get_mut(&number) else {
            return;
        };
        let address = place.address;
        let before = std::mem::replace(&mut place.activity, activity);
        self.count(address, before, -1);
        self.count(address, activity, 1);
        if let Activity::Waiting(turn) = before {
            self.waiting.remove(&turn);
        }
        if let Activity::Waiting(turn) = activity {
            self.waiting.insert(turn, number);
        }
    }

    /// Adds a connection to those of its address, or takes it away from them.
    fn count(&mut self, address: Option<IpAddr>, activity: Activity, change: isize) {
        let Some(address) = address.filter(|_| activity != Activity::Carrying) else {
            return;
        };
        let here = self.addresses.entry(address).or_default();
        here.connections = here.connections.saturating_add_signed(change);
        if let Activity::Waiting(turn) = activity {
            match change > 0 {
                true => here.waiting.insert(turn),
                false => here.waiting.remove(&turn),
            };
        }
        if here.connections == 0 {
            self.addresses.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MANY: usize = 1_000_000;

    fn capacity(of_address: u32, descriptors: usize) -> Capacity {
        Capacity::new(of_address, "10.0.0.0/8".parse().unwrap(), descriptors)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_connection_that_waits_longest_gives_way_to_a_newcomer_of_the_address() {
        let mut capacity = capacity(2, MANY);
        for number in [1, 2] {
            assert_eq!(capacity.enter(number, ip("1.1.1.1")), Entry::Welcome);
        }
        capacity.busy(1);
        capacity.waits(1);
        let in_place_of = |number| Entry::InPlaceOf(number, Lack::OfAddress);
        assert_eq!(capacity.enter(3, ip("1.1.1.1")), in_place_of(2));
        capacity.leave(2);
        assert_eq!(capacity.enter(4, ip("::ffff:1.1.1.1")), in_place_of(1));
        for number in [3, 4] {
            capacity.busy(number);
        }
        assert_eq!(
            capacity.enter(5, ip("1.1.1.1")),
            Entry::Closed(Lack::OfAddress)
        );
        assert_eq!(capacity.enter(6, ip("1.1.1.2")), Entry::Welcome);
        // A connection that carries a socket does not count.
        capacity.carries(3);
        assert_eq!(capacity.enter(7, ip("1.1.1.1")), Entry::Welcome);
        capacity.remove(7);
        assert_eq!(capacity.enter(8, ip("1.1.1.1")), Entry::Welcome);
    }

    #[test]
    fn proxies_have_no_limit_and_a_subscribers_network_is_one_address() {
        let mut capacity = capacity(1, MANY);
        assert!((0..100).all(|number| capacity.enter(number, ip("10.0.0.1")) == Entry::Welcome));
        assert_eq!(capacity.enter(100, ip("2001:db8::1")), Entry::Welcome);
        let second = capacity.enter(101, ip("2001:db8::2"));
        assert_eq!(second, Entry::InPlaceOf(100, Lack::OfAddress));
        let mut unlimited = super::tests::capacity(0, MANY);
        assert!((0..100).all(|number| unlimited.enter(number, ip("1.1.1.1")) == Entry::Welcome));
    }

    #[test]
    fn a_full_gateway_still_serves_health_checks() {
        let mut capacity = capacity(0, 128);
        for number in 0..64 {
            assert_eq!(capacity.enter(number, ip("1.1.1.1")), Entry::Welcome);
        }
        let newcomer = capacity.enter(64, ip("1.1.1.2"));
        assert_eq!(newcomer, Entry::InPlaceOf(0, Lack::OfAll));
        capacity.leave(0);
        for number in 1..=64 {
            capacity.busy(number);
        }
        for number in 65..97 {
            assert_eq!(capacity.enter(number, ip("1.1.1.2")), Entry::ProbesOnly);
            capacity.busy(number);
        }
        assert_eq!(
            capacity.enter(97, ip("1.1.1.2")),
            Entry::Closed(Lack::OfAll)
        );
        capacity.leave(97);
        for number in 65..97 {
            capacity.leave(number);
        }
        capacity.leave(5);
        assert_eq!(capacity.enter(98, ip("1.1.1.2")), Entry::Welcome);
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_connections_that_are_here(
            steps in proptest::collection::vec((0..6_u8, 0..30_u64, 0..3_u8), 0..400),
        ) {
            let mut capacity = capacity(4, 40);
            let mut here = BTreeSet::new();
            for (step, number, address) in steps {
                let peer = IpAddr::from([1, 1, 1, address]);
                match step {
                    0 | 1 => if here.insert(number) {
                        capacity.enter(number, peer);
                    },
                    2 => capacity.busy(number),
                    3 => capacity.waits(number),
                    4 => capacity.carries(number),
                    _ => if here.remove(&number) {
                        capacity.leave(number);
                    },
                }
                prop_assert_eq!(capacity.open, here.len());
                prop_assert!(capacity.places.keys().all(|number| here.contains(number)));
                let waiting = |place: &Place| matches!(place.activity, Activity::Waiting(_));
                let counted = capacity.places.values().filter(|place| waiting(place)).count();
                prop_assert_eq!(capacity.waiting.len(), counted);
                for (address, entry) in &capacity.addresses {
                    let of_it = || capacity.places.values().filter(|place| place.address == Some(*address));
                    let counted = of_it().filter(|place| place.activity != Activity::Carrying).count();
                    prop_assert_eq!(entry.connections, counted);
                    prop_assert_eq!(entry.waiting.len(), of_it().filter(|place| waiting(place)).count());
                }
            }
            for number in here {
                capacity.leave(number);
            }
            prop_assert!(capacity.addresses.is_empty() && capacity.places.is_empty() && capacity.open == 0);
        }
    }
}
