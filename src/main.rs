//! The process of the `chat3-gateway` command: its memory, threads, `.env` file, signals,
//! exit codes, and what systemd is told. What each command does is in `cli`.

use std::{process::ExitCode, thread, time::Duration};

use anyhow::Context;
use chat3_gateway::{
    RabbitMqService, Server,
    internal::cli::{self, Cli, Command, telemetry},
};
use futures_util::FutureExt;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use sd_notify::NotifyState;
use tikv_jemalloc_ctl::background_thread;
use tikv_jemallocator::Jemalloc;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tracing::warn;

/// Returns memory to the system after a burst, where glibc's keeps it, and costs
/// less time. See "Memory" in docs/SCALING.md for what was measured.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    forbid_core_dumps();
    // Its own thread does the returning. Without one, only busy threads would.
    if let Err(error) = background_thread::write(true) {
        eprintln!("chat3-gateway: the allocator returns memory late: {error}");
    }
    let cli = load_dotenv().and_then(|()| Cli::from_process().map_err(anyhow::Error::msg));
    match cli.and_then(on_a_thread_of_its_own) {
        Ok(code) => code,
        Err(error) => {
            // One line, causes included: for the last line of a log as well as a terminal.
            eprintln!("chat3-gateway: {error:#}");
            match std::env::args_os().nth(1) {
                // Whose 1 means that it found something.
                Some(command) if command == "doctor" => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// A core dump would hold keys, passwords and tokens. Also keeps other processes of
/// this user from reading the memory.
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

/// Reads `.env`, here or in the nearest folder above, into the environment; what
/// is set already wins.
fn load_dotenv() -> anyhow::Result<()> {
    let here = std::env::current_dir().context("cannot tell the working directory")?;
    let candidates = here.ancestors().map(|folder| folder.join(".env"));
    let Some(path) = candidates.into_iter().find(|file| file.is_file()) else {
        return Ok(());
    };
    let read = std::fs::read_to_string(&path);
    let text = read.with_context(|| format!("cannot read {}", path.display()))?;
    // No variable can hold it, and the library would panic, with the value in its words.
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

/// The main thread's stack is as large as the shell's limit says; see the constant.
fn on_a_thread_of_its_own(cli: Cli) -> anyhow::Result<ExitCode> {
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
    // Without waiting for a name look-up that hangs.
    runtime.shutdown_background();
    result
}

/// One thread needs no wake-ups across threads, which cost more than decoding an
/// update; only `serve` may be asked for more.
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
            let terminated = termination()?;
            let _logs = telemetry::init(&args.log);
            run_server(cli::develop(*args).await?, terminated).await;
        }
        Command::Token(args) => println!("{}", cli::token(&args)?),
        Command::Publish(args) => return cli::publish(&args).await,
        Command::Health(args) => println!("{}", cli::check_health(&args).await?),
        Command::Doctor(args) => return cli::examine(&args).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal, and tells systemd, where it is there and asked to be told
/// (`Type=notify`).
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

/// Tools like `timeout` signal a process twice in quick succession, which must count once.
const SAME_SIGNAL: Duration = Duration::from_millis(300);

/// Completes on SIGTERM or SIGINT; a second one ends the process at once.
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
            // What arrived meanwhile.
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
