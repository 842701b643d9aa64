//! Users: validated user and tenant ids.
//!
//! Owns the rule of which ids may enter the process at all. An id becomes part of RabbitMQ
//! binding keys, where `*` and `#` are wildcards: an unchecked id would subscribe its
//! bearer to everybody's updates. Braces mark placeholders in the templates of these keys.
//!
//! Invariant: a [`UserId`] or [`TenantId`] that exists is safe in a key, a log line and a
//! header.
//!
//! Imports nothing of this crate.

use std::{borrow::Borrow, fmt, sync::Arc};

/// Longest accepted user id, in bytes. AMQP 0-9-1 limits a routing key to 255
/// bytes, and the longest of Chat3's keys spends about 60 of them on words.
pub const MAX_USER_ID_BYTES: usize = 128;

/// Longest accepted tenant id, in bytes: both ids then fit into each of the default keys.
pub const MAX_TENANT_ID_BYTES: usize = 64;

/// Why a text is not accepted as an id.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("is empty")]
    Empty,
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    #[error("contains a character that is not allowed (*, #, a brace, whitespace or control)")]
    ForbiddenCharacter,
}

fn check(text: &str, max_bytes: usize) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > max_bytes {
        return Err(InvalidId::TooLong(max_bytes));
    }
    let forbidden =
        |c: char| matches!(c, '*' | '#' | '{' | '}') || c.is_whitespace() || c.is_control();
    if text.contains(forbidden) {
        return Err(InvalidId::ForbiddenCharacter);
    }
    Ok(())
}

/// A user id that is safe in binding keys and logs. Unique within its tenant only.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Accepts `text` unless it is empty, over [`MAX_USER_ID_BYTES`], or contains
    /// `*`, `#`, braces, whitespace or control characters.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        check(text, MAX_USER_ID_BYTES).map(|()| Self(text.into()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A tenant id, under the same rules as a [`UserId`] and [`MAX_TENANT_ID_BYTES`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Accepts `text` under the rules of [`UserId::parse`].
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        check(text, MAX_TENANT_ID_BYTES).map(|()| Self(text.into()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A recipient of updates. Users of two tenants with the same id are two users, although
/// they may share routing keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User {
    /// Unique within its tenant only.
    pub id: UserId,
    /// `None`: the token named no tenant, and updates are not filtered by tenant.
    pub tenant: Option<TenantId>,
}

/// An id hashes and compares as its text does.
impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_documented_kind_are_accepted() {
        for id in ["usr_a3f9k2p1", "carl", "a.b@example.com", "Иван", "42"] {
            assert_eq!(UserId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn ids_that_could_widen_a_binding_or_forge_a_log_line_are_refused() {
        for id in [
            "*", "#", "{userId}", "a}", "a*", "usr_#", "a b", "a\tb", "a\nb", "a\r", "\u{0}",
            "a\u{a0}b", "\u{85}",
        ] {
            assert_eq!(
                UserId::parse(id),
                Err(InvalidId::ForbiddenCharacter),
                "{id:?}"
            );
            assert_eq!(TenantId::parse(id), Err(InvalidId::ForbiddenCharacter));
        }
        assert_eq!(UserId::parse(""), Err(InvalidId::Empty));
    }

    #[test]
    fn the_length_limit_counts_bytes() {
        assert!(UserId::parse(&"x".repeat(128)).is_ok());
        assert_eq!(
            UserId::parse(&"x".repeat(129)),
            Err(InvalidId::TooLong(128))
        );
        assert_eq!(UserId::parse(&"я".repeat(65)), Err(InvalidId::TooLong(128)));
    }
}
