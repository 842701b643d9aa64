//! Parsers for the values of settings on the command line, with their limits.

use std::time::Duration;

use super::{OptionalAddress, OptionalTenant};
use crate::user::{InvalidId, TenantId};

/// Writes a duration as a default value, in the form that [`parse_delay`] reads.
pub fn text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

pub fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match delay.is_zero() || delay > Duration::from_hours(24) {
        true => Err("must be more than 0s and at most 1day".to_owned()),
        false => Ok(delay),
    }
}

pub fn parse_optional_address(text: &str) -> Result<OptionalAddress, String> {
    match text {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| "is no address with a port like 127.0.0.1:9090".to_owned()),
    }
}

pub fn parse_optional_tenant(text: &str) -> Result<OptionalTenant, InvalidId> {
    match text {
        "" => Ok(None),
        text => TenantId::parse(text).map(Some),
    }
}

pub fn parse_window(text: &str) -> Result<Duration, String> {
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
pub fn parse_leeway(text: &str) -> Result<Duration, String> {
    let leeway = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match leeway.subsec_nanos() == 0 && leeway <= Duration::from_secs(600) {
        true => Ok(leeway),
        false => Err("must be whole seconds and at most 10min".to_owned()),
    }
}

/// Whole seconds, as AMQP transmits them, and at least two: amqprs busy-loops with one.
pub fn parse_heartbeat(text: &str) -> Result<Duration, String> {
    let heartbeat = parse_delay(text)?;
    match heartbeat.subsec_nanos() == 0 && (2..=600).contains(&heartbeat.as_secs()) {
        true => Ok(heartbeat),
        false => Err("must be whole seconds from 2s to 10min".to_owned()),
    }
}

/// An AMQP short string: amqprs panics on a longer one.
pub fn parse_short_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        _ => Err("must have 1 to 255 bytes".to_owned()),
    }
}

pub fn parse_optional_short_name(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        text => parse_short_name(text),
    }
}

/// A stream after which an exchange and queues with longer names are called.
pub fn parse_stream_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=140 => Ok(text.to_owned()),
        _ => Err("must have 1 to 140 bytes".to_owned()),
    }
}

/// The name of a stream whose markers' exchange has a longer name.
pub fn parse_optional_stream_name(text: &str) -> Result<String, String> {
    match text.len() {
        0..=247 => Ok(text.to_owned()),
        _ => Err("must have at most 247 bytes".to_owned()),
    }
}

/// An exchange after which queues with longer names are called.
pub fn parse_presence_exchange(text: &str) -> Result<String, String> {
    match text.len() {
        0..=200 => Ok(text.to_owned()),
        _ => Err("must have at most 200 bytes".to_owned()),
    }
}

/// Long enough for a reload, and for the rate of events that one client can cause.
pub fn parse_grace(text: &str) -> Result<Duration, String> {
    let grace = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (Duration::from_secs(1)..=Duration::from_hours(1)).contains(&grace) {
        true => Ok(grace),
        false => Err("must be from 1s to 1h".to_owned()),
    }
}

/// How long orders are kept: no order holds for longer than a year.
pub fn parse_kept(text: &str) -> Result<Duration, String> {
    let kept = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (60..=366 * 24 * 60 * 60).contains(&kept.as_secs()) {
        true => Ok(kept),
        false => Err("must be from 1min to 366days".to_owned()),
    }
}

pub fn parse_instance_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text.len() <= 64 && text.chars().all(allowed) {
        true => Ok(text.to_owned()),
        false => {
            Err("must have at most 64 letters, digits, dots, dashes or underscores".to_owned())
        }
    }
}
