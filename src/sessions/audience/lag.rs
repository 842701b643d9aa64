//! How far a socket may lag: the limits on what waits for it, and what happens to a
//! socket beyond them.
//!
//! A socket that does not take an update at once is put behind: updates wait for it in
//! the log, once for all of the user's sockets. When too much waits there, the socket is cut:
//! its transport is closed. A reconnect is better than a hole in the stream of updates.

use std::{iter::successors, sync::Arc};

use tracing::{debug, warn};

use super::{Audience, Member, Roster, Status};
use crate::{
    broker::Delivery,
    sessions::{log::Log, peer::Peer},
};

/// Bytes of updates that may wait for a socket which is behind, besides those that
/// are kept for recovery anyway. Enough for many bursts, and a limit on what one
/// stuck phone costs.
const MAX_BEHIND_BYTES: usize = 8 * 1024 * 1024;

impl<P: Peer> Audience<P> {
    /// Puts a live member behind, whose socket took the events up to `seen` and takes no more.
    /// A task of its own hands it the others.
    pub(super) fn falls_behind(self: &Arc<Self>, member: &mut Member<P>, seen: u64) {
        let Status::Live(peer) = &member.status else {
            return;
        };
        debug!(user_id = %self.user.id, sid = %peer.id(), "a socket lags behind");
        peer.more_waits(true);
        if let Some(recovery) = &mut member.recovery {
            recovery.fall_behind();
        }
        let (audience, session, peer) = (self.clone(), member.session, peer.clone());
        member.status = Status::Behind {
            seen,
            peer: Some(peer.clone()),
        };
        tokio::spawn(async move { audience.catch_up(session, &peer).await });
    }

    /// Whether more waits for a socket that has seen all up to `seen` than may wait.
    pub(super) fn is_too_far_behind(&self, log: &Log, seen: u64) -> bool {
        let kept = self.shared.limits.map_or(0, |limits| limits.bytes);
        let max = kept.saturating_add(MAX_BEHIND_BYTES);
        // The sum over the whole log is known; the one over what waits has to be made.
        log.bytes() > max && log.bytes_after(seen) > max
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

    /// Bytes of updates that wait for connected sockets which are behind. Not 0 while one still
    /// has to send what it took.
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
            Status::Behind { seen, .. } => Some(waiting(seen).max(1)),
            _ => None,
        });
        behind.sum()
    }
}
