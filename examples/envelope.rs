//! Measures what an envelope costs for each update, on one thread: decoding the body as
//! published, and the additional cost of rewriting and decoding it again.
//!
//! ```sh
//! cargo run --locked --release --example envelope -- tests/fixtures/2026-09-28.json
//! ```

use std::{
    fs,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use chat3_gateway::internal::update::{Envelope, Update};
use serde_json::Value;

/// The allocator of the command, since allocation dominates what is measured.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Repetitions in one measurement, which is shorter than a time slice of the scheduler.
const REPETITIONS: u32 = 100;

/// Measurements of each case. The fastest counts, since disturbances only slow one down.
const MEASUREMENTS: u32 = 1_000;

fn main() -> Result<()> {
    let path = std::env::args()
        .nth(1)
        .context("a file of fixtures is missing")?;
    let generation: Value = serde_json::from_slice(&fs::read(path)?)?;
    let updates = generation["updates"].as_array().context("no updates")?;
    println!("Nanoseconds for each update; rewriting alone, and all that is added to auto.");
    println!("   auto   original    added   sections    added  bytes");
    for fixture in updates {
        let body = fixture["body"].to_string();
        let update = Update::decode(body.as_bytes()).ok().context("no update")?;
        let auto = quickest(|| read(&body, Envelope::Auto));
        let costs = |envelope| {
            let alone = quickest(|| _ = black_box(black_box(&update).rewritten(envelope)));
            let all = quickest(|| read(&body, envelope));
            (alone.as_nanos(), all.saturating_sub(auto).as_nanos())
        };
        let (original, sections) = (costs(Envelope::Original), costs(Envelope::Sections));
        println!(
            "{:>7} {:>10} {:>8} {:>10} {:>8} {:>6}  {}",
            auto.as_nanos(),
            original.0,
            original.1,
            sections.0,
            sections.1,
            body.len(),
            fixture["name"].as_str().unwrap_or_default()
        );
    }
    Ok(())
}

/// What happens to a body before its events are encoded.
fn read(body: &str, envelope: Envelope) {
    let update = Update::decode(body.as_bytes()).expect("an update");
    let rewritten = update.rewritten(envelope);
    let decoded = rewritten.as_deref().map(Update::decode);
    let sent = match &decoded {
        Some(Ok(rewritten)) => rewritten,
        _ => &update,
    };
    black_box(sent.specialised_event_in(envelope));
}

fn quickest(mut work: impl FnMut()) -> Duration {
    let measure = |_| {
        let start = Instant::now();
        for _ in 0..REPETITIONS {
            work();
        }
        start.elapsed() / REPETITIONS
    };
    (0..MEASUREMENTS).map(measure).min().unwrap_or_default()
}
