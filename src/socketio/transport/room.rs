//! Room for connections: how many there may be, and which gives way.
//!
//! A connection that carries a socket which was let in stays. All others have
//! to be few: of one address (an IPv6 /64 is one; trusted proxies have no
//! limit), and of all, so that descriptors remain for what the process needs
//! besides. A newcomer beyond that takes the place of the connection that has
//! waited longest for a request; if none waits, the newcomer of a full gateway
//! is served health checks only, and that of an address is closed.
//!
//! Pure: numbers go in, and who gives way comes out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use crate::{config::TrustedProxies, socketio::limits::network};

/// Descriptors for the log, RabbitMQ and the like; half of them for health checks.
const RESERVED_DESCRIPTORS: usize = 64;

/// Who is here.
pub(super) struct Room {
    /// Connections of one address that carry no socket.
    of_address: usize,
    /// All connections, of whatever kind.
    all: usize,
    /// How many more are accepted for health checks.
    reserve: usize,
    proxies: TrustedProxies,
    open: usize,
    /// Those that do not carry a websocket's socket.
    places: HashMap<u64, Place>,
    /// Connections that wait for a request, by their turn: whoever waits longest first.
    waiting: BTreeMap<u64, u64>,
    turns: u64,
    addresses: HashMap<IpAddr, Address>,
}

struct Place {
    /// `None`: without a limit.
    address: Option<IpAddr>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// For a request, since this turn.
    Waiting(u64),
    /// A request is being answered.
    Busy,
    /// The request is one of a socket that was let in.
    Carrying,
}

#[derive(Default)]
struct Address {
    connections: usize,
    waiting: BTreeSet<u64>,
}

/// What is to be done about a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Welcome,
    /// In the place of this connection, which must be closed.
    InPlaceOf(u64, Lack),
    /// For health checks only.
    ProbesOnly,
    Closed(Lack),
}

/// What there is not enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    OfAddress,
    OfAll,
}

impl Lack {
    /// As a metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::OfAddress => "address",
            Self::OfAll => "full",
        }
    }
}

impl Room {
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
            let state = State::Busy;
            self.places.insert(number, Place { address, state });
            self.count(address, State::Busy, 1);
            self.waits(number);
        }
        entry
    }

    /// A request of the connection is being answered.
    pub(super) fn busy(&mut self, number: u64) {
        self.change(number, State::Busy);
    }

    /// The request is one of a socket that was let in.
    pub(super) fn carries(&mut self, number: u64) {
        self.change(number, State::Carrying);
    }

    /// The connection waits for a request.
    pub(super) fn waits(&mut self, number: u64) {
        let turn = self.turns;
        self.turns += 1;
        self.change(number, State::Waiting(turn));
    }

    /// The connection carries a socket until it ends, or was told to close.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(Place { address, state }) = self.places.remove(&number) {
            self.count(address, state, -1);
            if let State::Waiting(turn) = state {
                self.waiting.remove(&turn);
            }
        }
    }

    /// The connection has ended.
    pub(super) fn leave(&mut self, number: u64) {
        self.remove(number);
        self.open -= 1;
    }

    fn change(&mut self, number: u64, state: State) {
        let Some(place) = self.places.get_mut(&number) else {
            return;
        };
        let address = place.address;
        let before = std::mem::replace(&mut place.state, state);
        self.count(address, before, -1);
        self.count(address, state, 1);
        if let State::Waiting(turn) = before {
            self.waiting.remove(&turn);
        }
        if let State::Waiting(turn) = state {
            self.waiting.insert(turn, number);
        }
    }

    /// Adds a connection to those of its address, or takes it away.
    fn count(&mut self, address: Option<IpAddr>, state: State, change: isize) {
        let Some(address) = address.filter(|_| state != State::Carrying) else {
            return;
        };
        let here = self.addresses.entry(address).or_default();
        here.connections = here.connections.saturating_add_signed(change);
        if let State::Waiting(turn) = state {
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

    fn room(of_address: u32, descriptors: usize) -> Room {
        Room::new(of_address, "10.0.0.0/8".parse().unwrap(), descriptors)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn whoever_waits_longest_gives_way_to_a_newcomer_of_the_address() {
        let mut room = room(2, MANY);
        for number in [1, 2] {
            assert_eq!(room.enter(number, ip("1.1.1.1")), Entry::Welcome);
        }
        room.busy(1);
        room.waits(1);
        let in_place_of = |number| Entry::InPlaceOf(number, Lack::OfAddress);
        assert_eq!(room.enter(3, ip("1.1.1.1")), in_place_of(2));
        room.leave(2);
        assert_eq!(room.enter(4, ip("::ffff:1.1.1.1")), in_place_of(1));
        for number in [3, 4] {
            room.busy(number);
        }
        assert_eq!(room.enter(5, ip("1.1.1.1")), Entry::Closed(Lack::OfAddress));
        assert_eq!(room.enter(6, ip("1.1.1.2")), Entry::Welcome);
        // What carries a socket does not count.
        room.carries(3);
        assert_eq!(room.enter(7, ip("1.1.1.1")), Entry::Welcome);
        room.remove(7);
        assert_eq!(room.enter(8, ip("1.1.1.1")), Entry::Welcome);
    }

    #[test]
    fn proxies_have_no_limit_and_a_subscribers_network_is_one_address() {
        let mut room = room(1, MANY);
        assert!((0..100).all(|number| room.enter(number, ip("10.0.0.1")) == Entry::Welcome));
        assert_eq!(room.enter(100, ip("2001:db8::1")), Entry::Welcome);
        let second = room.enter(101, ip("2001:db8::2"));
        assert_eq!(second, Entry::InPlaceOf(100, Lack::OfAddress));
        let mut unlimited = super::tests::room(0, MANY);
        assert!((0..100).all(|number| unlimited.enter(number, ip("1.1.1.1")) == Entry::Welcome));
    }

    #[test]
    fn a_full_gateway_still_serves_health_checks() {
        let mut room = room(0, 128);
        for number in 0..64 {
            assert_eq!(room.enter(number, ip("1.1.1.1")), Entry::Welcome);
        }
        let newcomer = room.enter(64, ip("1.1.1.2"));
        assert_eq!(newcomer, Entry::InPlaceOf(0, Lack::OfAll));
        room.leave(0);
        for number in 1..=64 {
            room.busy(number);
        }
        for number in 65..97 {
            assert_eq!(room.enter(number, ip("1.1.1.2")), Entry::ProbesOnly);
            room.busy(number);
        }
        assert_eq!(room.enter(97, ip("1.1.1.2")), Entry::Closed(Lack::OfAll));
        room.leave(97);
        for number in 65..97 {
            room.leave(number);
        }
        room.leave(5);
        assert_eq!(room.enter(98, ip("1.1.1.2")), Entry::Welcome);
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_connections_that_are_here(
            steps in proptest::collection::vec((0..6_u8, 0..30_u64, 0..3_u8), 0..400),
        ) {
            let mut room = room(4, 40);
            let mut here = BTreeSet::new();
            for (step, number, address) in steps {
                let peer = IpAddr::from([1, 1, 1, address]);
                match step {
                    0 | 1 => if here.insert(number) {
                        room.enter(number, peer);
                    },
                    2 => room.busy(number),
                    3 => room.waits(number),
                    4 => room.carries(number),
                    _ => if here.remove(&number) {
                        room.leave(number);
                    },
                }
                prop_assert_eq!(room.open, here.len());
                prop_assert!(room.places.keys().all(|number| here.contains(number)));
                let waiting = |place: &Place| matches!(place.state, State::Waiting(_));
                let counted = room.places.values().filter(|place| waiting(place)).count();
                prop_assert_eq!(room.waiting.len(), counted);
                for (address, entry) in &room.addresses {
                    let of_it = || room.places.values().filter(|place| place.address == Some(*address));
                    let counted = of_it().filter(|place| place.state != State::Carrying).count();
                    prop_assert_eq!(entry.connections, counted);
                    prop_assert_eq!(entry.waiting.len(), of_it().filter(|place| waiting(place)).count());
                }
            }
            for number in here {
                room.leave(number);
            }
            prop_assert!(room.addresses.is_empty() && room.places.is_empty() && room.open == 0);
        }
    }
}
