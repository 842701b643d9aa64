//! One user's sockets: what each is sent, what is kept for those that are away,
//! and the replay when they return.
//!
//! Everything here happens under one lock per user, so that each change (an
//! update, a socket that goes live, one that takes over) is atomic for all of
//! the user's sockets.

mod behind;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::SystemTime,
};

use socketioxide::{SendError, SocketError, extract::SocketRef, socket::Sid};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    crowd::Crowd,
    departures::{Departure, Departures},
    events::{Events, Form, Lag},
    log::{Limits, Log, Offset, Wanted},
    recovery::{Admitted, Outcome, Pid, Recovery, Request},
    repeated::Recent,
};
use crate::{
    broker::{Delivery, Subscribed},
    config::Envelope,
    observability::metrics::{GaugeGuard, Metrics},
    observability::sampled::Sampled,
    socketio::transport::Transports,
    update::{CHAT3_UPDATE, Rejection, Update},
    user::User,
};

/// Sessions of one user that are away; the oldest is given up for a new one.
const MAX_AWAY: usize = 1_024;

/// Why an update that came before is not delivered, as the metric's label.
const REPEATED: &str = "repeated";

/// Lines about what publishers should not send.
static REJECTED: Sampled = Sampled::new();

/// All sockets of one user.
pub(super) struct Audience {
    user: User,
    /// Set once, right after the subscription was wished for.
    subscribed: OnceLock<Subscribed>,
    /// `None`: recovery is off.
    limits: Option<Limits>,
    envelope: Envelope,
    transports: Transports,
    departures: Departures,
    metrics: Metrics,
    crowd: Crowd,
    /// `None`: repetitions are delivered as well.
    recent: Option<Mutex<Recent>>,
    room: Mutex<Room>,
}

/// What the lock is over.
struct Room {
    members: Vec<Member>,
    log: Log,
    /// The run of updates that the log's newest belong to, see [`Subscribed::stretch`].
    stretch: u64,
    /// `None` without a member.
    presence: Option<Presence>,
}

/// Counts the user among those online or those away.
struct Presence {
    is_online: bool,
    _gauge: GaugeGuard,
}

/// One session of the user's, with or without a socket.
struct Member {
    session: u64,
    state: State,
    /// Where it stands with recovery; `None` if it opted out or recovery is off.
    recovery: Option<Recovery>,
    lag: Lag,
    /// Whether its socket is in the [`Crowd`].
    in_crowd: bool,
}

impl Member {
    fn is_live(&self) -> bool {
        matches!(self.state, State::Live(_))
    }
}

enum State {
    /// Not admitted yet. Updates that come now precede its `connect`.
    Joining,
    /// Admitted, and handed everything up to the event `seen`; what comes after is
    /// in the log. Lasts until [`Audience::catch_up`] is done. With the socket from
    /// the first that it was handed on.
    Behind {
        seen: u64,
        socket: Option<SocketRef>,
    },
    /// Handed every event at once, until it lags.
    Live(SocketRef),
    /// Did not keep up: its transport is closed, and nothing is sent any more.
    Cut,
    /// Lost its connection and may come back for the rest.
    Away(Departure),
}

/// What is left of a session whose socket is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It may come back for a while.
    Away,
    /// Nothing.
    Gone,
}

impl Audience {
    pub(super) fn new(
        user: User,
        limits: Option<Limits>,
        envelope: Envelope,
        drops_repeated: bool,
        transports: Transports,
        departures: Departures,
        metrics: Metrics,
    ) -> Self {
        let log = Log::new(metrics.kept.clone());
        Self {
            user,
            subscribed: OnceLock::new(),
            limits,
            envelope,
            transports,
            departures,
            metrics,
            crowd: Crowd::new(),
            recent: drops_repeated.then(Mutex::default),
            room: Mutex::new(Room {
                // Most users have one.
                members: Vec::with_capacity(1),
                log,
                stretch: 0,
                presence: None,
            }),
        }
    }

    /// Tells the audience of its own subscription.
    pub(super) fn subscribed_by(&self, subscribed: Subscribed) {
        // It is called once.
        let _ = self.subscribed.set(subscribed);
    }

    /// Adds a session.
    pub(super) fn join(&self, session: u64) {
        let mut room = self.room();
        room.members.push(Member {
            session,
            state: State::Joining,
            recovery: None,
            lag: Lag::default(),
            in_crowd: false,
        });
        self.settle(&mut room);
    }

    /// Decides where a joining session begins: after what its client has seen, if
    /// everything since is here; else with what comes from now on. The returned
    /// is for the CONNECT reply to the socket `id`.
    pub(super) fn admit(&self, session: u64, id: Sid, request: Request) -> Option<Admitted> {
        let mut room = self.room();
        let stretch = self.note_stretch(&mut room);
        // It may have left meanwhile; then it must not take over anything.
        room.member(session)?;
        let request = self.limits.map_or(Request::OptOut, |_| request);
        let resumed = match request {
            Request::OptOut | Request::New => None,
            Request::Resume { pid, offset } => Some(self.resume(&mut room, stretch, pid, offset)),
            Request::Unreadable => Some(Err(Outcome::Unreadable)),
        };
        if let Some(resumed) = &resumed {
            let outcome = resumed
                .as_ref()
                .err()
                .copied()
                .unwrap_or(Outcome::Recovered);
            debug!(user_id = %self.user.id, ?outcome, "Connection recovery");
            self.metrics.recovery(outcome.label());
        }
        let newest = room.log.last();
        let (recovery, seen) = match resumed {
            Some(Ok((recovery, seen))) => (Some(recovery), seen),
            _ if request == Request::OptOut => (None, newest),
            _ => (Some(Recovery::begin(newest, id)), newest),
        };
        let member = room.member(session)?;
        member.state = State::Behind { seen, socket: None };
        member.recovery = recovery;
        self.settle(&mut room);
        recovery.map(|Recovery { id, pid, .. }| Admitted { id, pid })
    }

    /// Ends the session of that `pid` for its client's new connection; returns it,
    /// and the number of the newest event that the client has seen.
    fn resume(
        &self,
        room: &mut Room,
        stretch: Option<u64>,
        pid: Pid,
        offset: Option<Offset>,
    ) -> Result<(Recovery, u64), Outcome> {
        let recovery = self.take_over(room, pid).ok_or(Outcome::Unknown)?;
        // A client that has seen nothing of this session may send the offset of
        // one before, which another instance made or which the session is newer than.
        let number = offset.and_then(|offset| room.log.number(offset));
        let seen = number.unwrap_or_default().max(recovery.start);
        // Without a subscription, updates are being missed right now. And a session
        // that has missed some before shall hear of it when it asks.
        let is_whole = stretch.is_some() && recovery.start >= room.log.last_hole();
        match is_whole && room.log.reaches_back_to(seen) {
            true => Ok((recovery.resume(seen), seen)),
            false => Err(Outcome::Gap),
        }
    }

    /// Removes the session of that `pid` for its client's new connection. The old
    /// one may still look alive, e.g. to a phone's former network.
    fn take_over(&self, room: &mut Room, pid: Pid) -> Option<Recovery> {
        let is_it = |member: &Member| {
            let recovery = member.recovery.as_ref();
            recovery.is_some_and(|recovery| recovery.pid == pid)
        };
        let index = room.members.iter().position(is_it)?;
        let mut member = room.members.swap_remove(index);
        self.leave_crowd(&mut member);
        match &member.state {
            State::Live(socket)
            | State::Behind {
                socket: Some(socket),
                ..
            } => self.transports.close(socket),
            State::Away(since) if self.is_expired(since.at()) => return None,
            _ => {}
        }
        member.recovery
    }

    /// Notes that the session's socket is gone; `may_return` if it was lost rather
    /// than left.
    pub(super) fn leave(&self, session: u64, may_return: bool) -> Option<Left> {
        let mut room = self.room();
        let index = room
            .members
            .iter()
            .position(|member| member.session == session)?;
        if may_return && matches!(room.members[index].state, State::Away(_)) {
            return None;
        }
        self.leave_crowd(&mut room.members[index]);
        let left = if may_return && room.members[index].recovery.is_some() {
            self.make_room_for_one_away(&mut room);
            // The index may have changed.
            room.member(session)?.state = State::Away(self.departures.note(&self.user, session));
            Left::Away
        } else {
            room.members.swap_remove(index);
            Left::Gone
        };
        self.settle(&mut room);
        Some(left)
    }

    fn make_room_for_one_away(&self, room: &mut Room) {
        let away = |(index, member): (usize, &Member)| match &member.state {
            State::Away(since) => Some((since.at(), index)),
            _ => None,
        };
        let away: Vec<_> = room.members.iter().enumerate().filter_map(away).collect();
        if away.len() >= MAX_AWAY
            && let Some((_, oldest)) = away.into_iter().min()
        {
            room.members.swap_remove(oldest);
            self.metrics.recoveries_lost("too_many", 1);
        }
    }

    /// Gives up a session that is still away.
    pub(super) fn expire(&self, session: u64) {
        let mut room = self.room();
        let is_it = |member: &mut Member| {
            member.session == session && matches!(member.state, State::Away(_))
        };
        if room.members.extract_if(.., is_it).next().is_some() {
            self.metrics.recoveries_lost("expired", 1);
            self.settle(&mut room);
        }
    }

    /// Gives up the sessions that are away.
    pub(super) fn end_away(&self) {
        let mut room = self.room();
        room.members
            .retain(|member| !matches!(member.state, State::Away(_)));
        self.settle(&mut room);
    }

    /// Gives up all sessions to free memory, if there is any to free and the user is
    /// away since that session lost its socket.
    pub(super) fn evict_if_away_since(&self, session: u64) {
        let mut room = self.room();
        let away = room
            .members
            .iter()
            .filter_map(|member| match &member.state {
                State::Away(since) => Some((since.at(), member.session)),
                _ => None,
            });
        let is_newest = away.max().is_some_and(|(_, newest)| newest == session);
        if is_newest && room.sockets() == 0 && !room.log.is_empty() {
            self.metrics
                .recoveries_lost("memory", room.members.len() as u64);
            room.members.clear();
            self.settle(&mut room);
        }
    }

    /// Forgets what is kept, to free memory: what was missed so far can no longer
    /// be recovered.
    pub(super) fn forget(&self) {
        let mut room = self.room();
        if !room.log.is_empty() {
            let lost = room.members.len() - room.sockets();
            self.metrics.recoveries_lost("memory", lost as u64);
            room.log.forget();
            self.trim(&mut room, Instant::now());
        }
    }

    /// Drops what is too old to be kept.
    pub(super) fn tidy(&self) {
        self.trim(&mut self.room(), Instant::now());
    }

    /// Whether there is no session, not even one that may return.
    pub(super) fn is_empty(&self) -> bool {
        self.room().members.is_empty()
    }

    /// How many sessions have a socket.
    pub(super) fn sockets(&self) -> usize {
        self.room().sockets()
    }

    /// How many sessions have a socket, without the one that `request` goes on with.
    pub(super) fn sockets_besides(&self, request: Request) -> usize {
        let room = self.room();
        let is_it = |member: &&Member| match (request, &member.recovery) {
            (Request::Resume { pid, .. }, Some(recovery)) => recovery.pid == pid,
            _ => false,
        };
        let resumed = room.members.iter().find(is_it);
        let has_socket = |member: &Member| !matches!(member.state, State::Away(_));
        room.sockets() - usize::from(resumed.is_some_and(has_socket))
    }

    /// Hands one update to all sockets, and keeps it. Called for one update at a time.
    #[cfg_attr(feature = "otlp", tracing::instrument(level = "debug", name = "deliver", skip_all, fields(otel.kind = "consumer", user_id = %self.user.id, routing_key = delivery.routing_key)))]
    pub(super) fn deliver(self: &Arc<Self>, delivery: &Delivery) {
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
        if self.is_repeated(&update) {
            return self.metrics.update_rejected(REPEATED);
        }
        let rewritten = update.rewritten(self.envelope);
        let decoded = rewritten.as_ref().map(|body| (body, Update::decode(body)));
        // From here on, all is about the body that is sent.
        let (body, update) = match decoded {
            Some((body, Ok(rewritten))) => (body, rewritten),
            // Rewritten, it would be nested too deep.
            _ => (&delivery.body, update),
        };
        let now = Instant::now();
        let mut room = self.room();
        self.note_stretch(&mut room);
        let Room { members, log, .. } = &mut *room;
        let specialised = update.specialised_event_in(self.envelope);
        let specialised_name = specialised.as_ref().map(|event| event.name);
        let (mut handed_off, mut kept) = (0, false);
        let events = 1 + u64::from(specialised.is_some());
        let first = log.append(body.clone(), events, now);
        let events = Events::new(log, first, &update, specialised);
        let (mut live, mut late) = (0_u64, Vec::new());
        for member in &mut *members {
            if let Some(socket) = self.falls_behind(member, first - 1) {
                late.push((member.session, socket));
            }
            match &member.state {
                State::Joining => {}
                // They may come back for it, or it is handed off from the log.
                State::Away(_) | State::Behind { .. } => kept = true,
                State::Cut => kept |= member.recovery.is_some(),
                State::Live(_) => live += 1,
            }
        }
        if live > 1 {
            handed_off = self.hand_off_to_crowd(members, &events);
        } else if let Some(member) = members.iter_mut().find(|member| member.is_live()) {
            handed_off = u64::from(self.hand_off(member, &events));
        }
        self.trim(&mut room, now);
        drop(room);
        for (session, socket) in late {
            let audience = self.clone();
            tokio::spawn(async move { audience.catch_up(session, &socket).await });
        }
        if handed_off == 0 {
            return match kept {
                true => _ = self.metrics.updates_kept.inc(),
                // The last socket left while the update was on its way.
                false => self.metrics.update_rejected("no_socket"),
            };
        }
        self.metrics.updates_delivered.inc();
        self.metrics.emitted(CHAT3_UPDATE, handed_off);
        if let Some(name) = specialised_name {
            self.metrics.emitted(name, handed_off);
        }
        if let Some(published_at) = delivery.published_at {
            // Clocks differ: an update from the future took no time.
            let latency = SystemTime::now().duration_since(published_at);
            self.metrics.latency(latency.unwrap_or_default());
        }
    }

    /// Whether the update is one of the user's latest, come again.
    fn is_repeated(&self, update: &Update<'_>) -> bool {
        let repeats = |recent: &Mutex<Recent>| {
            let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
            update.key().is_some_and(|key| !recent.is_new(&key))
        };
        self.recent.as_ref().is_some_and(repeats)
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
        } else if let Some(line) = REJECTED.note(rejection.label()) {
            let left_out = line.left_out;
            warn!(%user_id, ?routing_key, bytes, reason = %rejection, left_out, "Update rejected");
        }
    }

    /// Whether the member, if it is live, took the update.
    fn hand_off(&self, member: &mut Member, events: &Events<'_>) -> bool {
        let State::Live(socket) = &member.state else {
            return false;
        };
        let lag = &mut member.lag;
        let problem = match events.emit(socket, &mut 0, member.recovery.is_some(), lag) {
            Ok(()) => return true,
            Err(SendError::Socket(SocketError::InternalChannelFull)) => "too many packets wait",
            Err(SendError::Socket(SocketError::Closed)) => return false,
            Err(SendError::Serialize(_)) => "an event cannot be encoded",
        };
        self.cut_off(member, problem);
        false
    }

    /// Hands the update to all that are live, each event encoded once; returns how
    /// many took it.
    fn hand_off_to_crowd(&self, members: &mut [Member], events: &Events<'_>) -> u64 {
        let mut missed = [false; 2];
        for (with_offsets, missed) in [false, true].into_iter().zip(&mut missed) {
            let one = members.iter().find_map(|member| match &member.state {
                State::Live(socket) if member.recovery.is_some() == with_offsets => Some(socket),
                _ => None,
            });
            if let Some(one) = one {
                *missed = !events.emit_to_crowd(&self.crowd, one, with_offsets);
            }
        }
        let mut handed_off = 0;
        for member in members {
            let State::Live(socket) = &member.state else {
                continue;
            };
            member
                .lag
                .add(events.bytes(Form::of(socket, member.recovery.is_some())));
            match missed[usize::from(member.recovery.is_some())] {
                true => self.cut_off(
                    member,
                    "too many packets wait for one of the user's sockets",
                ),
                false => handed_off += 1,
            }
        }
        handed_off
    }

    /// Two live sockets are a crowd, and so is each that joins them.
    fn gather_crowd(&self, room: &mut Room) {
        if room
            .members
            .iter()
            .filter(|member| member.is_live())
            .count()
            < 2
        {
            return;
        }
        for member in &mut room.members {
            if let State::Live(socket) = &member.state
                && !member.in_crowd
                // socketioxide would keep one that is gone in the room.
                && socket.connected()
            {
                self.crowd.enter(socket, member.recovery.is_some());
                member.in_crowd = true;
            }
        }
    }

    /// To be called before a member's socket is given up.
    fn leave_crowd(&self, member: &mut Member) {
        if let State::Live(socket) = &member.state
            && std::mem::take(&mut member.in_crowd)
        {
            self.crowd.leave(socket, member.recovery.is_some());
        }
    }

    /// Gives up on a live socket: a hole in the stream of updates is worse than a
    /// reconnect.
    fn cut_off(&self, member: &mut Member, problem: &str) {
        self.leave_crowd(member);
        if let State::Live(socket) = std::mem::replace(&mut member.state, State::Cut) {
            self.cut(&socket, problem);
        }
    }

    /// Closes the transport of a socket that does not keep up.
    pub(super) fn cut(&self, socket: &SocketRef, problem: &str) {
        warn!(user_id = %self.user.id, problem, "closing a socket that does not keep up");
        self.metrics.slow_sockets.inc();
        self.transports.close(socket);
    }

    fn is_expired(&self, since: Instant) -> bool {
        self.limits
            .is_none_or(|limits| since.elapsed() > limits.window)
    }

    /// Notes in the log if updates may have been missed; returns the current run.
    fn note_stretch(&self, room: &mut Room) -> Option<u64> {
        let stretch = self.subscribed.get().and_then(Subscribed::stretch)?;
        if std::mem::replace(&mut room.stretch, stretch) != stretch {
            room.log.hole();
        }
        Some(stretch)
    }

    /// To be called after every change of the members.
    fn settle(&self, room: &mut Room) {
        let is_online = (!room.members.is_empty()).then(|| room.sockets() > 0);
        let was_online = room.presence.as_ref().map(|presence| presence.is_online);
        if was_online != is_online {
            room.presence = is_online.map(|is_online| Presence {
                is_online,
                _gauge: GaugeGuard::new(match is_online {
                    true => &self.metrics.users,
                    false => &self.metrics.users_away,
                }),
            });
        }
        self.trim(room, Instant::now());
    }

    fn trim(&self, room: &mut Room, now: Instant) {
        // Who began before a hole cannot resume.
        let hole = room.log.last_hole();
        let wants = |member: &Member| {
            let recovery = member.recovery.filter(|recovery| recovery.start >= hole)?;
            Some(recovery.wants(match &member.state {
                State::Away(since) => since.at(),
                _ => now,
            }))
        };
        let wanted = room.members.iter().filter_map(wants);
        let wanted = wanted.reduce(Wanted::or).unwrap_or_default();
        let behind = |member: &Member| match member.state {
            State::Behind { seen, .. } => Some(seen),
            _ => None,
        };
        let needed = room.members.iter().filter_map(behind).min();
        room.log.trim(self.limits, wanted, needed);
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn member(&mut self, session: u64) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.session == session)
    }

    fn sockets(&self) -> usize {
        let has_socket = |member: &&Member| !matches!(member.state, State::Away(_));
        self.members.iter().filter(has_socket).count()
    }
}
