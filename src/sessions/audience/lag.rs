//! How far a socket may lag: the limits on what waits for it, and what happens to a
//! socket beyond them.
//!
//! A socket whose client takes too little is first put behind: updates wait for it in
//! the log, once for all of the user's sockets. When too much waits there, or a buffer
//! overflows all the same, the socket is cut: its transport is closed. A reconnect is
//! better than a hole in the stream of updates.

use std::iter::successors;

use tracing::{debug, warn};

use super::{Audience, Member, Roster, Status};
use crate::{
    broker::Delivery,
    sessions::{log::Log, peer::Peer},
};

/// Bytes that a socket is handed ahead of what its client has taken: a burst of
/// ordinary updates. Filled with the smallest updates, these bytes are still fewer
/// packets than a socket's buffer takes.
const MAX_AHEAD_BYTES: usize = 64 * 1024;

/// The same for a socket that polls, which takes this much in one round trip.
const MAX_AHEAD_POLLING_BYTES: usize = 512 * 1024;

/// Bytes of updates that may wait for a socket which is behind, besides those that
/// are kept for recovery anyway. Enough for many bursts, and a limit on what one
/// stuck phone costs.
const MAX_BEHIND_BYTES: usize = 8 * 1024 * 1024;

/// How far a socket lags behind what it was handed.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// Bytes of events handed to the socket.
    handed: u64,
    /// Bytes that its client had taken when that was last looked up.
    taken: u64,
}

impl Lag {
    /// Notes that nothing waits for the socket any more.
    pub(super) fn clear(&mut self) {
        self.handed = self.taken;
    }

    /// Notes that `bytes` were handed to the socket.
    pub(super) fn add(&mut self, bytes: u64) {
        self.handed += bytes;
    }

    /// Whether as much waits for the socket as it may be handed ahead. Looks up what
    /// the client has taken only where that may be so.
    pub(super) fn is_full<P: Peer>(&mut self, peer: &P) -> bool {
        let limit = match peer.polls() {
            true => MAX_AHEAD_POLLING_BYTES,
            false => MAX_AHEAD_BYTES,
        } as u64;
        if self.handed - self.taken > limit {
            self.taken = peer.taken();
            // Pings and the like count as taken, but not as handed. Over time, what is
            // taken would outrun what was handed.
            self.handed = self.handed.max(self.taken);
        }
        self.handed - self.taken > limit
    }
}

impl<P: Peer> Audience<P> {
    /// Puts a live member behind if its client takes too little. [`Audience::catch_up`]
    /// must then hand it the events after `seen`. Returns the member's socket.
    pub(super) fn falls_behind(&self, member: &mut Member<P>, seen: u64) -> Option<P> {
        let Status::Live(peer) = &member.status else {
            return None;
        };
        if !member.lag.is_full(peer) {
            return None;
        }
        debug!(user_id = %self.user.id, sid = %peer.id(), "a socket lags behind");
        let peer = peer.clone();
        self.leave_crowd(member);
        if let Some(recovery) = &mut member.recovery {
            recovery.fall_behind();
        }
        member.status = Status::Behind {
            seen,
            peer: Some(peer.clone()),
        };
        peer.more_waits(true);
        Some(peer)
    }

    /// Whether more waits for a socket that has seen all up to `seen` than may wait.
    pub(super) fn is_too_far_behind(&self, log: &Log, seen: u64) -> bool {
        let kept = self.shared.limits.map_or(0, |limits| limits.bytes);
        let max = kept.saturating_add(MAX_BEHIND_BYTES);
        // The sum over the whole log is known; the one over what waits has to be made.
        log.bytes() > max && log.bytes_after(seen) > max
    }

    /// Cuts a live member.
    pub(super) fn cut_off(&self, member: &mut Member<P>, problem: &str) {
        self.leave_crowd(member);
        if let Status::Live(peer) = std::mem::replace(&mut member.status, Status::Cut) {
            self.cut(&peer, problem);
        }
    }

    /// Cuts a session's socket, if the session is still behind.
    pub(in crate::sessions) fn give_up(&self, session: u64, peer: &P, problem: &str) {
        let mut roster = self.roster();
        let Some(member) = roster.member(session) else {
            return;
        };
        if matches!(member.status, Status::Behind { .. }) {
            member.status = Status::Cut;
            self.cut(peer, problem);
            self.trim(&mut roster, self.shared.clock.now());
        }
    }

    /// Closes the transport of a socket that does not keep up. The caller sets the
    /// member's status.
    pub(super) fn cut(&self, peer: &P, problem: &str) {
        warn!(user_id = %self.user.id, problem, "closing a socket that does not keep up");
        self.shared.metrics.slow_sockets.inc();
        peer.close();
    }

    /// Cuts the sockets for which more than `bytes` of updates wait, to free memory;
    /// returns whether there were any.
    pub(in crate::sessions) fn cut_behind(&self, bytes: usize) -> bool {
        let mut roster = self.roster();
        let Roster { members, log, .. } = &mut *roster;
        let mut were_any = false;
        for member in members {
            let Status::Behind {
                seen,
                peer: Some(peer),
            } = &member.status
            else {
                continue;
            };
            if log.bytes_after(*seen) > bytes {
                self.cut(peer, "too much waits, and memory is short");
                member.status = Status::Cut;
                were_any = true;
            }
        }
        self.trim(&mut roster, self.shared.clock.now());
        were_any
    }

    /// Bytes of updates that wait for connected sockets which are behind.
    pub(in crate::sessions) fn waiting_bytes(&self) -> usize {
        let past = self.past();
        let roster = self.roster();
        let waiting = |seen: u64| match &past {
            None => roster.log.bytes_after(seen),
            Some(past) => {
                let next = |number| past.next_for(&self.user, number);
                let number = |it: &Delivery<'_>| it.position.map_or(u64::MAX, |it| it.number);
                let updates = successors(next(seen / 2), |last| next(number(last)));
                updates.map(|update| update.body.len()).sum()
            }
        };
        let behind = roster.members.iter();
        let behind = behind.filter_map(|member| match member.status {
            Status::Behind { seen, .. } => Some(waiting(seen)),
            _ => None,
        });
        behind.sum()
    }
}
