//! What the audiences of one hub share: settings, totals over all users, and the clock.
//!
//! Users and their sessions are not here: the hub and its audiences own them.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use super::{
    clock::Clock,
    counts::Count,
    departures::Departures,
    kept::Kept,
    log::Limits,
    resume::{Claim, ResumeRequest},
    resync::Resync,
    seal::{self, Seal},
};
use crate::{
    broker::{
        history::{Bounds, History},
        presence::Attendance,
    },
    config::{Envelope, HttpConfig, RecoveryConfig},
    observability::metrics::Metrics,
    user::User,
};

/// What the instances of a fleet have in common: with it, a session is resumed at any of
/// them, and needs no memory of its own.
pub(super) struct Common {
    pub(super) history: Arc<History>,
    pub(super) seal: Seal,
}

impl Common {
    fn new(history: Arc<History>, recovery: &RecoveryConfig) -> Self {
        // A client that was sent nothing may stand half a window back (see `quiet`), and be
        // away for a whole one. The rest is for being late.
        let age = recovery.window + recovery.window / 2 + recovery.window / 4;
        history.keep(Bounds {
            bytes: recovery.total_bytes,
            age,
        });
        let secrets = &recovery.secrets.0;
        let seal = if seal::bytes(secrets).next().is_none() {
            warn!(
                "RECOVERY_SECRET is not set, and there is no JWT_SECRET to derive it from: other \
                 instances, and this one after a restart, recover no connection"
            );
            Seal::random(history.log())
        } else {
            Seal::new(seal::bytes(secrets), history.log())
        };
        Self { history, seal }
    }
}

/// What a hub shares with every audience.
pub(super) struct Shared {
    /// `None`: recovery is off.
    pub(super) limits: Option<Limits>,
    /// `None` where sessions are this process's own, or cannot be resumed.
    pub(super) common: Option<Common>,
    /// Whether sockets that may have missed updates are closed.
    pub(super) resyncs: bool,
    pub(super) resync: Resync,
    pub(super) envelope: Envelope,
    pub(super) drops_repeated: bool,
    /// How long a socket that lags may take nothing.
    pub(super) write_timeout: Duration,
    pub(super) clock: Clock,
    /// The sessions that are away.
    pub(super) departures: Departures,
    pub(super) kept: Kept,
    /// Where to note how many sockets users have, if others want to know.
    pub(super) attendance: Option<Arc<Attendance>>,
    pub(super) sockets: Count,
    /// Users with a socket.
    pub(super) users: Count,
    /// Users without a socket who may return.
    pub(super) users_away: Count,
    pub(super) metrics: Metrics,
}

impl Shared {
    pub(super) fn new(
        config: &HttpConfig,
        history: Option<Arc<History>>,
        attendance: Option<Arc<Attendance>>,
        metrics: Metrics,
    ) -> Self {
        let recovery = &config.recovery;
        let limits = Limits {
            window: recovery.window,
            updates: recovery.max_updates,
            bytes: recovery.max_bytes,
        };
        let is_on = !limits.window.is_zero();
        let common = history.filter(|_| is_on);
        let common = common.map(|history| Common::new(history, recovery));
        Self {
            limits: is_on.then_some(limits),
            resyncs: recovery.resync_on_gap || common.is_some(),
            resync: Resync::new(config.max_connects_per_second),
            common,
            envelope: config.envelope,
            drops_repeated: config.drop_repeated_updates,
            write_timeout: config.socket_write_timeout,
            clock: Clock::default(),
            departures: Departures::default(),
            kept: Kept::new(recovery.total_bytes, &metrics),
            attendance,
            sockets: Count::new(&metrics.sockets),
            users: Count::new(&metrics.users),
            users_away: Count::new(&metrics.users_away),
            metrics,
        }
    }

    /// What a client asks for, verified.
    pub(super) fn claim(&self, user: &User, request: ResumeRequest) -> Claim {
        let seal = self.common.as_ref().map(|common| &common.seal);
        match self.limits {
            Some(_) => Claim::of(request, user, seal),
            None => Claim::OptOut,
        }
    }
}
