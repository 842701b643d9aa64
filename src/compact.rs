//! What is kept in great numbers, in little memory: a queue with little room to spare, and
//! moments in four bytes.
//!
//! What is kept, and for how long, is decided by the owners.
//!
//! Invariant: a queue has room for at most a few entries more than twice as many as it
//! holds, and, while it only grows, for a quarter more.

use std::{collections::VecDeque, ops::Deref, time::Duration};

use tokio::time::Instant;

/// Room that no queue gives back.
const LEAST: usize = 8;

/// A queue. Reads like a [`VecDeque`].
#[derive(Debug)]
pub(crate) struct Queue<T>(VecDeque<T>);

impl<T> Queue<T> {
    pub(crate) fn push_back(&mut self, entry: T) {
        self.make_room();
        self.0.push_back(entry);
    }

    pub(crate) fn push_front(&mut self, entry: T) {
        self.make_room();
        self.0.push_front(entry);
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let entry = self.0.pop_front();
        if self.0.capacity() > 2 * self.0.len() + LEAST {
            self.0.shrink_to(self.0.len() + self.0.len() / 4);
        }
        entry
    }

    /// A [`VecDeque`] would double.
    fn make_room(&mut self) {
        if self.0.len() == self.0.capacity() {
            self.0.reserve_exact(1 + self.0.len() / 4);
        }
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Deref for Queue<T> {
    type Target = VecDeque<T>;

    fn deref(&self) -> &VecDeque<T> {
        &self.0
    }
}

/// What moments are counted from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Era(Instant);

/// A moment to a tenth of a second, within six years of its era's begin: what is outside
/// counts as if it were at that limit. Moments of one era are in the order of their instants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(i32);

const TENTH: Duration = Duration::from_millis(100);

impl Era {
    /// Begins now.
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn moment(self, at: Instant) -> Moment {
        let before = self.0.saturating_duration_since(at);
        Moment(tenths(at.saturating_duration_since(self.0)) - tenths(before))
    }
}

impl Moment {
    /// So long ago.
    pub(crate) fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(tenths(time)))
    }

    /// The time since `earlier`, to a tenth of a second; zero if that is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        let tenths = i64::from(self.0) - i64::from(earlier.0);
        TENTH * u32::try_from(tenths).unwrap_or_default()
    }
}

fn tenths(time: Duration) -> i32 {
    let tenths = time.as_millis() / TENTH.as_millis();
    i32::try_from(tenths).unwrap_or(i32::MAX)
}

/// The bytes that this thread holds of what `make` makes, size classes included, and that.
#[cfg(all(test, feature = "jemalloc"))]
pub(crate) fn bytes_taken_by<T>(make: impl FnOnce() -> T) -> (usize, T) {
    use tikv_jemalloc_ctl::thread::{allocatedp, deallocatedp};

    let held = || {
        let (taken, given) = (allocatedp::read().unwrap(), deallocatedp::read().unwrap());
        i128::from(taken.get()) - i128::from(given.get())
    };
    let before = held();
    let thing = make();
    (usize::try_from(held() - before).unwrap(), thing)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_queue_keeps_what_it_is_given_and_little_room(
            steps in proptest::collection::vec((any::<bool>(), 0_usize..200), 1..40)
        ) {
            let (mut queue, mut model) = (Queue::default(), VecDeque::new());
            for (step, (grows, count)) in steps.into_iter().enumerate() {
                for number in 0..count {
                    let entry = (step, number);
                    match (grows, number % 3) {
                        (true, 0) => {
                            queue.push_front(entry);
                            model.push_front(entry);
                        }
                        (true, _) => {
                            queue.push_back(entry);
                            model.push_back(entry);
                        }
                        _ => prop_assert_eq!(queue.pop_front(), model.pop_front()),
                    }
                    prop_assert!(queue.capacity() <= 2 * queue.len() + LEAST);
                }
                prop_assert_eq!(&*queue, &model);
            }
        }

        #[test]
        fn moments_keep_the_order_and_the_distance_of_instants(
            one in 0_u64..1 << 40, other in 0_u64..1 << 40, begin in 0_u64..1 << 40,
        ) {
            let base = Instant::now();
            let at = |millis| base + Duration::from_millis(millis);
            let era = Era(at(begin));
            let (one, other) = (at(one.min(other)), at(one.max(other)));
            let (first, second) = (era.moment(one), era.moment(other));
            prop_assert!(first <= second);
            let within = Duration::from_secs(6 * 365 * 86_400).as_millis();
            let is_within = [one, other].into_iter().all(|it| {
                it.saturating_duration_since(era.0).max(era.0.saturating_duration_since(it)).as_millis() < within
            });
            if is_within {
                let off = second.since(first).abs_diff(other - one);
                prop_assert!(off <= TENTH * 2, "{off:?}");
            }
        }
    }

    #[test]
    fn a_queue_that_only_grows_has_a_quarter_to_spare() {
        let mut queue = Queue::default();
        for number in 0..10_000 {
            queue.push_back(number);
            assert!(queue.capacity() <= 1 + queue.len() + queue.len() / 4);
        }
    }
}
