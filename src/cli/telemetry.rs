//! Writes log lines to stdout and, as the Node service did, to a log file. With the cargo
//! feature `otlp`, exports spans, too.
//!
//! Only the collector sees spans: they do not change log lines.

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

/// Keeps the writer threads alive. Dropping the guard flushes the lines that wait.
#[must_use = "logs stop when the guard is dropped"]
pub struct LogGuard {
    // Dropped before the writers, which still write the last log lines of the export.
    #[cfg(feature = "otlp")]
    _export: Option<otlp::Export>,
    _writers: Vec<WorkerGuard>,
}

/// Log lines that may wait for a slow disk or terminal; further ones are lost. The queue is
/// allocated at once with 32 bytes a line: the library's default of 128,000 takes 4 MB.
const WAITING_LINES: usize = 16_384;

/// Installs the process's logger. A log file that cannot be written causes a warning: chat
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
    // With the hint, events below the level end at a check of a static. Without it, each
    // frame that tungstenite traces would pass through the filters.
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
        // Only spans of this crate: requests of the export itself must not become spans.
        let own = filter_fn(|metadata| metadata.target().starts_with("chat3_gateway"))
            .with_max_level_hint(LevelFilter::TRACE);
        let spans = tracing_opentelemetry::layer().with_tracer(export.tracer());
        spans.with_filter(filter(config).and(own))
    }));
    // An error means that a logger is installed already, which stays.
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

/// Whether this is an event that may become a log line. The traces of tungstenite and
/// amqprs never may, whatever `RUST_LOG` says: their frames hold tokens and passwords.
fn is_event(metadata: &tracing::Metadata<'_>) -> bool {
    let may_hold_tokens =
        metadata.target().starts_with("tungstenite") && *metadata.level() == Level::TRACE;
    metadata.is_event() && !may_hold_tokens && !is_of_amqprs(metadata)
}

/// `RUST_LOG` if it is set and valid, otherwise the level that `NODE_ENV` selects. An empty
/// `RUST_LOG` counts as unset.
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

/// Writes in a separate thread for as long as the guard lives.
fn non_blocking(writer: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .finish(writer)
}

/// Opens the file to append, so that a restart keeps its lines and rotation by
/// `copytruncate` works.
fn open(path: &Path) -> io::Result<fs::File> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(path)
}
