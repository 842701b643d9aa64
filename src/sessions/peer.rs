//! What sessions need of a socket: the seam between sessions and whatever carries
//! events to clients.
//!
//! A peer owns the encoding of events and their framing, and knows exactly how much its client
//! takes. Sessions own the decisions: what a peer is handed, when, and when a peer is given
//! up. Calls are made under the lock of one user's audience, so none may block or
//! call back into sessions.

use std::{fmt::Display, future::Future, str::FromStr, time::Duration};

use serde_json::value::RawValue;

/// One socket. Clones are of the same socket.
pub trait Peer: Clone + Send + Sync + 'static {
    /// Names the socket to its client.
    type Id: Copy + Display + FromStr + Send + Sync;
    /// What peers make of events before they send them, so that events for several peers are
    /// encoded once.
    type Encoded: Default;

    /// Longest time from the loss of a connection until the session leaves: what a
    /// peer was handed longer ago has arrived.
    const LOSS_NOTICED_WITHIN: Duration;

    /// The socket's name.
    fn id(&self) -> Self::Id;

    /// Hands the socket `events`, after those that it was handed before. Returns whether the
    /// socket took them, all or none. `encoded` is what peers have made of the same events so
    /// far, and empty at first.
    ///
    /// What the socket took is sent by [`Self::flush`] at the latest, which must follow before
    /// anything else is awaited.
    ///
    /// # Errors
    /// [`Closed`] if the socket has disconnected.
    fn emit(&self, events: &[Event<'_>], encoded: &mut Self::Encoded) -> Result<bool, Closed>;

    /// Sends what the socket took.
    ///
    /// # Errors
    /// [`Closed`] if the socket has disconnected.
    fn flush(&self) -> Result<Flushed, Closed>;

    /// Returns once the socket may send more, or has disconnected. A peer that takes one byte
    /// an hour counts as one that takes nothing.
    fn takes_more(&self) -> impl Future<Output = ()> + Send;

    /// Tells whether more waits for the socket than it was handed.
    fn more_waits(&self, waits: bool);

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

/// What became of what a socket took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// All of it is sent.
    All,
    /// The socket sends no more now; [`Peer::takes_more`] tells when. So many of the latest calls
    /// of [`Peer::emit`] count as not made. The rest that it keeps is of one call at most.
    Undone(usize),
}

/// The socket has disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;
