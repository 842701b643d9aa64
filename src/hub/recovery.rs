//! What a connecting client says of recovery, and how it is answered.
//!
//! The protocol is Socket.IO's connection state recovery: the CONNECT reply names
//! a private session id (`pid`), every event ends with an offset, and a client
//! that lost its connection sends both in the auth object of its next CONNECT.
//!
//! A `pid` is looked up among its own user's sessions only, after the token was
//! verified: whoever else presents it finds nothing.

use std::fmt;

use serde_json::Value;

use super::log::Offset;

/// A private session id: 128 random bits, known to its client alone. It has no
/// `Display`, and its `Debug` shows nothing: it is not for logs.
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

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// No offsets, no recovery: `recovery: false`.
    OptOut,
    /// A session that can be recovered later.
    New,
    /// To go on after `offset`, or from the session's beginning.
    Resume { pid: Pid, offset: Option<Offset> },
    /// To resume, but `pid` or `offset` are none of this service's making.
    Unreadable,
}

impl Request {
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

/// How a request to resume ended. [`Outcome::label`] is the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Recovered,
    /// No session of this user has that `pid`: it expired, or is another instance's.
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
    fn what_clients_send_is_understood() {
        let pid = Pid::random();
        let text = pid.expose();
        let resume = |offset| Request::Resume { pid, offset };
        let offset = Offset::parse("0badcafe-1f");
        for (auth, expected) in [
            (json!({"token": "t"}), Request::New),
            (json!({"pid": null, "offset": "x"}), Request::New),
            (json!("pid"), Request::New),
            (json!({"recovery": true}), Request::New),
            (json!({"recovery": false, "pid": text}), Request::OptOut),
            (json!({"pid": text}), resume(None)),
            (json!({"pid": text, "offset": null}), resume(None)),
            (
                json!({"pid": text, "offset": "0badcafe-1f"}),
                resume(offset),
            ),
            (
                json!({"pid": text, "offset": "0badcafe"}),
                Request::Unreadable,
            ),
            (json!({"pid": text, "offset": 5}), Request::Unreadable),
            (
                json!({"pid": text, "offset": ["0badcafe-1f"]}),
                Request::Unreadable,
            ),
            (json!({"pid": text[1..]}), Request::Unreadable),
            (
                json!({"pid": format!("+{}", &text[1..])}),
                Request::Unreadable,
            ),
            (json!({"pid": "é".repeat(16)}), Request::Unreadable),
            (json!({"pid": 1}), Request::Unreadable),
            (json!({"pid": {}}), Request::Unreadable),
        ] {
            assert_eq!(Request::of(Some(&auth)), expected, "{auth}");
        }
        assert_eq!(Request::of(None), Request::New);
    }

    #[test]
    fn a_pid_does_not_show() {
        let request = Request::Resume {
            pid: Pid(0xabc),
            offset: None,
        };
        assert!(!format!("{request:?}").contains("abc"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(pid in ".{0,40}", offset in ".{0,40}") {
            Request::of(Some(&json!({"pid": pid, "offset": offset})));
            Request::of(Some(&json!({"pid": Pid(0).expose(), "offset": offset})));
        }
    }
}
