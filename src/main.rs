//! The process of the `chat3-gateway` command: its memory, threads, `.env` file, signals,
//! exit codes and notifications to systemd. `cli` owns what each command does.

use std::{pin::pin, process::ExitCode, thread, time::Duration};

use anyhow::Context;
use chat3_gateway::{
    BindError, RabbitMqService, Server,
    internal::cli::{self, Cli, Command, telemetry},
};
use futures_util::FutureExt;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use sd_notify::NotifyState;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tracing::warn;

/// jemalloc returns memory to the system after a burst, where glibc's allocator keeps
/// it, and takes less time. See "Memory" in docs/SCALING.md for what was measured.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    forbid_core_dumps();
    #[cfg(feature = "jemalloc")]
    // A background thread returns memory even while all others sleep.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        eprintln!("chat3-gateway: the allocator returns memory late: {error}");
    }
    let cli = load_dotenv().and_then(|()| Cli::from_process().map_err(anyhow::Error::msg));
    let is_readable = cli.is_ok();
    let ended = cli.and_then(run_on_large_stack);
    ended.unwrap_or_else(|error| {
        // One line, causes included, reads well in a terminal and at the end of a log.
        eprintln!("chat3-gateway: {error:#}");
        let is_misconfigured = !is_readable || concerns_settings(&error);
        let command = std::env::args_os().nth(1).unwrap_or_default();
        match command.to_str() {
            // It ends with 1 when it has found a problem.
            Some("doctor") => ExitCode::from(2),
            // Docker knows 0 and 1 only.
            Some("health") => ExitCode::FAILURE,
            _ if is_misconfigured => ExitCode::from(MISCONFIGURED),
            _ => ExitCode::FAILURE,
        }
    })
}

/// The exit code for settings with which another start would fail as well: that of sysexits.h
/// for a configuration error. The systemd unit does not restart after it.
const MISCONFIGURED: u8 = 78;

/// Whether only other settings can help. A port that is taken may be free at the next start.
fn concerns_settings(error: &anyhow::Error) -> bool {
    !matches!(error.downcast_ref(), None | Some(BindError::Listen { .. }))
}

/// A core dump would hold keys, passwords and tokens. A process that is not dumpable
/// also keeps the other processes of its user from reading its memory.
fn forbid_core_dumps() {
    let no_core = Rlimit {
        current: Some(0),
        maximum: getrlimit(Resource::Core).maximum,
    };
    let limited = setrlimit(Resource::Core, no_core);
    let forbidden = limited.and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(error) = forbidden {
        eprintln!("chat3-gateway: core dumps stay on: {error}");
    }
}

/// Reads `.env` from the working directory or the nearest folder above it into the
/// environment. Variables that are set already keep their values.
fn load_dotenv() -> anyhow::Result<()> {
    let here = std::env::current_dir().context("cannot tell the working directory")?;
    let candidates = here.ancestors().map(|folder| folder.join(".env"));
    let Some(path) = candidates.into_iter().find(|file| file.is_file()) else {
        return Ok(());
    };
    let read = std::fs::read_to_string(&path);
    let text = read.with_context(|| format!("cannot read {}", path.display()))?;
    // No variable can hold a NUL, and the library would panic with the value in its message.
    if let Some((before, _)) = text.split_once('\0') {
        let number = 1 + before.matches('\n').count();
        anyhow::bail!("{}:{number} holds a NUL character", path.display());
    }
    dotenvy::from_read(text.as_bytes()).map_err(|error| match error {
        // The library's message would quote the line, which may hold a secret.
        dotenvy::Error::LineParse(line, _) => {
            let mut places = text.match_indices(&line).map(|(at, _)| &text[..at]);
            let before = places.find(|before| before.is_empty() || before.ends_with('\n'));
            let number = 1 + before.unwrap_or_default().matches('\n').count();
            anyhow::anyhow!("{}:{number} is malformed", path.display())
        }
        error => anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
    })
}

/// Runs the command on a thread whose stack is as large as [`RabbitMqService`] needs: the
/// shell's limit decides about the main thread's.
fn run_on_large_stack(cli: Cli) -> anyhow::Result<ExitCode> {
    let thread = thread::Builder::new()
        .name("runtime".to_owned())
        .stack_size(RabbitMqService::THREAD_STACK_BYTES)
        .spawn(|| run_to_end(cli));
    let ended = thread.context("cannot start")?.join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn run_to_end(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = runtime(&cli).context("cannot start")?;
    let result = runtime.block_on(run(cli));
    // Does not wait for a name look-up that hangs.
    runtime.shutdown_background();
    result
}

/// One thread needs no wake-ups across threads, which cost more than decoding an update.
/// Only `serve` can be configured to use more.
fn runtime(cli: &Cli) -> std::io::Result<Runtime> {
    let threads = match &cli.command {
        None => cli.serve.worker_threads.get(),
        Some(Command::Serve(args)) => args.worker_threads.get(),
        Some(_) => 1,
    };
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder
        .worker_threads(threads)
        .thread_stack_size(RabbitMqService::THREAD_STACK_BYTES)
        .enable_all()
        .build()
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command.unwrap_or(Command::Serve(Box::new(cli.serve))) {
        Command::Serve(args) => {
            let terminated = termination()?;
            let _logs = telemetry::init(&args.log);
            run_server(cli::serve(args.config).await?, terminated).await;
        }
        Command::Dev(args) => {
            let mut terminated = pin!(termination()?);
            let _logs = telemetry::init(&args.log);
            let mut development = cli::Development::new(*args)?;
            let mut is_over = false;
            while !is_over {
                let server = development.bind().await?;
                let stopping = async {
                    tokio::select! {
                        () = &mut terminated => is_over = true,
                        () = development.switched() => {}
                    }
                };
                run_server(server, stopping).await;
            }
        }
        Command::Token(args) => println!("{}", cli::token(&args)?),
        Command::Publish(args) => return cli::publish(&args).await,
        Command::Health(args) => println!("{}", cli::check_health(&args).await?),
        Command::Doctor(args) => return cli::examine(&args).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal arrives. Tells systemd when the server is ready and when it stops,
/// if the unit asks for that (`Type=notify`).
async fn run_server(server: Server, terminated: impl Future<Output = ()>) {
    notify_systemd(NotifyState::Ready);
    let stopping = async {
        terminated.await;
        notify_systemd(NotifyState::Stopping);
    };
    server.run(stopping).await;
}

fn notify_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd not notified");
    }
}

/// Tools like `timeout` send a signal twice within milliseconds and mean one request.
const SAME_SIGNAL: Duration = Duration::from_millis(300);

/// Completes on SIGTERM or SIGINT. A second signal ends the process at once.
fn termination() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::time::sleep(SAME_SIGNAL).await;
            // Discards the repetition.
            let _ = terminate.recv().now_or_never();
            let _ = interrupt.recv().now_or_never();
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // 128 + SIGINT, as shells report an interrupted process.
            std::process::exit(130)
        });
    })
}
