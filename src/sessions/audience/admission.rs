//! Admission: where a joining session begins, and which earlier session it takes over.

use std::time::SystemTime;

use tracing::debug;

use super::{Audience, Roster, Status};
use crate::sessions::{
    peer::Peer,
    resume::{Admitted, Claim, Outcome, Pid, Recovery, resume_anywhere, resume_here},
    seal::Ticket,
};

impl<P: Peer> Audience<P> {
    /// Decides where a joining session begins: after what its client has seen, if
    /// everything since then is here and its session is not ended; otherwise with what comes
    /// from now on. The CONNECT reply to the socket `id` must carry what is returned.
    pub(in crate::sessions) fn admit(
        &self,
        session: u64,
        id: P::Id,
        claim: &Claim,
        is_ended: impl Fn(SystemTime) -> bool,
    ) -> Option<Admitted<P::Id>> {
        let past = self.past();
        let mut roster = self.roster();
        let stretch = self.note_stretch(&mut roster);
        // A session that left meanwhile must not take over anything.
        roster.member(session)?;
        let resumed = match claim {
            Claim::OptOut | Claim::New => None,
            Claim::Refused(outcome) => Some(Err(*outcome)),
            Claim::Resume { key, ticket, .. } => {
                let earlier = self.take_over(&mut roster, *key);
                Some(match (ticket, &past, &self.shared.common) {
                    (Some(ticket), _, _) if is_ended(ticket.begun) => Err(Outcome::Ended),
                    (Some(_), Some(past), Some(common)) => {
                        resume_anywhere(past, &common.seal, claim)
                    }
                    _ => resume_here(&roster.log, stretch, earlier, claim),
                })
            }
        };
        if let Some(resumed) = &resumed {
            let outcome = resumed.as_ref().err().copied();
            let outcome = outcome.unwrap_or(Outcome::Recovered);
            debug!(user_id = %self.user.id, ?outcome, "Connection recovery");
            self.shared.metrics.recovery(outcome.label());
        }
        let newest = match &past {
            Some(past) => 2 * past.last() + 1,
            None => roster.log.last(),
        };
        let resumed = resumed.and_then(Result::ok);
        let is_resumed = resumed.is_some();
        let (recovery, seen) = match (resumed, claim) {
            (Some((recovery, seen)), _) => (Some(recovery), seen),
            (None, Claim::OptOut) => (None, newest),
            (None, _) => {
                let key = match &past {
                    Some(_) => Ticket::new(id, None).key(),
                    None => rand::random(),
                };
                (Some(Recovery::begin(newest, key, id)), newest)
            }
        };
        let admitted_in = roster.stretch;
        let member = roster.member(session)?;
        member.status = Status::Behind { seen, peer: None };
        member.recovery = recovery;
        member.stretch = admitted_in;
        self.settle(&mut roster);
        let Recovery { id, key, .. } = recovery?;
        let pid = match (claim, &past, &self.shared.common) {
            (Claim::Resume { pid, .. }, ..) if is_resumed => *pid,
            (_, Some(past), Some(common)) => {
                let start = past.newest().and_then(|newest| common.seal.place(&newest));
                let ticket = Ticket::new(id, start);
                Pid::Sealed(common.seal.seal(&self.user, &ticket))
            }
            _ => Pid::Known(key),
        };
        Some(Admitted { id, pid })
    }

    /// Removes the session `key` in favour of its client's new connection. The old connection
    /// may still look alive, e.g. that of a phone which changed networks.
    fn take_over(&self, roster: &mut Roster<P>, key: u128) -> Option<Recovery<P::Id>> {
        let mut members = roster.members.iter();
        let index = members.position(|member| member.is_session(key))?;
        let mut member = roster.members.swap_remove(index);
        self.leave_crowd(&mut member);
        match &member.status {
            Status::Live(peer)
            | Status::Behind {
                peer: Some(peer), ..
            } => peer.close(),
            Status::Away(since) if self.is_expired(since.at()) => return None,
            _ => {}
        }
        member.recovery
    }
}
