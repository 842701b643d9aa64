//! One user's sessions: who has a socket, who is away, who takes over from whom, and
//! how long the log keeps what they may come back for.
//!
//! [`admission`] decides what a joining session begins with, [`fan_out`] hands an update
//! to all sockets and has them send it, [`catch_up`] hands one socket what waits for it,
//! [`lag`] limits how far a socket may lag, [`gap`] finds the sockets that may have
//! missed updates, [`quiet`] tells sockets that were sent nothing where they stand,
//! [`events`] are what an update turns into for a socket, and [`unsent`] is what sockets
//! took in a turn and have not sent yet.
//!
//! Everything happens under one lock per user, so that each change (an update, a
//! socket that goes live, one that takes over) is atomic for all of the user's
//! sockets.

mod admission;
mod catch_up;
mod events;
mod fan_out;
mod gap;
mod lag;
mod quiet;
mod unsent;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::time::Instant;

#[cfg(test)]
pub(super) use self::catch_up::Fed;
use self::unsent::Unsent;
use super::{
    counts::Counted,
    departures::Departure,
    log::{Log, Wanted},
    peer::Peer,
    repeated::Recent,
    resume::Recovery,
    shared::Shared,
};
use crate::{
    broker::{Subscribed, history::Past},
    user::User,
};

/// Sessions of one user that may be away; the oldest is given up for a new one.
const MAX_AWAY: usize = 1_024;

/// All sessions of one user.
pub(super) struct Audience<P: Peer> {
    user: User,
    shared: Arc<Shared>,
    /// Set right after the user is subscribed: the broker needs the audience as its
    /// handler first. The alternative, to pass the switch of a [`Subscribed`] to
    /// `Broker::subscribe_user`, would burden every other caller of that public method.
    subscribed: OnceLock<Subscribed>,
    /// `None`: repeated updates are delivered as well.
    recent: Option<Mutex<Recent>>,
    roster: Mutex<Roster<P>>,
}

/// The sessions, and what is kept for them.
struct Roster<P: Peer> {
    members: Vec<Member<P>>,
    log: Log,
    /// What live sockets were handed in this turn.
    unsent: Unsent,
    /// The run of updates that the log's newest belong to, see [`Subscribed::stretch`].
    stretch: u64,
    /// `None` without a member.
    counted: Option<UserCounted>,
    /// The sockets that the attendance, if there is one, knows of.
    noted: usize,
}

/// Counts the user as online or as away.
struct UserCounted {
    is_online: bool,
    _counted: Counted,
}

/// One session, with or without a socket.
struct Member<P: Peer> {
    session: u64,
    status: Status<P>,
    /// `None` if the session opted out, or recovery is off.
    recovery: Option<Recovery<P::Id>>,
    /// The run of updates in which it was let in, see [`Roster::stretch`].
    stretch: u64,
    /// Whether its socket is to be closed because it may have missed updates.
    is_told: bool,
    /// When its socket was last handed an offset.
    told_at: Instant,
}

impl<P: Peer> Member<P> {
    fn has_socket(&self) -> bool {
        !matches!(self.status, Status::Away(_))
    }

    fn is_session(&self, key: u128) -> bool {
        self.recovery.as_ref().is_some_and(|own| own.key == key)
    }
}

enum Status<P> {
    /// Not admitted yet. Updates that come now precede its `connect`.
    Joining,
    /// Admitted, and handed everything up to the event `seen`; the log has the rest.
    /// Lasts until [`Audience::catch_up`] is done. `peer` is set once that has begun.
    Behind { seen: u64, peer: Option<P> },
    /// Handed every event at once, until it takes no more or cannot send what it took.
    Live(P),
    /// Did not keep up: its transport is closed, and nothing is sent any more.
    Cut,
    /// Lost its connection and may come back for the rest.
    Away(Departure),
}

/// What is left of a session whose socket is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The session may be resumed for a while.
    Away,
    /// Nothing.
    Gone,
}

impl<P: Peer> Audience<P> {
    pub(super) fn new(user: User, shared: Arc<Shared>) -> Self {
        Self {
            user,
            subscribed: OnceLock::new(),
            recent: shared.drops_repeated.then(Mutex::default),
            roster: Mutex::new(Roster {
                // Most users have one session.
                members: Vec::with_capacity(1),
                log: Log::new(shared.kept.clone()),
                unsent: Unsent::default(),
                stretch: 0,
                counted: None,
                noted: 0,
            }),
            shared,
        }
    }

    /// The user whose sessions these are.
    pub(super) fn user(&self) -> &User {
        &self.user
    }

    /// Tells the audience of its subscription. Must be called once, before a session
    /// joins.
    pub(super) fn subscribed_by(&self, subscribed: Subscribed) {
        let _ = self.subscribed.set(subscribed);
    }

    /// Returns once updates published from now on will be received.
    pub(super) async fn subscribed(&self) {
        if let Some(subscribed) = self.subscribed.get() {
            subscribed.clone().ready().await;
        }
    }

    /// Adds a session.
    pub(super) fn join(&self, session: u64) {
        let mut roster = self.roster();
        roster.members.push(Member {
            session,
            status: Status::Joining,
            recovery: None,
            stretch: 0,
            is_told: false,
            told_at: self.shared.clock.now(),
        });
        self.settle(&mut roster);
    }

    /// Notes that the session's socket is gone. `may_return`: it was lost rather than
    /// left.
    pub(super) fn leave(&self, session: u64, may_return: bool) -> Option<Left> {
        let mut roster = self.roster();
        let index = roster.index(session)?;
        if may_return && !roster.members[index].has_socket() {
            return None;
        }
        // A session that can be resumed anywhere needs nobody who waits for it here.
        let may_return = may_return && self.shared.common.is_none();
        let left = if may_return && roster.members[index].recovery.is_some() {
            self.make_room_for_one_away(&mut roster);
            let now = self.shared.clock.now();
            let departure = self.shared.departures.note(&self.user, session, now);
            // The index may have changed.
            roster.member(session)?.status = Status::Away(departure);
            Left::Away
        } else {
            roster.members.swap_remove(index);
            Left::Gone
        };
        self.settle(&mut roster);
        Some(left)
    }

    fn make_room_for_one_away(&self, roster: &mut Roster<P>) {
        let away: Vec<_> = roster.away().collect();
        if away.len() >= MAX_AWAY
            && let Some((_, oldest)) = away.into_iter().min()
        {
            roster.members.retain(|member| member.session != oldest);
            self.shared.metrics.recoveries_lost("too_many", 1);
        }
    }

    /// Gives up a session that is still away.
    pub(super) fn expire(&self, session: u64) {
        let mut roster = self.roster();
        let is_it = |member: &mut Member<P>| member.session == session && !member.has_socket();
        if roster.members.extract_if(.., is_it).next().is_some() {
            self.shared.metrics.recoveries_lost("expired", 1);
            self.settle(&mut roster);
        }
    }

    /// Gives up the sessions that are away.
    pub(super) fn end_away(&self) {
        let mut roster = self.roster();
        roster.members.retain(Member::has_socket);
        self.settle(&mut roster);
    }

    /// Gives up all sessions to free memory, if there is memory to free and no session
    /// has had a socket since `session` lost its own.
    pub(super) fn evict_if_away_since(&self, session: u64) {
        let mut roster = self.roster();
        let is_newest = roster
            .away()
            .max()
            .is_some_and(|(_, newest)| newest == session);
        if is_newest && roster.sockets() == 0 && !roster.log.is_empty() {
            let lost = roster.members.len() as u64;
            self.shared.metrics.recoveries_lost("memory", lost);
            roster.members.clear();
            self.settle(&mut roster);
        }
    }

    /// Empties the log to free memory: what was missed so far can no longer be
    /// recovered.
    pub(super) fn forget(&self) {
        let mut roster = self.roster();
        if !roster.log.is_empty() {
            let lost = roster.members.len() - roster.sockets();
            self.shared.metrics.recoveries_lost("memory", lost as u64);
            roster.log.forget();
            self.trim(&mut roster, self.shared.clock.now());
        }
    }

    /// Drops what is too old to be kept.
    pub(super) fn tidy(&self) {
        self.trim(&mut self.roster(), self.shared.clock.now());
    }

    /// Whether there is no session, not even one that may return.
    pub(super) fn is_empty(&self) -> bool {
        self.roster().members.is_empty()
    }

    /// How many sessions have a socket.
    pub(super) fn sockets(&self) -> usize {
        self.roster().sockets()
    }

    /// How many sessions have a socket, not counting the session `resumed`.
    pub(super) fn sockets_besides(&self, resumed: Option<u128>) -> usize {
        let roster = self.roster();
        let is_resumed =
            |member: &Member<P>| resumed.is_some_and(|resumed| member.is_session(resumed));
        let members = roster.members.iter();
        members
            .filter(|member| member.has_socket() && !is_resumed(member))
            .count()
    }

    fn is_expired(&self, since: Instant) -> bool {
        let limits = self.shared.limits;
        limits.is_none_or(|limits| self.shared.clock.now() - since > limits.window)
    }

    /// Must be called after every change of the members.
    fn settle(&self, roster: &mut Roster<P>) {
        let is_online = (!roster.members.is_empty()).then(|| roster.sockets() > 0);
        let was_online = roster.counted.as_ref().map(|counted| counted.is_online);
        if was_online != is_online {
            roster.counted = is_online.map(|is_online| UserCounted {
                is_online,
                _counted: match is_online {
                    true => self.shared.users.one(),
                    false => self.shared.users_away.one(),
                },
            });
        }
        let now = self.shared.clock.now();
        if let Some(attendance) = &self.shared.attendance {
            let sockets = roster.sockets();
            if std::mem::replace(&mut roster.noted, sockets) != sockets {
                attendance.note(&self.user, sockets, now);
            }
        }
        self.trim(roster, now);
    }

    /// Drops from the log what nobody can come back for.
    fn trim(&self, roster: &mut Roster<P>, now: Instant) {
        // A session that began before a hole cannot be resumed.
        let hole = roster.log.last_hole();
        let wants = |member: &Member<P>| {
            let recovery = member.recovery.filter(|recovery| recovery.start >= hole)?;
            let lost = match &member.status {
                Status::Away(since) => since.at(),
                _ => now,
            };
            Some(recovery.wants(lost, P::LOSS_NOTICED_WITHIN))
        };
        let wanted = roster.members.iter().filter_map(wants);
        let wanted = wanted.reduce(Wanted::or).unwrap_or_default();
        let behind = |member: &Member<P>| match member.status {
            Status::Behind { seen, .. } => Some(seen),
            _ => None,
        };
        let behind = roster.members.iter().filter_map(behind);
        let needed = behind.chain(roster.unsent.before()).min();
        roster.log.trim(self.shared.limits, wanted, needed);
    }

    /// What is kept for the whole fleet, with nothing handed on meanwhile. Must be locked before
    /// the roster is.
    fn past(&self) -> Option<Past<'_>> {
        let common = self.shared.common.as_ref();
        common.map(|common| common.history.look())
    }

    fn roster(&self) -> MutexGuard<'_, Roster<P>> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Peer> Roster<P> {
    fn index(&self, session: u64) -> Option<usize> {
        let mut members = self.members.iter();
        members.position(|member| member.session == session)
    }

    fn member(&mut self, session: u64) -> Option<&mut Member<P>> {
        let mut members = self.members.iter_mut();
        members.find(|member| member.session == session)
    }

    fn sockets(&self) -> usize {
        self.members.iter().filter(|one| one.has_socket()).count()
    }

    /// The sessions that are away, and since when.
    fn away(&self) -> impl Iterator<Item = (Instant, u64)> {
        self.members
            .iter()
            .filter_map(|member| match &member.status {
                Status::Away(since) => Some((since.at(), member.session)),
                _ => None,
            })
    }
}
