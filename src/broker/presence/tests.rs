//! A fleet of instances with random faults: the real attendance and the real decisions, with a
//! model of what RabbitMQ does between them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    Asked, Attendance,
    fleet::{Fleet, Heard},
    words::{Event, Here, Page, Report},
};
use crate::user::{TenantId, User, UserId};

const INSTANCES: usize = 3;
const USERS: usize = 6;
const GRACE: u64 = 10_000;

/// Few, so that lists and changes have several parts.
const REPORTED_AT_ONCE: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Come(usize, usize),
    Go(usize, usize),
    Kill(usize),
    Start(usize),
    /// The connection to RabbitMQ is lost, on both sides.
    Cut(usize),
    /// The connection is made, and so many parts of the list of everybody are sent; if that is
    /// not all of it, the connection is lost again.
    Link(usize, usize),
    RestartBroker,
    /// The instance sends its changes.
    Report(usize),
    /// The instance answers the keeper's call.
    Answer(usize),
    /// The keeper reads so many messages.
    Hear(usize),
    /// The keeper looks which instances are there.
    Ping,
    Announce,
    /// The keeper's connection is lost after so many events.
    AnnounceInPart(usize),
    Compact,
    /// The keeper's connection is lost before the old pages are removed.
    CompactInPart,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::*;
    let (instance, user) = (0..INSTANCES, 0..USERS);
    let step = prop_oneof![
        8 => (instance.clone(), user.clone()).prop_map(|(i, u)| Come(i, u)),
        8 => (instance.clone(), user).prop_map(|(i, u)| Go(i, u)),
        1 => instance.clone().prop_map(Kill),
        2 => instance.clone().prop_map(Start),
        1 => instance.clone().prop_map(Cut),
        4 => (instance.clone(), 0..5_usize).prop_map(|(i, parts)| Link(i, parts)),
        1 => Just(RestartBroker),
        8 => instance.clone().prop_map(Report),
        6 => instance.prop_map(Answer),
        8 => (1..6_usize).prop_map(Hear),
        3 => Just(Ping),
        8 => Just(Announce),
        2 => (0..4_usize).prop_map(AnnounceInPart),
        1 => Just(Compact),
        1 => Just(CompactInPart),
        6 => prop_oneof![1..500_u64, 1..(2 * GRACE)].prop_map(Wait),
    ];
    prop::collection::vec(step, 1..150)
}

#[derive(Default)]
struct Node {
    attendance: Attendance,
    sockets: HashMap<usize, usize>,
    name: String,
    is_alive: bool,
    is_linked: bool,
    run: u64,
    number: u64,
    is_called: bool,
}

struct World {
    start: Instant,
    now: u64,
    nodes: Vec<Node>,
    lives: u64,
    /// Who consumes the keeper's queue, longest first: the first one is the keeper.
    consumers: Vec<usize>,
    keeper: Option<Fleet>,
    /// Messages for the keeper, as JSON.
    inbox: VecDeque<String>,
    ledger: VecDeque<String>,
    events: Vec<Event>,
    /// The keeper has changed since the user's last event: it may be repeated.
    may_repeat: HashSet<User>,
}

fn user(number: usize) -> User {
    User {
        id: UserId::parse(&format!("usr_{}", number / 2)).unwrap(),
        tenant: (number % 2 == 1).then(|| TenantId::parse("t").unwrap()),
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            start: Instant::now(),
            now: 1_000_000,
            nodes: (0..INSTANCES).map(|_| Node::default()).collect(),
            lives: 0,
            consumers: Vec::new(),
            keeper: None,
            inbox: VecDeque::new(),
            ledger: VecDeque::new(),
            events: Vec::new(),
            may_repeat: HashSet::new(),
        };
        for instance in 0..INSTANCES {
            world.start(instance);
        }
        world
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Come(instance, user) => self.socket(instance, user, 1),
            Step::Go(instance, user) => self.socket(instance, user, -1),
            Step::Kill(instance) => {
                self.cut(instance);
                self.nodes[instance] = Node::default();
            }
            Step::Start(instance) => self.start(instance),
            Step::Cut(instance) => self.cut(instance),
            Step::Link(instance, parts) => self.link(instance, parts),
            Step::RestartBroker => {
                for instance in 0..INSTANCES {
                    self.cut(instance);
                }
                // Reports are confirmed, so they are still there.
            }
            Step::Report(instance) => self.report(instance),
            Step::Answer(instance) => self.answer(instance),
            Step::Hear(messages) => self.hear(messages),
            Step::Ping => self.ping(),
            Step::Announce => self.announce(usize::MAX),
            Step::AnnounceInPart(events) => self.announce(events),
            Step::Compact => self.compact(true),
            Step::CompactInPart => self.compact(false),
            Step::Wait(millis) => self.now += millis,
        }
    }

    fn socket(&mut self, instance: usize, number: usize, change: isize) {
        let now = self.instant();
        let node = &mut self.nodes[instance];
        if !node.is_alive {
            return;
        }
        let sockets = node.sockets.entry(number).or_default();
        *sockets = sockets.saturating_add_signed(change);
        node.attendance.note(&user(number), *sockets, now);
    }

    fn start(&mut self, instance: usize) {
        if !self.nodes[instance].is_alive {
            self.lives += 1;
            self.nodes[instance] = Node {
                is_alive: true,
                name: format!("gw-{}", self.lives),
                ..Node::default()
            };
        }
    }

    fn cut(&mut self, instance: usize) {
        let node = &mut self.nodes[instance];
        node.is_linked = false;
        node.is_called = false;
        node.attendance.forget_changes();
        if self.consumers.first() == Some(&instance) {
            self.keeper = None;
        }
        self.consumers.retain(|one| *one != instance);
    }

    fn link(&mut self, instance: usize, parts: usize) {
        let node = &mut self.nodes[instance];
        if !node.is_alive || node.is_linked {
            return;
        }
        node.is_linked = true;
        node.run += 1;
        node.number = 0;
        self.consumers.push(instance);
        if !self.list(instance, parts) {
            self.cut(instance);
        }
    }

    /// Sends the list of everybody, or so many parts of it; returns whether that was all.
    fn list(&mut self, instance: usize, most: usize) -> bool {
        let everybody = self.nodes[instance].attendance.everybody(self.instant());
        let mut parts: Vec<_> = everybody.chunks(REPORTED_AT_ONCE).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for (index, part) in parts.iter().take(most).enumerate() {
            let (begins, ends) = (index == 0, index + 1 == parts.len());
            self.send(instance, part.to_vec(), begins, ends);
        }
        most >= parts.len()
    }

    fn send(&mut self, instance: usize, users: Vec<Here>, begins: bool, ends: bool) {
        let node = &mut self.nodes[instance];
        let report = Report {
            from: node.name.clone(),
            run: node.run,
            number: node.number,
            begins,
            ends,
            users,
        };
        node.number += 1;
        self.inbox
            .push_back(serde_json::to_string(&report).unwrap());
    }

    fn report(&mut self, instance: usize) {
        let now = self.instant();
        let node = &self.nodes[instance];
        if node.is_linked {
            let changes = node.attendance.changes(REPORTED_AT_ONCE, now);
            if !changes.is_empty() {
                self.send(instance, changes, false, false);
            }
        }
    }

    fn answer(&mut self, instance: usize) {
        if std::mem::take(&mut self.nodes[instance].is_called) {
            self.list(instance, usize::MAX);
        }
    }

    /// The keeper, which takes over if there was none.
    fn keeper(&mut self) -> Option<&mut Fleet> {
        self.consumers.first()?;
        if self.keeper.is_none() {
            let pages = self.ledger.iter();
            let pages = pages.map(|page| serde_json::from_str(page).unwrap());
            self.keeper = Some(Fleet::from_ledger(GRACE, pages.collect(), self.now));
            self.may_repeat.extend((0..USERS).map(user));
            self.compact(true);
            for instance in self.consumers.clone() {
                self.nodes[instance].is_called = true;
            }
        }
        self.keeper.as_mut()
    }

    fn hear(&mut self, messages: usize) {
        for _ in 0..messages {
            let now = self.now;
            if self.inbox.is_empty() || self.keeper().is_none() {
                return;
            }
            let message = self.inbox.pop_front().unwrap();
            let report: Report = serde_json::from_str(&message).unwrap();
            let from = report.from.clone();
            if self.keeper().unwrap().hear(report, now) == Heard::Gap {
                let node = self.nodes.iter_mut().find(|node| node.name == from);
                if let Some(node) = node {
                    node.is_called = node.is_linked;
                }
            }
        }
    }

    fn ping(&mut self) {
        let there = |node: &&Node| node.is_linked;
        let there = self
            .nodes
            .iter()
            .filter(there)
            .map(|node| node.name.clone());
        let (there, now): (HashSet<String>, _) = (there.collect(), self.now);
        if let Some(fleet) = &mut self.keeper {
            let known: Vec<_> = fleet.instances().map(str::to_owned).collect();
            for name in known.iter().filter(|name| !there.contains(*name)) {
                fleet.lose(name, now);
            }
        }
    }

    fn write(&mut self, page: &Page) {
        self.ledger.push_back(serde_json::to_string(page).unwrap());
    }

    fn announce(&mut self, most: usize) {
        let now = self.now;
        let Some(fleet) = &mut self.keeper else {
            return;
        };
        let Some((page, events)) = fleet.announce(now) else {
            return;
        };
        self.write(&page);
        for event in events.iter().take(most) {
            self.publish(event.clone());
        }
        if most < events.len() {
            self.cut(self.consumers[0]);
        }
    }

    fn publish(&mut self, event: Event) {
        let before = self.last(&event.user).map(|event| event.online);
        if !self.may_repeat.remove(&event.user) {
            assert_ne!(before, Some(event.online));
        }
        let last = self.events.last().map_or(0, |event| event.at);
        assert!(event.at >= last && event.at <= self.now, "time goes on");
        assert!(event.since <= event.at);
        assert_eq!(event.online, event.sockets > 0);
        self.events.push(event);
    }

    fn compact(&mut self, is_finished: bool) {
        let Some(fleet) = &mut self.keeper else {
            return;
        };
        let (pages, old) = (fleet.pages(), self.ledger.len());
        for page in &pages {
            self.write(page);
        }
        match is_finished {
            true => drop(self.ledger.drain(..old)),
            false => self.cut(self.consumers[0]),
        }
    }

    fn last(&self, user: &User) -> Option<&Event> {
        self.events.iter().rfind(|event| event.user == *user)
    }

    /// Everything is up again, and time passes.
    fn settle(&mut self) {
        for instance in 0..INSTANCES {
            self.start(instance);
            self.link(instance, usize::MAX);
        }
        for _ in 0..4 {
            self.keeper();
            // Once for the changes, once for the answers to the calls that these lead to.
            for _ in 0..2 {
                for instance in 0..INSTANCES {
                    for _ in 0..USERS {
                        self.report(instance);
                    }
                    self.answer(instance);
                }
                self.hear(usize::MAX);
            }
            self.ping();
            self.announce(usize::MAX);
            self.now += GRACE + 1;
            self.announce(usize::MAX);
        }
    }

    fn sockets(&self, number: usize) -> usize {
        let nodes = self.nodes.iter();
        nodes.filter_map(|node| node.sockets.get(&number)).sum()
    }
}

proptest! {
    #[test]
    fn the_last_event_of_each_user_is_true_once_things_settle(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.settle();
        let before = world.events.len();
        world.settle();
        prop_assert_eq!(world.events.len(), before, "it never settles");
        for number in 0..USERS {
            let (user, sockets) = (user(number), world.sockets(number));
            let last = world.last(&user);
            prop_assert_eq!(last.is_some_and(|event| event.online), sockets > 0, "{:?}", user);
            let asked = Asked { id: user.id.clone(), tenant: user.tenant.clone() };
            if asked.tenant.is_some() {
                let state = world.keeper().unwrap().state(&asked);
                prop_assert_eq!((state.online, state.sockets), (sockets > 0, sockets as u64));
            }
        }
        let online = (0..USERS).filter(|number| world.sockets(*number) > 0).count();
        prop_assert_eq!(world.keeper().unwrap().announced(), online);
        // Nothing is kept of who is offline.
        world.compact(true);
        let lines = world.ledger.iter().map(|page| serde_json::from_str::<Page>(page).unwrap().lines.len());
        prop_assert_eq!(lines.sum::<usize>(), online);
    }
}

/// Everything that is under way arrives, and nothing more happens.
fn arrive(world: &mut World) {
    for instance in 0..INSTANCES {
        world.link(instance, usize::MAX);
    }
    world.keeper();
    for _ in 0..3 {
        for instance in 0..INSTANCES {
            (0..USERS).for_each(|_| world.report(instance));
            world.answer(instance);
        }
        world.hear(usize::MAX);
    }
    world.ping();
    world.announce(usize::MAX);
}

/// What a user's events said so far: online, since, sockets.
fn told(world: &World, number: usize) -> Vec<(bool, u64, u64)> {
    let events = world.events.iter();
    events
        .filter(|event| event.user == user(number))
        .map(|event| (event.online, event.since, event.sockets))
        .collect()
}

#[test]
fn a_reload_within_the_grace_is_not_told_wherever_the_user_returns() {
    let mut world = World::new();
    let start = world.now;
    world.socket(0, 1, 1);
    arrive(&mut world);
    for (from, to) in [(0, 0), (0, 1), (1, 2)] {
        world.socket(from, 1, -1);
        arrive(&mut world);
        world.now += GRACE - 1;
        arrive(&mut world);
        world.socket(to, 1, 1);
        arrive(&mut world);
    }
    // A second socket elsewhere, and the first one goes.
    world.socket(0, 1, 1);
    arrive(&mut world);
    world.socket(2, 1, -1);
    world.now += 3 * GRACE;
    arrive(&mut world);
    assert_eq!(told(&world, 1), [(true, start, 1)]);
    let left = world.now;
    world.socket(0, 1, -1);
    arrive(&mut world);
    world.now += GRACE;
    arrive(&mut world);
    assert_eq!(told(&world, 1), [(true, start, 1), (false, left, 0)]);
}

#[test]
fn a_client_that_comes_and_goes_costs_two_events_in_each_grace() {
    let mut world = World::new();
    let end = world.now + 10 * GRACE;
    while world.now < end {
        world.socket(0, 1, 1);
        arrive(&mut world);
        world.socket(0, 1, -1);
        arrive(&mut world);
        world.now += 50;
    }
    assert_eq!(told(&world, 1).len(), 1);
    for _ in 0..10 {
        world.socket(0, 1, 1);
        arrive(&mut world);
        world.socket(0, 1, -1);
        arrive(&mut world);
        world.now += GRACE;
        arrive(&mut world);
    }
    assert!(told(&world, 1).len() <= 21);
}

#[test]
fn users_of_a_killed_instance_are_offline_after_the_grace_unless_they_return() {
    for keeper in [0, 1] {
        let mut world = World::new();
        for number in [1, 3] {
            world.socket(0, number, 1);
        }
        for instance in [keeper, 1 - keeper] {
            world.link(instance, usize::MAX);
        }
        arrive(&mut world);
        world.take(&Step::Kill(0));
        arrive(&mut world);
        world.now += GRACE - 1;
        world.socket(1, 3, 1);
        arrive(&mut world);
        assert_eq!(told(&world, 1).len(), 1);
        world.now += 1;
        arrive(&mut world);
        assert!(!told(&world, 1)[1].0);
        world.now += GRACE;
        arrive(&mut world);
        // A new keeper may repeat what the last one said, and says nothing else.
        assert!(told(&world, 3).iter().all(|(online, ..)| *online));
    }
}

#[test]
fn a_question_without_a_tenant_is_about_users_of_all_tenants() {
    let mut world = World::new();
    world.socket(0, 2, 1);
    arrive(&mut world);
    world.now += 5;
    world.socket(1, 3, 1);
    world.socket(1, 3, 1);
    arrive(&mut world);
    let (id, since) = (user(2).id, world.now);
    let mut state = |tenant: Option<&str>| {
        let tenant = tenant.map(|tenant| TenantId::parse(tenant).unwrap());
        let asked = Asked {
            id: id.clone(),
            tenant,
        };
        let state = world.keeper().unwrap().state(&asked);
        (state.online, state.sockets, state.since)
    };
    assert_eq!(state(None), (true, 3, Some(since - 5)));
    assert_eq!(state(Some("t")), (true, 2, Some(since)));
    assert_eq!(state(Some("other")), (false, 0, None));
}
