//! Where log lines go: stdout and, as the Node service did, a log file.

use std::{fs, io, path::Path};

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, util::SubscriberInitExt,
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
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = vec![layer(config, stdout)];
    let mut warning = None;
    if !config.log_file.as_os_str().is_empty() {
        match open(&config.log_file) {
            Ok(file) => {
                let (file, guard) = tracing_appender::non_blocking(file);
                writers.push(guard);
                layers.push(layer(config, file));
            }
            Err(error) => warning = Some(error),
        }
    }
    // A second initialisation in one process (tests, embedders) keeps the first.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    if let Some(error) = warning {
        tracing::warn!(file = %config.log_file.display(), %error, "cannot write the log file, logging to stdout only");
    }
    LogGuard { _writers: writers }
}

fn layer<W>(config: &LogConfig, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(false);
    let filter = filter(config);
    match config.log_format {
        LogFormat::Text => layer.with_filter(filter).boxed(),
        LogFormat::Json => layer.json().with_filter(filter).boxed(),
    }
}

/// `RUST_LOG` if it is set and valid, else the level that `NODE_ENV` asks for.
fn filter(config: &LogConfig) -> EnvFilter {
    let default = match config.node_env {
        NodeEnv::Development => "info,chat3_gateway=debug",
        NodeEnv::Production | NodeEnv::Test => "info",
    };
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
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
