//! Resuming a session: what a connecting client says, and what it may come back for.
//!
//! The protocol is Socket.IO's connection state recovery. The CONNECT reply names a
//! private session id (`pid`), every event ends with an offset, and a client that lost
//! its connection sends both in the auth object of its next CONNECT.
//!
//! A `pid` is looked up among its own user's sessions only, after the token was
//! verified: nobody else who presents it finds anything.

use std::{fmt, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::log::{Offset, Wanted};

/// A private session id: 128 random bits, known to its client alone. It must not be
/// logged, so it has no `Display`, and its `Debug` shows nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pid(u128);

impl Pid {
    pub(super) fn random() -> Self {
        // From a cryptographically secure generator.
        Self(rand::random())
    }

    /// As it is written into the CONNECT reply.
    pub fn expose(self) -> String {
        format!("{:032x}", self.0)
    }

    fn parse(text: &str) -> Option<Self> {
        let is_ours = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_ours.then(|| u128::from_str_radix(text, 16).ok())?;
        number.map(Self)
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
    pub(super) pid: Pid,
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
    pub(super) fn begin(newest: u64, id: I) -> Self {
        Self {
            pid: Pid::random(),
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

/// How a request to resume was answered. [`Outcome::label`] is the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Recovered,
    /// No session of this user has that `pid`: it has expired, or is on another instance.
    Unknown,
    /// Not everything that was missed is here.
    Gap,
    Unreadable,
}

impl Outcome {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Unknown => "unknown",
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
        let mut session = Recovery::begin(7, ());
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
        let pid = Pid::random();
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
            pid: Pid(0xabc),
            offset: None,
        };
        assert!(!format!("{request:?}").contains("abc"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(pid in ".{0,40}", offset in ".{0,40}") {
            ResumeRequest::of(Some(&json!({"pid": pid, "offset": offset})));
            ResumeRequest::of(Some(&json!({"pid": Pid(0).expose(), "offset": offset})));
        }
    }
}
