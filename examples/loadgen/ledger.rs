//! The account of what was published: every event of every socket is received, lost,
//! doubled or out of order. Knows no network.
//!
//! Within a phase, `expected == events + lost` once the phase is settled.

use std::collections::{HashSet, VecDeque};

use hdrhistogram::Histogram;

use super::client::{Event, Kind, Owner};

/// Recorded latencies end here: five minutes.
const LONGEST_LATENCY: u64 = 300_000_000;

/// Counted since the phase began.
#[derive(Default, Clone)]
pub struct Counts {
    pub updates: u32,
    pub expected: u32,
    pub events: u32,
    pub lost: u32,
    pub doubled: u32,
    pub misordered: u32,
    pub foreign: u32,
    pub closed: u32,
    /// Events that came into no session any more, since their client had to refetch.
    pub skipped: u32,
    /// Events that came although they were published before such a client was back.
    pub early: u32,
    /// Updates of which every socket has received both events.
    pub delivered: u32,
    /// When the last event came, on the load generator's clock.
    pub last: u64,
}

pub struct Ledger {
    pub counts: Counts,
    /// Of `chat3:update`, in microseconds.
    pub latency: Histogram<u64>,
    /// Updates that some socket still waits for.
    pub outstanding: u32,
    /// Sockets that have not received both events since [`Ledger::probe`].
    pub unreached: usize,
    users: Vec<User>,
    tracks: Vec<Track>,
    per_user: usize,
    /// Events given up, by socket, kind and number: they may still come.
    missing: HashSet<(usize, usize, u32)>,
}

#[derive(Default)]
struct User {
    published: u32,
    /// The number of the last update when the phase began.
    before: u32,
    sockets: u32,
    /// The last updates, up to `published`: earlier ones are settled.
    pending: VecDeque<Pending>,
}

struct Pending {
    events: u32,
    whole: bool,
}

#[derive(Default)]
struct Track {
    alive: bool,
    /// The last number seen of each event; none yet while probing.
    last: [Option<u32>; 2],
    /// The last number that the client has fetched instead.
    fetched: u32,
}

impl Ledger {
    pub fn new(users: usize, per_user: usize) -> Self {
        let latency =
            Histogram::new_with_bounds(1, LONGEST_LATENCY, 3).expect("bounds within the rules");
        Self {
            counts: Counts::default(),
            latency,
            outstanding: 0,
            unreached: 0,
            users: (0..users).map(|_| User::default()).collect(),
            tracks: (0..users * per_user).map(|_| Track::default()).collect(),
            per_user,
            missing: HashSet::new(),
        }
    }

    /// A new phase: from here on every socket must receive every update.
    pub fn begin(&mut self) {
        self.counts = Counts::default();
        self.latency.reset();
        for (number, track) in self.tracks.iter_mut().enumerate() {
            let user = &mut self.users[number / self.per_user];
            user.before = user.published;
            track.last = track.last.map(|last| last.or(Some(user.published)));
        }
    }

    /// A new phase: each socket must receive every update after the first that it receives.
    pub fn probe(&mut self) {
        self.begin();
        for track in &mut self.tracks {
            track.last = [None; 2];
        }
        self.unreached = self.tracks.iter().filter(|track| track.alive).count();
    }

    pub fn reached(&self, user: usize) -> bool {
        let sockets = user * self.per_user..(user + 1) * self.per_user;
        self.tracks[sockets]
            .iter()
            .all(|track| !track.alive || track.last.iter().all(Option::is_some))
    }

    /// Whether all of the user's sockets are connected.
    pub fn has_all(&self, user: usize) -> bool {
        self.users[user].sockets as usize == self.per_user
    }

    /// Whether any socket is left to receive something.
    pub fn alive(&self) -> bool {
        self.users.iter().any(|user| user.sockets > 0)
    }

    pub fn joined(&mut self, socket: usize) {
        self.tracks[socket].alive = true;
        self.unreached += 1;
        self.users[socket / self.per_user].sockets += 1;
    }

    /// The number of the user's next update; `probing`: no socket must receive it.
    pub fn publish(&mut self, user: usize, probing: bool) -> u32 {
        let user = &mut self.users[user];
        user.published += 1;
        self.counts.updates += 1;
        let events = if probing { 0 } else { 2 * user.sockets };
        if events > 0 {
            self.outstanding += 1;
        }
        if events > 0 || !user.pending.is_empty() {
            user.pending.push_back(Pending {
                events,
                whole: true,
            });
        }
        self.counts.expected += events;
        user.published
    }

    pub fn receive(&mut self, socket: usize, event: &Event, now: u64) {
        let user = socket / self.per_user;
        if !matches!(event.owner, Owner::User(owner) if owner as usize == user) {
            self.counts.foreign += 1;
            return;
        }
        self.counts.last = now;
        let kind = event.kind as usize;
        let seq = event.seq;
        let track = &mut self.tracks[socket];
        let last = track.last[kind].replace(seq);
        match last {
            Some(last) if seq <= last => {
                track.last[kind] = Some(last);
                if seq <= track.fetched {
                    self.counts.early += 1;
                } else {
                    self.late(socket, kind, seq);
                }
                return;
            }
            Some(last) => (last + 1..seq).for_each(|seq| self.lose(socket, kind, seq)),
            None if track.last.iter().all(Option::is_some) => self.unreached -= 1,
            None => {}
        }
        self.counts.events += 1;
        if matches!(event.kind, Kind::Update) {
            self.latency
                .saturating_record(now.saturating_sub(event.sent));
        }
        self.settle(user, seq, true);
    }

    pub fn close(&mut self, socket: usize) {
        if !self.tracks[socket].alive {
            return;
        }
        if self.tracks[socket].last.iter().any(Option::is_none) {
            self.unreached = self.unreached.saturating_sub(1);
        }
        self.give_up(socket);
        self.tracks[socket].alive = false;
        self.users[socket / self.per_user].sockets -= 1;
        self.counts.closed += 1;
    }

    /// The client is back, was refused its session, and has fetched all that was published.
    pub fn refetch(&mut self, socket: usize) {
        let user = socket / self.per_user;
        let published = self.users[user].published;
        for kind in 0..2 {
            let Some(last) = self.tracks[socket].last[kind].replace(published) else {
                continue;
            };
            for seq in last + 1..=published {
                self.counts.skipped += 1;
                self.counts.expected = self.counts.expected.saturating_sub(1);
                self.settle(user, seq, false);
            }
        }
        self.tracks[socket].fetched = published;
    }

    /// Whether nothing that was published since a socket was reached is still on its way.
    pub fn quiet(&self) -> bool {
        self.tracks.iter().enumerate().all(|(number, track)| {
            let published = self.users[number / self.per_user].published;
            !track.alive
                || track
                    .last
                    .iter()
                    .all(|last| last.is_none_or(|last| last == published))
        })
    }

    /// The phase is over: events that have not arrived by now are lost.
    pub fn finish(&mut self) {
        for socket in 0..self.tracks.len() {
            if self.tracks[socket].alive {
                self.give_up(socket);
            }
        }
    }

    fn give_up(&mut self, socket: usize) {
        let published = self.users[socket / self.per_user].published;
        for kind in 0..2 {
            let Some(last) = self.tracks[socket].last[kind] else {
                continue;
            };
            for seq in last + 1..=published {
                self.lose(socket, kind, seq);
            }
            self.tracks[socket].last[kind] = Some(published);
        }
    }

    fn lose(&mut self, socket: usize, kind: usize, seq: u32) {
        self.missing.insert((socket, kind, seq));
        self.counts.lost += 1;
        self.settle(socket / self.per_user, seq, false);
    }

    /// The event was given up, or it is a repeat.
    fn late(&mut self, socket: usize, kind: usize, seq: u32) {
        if !self.missing.remove(&(socket, kind, seq)) {
            self.counts.doubled += 1;
            return;
        }
        self.counts.misordered += 1;
        // An event given up in an earlier phase has been reported lost.
        if seq > self.users[socket / self.per_user].before {
            self.counts.lost = self.counts.lost.saturating_sub(1);
            self.counts.events += 1;
        }
    }

    /// Notes that there is one event less to wait for.
    fn settle(&mut self, user: usize, seq: u32, received: bool) {
        let user = &mut self.users[user];
        let back = user.published.saturating_sub(seq) as usize;
        let Some(at) = user.pending.len().checked_sub(back + 1) else {
            return;
        };
        let pending = &mut user.pending[at];
        if pending.events == 0 {
            return;
        }
        pending.events -= 1;
        pending.whole &= received;
        if pending.events == 0 {
            self.outstanding -= 1;
            self.counts.delivered += u32::from(pending.whole);
        }
        while user.pending.front().is_some_and(|first| first.events == 0) {
            user.pending.pop_front();
        }
    }
}
