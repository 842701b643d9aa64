//! Where log lines go: stdout and, as the Node service did, a log file.

use std::{fs, io, path::Path};

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{
    EnvFilter,
    fmt::writer::{BoxMakeWriter, MakeWriterExt},
};

use crate::config::{LogConfig, LogFormat, NodeEnv};

/// Keeps the writer threads alive; dropping it flushes what they still hold.
#[must_use = "logs stop when the guard is dropped"]
pub struct LogGuard {
    _writers: Vec<WorkerGuard>,
}

/// Installs the process's logger. An unwritable log file is a warning: chat
/// must not stop because a disk is full.
pub fn init(config: &LogConfig) -> LogGuard {
    let (stdout, stdout_guard) = tracing_appender::non_blocking(io::stdout());
    let mut writers = vec![stdout_guard];
    let mut problem = None;
    let writer = match &config.log_file {
        path if path.as_os_str().is_empty() => BoxMakeWriter::new(stdout),
        path => match open(path) {
            Ok(file) => {
                let (file, guard) = tracing_appender::non_blocking(file);
                writers.push(guard);
                BoxMakeWriter::new(stdout.and(file))
            }
            Err(error) => {
                problem = Some(error);
                BoxMakeWriter::new(stdout)
            }
        },
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(config))
        .with_ansi(false)
        .with_writer(writer);
    // An error means that an embedder has installed its own logger, which stays.
    let _ = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Some(error) = problem {
        let file = config.log_file.display();
        tracing::warn!(%file, %error, "cannot write the log file, logging to stdout only");
    }
    LogGuard { _writers: writers }
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
    let filter = EnvFilter::try_new(&directives).unwrap_or_else(|error| {
        eprintln!("chat3-gateway: RUST_LOG is ignored: {error}");
        EnvFilter::new(default)
    });
    // It traces every frame, tokens included.
    filter.add_directive("tungstenite=debug".parse().expect("a valid directive"))
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
