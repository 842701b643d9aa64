//! Sockets that are behind: how a live one falls behind, how it is handed what waits
//! in the log at the pace of its peer, and when it is given up.
//!
//! Invariant: whoever is behind is fed by one [`Audience::catch_up`], which ends when
//! the socket is live or its session is over.

use std::time::Duration;

use socketioxide::{SendError, SocketError, TransportType, extract::SocketRef};
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};
use tracing::debug;

use super::{Audience, Member, Room, State};
use crate::{
    sessions::events::{Events, Form},
    update::Update,
};

/// Bytes that a socket is handed ahead of what its peer has taken: a burst of
/// ordinary updates. What comes then waits in the log, once for all of the user's
/// sockets, and the smallest updates of so many bytes are still fewer packets than
/// a socket's buffer takes.
const MAX_AHEAD_BYTES: usize = 64 * 1024;

/// The same for a socket that polls, and so takes this much in a round trip.
const MAX_AHEAD_POLLING_BYTES: usize = 512 * 1024;

/// Bytes that a socket which catches up is handed until its writer gets its turn:
/// the buffer that gathers them for one write does not shrink again. As much as a
/// queue's consumer adds in a turn of its own, so that a burst does not outrun it.
const TURN_BYTES: u64 = 16 * 1024;

/// Bytes of updates that may wait for a socket which is behind, besides those that
/// are kept for recovery anyway: many bursts, and an end to what one stuck phone
/// costs.
const MAX_BEHIND_BYTES: usize = 8 * 1024 * 1024;

/// Pause for a socket that has not taken what it was handed.
const PAUSE: Duration = Duration::from_millis(5);

/// The same while it goes on taking nothing.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// How far [`Audience::feed`] got.
#[derive(Debug, PartialEq, Eq)]
enum Fed {
    /// The socket has caught up and is live.
    Live,
    /// There is more, after the socket's writer has had its turn.
    Turn,
    /// There is more, when the socket's peer has taken some.
    Full,
    /// The session is over, or another connection has taken it over.
    Over,
}

impl Audience {
    /// A live member whose peer takes too little is behind from now on, with what
    /// comes after the event `seen`; returns its socket.
    pub(super) fn falls_behind(&self, member: &mut Member, seen: u64) -> Option<SocketRef> {
        let State::Live(socket) = &member.state else {
            return None;
        };
        let lag = &mut member.lag;
        if !lag.exceeds(max_ahead_bytes(socket), socket, &self.transports) {
            return None;
        }
        debug!(user_id = %self.user.id, sid = %socket.id, "a socket lags behind");
        let socket = socket.clone();
        self.leave_crowd(member);
        if let Some(recovery) = &mut member.recovery {
            recovery.fall_behind();
        }
        member.state = State::Behind {
            seen,
            socket: Some(socket.clone()),
        };
        self.transports.more_waits(&socket, true);
        Some(socket)
    }

    /// Hands an admitted session's socket what it was not handed yet, at the pace at
    /// which its peer takes it, until it is live. `false`: the session is over, or
    /// another connection of the client's has taken it over.
    pub(in crate::sessions) async fn catch_up(&self, session: u64, socket: &SocketRef) -> bool {
        let transports = &self.transports;
        let (mut pause, mut progress) = (PAUSE, Instant::now());
        let mut taken = transports.taken(socket);
        loop {
            match self.feed(session, socket) {
                Fed::Live => return true,
                Fed::Over => return false,
                Fed::Turn => yield_now().await,
                Fed::Full if progress.elapsed() > transports.write_timeout() => {
                    self.give_up(session, socket, "nothing of what waits is taken");
                }
                Fed::Full => {
                    sleep(pause).await;
                    pause = MAX_PAUSE.min(pause * 2);
                }
            }
            let by_now = transports.taken(socket);
            // Less, if one of several connections has ended.
            if by_now != taken {
                (taken, pause, progress) = (by_now, PAUSE, Instant::now());
            } else if pause == MAX_PAUSE
                && is_websocket(socket)
                && transports.has_written_all(socket)
            {
                self.forgive(session);
            }
        }
    }

    /// One step of [`Self::catch_up`].
    fn feed(&self, session: u64, socket: &SocketRef) -> Fed {
        let mut room = self.room();
        let Room { members, log, .. } = &mut *room;
        let member = members.iter_mut().find(|member| member.session == session);
        let Some((member, mut seen)) = member.and_then(|member| match member.state {
            State::Behind { seen, .. } => Some((member, seen)),
            _ => None,
        }) else {
            return Fed::Over;
        };
        let mut in_turn = 0;
        let fed = loop {
            let Some(entry) = log.after(seen).next() else {
                break Fed::Live;
            };
            let lag = &mut member.lag;
            if lag.exceeds(max_ahead_bytes(socket), socket, &self.transports) {
                break Fed::Full;
            }
            if in_turn > TURN_BYTES {
                break Fed::Turn;
            }
            let Ok(update) = Update::decode(&entry.body) else {
                // Cannot be: it was decoded when it was kept.
                seen = entry.last;
                continue;
            };
            let offsets = member.recovery.is_some();
            let specialised = update.specialised_event_in(self.envelope);
            let events = Events::new(log, entry.first, &update, specialised);
            in_turn += events.bytes(Form::of(socket, offsets));
            let seen_before = seen;
            let emitted = events.emit(socket, &mut seen, offsets, lag);
            for name in events.names(seen_before, seen) {
                self.metrics.emitted(name, 1);
            }
            match emitted {
                Ok(()) => {}
                Err(SendError::Socket(SocketError::InternalChannelFull)) => break Fed::Full,
                Err(_) => break Fed::Over,
            }
        };
        let now = Instant::now();
        member.state = match fed {
            Fed::Live => {
                if let Some(recovery) = &mut member.recovery {
                    recovery.go_live(now);
                }
                State::Live(socket.clone())
            }
            // A look at all of the log saves the one at what waits of it.
            Fed::Full | Fed::Turn
                if log.bytes() > self.max_behind_bytes()
                    && log.bytes_after(seen) > self.max_behind_bytes() =>
            {
                self.cut(socket, "too many bytes wait");
                State::Cut
            }
            _ => State::Behind {
                seen,
                socket: Some(socket.clone()),
            },
        };
        match member.state {
            State::Behind { .. } if fed == Fed::Turn => return fed,
            State::Live(_) => self.transports.more_waits(socket, false),
            State::Behind { .. } => self.transports.more_waits(socket, true),
            _ => {}
        }
        self.gather_crowd(&mut room);
        self.trim(&mut room, now);
        fed
    }

    /// Closes the transport of a session's socket, if that is still behind.
    fn give_up(&self, session: u64, socket: &SocketRef, problem: &str) {
        let mut room = self.room();
        let Some(member) = room.member(session) else {
            return;
        };
        if matches!(member.state, State::Behind { .. }) {
            self.cut(socket, problem);
            member.state = State::Cut;
            self.trim(&mut room, Instant::now());
        }
    }

    /// Believes that nothing waits for a session's socket. It should have been
    /// counted so: but a mistake there would keep updates from the socket for ever.
    fn forgive(&self, session: u64) {
        if let Some(member) = self.room().member(session) {
            member.lag.clear();
        }
    }

    /// Bytes of updates that wait for connected sockets which are behind.
    pub(in crate::sessions) fn waiting_bytes(&self) -> usize {
        let room = self.room();
        let behind = room.members.iter().filter_map(|member| match member.state {
            State::Behind { seen, .. } => Some(room.log.bytes_after(seen)),
            _ => None,
        });
        behind.sum()
    }

    /// What was missed, and what came since: both have their limits.
    fn max_behind_bytes(&self) -> usize {
        let kept = self.limits.map_or(0, |limits| limits.bytes);
        kept.saturating_add(MAX_BEHIND_BYTES)
    }

    /// Closes the sockets for which more than so many bytes of updates wait, to free
    /// memory; returns whether there were any.
    pub(in crate::sessions) fn cut_behind(&self, bytes: usize) -> bool {
        let mut room = self.room();
        let Room { members, log, .. } = &mut *room;
        let mut were_any = false;
        for member in members {
            let State::Behind {
                seen,
                socket: Some(socket),
            } = &member.state
            else {
                continue;
            };
            if log.bytes_after(*seen) > bytes {
                self.cut(socket, "too much waits, and memory is short");
                member.state = State::Cut;
                were_any = true;
            }
        }
        self.trim(&mut room, Instant::now());
        were_any
    }
}

fn max_ahead_bytes(socket: &SocketRef) -> usize {
    match is_websocket(socket) {
        true => MAX_AHEAD_BYTES,
        false => MAX_AHEAD_POLLING_BYTES,
    }
}

fn is_websocket(socket: &SocketRef) -> bool {
    socket.transport_type() == TransportType::Websocket
}
