//! The command line: the commands and their arguments. `mistakes` words what is wrong
//! with them.
//!
//! The settings of the service are defined in [`crate::config`] and only flattened here.

mod mistakes;

use std::{ffi::OsString, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, parser::ValueSource,
};
use serde::Deserialize;

use crate::{
    config::{
        AmqpUrls, BindingKeys, Config, HttpConfig, JwtConfig, OptionalAddress, RabbitMqConfig,
        RabbitMqTls, Secret, amqp_url,
        headings::{LISTENER, RABBITMQ},
        parse::{parse_delay, parse_optional_address, parse_short_name},
    },
    user::{TenantId, UserId},
};

const LOGS: &str = "Logs";
const DOCTOR: &str = "Examination";

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
    /// One line about the mistake, which names flag and variable. It repeats the value only
    /// if the value cannot be a secret.
    pub fn from_process() -> Result<Self, String> {
        Self::read().map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            mistakes::describe(&error)
        })
    }

    /// Parses as [`Self::try_parse`] does, and notes whether flags told `health` what to ask.
    fn read() -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches()?;
        let mut cli = Self::from_arg_matches(&matches)?;
        if let (Some(Command::Health(args)), Some(health)) =
            (&mut cli.command, matches.subcommand_matches("health"))
        {
            let flags = ["host", "port", "admin_addr"].map(|flag| health.value_source(flag));
            args.is_told_where = flags.contains(&Some(ValueSource::CommandLine));
        }
        Ok(cli)
    }

    /// The listeners of the gateway that was started with this command line, program
    /// included, in an environment like this process's. None if it is no gateway's.
    pub fn listeners_of(
        command_line: impl IntoIterator<Item = OsString>,
    ) -> Option<(String, HttpConfig)> {
        let cli = Self::try_parse_from(command_line).ok()?;
        match cli.command {
            None => Some((cli.serve.config.host, cli.serve.config.http)),
            Some(Command::Serve(args)) => Some((args.config.host, args.config.http)),
            Some(Command::Dev(args)) => Some((args.host, args.http)),
            Some(_) => None,
        }
    }
}

/// A command and its arguments.
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
    /// Check the health of the gateway on this machine, for containers: exit code 0 or 1
    Health(HealthArgs),
    /// Check settings, RabbitMQ, the updates published there, keys for tokens and this machine
    Doctor(Box<DoctorArgs>),
}

/// The settings of `serve`.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: Config,
    /// Threads that serve clients; one costs the least per update and suffices for most
    /// deployments, see docs/SCALING.md
    #[arg(long, env, value_name = "NUMBER", default_value = "1", help_heading = LISTENER)]
    pub worker_threads: NonZeroUsize,
    #[command(flatten)]
    pub log: LogConfig,
}

/// What the process logs, and where to.
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

/// The settings of `dev`.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Address to listen on; local by default, because this mode hands out tokens
    #[arg(long, env, value_name = "HOST", default_value = "127.0.0.1", help_heading = LISTENER)]
    pub host: String,
    /// Binding key templates of the in-process exchange
    #[arg(long = "rabbitmq-binding-keys", env = "RABBITMQ_BINDING_KEYS", value_name = "TEMPLATES",
        default_value_t, help_heading = RABBITMQ)]
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
    /// The user the updates are for
    #[arg(long, value_name = "USER_ID", value_parser = UserId::parse)]
    pub user: UserId,
    /// The user's tenant
    #[arg(long, value_name = "TENANT_ID", default_value = "tnt_default", value_parser = TenantId::parse)]
    pub tenant: TenantId,
    /// The event type, e.g. message.create or dialog.member.add
    #[arg(long, value_name = "EVENT_TYPE")]
    pub event: String,
    /// The update's data as JSON; without it, a sample that fits the event
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    pub data: Option<serde_json::Value>,
    /// How many updates to publish
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// Updates per second; without it, as fast as possible
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Generation of Chat3 whose routing keys and bodies to publish
    #[arg(long, value_enum, value_name = "GENERATION", default_value_t)]
    pub generation: Generation,
    /// Routing key; without it, the one of the generation
    #[arg(long, value_name = "KEY", value_parser = parse_short_name)]
    pub routing_key: Option<String>,
    #[command(flatten)]
    pub rabbitmq: PublishRabbitMqArgs,
}

/// A period in which Chat3 published routing keys and bodies of one form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum Generation {
    /// Since 0.0.86: update.{dialog|user}.{tenantId}.{userType}.{userId}.{segment}
    #[default]
    #[value(alias = "0.0.86")]
    #[serde(rename = "current", alias = "0.0.86")]
    Current,
    /// Since 0.0.77: update.{dialog|user}.{userType}.{userId}.{segment}
    #[value(name = "0.0.77")]
    #[serde(rename = "0.0.77")]
    V0_0_77,
    /// As first documented: user.{userId}.{slug}
    #[serde(rename = "original")]
    Original,
}

/// The gateway that `health` asks: the one that a flag names, else the first process of this
/// container if that is a gateway, else the one that the environment describes.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Check whether the gateway takes new clients (/ready), not whether it is up (/health)
    #[arg(long)]
    pub ready: bool,
    /// Address that the gateway listens on; 0.0.0.0 and :: stand for loopback
    #[arg(long, env, value_name = "HOST", default_value_t = Config::default().host, help_heading = LISTENER)]
    pub host: String,
    /// Port that the gateway listens on
    #[arg(long, env, value_name = "PORT", default_value_t = HttpConfig::default().port, help_heading = LISTENER)]
    pub port: u16,
    /// Address and port of the separate listener for operators, which is asked if it is set
    #[arg(long, env, value_name = "ADDRESS:PORT", value_parser = parse_optional_address,
        default_value = "", hide_default_value = true, help_heading = LISTENER)]
    pub admin_addr: OptionalAddress,
    /// Whether a flag says where the gateway listens
    #[arg(skip)]
    pub is_told_where: bool,
}

/// What `doctor` examines: the settings of `serve`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Exit code: 0 no problem found, 1 problems found, 2 the settings cannot be read."
)]
pub struct DoctorArgs {
    /// A token to examine; - reads it from stdin, since other users can see command lines
    #[arg(long, value_name = "TOKEN|-", conflicts_with = "token_file", help_heading = DOCTOR)]
    pub token: Option<Secret>,
    /// File that holds a token to examine
    #[arg(long, value_name = "PATH", help_heading = DOCTOR)]
    pub token_file: Option<PathBuf>,
    /// How long to listen to the updates that are published
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

/// The RabbitMQ that `publish` publishes to.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct PublishRabbitMqArgs {
    /// Broker address: amqp:// or amqps://, percent-encoded login and vhost; the nodes of a
    /// cluster as a comma-separated list of whole addresses
    #[arg(long = "rabbitmq-url", env = "RABBITMQ_URL", value_name = "URL",
        default_value = amqp_url::DEFAULT, hide_env_values = true, help_heading = RABBITMQ)]
    pub url: AmqpUrls,
    /// Topic exchange to publish to; declared as Chat3 declares it
    #[arg(long = "rabbitmq-updates-exchange", env = "RABBITMQ_UPDATES_EXCHANGE",
        value_name = "NAME", default_value_t = RabbitMqConfig::default().exchange, value_parser = parse_short_name,
        help_heading = RABBITMQ)]
    pub exchange: String,
    #[command(flatten)]
    pub tls: RabbitMqTls,
}

/// Ten minutes are enough for a quiet exchange, and not too long to wait for.
fn parse_listening(text: &str) -> Result<Duration, String> {
    let listening = parse_delay(text)?;
    match listening > Duration::from_secs(600) {
        true => Err("must be at most 10min".to_owned()),
        false => Ok(listening),
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
            "JWT_DEFAULT_TENANT_ID",
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
            "RABBITMQ_CONTROL_STREAM",
            "REVOCATIONS_KEPT",
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
        let parsed = Cli::parse_from(["chat3-gateway"]).serve.config;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::default()));
    }
}
