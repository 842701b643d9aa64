//! The price of an update that is none of the instance's users'. One of a hundred is for a
//! user with a socket, so that the load generator sees how far the server is.

use std::io;
use std::time::Duration;

use serde_json::Value;

use super::{Bench, STRAGGLERS, per_second, rounded};

/// Foreign updates for each that somebody receives.
const FOREIGN: u32 = 99;
/// Updates under way, of which one of a hundred is seen to arrive.
const WINDOW: u32 = 5000;

impl Bench {
    pub(super) fn foreign(&mut self, time: Duration) -> io::Result<Value> {
        let start = self.begin();
        let mut elsewhere = 0_u32;
        while start.at.elapsed() < time && self.fleet.ledger.alive() {
            while self.fleet.ledger.outstanding < WINDOW / FOREIGN && self.fleet.writable() {
                for _ in 0..FOREIGN {
                    self.fleet.foreign(elsewhere);
                    elsewhere = elsewhere.wrapping_add(1);
                }
                self.update();
            }
            self.fleet.turn(Duration::from_millis(100))?;
        }
        let mut figures = self.end(&start, STRAGGLERS)?;
        let counts = &self.fleet.ledger.counts;
        let took = Duration::from_micros(counts.last.saturating_sub(start.clock));
        let all = f64::from(elsewhere + counts.updates);
        let share = all / f64::from(counts.updates.max(1));
        figures["elsewhere"] = elsewhere.into();
        figures["per_second"] = per_second(all, took).into();
        for name in ["server_cpu_us_per_update", "broker_cpu_us_per_update"] {
            let each = figures[name].as_f64().unwrap_or_default() / share;
            figures[name] = rounded(each).into();
        }
        Ok(figures)
    }
}
