//! Types that several settings share: secrets, and values that count as unset when empty.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::user::TenantId;

/// Shorter admin tokens can be guessed with many tries.
pub const MIN_ADMIN_TOKEN_BYTES: usize = 16;

/// Shorter secrets can be guessed: whoever has a `pid` can try without asking the service.
const MIN_RECOVERY_SECRET_BYTES: usize = 16;

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Makes a secret of `value`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself. An empty one counts as unset (`JWT_SECRET=` in a .env file).
    pub fn expose(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|secret| !secret.is_empty())
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Secrets that take each other's place over time, the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoverySecrets(pub Vec<Secret>);

impl From<&str> for RecoverySecrets {
    /// Reads a comma-separated list; empty ones count as unset.
    fn from(list: &str) -> Self {
        let secrets = list.split(',').map(str::trim);
        Self(
            secrets
                .filter(|secret| !secret.is_empty())
                .map(Secret::from)
                .collect(),
        )
    }
}

impl RecoverySecrets {
    /// Whether one of them is so short that it can be guessed.
    pub fn are_weak(&self) -> bool {
        let mut exposed = self.0.iter().filter_map(Secret::expose);
        exposed.any(|secret| secret.len() < MIN_RECOVERY_SECRET_BYTES)
    }
}

/// An optional file. An empty path counts as unset (`…_FILE=` in a .env file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalPath(PathBuf);

impl From<PathBuf> for OptionalPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl OptionalPath {
    /// The path, unless it is unset.
    pub fn path(&self) -> Option<&Path> {
        Some(self.0.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

impl FromStr for OptionalPath {
    type Err = Infallible;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        Ok(Self(path.into()))
    }
}

/// An address; an empty setting is `None`.
pub type OptionalAddress = Option<SocketAddr>;

/// A tenant; an empty setting is `None`.
pub type OptionalTenant = Option<TenantId>;
