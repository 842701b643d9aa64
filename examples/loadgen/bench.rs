//! The phases: what is published when, how long it may take, and the resulting figures.
//! The fleet owns the sockets and the ledger accounts for the events; a phase only uses
//! them.

mod foreign;
mod probes;
mod restarts;

use std::io::{self, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Map, Value, json};

use self::probes::Probes;
use super::fleet::{Fleet, Visitors};
use super::ledger::Ledger;
use super::phase::Phase;
use super::process::Watched;
use crate::Options;

/// Handshakes at a time.
const IN_FLIGHT: usize = 256;
const CONNECT_PATIENCE: Duration = Duration::from_secs(180);
const PROBE_PATIENCE: Duration = Duration::from_secs(180);
const STRAGGLERS: Duration = Duration::from_secs(10);
const BURST_PATIENCE: Duration = Duration::from_secs(60);
const CHURN_BACKGROUND: u32 = 500;
const STEP: Duration = Duration::from_millis(1);

pub struct Bench {
    fleet: Fleet,
    server: Watched,
    broker: Watched,
    users: usize,
    sockets: usize,
    sockets_per_user: usize,
    rss_before: u64,
    /// Whose turn it is to get an update.
    turn: usize,
}

/// The resources used when a phase began.
struct Start {
    at: Instant,
    clock: u64,
    server: Duration,
    broker: Duration,
}

impl Bench {
    /// Connects to RabbitMQ only.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let mut bench = Self {
            server: Watched::new(options.server_pid),
            broker: Watched::new(options.broker_pid),
            users: options.users,
            sockets: options.users * options.sockets_per_user,
            sockets_per_user: options.sockets_per_user,
            rss_before: 0,
            turn: 0,
            fleet: Fleet::new(options)?,
        };
        bench.fleet.connect_broker().context("RabbitMQ")?;
        Ok(bench)
    }

    /// The phase's figures.
    pub fn run(&mut self, phase: &Phase) -> anyhow::Result<Map<String, Value>> {
        let mut figures = match *phase {
            Phase::Connect => self.connect()?,
            Phase::Join => self.join()?,
            Phase::Idle(time) => self.idle(time)?,
            Phase::Settle(time) => self.settle(time)?,
            Phase::Rate { per_second, time } => self.rate(per_second, time)?,
            Phase::Saturate(time) => self.saturate(time)?,
            Phase::Burst(updates) => self.burst(updates)?,
            Phase::Churn { per_second, time } => self.churn(per_second, time)?,
            Phase::Resubscribe => self.resubscribe()?,
            Phase::Restarts(per_second) => self.restarts(per_second)?,
            Phase::Foreign(time) => self.foreign(time)?,
        };
        figures["server_rss_kb"] = self.server.rss_kb().into();
        match figures {
            Value::Object(figures) => Ok(figures),
            _ => Ok(Map::new()),
        }
    }

    fn connect(&mut self) -> anyhow::Result<Value> {
        self.rss_before = self.server.rss_kb();
        self.fleet.ledger.probe();
        let mut probes = Probes::new();
        let users = self.users;
        let start = Instant::now();
        // The last one of a user's sockets decides.
        let mut figures = self.open_all(|fleet| probes.publish(fleet, users, Ledger::has_all))?;
        let incomplete = self.probe(probes)?;
        figures["subscribed_ms"] = millis(start.elapsed()).into();
        figures["server_rss_kb_before"] = self.rss_before.into();
        self.finish_probing(incomplete, &mut figures)?;
        Ok(figures)
    }

    /// Connects as well, and believes the server that whoever is connected is subscribed.
    fn join(&mut self) -> anyhow::Result<Value> {
        self.rss_before = self.server.rss_kb();
        self.fleet.ledger.begin();
        self.open_all(|_| {})
    }

    /// Opens all sockets; `meanwhile` is called at every step.
    fn open_all(&mut self, mut meanwhile: impl FnMut(&mut Fleet)) -> anyhow::Result<Value> {
        let start = Instant::now();
        let mut opened = 0;
        let connected = loop {
            let settled = self.fleet.joined + self.fleet.refused;
            if settled == self.sockets || start.elapsed() > CONNECT_PATIENCE {
                break start.elapsed();
            }
            while opened < self.sockets && opened < settled + IN_FLIGHT {
                self.fleet.open_member(opened);
                opened += 1;
            }
            meanwhile(&mut self.fleet);
            self.fleet.turn(STEP)?;
        };
        anyhow::ensure!(self.fleet.joined > 0, "no socket could be connected");
        Ok(json!({
            "connected_ms": millis(connected),
            "connects_per_second": per_second(count(self.fleet.joined), connected),
            "refused": self.sockets - self.fleet.joined,
        }))
    }

    /// Publishes to users not yet reached until all are. Returns how many are not.
    fn probe(&mut self, mut probes: Probes) -> io::Result<usize> {
        let start = Instant::now();
        while self.fleet.ledger.unreached > 0 && start.elapsed() < PROBE_PATIENCE {
            probes.publish(&mut self.fleet, self.users, |_, _| true);
            self.fleet.turn(STEP)?;
        }
        let unreached = (0..self.users).filter(|&user| !self.fleet.ledger.reached(user));
        Ok(unreached.count())
    }

    /// Lets the last probes arrive, so that they don't count in the next phase.
    fn finish_probing(&mut self, incomplete: usize, figures: &mut Value) -> io::Result<()> {
        if incomplete > 0 {
            figures["incomplete"] = incomplete.into();
        }
        self.wait(STRAGGLERS, |fleet| fleet.ledger.quiet())?;
        self.fleet.ledger.finish();
        let counts = &self.fleet.ledger.counts;
        for (name, count) in [
            ("lost", counts.lost),
            ("doubled", counts.doubled),
            ("misordered", counts.misordered),
            ("foreign", counts.foreign),
            ("closed", counts.closed),
        ] {
            figures[name] = count.into();
        }
        Ok(())
    }

    fn idle(&mut self, time: Duration) -> io::Result<Value> {
        let start = self.begin();
        self.wait(time, |_| false)?;
        let growth = count(usize::try_from(self.server.rss_kb()).unwrap_or(usize::MAX))
            - count(usize::try_from(self.rss_before).unwrap_or(usize::MAX));
        Ok(json!({
            "kb_per_socket": rounded(growth / count(self.sockets)),
            "server_cpu_ms": millis(self.server.cpu().saturating_sub(start.server)),
            "closed": self.fleet.ledger.counts.closed,
        }))
    }

    fn settle(&mut self, time: Duration) -> io::Result<Value> {
        self.wait(time, |_| false)?;
        Ok(json!({}))
    }

    fn rate(&mut self, per_second: u32, time: Duration) -> io::Result<Value> {
        let start = self.begin();
        self.pace(per_second, time, |_| {})?;
        self.end(&start, STRAGGLERS)
    }

    fn saturate(&mut self, time: Duration) -> io::Result<Value> {
        let by_users = (4 * self.users).clamp(500, 5000);
        let by_sockets = (50_000 / self.sockets_per_user).max(1);
        let window = u32::try_from(by_users.min(by_sockets)).unwrap_or(u32::MAX);
        let start = self.begin();
        while start.at.elapsed() < time && self.fleet.ledger.alive() {
            while self.fleet.ledger.outstanding < window && self.fleet.writable() {
                self.update();
            }
            self.fleet.turn(Duration::from_millis(100))?;
        }
        self.end(&start, STRAGGLERS)
    }

    fn burst(&mut self, updates: u32) -> io::Result<Value> {
        let start = self.begin();
        while self.fleet.ledger.counts.updates < updates && start.at.elapsed() < BURST_PATIENCE {
            while self.fleet.ledger.counts.updates < updates && self.fleet.writable() {
                self.update();
            }
            self.fleet.turn(Duration::from_millis(100))?;
        }
        let left = BURST_PATIENCE.saturating_sub(start.at.elapsed());
        self.end(&start, left)
    }

    fn churn(&mut self, connects_per_second: u32, time: Duration) -> io::Result<Value> {
        self.fleet.visitors = Visitors::default();
        let start = self.begin();
        self.pace(CHURN_BACKGROUND, time, |fleet| {
            let due = due(connects_per_second, start.at.elapsed().min(time));
            for _ in fleet.visitors.connects..due {
                fleet.open_visitor();
            }
        })?;
        self.wait(2 * STRAGGLERS, |fleet| fleet.visitors.present == 0)?;
        let mut figures = self.end(&start, STRAGGLERS)?;
        let visitors = &self.fleet.visitors;
        figures["churn_connects"] = visitors.connects.into();
        figures["churn_refused"] = visitors.refused.into();
        figures["churn_missed"] = visitors.missed.into();
        Ok(figures)
    }

    fn resubscribe(&mut self) -> io::Result<Value> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, r#"{{"phase":"resubscribe","waiting":true}}"#)?;
        stdout.flush()?;
        let (pid, start) = self.told_pid()?;
        self.broker = Watched::new(pid);
        while let Err(error) = self.fleet.connect_broker() {
            if start.elapsed() > PROBE_PATIENCE {
                return Err(error);
            }
            self.fleet.turn(Duration::from_millis(100))?;
        }
        // Sockets that closed while nothing was published count too.
        let closed = self.fleet.ledger.counts.closed;
        self.fleet.ledger.probe();
        let incomplete = self.probe(Probes::new())?;
        let mut figures = json!({ "resubscribed_ms": millis(start.elapsed()) });
        self.fleet.ledger.counts.closed += closed;
        self.finish_probing(incomplete, &mut figures)?;
        Ok(figures)
    }

    /// Serves the sockets until the new broker's pid has been read from stdin.
    fn told_pid(&mut self) -> io::Result<(i32, Instant)> {
        self.fleet.ledger.begin();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = io::stdin().read_line(&mut line).map(|_| line);
            let _ = tell.send((read, Instant::now()));
        });
        loop {
            if let Ok((line, at)) = told.try_recv() {
                let pid = line?.trim().parse().map_err(io::Error::other)?;
                return Ok((pid, at));
            }
            self.fleet.turn(Duration::from_millis(5))?;
        }
    }

    fn begin(&mut self) -> Start {
        self.fleet.ledger.begin();
        Start {
            at: Instant::now(),
            clock: self.fleet.now(),
            server: self.server.cpu(),
            broker: self.broker.cpu(),
        }
    }

    /// Publishes at a steady rate; `also` is called at every step.
    fn pace(
        &mut self,
        per_second: u32,
        time: Duration,
        mut also: impl FnMut(&mut Fleet),
    ) -> io::Result<()> {
        let start = Instant::now();
        let mut sent = 0;
        while sent < due(per_second, time) || start.elapsed() < time {
            let due = due(per_second, start.elapsed().min(time));
            for _ in sent..due {
                self.update();
            }
            sent = sent.max(due);
            also(&mut self.fleet);
            self.fleet.turn(STEP)?;
        }
        Ok(())
    }

    fn update(&mut self) {
        self.fleet.update(self.turn);
        self.turn = (self.turn + 1) % self.users;
    }

    fn wait(&mut self, time: Duration, done: impl Fn(&Fleet) -> bool) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < time && !done(&self.fleet) {
            let left = time.saturating_sub(start.elapsed());
            self.fleet.turn(left.min(Duration::from_millis(10)))?;
        }
        Ok(())
    }

    /// Waits for the events on their way, and returns the figures.
    fn end(&mut self, start: &Start, patience: Duration) -> io::Result<Value> {
        self.wait(patience, |fleet| fleet.ledger.outstanding == 0)?;
        self.fleet.ledger.finish();
        let ledger = &self.fleet.ledger;
        let counts = &ledger.counts;
        let took = Duration::from_micros(counts.last.saturating_sub(start.clock));
        let each =
            |used: Duration| rounded(used.as_secs_f64() * 1e6 / f64::from(counts.updates.max(1)));
        Ok(json!({
            "updates": counts.updates,
            "events": counts.events,
            "expected": counts.expected,
            "lost": counts.lost,
            "doubled": counts.doubled,
            "misordered": counts.misordered,
            "foreign": counts.foreign,
            "closed": counts.closed,
            "seconds": (took.as_secs_f64() * 1000.0).round() / 1000.0,
            "per_second": per_second(counts.delivered.into(), took),
            "events_per_second": per_second(counts.events.into(), took),
            "server_cpu_us_per_update": each(self.server.cpu().saturating_sub(start.server)),
            "broker_cpu_us_per_update": each(self.broker.cpu().saturating_sub(start.broker)),
            "latency_us": {
                "p50": ledger.latency.value_at_quantile(0.5),
                "p99": ledger.latency.value_at_quantile(0.99),
                "p999": ledger.latency.value_at_quantile(0.999),
                "max": ledger.latency.max(),
            },
        }))
    }
}

/// How much of a steady rate is due after a time.
fn due(per_second: u32, elapsed: Duration) -> u32 {
    let due = u128::from(per_second) * elapsed.as_micros() / 1_000_000;
    u32::try_from(due).unwrap_or(u32::MAX)
}

fn per_second(count: f64, time: Duration) -> f64 {
    match time.is_zero() {
        true => 0.0,
        false => rounded(count / time.as_secs_f64()),
    }
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
