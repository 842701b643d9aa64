//! Catch-up: a socket that is behind, since its session was just resumed or since it
//! lagged, is handed what waits for it in the log or the history, at the pace of its client.
//!
//! Invariant: a member that is behind is fed by one [`Audience::catch_up`], which ends
//! when the member is live or its session is over.

use tokio::{task::yield_now, time::timeout};

use super::{Audience, Roster, Status, events::Events, unsent::Unsent};
use crate::{
    broker::{Delivery, history::Past},
    sessions::{
        log::{Entry, Log},
        peer::{Closed, Flushed, Peer},
    },
    update::Update,
};

/// Bytes of updates that a socket which catches up is handed in one hold of the user's lock.
const TURN_BYTES: usize = 64 * 1024;

/// What an update costs besides its body, in bytes: also one that is not sent.
const UPDATE_BYTES: usize = 256;

/// What waits for a socket.
enum Waiting<'a> {
    Nothing,
    /// An update in the user's log, ready to be sent.
    Kept(&'a Entry),
    /// An update in the history, with its number, as it was published.
    Past(u64, Delivery<'a>),
    /// Something that is no longer kept.
    Lost,
}

/// How far [`Audience::feed`] got.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sessions) enum Fed {
    /// The socket has caught up and is live.
    Live,
    /// There is more, after others had a turn.
    Turn,
    /// There is more, once the client has taken some.
    Full,
    /// There was more than is kept.
    Lost,
    /// The session is over, or another connection has taken it over.
    Over,
}

impl<P: Peer> Audience<P> {
    /// Hands an admitted session's socket what it was not handed yet, at the pace at
    /// which its client takes it, until the socket is live. Returns `false` if the
    /// session is over, or another connection of the client has taken it over.
    pub(in crate::sessions) async fn catch_up(&self, session: u64, peer: &P) -> bool {
        loop {
            match self.feed(session, peer) {
                Fed::Live => return true,
                Fed::Over | Fed::Lost => return false,
                Fed::Turn => yield_now().await,
                Fed::Full => {
                    let takes_more = timeout(self.shared.write_timeout, peer.takes_more());
                    if takes_more.await.is_err() {
                        self.give_up(session, peer, "nothing of what waits is taken");
                    }
                }
            }
        }
    }

    /// One step of [`Self::catch_up`].
    pub(in crate::sessions) fn feed(&self, session: u64, peer: &P) -> Fed {
        let past = self.past();
        let mut roster = self.roster();
        let Roster {
            members,
            log,
            stretch,
            ..
        } = &mut *roster;
        let member = members.iter_mut().find(|member| member.session == session);
        let Some((member, mut seen)) = member.and_then(|member| match member.status {
            Status::Behind { seen, .. } => Some((member, seen)),
            _ => None,
        }) else {
            return Fed::Over;
        };
        // What the socket took earlier may still have to be sent.
        let mut took = peer.flush().map(|flushed| flushed == Flushed::All);
        let (mut in_turn, mut unsent) = (0, Unsent::default());
        let fed = loop {
            match took {
                Ok(true) => {}
                Ok(false) => break Fed::Full,
                Err(Closed) => break Fed::Over,
            }
            let waiting = self.waiting(past.as_ref(), log, &mut seen);
            let bytes = match &waiting {
                Waiting::Nothing => break Fed::Live,
                Waiting::Lost => break Fed::Lost,
                Waiting::Kept(entry) => entry.body.len(),
                Waiting::Past(_, delivery) => delivery.body.len(),
            };
            if in_turn > TURN_BYTES {
                break Fed::Turn;
            }
            in_turn += bytes + UPDATE_BYTES;
            let mut emit = |events: &Events<'_>| {
                let with_offsets = member.recovery.is_some();
                unsent.begin(events, seen);
                let mut encoded = P::Encoded::default();
                let emitted = events.emit(peer, &mut seen, with_offsets, &mut encoded);
                match emitted {
                    Ok(true) => unsent.took(),
                    Ok(false) | Err(Closed) => unsent.forget_newest(),
                }
                emitted
            };
            let (emitted, last) = match waiting {
                Waiting::Kept(entry) => (self.with_kept(log, entry, &mut emit), entry.last()),
                Waiting::Past(number, delivery) => {
                    (self.with_past(number, &delivery, &mut emit), 2 * number + 1)
                }
                Waiting::Nothing | Waiting::Lost => continue,
            };
            match emitted {
                // One that the user is not sent.
                None => seen = last,
                Some(emitted) => took = emitted,
            }
        };
        let fed = self.send_fed(peer, fed, &mut seen, unsent);
        let now = self.shared.clock.now();
        member.status = match fed {
            Fed::Live => {
                if let Some(recovery) = &mut member.recovery {
                    recovery.go_live(now);
                }
                peer.more_waits(false);
                member.told_at = now;
                // Let in before a gap, and live after it.
                let is_in_a_gap = member.stretch < *stretch && self.shared.resyncs;
                if is_in_a_gap && !std::mem::replace(&mut member.is_told, true) {
                    self.resync(peer.clone());
                }
                Status::Live(peer.clone())
            }
            Fed::Lost => {
                self.cut(peer, "what waits is no longer kept");
                Status::Cut
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
        self.trim(&mut roster, now);
        fed
    }

    /// Has a socket send what it took in a step that got as far as `fed`; returns how far the
    /// step got then, and moves `seen` back to the last event that is sent.
    fn send_fed(&self, peer: &P, fed: Fed, seen: &mut u64, mut unsent: Unsent) -> Fed {
        let fed = match (fed, peer.flush()) {
            (fed, Ok(Flushed::Undone(undone))) => {
                if undone > 0 {
                    *seen = unsent.undo(undone);
                }
                match fed {
                    Fed::Live | Fed::Turn => Fed::Full,
                    fed => fed,
                }
            }
            (Fed::Live | Fed::Turn, Err(Closed)) => Fed::Over,
            (fed, _) => fed,
        };
        unsent.sent(&self.shared.metrics);
        fed
    }

    /// What waits for a socket that has `seen` that event. In the history, moves `seen` to the
    /// event before it.
    fn waiting<'a>(&self, past: Option<&'a Past<'_>>, log: &'a Log, seen: &mut u64) -> Waiting<'a> {
        let Some(past) = past else {
            let entry = log.after(*seen).next();
            return entry.map_or(Waiting::Nothing, Waiting::Kept);
        };
        let before = seen.saturating_sub(1) / 2;
        if past.floor() > before {
            return Waiting::Lost;
        }
        let next = past.next_for(&self.user, before);
        match next.and_then(|next| Some((next.position?.number, next))) {
            None => Waiting::Nothing,
            Some((number, delivery)) => {
                *seen = (2 * number - 1).max(*seen);
                Waiting::Past(number, delivery)
            }
        }
    }

    /// Calls `emit` with the events of an update that was kept ready.
    fn with_kept<T>(
        &self,
        log: &Log,
        entry: &Entry,
        emit: impl FnOnce(&Events<'_>) -> T,
    ) -> Option<T> {
        // The body was decoded when it was kept.
        let update = Update::decode(&entry.body).ok()?;
        let specialised = update.specialised_event_in(self.shared.envelope);
        Some(emit(&Events::of_log(
            log,
            entry.first,
            &update,
            specialised,
        )))
    }

    /// Calls `emit` with the events of an update as it was published, if the update is one that
    /// the user is sent.
    fn with_past<T>(
        &self,
        number: u64,
        delivery: &Delivery<'_>,
        emit: impl FnOnce(&Events<'_>) -> T,
    ) -> Option<T> {
        let update = self.accept(delivery).ok()?;
        if self.is_repeated(&update, Some(number)) {
            return None;
        }
        let envelope = self.shared.envelope;
        let rewritten = update.rewritten(envelope);
        let update = match &rewritten {
            // Rewritten, the body may be nested too deep.
            Some(body) => Update::decode(body).unwrap_or(update),
            None => update,
        };
        let common = self.shared.common.as_ref()?;
        let place = common.seal.place(delivery);
        let specialised = update.specialised_event_in(envelope);
        Some(emit(&Events::of_history(
            number,
            place,
            &update,
            specialised,
        )))
    }
}
