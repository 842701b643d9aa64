//! Every setting: command line, environment, defaults, and their validation.
//!
//! Values are parsed once, into types that cannot hold a wrong value; the rest
//! of the crate never sees an unparsed setting. Each environment variable is
//! also a flag. Secrets appear in no help text, `Debug` output or error.
//!
//! Imports nothing of this crate but the ids of [`crate::user`].

mod amqp_url;
mod binding_keys;
mod cors_origins;
mod jwks_source;
mod trusted_proxies;

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    fmt::Write as _,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

pub use amqp_url::{AmqpUrl, InvalidAmqpUrl};
pub use binding_keys::{BindingKeys, InvalidBindingKeys};
use clap::{
    ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum,
    builder::{BoolishValueParser, NonEmptyStringValueParser},
    error::{ContextKind, ContextValue},
};
pub use cors_origins::{CorsOrigins, InvalidOrigin};
pub use jwks_source::JwksSource;
pub use trusted_proxies::{InvalidNetwork, TrustedProxies};

use crate::user::{TenantId, UserId};

/// Delivers Chat3 updates from RabbitMQ to browsers over Socket.IO.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Without a command, `serve` is run. Settings come from flags, then from the \
environment, then from a .env file in the working directory (or above it).\n\n\
Try it without a broker:  chat3-gateway dev"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

impl Cli {
    /// Parses the process's arguments and environment. Prints and exits for
    /// `--help` and `--version`.
    ///
    /// # Errors
    /// A mistake, in one line that names flag and variable. The value is repeated
    /// only if it cannot be a secret.
    pub fn from_process() -> Result<Self, String> {
        Self::try_parse().map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            describe(&error)
        })
    }
}

fn describe(error: &clap::Error) -> String {
    let invalid = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = invalid(ContextKind::InvalidArg).and_then(|arg| arg.split([' ', '=']).next());
    let argument = flag.and_then(|flag| find_argument(&Cli::command(), flag));
    let (Some(flag), Some(argument), Some(value)) =
        (flag, argument, invalid(ContextKind::InvalidValue))
    else {
        // Not about a value: clap's first paragraph says it, without the usage.
        let text = error.to_string();
        let paragraph = text.split("\n\n").next().unwrap_or(&text);
        let line = paragraph.lines().map(str::trim).collect::<Vec<_>>();
        return format!(
            "{} (see --help)",
            line.join(" ").trim_start_matches("error: ")
        );
    };
    let mut text = match argument.get_env() {
        Some(variable) => format!("{} ({flag})", variable.to_string_lossy()),
        None => flag.to_owned(),
    };
    if !argument.is_hide_env_values_set() {
        write!(text, ": {value:?}").expect("writing to a String does not fail");
    }
    let reason = match (error.get(ContextKind::ValidValue), error.source()) {
        (Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
            format!("is none of {}", valid.join(", "))
        }
        (_, Some(source)) => source.to_string(),
        _ => "must have a value".to_owned(),
    };
    text + " " + &reason
}

fn find_argument(command: &clap::Command, flag: &str) -> Option<clap::Arg> {
    let is_it = |argument: &&clap::Arg| {
        let long = argument.get_long();
        long.is_some_and(|long| flag.strip_prefix("--") == Some(long))
    };
    let own = command.get_arguments().find(is_it).cloned();
    let find_in = |command| find_argument(command, flag);
    own.or_else(|| command.get_subcommands().find_map(find_in))
}

/// What the program is asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve browsers from RabbitMQ (the default)
    Serve(Box<ServeArgs>),
    /// Serve with no broker: an in-process exchange, a development key and a page to try it
    Dev(Box<DevArgs>),
    /// Print a JWT for a user, signed with the configured secret
    Token(TokenArgs),
    /// Publish updates to RabbitMQ in Chat3's format
    Publish(PublishArgs),
    /// Ask the gateway on this machine how it is: exit code 0 or 1, for container health checks
    Health(HealthArgs),
    /// Check settings, RabbitMQ, what is published there, keys for tokens and this machine
    Doctor(Box<DoctorArgs>),
}

/// The settings of `serve`.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub rabbitmq: RabbitMqConfig,
    /// Address to listen on
    #[arg(long, env, value_name = "HOST", default_value = "0.0.0.0", help_heading = LISTENER)]
    pub host: String,
    /// Threads that serve; one costs the least per update and is enough for most,
    /// see docs/SCALING.md
    #[arg(long, env, value_name = "NUMBER", default_value = "1", help_heading = LISTENER)]
    pub worker_threads: NonZeroUsize,
    #[command(flatten)]
    pub http: HttpConfig,
    #[command(flatten)]
    pub jwt: JwtConfig,
    #[command(flatten)]
    pub log: LogConfig,
}

/// The settings of `dev`.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Address to listen on; local by default, because this mode hands out tokens
    #[arg(long, env, value_name = "HOST", default_value = "127.0.0.1", help_heading = LISTENER)]
    pub host: String,
    /// Binding key templates of the in-process exchange
    #[arg(long = "rabbitmq-binding-keys", env = "RABBITMQ_BINDING_KEYS", value_name = "TEMPLATES",
        default_value = DEV_BINDING_KEYS, help_heading = RABBITMQ)]
    pub binding_keys: BindingKeys,
    #[command(flatten)]
    pub http: HttpConfig,
    #[command(flatten)]
    pub jwt: JwtConfig,
    #[command(flatten)]
    pub log: LogConfig,
}

/// The settings of `token`.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// The user the token is for
    #[arg(long, value_name = "USER_ID", value_parser = UserId::parse)]
    pub user: UserId,
    /// The user's tenant
    #[arg(long, value_name = "TENANT_ID", value_parser = TenantId::parse)]
    pub tenant: Option<TenantId>,
    /// How long the token is valid
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub expires: humantime::Duration,
    #[command(flatten)]
    pub jwt: JwtConfig,
}

/// The settings of `publish`.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct PublishArgs {
    /// The user who shall receive the updates
    #[arg(long, value_name = "USER_ID", value_parser = UserId::parse)]
    pub user: UserId,
    /// The user's tenant
    #[arg(long, value_name = "TENANT_ID", default_value = "tnt_default", value_parser = TenantId::parse)]
    pub tenant: TenantId,
    /// The event type, e.g. message.create or dialog.member.add
    #[arg(long, value_name = "EVENT_TYPE")]
    pub event: String,
    /// The update's data as JSON; a sample that fits the event when absent
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    pub data: Option<serde_json::Value>,
    /// How many updates to publish
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u64,
    /// Updates per second; as fast as possible when absent
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Routing key; user.{userId}.{slug} as the original's when absent
    #[arg(long, value_name = "KEY", value_parser = parse_short_name)]
    pub routing_key: Option<String>,
    #[command(flatten)]
    pub rabbitmq: PublishRabbitMqArgs,
}

/// Which gateway `health` asks, by that gateway's own settings.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Whether it takes new clients (/ready), not whether it is up (/health)
    #[arg(long)]
    pub ready: bool,
    /// Address that the gateway listens on; all of them stand for loopback
    #[arg(long, env, value_name = "HOST", default_value = "0.0.0.0", help_heading = LISTENER)]
    pub host: String,
    /// Port that the gateway listens on
    #[arg(long, env, value_name = "PORT", default_value_t = 3001, help_heading = LISTENER)]
    pub port: u16,
    /// Address and port of its listener for operators, asked in place of the other
    #[arg(long, env, value_name = "ADDRESS:PORT", value_parser = parse_optional_address,
        default_value = "", hide_default_value = true, help_heading = LISTENER)]
    pub admin_addr: OptionalAddress,
}

/// What `doctor` examines: the settings of `serve`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Exit code: 0 no problem found, 1 problems found, 2 the settings cannot be read."
)]
pub struct DoctorArgs {
    /// A token to examine; - reads it from stdin, since others see command lines
    #[arg(long, value_name = "TOKEN|-", conflicts_with = "token_file", help_heading = DOCTOR)]
    pub token: Option<Secret>,
    /// File that holds a token to examine
    #[arg(long, value_name = "PATH", help_heading = DOCTOR)]
    pub token_file: Option<PathBuf>,
    /// How long to listen to what is published
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_listening,
        help_heading = DOCTOR)]
    pub listen: Duration,
    /// Print one JSON object instead of text
    #[arg(long, help_heading = DOCTOR)]
    pub json: bool,
    /// Exit with 1 for warnings, too
    #[arg(long, help_heading = DOCTOR)]
    pub strict: bool,
    /// The settings to examine
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Where `publish` publishes to.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct PublishRabbitMqArgs {
    /// Broker address: amqp:// or amqps://, percent-encoded login and vhost
    #[arg(long = "rabbitmq-url", env = "RABBITMQ_URL", value_name = "URL",
        default_value = DEFAULT_URL, hide_env_values = true, help_heading = RABBITMQ)]
    pub url: AmqpUrl,
    /// Topic exchange to publish to; declared as Chat3 declares it
    #[arg(long = "rabbitmq-updates-exchange", env = "RABBITMQ_UPDATES_EXCHANGE",
        value_name = "NAME", default_value = DEFAULT_EXCHANGE, value_parser = parse_short_name,
        help_heading = RABBITMQ)]
    pub exchange: String,
    #[command(flatten)]
    pub tls: RabbitMqTls,
}

const RABBITMQ: &str = "RabbitMQ";
const LISTENER: &str = "Listener";
const UPDATES: &str = "Updates";
const LIMITS: &str = "Limits";
const RECOVERY: &str = "Connection state recovery";
const JWT: &str = "JWT";
const LOGS: &str = "Logs";
const DOCTOR: &str = "Examination";

const DEFAULT_URL: &str = "amqp://rmuser:rmpassword@localhost:5672/";
const DEFAULT_EXCHANGE: &str = "chat3_updates";
const DEFAULT_BINDING_KEYS: &str = "user.{userId}.*";

/// The first generation's and today's: the development page publishes both.
const DEV_BINDING_KEYS: &str = "user.{userId}.*,update.*.*.{userId}.*";

/// How to reach RabbitMQ and what to bind there.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct RabbitMqConfig {
    /// Broker address: amqp:// or amqps://, percent-encoded login and vhost
    #[arg(long = "rabbitmq-url", env = "RABBITMQ_URL", value_name = "URL",
        default_value = DEFAULT_URL, hide_env_values = true, help_heading = RABBITMQ)]
    pub url: AmqpUrl,
    /// Topic exchange that Chat3 publishes updates to (never declared here)
    #[arg(long = "rabbitmq-updates-exchange", env = "RABBITMQ_UPDATES_EXCHANGE",
        value_name = "NAME", default_value = DEFAULT_EXCHANGE, value_parser = parse_short_name,
        help_heading = RABBITMQ)]
    pub exchange: String,
    /// Comma-separated binding key templates with {userId} and {tenantId}; for
    /// Chat3 since 0.0.77: update.*.*.{userId}.*
    #[arg(long = "rabbitmq-binding-keys", env = "RABBITMQ_BINDING_KEYS", value_name = "TEMPLATES",
        default_value = DEFAULT_BINDING_KEYS, help_heading = RABBITMQ)]
    pub binding_keys: BindingKeys,
    /// How users share queues: one each, a few for all, or one that gets all updates
    #[arg(long = "rabbitmq-topology", env = "RABBITMQ_TOPOLOGY", value_name = "TOPOLOGY",
        default_value = "per-user", help_heading = RABBITMQ)]
    pub topology: Topology,
    /// Queues of an instance in the shared topology
    #[arg(long = "rabbitmq-shared-queues", env = "RABBITMQ_SHARED_QUEUES", value_name = "N",
        default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64),
        help_heading = RABBITMQ)]
    pub shared_queues: u16,
    /// Wait before the first reconnect; doubles with jitter up to 30s
    #[arg(long = "rabbitmq-reconnect-delay", env = "RABBITMQ_RECONNECT_DELAY",
        value_name = "DURATION", default_value = "5s", value_parser = parse_delay,
        help_heading = RABBITMQ)]
    pub reconnect_delay: Duration,
    /// Updates per queue that the broker sends ahead of their acknowledgement
    #[arg(long = "rabbitmq-prefetch", env = "RABBITMQ_PREFETCH", value_name = "N",
        default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..),
        help_heading = RABBITMQ)]
    pub prefetch: u16,
    /// Heartbeat interval; a broker that is silent for two of them is lost
    #[arg(long = "rabbitmq-heartbeat", env = "RABBITMQ_HEARTBEAT", value_name = "DURATION",
        default_value = "10s", value_parser = parse_heartbeat, help_heading = RABBITMQ)]
    pub heartbeat: Duration,
    /// Longest time that connecting to the broker may take, TLS and login included
    #[arg(long = "rabbitmq-connect-timeout", env = "RABBITMQ_CONNECT_TIMEOUT",
        value_name = "DURATION", default_value = "10s", value_parser = parse_delay,
        help_heading = RABBITMQ)]
    pub connect_timeout: Duration,
    /// Fanout exchange over which instances pass on who is disconnected or revoked;
    /// declared by the gateway; empty for none
    #[arg(long = "rabbitmq-control-exchange", env = "RABBITMQ_CONTROL_EXCHANGE",
        value_name = "NAME", default_value = "", hide_default_value = true,
        value_parser = parse_optional_short_name, help_heading = RABBITMQ)]
    pub control_exchange: String,
    /// Instance name in queue and connection names; the host's name when absent
    #[arg(long, env, value_name = "NAME", default_value = "", hide_default_value = true,
        value_parser = parse_instance_name, help_heading = RABBITMQ)]
    pub instance_name: String,
    #[command(flatten)]
    pub tls: RabbitMqTls,
}

/// How users share an instance's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// A queue for each user.
    PerUser,
    /// A few queues, each bound for some of the users.
    Shared,
    /// One queue that gets the updates of all users, online or not.
    Firehose,
}

/// The certificates of `amqps://` connections, read at each connect.
#[derive(Debug, Clone, Default, Args)]
pub struct RabbitMqTls {
    /// CA certificates (PEM) of the broker; public ones when absent
    #[arg(long = "rabbitmq-ca-file", env = "RABBITMQ_CA_FILE", value_name = "PATH",
        help_heading = RABBITMQ)]
    ca_file: Option<OptionalPath>,
    /// Client certificate (PEM) for a broker that asks for one
    #[arg(long = "rabbitmq-client-cert-file", env = "RABBITMQ_CLIENT_CERT_FILE",
        value_name = "PATH", requires = "client_key_file", help_heading = RABBITMQ)]
    client_cert_file: Option<OptionalPath>,
    /// Private key (PEM) of the client certificate
    #[arg(long = "rabbitmq-client-key-file", env = "RABBITMQ_CLIENT_KEY_FILE",
        value_name = "PATH", requires = "client_cert_file", help_heading = RABBITMQ)]
    client_key_file: Option<OptionalPath>,
}

impl RabbitMqTls {
    /// The file of the broker's CA.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_ref()?.path()
    }

    /// The files of the client certificate and its key.
    pub fn client(&self) -> Option<(&Path, &Path)> {
        let certificate = self.client_cert_file.as_ref().and_then(OptionalPath::path);
        let key = self.client_key_file.as_ref().and_then(OptionalPath::path);
        // One without the other is an error when it is read, not a connection without.
        let empty = Path::new("");
        (certificate.is_some() || key.is_some())
            .then(|| (certificate.unwrap_or(empty), key.unwrap_or(empty)))
    }
}

impl Default for RabbitMqConfig {
    /// The documented defaults, without a look at the environment.
    fn default() -> Self {
        Self {
            url: DEFAULT_URL.parse().expect("the default URL is valid"),
            exchange: DEFAULT_EXCHANGE.to_owned(),
            binding_keys: DEFAULT_BINDING_KEYS
                .parse()
                .expect("the default template is valid"),
            topology: Topology::PerUser,
            shared_queues: 4,
            reconnect_delay: Duration::from_secs(5),
            prefetch: 100,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            control_exchange: String::new(),
            instance_name: String::new(),
            tls: RabbitMqTls::default(),
        }
    }
}

/// The listener and what is served on it.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct HttpConfig {
    /// Port to listen on; 0 picks a free one
    #[arg(long, env, value_name = "PORT", default_value_t = 3001, help_heading = LISTENER)]
    pub port: u16,
    /// Comma-separated origins that browsers may connect from, also as
    /// https://*.example.com; * for all
    #[arg(long, env, value_name = "ORIGINS", default_value = "*", help_heading = LISTENER)]
    pub cors_origin: CorsOrigins,
    /// Bearer token of the admin API under /api; without it /api answers 404
    #[arg(long, env, value_name = "TOKEN", hide_env_values = true, help_heading = LISTENER)]
    pub admin_token: Option<Secret>,
    /// How long a client may take none of the data sent to it, before its
    /// connection is closed
    #[arg(long, env, value_name = "DURATION", default_value = "30s", value_parser = parse_delay,
        help_heading = LISTENER)]
    pub socket_write_timeout: Duration,
    /// Time over which a shutdown closes its clients' connections, so that they
    /// do not reconnect in one wave
    #[arg(long, env, value_name = "DURATION", default_value = "2s", value_parser = parse_delay,
        help_heading = LISTENER)]
    pub shutdown_spread: Duration,
    /// Longest time a shutdown may take
    #[arg(long, env, value_name = "DURATION", default_value = "10s", value_parser = parse_delay,
        help_heading = LISTENER)]
    pub shutdown_timeout: Duration,
    /// Address and port of a listener of its own for /metrics and /api, which are
    /// then nowhere else
    #[arg(long, env, value_name = "ADDRESS:PORT", value_parser = parse_optional_address,
        default_value = "", hide_default_value = true, help_heading = LISTENER)]
    pub admin_addr: OptionalAddress,
    /// Addresses and networks of proxies whose X-Forwarded-For is believed
    #[arg(long, env, value_name = "NETWORKS", default_value = "", hide_default_value = true,
        help_heading = LIMITS)]
    pub trusted_proxies: TrustedProxies,
    /// Sockets in all; further handshakes get 503. 0 for no limit
    #[arg(long, env, value_name = "N", default_value_t = 100_000, help_heading = LIMITS)]
    pub max_sockets: u32,
    /// Sockets per user; 0 for no limit
    #[arg(long, env, value_name = "N", default_value_t = 100, help_heading = LIMITS)]
    pub max_sockets_per_user: u32,
    /// Handshakes per second from one address, and five times as many at once;
    /// further ones get 429. 0 for no limit
    #[arg(long, env, value_name = "N", default_value_t = 1_000, help_heading = LIMITS)]
    pub max_connects_per_second: u32,
    /// Events per second from one socket, and five times as many at once; then its
    /// transport is closed. 0 for no limit
    #[arg(long, env, value_name = "N", default_value_t = 10, help_heading = LIMITS)]
    pub max_events_per_second: u32,
    /// How long before its token expires a client is sent auth:expiring
    #[arg(long = "jwt-expiry-notice", env = "JWT_EXPIRY_NOTICE", value_name = "DURATION",
        default_value = "30s", value_parser = parse_delay, help_heading = JWT)]
    pub expiry_notice: Duration,
    /// Shape in which updates are sent: auto as published; original as first
    /// documented, for frontends that were written for that
    #[arg(long = "chat3-envelope", env = "CHAT3_ENVELOPE", value_name = "SHAPE",
        default_value = "auto", help_heading = UPDATES)]
    pub envelope: Envelope,
    #[command(flatten)]
    pub recovery: RecoveryConfig,
}

impl Default for HttpConfig {
    /// The documented defaults, without a look at the environment.
    fn default() -> Self {
        Self {
            port: 3001,
            cors_origin: CorsOrigins::Any,
            admin_token: None,
            socket_write_timeout: Duration::from_secs(30),
            shutdown_spread: Duration::from_secs(2),
            shutdown_timeout: Duration::from_secs(10),
            admin_addr: None,
            trusted_proxies: TrustedProxies::default(),
            max_sockets: 100_000,
            max_sockets_per_user: 100,
            max_connects_per_second: 1_000,
            max_events_per_second: 10,
            expiry_notice: Duration::from_secs(30),
            recovery: RecoveryConfig {
                window: Duration::from_secs(2 * 60),
                max_updates: 1_000,
                max_bytes: 1 << 20,
                total_bytes: 256 << 20,
            },
            envelope: Envelope::default(),
        }
    }
}

/// The shape in which updates are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Envelope {
    /// As published.
    #[default]
    Auto,
    /// As first documented, whichever generation published them.
    Original,
}

/// How far back a lost connection can be recovered.
#[derive(Debug, Clone, Args)]
pub struct RecoveryConfig {
    /// How long after its loss a connection can be recovered with all updates
    /// that it missed; 0 turns recovery off
    #[arg(long = "recovery-window", env = "RECOVERY_WINDOW", value_name = "DURATION",
        default_value = "2m", value_parser = parse_window, help_heading = RECOVERY)]
    pub window: Duration,
    /// Updates kept per user
    #[arg(long = "recovery-max-updates", env = "RECOVERY_MAX_UPDATES", value_name = "N",
        default_value_t = 1_000, help_heading = RECOVERY)]
    pub max_updates: usize,
    /// Bytes of updates kept per user
    #[arg(long = "recovery-max-bytes", env = "RECOVERY_MAX_BYTES", value_name = "BYTES",
        default_value_t = 1 << 20, help_heading = RECOVERY)]
    pub max_bytes: usize,
    /// Bytes of updates kept for all users together
    #[arg(long = "recovery-total-bytes", env = "RECOVERY_TOTAL_BYTES", value_name = "BYTES",
        default_value_t = 256 << 20, help_heading = RECOVERY)]
    pub total_bytes: usize,
}

/// What a token must be to be let in.
#[derive(Debug, Clone, Args)]
pub struct JwtConfig {
    /// Secret of HS256, HS384 and HS512 tokens
    #[arg(long, env, value_name = "SECRET", hide_env_values = true, help_heading = JWT)]
    pub jwt_secret: Option<Secret>,
    /// Public keys (RSA, EC P-256 or P-384, Ed25519) that verify tokens, as PEM blocks
    // Not printed: it would be a private key if pasted by mistake.
    #[arg(long, env, value_name = "PEM", hide_env_values = true, help_heading = JWT)]
    pub jwt_public_key: Option<Secret>,
    /// File with such PEM blocks
    #[arg(long, env, value_name = "PATH", help_heading = JWT)]
    pub jwt_public_key_file: Option<OptionalPath>,
    /// JSON Web Key Set: a file, or an https:// URL (http:// on this machine only)
    #[arg(long, env, value_name = "PATH|URL", default_value = "", hide_default_value = true,
        hide_env_values = true, help_heading = JWT)]
    pub jwt_jwks: JwksSource,
    /// How often the key set is read again
    #[arg(long, env, value_name = "DURATION", default_value = "5m", value_parser = parse_delay,
        help_heading = JWT)]
    pub jwt_jwks_refresh: Duration,
    /// CA certificates (PEM) of the key set's https server; public ones when absent
    #[arg(long, env, value_name = "PATH", help_heading = JWT)]
    pub jwt_jwks_ca_file: Option<OptionalPath>,
    /// Refuse tokens without expiry (exp)
    #[arg(long, env, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
        value_parser = BoolishValueParser::new(), help_heading = JWT)]
    pub jwt_require_exp: bool,
    /// Clock difference to the issuer that is tolerated, in whole seconds
    #[arg(long, env, value_name = "DURATION", default_value = "5s", value_parser = parse_leeway,
        help_heading = JWT)]
    pub jwt_leeway: Duration,
    /// Also take tokens from the query parameter `token`, which proxies log
    #[arg(long, env, value_name = "BOOL", default_value_t = false, action = ArgAction::Set,
        value_parser = BoolishValueParser::new(), help_heading = JWT)]
    pub jwt_allow_query: bool,
    /// Required issuer (iss); not checked when absent
    #[arg(long, env, value_name = "ISSUER", help_heading = JWT)]
    pub jwt_issuer: Option<String>,
    /// Required audience (aud); not checked when absent
    #[arg(long, env, value_name = "AUDIENCE", help_heading = JWT)]
    pub jwt_audience: Option<String>,
    /// Claim that holds the user id [default: userId, else sub]
    #[arg(long, env, value_name = "CLAIM", help_heading = JWT)]
    pub jwt_user_id_claim: Option<String>,
    /// Claim that holds the tenant id
    #[arg(long, env, value_name = "CLAIM", default_value = "tenantId",
        value_parser = NonEmptyStringValueParser::new(), help_heading = JWT)]
    pub jwt_tenant_id_claim: String,
}

impl Default for JwtConfig {
    /// The documented defaults, without a key and without a look at the environment.
    fn default() -> Self {
        Self {
            jwt_secret: None,
            jwt_public_key: None,
            jwt_public_key_file: None,
            jwt_jwks: JwksSource::Unset,
            jwt_jwks_refresh: Duration::from_secs(5 * 60),
            jwt_jwks_ca_file: None,
            jwt_require_exp: true,
            jwt_leeway: Duration::from_secs(5),
            jwt_allow_query: false,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_user_id_claim: None,
            jwt_tenant_id_claim: "tenantId".to_owned(),
        }
    }
}

/// What is logged, and to where.
#[derive(Debug, Clone, Args)]
pub struct LogConfig {
    /// development logs details of every update; `RUST_LOG` overrides
    #[arg(long, env, value_name = "ENV", default_value = "production", help_heading = LOGS)]
    pub node_env: NodeEnv,
    /// File that receives the logs as well as stdout; empty for stdout only
    #[arg(long, env, value_name = "PATH", default_value = "logs/server.log",
        value_parser = |path: &str| Ok::<_, String>(PathBuf::from(path)), help_heading = LOGS)]
    pub log_file: PathBuf,
    /// Format of the log lines
    #[arg(long, env, value_name = "FORMAT", default_value = "text", help_heading = LOGS)]
    pub log_format: LogFormat,
}

/// How much is logged.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeEnv {
    Production,
    Development,
    Test,
}

/// The form of log lines.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `value` as the secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself; an empty one counts as unset (`JWT_SECRET=` in a .env file).
    pub fn expose(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|secret| !secret.is_empty())
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A file that may be left out; an empty path counts as unset (`…_FILE=` in a .env file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalPath(PathBuf);

impl OptionalPath {
    /// The path, unless it is left out.
    pub fn path(&self) -> Option<&Path> {
        Some(self.0.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

impl FromStr for OptionalPath {
    type Err = Infallible;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        Ok(Self(path.into()))
    }
}

impl JwtConfig {
    /// The file of public keys.
    pub fn public_key_file(&self) -> Option<&Path> {
        self.jwt_public_key_file.as_ref()?.path()
    }

    /// The CA certificates of the key set's server.
    pub fn jwks_ca_file(&self) -> Option<&Path> {
        self.jwt_jwks_ca_file.as_ref()?.path()
    }

    /// The required issuer; an empty one counts as unset (`JWT_ISSUER=`).
    pub fn issuer(&self) -> Option<&str> {
        given(self.jwt_issuer.as_deref())
    }

    /// The required audience; an empty one counts as unset.
    pub fn audience(&self) -> Option<&str> {
        given(self.jwt_audience.as_deref())
    }

    /// The one claim that holds the user id, where one was named.
    pub fn user_id_claim(&self) -> Option<&str> {
        given(self.jwt_user_id_claim.as_deref())
    }
}

fn given(setting: Option<&str>) -> Option<&str> {
    setting.filter(|setting| !setting.is_empty())
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match delay.is_zero() || delay > Duration::from_hours(24) {
        true => Err("must be more than 0s and at most 1day".to_owned()),
        false => Ok(delay),
    }
}

/// Long enough for a quiet exchange, short enough for somebody who waits.
fn parse_listening(text: &str) -> Result<Duration, String> {
    let listening = parse_delay(text)?;
    match listening > Duration::from_secs(600) {
        true => Err("must be at most 10min".to_owned()),
        false => Ok(listening),
    }
}

/// A setting that is off when it is empty.
pub type OptionalAddress = Option<SocketAddr>;

fn parse_optional_address(text: &str) -> Result<OptionalAddress, String> {
    match text {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| "is no address with a port like 127.0.0.1:9090".to_owned()),
    }
}

fn parse_window(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let window = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match window > Duration::from_hours(24) {
        true => Err("must be at most 1day".to_owned()),
        false => Ok(window),
    }
}

/// Whole seconds, as the times in tokens are.
fn parse_leeway(text: &str) -> Result<Duration, String> {
    let leeway = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match leeway.subsec_nanos() == 0 && leeway <= Duration::from_secs(600) {
        true => Ok(leeway),
        false => Err("must be whole seconds and at most 10min".to_owned()),
    }
}

/// Whole seconds, as AMQP has it; amqprs would busy-loop with one.
fn parse_heartbeat(text: &str) -> Result<Duration, String> {
    let heartbeat = parse_delay(text)?;
    match heartbeat.subsec_nanos() == 0 && (2..=600).contains(&heartbeat.as_secs()) {
        true => Ok(heartbeat),
        false => Err("must be whole seconds from 2s to 10min".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("must be a number over 0 and at most 1000000".to_owned()),
    }
}

fn parse_json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))
}

/// An AMQP short string; longer ones would panic in amqprs.
fn parse_short_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        _ => Err("must have 1 to 255 bytes".to_owned()),
    }
}

fn parse_optional_short_name(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        text => parse_short_name(text),
    }
}

fn parse_instance_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text.len() <= 64 && text.chars().all(allowed) {
        true => Ok(text.to_owned()),
        false => {
            Err("must have at most 64 letters, digits, dots, dashes or underscores".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_variable_is_a_flag() {
        let help = Cli::command().render_long_help().to_string();
        for variable in [
            "RABBITMQ_URL",
            "RABBITMQ_UPDATES_EXCHANGE",
            "RABBITMQ_BINDING_KEYS",
            "RABBITMQ_RECONNECT_DELAY",
            "RABBITMQ_CA_FILE",
            "RABBITMQ_CLIENT_CERT_FILE",
            "RABBITMQ_CLIENT_KEY_FILE",
            "HOST",
            "PORT",
            "JWT_SECRET",
            "JWT_PUBLIC_KEY",
            "JWT_PUBLIC_KEY_FILE",
            "JWT_JWKS",
            "JWT_JWKS_REFRESH",
            "JWT_JWKS_CA_FILE",
            "JWT_REQUIRE_EXP",
            "JWT_LEEWAY",
            "JWT_ALLOW_QUERY",
            "JWT_ISSUER",
            "JWT_AUDIENCE",
            "JWT_USER_ID_CLAIM",
            "JWT_TENANT_ID_CLAIM",
            "CORS_ORIGIN",
            "NODE_ENV",
            "LOG_FILE",
            "LOG_FORMAT",
            "ADMIN_TOKEN",
            "ADMIN_ADDR",
            "TRUSTED_PROXIES",
            "MAX_SOCKETS",
            "MAX_SOCKETS_PER_USER",
            "MAX_CONNECTS_PER_SECOND",
            "MAX_EVENTS_PER_SECOND",
            "JWT_EXPIRY_NOTICE",
            "RABBITMQ_CONTROL_EXCHANGE",
            "CHAT3_ENVELOPE",
            "RECOVERY_WINDOW",
            "RECOVERY_MAX_UPDATES",
            "RECOVERY_MAX_BYTES",
            "RECOVERY_TOTAL_BYTES",
        ] {
            assert!(help.contains(&format!("[env: {variable}")), "{variable}");
            let flag = format!("--{}", variable.to_lowercase().replace('_', "-"));
            assert!(help.contains(&flag), "{flag}");
        }
    }

    #[test]
    fn the_defaults_for_embedders_are_those_of_the_command_line() {
        let parsed = Cli::parse_from(["chat3-gateway"]).serve;
        assert_eq!(
            format!("{:?}", parsed.rabbitmq),
            format!("{:?}", RabbitMqConfig::default())
        );
        assert_eq!(
            format!("{:?}", parsed.jwt),
            format!("{:?}", JwtConfig::default())
        );
        assert_eq!(
            format!("{:?}", parsed.http),
            format!("{:?}", HttpConfig::default())
        );
    }
}
