//! The two protocols by hand, only as much of them as the benchmark needs: AMQP
//! 0-9-1 (`amqp`) and websocket frames (`websocket`). Trusts its peers: for
//! measuring on loopback only. Nothing here holds a socket's state but
//! `amqp::Link`.
#![allow(dead_code)] // Each example uses its own half.

pub mod amqp;
pub mod websocket;

use std::io::{self, Read, Write};

/// Reads what has arrived into `into`. Returns false at the end of the stream.
pub fn read_available(stream: &mut impl Read, into: &mut Vec<u8>, scratch: &mut [u8]) -> bool {
    loop {
        match stream.read(scratch) {
            Ok(0) => return false,
            Ok(n) => {
                into.extend_from_slice(&scratch[..n]);
                if n < scratch.len() {
                    return true;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Writes as much of `from` as the peer takes, and removes it. Returns false when the peer is
/// gone.
pub fn write_available(stream: &mut impl Write, from: &mut Vec<u8>) -> bool {
    let mut written = 0;
    let alive = loop {
        if written == from.len() {
            break true;
        }
        match stream.write(&from[written..]) {
            Ok(0) => break false,
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break false,
        }
    };
    from.drain(..written);
    if from.is_empty() && from.capacity() > 1 << 16 {
        *from = Vec::new();
    }
    alive
}
