//! Fan-out: one update is checked for its recipient, kept in the log, and handed to
//! all of the user's live sockets.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tracing::{debug, warn};

use super::{Audience, Member, Roster, Status, events::Events};
use crate::{
    broker::Delivery,
    observability::sampled::Sampled,
    sessions::{
        peer::{EmitError, Peer},
        repeated::Recent,
    },
    update::{CHAT3_UPDATE, Rejection, Update},
};

/// Why an update that came before is not delivered, as the metric's label.
const REPEATED: &str = "repeated";

/// Lines about updates that publishers should not send.
static REJECTED: Sampled = Sampled::new();

impl<P: Peer> Audience<P> {
    /// Hands one update to all sockets, and keeps it. Called for one update at a time.
    #[cfg_attr(feature = "otlp", tracing::instrument(level = "debug", name = "deliver", skip_all, fields(otel.kind = "consumer", user_id = %self.user.id, routing_key = delivery.routing_key)))]
    ///
    /// Where there is a history, it is locked: it is fed here, and must not be looked at.
    pub(in crate::sessions) fn deliver(self: &Arc<Self>, delivery: &Delivery<'_>) {
        let metrics = &self.shared.metrics;
        metrics.updates_received.inc();
        let update = match self.accept(delivery) {
            Ok(update) => update,
            Err(rejection) => return self.reject(delivery, rejection),
        };
        debug!(
            user_id = %self.user.id,
            event_type = update.event_type(),
            routing_key = ?delivery.routing_key,
            "Update received"
        );
        let number = delivery.position.map(|position| position.number);
        if self.is_repeated(&update, number) {
            return metrics.update_rejected(REPEATED);
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
        let specialised_name = specialised.as_ref().map(|event| event.name);
        let (mut handed_off, mut kept) = (0, false);
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
        let seen_before = events.first() - 1;
        let (mut live, mut late) = (0_u64, Vec::new());
        for member in &mut *members {
            if let Some(peer) = self.falls_behind(member, seen_before) {
                late.push((member.session, peer));
            }
            match &member.status {
                Status::Joining => {}
                // The session may come back for it, or is handed it from the log.
                Status::Away(_) | Status::Behind { .. } => kept = true,
                Status::Cut => kept |= member.recovery.is_some(),
                Status::Live(_) => live += 1,
            }
        }
        if live > 1 {
            handed_off = self.hand_off_to_crowd(members, &events);
        } else if let Some(member) = members.iter_mut().find(|member| member.is_live()) {
            handed_off = u64::from(self.hand_off(member, &events));
        }
        for member in members.iter_mut().filter(|member| member.is_live()) {
            member.told_at = now;
        }
        self.trim(&mut roster, now);
        drop(roster);
        for (session, peer) in late {
            let audience = self.clone();
            tokio::spawn(async move { audience.catch_up(session, &peer).await });
        }
        if handed_off == 0 {
            return match kept {
                true => _ = metrics.updates_kept.inc(),
                // The last socket left while the update was on its way.
                false => metrics.update_rejected("no_socket"),
            };
        }
        metrics.updates_delivered.inc();
        metrics.emitted(CHAT3_UPDATE, handed_off);
        if let Some(name) = specialised_name {
            metrics.emitted(name, handed_off);
        }
        if let Some(published_at) = delivery.published_at {
            // Clocks differ: an update from the future took no time.
            let latency = SystemTime::now().duration_since(published_at);
            metrics.latency(latency.unwrap_or_default());
        }
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

    /// Hands the update to the only live socket; returns whether the socket took it.
    fn hand_off(&self, member: &mut Member<P>, events: &Events<'_>) -> bool {
        let Status::Live(peer) = &member.status else {
            return false;
        };
        let with_offsets = member.recovery.is_some();
        let problem = match events.emit(peer, &mut 0, with_offsets, &mut member.lag) {
            Ok(()) => return true,
            Err(EmitError::Full) => "too many packets wait",
            Err(EmitError::Closed) => return false,
            Err(EmitError::Unencodable) => "an event cannot be encoded",
        };
        self.cut_off(member, problem);
        false
    }

    /// Hands the update to all live sockets, with each event encoded once; returns how
    /// many sockets took it.
    fn hand_off_to_crowd(&self, members: &mut [Member<P>], events: &Events<'_>) -> u64 {
        let mut missed = [false; 2];
        for (with_offsets, missed) in [false, true].into_iter().zip(&mut missed) {
            let one = members.iter().find_map(|member| match &member.status {
                Status::Live(peer) if member.recovery.is_some() == with_offsets => Some(peer),
                _ => None,
            });
            if let Some(one) = one {
                *missed = !events.emit_to_crowd(&self.crowd, one, with_offsets);
            }
        }
        let mut handed_off = 0;
        for member in members {
            let Status::Live(peer) = &member.status else {
                continue;
            };
            let with_offsets = member.recovery.is_some();
            member.lag.add(events.wire_bytes(peer, with_offsets));
            match missed[usize::from(with_offsets)] {
                true => self.cut_off(
                    member,
                    "too many packets wait for one of the user's sockets",
                ),
                false => handed_off += 1,
            }
        }
        handed_off
    }
}
