//! Where log lines go: stdout and, as the Node service did, a log file. With the
//! cargo feature `otlp`, where spans go, too.
//!
//! Spans are for the collector alone: log lines read the same with and without.

#[cfg(feature = "otlp")]
mod otlp;

use std::{fs, io, path::Path};

use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::writer::{BoxMakeWriter, MakeWriterExt},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    broker::rabbitmq::{Unreadable, is_of_amqprs},
    cli::command_line::{LogConfig, LogFormat, NodeEnv},
};

/// Keeps the writer threads alive; dropping it flushes what they still hold.
#[must_use = "logs stop when the guard is dropped"]
pub struct LogGuard {
    // Before the writers, which write what it has to say at its end.
    #[cfg(feature = "otlp")]
    _export: Option<otlp::Export>,
    _writers: Vec<WorkerGuard>,
}

/// Lines that may wait for a slow disk or terminal; more are lost. The room for them
/// is taken at once: 32 bytes for each, and the library's own 128,000 are 4 MB.
const WAITING_LINES: usize = 16_384;

/// Installs the process's logger. An unwritable log file is a warning: chat
/// must not stop because a disk is full.
pub fn init(config: &LogConfig) -> LogGuard {
    let (stdout, stdout_guard) = non_blocking(io::stdout());
    let mut writers = vec![stdout_guard];
    let mut problem = None;
    let writer = match &config.log_file {
        path if path.as_os_str().is_empty() => BoxMakeWriter::new(stdout),
        path => match open(path) {
            Ok(file) => {
                let (file, guard) = non_blocking(file);
                writers.push(guard);
                BoxMakeWriter::new(stdout.and(file))
            }
            Err(error) => {
                problem = Some(error);
                BoxMakeWriter::new(stdout)
            }
        },
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(writer);
    let lines = match config.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // The hint lets what is below the level end at a static; without it, every
    // frame that tungstenite might trace would be looked at.
    let all_events = filter_fn(is_event).with_max_level_hint(LevelFilter::TRACE);
    let events = filter(config).and(all_events);
    let subscriber = tracing_subscriber::registry()
        .with(lines.with_filter(events))
        .with(Unreadable::layer());
    #[cfg(feature = "otlp")]
    let (export, failure) = match otlp::Export::start() {
        Ok(export) => (export, None),
        Err(error) => (None, Some(error)),
    };
    #[cfg(feature = "otlp")]
    let subscriber = subscriber.with(export.as_ref().map(|export| {
        // Of this crate only: the export's own requests must not become spans.
        let own = filter_fn(|metadata| metadata.target().starts_with("chat3_gateway"))
            .with_max_level_hint(LevelFilter::TRACE);
        let spans = tracing_opentelemetry::layer().with_tracer(export.tracer());
        spans.with_filter(filter(config).and(own))
    }));
    // An error means that an embedder has installed its own logger, which stays.
    let _ = subscriber.try_init();
    #[cfg(feature = "otlp")]
    if let Some(error) = failure {
        tracing::warn!(%error, "Spans are not exported");
    }
    if let Some(error) = problem {
        let file = config.log_file.display();
        tracing::warn!(%file, %error, "cannot write the log file, logging to stdout only");
    }
    LogGuard {
        #[cfg(feature = "otlp")]
        _export: export,
        _writers: writers,
    }
}

/// Of a log line; but tungstenite and amqprs trace frames, tokens and passwords included,
/// whatever the directives of `RUST_LOG` say.
fn is_event(metadata: &tracing::Metadata<'_>) -> bool {
    let may_hold_tokens =
        metadata.target().starts_with("tungstenite") && *metadata.level() == Level::TRACE;
    metadata.is_event() && !may_hold_tokens && !is_of_amqprs(metadata)
}

/// `RUST_LOG` if it is set and valid, else the level that `NODE_ENV` asks for.
/// An empty one counts as unset.
fn filter(config: &LogConfig) -> EnvFilter {
    let default = match config.node_env {
        NodeEnv::Development => "info,chat3_gateway=debug",
        NodeEnv::Production | NodeEnv::Test => "info",
    };
    let directives = std::env::var("RUST_LOG").unwrap_or_default();
    if directives.is_empty() {
        return EnvFilter::new(default);
    }
    EnvFilter::try_new(&directives).unwrap_or_else(|error| {
        eprintln!("chat3-gateway: RUST_LOG is ignored: {error}");
        EnvFilter::new(default)
    })
}

/// Writes in a thread of its own, for as long as the guard lives.
fn non_blocking(writer: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .finish(writer)
}

/// Appends, so that a restart keeps the history and `copytruncate` rotation works.
fn open(path: &Path) -> io::Result<fs::File> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(path)
}
