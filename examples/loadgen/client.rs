//! One websocket client: Engine.IO 4 and Socket.IO 5 as far as a browser that
//! only listens needs them. Reads events off the wire without copying or
//! parsing their JSON; keeps no account of them.

use std::io::{ErrorKind, Read, Write};
use std::mem;

use mio::net::TcpStream;

use crate::wire::websocket;

/// The recipient of an update, by its `_id`.
#[derive(Clone, Copy, PartialEq)]
pub enum Owner {
    /// Stays for the whole run.
    User(u32),
    /// Comes for one update.
    Visitor(u32),
}

/// The two events of an update.
#[derive(Clone, Copy)]
pub enum Kind {
    Update,
    Message,
}

pub struct Event {
    pub kind: Kind,
    pub owner: Owner,
    pub seq: u32,
    /// Microseconds on the load generator's clock.
    pub sent: u64,
}

pub enum Said<'a> {
    /// With the `pid` of the session.
    Joined(&'a [u8]),
    Refused(&'a [u8]),
    Event(Event),
    Unknown(&'a [u8]),
}

/// What a client keeps of its session, and sends when it comes back.
#[derive(Default, Clone)]
pub struct Session {
    pub pid: Vec<u8>,
    /// Of the newest event.
    pub offset: Vec<u8>,
}

pub struct Client {
    stream: TcpStream,
    stage: Stage,
    inbox: Vec<u8>,
    /// Of the newest event; not kept unless the client would come back.
    offset: Option<Vec<u8>>,
}

enum Stage {
    Connecting { request: Vec<u8>, hello: Vec<u8> },
    Upgrading { hello: Vec<u8> },
    Open { hello: Vec<u8> },
    Joined,
}

impl Client {
    /// `stream` may still be connecting. `session`: what a client that comes back has kept.
    pub fn new(stream: TcpStream, port: u16, token: &str, session: Option<&Session>) -> Self {
        let mut hello = Vec::new();
        websocket::masked_text(&mut hello, auth(token, session).as_bytes());
        let request = request(port).into_bytes();
        Self {
            stream,
            stage: Stage::Connecting { request, hello },
            inbox: Vec::new(),
            offset: session.map(|session| session.offset.clone()),
        }
    }

    /// The offset of the newest event, if the client keeps it.
    pub fn into_offset(self) -> Vec<u8> {
        self.offset.unwrap_or_default()
    }

    pub fn joined(&self) -> bool {
        matches!(self.stage, Stage::Joined)
    }

    /// Leaves as a browser does.
    pub fn leave(mut self) {
        self.send(b"41");
    }

    /// Reads and writes as far as the socket allows. Returns false when the connection is over.
    /// `ended`: the server has closed its side.
    pub fn drive(
        &mut self,
        ended: bool,
        scratch: &mut [u8],
        mut hear: impl FnMut(Said<'_>),
    ) -> bool {
        if let Stage::Connecting { request, hello } = &mut self.stage {
            match self.stream.write(request) {
                Ok(written) if written == request.len() => {
                    let hello = mem::take(hello);
                    self.stage = Stage::Upgrading { hello };
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                _ => return false,
            }
        }
        loop {
            let n = match self.stream.read(scratch) {
                Ok(0) => return false,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            if !self.hear(&scratch[..n], &mut hear) {
                return false;
            }
            if n < scratch.len() && !ended {
                return true;
            }
        }
    }

    /// The usual read ends with a frame's end and is not copied.
    fn hear(&mut self, fresh: &[u8], hear: &mut impl FnMut(Said<'_>)) -> bool {
        let mut inbox = mem::take(&mut self.inbox);
        let bytes = if inbox.is_empty() {
            fresh
        } else {
            inbox.extend_from_slice(fresh);
            &inbox
        };
        let Some(used) = self.take(bytes, hear) else {
            return false;
        };
        if used < bytes.len() {
            self.inbox = bytes[used..].to_vec();
        }
        true
    }

    /// How many bytes were consumed; `None` when the connection is over.
    fn take(&mut self, bytes: &[u8], hear: &mut impl FnMut(Said<'_>)) -> Option<usize> {
        let mut at = 0;
        if let Stage::Upgrading { hello } = &mut self.stage {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                return Some(0);
            };
            let answer = &bytes[..end];
            let compressed = memchr::memmem::find(answer, b"permessage-deflate").is_some();
            if compressed || !answer.starts_with(b"HTTP/1.1 101 ") {
                hear(Said::Refused(answer));
                return None;
            }
            let hello = mem::take(hello);
            self.stage = Stage::Open { hello };
            at = end + 4;
        }
        while let Some(frame) = websocket::frame(&bytes[at..]) {
            let payload = &bytes[at + frame.start..at + frame.end];
            at += frame.end;
            match (frame.opcode, payload) {
                (1, [b'4', b'2', ..]) => {
                    if let (Some(offset), Some(newest)) = (&mut self.offset, last_string(payload)) {
                        offset.clear();
                        offset.extend_from_slice(newest);
                    }
                    hear(event(payload).map_or(Said::Unknown(payload), Said::Event));
                }
                (1, b"2") => self.send(b"3"),
                (1, [b'0', ..]) => {
                    if let Stage::Open { hello } = &mut self.stage {
                        let hello = mem::take(hello);
                        self.write(&hello);
                    }
                }
                (1, [b'4', b'0', ..]) => {
                    self.stage = Stage::Joined;
                    hear(Said::Joined(pid(payload)));
                }
                (1, [b'4', b'4', ..]) => {
                    hear(Said::Refused(payload));
                    return None;
                }
                (8, _) | (1, b"1" | b"41") => return None,
                (9, ping) => {
                    let length = u8::try_from(ping.len()).unwrap_or_default() & 0x7f;
                    let mut reply = vec![0x8a, 0x80 | length, 0, 0, 0, 0];
                    reply.extend_from_slice(ping);
                    self.write(&reply);
                }
                _ => hear(Said::Unknown(payload)),
            }
        }
        Some(at)
    }

    fn send(&mut self, packet: &[u8]) {
        let mut frame = Vec::with_capacity(16);
        websocket::masked_text(&mut frame, packet);
        self.write(&frame);
    }

    /// A listening client sends little: a buffer that is too full for it means a dead
    /// server, which the next read reports.
    fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write(bytes);
    }
}

/// The CONNECT packet, with what the session was as `socket.io-client` sends it.
fn auth(token: &str, session: Option<&Session>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match session.filter(|session| !session.pid.is_empty()) {
        None => format!(r#"40{{"token":"{token}"}}"#),
        Some(Session { pid, offset }) if offset.is_empty() => {
            format!(r#"40{{"pid":"{}","token":"{token}"}}"#, text(pid))
        }
        Some(Session { pid, offset }) => {
            let (pid, offset) = (text(pid), text(offset));
            format!(r#"40{{"pid":"{pid}","offset":"{offset}","token":"{token}"}}"#)
        }
    }
}

/// The `pid` of a CONNECT reply; empty without one. It needs no escapes.
fn pid(payload: &[u8]) -> &[u8] {
    const KEY: &[u8] = b"\"pid\":\"";
    let Some(at) = memchr::memmem::find(payload, KEY) else {
        return &[];
    };
    let rest = &payload[at + KEY.len()..];
    &rest[..memchr::memchr(b'"', rest).unwrap_or_default()]
}

/// The last argument of an event, if it is a string: `42["x",{…},"this"]`. It needs no escapes.
fn last_string(payload: &[u8]) -> Option<&[u8]> {
    let rest = payload.strip_suffix(b"\"]")?;
    let at = memchr::memrchr(b'"', rest)?;
    rest[..at].ends_with(b",").then(|| &rest[at + 1..])
}

/// `42["chat3:update",{"_id":"u17-3-123456",…`, the `_id` as [`stamp`] writes it.
fn event(payload: &[u8]) -> Option<Event> {
    let rest = payload.strip_prefix(b"42[\"")?;
    let (kind, rest) = match rest.strip_prefix(b"chat3:update\",") {
        Some(rest) => (Kind::Update, rest),
        None => (Kind::Message, rest.strip_prefix(b"message:new\",")?),
    };
    let (&class, rest) = rest.strip_prefix(b"{\"_id\":\"")?.split_first()?;
    let (owner, rest) = number(rest, b'-')?;
    let (seq, rest) = number(rest, b'-')?;
    let (sent, _) = number(rest, b'"')?;
    let owner = u32::try_from(owner).ok()?;
    Some(Event {
        kind,
        owner: match class {
            b'u' => Owner::User(owner),
            b'v' => Owner::Visitor(owner),
            _ => return None,
        },
        seq: u32::try_from(seq).ok()?,
        sent,
    })
}

/// The `_id` of an update.
pub fn stamp(owner: Owner, seq: u32, sent: u64) -> String {
    format!("{owner}-{seq}-{sent}")
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(number) => write!(f, "u{number}"),
            Self::Visitor(number) => write!(f, "v{number}"),
        }
    }
}

/// The number before `end`, and the rest.
fn number(bytes: &[u8], end: u8) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (at, &byte) in bytes.iter().enumerate().take(20) {
        match byte {
            b'0'..=b'9' => value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')),
            _ if byte == end => return Some((value, &bytes[at + 1..])),
            _ => return None,
        }
    }
    None
}

/// As much as Chromium sends.
fn request(port: u16) -> String {
    format!(
        "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n\
         Host: 127.0.0.1:{port}\r\n\
         Connection: Upgrade\r\n\
         Pragma: no-cache\r\n\
         Cache-Control: no-cache\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
         Upgrade: websocket\r\n\
         Origin: http://127.0.0.1:8080\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Accept-Encoding: gzip, deflate, br, zstd\r\n\
         Accept-Language: en-GB,en;q=0.9,ru-RU;q=0.8,ru;q=0.7,en-US;q=0.6\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
}
