//! Limits on what a client may ask for: connects by address and by session, refusals by
//! address, events by socket; and on how many sessions there may be.
//!
//! Decides, and counts for itself what it decides by; what happens to a client that is
//! over a limit is the caller's to do.

mod addresses;
mod connects;
mod events;
mod refusals;
mod slots;

use std::num::NonZeroU32;

use governor::Quota;

pub use self::{
    addresses::{client_network, network},
    connects::{ConnectLimit, SessionConnects},
    events::EventLimit,
    refusals::RefusalLimit,
    slots::{Slot, Slots},
};

/// Seconds' worth of the allowed rate that may come at once.
const BURST_SECONDS: u32 = 5;

/// What a limit says of a connect or an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// The first one over the limit.
    TooMany,
    /// One after the first over the limit.
    Ignored,
}

/// `None`: no limit.
fn quota(per_second: u32) -> Option<Quota> {
    let burst = NonZeroU32::new(per_second.saturating_mul(BURST_SECONDS))?;
    NonZeroU32::new(per_second).map(|rate| Quota::per_second(rate).allow_burst(burst))
}
