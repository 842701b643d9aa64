//! Which users have bindings on the common queues, and which of them have left.
//!
//! Bookkeeping without I/O. A user who has left keeps the bindings for a while,
//! because binding churn is expensive at the broker and many users return. Invariant: a
//! user is either present, or has left and has one departure that is not outdated.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::{
    observability::metrics::GaugeGuard,
    user::{TenantId, User, UserId},
};

#[derive(Default)]
pub(super) struct Members {
    /// Users with the same id share keys, and so bindings.
    by_id: HashMap<UserId, Vec<Member>>,
    present: usize,
    /// In the order of leaving; outdated for users who have returned since.
    departures: VecDeque<(Instant, User)>,
}

struct Member {
    tenant: Option<TenantId>,
    standing: Standing,
}

enum Standing {
    Present { serial: u64, _gauge: GaugeGuard },
    Left(Instant),
}

impl Members {
    /// Whether `user`'s bindings exist.
    pub(super) fn contains(&self, user: &User) -> bool {
        self.find(user).is_some()
    }

    /// The serial of `user`'s subscription, if the user is present.
    pub(super) fn serial(&self, user: &User) -> Option<u64> {
        match self.find(user)?.standing {
            Standing::Present { serial, .. } => Some(serial),
            Standing::Left(_) => None,
        }
    }

    pub(super) fn present(&self) -> usize {
        self.present
    }

    pub(super) fn arrive(&mut self, user: &User, serial: u64, gauge: GaugeGuard) {
        self.remove(user);
        self.present += 1;
        let standing = Standing::Present {
            serial,
            _gauge: gauge,
        };
        self.insert(user, standing);
    }

    /// Notes that `user` has left, and keeps the bindings for now.
    pub(super) fn leave(&mut self, user: &User, now: Instant) {
        if self.remove(user) {
            self.insert(user, Standing::Left(now));
            self.departures.push_back((now, user.clone()));
        }
    }

    /// Forgets `user`; returns whether the user had bindings.
    pub(super) fn remove(&mut self, user: &User) -> bool {
        let Some(all) = self.by_id.get_mut(&user.id) else {
            return false;
        };
        let Some(index) = all.iter().position(|member| member.tenant == user.tenant) else {
            return false;
        };
        if let Standing::Present { .. } = all.swap_remove(index).standing {
            self.present -= 1;
        }
        if all.is_empty() {
            self.by_id.remove(&user.id);
        }
        true
    }

    /// Forgets all users whose id `is_one`; returns those who were present.
    pub(super) fn remove_all(&mut self, is_one: impl Fn(&UserId) -> bool) -> Vec<User> {
        let mut present = Vec::new();
        for (id, all) in self.by_id.extract_if(|id, _| is_one(id)) {
            for member in all {
                if let Standing::Present { .. } = member.standing {
                    present.push(User {
                        id: id.clone(),
                        tenant: member.tenant,
                    });
                }
            }
        }
        self.present -= present.len();
        present
    }

    /// When the first user of those who have left did so.
    pub(super) fn first_departure(&self) -> Option<Instant> {
        self.departures.front().map(|(at, _)| *at)
    }

    /// Forgets some users who left before `deadline`, and returns them: the more have left,
    /// the more at a time.
    pub(super) fn take_departed(&mut self, deadline: Instant) -> Vec<User> {
        let limit = (self.departures.len() / 64).clamp(16, 256);
        let mut departed = Vec::new();
        while departed.len() < limit {
            let due = self.departures.pop_front_if(|(at, _)| *at <= deadline);
            let Some((at, user)) = due else {
                break;
            };
            // Users who have returned, and perhaps left again, are not meant.
            if matches!(self.find(&user), Some(Member { standing: Standing::Left(left), .. }) if *left == at)
            {
                self.remove(&user);
                departed.push(user);
            }
        }
        departed
    }

    /// The keys of `user`, who is forgotten, that no other user with the same id needs.
    /// `keys` returns the keys of a user.
    pub(super) fn unused_keys(
        &self,
        user: &User,
        keys: impl Fn(&User) -> Vec<String>,
    ) -> Vec<String> {
        let others = self.by_id.get(&user.id).into_iter().flatten();
        let needed: Vec<String> = others
            .flat_map(|member| {
                let other = User {
                    id: user.id.clone(),
                    tenant: member.tenant.clone(),
                };
                keys(&other)
            })
            .collect();
        let mut unused = keys(user);
        unused.retain(|key| !needed.contains(key));
        unused
    }

    /// A user who has bindings.
    pub(super) fn anybody(&self) -> Option<User> {
        let (id, all) = self.by_id.iter().next()?;
        Some(User {
            id: id.clone(),
            tenant: all.first()?.tenant.clone(),
        })
    }

    fn find(&self, user: &User) -> Option<&Member> {
        let mut all = self.by_id.get(&user.id)?.iter();
        all.find(|member| member.tenant == user.tenant)
    }

    fn insert(&mut self, user: &User, standing: Standing) {
        let tenant = user.tenant.clone();
        let all = self.by_id.entry(user.id.clone()).or_default();
        all.push(Member { tenant, standing });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{config::BindingKeys, observability::metrics::Metrics};

    fn user(id: &str, tenant: Option<&str>) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        }
    }

    fn gauge() -> GaugeGuard {
        GaugeGuard::new(&Metrics::new().subscriptions)
    }

    #[test]
    fn a_user_who_comes_back_in_time_is_not_among_the_departed() {
        let mut members = Members::default();
        let (carl, bob) = (user("carl", None), user("bob", None));
        let start = Instant::now();
        let second = Duration::from_secs(1);
        for user in [&carl, &bob] {
            members.arrive(user, 1, gauge());
            members.leave(user, start);
        }
        assert!(members.contains(&carl));
        assert_eq!((members.serial(&carl), members.present()), (None, 0));
        members.arrive(&carl, 2, gauge());
        assert_eq!(members.take_departed(start), [bob]);
        assert_eq!(members.serial(&carl), Some(2));
        // A user who leaves again is not due before the last departure is.
        members.leave(&carl, start);
        members.arrive(&carl, 3, gauge());
        members.leave(&carl, start + second);
        assert_eq!(members.take_departed(start), []);
        assert_eq!(members.take_departed(start + second).len(), 1);
        assert!(!members.contains(&carl));
    }

    #[test]
    fn departures_are_taken_in_portions() {
        let mut members = Members::default();
        let now = Instant::now();
        for i in 0..2_000 {
            let user = user(&format!("usr_{i}"), None);
            members.arrive(&user, i, gauge());
            members.leave(&user, now);
        }
        assert_eq!(members.take_departed(now).len(), 31);
        let mut portions = 1;
        while !members.take_departed(now).is_empty() {
            portions += 1;
        }
        assert!((65..=125).contains(&portions), "{portions}");
    }

    #[test]
    fn keys_are_kept_while_a_user_of_the_same_id_needs_them() {
        let keys: BindingKeys = "user.{userId}.*,{tenantId}.{userId}".parse().unwrap();
        let keys = |user: &User| keys.render(user).collect::<Vec<_>>();
        let mut members = Members::default();
        let (one, other) = (user("carl", Some("t1")), user("carl", Some("t2")));
        members.arrive(&one, 1, gauge());
        members.arrive(&other, 2, gauge());
        members.remove(&one);
        assert_eq!(members.unused_keys(&one, keys), ["t1.carl"]);
        members.remove(&other);
        assert_eq!(
            members.unused_keys(&other, keys),
            ["user.carl.*", "t2.carl"]
        );
    }
}
