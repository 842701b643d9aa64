//! Which updates a user was sent lately, to tell one that comes again. Pure.
//!
//! Invariant: of more than [`REMEMBERED`] updates, the latest are remembered.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hash, RandomState},
    sync::LazyLock,
};

/// Updates that are remembered of one user. Chat3 publishes both within seconds; a
/// busy user gets some tens in that time. They take 2 KiB.
const REMEMBERED: usize = 256;

/// Keyed at random: nobody can make up updates that seem to be others.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<u64>);

impl Recent {
    /// Whether nothing equal is remembered; then this is.
    pub(super) fn is_new(&mut self, update: &impl Hash) -> bool {
        let hash = HASHES.hash_one(update);
        if self.0.contains(&hash) {
            return false;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(hash);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_no_more() {
        let mut recent = Recent::default();
        assert!(recent.is_new(&"a"));
        assert!(!recent.is_new(&"a"));
        for number in 0..REMEMBERED {
            assert!(recent.is_new(&number));
        }
        assert!(recent.is_new(&"a"), "it is too long ago");
        assert_eq!(recent.0.len(), REMEMBERED);
    }
}
