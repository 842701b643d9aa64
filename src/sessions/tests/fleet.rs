//! Random lives of a fleet: a log with gaps, lost tails, retention and re-creation; instances
//! that start, read back, lag, lose their link and die; clients that come and go anywhere.
//!
//! Over one session, each client gets every event of its user exactly once and in order, but
//! for what the log itself has lost. A session that is not resumed gets nothing of before.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::double::{Emitted, Wire, user};
use crate::{
    broker::{
        Activation, BroadcastHandler, Broker, Delivery, Handler, Subscribed, history::History,
    },
    config::{BindingKeys, HttpConfig, RecoveryConfig},
    observability::metrics::Metrics,
    sessions::{Admitted, Hub, Offset, ResumeRequest, Session, audience::Fed, resume::Pid},
    update::{CHAT3_UPDATE, MESSAGE_NEW},
    user::User,
};

const INSTANCES: usize = 3;
const CLIENTS: usize = 4;

/// The last one has a dot, so that its routing keys could be another user's as well.
const USERS: [&str; 2] = ["one", "one.two"];

fn user_of(client: usize) -> User {
    user(USERS[client % USERS.len()])
}

#[derive(Debug, Clone)]
enum Step {
    Publish {
        user: usize,
        is_message: bool,
    },
    /// Offsets that no message has.
    Gap(u64),
    /// The newest messages are gone, and their offsets are used again.
    LoseTail(usize),
    /// The oldest messages are gone.
    Retain(usize),
    Recreate,
    /// An instance dies and another one takes its place.
    Restart {
        instance: usize,
    },
    /// An instance reads back so many messages.
    ReadBack {
        instance: usize,
        count: usize,
    },
    ReadBackEnds {
        instance: usize,
    },
    Read {
        instance: usize,
        count: usize,
    },
    /// An instance loses its link, and reads on over another.
    Relink {
        instance: usize,
    },
    Connect {
        client: usize,
        instance: usize,
        capacity: usize,
    },
    /// A client loses its connection after it has seen so many events.
    Lose {
        client: usize,
        seen: usize,
    },
    Take {
        client: usize,
        events: usize,
    },
    Quiet {
        instance: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    let instance = || 0..INSTANCES;
    prop_oneof![
        12 => (0..USERS.len(), any::<bool>())
            .prop_map(|(user, is_message)| Step::Publish { user, is_message }),
        1 => (1..4_u64).prop_map(Step::Gap),
        1 => (1..4_usize).prop_map(Step::LoseTail),
        1 => (1..12_usize).prop_map(Step::Retain),
        1 => Just(Step::Recreate),
        2 => instance().prop_map(|instance| Step::Restart { instance }),
        3 => (instance(), 1..9_usize)
            .prop_map(|(instance, count)| Step::ReadBack { instance, count }),
        1 => instance().prop_map(|instance| Step::ReadBackEnds { instance }),
        14 => (instance(), 1..6_usize).prop_map(|(instance, count)| Step::Read { instance, count }),
        2 => instance().prop_map(|instance| Step::Relink { instance }),
        8 => (client(), instance(), prop_oneof![Just(3_usize), Just(1 << 30)]).prop_map(
            |(client, instance, capacity)| Step::Connect { client, instance, capacity }
        ),
        4 => (client(), 0..9_usize).prop_map(|(client, seen)| Step::Lose { client, seen }),
        5 => (client(), 1..6_usize).prop_map(|(client, events)| Step::Take { client, events }),
        2 => instance().prop_map(|instance| Step::Quiet { instance }),
    ]
}

/// A published update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Published {
    id: u64,
    user: usize,
    is_message: bool,
}

impl Published {
    fn body(self) -> Vec<u8> {
        let (id, user) = (self.id, USERS[self.user]);
        let kind = match self.is_message {
            true => "message.create",
            false => "user.typing",
        };
        format!(r#"{{"userId":"{user}","eventType":"{kind}","data":{{"id":{id}}},"id":{id}}}"#)
            .into()
    }

    fn key(self) -> String {
        format!("user.{}.update", USERS[self.user])
    }

    /// Calls `take` with it, as it comes.
    fn deliver<T>(self, take: impl FnOnce(&Delivery<'_>) -> T) -> T {
        take(&Delivery {
            body: &self.body(),
            routing_key: &self.key(),
            published_at: None,
            position: None,
        })
    }
}

#[derive(Default)]
struct Log {
    published: Vec<Published>,
    entries: Vec<(u64, Published)>,
    end: u64,
    /// Lost with a tail: nobody can know of them.
    lost: BTreeSet<u64>,
}

impl Log {
    fn publish(&mut self, user: usize, is_message: bool) {
        let id = self.published.len() as u64 + 1;
        let published = Published {
            id,
            user,
            is_message,
        };
        self.published.push(published);
        self.entries.push((self.end, published));
        self.end += 1;
    }
}

/// One instance: its hub, and its reader.
struct Instance {
    broker: Arc<Feed>,
    hub: Arc<Hub<Wire>>,
    /// The last entry that was read.
    last: Option<(u64, u64)>,
    next: u64,
}

/// A broker whose updates come out of the log.
struct Feed {
    history: Arc<History>,
    keys: BindingKeys,
    subscriptions: Mutex<HashMap<User, (Handler, Activation)>>,
}

impl Instance {
    fn start(log: &Log, room: usize) -> Self {
        let keys = BindingKeys::default();
        let history = Arc::new(History::new("log", keys.clone(), Metrics::new()));
        let broker = Arc::new(Feed {
            history,
            keys,
            subscriptions: Mutex::default(),
        });
        let config = HttpConfig {
            recovery: RecoveryConfig {
                window: Duration::from_secs(600),
                total_bytes: room,
                secrets: "a secret of the fleet, a former one".into(),
                ..RecoveryConfig::default()
            },
            ..HttpConfig::default()
        };
        let hub = Hub::without_expiry(broker.clone(), &config, Metrics::new());
        Self {
            broker,
            hub,
            last: None,
            next: log.end,
        }
    }

    fn read(&mut self, log: &Log, count: usize) {
        let entries = log.entries.iter();
        let entries: Vec<_> = entries
            .filter(|(at, _)| *at >= self.next)
            .copied()
            .collect();
        for (offset, published) in entries.into_iter().take(count) {
            self.last = Some((offset, published.id));
            self.next = offset + 1;
            self.broker.push(offset, published);
        }
    }

    /// Goes on behind the last entry if that is still there, as the reader does.
    fn relink(&mut self, log: &Log) {
        let Some((offset, id)) = self.last else {
            self.next = log.end;
            return;
        };
        let there = log.entries.iter().find(|(at, _)| *at >= offset);
        if there.is_some_and(|(at, there)| (*at, there.id) == (offset, id)) {
            return;
        }
        // Nothing comes from beyond the end, and the first one that comes is not the last.
        self.next = match there {
            Some((at, _)) => *at,
            None => log.end,
        };
        self.last = None;
        self.broker.history.cut();
        for (_, activation) in self.broker.subscriptions.lock().unwrap().values() {
            activation.renew();
        }
    }

    fn read_back(&self, log: &Log, count: usize) {
        let Some(until) = self.broker.history.begins() else {
            return;
        };
        // Read only up to what is here: the same entry must stand there.
        let here = self
            .broker
            .history
            .look()
            .at(until)
            .map(|it| it.body.to_vec());
        let there = log.entries.iter().find(|(at, _)| *at == until);
        if here != there.map(|(_, published)| published.body()) {
            return;
        }
        let before = log.entries.iter().filter(|(at, _)| *at < until);
        let mut run: Vec<_> = before.copied().collect();
        run.drain(..run.len().saturating_sub(count));
        let run = run.into_iter();
        let history = &self.broker.history;
        let run = run.map(|(at, published)| {
            published.deliver(|delivery| history.earlier(at, delivery, true))
        });
        history.prepend(until, run.collect());
    }
}

impl Feed {
    fn push(&self, offset: u64, published: Published) {
        let handlers: Vec<_> = {
            let subscriptions = self.subscriptions.lock().unwrap();
            let key = published.key();
            let meant = subscriptions
                .iter()
                .filter(|(user, _)| self.keys.are_for(user, &key));
            meant.map(|(_, (handler, _))| handler.clone()).collect()
        };
        let past =
            published.deliver(|delivery| self.history.push(offset, delivery, true, Instant::now()));
        for handler in handlers {
            let sockets = handler.handle(&past.newest().unwrap());
            if sockets > 0 {
                handler.flush();
            }
        }
    }
}

#[async_trait]
impl Broker for Feed {
    fn history(&self) -> Option<Arc<History>> {
        Some(self.history.clone())
    }

    fn has_room_for(&self, _: &User) -> bool {
        true
    }

    fn needs_tenant(&self) -> bool {
        false
    }

    fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed {
        let (activation, subscribed) = Subscribed::new();
        activation.activate();
        let mut subscriptions = self.subscriptions.lock().unwrap();
        subscriptions.insert(user.clone(), (handler, activation));
        subscribed
    }

    fn unsubscribe_user(&self, user: &User) {
        self.subscriptions.lock().unwrap().remove(user);
    }

    fn subscribers_count(&self) -> usize {
        self.subscriptions.lock().unwrap().len()
    }

    fn is_user_subscribed(&self, user: &User) -> bool {
        self.subscriptions.lock().unwrap().contains_key(user)
    }

    fn is_connected(&self) -> bool {
        true
    }

    async fn broadcast(&self, _: Bytes) -> bool {
        false
    }

    fn on_broadcast(&self, _: BroadcastHandler) {}

    async fn stop_consuming(&self) {}

    async fn close(&self) {}
}

struct Connection {
    instance: usize,
    session: Session<Wire>,
    wire: Wire,
    /// How many events of it the client has seen.
    seen: usize,
}

#[derive(Default)]
struct Client {
    pid: Option<Pid>,
    offset: Option<Offset>,
    connection: Option<Connection>,
    /// The last event of the session: an update, and whether all its events came.
    last: Option<(u64, bool)>,
    /// Updates up to this one precede the session.
    start: u64,
    /// The newest update that the client saw before the session. It fetched later, so it need
    /// not get the updates up to this one, also where the instance does not know them yet.
    known: u64,
    recoveries: usize,
}

struct World {
    log: Log,
    room: usize,
    instances: Vec<Instance>,
    clients: Vec<Client>,
    sockets: u32,
}

impl World {
    fn new(room: usize) -> Self {
        let mut log = Log::default();
        // A marker, so to speak: readers have a place.
        log.publish(0, false);
        let instances = (0..INSTANCES).map(|_| Instance::start(&Log::default(), room));
        let mut world = Self {
            instances: instances.collect(),
            log,
            room,
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            sockets: 0,
        };
        for instance in &mut world.instances {
            instance.read(&world.log, 1);
        }
        world
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Publish { user, is_message } => self.log.publish(user, is_message),
            Step::Gap(count) => self.log.end += count,
            Step::LoseTail(count) => {
                let keep = self.log.entries.len().saturating_sub(count);
                for (_, published) in self.log.entries.drain(keep..) {
                    self.log.lost.insert(published.id);
                }
                let last = self.log.entries.last();
                self.log.end = last.map_or(self.log.end, |(at, _)| at + 1);
                // A leader that loses its tail ends all connections.
                self.relink_all();
            }
            Step::Retain(count) => {
                let count = count.min(self.log.entries.len());
                let gone: Vec<_> = self.log.entries.drain(..count).collect();
                for instance in &mut self.instances {
                    // A reader that has not come so far loses its place.
                    if gone.iter().any(|(at, _)| *at >= instance.next) {
                        instance.relink(&self.log);
                    }
                }
                self.feed();
            }
            Step::Recreate => {
                self.log.entries.clear();
                self.log.end = 0;
                self.relink_all();
            }
            Step::Restart { instance } => {
                for client in 0..CLIENTS {
                    if self.clients[client].instance() == Some(instance) {
                        self.lose(client, usize::MAX);
                    }
                }
                self.instances[instance] = Instance::start(&self.log, self.room);
            }
            Step::ReadBack { instance, count } => {
                self.instances[instance].read_back(&self.log, count);
            }
            Step::ReadBackEnds { instance } => {
                self.instances[instance].broker.history.is_read_back();
            }
            Step::Read { instance, count } => {
                self.instances[instance].read(&self.log, count);
                self.feed();
            }
            Step::Relink { instance } => {
                self.instances[instance].relink(&self.log);
                self.feed();
            }
            Step::Connect {
                client,
                instance,
                capacity,
            } => self.connect(client, instance, capacity),
            Step::Lose { client, seen } => self.lose(client, seen),
            Step::Take { client, events } => {
                if let Some(connection) = &self.clients[client].connection {
                    connection.wire.take(events);
                }
                self.feed();
            }
            Step::Quiet { instance } => {
                for audience in self.instances[instance].hub.audiences() {
                    audience.tell_quiet(Duration::ZERO);
                }
            }
        }
        self.follow();
    }

    fn relink_all(&mut self) {
        for instance in &mut self.instances {
            instance.relink(&self.log);
        }
        self.feed();
    }

    /// Lets catch-ups go on, and has the sockets closed that missed something.
    fn feed(&mut self) {
        for instance in &self.instances {
            for audience in instance.hub.audiences() {
                audience.look_for_gaps();
            }
            loop {
                let closing = instance.hub.shared.resync.take();
                if closing.is_empty() {
                    break;
                }
                for close in closing {
                    close();
                }
            }
        }
        for client in &mut self.clients {
            let Some(connection) = &client.connection else {
                continue;
            };
            let (session, wire) = (&connection.session, &connection.wire);
            if wire.is_closed() {
                continue;
            }
            while session.audience.feed(session.number(), wire) == Fed::Turn {}
        }
    }

    fn connect(&mut self, client: usize, instance: usize, capacity: usize) {
        if self.clients[client].connection.is_some() {
            return;
        }
        if self.instances[instance].last.is_none() {
            // Nobody is let in before the reader has a place.
            return;
        }
        let request = match &self.clients[client] {
            Client {
                pid: Some(pid),
                offset,
                ..
            } => ResumeRequest::Resume {
                pid: *pid,
                offset: *offset,
            },
            _ => ResumeRequest::New,
        };
        let at = &self.instances[instance];
        let session = Session::join(&at.hub, &user_of(client), request, 0).unwrap();
        self.sockets += 1;
        let wire = Wire::new(self.sockets, capacity);
        let Admitted { pid, .. } = session.admit(self.sockets, |_| false).unwrap();
        let own = &mut self.clients[client];
        if own.pid == Some(pid) {
            own.recoveries += 1;
        } else {
            own.known = own.last.map_or(own.known, |(id, _)| own.known.max(id));
            own.last = None;
            own.start = at.last.map_or(0, |(_, id)| id);
        }
        own.pid = Some(pid);
        own.connection = Some(Connection {
            instance,
            session,
            wire,
            seen: 0,
        });
        self.feed();
    }

    fn lose(&mut self, client: usize, seen: usize) {
        self.follow();
        let own = &mut self.clients[client];
        let Some(connection) = own.connection.take() else {
            return;
        };
        let emitted = connection.wire.state().emitted.clone();
        let until = emitted.len().min(connection.seen + seen);
        for event in &emitted[connection.seen..until] {
            own.see(&self.log, client % USERS.len(), event);
        }
        connection.wire.state().is_disconnected = true;
    }

    /// Closed sockets are lost sockets; their clients have seen all.
    fn follow(&mut self) {
        for client in 0..CLIENTS {
            let closed = |connection: &Connection| connection.wire.is_closed();
            if self.clients[client].connection.as_ref().is_some_and(closed) {
                let connection = self.clients[client].connection.take().unwrap();
                let emitted = connection.wire.state().emitted.clone();
                for event in &emitted[connection.seen..] {
                    self.clients[client].see(&self.log, client % USERS.len(), event);
                }
            }
        }
    }

    /// Everybody who is connected has everything in the end.
    fn finish(&mut self) {
        for instance in &mut self.instances {
            instance.read(&self.log, usize::MAX);
        }
        for client in 0..CLIENTS {
            self.take(&Step::Take {
                client,
                events: usize::MAX,
            });
        }
        for _ in 0..100 {
            for client in 0..CLIENTS {
                self.take(&Step::Take {
                    client,
                    events: usize::MAX,
                });
            }
        }
        let stands: BTreeSet<u64> = self.log.entries.iter().map(|(_, it)| it.id).collect();
        for client in 0..CLIENTS {
            let was_connected = self.clients[client].connection.is_some();
            self.lose(client, usize::MAX);
            if !was_connected {
                continue;
            }
            let own = &self.clients[client];
            let newest = own.last.map_or(own.start, |(id, _)| id);
            let users = client % USERS.len();
            let missing = self.log.published.iter().find(|it| {
                it.user == users && it.id > newest.max(own.known) && stands.contains(&it.id)
            });
            assert_eq!(missing, None, "client {client} waits for it");
            assert!(
                own.last.is_none_or(|(_, is_whole)| is_whole),
                "client {client}"
            );
        }
    }
}

impl Client {
    fn instance(&self) -> Option<usize> {
        self.connection
            .as_ref()
            .map(|connection| connection.instance)
    }

    /// An event has arrived: it must be the next of the session.
    fn see(&mut self, log: &Log, user: usize, event: &Emitted) {
        let payload: serde_json::Value = serde_json::from_str(&event.payload).unwrap();
        if event.name == "recovery:offset" {
            self.offset = Some(Offset::parse(payload.as_str().unwrap()).unwrap());
            return;
        }
        self.offset = Some(Offset::parse(event.offset.as_ref().unwrap()).unwrap());
        let id = payload["id"].as_u64().unwrap();
        let published = log.published[usize::try_from(id).unwrap() - 1];
        assert_eq!(published.user, user, "another user's");
        match event.name {
            // Half of one that it saw the first half of before.
            MESSAGE_NEW if self.last.is_none() && id <= self.known => {}
            MESSAGE_NEW => assert_eq!(self.last, Some((id, false)), "{event:?}"),
            CHAT3_UPDATE => {
                assert!(
                    self.last.is_none_or(|(_, is_whole)| is_whole),
                    "{event:?} after half of {:?}",
                    self.last
                );
                let before = self.last.map_or(self.start, |(id, _)| id);
                assert!(id > before, "{event:?} after {before}");
                let skipped = log.published.iter().find(|it| {
                    it.user == user
                        && it.id > before.max(self.known)
                        && it.id < id
                        && !log.lost.contains(&it.id)
                });
                assert_eq!(skipped, None, "{event:?} after {before}");
            }
            other => panic!("{other}"),
        }
        let is_whole = event.name == MESSAGE_NEW || !published.is_message;
        self.last = Some((id, is_whole));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn wherever_a_client_goes_it_gets_everything_once_in_order_or_begins_anew(
        room in prop_oneof![Just(2_000_usize), Just(1 << 20)],
        steps in proptest::collection::vec(step(), 1..160),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _context = runtime.enter();
        let mut world = World::new(room);
        for step in &steps {
            world.take(step);
        }
        world.finish();
    }
}
