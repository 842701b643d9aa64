//! Doubles of the two sides of sessions: a client's socket and a broker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    broker::{Activation, BroadcastHandler, Broker, Delivery, Handler, Subscribed},
    sessions::peer::{Crowd, EmitError, Event, Peer},
    user::{TenantId, User, UserId},
};

/// Size of every event on a [`Wire`]: a few events reach the limit on what a socket is
/// handed ahead.
pub const EVENT_BYTES: u64 = 20_000;

/// A socket that records what it is handed, and whose client takes what a test tells it
/// to.
#[derive(Clone)]
pub struct Wire(Arc<Mutex<State>>);

#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // They are independent.
pub struct State {
    pub id: u32,
    pub emitted: Vec<Emitted>,
    /// How many events the client has taken.
    pub taken: usize,
    /// How many events that the client has not taken fit into the socket's buffer.
    pub capacity: usize,
    pub polls: bool,
    pub has_taken_all: bool,
    pub waits: bool,
    pub is_disconnected: bool,
    pub is_closed: bool,
}

/// One event as a client gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    pub name: &'static str,
    pub payload: String,
    pub offset: Option<String>,
}

impl Wire {
    pub fn new(id: u32, capacity: usize, polls: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            id,
            capacity,
            polls,
            ..State::default()
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets the client take up to `events` more events.
    pub fn take(&self, events: usize) {
        let mut state = self.state();
        state.taken = state.emitted.len().min(state.taken.saturating_add(events));
    }

    pub fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Whether the socket was told that more waits for it than it was handed.
    pub fn waits(&self) -> bool {
        self.state().waits
    }

    /// How many events the socket was handed.
    pub fn handed(&self) -> usize {
        self.state().emitted.len()
    }

    /// How many events the client has not taken yet.
    pub fn untaken(&self) -> usize {
        let state = self.state();
        state.emitted.len() - state.taken
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Peer for Wire {
    type Id = u32;
    type Crowd = Together;

    const LOSS_NOTICED_WITHIN: Duration = Duration::from_secs(60);

    fn id(&self) -> u32 {
        self.state().id
    }

    fn emit(&self, event: &Event<'_>) -> Result<(), EmitError> {
        let mut state = self.state();
        assert!(!state.is_closed, "a closed socket is handed nothing");
        if state.is_disconnected {
            return Err(EmitError::Closed);
        }
        if state.emitted.len() - state.taken >= state.capacity {
            return Err(EmitError::Full);
        }
        state.emitted.push(Emitted {
            name: event.name,
            payload: event.payload.get().to_owned(),
            offset: event.offset.map(str::to_owned),
        });
        Ok(())
    }

    fn wire_bytes(&self, _: &Event<'_>) -> u64 {
        EVENT_BYTES
    }

    fn taken(&self) -> u64 {
        self.state().taken as u64 * EVENT_BYTES
    }

    fn has_taken_all(&self) -> bool {
        self.state().has_taken_all
    }

    fn polls(&self) -> bool {
        self.state().polls
    }

    fn more_waits(&self, waits: bool) {
        self.state().waits = waits;
    }

    fn is_connected(&self) -> bool {
        !self.state().is_disconnected
    }

    fn close(&self) {
        self.state().is_closed = true;
    }
}

/// Sockets that are emitted to together: those without offsets, and those with.
#[derive(Default)]
pub struct Together(Mutex<[Vec<Wire>; 2]>);

impl Crowd<Wire> for Together {
    fn enter(&self, peer: &Wire, with_offsets: bool) {
        assert!(peer.is_connected(), "a socket that is gone would stay");
        let mut sockets = self.0.lock().unwrap();
        assert!(sockets.iter().flatten().all(|other| !other.is(peer)));
        sockets[usize::from(with_offsets)].push(peer.clone());
    }

    fn leave(&self, peer: &Wire, with_offsets: bool) {
        let sockets = &mut self.0.lock().unwrap()[usize::from(with_offsets)];
        let before = sockets.len();
        sockets.retain(|other| !other.is(peer));
        assert_eq!(sockets.len() + 1, before, "it was in the crowd");
    }

    fn emit(&self, _: &Wire, event: &Event<'_>) -> bool {
        let sockets = self.0.lock().unwrap();
        let sockets = &sockets[usize::from(event.offset.is_some())];
        let emitted: Vec<_> = sockets.iter().map(|peer| peer.emit(event)).collect();
        let has_missed = |result| matches!(result, Err(EmitError::Full | EmitError::Unencodable));
        !emitted.into_iter().any(has_missed)
    }
}

/// A broker that delivers what a test publishes.
#[derive(Default)]
pub struct Exchange {
    is_up: Mutex<bool>,
    subscriptions: Mutex<HashMap<User, (Handler, Activation)>>,
}

impl Exchange {
    /// Takes the broker away, or brings it back.
    pub fn set_up(&self, is_up: bool) {
        *self.is_up.lock().unwrap() = is_up;
        for (_, activation) in self.subscriptions.lock().unwrap().values() {
            match is_up {
                true => activation.activate(),
                false => activation.deactivate(),
            }
        }
    }

    pub fn is_up(&self) -> bool {
        *self.is_up.lock().unwrap()
    }

    /// Delivers `body` to `user`; returns whether the user is subscribed.
    pub fn publish(&self, user: &User, body: impl Into<Bytes>) -> bool {
        let subscriptions = self.subscriptions.lock().unwrap();
        let Some((handler, _)) = subscriptions.get(user) else {
            return false;
        };
        let handler = handler.clone();
        drop(subscriptions);
        handler(&Delivery {
            body: &body.into(),
            routing_key: "",
            published_at: None,
            position: None,
        });
        true
    }
}

#[async_trait]
impl Broker for Exchange {
    fn has_room_for(&self, _: &User) -> bool {
        true
    }

    fn needs_tenant(&self) -> bool {
        false
    }

    fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed {
        let (activation, subscribed) = Subscribed::new();
        if self.is_up() {
            activation.activate();
        }
        let subscription = (handler, activation);
        let mut subscriptions = self.subscriptions.lock().unwrap();
        let earlier = subscriptions.insert(user.clone(), subscription);
        assert!(earlier.is_none(), "a user is subscribed once");
        subscribed
    }

    fn unsubscribe_user(&self, user: &User) {
        let removed = self.subscriptions.lock().unwrap().remove(user);
        assert!(removed.is_some(), "only a subscription is given up");
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

pub fn user(id: &str) -> User {
    let id = UserId::parse(id).unwrap();
    User { id, tenant: None }
}

pub fn tenants_user(id: &str, tenant: &str) -> User {
    let tenant = Some(TenantId::parse(tenant).unwrap());
    User { tenant, ..user(id) }
}
