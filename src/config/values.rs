//! Values of settings, and how they are read from text.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use crate::user::{InvalidId, TenantId};

/// Shorter admin tokens can be guessed by whoever may try often.
pub const MIN_ADMIN_TOKEN_BYTES: usize = 16;

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `value` as the secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself; an empty one counts as unset (`JWT_SECRET=` in a .env file).
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

/// A file that may be left out; an empty path counts as unset (`…_FILE=` in a .env file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalPath(PathBuf);

impl OptionalPath {
    /// The path, unless it is left out.
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

pub(super) fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match delay.is_zero() || delay > Duration::from_hours(24) {
        true => Err("must be more than 0s and at most 1day".to_owned()),
        false => Ok(delay),
    }
}

/// Long enough for a quiet exchange, short enough for somebody who waits.
pub(super) fn parse_listening(text: &str) -> Result<Duration, String> {
    let listening = parse_delay(text)?;
    match listening > Duration::from_secs(600) {
        true => Err("must be at most 10min".to_owned()),
        false => Ok(listening),
    }
}

/// A setting that is off when it is empty.
pub type OptionalAddress = Option<SocketAddr>;

pub(super) fn parse_optional_address(text: &str) -> Result<OptionalAddress, String> {
    match text {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| "is no address with a port like 127.0.0.1:9090".to_owned()),
    }
}

/// A setting that is off when it is empty.
pub type OptionalTenant = Option<TenantId>;

pub(super) fn parse_optional_tenant(text: &str) -> Result<OptionalTenant, InvalidId> {
    match text {
        "" => Ok(None),
        text => TenantId::parse(text).map(Some),
    }
}

pub(super) fn parse_window(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let window = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match window > Duration::from_hours(24) {
        true => Err("must be at most 1day".to_owned()),
        false => Ok(window),
    }
}

/// Whole seconds, as the times in tokens are.
pub(super) fn parse_leeway(text: &str) -> Result<Duration, String> {
    let leeway = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match leeway.subsec_nanos() == 0 && leeway <= Duration::from_secs(600) {
        true => Ok(leeway),
        false => Err("must be whole seconds and at most 10min".to_owned()),
    }
}

/// Whole seconds, as AMQP has it; amqprs would busy-loop with one.
pub(super) fn parse_heartbeat(text: &str) -> Result<Duration, String> {
    let heartbeat = parse_delay(text)?;
    match heartbeat.subsec_nanos() == 0 && (2..=600).contains(&heartbeat.as_secs()) {
        true => Ok(heartbeat),
        false => Err("must be whole seconds from 2s to 10min".to_owned()),
    }
}

pub(super) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("must be a number over 0 and at most 1000000".to_owned()),
    }
}

pub(super) fn parse_json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))
}

/// An AMQP short string; longer ones would panic in amqprs.
pub(super) fn parse_short_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        _ => Err("must have 1 to 255 bytes".to_owned()),
    }
}

pub(super) fn parse_optional_short_name(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        text => parse_short_name(text),
    }
}

pub(super) fn parse_instance_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text.len() <= 64 && text.chars().all(allowed) {
        true => Ok(text.to_owned()),
        false => {
            Err("must have at most 64 letters, digits, dots, dashes or underscores".to_owned())
        }
    }
}
