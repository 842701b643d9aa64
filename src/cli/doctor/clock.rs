//! The publisher's clock against this machine's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::report::Report;

/// The clock difference that tokens tolerate with the default `JWT_LEEWAY`.
const TOLERATED: Duration = Duration::from_secs(5);

/// A difference above which valid tokens are refused, whatever the leeway.
const INTOLERABLE: Duration = Duration::from_secs(60);

/// Timestamps from this value on are milliseconds (see `rabbitmq::consumer`).
const FIRST_MILLISECONDS: u64 = 100_000_000_000;

/// The smallest difference seen, in milliseconds: the one with the least time spent in
/// queues. Positive if the clock of this machine is ahead.
#[derive(Default)]
pub(super) struct Clock(Option<i128>);

impl Clock {
    /// Notes the AMQP timestamp of an update, and when the update arrived.
    pub(super) fn note(&mut self, timestamp: Option<u64>, at: SystemTime) {
        let Some(ahead) = timestamp.and_then(|timestamp| ahead(timestamp, at)) else {
            return;
        };
        let is_least = self.0.is_none_or(|least| ahead.abs() < least.abs());
        if is_least {
            self.0 = Some(ahead);
        }
    }

    /// Reports the difference.
    pub(super) fn tell(&self, report: &mut Report) {
        let Some(ahead) = self.0 else {
            return report.unknown("clock", "cannot be told: the updates have no timestamp");
        };
        let milliseconds = u64::try_from(ahead.unsigned_abs()).unwrap_or(u64::MAX);
        let difference = Duration::from_millis(milliseconds);
        let seconds = difference.as_secs_f64();
        let finding = match ahead > 0 {
            true => format!(
                "{seconds:.1} s ahead of the publisher's timestamps, or updates are that late"
            ),
            false => format!("{seconds:.1} s behind the publisher's timestamps"),
        };
        let advice = "synchronise the clocks (timedatectl; chronyc tracking): tokens expire too early or are not valid yet, and latencies are wrong";
        if difference > INTOLERABLE {
            report.problem("clock", finding, advice);
        } else if difference > TOLERATED {
            report.warning("clock", finding, advice);
        } else {
            report.ok(
                "clock",
                format!("within {seconds:.1} s of the publisher's timestamps"),
            );
        }
    }
}

fn ahead(timestamp: u64, at: SystemTime) -> Option<i128> {
    let stamp = i128::from(timestamp);
    let here = at.duration_since(UNIX_EPOCH).ok()?;
    let here = i128::try_from(here.as_millis()).ok()?;
    // Chat3 writes milliseconds; AMQP means seconds, which are known to a second only.
    if timestamp >= FIRST_MILLISECONDS {
        return Some(here - stamp);
    }
    let difference = here - stamp * 1000;
    Some(difference - difference.clamp(0, 1000))
}
