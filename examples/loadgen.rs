//! The load generator of the benchmark. It simulates users on websockets, publishes updates
//! to RabbitMQ as Chat3 does, and checks every event of every socket for loss, duplicates,
//! order and owner while it measures. It has one thread, to leave the CPU to the server.
//!
//! Runs the phases given as arguments one after the other with the same sockets, and
//! prints a line of JSON for each. Losses are reported and do not end the run.

mod loadgen {
    pub mod bench;
    pub mod client;
    pub mod comeback;
    pub mod fleet;
    pub mod ledger;
    pub mod phase;
    pub mod process;
}
mod wire;

use std::io::{self, Write};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use loadgen::bench::Bench;
use loadgen::comeback::Backoff;
use loadgen::phase::Phase;
use serde_json::{Map, Value};

/// The binding keys of the server.
#[derive(Clone, Copy, ValueEnum)]
enum Binding {
    /// `user.{userId}.*`
    User,
}

#[derive(Parser)]
struct Options {
    /// The server's port on 127.0.0.1
    #[arg(long)]
    port: u16,
    #[arg(long)]
    amqp: String,
    #[arg(long, default_value = "chat3_updates")]
    exchange: String,
    /// Signs the users' tokens (HS256)
    #[arg(long)]
    secret: String,
    #[arg(long)]
    server_pid: i32,
    #[arg(long)]
    broker_pid: i32,
    #[arg(long)]
    users: usize,
    #[arg(long, default_value_t = 1)]
    sockets_per_user: usize,
    #[arg(long, value_enum, default_value = "user")]
    binding: Binding,
    /// Sockets that lose their connection come back as those of socket.io-client do, with their
    /// session: the first wait and the longest, in milliseconds
    #[arg(long, value_name = "MS:MS")]
    reconnect: Option<Backoff>,
    /// connect, join, idle:S, rate:R:S, saturate:S, burst:N, settle:S, churn:C:S, resubscribe,
    /// restarts:R, foreign:S
    #[arg(required = true, value_name = "PHASE")]
    phases: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let options = Options::parse();
    let Binding::User = options.binding;
    let phases = options
        .phases
        .iter()
        .map(|name| match name.parse() {
            Ok(phase) => (name.clone(), phase),
            Err(error) => {
                eprintln!("{name}: {error}");
                std::process::exit(2);
            }
        })
        .collect::<Vec<(String, Phase)>>();
    let sockets = options.users * options.sockets_per_user;
    let line = Map::from_iter([
        ("phase".into(), Value::Null),
        ("users".into(), options.users.into()),
        ("sockets".into(), sockets.into()),
    ]);
    let mut bench = Bench::new(options)?;
    for (name, phase) in phases {
        let figures = bench.run(&phase).with_context(|| name.clone())?;
        let mut line = line.clone();
        line["phase"] = name.into();
        line.extend(figures);
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", Value::Object(line))?;
        stdout.flush()?;
    }
    Ok(())
}
