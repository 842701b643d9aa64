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

/// The hashes of the latest updates, oldest first, and their numbers if they have any.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<(u64, Option<u64>)>);

impl Recent {
    /// Returns whether `update` is new, and if so remembers it. The update of the same `number`
    /// is the same one, asked about once more.
    pub(super) fn is_new(&mut self, update: &impl Hash, number: Option<u64>) -> bool {
        let hash = HASHES.hash_one(update);
        let mut known = self.0.iter_mut().filter(|(known, _)| *known == hash);
        if let Some((_, first)) = known.next() {
            // A replay may come upon an earlier one.
            let is_first = number.is_some() && number <= *first;
            if is_first {
                *first = number;
            }
            return is_first;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((hash, number));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_no_more() {
        let mut recent = Recent::default();
        assert!(recent.is_new(&"a", None));
        assert!(!recent.is_new(&"a", None));
        for number in 0..REMEMBERED {
            assert!(recent.is_new(&number, None));
        }
        assert!(recent.is_new(&"a", None), "it is too long ago");
        assert_eq!(recent.0.len(), REMEMBERED);
    }

    #[test]
    fn a_replay_of_the_first_one_is_new_and_of_its_repetition_is_not() {
        let mut recent = Recent::default();
        assert!(recent.is_new(&"a", Some(7)));
        assert!(!recent.is_new(&"a", Some(9)));
        assert!(recent.is_new(&"a", Some(7)));
        assert!(recent.is_new(&"a", Some(5)), "it was the first");
        assert!(!recent.is_new(&"a", Some(7)));
    }
}
