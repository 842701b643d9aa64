//! When users were sent away: which sessions may not be recovered any more. Pure: time is an
//! argument.
//!
//! Invariant: the number of users is bounded. Where some had to be forgotten, no session that
//! began before the newest of their orders is recovered, whoever's it is: the client refetches.

use std::time::{Duration, SystemTime};

use indexmap::IndexMap;

use crate::user::{TenantId, User, UserId};

/// How far the clocks of two instances may differ.
const SKEW: Duration = Duration::from_secs(5);

/// The newest order for each user, by tenant or for all tenants.
pub(super) struct Moments {
    /// The ones that have been known for longest first.
    newest: IndexMap<(UserId, Option<TenantId>), SystemTime>,
    /// The newest order among those that had to be forgotten.
    forgotten: Option<SystemTime>,
    kept_for: Duration,
    most: usize,
}

impl Moments {
    /// Remembers at most `most` users, each for `kept_for` after the order.
    pub(super) fn new(kept_for: Duration, most: usize) -> Self {
        Self {
            newest: IndexMap::new(),
            forgotten: None,
            kept_for,
            most,
        }
    }

    /// Remembers that an order for this user was made at `at`.
    pub(super) fn add(
        &mut self,
        id: &UserId,
        tenant: Option<&TenantId>,
        at: SystemTime,
        now: SystemTime,
    ) {
        let at = at.min(now);
        let kept_for = self.kept_for;
        if !is_kept(at, kept_for, now) {
            return;
        }
        let key = (id.clone(), tenant.cloned());
        if self.newest.len() >= self.most && !self.newest.contains_key(&key) {
            self.newest.retain(|_, at| is_kept(*at, kept_for, now));
            if self.newest.len() >= self.most {
                let some = (self.most / 100).max(1);
                let forgotten = self.newest.drain(..some).map(|(_, at)| at).max();
                self.forgotten = self.forgotten.max(forgotten);
            }
        }
        let newest = self.newest.entry(key).or_insert(at);
        *newest = at.max(*newest);
    }

    /// Whether a session of `user` that began at `begun` may not be recovered.
    pub(super) fn forbid(&self, user: &User, begun: SystemTime, now: SystemTime) -> bool {
        let forbids = |at: SystemTime| is_kept(at, self.kept_for, now) && at + SKEW > begun;
        let of_user = |tenant| self.newest.get(&(user.id.clone(), tenant)).copied();
        let by_tenant = || of_user(Some(user.tenant.clone()?));
        self.forgotten.is_some_and(forbids)
            || (!self.newest.is_empty()
                && (of_user(None).is_some_and(forbids) || by_tenant().is_some_and(forbids)))
    }
}

fn is_kept(at: SystemTime, kept_for: Duration, now: SystemTime) -> bool {
    at.checked_add(kept_for).is_none_or(|end| end > now)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn user(id: &str, tenant: Option<&str>) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        }
    }

    #[test]
    fn only_sessions_that_began_before_the_order_are_forbidden() {
        let mut moments = Moments::new(Duration::from_secs(600), 10);
        let carl = user("carl", Some("t"));
        moments.add(&carl.id, carl.tenant.as_ref(), at(1_000), at(1_000));
        for (who, begun, now, forbidden) in [
            (&carl, 900, 1_000, true),
            (&carl, 1_000, 1_000, true),
            // Another instance's clock.
            (&carl, 1_004, 1_004, true),
            (&carl, 1_005, 1_005, false),
            (&carl, 900, 1_599, true),
            (&carl, 900, 1_600, false),
            (&user("carl", Some("u")), 900, 1_000, false),
            (&user("carl", None), 900, 1_000, false),
            (&user("bob", Some("t")), 900, 1_000, false),
        ] {
            let forbids = moments.forbid(who, at(begun), at(now));
            assert_eq!(forbids, forbidden, "{who:?} {begun} {now}");
        }
        // For all tenants, and an older order changes nothing.
        moments.add(&carl.id, None, at(1_100), at(1_100));
        moments.add(&carl.id, None, at(1_050), at(1_100));
        assert!(moments.forbid(&user("carl", None), at(1_090), at(1_100)));
        assert!(moments.forbid(&user("carl", Some("u")), at(1_090), at(1_100)));
    }

    #[test]
    fn an_order_from_the_future_was_made_now() {
        let mut moments = Moments::new(Duration::from_secs(600), 10);
        let carl = user("carl", None);
        moments.add(&carl.id, None, at(u64::MAX >> 32), at(1_000));
        assert!(moments.forbid(&carl, at(1_004), at(1_004)));
        assert!(!moments.forbid(&carl, at(1_005), at(1_005)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Order {
            id: &'static str,
            tenant: Option<&'static str>,
            ago: u64,
        },
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let id = proptest::sample::select(vec!["a", "b", "c", "d"]);
        let tenant = proptest::sample::select(vec![None, Some("t"), Some("u")]);
        let step = prop_oneof![
            2 => (id, tenant, 0..80_u64).prop_map(|(id, tenant, ago)| Step::Order { id, tenant, ago }),
            1 => (0..30_u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn no_order_is_missed_and_only_a_shortage_of_room_forbids_more(
            steps in steps(), most in 1..14_usize, begun in 900..1_300_u64,
            id in "[a-e]", tenant in proptest::option::of("[tu]"),
        ) {
            let who = user(&id, tenant.as_deref());
            let mut moments = Moments::new(Duration::from_secs(60), most);
            let (mut model, mut now) = (Vec::new(), 1_000);
            for step in steps {
                match step {
                    Step::Wait(seconds) => now += seconds,
                    Step::Order { id, tenant, ago } => {
                        let of = user(id, tenant);
                        moments.add(&of.id, of.tenant.as_ref(), at(now - ago), at(now));
                        model.push((of, now - ago));
                    }
                }
                prop_assert!(moments.newest.len() <= most);
                let expected = model.iter().any(|(of, made)| {
                    of.id == who.id
                        && (of.tenant.is_none() || of.tenant == who.tenant)
                        && made + 60 > now
                        && made + 5 > begun
                });
                let forbids = moments.forbid(&who, at(begun), at(now));
                prop_assert!(forbids || !expected);
                // Twelve keys are all that there are.
                prop_assert!(most < 12 || forbids == expected);
            }
        }
    }
}
