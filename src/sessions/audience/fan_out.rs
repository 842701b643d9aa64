//! Fan-out: one update is checked for its recipient, kept in the log, and handed to
//! all of the user's live sockets, which send it with the others of the same turn.

use std::{
    mem::take,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Audience, Roster, Status, events::Events};
use crate::{
    broker::Delivery,
    observability::sampled::Sampled,
    sessions::{
        peer::{Closed, Flushed, Peer},
        repeated::Recent,
    },
    update::{Rejection, Update},
};

/// Why an update that came before is not delivered, as the metric's label.
const REPEATED: &str = "repeated";

/// Lines about updates that publishers should not send.
static REJECTED: Sampled = Sampled::new();

impl<P: Peer> Audience<P> {
    /// Hands one update to all sockets, and keeps it. Called for one update at a time. Returns
    /// how many sockets have it to send at [`Self::flush`].
    ///
    /// Where there is a history, it is locked: it is fed here, and must not be looked at.
    #[cfg_attr(feature = "otlp", tracing::instrument(level = "debug", name = "deliver", skip_all, fields(otel.kind = "consumer", user_id = %self.user.id, routing_key = delivery.routing_key)))]
    pub(in crate::sessions) fn deliver(self: &Arc<Self>, delivery: &Delivery<'_>) -> usize {
        let metrics = &self.shared.metrics;
        metrics.updates_received.inc();
        let update = match self.accept(delivery) {
            Ok(update) => update,
            Err(rejection) => {
                self.reject(delivery, rejection);
                return 0;
            }
        };
        debug!(
            user_id = %self.user.id,
            event_type = update.event_type(),
            routing_key = ?delivery.routing_key,
            "Update received"
        );
        let number = delivery.position.map(|position| position.number);
        if self.is_repeated(&update, number) {
            metrics.update_rejected(REPEATED);
            return 0;
        }
        let envelope = self.shared.envelope;
        let rewritten = update.rewritten(envelope);
        let decoded = rewritten.as_ref().map(|body| (body, Update::decode(body)));
        // From here on, everything is about the body that is sent.
        let (body, update) = match decoded {
            Some((body, Ok(rewritten))) => (&body[..], rewritten),
            // Rewritten, the body would be nested too deep.
            _ => (delivery.body, update),
        };
        let now = self.shared.clock.now();
        let mut roster = self.roster();
        self.note_stretch(&mut roster);
        let Roster { members, log, .. } = &mut *roster;
        let specialised = update.specialised_event_in(envelope);
        let shared = self.shared.common.as_ref().zip(delivery.position);
        let events = if let Some((common, position)) = shared {
            let mut members = members.iter();
            let is_told = members.any(|member| member.recovery.is_some());
            let place = is_told.then(|| common.seal.place(delivery)).flatten();
            Events::of_history(position.number, place, &update, specialised)
        } else {
            let events = 1 + u8::from(specialised.is_some());
            let first = log.append(body, events, now);
            Events::of_log(log, first, &update, specialised)
        };
        let (handed_off, kept) = self.hand_out(&mut roster, &events, now);
        drop(roster);
        if handed_off == 0 {
            match kept {
                true => _ = metrics.updates_kept.inc(),
                // The last socket left while the update was on its way.
                false => metrics.update_rejected("no_socket"),
            }
            return 0;
        }
        metrics.updates_delivered.inc();
        if let Some(published_at) = delivery.published_at {
            // Clocks differ: an update from the future took no time.
            let latency = SystemTime::now().duration_since(published_at);
            metrics.latency(latency.unwrap_or_default());
        }
        handed_off
    }

    /// Hands an update's events to all live sockets. Returns how many took them, and whether
    /// somebody else may still get them.
    fn hand_out(
        self: &Arc<Self>,
        roster: &mut Roster<P>,
        events: &Events<'_>,
        now: Instant,
    ) -> (usize, bool) {
        let Roster {
            members,
            log,
            unsent,
            ..
        } = roster;
        unsent.begin(events, 0);
        let (mut handed_off, mut kept) = (0, false);
        // For the sockets without offsets, and for those with.
        let mut encoded = <[P::Encoded; 2]>::default();
        for member in members {
            match &member.status {
                Status::Joining => {}
                Status::Behind {
                    seen,
                    peer: Some(peer),
                } if self.is_too_far_behind(log, *seen) => {
                    self.cut(peer, "too many bytes wait");
                    member.status = Status::Cut;
                    kept |= member.recovery.is_some();
                }
                // The session may come back for it, or is handed it from the log.
                Status::Away(_) | Status::Behind { .. } => kept = true,
                Status::Cut => kept |= member.recovery.is_some(),
                Status::Live(peer) => {
                    let with_offsets = member.recovery.is_some();
                    let encoded = &mut encoded[usize::from(with_offsets)];
                    match events.emit(peer, &mut 0, with_offsets, encoded) {
                        Ok(true) => {
                            unsent.took();
                            handed_off += 1;
                        }
                        Ok(false) => {
                            kept = true;
                            let undone = match peer.flush() {
                                Ok(Flushed::Undone(undone)) => undone,
                                Ok(Flushed::All) | Err(Closed) => 0,
                            };
                            let seen = unsent.undo_before_newest(undone);
                            self.falls_behind(member, seen);
                        }
                        // It will report its disconnect.
                        Err(Closed) => kept |= with_offsets,
                    }
                    member.told_at = now;
                }
            }
        }
        if handed_off == 0 {
            // No flush follows for this update alone.
            unsent.forget_newest();
            self.trim(roster, now);
        }
        (handed_off, kept)
    }

    /// Has all sockets send what they were handed.
    pub(in crate::sessions) fn flush(self: &Arc<Self>) {
        let mut roster = self.roster();
        let mut unsent = take(&mut roster.unsent);
        for member in &mut roster.members {
            if let Status::Live(peer) = &member.status
                && let Ok(Flushed::Undone(undone)) = peer.flush()
            {
                self.falls_behind(member, unsent.undo(undone));
            }
        }
        self.trim(&mut roster, self.shared.clock.now());
        drop(roster);
        unsent.sent(&self.shared.metrics);
    }

    /// Decodes an update, and refuses one that is not this user's.
    pub(super) fn accept<'a>(&self, delivery: &'a Delivery<'_>) -> Result<Update<'a>, Rejection> {
        let update = Update::decode(delivery.body)?;
        update.check_recipient(&self.user)?;
        Ok(update)
    }

    fn reject(&self, delivery: &Delivery<'_>, rejection: Rejection) {
        self.shared.metrics.update_rejected(rejection.label());
        let (user_id, routing_key) = (&self.user.id, &delivery.routing_key);
        let bytes = delivery.body.len();
        if rejection == Rejection::ForeignTenant {
            // Expected where two tenants have users of the same id.
            debug!(%user_id, ?routing_key, bytes, reason = %rejection, "Update rejected");
        } else if let Some(line) = REJECTED.note(rejection.label()) {
            let left_out = line.left_out;
            warn!(%user_id, ?routing_key, bytes, reason = %rejection, left_out, "Update rejected");
        }
    }

    /// Whether the update repeats one of the user's latest. An update that has a number may be
    /// asked about several times.
    pub(super) fn is_repeated(&self, update: &Update<'_>, number: Option<u64>) -> bool {
        let repeats = |recent: &Mutex<Recent>| {
            let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
            update.key().is_some_and(|key| !recent.is_new(&key, number))
        };
        self.recent.as_ref().is_some_and(repeats)
    }
}
