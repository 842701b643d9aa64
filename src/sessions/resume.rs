//! Resuming a session: what a connecting client says, and what it may come back for.
//!
//! The protocol is Socket.IO's connection state recovery. The CONNECT reply names a
//! private session id (`pid`), every event ends with an offset, and a client that lost
//! its connection sends both in the auth object of its next CONNECT.
//!
//! A `pid` is either a random number that is looked up among its own user's sessions, or,
//! where the broker keeps a log for all instances, signed for its user (`seal`). Both after
//! the token was verified: nobody else who presents a pid finds anything.

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    log::{Log, Wanted},
    offset::{Offset, Place},
    seal::{SEALED_BYTES, Seal, Sealed, Ticket},
};
use crate::{broker::history::Past, user::User};

/// A private session id, known to its client alone. It must not be logged, so it has no
/// `Display`, and its `Debug` shows nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pid {
    /// 128 random bits, which this process remembers.
    Known(u128),
    /// Signed, and remembered by nobody.
    Sealed(Sealed),
}

impl Pid {
    /// As it is written into the CONNECT reply.
    pub fn expose(self) -> String {
        match self {
            Self::Known(number) => format!("{number:032x}"),
            Self::Sealed(Sealed(bytes)) => URL_SAFE_NO_PAD.encode(bytes),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let is_number = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_number {
            return u128::from_str_radix(text, 16).ok().map(Self::Known);
        }
        if text.len() > 2 * SEALED_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        Some(Self::Sealed(Sealed(bytes.try_into().ok()?)))
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[pid]")
    }
}

/// What a session needs to be resumed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovery<I> {
    /// Tells the user's sessions apart.
    pub(super) key: u128,
    /// The `socket.id` of the session's first socket, which its client keeps.
    pub(super) id: I,
    /// The newest event when the session began, which its client never sees.
    pub(super) start: u64,
    /// The newest event that its client has seen, as it said when it connected.
    seen: u64,
    /// When its socket began to be sent every event at once.
    live: Option<Instant>,
}

impl<I: Copy> Recovery<I> {
    pub(super) fn begin(newest: u64, key: u128, id: I) -> Self {
        Self {
            key,
            id,
            start: newest,
            seen: newest,
            live: None,
        }
    }

    /// Goes on with another socket, whose client has seen all events up to `seen`.
    pub(super) fn resume(self, seen: u64) -> Self {
        Self {
            seen,
            live: None,
            ..self
        }
    }

    pub(super) fn go_live(&mut self, now: Instant) {
        self.live = Some(now);
    }

    /// From now on events wait before they are sent, so that an event's age no longer
    /// tells whether it has arrived.
    pub(super) fn fall_behind(&mut self) {
        self.live = None;
    }

    /// What the client may come back for, if the loss of its connection was noticed at
    /// `lost`, and every loss is noticed within `noticed_within`. Pings go through the
    /// same channel as events. So once a socket has been live for that long, what it was
    /// sent before has arrived: otherwise a later ping would not have been answered, and
    /// the loss would have been noticed earlier.
    pub(super) fn wants(&self, lost: Instant, noticed_within: Duration) -> Wanted {
        let arrived_before = lost.checked_sub(noticed_within);
        match (self.live, arrived_before) {
            (Some(live), Some(moment)) if live < moment => Wanted::since(moment),
            _ => Wanted::after(self.seen),
        }
    }
}

/// What the reply to a CONNECT says about its session.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<I> {
    /// The client's `socket.id`; a resumed session keeps its id.
    pub id: I,
    pub pid: Pid,
}

/// What a connecting client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeRequest {
    /// No offsets, no recovery: `recovery: false`.
    OptOut,
    /// A session that can be resumed later.
    New,
    /// To go on after `offset`, or from the beginning of the session.
    #[allow(missing_docs)] // The line above names both.
    Resume { pid: Pid, offset: Option<Offset> },
    /// To resume, but `pid` or `offset` cannot have come from this service.
    Unreadable,
}

impl ResumeRequest {
    /// Reads the auth object of a CONNECT: hostile input.
    pub fn of(auth: Option<&Value>) -> Self {
        let field = |name| auth.and_then(|auth| auth.get(name));
        if field("recovery") == Some(&Value::Bool(false)) {
            return Self::OptOut;
        }
        let Some(pid) = field("pid").filter(|pid| !pid.is_null()) else {
            return Self::New;
        };
        let Some(pid) = pid.as_str().and_then(Pid::parse) else {
            return Self::Unreadable;
        };
        match field("offset") {
            None | Some(Value::Null) => Self::Resume { pid, offset: None },
            Some(offset) => match offset.as_str().and_then(Offset::parse) {
                None => Self::Unreadable,
                offset => Self::Resume { pid, offset },
            },
        }
    }
}

/// A request, once the user is known who makes it.
#[derive(Debug)]
pub(super) enum Claim {
    OptOut,
    New,
    /// To resume the session `key`, as its client says, or as its `ticket` proves.
    Resume {
        /// Stays the same: a client takes a session for recovered if it does.
        pid: Pid,
        key: u128,
        offset: Option<Offset>,
        ticket: Option<Ticket>,
    },
    Refused(Outcome),
}

impl Claim {
    /// Verifies what `user` presents. Where `seal` is, pids are signed; elsewhere they are
    /// looked up later.
    pub(super) fn of(request: ResumeRequest, user: &User, seal: Option<&Seal>) -> Self {
        let (pid, offset) = match request {
            ResumeRequest::OptOut => return Self::OptOut,
            ResumeRequest::New => return Self::New,
            ResumeRequest::Unreadable => return Self::Refused(Outcome::Unreadable),
            ResumeRequest::Resume { pid, offset } => (pid, offset),
        };
        match (pid, seal) {
            (Pid::Known(key), None) => Self::Resume {
                pid,
                key,
                offset,
                ticket: None,
            },
            (Pid::Sealed(sealed), Some(seal)) => match seal.open(user, sealed) {
                Some(ticket) => Self::Resume {
                    pid,
                    key: ticket.key(),
                    offset,
                    ticket: Some(ticket),
                },
                None => Self::Refused(Outcome::Unreadable),
            },
            // Of an instance with another topology.
            (Pid::Known(_), Some(_)) | (Pid::Sealed(_), None) => Self::Refused(Outcome::Unknown),
        }
    }

    /// The session that the request takes over.
    pub(super) fn key(&self) -> Option<u128> {
        match self {
            Self::Resume { key, .. } => Some(*key),
            _ => None,
        }
    }

    /// The place to go on at, and whether all events of its update have been seen: the newest
    /// that the client has seen in its session, or where the session began.
    pub(super) fn place(&self) -> Option<(Place, bool)> {
        let Self::Resume { offset, ticket, .. } = self else {
            return None;
        };
        // A session that began without a place has missed nobody knows what.
        let start = ticket.as_ref()?.start?;
        match offset {
            // A client may send the offset of an earlier session.
            Some(Offset::Shared { place, is_last }) if place.offset >= start.offset => {
                Some((*place, *is_last))
            }
            _ => Some((start, true)),
        }
    }
}

/// What a session is resumed with, and the newest event that its client has seen.
type Resumed<I> = Result<(Recovery<I>, u64), Outcome>;

/// Decides whether the session `earlier` of this process goes on. `stretch` is the current
/// run of updates, `log` what is kept of it.
pub(super) fn resume_here<I: Copy>(
    log: &Log,
    stretch: Option<u64>,
    earlier: Option<Recovery<I>>,
    claim: &Claim,
) -> Resumed<I> {
    let recovery = earlier.ok_or(Outcome::Unknown)?;
    let offset = match claim {
        Claim::Resume { offset, .. } => *offset,
        _ => None,
    };
    // A client that has seen nothing of this session may send the offset of an earlier
    // one, which another instance made or which is older than this session.
    let number = offset.and_then(|offset| log.number(offset));
    let seen = number.unwrap_or_default().max(recovery.start);
    // Without a subscription, updates are being missed right now. And a session that
    // has missed some before must learn of it when it asks.
    let is_whole = stretch.is_some() && recovery.start >= log.last_hole();
    match is_whole && log.reaches_back_to(seen) {
        true => Ok((recovery.resume(seen), seen)),
        false => Err(Outcome::Gap),
    }
}

/// Decides whether a session that began anywhere goes on here.
pub(super) fn resume_anywhere<I: Copy + FromStr>(
    past: &Past<'_>,
    seal: &Seal,
    claim: &Claim,
) -> Resumed<I> {
    let (Claim::Resume { key, ticket, .. }, Some((place, is_last))) = (claim, claim.place()) else {
        return Err(Outcome::Gap);
    };
    let id = ticket.as_ref().and_then(|ticket| ticket.id()?.parse().ok());
    let id = id.ok_or(Outcome::Unreadable)?;
    // The update at that offset is the one that the client has seen, so what follows is
    // exactly what it has not seen.
    let there = past.at(place.offset);
    let there = there.filter(|delivery| seal.is_place(place, delivery));
    let number = there.and_then(|delivery| Some(delivery.position?.number));
    let seen = 2 * number.ok_or(Outcome::Gap)? + u64::from(is_last);
    Ok((Recovery::begin(seen, *key, id), seen))
}

/// How a request to resume was answered. [`Outcome::label`] is the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Recovered,
    /// No session of this user has that `pid`: it has expired, or is on another instance.
    Unknown,
    /// An operator has ended the session.
    Ended,
    /// Not everything that was missed is here.
    Gap,
    Unreadable,
}

impl Outcome {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Unknown | Self::Ended => "unknown",
            Self::Gap => "gap",
            Self::Unreadable => "unreadable",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_not_have_arrived_is_wanted() {
        let start = Instant::now() + Duration::from_hours(1);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut session = Recovery::begin(7, 1, ());
        assert_eq!(
            session.wants(at(0), Duration::from_secs(60)),
            Wanted::after(7)
        );
        session.go_live(at(0));
        assert_eq!(
            session.wants(at(60), Duration::from_secs(60)),
            Wanted::after(7)
        );
        assert_eq!(
            session.wants(at(100), Duration::from_secs(60)),
            Wanted::since(at(40))
        );
        let mut session = session.resume(30);
        // However long it was away: what it is replayed may be lost, too.
        assert_eq!(
            session.wants(at(200), Duration::from_secs(60)),
            Wanted::after(30)
        );
        session.go_live(at(200));
        assert_eq!(
            session.wants(at(201), Duration::from_secs(60)),
            Wanted::after(30)
        );
        assert_eq!(
            session.wants(at(261), Duration::from_secs(60)),
            Wanted::since(at(201))
        );
    }

    #[test]
    fn what_clients_send_is_understood() {
        let pid = Pid::Known(rand::random());
        let text = pid.expose();
        let resume = |offset| ResumeRequest::Resume { pid, offset };
        let offset = Offset::parse("0badcafe-1f");
        for (auth, expected) in [
            (json!({"token": "t"}), ResumeRequest::New),
            (json!({"pid": null, "offset": "x"}), ResumeRequest::New),
            (json!("pid"), ResumeRequest::New),
            (json!({"recovery": true}), ResumeRequest::New),
            (
                json!({"recovery": false, "pid": text}),
                ResumeRequest::OptOut,
            ),
            (json!({"pid": text}), resume(None)),
            (json!({"pid": text, "offset": null}), resume(None)),
            (
                json!({"pid": text, "offset": "0badcafe-1f"}),
                resume(offset),
            ),
            (
                json!({"pid": text, "offset": "0badcafe"}),
                ResumeRequest::Unreadable,
            ),
            (json!({"pid": text, "offset": 5}), ResumeRequest::Unreadable),
            (
                json!({"pid": text, "offset": ["0badcafe-1f"]}),
                ResumeRequest::Unreadable,
            ),
            (json!({"pid": text[1..]}), ResumeRequest::Unreadable),
            (
                json!({"pid": format!("+{}", &text[1..])}),
                ResumeRequest::Unreadable,
            ),
            (json!({"pid": "é".repeat(16)}), ResumeRequest::Unreadable),
            (json!({"pid": 1}), ResumeRequest::Unreadable),
            (json!({"pid": {}}), ResumeRequest::Unreadable),
        ] {
            assert_eq!(ResumeRequest::of(Some(&auth)), expected, "{auth}");
        }
        assert_eq!(ResumeRequest::of(None), ResumeRequest::New);
    }

    #[test]
    fn a_pid_does_not_show() {
        let request = ResumeRequest::Resume {
            pid: Pid::Known(0xabc),
            offset: None,
        };
        assert!(!format!("{request:?}").contains("abc"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(pid in ".{0,40}", offset in ".{0,40}") {
            ResumeRequest::of(Some(&json!({"pid": pid, "offset": offset})));
            ResumeRequest::of(Some(&json!({"pid": Pid::Known(0).expose(), "offset": offset})));
        }
    }
}
