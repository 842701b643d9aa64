//! What sockets were handed and have not sent yet: the updates of one turn, in their order.
//!
//! Pure. A socket that sends no more is undone the latest of them, see [`Flushed::Undone`].
//!
//! [`Flushed::Undone`]: crate::sessions::peer::Flushed::Undone

use super::events::Events;
use crate::observability::metrics::Metrics;

#[derive(Debug, Default)]
pub(super) struct Unsent(Vec<Handed>);

/// The events of one update.
#[derive(Debug)]
struct Handed {
    /// The number of the event before.
    before: u64,
    last: u64,
    names: [Option<&'static str>; 2],
    /// How many sockets have it to send.
    sockets: u64,
}

impl Unsent {
    /// The next update: those of its events that come after number `seen`.
    pub(super) fn begin(&mut self, events: &Events<'_>, seen: u64) {
        let mut names = events.names(seen);
        self.0.push(Handed {
            before: seen.max(events.before()),
            last: events.last(),
            names: [names.next(), names.next()],
            sockets: 0,
        });
    }

    /// The last event before what may be undone.
    pub(super) fn before(&self) -> Option<u64> {
        self.0.first().map(|oldest| oldest.before)
    }

    /// A socket took the newest update.
    pub(super) fn took(&mut self) {
        if let Some(newest) = self.0.last_mut() {
            newest.sockets += 1;
        }
    }

    /// No socket took the newest update.
    pub(super) fn forget_newest(&mut self) {
        self.0.pop();
    }

    /// A socket that took all updates is undone so many of the latest. Returns the number of the
    /// last event that the socket has sent.
    pub(super) fn undo(&mut self, undone: usize) -> u64 {
        self.undo_of(self.0.len(), undone)
    }

    /// The same for a socket that took all but the newest.
    pub(super) fn undo_before_newest(&mut self, undone: usize) -> u64 {
        self.undo_of(self.0.len().saturating_sub(1), undone)
    }

    fn undo_of(&mut self, taken: usize, undone: usize) -> u64 {
        let sent = taken.saturating_sub(undone);
        for handed in &mut self.0[sent..taken] {
            handed.sockets = handed.sockets.saturating_sub(1);
        }
        match self.0.get(sent) {
            Some(first) => first.before,
            None => self.0.last().map_or(0, |newest| newest.last),
        }
    }

    /// All sockets have sent what they are not undone.
    pub(super) fn sent(self, metrics: &Metrics) {
        for Handed { names, sockets, .. } in self.0 {
            for name in names.into_iter().flatten().filter(|_| sockets > 0) {
                metrics.emitted(name, sockets);
            }
        }
    }
}
