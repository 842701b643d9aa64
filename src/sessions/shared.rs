//! What the audiences of one hub share: settings, totals over all users, and the clock.
//!
//! Users and their sessions are not here: the hub and its audiences own them.

use std::time::Duration;

use super::{clock::Clock, counts::Count, departures::Departures, kept::Kept, log::Limits};
use crate::{
    config::{Envelope, HttpConfig},
    observability::metrics::Metrics,
};

/// What a hub shares with every audience.
pub(super) struct Shared {
    /// `None`: recovery is off.
    pub(super) limits: Option<Limits>,
    pub(super) envelope: Envelope,
    pub(super) drops_repeated: bool,
    /// How long a socket that lags may take nothing.
    pub(super) write_timeout: Duration,
    pub(super) clock: Clock,
    /// The sessions that are away.
    pub(super) departures: Departures,
    pub(super) kept: Kept,
    pub(super) sockets: Count,
    /// Users with a socket.
    pub(super) users: Count,
    /// Users without a socket who may return.
    pub(super) users_away: Count,
    pub(super) metrics: Metrics,
}

impl Shared {
    pub(super) fn new(config: &HttpConfig, metrics: Metrics) -> Self {
        let recovery = &config.recovery;
        let limits = Limits {
            window: recovery.window,
            updates: recovery.max_updates,
            bytes: recovery.max_bytes,
        };
        Self {
            limits: (!limits.window.is_zero()).then_some(limits),
            envelope: config.envelope,
            drops_repeated: config.drop_repeated_updates,
            write_timeout: config.socket_write_timeout,
            clock: Clock::default(),
            departures: Departures::default(),
            kept: Kept::new(recovery.total_bytes, &metrics),
            sockets: Count::new(&metrics.sockets),
            users: Count::new(&metrics.users),
            users_away: Count::new(&metrics.users_away),
            metrics,
        }
    }
}
