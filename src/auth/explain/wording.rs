//! How values of tokens are put into words.

use std::time::{Duration, UNIX_EPOCH};

use crate::auth::keys::Key;

/// The last second of the year 9999, the last that can be written as a date.
pub(super) const LAST_DATE: u64 = 253_402_300_799;

/// The algorithms that the keys are for, each once.
pub(super) fn known_algorithms(keys: &[&Key]) -> String {
    let mut names: Vec<String> = Vec::new();
    for algorithm in keys.iter().flat_map(|key| key.algorithms()) {
        let name = format!("{algorithm:?}");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.is_empty() {
        true => "nothing: there is no key".to_owned(),
        false => names.join(", "),
    }
}

/// The start of a text, quoted and with control characters escaped.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

/// A time as a date, and relative to now.
pub(super) fn moment(seconds: u64, now: u64) -> String {
    if seconds > LAST_DATE {
        return format!("{seconds} (after the year 9999)");
    }
    let date = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds));
    let distance = humantime::format_duration(Duration::from_secs(seconds.abs_diff(now)));
    // The two largest units say enough.
    let distance = distance.to_string();
    let distance: Vec<&str> = distance.split(' ').take(2).collect();
    let distance = distance.join(" ");
    match seconds >= now {
        true => format!("{date} (in {distance})"),
        false => format!("{date} ({distance} ago)"),
    }
}
