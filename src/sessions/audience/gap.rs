//! Gaps: which sockets may have missed updates, and have to be told. A frontend fetches after
//! a reconnect that is not recovered, so they are told by the loss of their transport.

use super::{Audience, Roster, Status};
use crate::{broker::Subscribed, sessions::peer::Peer};

impl<P: Peer> Audience<P> {
    /// Finds the sockets that may have missed updates since the last look, and has them closed.
    pub(in crate::sessions) fn look_for_gaps(&self) {
        self.note_stretch(&mut self.roster());
    }

    /// Notes it if updates may have been missed; returns the current run.
    pub(super) fn note_stretch(&self, roster: &mut Roster<P>) -> Option<u64> {
        let stretch = self.subscribed.get().and_then(Subscribed::stretch)?;
        if std::mem::replace(&mut roster.stretch, stretch) != stretch {
            roster.log.hole();
            self.tell_of_gap(roster);
        }
        Some(stretch)
    }

    /// Has the sockets closed that were let in before the current run began.
    fn tell_of_gap(&self, roster: &mut Roster<P>) {
        if !self.shared.resyncs {
            return;
        }
        for member in &mut roster.members {
            let (Status::Live(peer)
            | Status::Behind {
                peer: Some(peer), ..
            }) = &member.status
            else {
                continue;
            };
            if std::mem::replace(&mut member.is_told, true) {
                continue;
            }
            let peer = peer.clone();
            if self.shared.common.is_some() {
                // What it were handed from now on, it could take to another instance, which
                // does not know of the gap. What it took before is sent.
                let _ = peer.flush();
                member.status = Status::Cut;
            }
            self.resync(peer);
        }
    }

    /// Has a socket closed, at a pace, since it may have missed updates.
    pub(super) fn resync(&self, peer: P) {
        self.shared.metrics.resyncs.inc();
        self.shared.resync.push(move || peer.close());
    }
}
