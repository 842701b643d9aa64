//! The way back of sockets that lost their connection: the session that each of them keeps,
//! when it tries again, and how that went. Opens no connection itself.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::client::Session;

/// Recorded absences end here: five minutes, in milliseconds.
const LONGEST_ABSENCE: u64 = 300_000;

/// The waits of `socket.io-client`: `reconnectionDelay` and `reconnectionDelayMax`.
#[derive(Clone, Copy)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl FromStr for Backoff {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let millis = |text: &str| text.parse().map(Duration::from_millis);
        match text
            .split_once(':')
            .map(|(first, longest)| (millis(first), millis(longest)))
        {
            Some((Ok(first), Ok(longest))) => Ok(Self { first, longest }),
            _ => Err(format!("{text:?} is not MS:MS")),
        }
    }
}

pub struct Comebacks {
    /// Sockets whose connection is lost.
    pub away: usize,
    /// Connections lost since the phase began.
    pub losses: u32,
    pub recovered: u32,
    pub refused: u32,
    /// From the loss to the CONNECT reply, in milliseconds.
    pub took: Histogram<u64>,
    backoff: Option<Backoff>,
    seats: Vec<Seat>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    random: u64,
}

#[derive(Default)]
struct Seat {
    session: Session,
    away_since: Option<Instant>,
    attempts: u32,
}

impl Comebacks {
    pub fn new(sockets: usize, backoff: Option<Backoff>) -> Self {
        Self {
            away: 0,
            losses: 0,
            recovered: 0,
            refused: 0,
            took: Histogram::new_with_bounds(1, LONGEST_ABSENCE, 3)
                .expect("bounds within the rules"),
            backoff,
            seats: (0..sockets).map(|_| Seat::default()).collect(),
            due: BinaryHeap::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A new phase.
    pub fn begin(&mut self) {
        (self.losses, self.recovered, self.refused) = (0, 0, 0);
        self.took.reset();
    }

    /// What the socket sends of its session; `None` where sockets do not come back.
    pub fn session(&self, socket: usize) -> Option<&Session> {
        self.backoff.map(|_| &self.seats[socket].session)
    }

    /// The socket lost its connection, or did not get one. False where sockets do not come back.
    pub fn lost(&mut self, socket: usize, had_joined: bool, offset: Vec<u8>) -> bool {
        let Some(Backoff { first, longest }) = self.backoff else {
            return false;
        };
        let now = Instant::now();
        let spread = self.spread();
        let seat = &mut self.seats[socket];
        if had_joined {
            seat.session.offset = offset;
            seat.away_since = Some(now);
            seat.attempts = 0;
            self.away += 1;
            self.losses += 1;
        }
        let wait = first
            .saturating_mul(1 << seat.attempts.min(16))
            .mul_f64(spread);
        seat.attempts += 1;
        self.due.push(Reverse((now + wait.min(longest), socket)));
        true
    }

    /// A socket whose next try is due.
    pub fn due(&mut self, now: Instant) -> Option<usize> {
        let &Reverse((due, socket)) = self.due.peek()?;
        (due <= now).then(|| {
            self.due.pop();
            socket
        })
    }

    /// The socket has joined with `pid`. Returns whether it had to refetch; `None` for its first
    /// time.
    pub fn joined(&mut self, socket: usize, pid: &[u8]) -> Option<bool> {
        let seat = &mut self.seats[socket];
        let is_recovered = !pid.is_empty() && seat.session.pid == pid;
        if !is_recovered {
            // The offset stays, as in `socket.io-client`.
            seat.session.pid = pid.to_vec();
        }
        seat.attempts = 0;
        let since = seat.away_since.take()?;
        self.away -= 1;
        let took = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.took.saturating_record(took);
        if is_recovered {
            self.recovered += 1;
        } else {
            self.refused += 1;
        }
        Some(!is_recovered)
    }

    /// The client's jitter: half as much to half more.
    fn spread(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = u32::try_from(self.random >> 40).unwrap_or_default();
        0.5 + f64::from(share) / f64::from(1 << 24)
    }
}
