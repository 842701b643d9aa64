//! The `chat3-gateway` command.

use std::{process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::Context;
use axum::Router;
use chat3_gateway::{
    RabbitMqService,
    auth::{Signer, Verifier, make_up_secret},
    broker::embedded::EmbeddedExchange,
    cli::dev,
    cli::doctor,
    cli::health,
    cli::publisher::{self, Published},
    config::{Cli, Command, DevArgs, HealthArgs, PublishArgs, Secret, ServeArgs, TokenArgs},
    observability::metrics::Metrics,
    observability::telemetry,
    server::Server,
    user::{TenantId, User, UserId},
};
use futures_util::FutureExt;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use tikv_jemalloc_ctl::background_thread;
use tikv_jemallocator::Jemalloc;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

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
        Command::Serve(args) => serve(*args).await?,
        Command::Dev(args) => develop(*args).await?,
        Command::Token(args) => print_token(&args)?,
        Command::Publish(args) => return publish(&args).await,
        Command::Health(args) => check_health(&args).await?,
        Command::Doctor(args) => return doctor::examine(&args).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let terminated = termination()?;
    let _logs = telemetry::init(&args.log);
    let metrics = Metrics::new();
    anyhow::ensure!(
        args.rabbitmq.control_exchange != args.rabbitmq.exchange,
        "RABBITMQ_CONTROL_EXCHANGE is RABBITMQ_EXCHANGE: orders need an exchange of their own"
    );
    let tenant_required = args.rabbitmq.binding_keys.need_tenant();
    let verifier = Verifier::new(&args.jwt, tenant_required, &metrics)?;
    let rabbitmq = Arc::new(RabbitMqService::connect(args.rabbitmq, metrics.clone()));
    let server = Server::bind(
        &args.host,
        &args.http,
        verifier,
        rabbitmq,
        metrics,
        Router::new(),
    );
    let server = server.await?;
    server.run(terminated).await
}

async fn develop(mut args: DevArgs) -> anyhow::Result<()> {
    let terminated = termination()?;
    let _logs = telemetry::init(&args.log);
    let configured = args.jwt.jwt_secret.take();
    let configured = configured.filter(|secret| secret.expose().is_some());
    let secret = configured.unwrap_or_else(make_up_secret);
    args.jwt.jwt_secret = Some(secret.clone());
    let metrics = Metrics::new();
    let verifier = Verifier::new(&args.jwt, args.binding_keys.need_tenant(), &metrics)?;
    let secret = secret.expose().context("a made-up key is not empty")?;
    let signer = Signer::new(secret, &args.jwt);
    let user = User {
        id: UserId::parse("usr_alice")?,
        tenant: Some(TenantId::parse(dev::DEFAULT_TENANT)?),
    };
    let (token, _) = signer.sign(&user, dev::TOKEN_LIFETIME)?;
    let exchange = Arc::new(EmbeddedExchange::new(args.binding_keys));
    let routes = dev::router(exchange.clone(), signer, &args.host);
    let server = Server::bind(&args.host, &args.http, verifier, exchange, metrics, routes);
    let server = server.await?;
    let url = format!("http://localhost:{}", server.local_addr()?.port());
    println!("\n  chat3-gateway in development mode, without a broker\n");
    println!("  Page    {url}/");
    println!("  Token   {token}");
    println!("          (usr_alice, valid for 12 hours)\n");
    println!("  Connect io('{url}', {{ auth: (give) => give({{ token }}) }})");
    println!("  Publish curl {url}/dev/updates -H 'content-type: application/json' \\");
    println!("            -d '{{\"userId\":\"usr_alice\",\"eventType\":\"message.create\"}}'\n");
    if !server.local_addr()?.ip().is_loopback() {
        println!(
            "  ⚠️  Listening beyond this machine: whoever reaches it can sign in as anybody.\n"
        );
    }
    server.run(terminated).await
}

fn print_token(args: &TokenArgs) -> anyhow::Result<()> {
    let secret = args.jwt.jwt_secret.as_ref().and_then(Secret::expose);
    let secret = secret.context("no secret to sign with: set JWT_SECRET")?;
    let user = User {
        id: args.user.clone(),
        tenant: args.tenant.clone(),
    };
    let signer = Signer::new(secret, &args.jwt);
    let (token, _) = signer.sign(&user, args.expires.into())?;
    println!("{token}");
    Ok(())
}

/// Fails where nothing was reached: nobody can have received it.
async fn publish(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    let published = publisher::publish(args).await?;
    let Published {
        count,
        unrouted,
        routing_key,
    } = published;
    let routed = count - unrouted;
    println!(
        "published {count} {} for {} with key {routing_key}: {routed} reached a queue",
        args.event, args.user
    );
    if unrouted == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "chat3-gateway: no queue is bound for {unrouted} of {count}, key {routing_key}: is the user \
connected ({}, of tenant {}), and do the gateway's RABBITMQ_BINDING_KEYS match that key? \
`chat3-gateway doctor` tells. On a new broker, where this command has just made the exchange, a \
gateway finds it within seconds: publish again",
        args.user, args.tenant
    );
    Ok(match routed {
        0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

async fn check_health(args: &HealthArgs) -> anyhow::Result<()> {
    println!("{}", health::check(args).await?);
    Ok(())
}

/// Tools like `timeout` signal a process twice in one breath: that is one wish.
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
