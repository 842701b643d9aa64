//! What ends in the background: sessions that were away for longer than the window,
//! and, where too much is kept for all users together, what costs most to keep.

use std::{sync::Weak, time::Duration};

use tokio::{
    select,
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::warn;

use super::Hub;
use crate::{observability::sampled::Sampled, sessions::peer::Peer};

/// Longest time between two looks at what has expired.
const MAX_EXPIRY_TICK: Duration = Duration::from_secs(5);

/// Time between two evictions, each of which looks at all users.
const EVICTION_PAUSE: Duration = Duration::from_millis(100);

/// A socket for which more bytes of updates wait is far behind, and the first to be
/// closed where memory is short: more than a burst, and than most replays.
const FAR_BEHIND_BYTES: usize = 1024 * 1024;

/// Users who are looked after in one step.
const AT_ONCE: usize = 64;

/// However little of the past there is memory for, quiet sockets are not told more often.
const LEAST_QUIET: Duration = Duration::from_secs(2);

/// Lines about evictions.
static EVICTED: Sampled = Sampled::new();

/// Ends what has expired, and frees memory, for as long as the hub lives.
pub(super) async fn run<P: Peer>(hub: Weak<Hub<P>>) {
    let Some(shared) = hub.upgrade().map(|hub| hub.shared.clone()) else {
        return;
    };
    let tick = match shared.limits {
        None => MAX_EXPIRY_TICK,
        Some(limits) => (limits.window / 8).clamp(Duration::from_millis(50), MAX_EXPIRY_TICK),
    };
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_tick = select! {
            _ = ticks.tick() => true,
            () = shared.kept.over_limit() => false,
        };
        let Some(hub) = hub.upgrade() else { return };
        if is_tick {
            for () in hub.expire() {
                yield_now().await;
            }
        }
        hub.evict();
        drop(hub);
        if !is_tick {
            sleep(EVICTION_PAUSE).await;
        }
    }
}

impl<P: Peer> Hub<P> {
    /// Ends the sessions that were away for too long, and drops what is too old. In short steps:
    /// each may write to the sockets of some users.
    pub(in crate::sessions) fn expire(&self) -> impl Iterator<Item = ()> {
        let window = self.shared.limits.map(|limits| limits.window);
        let deadline = self
            .shared
            .clock
            .now()
            .checked_sub(window.unwrap_or_default());
        let departures = &self.shared.departures;
        while let Some((user, session)) = deadline.and_then(|at| departures.take_before(at)) {
            if let Some(audience) = self.audience(&user) {
                audience.expire(session);
                self.remove_if_empty(&user);
            }
        }
        // A place is kept for more than a window and a half; a look comes every eighth.
        // Where the memory for it ends sooner, places grow old sooner.
        let quiet = window.unwrap_or_default() * 3 / 8;
        let common = self.shared.common.as_ref();
        let reach = common.and_then(|common| common.history.look().reach());
        let quiet = reach.map_or(quiet, |reach| quiet.min((reach / 4).max(LEAST_QUIET)));
        let mut audiences = self.audiences().into_iter();
        std::iter::from_fn(move || {
            let some = audiences.by_ref().take(AT_ONCE);
            let looked_after = some.inspect(|audience| {
                audience.tidy();
                audience.tell_quiet(quiet);
            });
            (looked_after.count() > 0).then_some(())
        })
    }

    /// Frees memory if too much is kept. Sockets that lag far behind are closed
    /// first; then users without a socket lose recovery, in the order in which they
    /// left; then all users do; then all sockets that lag are closed.
    pub(in crate::sessions) fn evict(&self) {
        let kept = &self.shared.kept;
        if kept.bytes() <= kept.limit() {
            return;
        }
        // Some way below the limit, so that not every tick has to evict.
        let target = kept.limit() / 10 * 9;
        let is_enough = || kept.bytes() <= target;
        if let Some(line) = EVICTED.note("") {
            warn!(
                bytes = kept.bytes(),
                limit = kept.limit(),
                left_out = line.left_out,
                "too much is kept for recovery: sockets that lag and the users away longest lose it"
            );
        }
        let audiences = self.audiences();
        let cut_behind = |bytes| {
            for audience in audiences.iter().take_while(|_| !is_enough()) {
                if audience.cut_behind(bytes) {
                    audience.forget();
                }
            }
        };
        cut_behind(FAR_BEHIND_BYTES);
        let away = self.shared.departures.all();
        for (user, session) in away.into_iter().take_while(|_| !is_enough()) {
            if let Some(audience) = self.audience(&user) {
                audience.evict_if_away_since(session);
                self.remove_if_empty(&user);
            }
        }
        for audience in audiences.iter().take_while(|_| !is_enough()) {
            audience.forget();
        }
        cut_behind(0);
    }
}
