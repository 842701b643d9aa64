//! Orders: who is sent away, and whose tokens are refused before they expire.
//!
//! `order` reads an [`Order`], which comes as JSON from the admin API or from another
//! instance; the [`Revocations`] remember it for as long as it says, and `moments` when users
//! were sent away. Nothing here outlives the process: the broker keeps orders for those that
//! start later.
//!
//! Invariant: the number of remembered revocations is bounded, and the newest one is
//! always among them.

mod moments;
mod order;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use indexmap::IndexMap;

pub use self::order::{MAX_ORDER_BYTES, Order, OrderText, Target, is_user};
use self::{moments::Moments, order::seconds};
use crate::{auth::Identity, user::User};

/// Revocations that are remembered at once. Beyond that the oldest are forgotten, since
/// an operator wants the newest ones now.
const MAX_REVOCATIONS: usize = 100_000;

/// Revocations that are forgotten together: each sweep looks at all of them.
const FORGOTTEN_AT_ONCE: usize = MAX_REVOCATIONS / 100;

/// The shortest time for which it is remembered when a user was sent away.
const SHORTEST_MEMORY: Duration = Duration::from_secs(600);

/// The orders that still matter.
pub struct Revocations {
    /// The revocations in force, the oldest first.
    revoked: Mutex<IndexMap<Target, Revoked>>,
    moments: Mutex<Moments>,
}

#[derive(Clone, Copy)]
struct Revoked {
    issued_before: u64,
    until: u64,
}

impl Revocations {
    /// `recovery_window`: how long after its loss a session may be recovered.
    pub fn new(recovery_window: Duration) -> Self {
        // A session's begin lies before its loss, and clocks differ.
        let kept_for = recovery_window.saturating_mul(3).max(SHORTEST_MEMORY);
        Self {
            revoked: Mutex::default(),
            moments: Mutex::new(Moments::new(kept_for, MAX_REVOCATIONS)),
        }
    }

    /// Remembers that the order was made at `made`, and the order itself, if it says until
    /// when. Returns how many other revocations that were in force had to be forgotten for it.
    pub fn add(&self, order: &Order, made: SystemTime, now: SystemTime) -> usize {
        if let Target::User(id, tenant) = &order.target {
            let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
            moments.add(id, tenant.as_ref(), made, now);
        }
        let until = match order.until {
            Some(until) if !order.is_over(now) => until,
            _ => return 0,
        };
        let mut revoked = self.revoked();
        let mut forgotten = 0;
        if revoked.len() >= MAX_REVOCATIONS && !revoked.contains_key(&order.target) {
            let now = seconds(now);
            revoked.retain(|_, revoked| revoked.until > now);
            if revoked.len() >= MAX_REVOCATIONS {
                forgotten = revoked.drain(..FORGOTTEN_AT_ONCE).count();
            }
        }
        let new = Revoked {
            issued_before: order.issued_before,
            until,
        };
        let entry = revoked.entry(order.target.clone()).or_insert(new);
        if entry.until <= seconds(now) {
            *entry = new;
        }
        // Of two orders in force, the stricter part of each holds: a second order accepts no
        // token that the first one refuses.
        entry.issued_before = entry.issued_before.max(new.issued_before);
        entry.until = entry.until.max(new.until);
        forgotten
    }

    /// Whether this bearer's token is refused.
    pub fn refuse(&self, identity: &Identity, now: SystemTime) -> bool {
        let now = seconds(now);
        let revoked = self.revoked();
        if revoked.is_empty() {
            return false;
        }
        let in_force = |target: &Target| revoked.get(target).filter(|revoked| revoked.until > now);
        let user = identity.user();
        let of_user = |tenant| in_force(&Target::User(user.id.clone(), tenant));
        let by_user = [
            of_user(None),
            user.tenant.clone().and_then(|tenant| of_user(Some(tenant))),
        ];
        let is_old = |revoked: &Revoked| order::is_old(identity, revoked.issued_before);
        let by_token = identity
            .token_id()
            .is_some_and(|id| in_force(&Target::Token(id.to_owned())).is_some());
        by_token || by_user.into_iter().flatten().any(is_old)
    }

    /// Whether a session of `user` that began at `begun` may not be recovered: the user was
    /// sent away at `begun` or later. Since the clocks of instances differ, this also holds
    /// for less than five seconds before `begun`. It is known for three times the recovery
    /// window, at least ten minutes.
    pub fn forbids_recovery(&self, user: &User, begun: SystemTime) -> bool {
        let moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        moments.forbid(user, begun, SystemTime::now())
    }

    fn revoked(&self) -> MutexGuard<'_, IndexMap<Target, Revoked>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        auth::tests::a_token,
        user::{TenantId, UserId},
    };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn revocations() -> Revocations {
        Revocations::new(Duration::from_secs(60))
    }

    fn order(json: &str) -> Result<Order, String> {
        let text = OrderText::read(json.as_bytes()).map_err(|error| error.to_string())?;
        Order::parse(text, at(1_000)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_users_old_tokens_are_refused_until_the_order_ends() {
        let revocations = revocations();
        let order = order(r#"{"userId":"carl","tenantId":"t","until":2000}"#).unwrap();
        revocations.add(&order, at(1_000), at(1_000));
        for (user, tenant, issued, now, refused) in [
            ("carl", Some("t"), Some(999), 1_500, true),
            // Issued in the same second as the order, perhaps before it.
            ("carl", Some("t"), Some(1_000), 1_500, true),
            ("carl", Some("t"), Some(1_001), 1_500, false),
            ("carl", Some("t"), None, 1_500, true),
            ("carl", Some("t"), Some(999), 2_000, false),
            ("carl", Some("u"), Some(999), 1_500, false),
            ("carl", None, Some(999), 1_500, false),
            ("bob", Some("t"), Some(999), 1_500, false),
        ] {
            let identity = a_token(user, tenant, issued.map(at), None);
            let is_refused = revocations.refuse(&identity, at(now));
            assert_eq!(is_refused, refused, "{user} {tenant:?} {issued:?} {now}");
        }
    }

    #[test]
    fn an_order_without_a_tenant_is_for_all_and_the_stricter_of_two_holds() {
        let revocations = revocations();
        let add = |json: &str| revocations.add(&order(json).unwrap(), at(1_000), at(1_000));
        add(r#"{"userId":"carl","until":3000,"issuedBefore":900}"#);
        add(r#"{"userId":"carl","until":2000,"issuedBefore":1100}"#);
        for tenant in [None, Some("t")] {
            let identity = a_token("carl", tenant, Some(at(1_050)), None);
            assert!(revocations.refuse(&identity, at(2_500)));
        }
    }

    #[test]
    fn who_was_sent_away_recovers_no_session_from_before_however_the_order_ends() {
        let revocations = revocations();
        let now = SystemTime::now();
        let ago = |seconds| now - Duration::from_secs(seconds);
        let carl = User {
            id: UserId::parse("carl").unwrap(),
            tenant: None,
        };
        revocations.add(&order(r#"{"userId":"carl"}"#).unwrap(), ago(300), now);
        assert!(revocations.forbids_recovery(&carl, ago(400)));
        assert!(!revocations.forbids_recovery(&carl, ago(200)));
        revocations.add(&order(r#"{"tokenId":"j"}"#).unwrap(), now, now);
        assert!(!revocations.forbids_recovery(&carl, ago(200)));
    }

    #[test]
    fn one_token_is_refused_by_its_id() {
        let revocations = revocations();
        let order = order(r#"{"tokenId":"j","until":2000}"#).unwrap();
        revocations.add(&order, at(1_000), at(1_000));
        let refuse = |id| revocations.refuse(&a_token("carl", None, None, id), at(1_500));
        assert!(refuse(Some("j")));
        assert!(!refuse(Some("k")));
        assert!(!refuse(None));
    }

    #[test]
    fn the_newest_finds_room_where_others_end_and_else_where_the_oldest_were() {
        let revocations = revocations();
        let numbered = |number: usize, until: u64| {
            order(&format!(r#"{{"tokenId":"{number}","until":{until}}}"#)).unwrap()
        };
        let is_refused = |number: usize, now| {
            let identity = a_token("carl", None, None, Some(&number.to_string()));
            revocations.refuse(&identity, at(now))
        };
        for number in 0..MAX_REVOCATIONS {
            let until = if number < 10 { 2_000 } else { u64::MAX };
            assert_eq!(
                revocations.add(&numbered(number, until), at(1_000), at(1_000)),
                0
            );
        }
        // The same target again does not count as another one.
        assert_eq!(
            revocations.add(&numbered(0, 1_500), at(1_000), at(1_000)),
            0
        );
        let (next, last) = (MAX_REVOCATIONS, MAX_REVOCATIONS + 1);
        assert_eq!(
            revocations.add(&numbered(next, 3_000), at(2_000), at(2_000)),
            0
        );
        for number in next + 1..next + 10 {
            assert_eq!(
                revocations.add(&numbered(number, 3_000), at(2_000), at(2_000)),
                0
            );
        }
        assert!(is_refused(10, 2_000) && is_refused(next, 2_000));
        // An order that is over displaces no other.
        let over = numbered(last + 50, 2_000);
        assert_eq!(revocations.add(&over, at(2_000), at(2_000)), 0);
        assert!(is_refused(10, 2_000));
        let one_more = numbered(last + 100, 3_000);
        assert_eq!(
            revocations.add(&one_more, at(2_000), at(2_000)),
            FORGOTTEN_AT_ONCE
        );
        assert!(!is_refused(10, 2_000));
        assert!(is_refused(next, 2_000) && is_refused(last + 100, 2_000));
    }

    #[test]
    fn an_order_that_is_over_makes_its_successor_no_stricter() {
        let revocations = revocations();
        let order = |issued_before, until| {
            let target = Target::User(UserId::parse("carl").unwrap(), None);
            Order::of(target, Some(until), issued_before)
        };
        revocations.add(&order(1_100, 2_000), at(1_000), at(1_000));
        revocations.add(&order(900, 4_000), at(3_000), at(3_000));
        let refuses = |issued| {
            let token = a_token("carl", None, Some(at(issued)), None);
            revocations.refuse(&token, at(3_000))
        };
        assert!(refuses(900));
        assert!(!refuses(1_050));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Order(Target, Option<u64>, u64),
        Wait(u64),
    }

    fn targets() -> impl Strategy<Value = Target> {
        let id = |text: &str| UserId::parse(text).unwrap();
        let tenant = |text: &str| TenantId::parse(text).unwrap();
        proptest::sample::select(vec![
            Target::User(id("carl"), None),
            Target::User(id("carl"), Some(tenant("t"))),
            Target::User(id("carl"), Some(tenant("u"))),
            Target::User(id("bob"), Some(tenant("t"))),
            Target::Token("j".to_owned()),
            Target::Token("k".to_owned()),
        ])
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let order = (targets(), proptest::option::of(0..40_u64), 0..40_u64);
        let step = prop_oneof![
            order.prop_map(|(target, until, issued)| Step::Order(target, until, issued)),
            (0..12_u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..20)
    }

    /// One target's revocation in the plain model.
    struct Remembered {
        target: Target,
        until: u64,
        issued_before: u64,
    }

    impl Remembered {
        fn refuses(&self, token: &Identity, now: u64) -> bool {
            let is_old = token
                .issued_at()
                .is_none_or(|at| seconds(at) <= self.issued_before);
            let is_meant = match &self.target {
                Target::User(id, None) => *id == token.user().id && is_old,
                Target::User(id, tenant) => {
                    *id == token.user().id && *tenant == token.user().tenant && is_old
                }
                Target::Token(id) => token.token_id() == Some(id),
            };
            is_meant && self.until > now
        }
    }

    proptest! {
        #[test]
        fn tokens_are_refused_as_in_a_plain_model(
            steps in steps(),
            user in proptest::sample::select(vec!["carl", "bob"]),
            tenant in proptest::option::of("[tu]"),
            issued in proptest::option::of(960..1_040_u64),
            token_id in proptest::option::of("[jkl]"),
        ) {
            let token = a_token(user, tenant.as_deref(), issued.map(at), token_id.as_deref());
            let (revocations, mut model) = (revocations(), Vec::<Remembered>::new());
            let mut now = 1_000;
            for step in steps {
                match step {
                    Step::Wait(seconds) => now += seconds,
                    Step::Order(target, until, issued) => {
                        let order = Order::of(target.clone(), until.map(|after| 990 + after), 980 + issued);
                        prop_assert_eq!(revocations.add(&order, at(now), at(now)), 0);
                        model.retain(|remembered| remembered.until > now);
                        if let Some(until) = order.until.filter(|until| *until > now) {
                            let mut new = Remembered { target, until, issued_before: 980 + issued };
                            if let Some(index) = model.iter().position(|it| it.target == new.target) {
                                let old = model.remove(index);
                                new.until = new.until.max(old.until);
                                new.issued_before = new.issued_before.max(old.issued_before);
                            }
                            model.push(new);
                        }
                    }
                }
                let expected = model.iter().any(|remembered| remembered.refuses(&token, now));
                prop_assert_eq!(revocations.refuse(&token, at(now)), expected);
            }
        }
    }
}
