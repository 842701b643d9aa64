//! Catch-up: a socket that is behind, since its session was just resumed or since it
//! lagged, is handed what waits for it in the log, at the pace of its client.
//!
//! Invariant: a member that is behind is fed by one [`Audience::catch_up`], which ends
//! when the member is live or its session is over.

use std::time::Duration;

use tokio::{task::yield_now, time::sleep};

use super::{Audience, Roster, Status, events::Events};
use crate::{
    sessions::peer::{EmitError, Peer},
    update::Update,
};

/// Bytes that a socket which catches up is handed before its writer gets a turn: the
/// buffer that gathers them for one write does not shrink again. As much as a queue's
/// consumer adds in one turn, so that a burst does not outrun the socket.
const TURN_BYTES: u64 = 16 * 1024;

/// Pause for a socket whose client has not taken what it was handed.
const PAUSE: Duration = Duration::from_millis(5);

/// The same while the client goes on taking nothing.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// How far [`Audience::feed`] got.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sessions) enum Fed {
    /// The socket has caught up and is live.
    Live,
    /// There is more, after the socket's writer has had its turn.
    Turn,
    /// There is more, once the client has taken some.
    Full,
    /// The session is over, or another connection has taken it over.
    Over,
}

impl<P: Peer> Audience<P> {
    /// Hands an admitted session's socket what it was not handed yet, at the pace at
    /// which its client takes it, until the socket is live. Returns `false` if the
    /// session is over, or another connection of the client has taken it over.
    pub(in crate::sessions) async fn catch_up(&self, session: u64, peer: &P) -> bool {
        let (mut pause, mut progress) = (PAUSE, self.shared.clock.now());
        let mut taken = peer.taken();
        loop {
            match self.feed(session, peer) {
                Fed::Live => return true,
                Fed::Over => return false,
                Fed::Turn => yield_now().await,
                Fed::Full if self.shared.clock.now() - progress > self.shared.write_timeout => {
                    self.give_up(session, peer, "nothing of what waits is taken");
                }
                Fed::Full => {
                    sleep(pause).await;
                    pause = MAX_PAUSE.min(pause * 2);
                }
            }
            let by_now = peer.taken();
            // Less, if one of several connections has ended.
            if by_now != taken {
                (taken, pause, progress) = (by_now, PAUSE, self.shared.clock.now());
            } else if pause == MAX_PAUSE && peer.has_taken_all() {
                self.forgive(session);
            }
        }
    }

    /// One step of [`Self::catch_up`].
    pub(in crate::sessions) fn feed(&self, session: u64, peer: &P) -> Fed {
        let mut roster = self.roster();
        let Roster { members, log, .. } = &mut *roster;
        let member = members.iter_mut().find(|member| member.session == session);
        let Some((member, mut seen)) = member.and_then(|member| match member.status {
            Status::Behind { seen, .. } => Some((member, seen)),
            _ => None,
        }) else {
            return Fed::Over;
        };
        let with_offsets = member.recovery.is_some();
        let mut in_turn = 0;
        let fed = loop {
            let Some(entry) = log.after(seen).next() else {
                break Fed::Live;
            };
            if member.lag.is_full(peer) {
                break Fed::Full;
            }
            if in_turn > TURN_BYTES {
                break Fed::Turn;
            }
            let Ok(update) = Update::decode(&entry.body) else {
                // Cannot happen: the body was decoded when it was kept.
                seen = entry.last;
                continue;
            };
            let specialised = update.specialised_event_in(self.shared.envelope);
            let events = Events::new(log, entry.first, &update, specialised);
            in_turn += events.wire_bytes(peer, with_offsets);
            let seen_before = seen;
            let emitted = events.emit(peer, &mut seen, with_offsets, &mut member.lag);
            for name in events.names(seen_before, seen) {
                self.shared.metrics.emitted(name, 1);
            }
            match emitted {
                Ok(()) => {}
                Err(EmitError::Full) => break Fed::Full,
                Err(EmitError::Closed | EmitError::Unencodable) => break Fed::Over,
            }
        };
        let now = self.shared.clock.now();
        member.status = match fed {
            Fed::Live => {
                if let Some(recovery) = &mut member.recovery {
                    recovery.go_live(now);
                }
                peer.more_waits(false);
                Status::Live(peer.clone())
            }
            Fed::Full | Fed::Turn if self.is_too_far_behind(log, seen) => {
                self.cut(peer, "too many bytes wait");
                Status::Cut
            }
            _ => Status::Behind {
                seen,
                peer: Some(peer.clone()),
            },
        };
        if matches!(member.status, Status::Behind { .. }) {
            if fed == Fed::Turn {
                return fed;
            }
            peer.more_waits(true);
        }
        self.gather_crowd(&mut roster);
        self.trim(&mut roster, now);
        fed
    }

    /// Takes it that nothing waits for a session's socket. It should have been counted
    /// so, but a mistake there would keep updates from the socket for ever.
    fn forgive(&self, session: u64) {
        if let Some(member) = self.roster().member(session) {
            member.lag.clear();
        }
    }
}
