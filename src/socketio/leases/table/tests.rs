use proptest::prelude::*;

use super::*;
use crate::auth::tests::an_identity;

const NOTICE: u64 = 5;
const LEEWAY: u64 = 2;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn table() -> Table {
    Table::new(Duration::from_secs(NOTICE), Duration::from_secs(LEEWAY))
}

fn until(user: &str, seconds: u64) -> Identity {
    an_identity(user, Some(at(seconds)))
}

fn all_due(table: &mut Table, now: u64) -> Vec<Due> {
    std::iter::from_fn(|| table.take(at(now))).collect()
}

#[test]
fn a_token_is_announced_before_its_end_and_accepted_through_its_last_second() {
    let (mut table, sid) = (table(), Sid::new());
    let lease = table.grant(sid, until("carl", 100));
    for (now, due) in [
        (94, None),
        (95, Some(Due::Expiring(sid, at(100)))),
        (96, None),
        (102, None),
        (103, Some(Due::Expired(sid))),
        (104, None),
    ] {
        assert_eq!(all_due(&mut table, now), Vec::from_iter(due), "{now}");
        assert_eq!(table.end_of(lease).is_some(), now >= 103, "{now}");
    }
}

#[test]
fn the_first_end_comes_first_each_once_and_none_that_was_given_back() {
    let (mut table, sids) = (table(), [Sid::new(), Sid::new(), Sid::new()]);
    let ends = [150, 100, 100];
    let leases: Vec<_> = (sids.iter().zip(ends))
        .map(|(sid, end)| table.grant(*sid, until("carl", end)))
        .collect();
    table.give_back(leases[2]);
    assert_eq!(table.first(), Some(at(95)));
    assert!(table.is_first(leases[1]) && !table.is_first(leases[0]));
    let (one, two) = (sids[1], sids[0]);
    let due = |now, table: &mut Table| all_due(table, now);
    assert_eq!(due(95, &mut table), [Due::Expiring(one, at(100))]);
    // Asked late: both are due at once, the earlier deadline first.
    let late = [Due::Expired(one), Due::Expiring(two, at(150))];
    assert_eq!(due(145, &mut table), late);
    assert_eq!(due(153, &mut table), [Due::Expired(two)]);
}

#[test]
fn a_token_that_ends_before_it_could_be_announced_just_ends() {
    let (mut table, sid) = (table(), Sid::new());
    let lease = table.grant(sid, until("carl", 100));
    assert_eq!(all_due(&mut table, 103), [Due::Expired(sid)]);
    assert_eq!(table.noticed(lease), None);
}

#[test]
fn another_token_of_the_same_user_extends_the_lease_and_nobody_elses() {
    let (mut table, sid) = (table(), Sid::new());
    let lease = table.grant(sid, until("carl", 100));
    assert_eq!(all_due(&mut table, 95).len(), 1);
    let another = table.renew(lease, until("bob", 200), |_| panic!("it is not asked"));
    assert_eq!(another, Err(Refusal::AnotherUser));
    let refused = table.renew(lease, until("carl", 200), |_| Err(Refusal::TokenRevoked));
    assert_eq!(refused, Err(Refusal::TokenRevoked));
    assert_eq!(table.noticed(lease), Some(at(100)));
    assert_eq!(table.renew(lease, until("carl", 200), |_| Ok(())), Ok(()));
    assert_eq!(table.noticed(lease), None);
    assert_eq!(all_due(&mut table, 150), []);
    let expiring = Due::Expiring(sid, at(200));
    assert_eq!(all_due(&mut table, 195), [expiring]);
    assert_eq!(
        table.renew(lease, an_identity("carl", None), |_| Ok(())),
        Ok(())
    );
    assert_eq!(all_due(&mut table, 10_000), []);
    assert_eq!(table.first(), None);
}

#[test]
fn a_lease_that_is_over_is_not_extended_and_says_why_it_ended() {
    let (mut table, sid) = (table(), Sid::new());
    let expired = table.grant(sid, until("carl", 100));
    assert_eq!(all_due(&mut table, 103).len(), 1);
    let revoked = table.grant(Sid::new(), until("bob", 200));
    let sids = table.revoke(|identity| identity.user().id.as_str() == "bob");
    assert_eq!(sids.len(), 1);
    assert_eq!(table.end_of(expired), Some(End::Expired));
    assert_eq!(table.end_of(revoked), Some(End::Revoked));
    for (lease, user) in [(expired, "carl"), (revoked, "bob")] {
        let renewed = table.renew(lease, until(user, 300), |_| Ok(()));
        assert_eq!(renewed, Err(Refusal::AnotherUser));
    }
    // The lease stays revoked when its token expires.
    all_due(&mut table, 1_000);
    assert_eq!(table.end_of(revoked), Some(End::Revoked));
}

#[derive(Debug, Clone)]
enum Step {
    Grant(bool, Option<u64>),
    GiveBack(usize),
    Renew(usize, bool, Option<u64>),
    Revoke(bool),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let expiry = || proptest::option::of(0..40_u64);
    let step = prop_oneof![
        (any::<bool>(), expiry()).prop_map(|(user, expiry)| Step::Grant(user, expiry)),
        (0..8_usize).prop_map(Step::GiveBack),
        (0..8_usize, any::<bool>(), expiry())
            .prop_map(|(lease, user, expiry)| Step::Renew(lease, user, expiry)),
        any::<bool>().prop_map(Step::Revoke),
        (0..12_u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..60)
}

/// A lease of the plain model, which looks at every lease for each question.
struct Model {
    sid: Sid,
    user: bool,
    expires_at: Option<u64>,
    noticed: bool,
    ended: Option<End>,
    is_told: bool,
}

impl Model {
    fn deadline(&self) -> Option<u64> {
        let expires_at = self.expires_at.filter(|_| !self.is_told)?;
        Some(match self.noticed {
            true => expires_at + LEEWAY + 1,
            false => expires_at - NOTICE,
        })
    }
}

fn user(is_carl: bool) -> &'static str {
    if is_carl { "carl" } else { "bob" }
}

proptest! {
    #[test]
    fn deadlines_fall_due_as_in_a_plain_model(steps in steps()) {
        let mut table = table();
        let mut leases: Vec<(u64, Model)> = Vec::new();
        let mut now = 1_000;
        let identity = |is_carl: bool, expires_at: Option<u64>| {
            an_identity(user(is_carl), expires_at.map(at))
        };
        for step in steps {
            match step {
                Step::Grant(is_carl, life) => {
                    let expires_at = life.map(|life| now + life);
                    let sid = Sid::new();
                    let number = table.grant(sid, identity(is_carl, expires_at));
                    leases.push((number, Model {
                        sid,
                        user: is_carl,
                        expires_at,
                        noticed: false,
                        ended: None,
                        is_told: false,
                    }));
                }
                Step::GiveBack(index) if index < leases.len() => {
                    table.give_back(leases.remove(index).0);
                }
                Step::Renew(index, is_carl, life) if index < leases.len() => {
                    let (number, model) = &mut leases[index];
                    let expires_at = life.map(|life| now + life);
                    let renewed = table.renew(*number, identity(is_carl, expires_at), |_| Ok(()));
                    let may = model.ended.is_none() && model.user == is_carl;
                    prop_assert_eq!(renewed.is_ok(), may);
                    if may {
                        (model.expires_at, model.noticed) = (expires_at, false);
                    }
                }
                Step::Revoke(is_carl) => {
                    let is_one = |identity: &Identity| {
                        identity.user().id.as_str() == user(is_carl)
                    };
                    let mut sids = table.revoke(is_one);
                    let mut expected = Vec::new();
                    for (_, model) in leases.iter_mut().filter(|(_, it)| it.user == is_carl) {
                        model.ended = Some(End::Revoked);
                        expected.push(model.sid);
                    }
                    sids.sort_unstable_by_key(Sid::to_string);
                    expected.sort_unstable_by_key(Sid::to_string);
                    prop_assert_eq!(sids, expected);
                }
                Step::Wait(seconds) => now += seconds,
                Step::GiveBack(_) | Step::Renew(..) => {}
            }
            // Everything that is due, the earliest deadline first.
            loop {
                let due = leases.iter_mut().filter_map(|(number, model)| {
                    Some((model.deadline().filter(|at| *at <= now)?, *number, model))
                });
                let expected = due.min_by_key(|(at, number, _)| (*at, *number));
                let expected = expected.map(|(_, _, model)| {
                    let expires_at = model.expires_at.unwrap();
                    if now > expires_at + LEEWAY {
                        model.ended = model.ended.or(Some(End::Expired));
                        model.is_told = true;
                        Due::Expired(model.sid)
                    } else {
                        model.noticed = true;
                        Due::Expiring(model.sid, at(expires_at))
                    }
                });
                prop_assert_eq!(table.take(at(now)), expected);
                if expected.is_none() {
                    break;
                }
            }
            for (number, model) in &leases {
                prop_assert_eq!(table.end_of(*number), model.ended);
                let noticed = model.expires_at.filter(|_| model.noticed);
                prop_assert_eq!(table.noticed(*number), noticed.map(at));
            }
        }
        for (number, _) in leases {
            table.give_back(number);
        }
        prop_assert!(table.terms.is_empty() && table.deadlines.is_empty());
    }
}
