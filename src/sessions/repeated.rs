//! Remembers a user's latest updates, to recognise one that is published twice. Pure.
//!
//! Invariant: the latest [`REMEMBERED`] different updates are remembered.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hash, RandomState},
    sync::LazyLock,
};

/// How many updates are remembered per user. Chat3 publishes an update and its
/// repetition within seconds, and a busy user gets some tens of updates in that time.
/// Their hashes take 2 KiB.
const REMEMBERED: usize = 256;

/// Hashes with a random key, so that nobody can make up an update whose hash is that of
/// another.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The hashes of the latest updates, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<u64>);

impl Recent {
    /// Returns whether `update` is new, and if so remembers it.
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
