//! Quiet clients: a place in the log grows old while its client is sent nothing, until it is
//! no longer kept. So sockets that were sent nothing for long are told the newest place, by
//! an event that frontends ignore.

use std::time::Duration;

use serde_json::value::to_raw_value;

use super::{Audience, Status};
use crate::sessions::{
    offset::Offset,
    peer::{Event, Peer},
};

/// An event of the gateway's own: `(offset)`.
const RECOVERY_OFFSET: &str = "recovery:offset";

impl<P: Peer> Audience<P> {
    /// Tells the newest place to the live sockets that were handed no offset for `quiet`.
    pub(in crate::sessions) fn tell_quiet(&self, quiet: Duration) {
        let (Some(past), Some(common)) = (self.past(), &self.shared.common) else {
            return;
        };
        let now = self.shared.clock.now();
        let mut roster = self.roster();
        // Nothing is told after a gap that was not noticed yet.
        self.note_stretch(&mut roster);
        let (mut text, mut encoded) = (None, P::Encoded::default());
        for member in &mut roster.members {
            let is_quiet = now.saturating_duration_since(member.told_at) >= quiet;
            let Status::Live(peer) = &member.status else {
                continue;
            };
            if !is_quiet || member.recovery.is_none() {
                continue;
            }
            if text.is_none() {
                let place = past.newest().and_then(|newest| common.seal.place(&newest));
                let Some(place) = place else { return };
                let is_last = true;
                let offset = Offset::Shared { place, is_last }.to_string();
                text = to_raw_value(&offset).ok();
            }
            let Some(payload) = &text else { return };
            let event = Event {
                name: RECOVERY_OFFSET,
                payload,
                offset: None,
            };
            // A socket that takes no more lags, and needs no newer place. What it took and
            // cannot send goes before the next update.
            if peer.emit(&[event], &mut encoded) == Ok(true) {
                let _ = peer.flush();
                member.told_at = now;
                self.shared.metrics.emitted(RECOVERY_OFFSET, 1);
            }
        }
    }
}
