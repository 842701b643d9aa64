//! What sessions need of a socket: the seam between sessions and whatever carries
//! events to clients.
//!
//! A peer owns the encoding of events, their framing and what these cost on the wire.
//! Sessions own the decisions: what a peer is handed, when, and when a peer is given
//! up. Calls are made under the lock of one user's audience, so none may block or
//! call back into sessions.

use std::{fmt::Display, str::FromStr, time::Duration};

use serde_json::value::RawValue;

/// One socket. Clones are of the same socket.
pub trait Peer: Clone + Send + Sync + 'static {
    /// Names the socket to its client.
    type Id: Copy + Display + FromStr + Send + Sync;
    /// Several sockets of one user that are emitted to at once.
    type Crowd: Crowd<Self>;

    /// Longest time from the loss of a connection until the session leaves: what a
    /// peer was handed longer ago has arrived.
    const LOSS_NOTICED_WITHIN: Duration;

    /// The socket's name.
    fn id(&self) -> Self::Id;

    /// Hands the socket an event, after those that it was handed before.
    fn emit(&self, event: &Event<'_>) -> Result<(), EmitError>;

    /// Bytes by which the event raises [`Peer::taken`] once the client has taken it.
    /// Must not be more, or the socket would seem to lag for ever.
    fn wire_bytes(&self, event: &Event<'_>) -> u64;

    /// Bytes that the client has taken so far.
    fn taken(&self) -> u64;

    /// Whether the client is known to have taken everything, whatever
    /// [`Peer::taken`] says.
    fn has_taken_all(&self) -> bool;

    /// Whether the client takes what waits once a round trip, rather than in a stream.
    fn polls(&self) -> bool;

    /// Tells whether more waits for the socket than it was handed.
    fn more_waits(&self, waits: bool);

    /// Whether the socket has not disconnected yet.
    fn is_connected(&self) -> bool;

    /// Closes the socket's transport, after which the client reconnects.
    fn close(&self);
}

/// One event of an update, as a [`Peer`] is handed it.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    pub name: &'static str,
    /// The first argument.
    pub payload: &'a RawValue,
    /// The second argument, for clients that may resume.
    pub offset: Option<&'a str>,
}

/// Sockets of one user that are handed an event together, so that it is encoded once.
pub trait Crowd<P>: Default + Send + Sync {
    /// Adds a socket to those that are sent offsets, or to those that are not.
    fn enter(&self, peer: &P, with_offsets: bool);

    /// Takes a socket out again.
    fn leave(&self, peer: &P, with_offsets: bool);

    /// Hands an event to all sockets that are sent offsets if the event has one, else
    /// to all others. `one` is one of them. Returns `false` if a connected socket may
    /// have missed the event.
    fn emit(&self, one: &P, event: &Event<'_>) -> bool;
}

/// Why a socket did not take an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmitError {
    /// The socket's buffer is full.
    Full,
    /// The socket has disconnected.
    Closed,
    /// The event cannot be encoded.
    Unencodable,
}
