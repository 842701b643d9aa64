//! What one Engine.IO session may send: packets, bytes and other namespaces.
//!
//! Whatever a client sends is counted before Engine.IO sees it: each websocket frame
//! as it passes through the stream, each packet of a polling request's body. Clients
//! send a token, answers to pings and little else. Nothing that they send may be
//! answered without a bound: socketioxide answers each CONNECT to a namespace that
//! does not exist, with the namespace's name.
//!
//! What is counted comes from [`frames`](super::frames). Pure but for the clock.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::frames::Sent;

/// Largest message or polling request from a client, in bytes; announced to clients
/// that poll. Clients send a token and little else.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Packets a second; more where more events are allowed.
const PACKETS_PER_SECOND: u32 = 50;

/// Packets that may come at once, in seconds' worth. A page may send hundreds in one
/// tick of its event loop.
const BURST_SECONDS: u32 = 10;

/// Bytes a second: one message of the largest size.
const BYTES_PER_SECOND: u32 = 64 * 1024;

/// Bytes that may come at once.
const BURST_BYTES: u32 = 1024 * 1024;

/// CONNECTs to namespaces other than `/`. There are none; a frontend that expects
/// some asks once for each.
const OTHER_NAMESPACES: u32 = 10;

/// How much a session may still send.
#[derive(Debug)]
pub(super) struct Budget {
    packets: DefaultDirectRateLimiter,
    bytes: DefaultDirectRateLimiter,
    other_namespaces: AtomicU32,
}

/// What a session sent too much of; the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Packets,
    Bytes,
    Namespaces,
}

impl Excess {
    /// The excess as a metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Namespaces => "namespaces",
        }
    }
}

impl Budget {
    /// `events_per_second`: what a socket that was let in may send; 0 for any number.
    pub(super) fn new(events_per_second: u32) -> Self {
        let packets = match events_per_second {
            // An operator who allows any number of events has a use for them.
            0 => u32::MAX / BURST_SECONDS,
            // Each event, and the frames around it.
            events => events.saturating_mul(2).max(PACKETS_PER_SECOND),
        };
        let quota = |rate: u32, burst: u32| {
            let positive = |n| NonZeroU32::new(n).expect("the rates are positive");
            Quota::per_second(positive(rate)).allow_burst(positive(burst))
        };
        Self {
            packets: RateLimiter::direct(quota(packets, packets.saturating_mul(BURST_SECONDS))),
            bytes: RateLimiter::direct(quota(BYTES_PER_SECOND, BURST_BYTES)),
            other_namespaces: AtomicU32::new(0),
        }
    }

    /// Takes out of the budget what was sent, and the bytes that it took.
    pub(super) fn take(&self, bytes: usize, sent: Sent) -> Result<(), Excess> {
        let is_over = |limiter: &DefaultDirectRateLimiter, n: u32| {
            NonZeroU32::new(n).is_some_and(|n| !matches!(limiter.check_n(n), Ok(Ok(()))))
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let namespaces = self
            .other_namespaces
            .fetch_add(sent.other_namespaces, Ordering::Relaxed)
            .saturating_add(sent.other_namespaces);
        if sent.has_long_name || namespaces > OTHER_NAMESPACES {
            return Err(Excess::Namespaces);
        }
        if is_over(&self.packets, sent.packets) {
            return Err(Excess::Packets);
        }
        if is_over(&self.bytes, bytes) {
            return Err(Excess::Bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::MAX_NAMESPACE_BYTES;
    use super::*;

    #[test]
    fn a_long_name_is_too_much_and_a_long_token_is_not() {
        let budget = Budget::new(10);
        let name = |length: u8| format!("40/{},", "x".repeat(usize::from(length) - 1));
        let take = |packet: &str| budget.take(packet.len(), Sent::in_payload(packet.as_bytes()));
        assert_eq!(take(&name(MAX_NAMESPACE_BYTES)), Ok(()));
        assert_eq!(
            take(&format!("40{{\"token\":\"{}\"}}", "x".repeat(8000))),
            Ok(())
        );
        assert_eq!(
            take(&name(MAX_NAMESPACE_BYTES + 1)),
            Err(Excess::Namespaces)
        );
    }

    #[test]
    fn what_a_frontend_may_send_at_once_fits_and_a_flood_does_not() {
        let allowed = |budget: Budget, bytes: usize, packet: Sent| {
            (0..100_000)
                .find_map(|n| budget.take(bytes, packet).err().map(|excess| (n, excess)))
                .unwrap()
        };
        let packet = Sent::in_payload(b"42[\"typing\"]");
        let (packets, excess) = allowed(Budget::new(10), 20, packet);
        assert_eq!(excess, Excess::Packets);
        assert!((500..1000).contains(&packets), "{packets}");
        let (messages, excess) = allowed(Budget::new(10), 60_000, packet);
        assert_eq!(excess, Excess::Bytes);
        assert!((15..40).contains(&messages), "{messages}");
        let (connects, excess) = allowed(Budget::new(10), 10, Sent::in_payload(b"40/a,"));
        assert_eq!((connects, excess), (OTHER_NAMESPACES, Excess::Namespaces));
        assert!((0..40).all(|_| Budget::new(10).take(2_000, packet).is_ok()));
        // More events than the default allows need more packets.
        let (packets, _) = allowed(Budget::new(1_000), 1, packet);
        assert!(packets >= 20_000, "{packets}");
    }
}
