//! Updates at a steady rate while somebody else restarts instances, and what the sockets see
//! of it. Says `waiting`, then reads lines: `up` when an instance serves again, `end` when
//! no more restarts come. The phase ends when all sockets are back and have everything.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Bench, STEP, STRAGGLERS, due, millis};

/// How long clients may take to come back after the last restart.
const PATIENCE: Duration = Duration::from_secs(90);

impl Bench {
    pub(super) fn restarts(&mut self, per_second: u32) -> io::Result<Value> {
        let start = self.begin();
        self.fleet.comebacks.begin();
        let mut stdout = io::stdout().lock();
        writeln!(stdout, r#"{{"phase":"restarts","waiting":true}}"#)?;
        stdout.flush()?;
        drop(stdout);
        let told = lines();
        let mut up = None;
        let mut ended: Option<Instant> = None;
        let mut sent = 0;
        // Until everybody is back, and a second longer.
        let mut whole_since = Some(Instant::now());
        let mut all_back = Vec::new();
        loop {
            while let Ok((line, at)) = told.try_recv() {
                match line.trim() {
                    "up" => up = Some(at),
                    "end" => ended = Some(at),
                    other => return Err(io::Error::other(format!("{other:?} on stdin"))),
                }
            }
            let due = due(per_second, start.at.elapsed());
            for _ in sent..due {
                self.update();
            }
            sent = due;
            self.fleet.turn(STEP)?;
            if self.fleet.comebacks.away > 0 {
                whole_since = None;
            } else if whole_since.is_none() {
                let now = Instant::now();
                whole_since = Some(now);
                if let Some(up) = up {
                    all_back.push(millis(now.saturating_duration_since(up)));
                }
            }
            let Some(ended) = ended else { continue };
            let is_quiet = whole_since
                .is_some_and(|since| since.max(ended).elapsed() > Duration::from_secs(1));
            if is_quiet || ended.elapsed() > PATIENCE {
                break;
            }
        }
        let mut figures = self.end(&start, STRAGGLERS)?;
        let counts = &self.fleet.ledger.counts;
        let comebacks = &self.fleet.comebacks;
        let back = &comebacks.took;
        figures["skipped"] = counts.skipped.into();
        figures["early"] = counts.early.into();
        figures["losses"] = comebacks.losses.into();
        figures["recovered"] = comebacks.recovered.into();
        figures["refetched"] = comebacks.refused.into();
        figures["away"] = comebacks.away.into();
        figures["all_back_after_up_ms"] = all_back.last().copied().into();
        figures["back_ms"] = json!({
            "p50": back.value_at_quantile(0.5),
            "p99": back.value_at_quantile(0.99),
            "max": back.max(),
        });
        Ok(figures)
    }
}

/// The lines of stdin with the time at which they came.
fn lines() -> Receiver<(String, Instant)> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if tell.send((line, Instant::now())).is_err() {
                break;
            }
        }
    });
    told
}
