//! Why a client is refused, in words that it may read.
//!
//! Invariant: what a client reads about a refusal is [`Refusal`]'s `Display` and nothing
//! else, so that no library's error text leaks to a browser.

use jsonwebtoken::errors::ErrorKind;

/// Why a connection is refused. `Display` is the `message` of the client's
/// `connect_error`; [`Refusal::label`] is the metric's label.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("token missing")]
    TokenMissing,
    #[error("invalid token")]
    TokenInvalid,
    #[error("token expired")]
    TokenExpired,
    #[error("token not valid yet")]
    TokenNotYetValid,
    #[error("token without expiry")]
    TokenWithoutExpiry,
    #[error("token issuer not accepted")]
    Issuer,
    #[error("token audience not accepted")]
    Audience,
    #[error("token without user id")]
    UserIdMissing,
    #[error("user id not acceptable")]
    UserIdInvalid,
    #[error("token without tenant id")]
    TenantIdMissing,
    #[error("tenant id not acceptable")]
    TenantIdInvalid,
    /// This user's binding keys would be longer than AMQP allows.
    #[error("user id and tenant id too long")]
    IdsTooLong,
    #[error("token revoked")]
    TokenRevoked,
    /// In answers to `auth:refresh` only.
    #[error("token of another user")]
    AnotherUser,
    #[error("too many connections of this user")]
    TooManySockets,
    /// Seldom read: the connection is closed at the same time.
    #[error("too many tries to connect")]
    TooManyConnects,
    /// As above. The token was not looked at, and its bearer may try again.
    #[error("too many refused connections from this address")]
    AddressRefusals,
    /// As above.
    #[error("too many connections at once")]
    Overloaded,
}

impl Refusal {
    /// The reason as a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::TokenMissing => "token_missing",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenWithoutExpiry => "token_without_expiry",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::UserIdMissing => "user_id_missing",
            Self::UserIdInvalid => "user_id_invalid",
            Self::TenantIdMissing => "tenant_id_missing",
            Self::TenantIdInvalid => "tenant_id_invalid",
            Self::IdsTooLong => "ids_too_long",
            Self::TokenRevoked => "token_revoked",
            Self::AnotherUser => "another_user",
            Self::TooManySockets => "too_many_sockets",
            Self::TooManyConnects => "too_many_connects",
            Self::AddressRefusals => "address_refusals",
            Self::Overloaded => "overloaded",
        }
    }

    /// Whether the same token will be refused for the same reason for a while, whatever
    /// other clients and operators do.
    pub(crate) fn lasts(self) -> bool {
        !matches!(
            self,
            Self::TokenNotYetValid
                | Self::TokenRevoked
                | Self::AnotherUser
                | Self::TooManySockets
                | Self::TooManyConnects
                | Self::AddressRefusals
                | Self::Overloaded
        )
    }
}

impl Refusal {
    /// The refusal of a token that `jsonwebtoken` finds fault with.
    pub(super) fn of(kind: &ErrorKind) -> Self {
        match kind {
            ErrorKind::ExpiredSignature => Refusal::TokenExpired,
            ErrorKind::ImmatureSignature => Refusal::TokenNotYetValid,
            ErrorKind::InvalidIssuer => Refusal::Issuer,
            ErrorKind::InvalidAudience => Refusal::Audience,
            ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => Refusal::TokenWithoutExpiry,
            ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => Refusal::Issuer,
            ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Refusal::Audience,
            _ => Refusal::TokenInvalid,
        }
    }
}
