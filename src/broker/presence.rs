//! Who is online in the whole fleet: what each instance has, what is known of all of them, and
//! what consumers are told.
//!
//! One instance, the keeper, knows the fleet and alone publishes events, so that these have one
//! order. Which instance that is, and how messages travel, is the broker's side.
//!
//! - `attendance`: the users who have sockets at this instance
//! - `fleet`: the keeper's knowledge, and its decisions
//! - `words`: the messages between instances, the ledger and the events
//!
//! Pure but for the lock of an [`Attendance`]. Invariant: once nothing changes any more, every
//! instance has reported, and the grace is over, the last event of each user is true.

pub mod attendance;
pub(crate) mod fleet;
pub(crate) mod words;

#[cfg(test)]
mod tests;

pub use self::attendance::Attendance;
use crate::user::{TenantId, UserId};

/// Most users of one question to the keeper: a question and its answer then stay well below
/// what one AMQP frame holds, and neither keeps the keeper from its work.
pub const MOST_ASKED: usize = 250;

/// The users that a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Unique within its tenant only.
    pub id: UserId,
    /// `None`: users with this id in all tenants, together.
    pub tenant: Option<TenantId>,
}

/// Whether a user is online somewhere in the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Also while the grace after the last socket's end is not over.
    pub online: bool,
    /// Over all instances.
    pub sockets: u64,
    /// Since when the user is online, in milliseconds since 1970.
    pub since: Option<u64>,
}
