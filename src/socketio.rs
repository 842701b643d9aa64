//! The Socket.IO side: connections, tokens, limits and sockets. Knows the sessions
//! that sockets join; knows no queue.
//!
//! - `transport`: TCP connections, and which socket each carries
//! - `endpoint`: a socket's life, from its handshake to its disconnect
//! - `peer`: a socket as the sessions see it
//! - `leases`: how long a socket may stay, by its token
//! - [`revocation`]: operators' orders, and the tokens that are revoked
//! - `limits`, `refused_tokens`: how much a client may ask for

pub(crate) mod endpoint;
pub(crate) mod limits;
pub mod revocation;
pub(crate) mod transport;

mod leases;
mod peer;
mod refused_tokens;

/// The sessions of Socket.IO sockets.
pub(crate) type Hub = crate::sessions::Hub<peer::SocketPeer>;
