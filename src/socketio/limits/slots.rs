//! Limits how many sessions exist at once, of all clients together.
//!
//! Invariant: a slot is taken from [`Slots::take`] until its [`Slot`] is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// The slots; clones count together.
#[derive(Clone, Default)]
pub struct Slots(Arc<AtomicU32>);

/// One session's slot, until it is dropped.
pub struct Slot(Slots);

impl Slots {
    /// A slot, if `limit` allows one more; 0: no limit.
    pub fn take(&self, limit: u32) -> Option<Slot> {
        let limit = if limit == 0 { u32::MAX } else { limit };
        let one_more = |taken| (taken < limit).then(|| taken + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| Slot(self.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_until_they_are_dropped() {
        let slots = Slots::default();
        let taken: Vec<Slot> = (0..20).filter_map(|_| slots.take(10)).collect();
        assert_eq!(taken.len(), 10);
        drop(taken);
        assert!(slots.take(1).is_some());
        let unlimited: Vec<Option<Slot>> = (0..1000).map(|_| slots.take(0)).collect();
        assert!(unlimited.iter().all(Option::is_some));
    }
}
