//! Every setting: command line, environment, defaults, and their validation.
//!
//! Values are parsed once, into types that cannot hold a wrong value; the rest
//! of the crate never sees an unparsed setting. Each environment variable is
//! also a flag. Secrets appear in no help text, `Debug` output or error.
//!
//! Imports nothing of this crate but the ids of [`crate::user`] and the shapes of
//! [`crate::update`].

mod amqp_url;
mod amqp_urls;
mod binding_keys;
mod command_line;
mod cors_origins;
mod jwks_source;
mod trusted_proxies;
mod values;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use amqp_url::{AmqpUrl, InvalidAmqpUrl};
pub use amqp_urls::{AmqpUrls, InvalidAmqpUrls};
pub use binding_keys::{BindingKeys, InvalidBindingKeys};
use clap::{
    ArgAction, Args, ValueEnum,
    builder::{BoolishValueParser, NonEmptyStringValueParser},
};
pub use command_line::{
    Cli, Command, DevArgs, DoctorArgs, Generation, HealthArgs, PublishArgs, PublishRabbitMqArgs,
    ServeArgs, TokenArgs,
};
pub use cors_origins::{CorsOrigins, InvalidOrigin};
pub use jwks_source::JwksSource;
pub use trusted_proxies::{InvalidNetwork, TrustedProxies};
pub use values::{MIN_ADMIN_TOKEN_BYTES, OptionalAddress, OptionalPath, OptionalTenant, Secret};
use values::{
    parse_delay, parse_heartbeat, parse_instance_name, parse_leeway, parse_optional_address,
    parse_optional_short_name, parse_optional_tenant, parse_short_name, parse_window,
};

pub use crate::update::Envelope;

const RABBITMQ: &str = "RabbitMQ";
const LISTENER: &str = "Listener";
const UPDATES: &str = "Updates";
const LIMITS: &str = "Limits";
const RECOVERY: &str = "Connection state recovery";
const JWT: &str = "JWT";
const LOGS: &str = "Logs";

const DEFAULT_URL: &str = "amqp://rmuser:rmpassword@localhost:5672/";
const DEFAULT_EXCHANGE: &str = "chat3_updates";

/// How to reach RabbitMQ and what to bind there.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone, Args)]
pub struct RabbitMqConfig {
    /// Broker address: amqp:// or amqps://, percent-encoded login and vhost; the nodes of a
    /// cluster as a comma-separated list of whole addresses
    #[arg(long = "rabbitmq-url", env = "RABBITMQ_URL", value_name = "URL",
        default_value = DEFAULT_URL, hide_env_values = true, help_heading = RABBITMQ)]
    pub url: AmqpUrls,
    /// Topic exchange that Chat3 publishes updates to (never declared here)
    #[arg(long = "rabbitmq-updates-exchange", env = "RABBITMQ_UPDATES_EXCHANGE",
        value_name = "NAME", default_value = DEFAULT_EXCHANGE, value_parser = parse_short_name,
        help_heading = RABBITMQ)]
    pub exchange: String,
    /// Comma-separated binding key templates with {userId}, {tenantId} and {tenantId|*}; by
    /// default, those of every Chat3 there is
    #[arg(long = "rabbitmq-binding-keys", env = "RABBITMQ_BINDING_KEYS", value_name = "TEMPLATES",
        default_value = binding_keys::DEFAULT, help_heading = RABBITMQ)]
    pub binding_keys: BindingKeys,
    /// How users share queues: one each, one or a few for all, or one that gets all updates
    #[arg(long = "rabbitmq-topology", env = "RABBITMQ_TOPOLOGY", value_name = "TOPOLOGY",
        default_value = "per-user", help_heading = RABBITMQ)]
    pub topology: Topology,
    /// Queues of an instance in the shared topology
    #[arg(long = "rabbitmq-shared-queues", env = "RABBITMQ_SHARED_QUEUES", value_name = "N",
        default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64),
        help_heading = RABBITMQ)]
    pub shared_queues: u16,
    /// Wait before the first reconnect; grows by a quarter each time, with jitter, up to 30s
    #[arg(long = "rabbitmq-reconnect-delay", env = "RABBITMQ_RECONNECT_DELAY",
        value_name = "DURATION", default_value = "5s", value_parser = parse_delay,
        help_heading = RABBITMQ)]
    pub reconnect_delay: Duration,
    /// Updates per queue that the broker sends ahead of their acknowledgement; 100 with
    /// per-user, 1000 where users share queues
    #[arg(long = "rabbitmq-prefetch", env = "RABBITMQ_PREFETCH", value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..), help_heading = RABBITMQ)]
    pub prefetch: Option<u16>,
    /// Heartbeat interval; a broker that is silent for two of them is lost
    #[arg(long = "rabbitmq-heartbeat", env = "RABBITMQ_HEARTBEAT", value_name = "DURATION",
        default_value = "10s", value_parser = parse_heartbeat, help_heading = RABBITMQ)]
    pub heartbeat: Duration,
    /// Longest time that connecting to the broker may take, TLS and login included;
    /// several nodes share it
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
    /// How long users may be online without an update, before the gateway looks whether
    /// their updates are published with keys that it does not bind; 0 for never
    #[arg(long = "rabbitmq-silence-check", env = "RABBITMQ_SILENCE_CHECK",
        value_name = "DURATION", default_value = "5m", value_parser = parse_window,
        help_heading = RABBITMQ)]
    pub silence_check: Duration,
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
    /// One queue or a few, each bound for its users.
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
            binding_keys: BindingKeys::default(),
            topology: Topology::PerUser,
            shared_queues: 1,
            reconnect_delay: Duration::from_secs(5),
            prefetch: None,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            control_exchange: String::new(),
            silence_check: Duration::from_secs(5 * 60),
            instance_name: String::new(),
            tls: RabbitMqTls::default(),
        }
    }
}

impl RabbitMqConfig {
    /// Updates per queue that the broker sends ahead of their acknowledgement.
    pub fn prefetch(&self) -> u16 {
        self.prefetch.unwrap_or(match self.topology {
            Topology::PerUser => 100,
            // Of many users: a smaller window has the broker wait for acknowledgements.
            Topology::Shared | Topology::Firehose => 1_000,
        })
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
    /// Connections of one address that carry no socket; beyond that, the one that waits
    /// longest for a request is closed. 0 for no limit
    #[arg(long, env, value_name = "N", default_value_t = 1_000, help_heading = LIMITS)]
    pub max_connections_per_address: u32,
    /// Refused sockets per second from one address, and five times as many at once;
    /// then its connections are closed and its handshakes get 429. 0 for no limit
    #[arg(long, env, value_name = "N", default_value_t = 50, help_heading = LIMITS)]
    pub max_refusals_per_second: u32,
    /// Events per second from one socket, and five times as many at once; then its
    /// transport is closed. 0 for no limit
    #[arg(long, env, value_name = "N", default_value_t = 10, help_heading = LIMITS)]
    pub max_events_per_second: u32,
    /// How long before its token expires a client is sent auth:expiring
    #[arg(long = "jwt-expiry-notice", env = "JWT_EXPIRY_NOTICE", value_name = "DURATION",
        default_value = "30s", value_parser = parse_delay, help_heading = JWT)]
    pub expiry_notice: Duration,
    /// Shape in which updates are sent: auto as published; sections as antirek/chatapp
    /// and pages like it read them; original as first documented
    #[arg(long = "chat3-envelope", env = "CHAT3_ENVELOPE", value_name = "SHAPE",
        default_value = "auto", help_heading = UPDATES)]
    pub envelope: Envelope,
    /// Drop updates that repeat one of the user's last 256, as Chat3 before 0.0.87
    /// may publish them: same tenantId, eventId, updateType and entityId
    #[arg(long, env, value_name = "BOOL", default_value_t = false, action = ArgAction::Set,
        value_parser = BoolishValueParser::new(), help_heading = UPDATES)]
    pub drop_repeated_updates: bool,
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
            max_connections_per_address: 1_000,
            max_refusals_per_second: 50,
            max_events_per_second: 10,
            expiry_notice: Duration::from_secs(30),
            recovery: RecoveryConfig {
                window: Duration::from_secs(2 * 60),
                max_updates: 1_000,
                max_bytes: 1 << 20,
                total_bytes: 256 << 20,
            },
            envelope: Envelope::default(),
            drop_repeated_updates: false,
        }
    }
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
    /// Tenant of tokens without that claim; empty for none
    #[arg(long, env, value_name = "TENANT_ID", default_value = "", hide_default_value = true,
        value_parser = parse_optional_tenant, help_heading = JWT)]
    pub jwt_default_tenant_id: OptionalTenant,
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
            jwt_default_tenant_id: None,
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

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
