//! Websocket frames and the handshake. No fragments, no extensions.

use base64::prelude::{BASE64_STANDARD, Engine};
use sha1::{Digest, Sha1};

/// Appends an unmasked text frame, as servers send it.
pub fn text(into: &mut Vec<u8>, parts: &[&[u8]]) {
    head(into, 0, parts.iter().map(|part| part.len()).sum());
    for part in parts {
        into.extend_from_slice(part);
    }
}

/// Appends a text frame masked with zeros, as clients may send it.
pub fn masked_text(into: &mut Vec<u8>, payload: &[u8]) {
    head(into, 0x80, payload.len());
    into.extend_from_slice(&[0; 4]);
    into.extend_from_slice(payload);
}

fn head(into: &mut Vec<u8>, mask: u8, length: usize) {
    into.push(0x81);
    if let Some(short) = u8::try_from(length).ok().filter(|&length| length < 126) {
        into.push(mask | short);
    } else if let Ok(medium) = u16::try_from(length) {
        into.push(mask | 0x7e);
        into.extend_from_slice(&medium.to_be_bytes());
    } else {
        into.push(mask | 0x7f);
        into.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// Where the first frame of `bytes` ends and its payload begins, if it is complete.
pub struct Frame {
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    pub start: usize,
    pub end: usize,
}

pub fn frame(bytes: &[u8]) -> Option<Frame> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, mut start) = match second & 0x7f {
        126 => (
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
            4,
        ),
        127 => (
            usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?,
            10,
        ),
        short => (usize::from(short), 2),
    };
    let mask = if second & 0x80 == 0 {
        None
    } else {
        start += 4;
        Some(bytes.get(start - 4..start)?.try_into().ok()?)
    };
    let end = start + length;
    (bytes.len() >= end).then_some(Frame {
        opcode: first & 15,
        mask,
        start,
        end,
    })
}

/// The answer to an upgrade request.
pub fn accept(request: &str) -> Option<String> {
    let key = request.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key")
            .then(|| value.trim())
    })?;
    let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    Some(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        BASE64_STANDARD.encode(digest)
    ))
}
