//! Who is online, and what goes to whom.
//!
//! The hub maps each user to their sockets, subscribes the user with the first
//! socket and unsubscribes with the last, and hands every update to all of the
//! user's sockets. It sees no token, no queue and no HTTP.
//!
//! Invariants: a user has a subscription exactly while a [`Session`] of theirs
//! lives; a socket gets every update from its `connect` on, in order, or its
//! transport is closed. The lock over all users is never held while delivering.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use socketioxide::{SendError, SocketError, extract::SocketRef, socket::Sid};
use tracing::{debug, warn};

use crate::{
    broker::{Broker, Delivery, Subscribed},
    metrics::{GaugeGuard, Metrics},
    transport::Transports,
    update::{CHAT3_UPDATE, Rejection, Update},
    user::{User, UserId},
};

/// Bytes that a socket may lag behind, besides what the network buffers hold:
/// several bursts of ordinary updates, and an end to what one stuck phone costs.
const MAX_LAG_BYTES: u64 = 16 * 1024 * 1024;

pub struct Hub {
    broker: Arc<dyn Broker>,
    transports: Transports,
    metrics: Metrics,
    users: Mutex<HashMap<User, Online>>,
    /// How many sessions there were.
    sessions: AtomicU64,
}

/// A user with at least one session.
struct Online {
    audience: Arc<Audience>,
    subscribed: Subscribed,
    _gauge: GaugeGuard,
}

/// What [`Hub::describe`] tells of a user id.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Presence {
    pub is_subscribed: bool,
    pub sockets: usize,
}

impl Hub {
    pub fn new(broker: Arc<dyn Broker>, transports: Transports, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            broker,
            transports,
            metrics,
            users: Mutex::default(),
            sessions: AtomicU64::new(0),
        })
    }

    /// Begins a session of `user`: from now on updates are collected for the
    /// socket, and they are sent once it goes live.
    pub fn join(self: &Arc<Self>, user: &User, socket: &SocketRef) -> Session {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut users = self.users();
        let online = match users.entry(user.clone()) {
            Entry::Occupied(online) => online.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(self.bring_online(user)),
        };
        online.audience.members().push(Member {
            session: number,
            state: State::Joining(Vec::new()),
            handed: 0,
            taken: 0,
        });
        self.transports.watch(socket, number);
        Session {
            hub: self.clone(),
            user: user.clone(),
            sid: socket.id,
            number,
            subscribed: online.subscribed.clone(),
            audience: online.audience.clone(),
            _gauge: GaugeGuard::new(&self.metrics.sockets),
        }
    }

    fn bring_online(&self, user: &User) -> Online {
        let audience = Arc::new(Audience {
            user: user.clone(),
            transports: self.transports.clone(),
            metrics: self.metrics.clone(),
            members: Mutex::default(),
        });
        let handler = {
            let audience = audience.clone();
            Arc::new(move |delivery: &Delivery| audience.deliver(delivery))
        };
        Online {
            subscribed: self.broker.subscribe_user(user, handler),
            audience,
            _gauge: GaugeGuard::new(&self.metrics.users),
        }
    }

    fn leave(&self, session: &Session) {
        self.transports.forget(session.sid, session.number);
        let mut users = self.users();
        let mut members = session.audience.members();
        members.retain(|member| member.session != session.number);
        if members.is_empty() {
            drop(members);
            users.remove(&session.user);
            self.broker.unsubscribe_user(&session.user);
        }
    }

    /// How many users are online.
    pub fn users_count(&self) -> usize {
        self.users().len()
    }

    /// How many sockets are connected.
    pub fn sockets_count(&self) -> usize {
        let users = self.users();
        let sockets = |online: &Online| online.audience.members().len();
        users.values().map(sockets).sum()
    }

    /// The presence of a user id over all tenants. Takes time in proportion to
    /// the users online: meant for an operator's question.
    pub fn describe(&self, id: &UserId) -> Presence {
        let users = self.users();
        let mut presence = Presence::default();
        for (user, online) in users.iter().filter(|(user, _)| user.id == *id) {
            presence.is_subscribed |= self.broker.is_user_subscribed(user);
            presence.sockets += online.audience.members().len();
        }
        presence
    }

    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    fn users(&self) -> MutexGuard<'_, HashMap<User, Online>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One socket's membership; dropping it is leaving.
///
/// The socket owns its session, and the hub holds the socket only from
/// [`Session::go_live`] until the session is dropped: the owner must drop the
/// session on disconnect, or the two keep each other alive.
pub struct Session {
    hub: Arc<Hub>,
    user: User,
    sid: Sid,
    /// Distinguishes it from every other session, also of the same `sid`.
    number: u64,
    subscribed: Subscribed,
    audience: Arc<Audience>,
    _gauge: GaugeGuard,
}

impl Session {
    /// Returns once updates published from now on will be received.
    pub async fn subscribed(&self) {
        self.subscribed.clone().ready().await;
    }

    /// Sends what was collected since [`Hub::join`], then every further update.
    pub fn go_live(&self, socket: SocketRef) {
        let mut members = self.audience.members();
        let Some(member) = members
            .iter_mut()
            .find(|member| member.session == self.number)
        else {
            return;
        };
        let State::Joining(collected) = std::mem::replace(&mut member.state, State::Live(socket))
        else {
            return;
        };
        for delivery in collected {
            // It was decoded when it was collected.
            if let Ok(update) = Update::decode(&delivery.body) {
                self.audience.hand_off(member, &delivery, &update);
            }
        }
    }

    pub fn user(&self) -> &User {
        &self.user
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.hub.leave(self);
    }
}

/// All sockets of one user.
struct Audience {
    user: User,
    transports: Transports,
    metrics: Metrics,
    members: Mutex<Vec<Member>>,
}

struct Member {
    session: u64,
    state: State,
    /// Bytes of events handed to the socket.
    handed: u64,
    /// Bytes that its peer had taken of them when that was last looked up.
    taken: u64,
}

enum State {
    /// Not connected yet. Holds what came meanwhile; lasts as long as the wait for
    /// the subscription at most.
    Joining(Vec<Delivery>),
    Live(SocketRef),
    /// Did not keep up: its transport is closed, and nothing is sent any more.
    Cut,
}

impl Audience {
    /// Hands one update to all sockets. Called for one update at a time.
    fn deliver(&self, delivery: &Delivery) {
        self.metrics.updates_received.inc();
        let update = match self.accept(delivery) {
            Ok(update) => update,
            Err(rejection) => return self.reject(delivery, rejection),
        };
        debug!(
            user_id = %self.user.id,
            event_type = update.event_type(),
            routing_key = ?delivery.routing_key,
            "Update received"
        );
        let mut members = self.members();
        let mut handed_off = 0;
        for member in members.iter_mut() {
            handed_off += u64::from(self.hand_off(member, delivery, &update));
        }
        drop(members);
        if handed_off == 0 {
            // The last socket left while the update was on its way.
            return self.metrics.update_rejected("no_socket");
        }
        self.metrics.updates_delivered.inc();
        self.metrics.emitted(CHAT3_UPDATE, handed_off);
        if let Some(event) = update.specialised_event() {
            self.metrics.emitted(event.name, handed_off);
        }
        if let Some(published_at) = delivery.published_at {
            // Clocks differ: an update from the future took no time.
            let latency = SystemTime::now().duration_since(published_at);
            self.metrics.latency(latency.unwrap_or_default());
        }
    }

    fn accept<'a>(&self, delivery: &'a Delivery) -> Result<Update<'a>, Rejection> {
        let update = Update::decode(&delivery.body)?;
        update.check_recipient(&self.user)?;
        Ok(update)
    }

    fn reject(&self, delivery: &Delivery, rejection: Rejection) {
        self.metrics.update_rejected(rejection.label());
        let (user_id, routing_key) = (&self.user.id, &delivery.routing_key);
        let bytes = delivery.body.len();
        if rejection == Rejection::ForeignTenant {
            // Expected where two tenants have users of the same id.
            debug!(%user_id, ?routing_key, bytes, reason = %rejection, "Update rejected");
        } else {
            warn!(%user_id, ?routing_key, bytes, reason = %rejection, "Update rejected");
        }
    }

    /// Whether the member took the update.
    fn hand_off(&self, member: &mut Member, delivery: &Delivery, update: &Update<'_>) -> bool {
        let socket = match &mut member.state {
            State::Live(socket) => socket,
            State::Joining(collected) => {
                collected.push(delivery.clone());
                return true;
            }
            State::Cut => return false,
        };
        let problem = match emit(socket, update) {
            Ok(bytes) => {
                member.handed += bytes;
                if member.handed - member.taken <= MAX_LAG_BYTES {
                    return true;
                }
                member.taken = self.transports.taken(socket);
                // Framing counts as taken only: over time it would outrun what was handed.
                member.handed = member.handed.max(member.taken);
                if member.handed - member.taken <= MAX_LAG_BYTES {
                    return true;
                }
                "too many bytes wait"
            }
            Err(SendError::Socket(SocketError::InternalChannelFull)) => "too many packets wait",
            Err(SendError::Socket(SocketError::Closed)) => return false,
            Err(SendError::Serialize(_)) => "an event cannot be encoded",
        };
        // A hole in the stream of updates is worse than a reconnect.
        warn!(user_id = %self.user.id, problem, "closing a socket that does not keep up");
        self.metrics.slow_sockets.inc();
        self.transports.close(socket);
        member.state = State::Cut;
        false
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Emits the update's events and returns how many bytes that is.
fn emit(socket: &SocketRef, update: &Update<'_>) -> Result<u64, SendError> {
    // A tuple's items are the event's arguments: always one, also if it is an array.
    socket.emit(CHAT3_UPDATE, &(update.body,))?;
    let mut bytes = update.body.get().len();
    if let Some(event) = update.specialised_event() {
        socket.emit(event.name, &(event.payload,))?;
        bytes += event.payload.get().len();
    }
    Ok(bytes as u64)
}
