//! Announces to clients how much they may send at once.
//!
//! engineioxide announces as `maxPayload` the size at which it cuts its own responses,
//! which must be huge (a packet that no longer fits may be lost). Clients read the
//! number as the most that one of their polling requests may hold, and split what they
//! send by it. So the number in the OPEN packet (Engine.IO protocol v4) is replaced
//! where the packet leaves the process: in as many bytes, so that nothing around it
//! changes.

use bytes::Bytes;
use socketioxide::socket::Sid;

use super::budget::MAX_MESSAGE_BYTES;

/// The size that engineioxide is told, and announces.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 40;

/// The same bytes with the number that applies, if the OPEN packet is among them.
pub(super) fn announce(bytes: &[u8]) -> Option<Bytes> {
    let announced = format!(r#""maxPayload":{MAX_PAYLOAD_BYTES}"#);
    let holds = MAX_MESSAGE_BYTES.to_string();
    // JSON allows spaces there.
    let width = announced.len() - holds.len();
    let holds = format!(r"{:<width$}{holds}", r#""maxPayload":"#);
    let mut windows = bytes.windows(announced.len());
    let at = windows.position(|window| window == announced.as_bytes())?;
    let parts = [
        &bytes[..at],
        holds.as_bytes(),
        &bytes[at + announced.len()..],
    ];
    Some(parts.concat().into())
}

/// The session that an OPEN packet opens.
pub(super) fn session(packet: &[u8]) -> Option<Sid> {
    let packet = std::str::from_utf8(packet).ok()?;
    let (sid, _) = packet.strip_prefix(r#"0{"sid":""#)?.split_once('"')?;
    sid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_replaced_and_all_else_stays() {
        let sid = Sid::new();
        let packet = |max: &str| {
            format!(r#"0{{"sid":"{sid}","upgrades":[],"pingInterval":25000,"maxPayload":{max}}}"#)
        };
        let written = packet(&MAX_PAYLOAD_BYTES.to_string());
        let announced = announce(written.as_bytes()).unwrap();
        assert_eq!(announced.len(), written.len());
        let json: serde_json::Value = serde_json::from_slice(&announced[1..]).unwrap();
        assert_eq!(json["maxPayload"], MAX_MESSAGE_BYTES);
        assert_eq!(json["pingInterval"], 25_000);
        assert_eq!(session(&announced), Some(sid));
        assert_eq!(announce(packet("1").as_bytes()), None);
        assert_eq!(session(b"40"), None);
    }
}
