//! Doubles of the two sides of sessions: a client's socket and a broker.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    broker::{Activation, BroadcastHandler, Broker, Delivery, Handler, Subscribed},
    sessions::peer::{Closed, Event, Flushed, Peer},
    user::{TenantId, User, UserId},
};

/// How many updates a socket holds before it has to send some.
const HELD: usize = 4;

/// A socket that records what it is handed, and whose client takes what a test tells it
/// to.
#[derive(Clone)]
pub struct Wire(Arc<Mutex<State>>, Arc<Notify>);

#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // They are independent.
pub struct State {
    pub id: u32,
    /// What was sent.
    pub emitted: Vec<Emitted>,
    /// What the socket took and has not sent yet.
    held: VecDeque<Vec<Emitted>>,
    /// How many events the client has taken.
    pub taken: usize,
    /// How many events that the client has not taken fit into the system's buffer.
    pub capacity: usize,
    /// Whether nothing is taken until [`Wire::open`].
    pub is_shut: bool,
    /// Whether some of the first of that is sent.
    is_begun: bool,
    /// How often something was sent.
    pub sends: usize,
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

impl State {
    /// How many more events the socket takes now.
    fn room(&self) -> usize {
        let waits = self.emitted.len() - self.taken;
        match self.is_shut {
            true => 0,
            false => self.capacity.saturating_sub(waits),
        }
    }

    /// Sends as much of what is held as fits; returns whether that is all.
    fn send(&mut self) -> bool {
        self.sends += usize::from(self.room() > 0 && !self.held.is_empty());
        while let Some(mut events) = self.held.pop_front() {
            let room = self.room().min(events.len());
            self.is_begun |= room > 0;
            self.emitted.extend(events.drain(..room));
            if !events.is_empty() {
                self.held.push_front(events);
                return false;
            }
            self.is_begun = false;
        }
        !self.is_shut
    }
}

impl Wire {
    pub fn new(id: u32, capacity: usize) -> Self {
        let state = State {
            id,
            capacity,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)), Arc::default())
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets the client take up to `events` more events.
    pub fn take(&self, events: usize) {
        let mut state = self.state();
        state.taken = state.emitted.len().min(state.taken.saturating_add(events));
        self.1.notify_waiters();
    }

    /// Has the socket take something from now on, or nothing.
    pub fn open(&self, is_open: bool) {
        self.state().is_shut = !is_open;
        self.1.notify_waiters();
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
}

impl Peer for Wire {
    type Id = u32;
    /// How many peers were handed the same events before.
    type Encoded = usize;

    const LOSS_NOTICED_WITHIN: Duration = Duration::from_secs(60);

    fn id(&self) -> u32 {
        self.state().id
    }

    fn emit(&self, events: &[Event<'_>], encoded: &mut usize) -> Result<bool, Closed> {
        let mut state = self.state();
        assert!(!state.is_closed, "a closed socket is handed nothing");
        if state.is_disconnected {
            return Err(Closed);
        }
        *encoded += 1;
        if state.is_shut || (state.held.len() >= HELD && !state.send()) {
            return Ok(false);
        }
        let events = events.iter().map(|event| Emitted {
            name: event.name,
            payload: event.payload.get().to_owned(),
            offset: event.offset.map(str::to_owned),
        });
        state.held.push_back(events.collect());
        Ok(true)
    }

    fn flush(&self) -> Result<Flushed, Closed> {
        let mut state = self.state();
        if state.is_disconnected {
            return Err(Closed);
        }
        if state.send() {
            return Ok(Flushed::All);
        }
        let kept = usize::from(state.is_begun);
        Ok(Flushed::Undone(state.held.drain(kept..).count()))
    }

    async fn takes_more(&self) {
        loop {
            let changed = self.1.notified();
            if self.state().room() > 0 {
                return;
            }
            changed.await;
        }
    }

    fn more_waits(&self, waits: bool) {
        self.state().waits = waits;
    }

    fn close(&self) {
        self.state().is_closed = true;
    }
}

/// A broker that delivers what a test publishes.
#[derive(Default)]
pub struct Exchange {
    is_up: Mutex<bool>,
    subscriptions: Mutex<HashMap<User, (Handler, Activation)>>,
    /// The handlers that have something to flush, in a turn.
    unflushed: Mutex<Vec<Handler>>,
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

    /// Delivers `body` to `user`, as a turn; returns whether the user is subscribed.
    pub fn publish(&self, user: &User, body: impl Into<Bytes>) -> bool {
        let is_subscribed = self.publish_in_turn(user, body);
        self.end_turn();
        is_subscribed
    }

    /// The turn's handlers flush.
    pub fn end_turn(&self) {
        for handler in self.unflushed.lock().unwrap().drain(..) {
            handler.flush();
        }
    }

    /// The same, while the turn goes on.
    pub fn publish_in_turn(&self, user: &User, body: impl Into<Bytes>) -> bool {
        let subscriptions = self.subscriptions.lock().unwrap();
        let Some((handler, _)) = subscriptions.get(user) else {
            return false;
        };
        let handler = handler.clone();
        drop(subscriptions);
        let sockets = handler.handle(&Delivery {
            body: &body.into(),
            routing_key: "",
            published_at: None,
            position: None,
        });
        if sockets > 0 {
            self.unflushed.lock().unwrap().push(handler);
        }
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
