//! Random interleavings of what happens to one user's sessions, checked against a plain
//! model: the list of all events sent to the user, and each client's position in it.
//!
//! Each client gets every event from its position on, exactly once and in order, over
//! all connections of a resumed session. A session that cannot be resumed starts afresh
//! and gets no earlier event. The model decides from the documented limits alone whether
//! a session must, may or must not be resumed.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use super::double::{Exchange, Wire, user};
use crate::{
    broker::Broker,
    config::{HttpConfig, RecoveryConfig},
    observability::metrics::Metrics,
    sessions::{Hub, Offset, ResumeRequest, Session, audience::Fed, peer::Peer, resume::Pid},
    update::{CHAT3_UPDATE, MESSAGE_UPDATE},
};

const WINDOW: Duration = Duration::from_secs(120);
const MAX_UPDATES: usize = 6;

/// An event that was handed to a socket this long ago has arrived: otherwise the loss of
/// the connection would have been noticed.
const ARRIVED_AFTER: Duration = Duration::from_secs(59);

/// The client without recovery.
const OPTS_OUT: usize = 0;
const CLIENTS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// A client opens a connection while the gateway still holds its previous one, on
    /// which the client has seen the first `seen` events.
    Join {
        client: usize,
        seen: usize,
    },
    Admit {
        client: usize,
    },
    /// A client connects, takes what it is handed, and is live.
    Connect {
        client: usize,
        seen: usize,
    },
    /// One step of a catch-up, if there is one.
    Feed {
        client: usize,
    },
    Take {
        client: usize,
        events: usize,
    },
    /// A socket begins or ceases to take anything, as one does that changes its transport.
    Open {
        client: usize,
        is_open: bool,
    },
    Publish {
        is_message: bool,
    },
    /// Updates are sent at the end of a turn, of which this is one.
    EndTurn,
    /// A connection is lost after its client has seen the first `seen` events on it.
    Lose {
        client: usize,
        seen: usize,
    },
    /// A client leaves for good.
    Quit {
        client: usize,
    },
    /// A socket that lags has taken nothing for too long.
    GiveUp {
        client: usize,
    },
    /// The gateway notices the loss of a connection that its client has abandoned.
    LoseAbandoned,
    /// One step of a catch-up on a connection that its client has abandoned.
    FeedAbandoned,
    Pass {
        seconds: u64,
    },
    Expire,
    Evict,
    EndAway,
    /// The broker goes away or comes back.
    Broker {
        is_up: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    prop_oneof![
        6 => (client(), 0..9_usize).prop_map(|(client, seen)| Step::Join { client, seen }),
        6 => client().prop_map(|client| Step::Admit { client }),
        5 => (client(), 0..9_usize).prop_map(|(client, seen)| Step::Connect { client, seen }),
        8 => client().prop_map(|client| Step::Feed { client }),
        6 => (client(), 1..6_usize).prop_map(|(client, events)| Step::Take { client, events }),
        3 => (client(), any::<bool>()).prop_map(|(client, is_open)| Step::Open { client, is_open }),
        12 => any::<bool>().prop_map(|is_message| Step::Publish { is_message }),
        8 => Just(Step::EndTurn),
        4 => (client(), 0..9_usize).prop_map(|(client, seen)| Step::Lose { client, seen }),
        1 => client().prop_map(|client| Step::Quit { client }),
        1 => client().prop_map(|client| Step::GiveUp { client }),
        2 => Just(Step::LoseAbandoned),
        2 => Just(Step::FeedAbandoned),
        3 => prop_oneof![Just(1), Just(20), Just(61), Just(61), Just(125)]
            .prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::Expire),
        1 => Just(Step::Evict),
        1 => Just(Step::EndAway),
        1 => any::<bool>().prop_map(|is_up| Step::Broker { is_up }),
    ]
}

/// How test cases differ besides their steps.
#[derive(Debug, Clone)]
struct Setting {
    /// How many events fit into the system's buffer of a socket.
    capacity: usize,
    total_bytes: usize,
}

fn setting() -> impl Strategy<Value = Setting> {
    let capacity = prop_oneof![Just(2), Just(4), Just(AMPLE)];
    let total_bytes = prop_oneof![Just(AMPLE), Just(AMPLE), Just(1_500)];
    (capacity, total_bytes).prop_map(|(capacity, total_bytes)| Setting {
        capacity,
        total_bytes,
    })
}

const AMPLE: usize = 1 << 30;

/// One event that the user was sent.
#[derive(Debug, Clone)]
struct Sent {
    update: usize,
    name: &'static str,
    payload: String,
}

#[derive(Default)]
struct Client {
    connection: Option<Connection>,
    /// The `pid` of the client's current session.
    pid: Option<Pid>,
    /// The newest offset that the client has seen in any session.
    offset: Option<Offset>,
    /// How many of all events the client has seen or need not see.
    position: usize,
}

/// One socket as the gateway holds it.
struct Connection {
    session: Session<Wire>,
    wire: Wire,
    request: ResumeRequest,
    is_admitted: bool,
    is_catching_up: bool,
    /// Whether a catch-up has begun, so that the session holds the socket.
    was_fed: bool,
    /// Index of the first event that the socket must be handed.
    first: usize,
    /// When the socket was handed each event.
    handed: Vec<Instant>,
}

impl Connection {
    /// How many events have certainly arrived.
    fn arrived(&self, now: Instant) -> usize {
        let has_arrived = |handed: &Instant| now - *handed >= ARRIVED_AFTER;
        self.handed.partition_point(has_arrived)
    }
}

/// A session that can be resumed, within the documented limits.
#[derive(Debug)]
struct Resumable {
    pid: Pid,
    id: u32,
    /// The connection that holds it.
    holder: u64,
    lost: Option<Instant>,
    is_over: bool,
    /// The unbroken run of updates in which the session began; `None` if it began
    /// while the broker was away.
    run: Option<u64>,
    /// Whether memory was short at some time since the session began.
    was_evicted: bool,
}

struct Model {
    hub: Arc<Hub<Wire>>,
    exchange: Arc<Exchange>,
    setting: Setting,
    sent: Vec<Sent>,
    updates: usize,
    clients: Vec<Client>,
    abandoned: Vec<Connection>,
    resumable: Vec<Resumable>,
    /// Counts the unbroken runs of updates.
    run: u64,
    sockets: u32,
    /// Whether anything so far allows the hub to close sockets.
    may_close: bool,
}

impl Model {
    fn new(setting: Setting) -> Self {
        let config = HttpConfig {
            recovery: RecoveryConfig {
                window: WINDOW,
                max_updates: MAX_UPDATES,
                max_bytes: AMPLE,
                total_bytes: setting.total_bytes,
                ..RecoveryConfig::default()
            },
            ..HttpConfig::default()
        };
        let exchange = Arc::new(Exchange::default());
        exchange.set_up(true);
        let hub = Hub::without_expiry(exchange.clone(), &config, Metrics::new());
        hub.shared.clock.advance(Duration::from_secs(3_600));
        Self {
            hub,
            exchange,
            may_close: false,
            setting,
            sent: Vec::new(),
            updates: 0,
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            abandoned: Vec::new(),
            resumable: Vec::new(),
            run: 1,
            sockets: 0,
        }
    }

    fn now(&self) -> Instant {
        self.hub.shared.clock.now()
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Join { client, seen } => self.join(client, seen),
            Step::Admit { client } => self.admit(client),
            Step::Connect { client, seen } => {
                self.join(client, seen);
                self.admit(client);
                let connection = self.clients[client].connection.as_mut().unwrap();
                for _ in 0..20 {
                    connection.wire.take(usize::MAX);
                    feed(connection);
                }
            }
            Step::Feed { client } => {
                if let Some(connection) = &mut self.clients[client].connection {
                    feed(connection);
                }
            }
            Step::Take { client, events } => {
                if let Some(connection) = &self.clients[client].connection {
                    connection.wire.take(events);
                }
            }
            Step::Open { client, is_open } => {
                if let Some(connection) = &self.clients[client].connection {
                    connection.wire.open(is_open);
                }
            }
            Step::Publish { is_message } => self.publish(is_message),
            Step::EndTurn => {
                self.exchange.end_turn();
                self.notice_lag();
            }
            Step::Lose { client, seen } => self.lose(client, seen),
            Step::Quit { client } => {
                if let Some(connection) = self.clients[client].connection.take() {
                    connection.session.end();
                    let number = connection.session.number();
                    let held = self.resumable.iter_mut().find(|one| one.holder == number);
                    if let Some(one) = held {
                        one.is_over = true;
                    }
                }
            }
            Step::GiveUp { client } => {
                let connection = self.clients[client].connection.as_ref();
                if let Some(connection) = connection.filter(|one| one.is_catching_up) {
                    let (session, wire) = (&connection.session, &connection.wire);
                    session.audience.give_up(session.number(), wire, "a test");
                    assert!(wire.is_closed());
                    self.may_close = true;
                }
            }
            Step::LoseAbandoned => {
                if let Some(connection) = self.abandoned.pop() {
                    self.drop_connection(connection);
                }
            }
            Step::FeedAbandoned => {
                if let Some(connection) = self.abandoned.last_mut() {
                    feed(connection);
                }
            }
            Step::Pass { seconds } => self.pass(Duration::from_secs(seconds)),
            Step::Expire => {
                self.hub.expire().for_each(drop);
                let now = self.now();
                for one in &mut self.resumable {
                    one.is_over |= one.lost.is_some_and(|lost| now - lost > WINDOW);
                }
            }
            Step::Evict => {
                let is_too_much = self.hub.shared.kept.bytes() > self.setting.total_bytes;
                self.hub.evict();
                self.may_close |= is_too_much;
                for one in &mut self.resumable {
                    one.was_evicted |= is_too_much;
                }
            }
            Step::EndAway => {
                self.hub.end_away(|_| true);
                for one in &mut self.resumable {
                    one.is_over |= one.lost.is_some();
                }
            }
            Step::Broker { is_up } => {
                self.run += u64::from(is_up && !self.exchange.is_up());
                self.exchange.set_up(is_up);
            }
        }
        self.check();
    }

    fn join(&mut self, client: usize, seen: usize) {
        let earlier = self.clients[client].connection.take();
        if let Some(connection) = earlier {
            if !connection.is_admitted {
                self.clients[client].connection = Some(connection);
                return;
            }
            self.note_seen(client, &connection, seen);
            self.abandoned.push(connection);
        }
        let state = &mut self.clients[client];
        let request = match (client, state.pid) {
            (OPTS_OUT, _) => ResumeRequest::OptOut,
            (_, None) => ResumeRequest::New,
            (_, Some(pid)) => ResumeRequest::Resume {
                pid,
                offset: state.offset,
            },
        };
        let session = Session::join(&self.hub, &user("carl"), request, 0).unwrap();
        self.sockets += 1;
        state.connection = Some(Connection {
            session,
            wire: Wire::new(self.sockets, self.setting.capacity),
            request,
            is_admitted: false,
            is_catching_up: false,
            was_fed: false,
            first: 0,
            handed: Vec::new(),
        });
    }

    /// Moves the client's position: it has seen the first `seen` events of the connection,
    /// and everything that has certainly arrived.
    fn note_seen(&mut self, client: usize, connection: &Connection, seen: usize) {
        let emitted = &connection.wire.state().emitted;
        let seen = seen.max(connection.arrived(self.now())).min(emitted.len());
        let client = &mut self.clients[client];
        client.position = connection.first + seen;
        if let Some(last) = seen.checked_sub(1)
            && let Some(offset) = &emitted[last].offset
        {
            client.offset = Some(Offset::parse(offset).expect("an offset is readable"));
        }
    }

    fn admit(&mut self, client: usize) {
        let (now, run, is_up) = (self.now(), self.run, self.exchange.is_up());
        let state = &mut self.clients[client];
        let Some(connection) = state.connection.as_mut().filter(|one| !one.is_admitted) else {
            return;
        };
        let (number, id) = (connection.session.number(), connection.wire.id());
        let admitted = connection.session.admit(id, |_| false);
        connection.is_admitted = true;
        connection.is_catching_up = true;
        let Some(admitted) = admitted else {
            assert_eq!(client, OPTS_OUT);
            state.position = self.sent.len();
            connection.first = state.position;
            return;
        };
        assert_ne!(client, OPTS_OUT);
        let asked = match connection.request {
            ResumeRequest::Resume { pid, .. } => Some(pid),
            _ => None,
        };
        let is_recovered = asked == Some(admitted.pid);
        let of_client = |one: &&mut Resumable| Some(one.pid) == asked;
        let resumable = self.resumable.iter_mut().find(of_client);
        let unseen = &self.sent[state.position..];
        let updates = match (unseen.first(), unseen.last()) {
            (Some(first), Some(last)) => last.update - first.update + 1,
            _ => 0,
        };
        if let Some(one) = resumable {
            let is_expired = one.lost.is_some_and(|lost| now - lost > WINDOW);
            let may = !one.is_over && !is_expired && is_up && one.run == Some(run);
            let must = may && !one.was_evicted && updates <= MAX_UPDATES;
            assert!(may || !is_recovered, "{one:?} cannot be resumed");
            assert!(!must || is_recovered, "{one:?} must be resumed");
            let number_before = one.holder;
            let is_it = |old: &&Connection| old.session.number() == number_before && old.was_fed;
            let taken_over = self.abandoned.iter().find(is_it);
            assert!(taken_over.is_none_or(|old| old.wire.is_closed()));
            one.is_over |= !is_recovered;
            if is_recovered {
                assert_eq!(admitted.id, one.id, "the client keeps its id");
                one.holder = number;
                one.lost = None;
            }
        } else {
            assert!(!is_recovered);
        }
        if !is_recovered {
            assert_eq!(admitted.id, id);
            state.position = self.sent.len();
            state.pid = Some(admitted.pid);
            assert!(self.resumable.iter().all(|one| one.pid != admitted.pid));
            self.resumable.push(Resumable {
                pid: admitted.pid,
                id,
                holder: number,
                lost: None,
                is_over: false,
                run: is_up.then_some(run),
                was_evicted: false,
            });
        }
        connection.first = state.position;
    }

    fn publish(&mut self, is_message: bool) {
        if !self.exchange.is_up() {
            return;
        }
        let number = self.updates;
        let event = if is_message {
            "message.update"
        } else {
            "pack.update"
        };
        let body = format!(r#"{{"userId":"carl","eventType":"{event}","number":{number}}}"#);
        if !self.exchange.publish_in_turn(&user("carl"), body.clone()) {
            return;
        }
        self.updates += 1;
        let names = [CHAT3_UPDATE, MESSAGE_UPDATE];
        for name in names.into_iter().take(1 + usize::from(is_message)) {
            self.sent.push(Sent {
                update: number,
                name,
                payload: body.clone(),
            });
        }
        self.notice_lag();
    }

    /// A live socket may just have fallen behind.
    fn notice_lag(&mut self) {
        let clients = self.clients.iter_mut();
        let connections = clients.filter_map(|client| client.connection.as_mut());
        for connection in connections.chain(&mut self.abandoned) {
            connection.is_catching_up |= connection.wire.state().waits;
        }
    }

    fn lose(&mut self, client: usize, seen: usize) {
        if let Some(connection) = self.clients[client].connection.take() {
            if connection.is_admitted {
                self.note_seen(client, &connection, seen);
            }
            self.drop_connection(connection);
        }
    }

    fn drop_connection(&mut self, connection: Connection) {
        let (now, number) = (self.now(), connection.session.number());
        connection.wire.state().is_disconnected = true;
        drop(connection);
        let held = self.resumable.iter_mut().find(|one| one.holder == number);
        if let Some(one) = held {
            one.lost = Some(now);
        }
    }

    /// Lets time pass. Before that, the turn and closed and abandoned connections end, and
    /// pending connects are answered: none of that takes long.
    fn pass(&mut self, time: Duration) {
        self.exchange.end_turn();
        self.notice_lag();
        // When events are sent is noted there.
        self.check();
        while let Some(connection) = self.abandoned.pop() {
            self.drop_connection(connection);
        }
        for client in 0..CLIENTS {
            self.admit(client);
            let connection = self.clients[client].connection.as_ref();
            if connection.is_some_and(|one| one.wire.is_closed()) {
                self.lose(client, usize::MAX);
            }
        }
        self.hub.shared.clock.advance(time);
    }

    /// Checks what must hold after every step.
    fn check(&mut self) {
        let now = self.now();
        let clients = self.clients.iter_mut();
        let current: Vec<_> = clients
            .filter_map(|client| client.connection.as_mut())
            .collect();
        let connections = current.len() + self.abandoned.len();
        let has_current = !current.is_empty();
        for connection in current {
            connection.check(&self.sent, now);
            assert!(
                self.may_close || !connection.wire.is_closed(),
                "it was closed for nothing"
            );
        }
        for connection in &mut self.abandoned {
            connection.check(&self.sent, now);
        }
        assert_eq!(self.hub.sockets_count(), connections);
        let (online, away) = (self.hub.users_count(), self.hub.shared.users_away.number());
        assert!(online + away <= 1);
        assert_eq!(self.exchange.subscribers_count(), online + away);
        if has_current {
            assert_eq!(online, 1);
        } else if connections == 0 {
            assert_eq!(online, 0);
            let is_kept = self.resumable.iter().any(|one| !one.is_over);
            let was_evicted = self.resumable.iter().any(|one| one.was_evicted);
            assert!(was_evicted || (away == 1) == is_kept);
        }
    }

    /// Lets every client take what it is handed, and checks that each gets everything and
    /// that nothing is left once all have gone.
    fn finish(&mut self) {
        self.exchange.end_turn();
        self.notice_lag();
        for client in 0..CLIENTS {
            self.admit(client);
            let Some(connection) = &mut self.clients[client].connection else {
                continue;
            };
            connection.wire.open(true);
            for _ in 0..self.sent.len() + 2 {
                connection.wire.take(usize::MAX);
                feed(connection);
            }
            let state = connection.wire.state();
            assert!(
                state.is_closed || !connection.is_catching_up,
                "it never catches up"
            );
            assert!(state.is_closed || !state.waits);
            if !state.is_closed {
                assert_eq!(state.emitted.len(), self.sent.len() - connection.first);
            }
        }
        self.check();
        for client in 0..CLIENTS {
            self.lose(client, 0);
        }
        while let Some(connection) = self.abandoned.pop() {
            self.drop_connection(connection);
        }
        self.hub
            .shared
            .clock
            .advance(WINDOW + Duration::from_secs(1));
        self.hub.expire().for_each(drop);
        assert_eq!(self.exchange.subscribers_count(), 0);
        assert_eq!(
            self.hub.users_count() + self.hub.shared.users_away.number(),
            0
        );
        assert_eq!(self.hub.sockets_count(), 0);
        assert_eq!(self.hub.shared.kept.bytes(), 0);
        assert!(self.hub.shared.departures.all().is_empty());
    }
}

impl Connection {
    fn check(&mut self, sent: &[Sent], now: Instant) {
        let state = self.wire.state();
        self.handed.resize(state.emitted.len(), now);
        assert!(self.is_admitted || state.emitted.is_empty());
        let expected = &sent[self.first.min(sent.len())..];
        assert!(state.emitted.len() <= expected.len());
        let is_opt_out = self.request == ResumeRequest::OptOut;
        for (emitted, expected) in state.emitted.iter().zip(expected) {
            assert_eq!(emitted.payload, expected.payload);
            assert_eq!(emitted.name, expected.name);
            assert_eq!(emitted.offset.is_none(), is_opt_out);
        }
    }
}

/// One step of a catch-up, as [`Session::go_live`] or a socket that lags would run it.
fn feed(connection: &mut Connection) {
    if !connection.is_catching_up {
        return;
    }
    connection.was_fed = true;
    let (session, wire) = (&connection.session, &connection.wire);
    match session.audience.feed(session.number(), wire) {
        Fed::Live => connection.is_catching_up = false,
        Fed::Over | Fed::Lost => {
            wire.close();
            connection.is_catching_up = false;
        }
        Fed::Turn | Fed::Full => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_client_gets_everything_once_in_order_or_begins_anew(
        setting in setting(),
        steps in proptest::collection::vec(step(), 1..90),
    ) {
        // Spawned catch-ups never run: the steps do their work.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _context = runtime.enter();
        let mut model = Model::new(setting);
        for step in &steps {
            model.take(step);
        }
        model.finish();
    }
}
