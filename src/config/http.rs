//! The settings of the listener: which clients may connect, how many, and what the gateway
//! sends them.

use std::time::Duration;

use super::{CorsOrigins, Envelope, OptionalAddress, RecoverySecrets, Secret, TrustedProxies};
#[cfg(feature = "cli")]
use super::{
    cors_origins,
    headings::{JWT, LIMITS, LISTENER, RECOVERY, UPDATES},
    parse::{parse_delay, parse_optional_address, parse_window, text},
};

/// The listener and what it serves.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct HttpConfig {
    /// Port to listen on; 0 picks a free one
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "PORT",
        default_value_t = Self::default().port, help_heading = LISTENER))]
    pub port: u16,
    /// Comma-separated origins whose pages may connect, also in the form
    /// https://*.example.com; * for all
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "ORIGINS",
        default_value = cors_origins::DEFAULT, help_heading = LISTENER))]
    pub cors_origin: CorsOrigins,
    /// Bearer token of the admin API under /api; without it /api answers 404
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "TOKEN", hide_env_values = true,
        help_heading = LISTENER))]
    pub admin_token: Option<Secret>,
    /// Time after which the connection of a client is closed that reads none of the data
    /// sent to it
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "DURATION",
        default_value = text(Self::default().socket_write_timeout), value_parser = parse_delay,
        help_heading = LISTENER))]
    pub socket_write_timeout: Duration,
    /// Write a websocket's events from the task that has the update; with false, hand them to
    /// Socket.IO's tasks, for comparisons
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "BOOL",
        default_value_t = Self::default().direct_writes, action = clap::ArgAction::Set,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = LISTENER))]
    pub direct_writes: bool,
    /// Time for which a shutdown only fails /ready and still serves clients, new ones too, so
    /// that load balancers notice first; in addition to the time of the shutdown. 0 for none
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "DURATION",
        default_value = text(Self::default().shutdown_delay), value_parser = parse_window,
        help_heading = LISTENER))]
    pub shutdown_delay: Duration,
    /// Time over which a shutdown closes connections, so that clients do not all reconnect at
    /// once
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "DURATION",
        default_value = text(Self::default().shutdown_spread), value_parser = parse_delay,
        help_heading = LISTENER))]
    pub shutdown_spread: Duration,
    /// Longest time a shutdown may take
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "DURATION",
        default_value = text(Self::default().shutdown_timeout), value_parser = parse_delay,
        help_heading = LISTENER))]
    pub shutdown_timeout: Duration,
    /// Address and port of a separate listener for /metrics and /api, which the main listener
    /// then does not serve
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "ADDRESS:PORT",
        value_parser = parse_optional_address, default_value = "", hide_default_value = true,
        help_heading = LISTENER))]
    pub admin_addr: OptionalAddress,
    /// Comma-separated addresses and networks of proxies whose X-Forwarded-For is trusted
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "NETWORKS", default_value = "",
        hide_default_value = true, help_heading = LIMITS))]
    pub trusted_proxies: TrustedProxies,
    /// Maximum number of sockets; further handshakes get 503. 0 for no limit
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "N",
        default_value_t = Self::default().max_sockets, help_heading = LIMITS))]
    pub max_sockets: u32,
    /// Maximum number of sockets per user; 0 for no limit
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "N",
        default_value_t = Self::default().max_sockets_per_user, help_heading = LIMITS))]
    pub max_sockets_per_user: u32,
    /// Handshakes per second from one address, and five times as many at once;
    /// further ones get 429. 0 for no limit
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "N",
        default_value_t = Self::default().max_connects_per_second, help_heading = LIMITS))]
    pub max_connects_per_second: u32,
    /// Connections from one address that carry no socket; beyond that, the one that has waited
    /// longest for a request is closed. 0 for no limit
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "N",
        default_value_t = Self::default().max_connections_per_address, help_heading = LIMITS))]
    pub max_connections_per_address: u32,
    /// Refused sockets per second from one address, and five times as many at once;
    /// then its connections are closed and its handshakes get 429. 0 for no limit
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "N",
        default_value_t = Self::default().max_refusals_per_second, help_heading = LIMITS))]
    pub max_refusals_per_second: u32,
    /// Events per second from one socket, and five times as many at once; then its
    /// transport is closed. 0 for no limit
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "N",
        default_value_t = Self::default().max_events_per_second, help_heading = LIMITS))]
    pub max_events_per_second: u32,
    /// How long before the expiry of its token a client receives auth:expiring
    #[cfg_attr(feature = "cli", arg(long = "jwt-expiry-notice", env = "JWT_EXPIRY_NOTICE",
        value_name = "DURATION", default_value = text(Self::default().expiry_notice),
        value_parser = parse_delay, help_heading = JWT))]
    pub expiry_notice: Duration,
    /// Shape of the updates sent to clients: auto as published; sections as antirek/chatapp
    /// and similar pages read them; original as first documented
    #[cfg_attr(feature = "cli", arg(long = "chat3-envelope", env = "CHAT3_ENVELOPE",
        value_name = "SHAPE", value_enum, default_value_t = Self::default().envelope,
        help_heading = UPDATES))]
    pub envelope: Envelope,
    /// Drop updates that repeat one of the user's last 256, as Chat3 before 0.0.87
    /// may publish them: same tenantId, eventId, updateType and entityId
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "BOOL",
        default_value_t = Self::default().drop_repeated_updates, action = clap::ArgAction::Set,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = UPDATES))]
    pub drop_repeated_updates: bool,
    #[cfg_attr(feature = "cli", command(flatten))]
    pub recovery: RecoveryConfig,
}

impl Default for HttpConfig {
    /// The documented defaults; the environment is not read.
    fn default() -> Self {
        Self {
            port: 3001,
            cors_origin: CorsOrigins::default(),
            admin_token: None,
            socket_write_timeout: Duration::from_secs(30),
            direct_writes: true,
            shutdown_delay: Duration::ZERO,
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
            recovery: RecoveryConfig::default(),
            envelope: Envelope::default(),
            drop_repeated_updates: false,
        }
    }
}

/// How far back a lost connection can be recovered.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct RecoveryConfig {
    /// How long after its loss a connection can be recovered with all updates that it
    /// missed; 0 turns recovery off
    #[cfg_attr(feature = "cli", arg(long = "recovery-window", env = "RECOVERY_WINDOW",
        value_name = "DURATION", default_value = text(Self::default().window),
        value_parser = parse_window, help_heading = RECOVERY))]
    pub window: Duration,
    /// Updates kept per user
    #[cfg_attr(feature = "cli", arg(long = "recovery-max-updates", env = "RECOVERY_MAX_UPDATES",
        value_name = "N", default_value_t = Self::default().max_updates, help_heading = RECOVERY))]
    pub max_updates: usize,
    /// Bytes of updates kept per user
    #[cfg_attr(feature = "cli", arg(long = "recovery-max-bytes", env = "RECOVERY_MAX_BYTES",
        value_name = "BYTES", default_value_t = Self::default().max_bytes,
        help_heading = RECOVERY))]
    pub max_bytes: usize,
    /// Bytes of updates kept for all users together
    #[cfg_attr(feature = "cli", arg(long = "recovery-total-bytes", env = "RECOVERY_TOTAL_BYTES",
        value_name = "BYTES", default_value_t = Self::default().total_bytes,
        help_heading = RECOVERY))]
    pub total_bytes: usize,
    /// Comma-separated secrets, the same for all instances, that sign what clients present to
    /// resume a session anywhere in the stream topology; the first signs, all verify; without
    /// it, derived from that of the tokens
    #[cfg_attr(feature = "cli", arg(long = "recovery-secret", env = "RECOVERY_SECRET",
        value_name = "SECRETS", hide_env_values = true, default_value = "",
        hide_default_value = true, help_heading = RECOVERY))]
    pub secrets: RecoverySecrets,
    /// Close the sockets of users who may have missed updates while RabbitMQ was away, so that
    /// their frontends fetch; always so in the stream topology
    #[cfg_attr(feature = "cli", arg(long = "resync-on-gap", env = "RESYNC_ON_GAP",
        value_name = "BOOL", default_value_t = Self::default().resync_on_gap,
        action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(),
        help_heading = RECOVERY))]
    pub resync_on_gap: bool,
}

impl Default for RecoveryConfig {
    /// The documented defaults.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(2 * 60),
            max_updates: 1_000,
            max_bytes: 1 << 20,
            total_bytes: 256 << 20,
            secrets: RecoverySecrets::default(),
            resync_on_gap: true,
        }
    }
}
