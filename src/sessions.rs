//! Who is online, and what goes to whom.
//!
//! - [`Hub`]: all users. Maps each user to their sessions, subscribes the user with
//!   the first session and unsubscribes the user with
//!   the last. Its room `eviction` ends sessions that were away for too long, and
//!   frees memory
//! - [`Session`]: one socket's handle on its session
//! - `audience`: one user's sessions. Its rooms: `fan_out` (an update to all
//!   sockets), `lag` (how far a socket may lag, and when it is cut) and `catch_up`
//!   (a replay, or a socket that lags, at the pace of its peer)
//! - [`log`]: what a user was sent lately, for replays
//! - `resume`: what a client says to resume its session
//! - [`peer`]: what sessions need of a socket; the Socket.IO side implements it
//!
//! A session that lost its connection stays for a while without a socket and may be
//! resumed. Nothing here sees a token, a queue, HTTP or Socket.IO.
//!
//! Invariants: a user has a subscription exactly while a session of theirs lives. A
//! socket gets every update from its `connect` on, in order, or its transport is
//! closed. The lock over all users is never held while delivering; where both are
//! taken, it comes before the lock of one user's audience.

pub mod peer;

mod audience;
mod clock;
mod counts;
mod departures;
mod hub;
mod kept;
mod log;
mod offset;
mod repeated;
mod resume;
mod resync;
mod seal;
mod session;
mod shared;

#[cfg(test)]
mod tests;

pub use self::{
    hub::Hub,
    offset::Offset,
    resume::{Admitted, ResumeRequest},
    session::Session,
};
