//! Every setting of the service, its default and its validation.
//!
//! Values are parsed once, into types that cannot hold a wrong value; the rest of the
//! crate never sees an unparsed setting. The `Default` of each type is the only place that
//! defines its defaults: the command line (the feature `cli`) derives flags, environment
//! variables and help texts from the same structs. Secrets appear in no help text, `Debug`
//! output or error.
//!
//! Imports from this crate only the ids of [`crate::user`] and the shapes of an update.

pub(crate) mod amqp_url;
mod amqp_urls;
mod binding_keys;
mod cors_origins;
mod http;
mod jwks_source;
mod jwt;
#[cfg(feature = "cli")]
pub(crate) mod parse;
mod rabbitmq;
mod trusted_proxies;
mod values;

pub use self::{
    amqp_url::{AmqpUrl, InvalidAmqpUrl},
    amqp_urls::{AmqpUrls, InvalidAmqpUrls},
    binding_keys::{BindingKeys, InvalidBindingKeys},
    cors_origins::{CorsOrigins, InvalidOrigin},
    http::{HttpConfig, RecoveryConfig},
    jwks_source::JwksSource,
    jwt::JwtConfig,
    rabbitmq::{RabbitMqConfig, RabbitMqTls, Topology},
    trusted_proxies::{InvalidNetwork, TrustedProxies},
    values::{
        MIN_ADMIN_TOKEN_BYTES, OptionalAddress, OptionalPath, OptionalTenant, RecoverySecrets,
        Secret,
    },
};
pub use crate::update::Envelope;

/// Everything that a server is configured with.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct Config {
    /// How to reach RabbitMQ, and what to bind there.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub rabbitmq: RabbitMqConfig,
    /// Address to listen on
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "HOST",
        default_value_t = Self::default().host, help_heading = headings::LISTENER))]
    pub host: String,
    /// The listener and what it serves.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub http: HttpConfig,
    /// Which tokens are accepted.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub jwt: JwtConfig,
}

impl Default for Config {
    /// The documented defaults; the environment is not read. There is no default key to
    /// verify tokens with: set one in [`Config::jwt`].
    fn default() -> Self {
        Self {
            rabbitmq: RabbitMqConfig::default(),
            host: "0.0.0.0".to_owned(),
            http: HttpConfig::default(),
            jwt: JwtConfig::default(),
        }
    }
}

/// The sections of the command line's help.
#[cfg(feature = "cli")]
pub(crate) mod headings {
    pub const RABBITMQ: &str = "RabbitMQ";
    pub const LISTENER: &str = "Listener";
    pub const UPDATES: &str = "Updates";
    pub const LIMITS: &str = "Limits";
    pub const RECOVERY: &str = "Connection state recovery";
    pub const JWT: &str = "JWT";
}
