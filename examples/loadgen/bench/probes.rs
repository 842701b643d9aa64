//! Updates to users who may not be subscribed yet: each gets one after the other until one
//! arrives. Publishes them at a steady rate, and keeps no account.

use std::time::{Duration, Instant};

use super::super::fleet::Fleet;
use super::super::ledger::Ledger;
use super::due;

const PROBES_PER_SECOND: u32 = 10_000;
/// Between two probes of the same user.
const PROBE_ROUND: Duration = Duration::from_millis(20);

pub struct Probes {
    start: Instant,
    sent: u32,
    /// The next client to be sent an update.
    next: usize,
    round: Instant,
}

impl Probes {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            sent: 0,
            next: 0,
            round: now,
        }
    }

    /// Publishes what is due to the unreached users who are `ready`.
    pub fn publish(
        &mut self,
        fleet: &mut Fleet,
        users: usize,
        ready: impl Fn(&Ledger, usize) -> bool,
    ) {
        let due = due(PROBES_PER_SECOND, self.start.elapsed());
        while self.sent < due && fleet.writable() {
            if self.next == users {
                if self.round.elapsed() < PROBE_ROUND {
                    break;
                }
                (self.next, self.round) = (0, Instant::now());
            }
            if !fleet.ledger.reached(self.next) && ready(&fleet.ledger, self.next) {
                fleet.probe(self.next);
                self.sent += 1;
            }
            self.next += 1;
        }
        // An unused part of the allowance is lost.
        self.sent = self.sent.max(due.saturating_sub(PROBES_PER_SECOND / 100));
    }
}
