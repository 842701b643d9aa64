//! What a frontend receives of one update, by envelope, for the page to compare.
//!
//! Owns no shape of its own: it asks the code that delivers updates.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    config::Envelope,
    update::{CHAT3_UPDATE, Rejection, Update},
};

/// One event, as a socket receives it.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    event: &'static str,
    payload: Box<RawValue>,
}

/// The events of one update, in each envelope.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    auto: Vec<Event>,
    sections: Vec<Event>,
    original: Vec<Event>,
}

/// Compares what `body` becomes.
///
/// # Errors
/// When the gateway would not deliver it at all.
pub(super) fn compare(body: &str) -> Result<Comparison, Rejection> {
    Ok(Comparison {
        auto: events(body, Envelope::Auto)?,
        sections: events(body, Envelope::Sections)?,
        original: events(body, Envelope::Original)?,
    })
}

fn events(body: &str, envelope: Envelope) -> Result<Vec<Event>, Rejection> {
    let published = Update::decode(body.as_bytes())?;
    let rewritten = published.rewritten(envelope);
    let decoded = rewritten.as_deref().map(Update::decode);
    // Rewritten, the body would be nested too deep: sent as published.
    let update = decoded.and_then(Result::ok).unwrap_or(published);
    let whole = (CHAT3_UPDATE, update.body.to_owned());
    let specialised = update.specialised_event_in(envelope);
    let specialised = specialised.map(|event| (event.name, event.payload.into_owned()));
    let events = [Some(whole), specialised].into_iter().flatten();
    let events = events.map(|(event, payload)| Event { event, payload });
    Ok(events.collect())
}
