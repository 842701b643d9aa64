//! The Socket.IO side: connections, tokens, limits and sockets. Knows the sessions
//! that sockets join; knows no queue.

pub(crate) mod endpoint;
pub(crate) mod limits;
pub mod revocation;
pub(crate) mod transport;

mod leases;
mod refused_tokens;
