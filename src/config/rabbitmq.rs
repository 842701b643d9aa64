//! The settings of RabbitMQ: address, exchange, binding keys, queues, TLS.

use std::{path::Path, time::Duration};

use super::{AmqpUrls, BindingKeys, OptionalPath};
#[cfg(feature = "cli")]
use super::{
    amqp_url,
    headings::RABBITMQ,
    parse::{
        parse_delay, parse_grace, parse_heartbeat, parse_instance_name, parse_kept,
        parse_optional_short_name, parse_optional_stream_name, parse_presence_exchange,
        parse_short_name, parse_stream_name, parse_window, text,
    },
};

/// How to reach RabbitMQ and what to bind there.
#[allow(missing_docs)] // Its parts have their names from the settings.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct RabbitMqConfig {
    /// Broker address: amqp:// or amqps://, percent-encoded login and vhost; the nodes of a
    /// cluster as a comma-separated list of whole addresses
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-url", env = "RABBITMQ_URL",
        value_name = "URL", default_value = amqp_url::DEFAULT, hide_env_values = true,
        help_heading = RABBITMQ))]
    pub url: AmqpUrls,
    /// Topic exchange that Chat3 publishes updates to; the gateway never declares it
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-updates-exchange",
        env = "RABBITMQ_UPDATES_EXCHANGE", value_name = "NAME",
        default_value_t = Self::default().exchange, value_parser = parse_short_name,
        help_heading = RABBITMQ))]
    pub exchange: String,
    /// Comma-separated binding key templates with {userId}, {tenantId} and {tenantId|*}; the
    /// default covers every generation of Chat3
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-binding-keys", env = "RABBITMQ_BINDING_KEYS",
        value_name = "TEMPLATES", default_value_t = Self::default().binding_keys,
        help_heading = RABBITMQ))]
    pub binding_keys: BindingKeys,
    /// How users share queues: one queue per user, one or a few for all users, one that
    /// receives all updates, or a stream that RabbitMQ keeps for all instances
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-topology", env = "RABBITMQ_TOPOLOGY",
        value_name = "TOPOLOGY", value_enum, default_value_t = Self::default().topology,
        help_heading = RABBITMQ))]
    pub topology: Topology,
    /// Number of queues of an instance in the shared topology
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-shared-queues",
        env = "RABBITMQ_SHARED_QUEUES", value_name = "N",
        default_value_t = Self::default().shared_queues,
        value_parser = clap::value_parser!(u16).range(1..=64), help_heading = RABBITMQ))]
    pub shared_queues: u16,
    /// Name of the stream in the stream topology; declared by the gateway
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-stream", env = "RABBITMQ_STREAM",
        value_name = "NAME", default_value_t = Self::default().stream,
        value_parser = parse_stream_name, help_heading = RABBITMQ))]
    pub stream: String,
    /// Shortest time that RabbitMQ keeps updates in the stream; without it, 1h, or twice
    /// the recovery window if that is longer
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-stream-max-age",
        env = "RABBITMQ_STREAM_MAX_AGE", value_name = "DURATION", value_parser = parse_delay,
        help_heading = RABBITMQ))]
    pub stream_max_age: Option<Duration>,
    /// Delay before the first reconnect; grows by a quarter each time, with jitter, up to 30s
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-reconnect-delay",
        env = "RABBITMQ_RECONNECT_DELAY", value_name = "DURATION",
        default_value = text(Self::default().reconnect_delay), value_parser = parse_delay,
        help_heading = RABBITMQ))]
    pub reconnect_delay: Duration,
    /// Updates per queue that the broker sends before they are acknowledged; without it, 100
    /// with per-user, 1000 where users share queues
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-prefetch", env = "RABBITMQ_PREFETCH",
        value_name = "N", value_parser = clap::value_parser!(u16).range(1..),
        help_heading = RABBITMQ))]
    pub prefetch: Option<u16>,
    /// Heartbeat interval; a broker that is silent for two intervals counts as lost
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-heartbeat", env = "RABBITMQ_HEARTBEAT",
        value_name = "DURATION", default_value = text(Self::default().heartbeat),
        value_parser = parse_heartbeat, help_heading = RABBITMQ))]
    pub heartbeat: Duration,
    /// Longest time that connecting to the broker may take, including TLS and login; the
    /// nodes of a cluster share it
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-connect-timeout",
        env = "RABBITMQ_CONNECT_TIMEOUT", value_name = "DURATION",
        default_value = text(Self::default().connect_timeout), value_parser = parse_delay,
        help_heading = RABBITMQ))]
    pub connect_timeout: Duration,
    /// Fanout exchange over which instances tell each other whom to disconnect or revoke;
    /// declared by the gateway; empty for none
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-control-exchange",
        env = "RABBITMQ_CONTROL_EXCHANGE", value_name = "NAME", default_value = "",
        hide_default_value = true, value_parser = parse_optional_short_name,
        help_heading = RABBITMQ))]
    pub control_exchange: String,
    /// Stream in which RabbitMQ keeps these orders for instances that start later or were cut
    /// off; declared by the gateway; empty for none
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-control-stream",
        env = "RABBITMQ_CONTROL_STREAM", value_name = "NAME",
        default_value_t = Self::default().control_stream,
        value_parser = parse_optional_stream_name, help_heading = RABBITMQ))]
    pub control_stream: String,
    /// Shortest time that RabbitMQ keeps orders there: the lifetime of the longest-lived token
    #[cfg_attr(feature = "cli", arg(long = "revocations-kept", env = "REVOCATIONS_KEPT",
        value_name = "DURATION", default_value = text(Self::default().revocations_kept),
        value_parser = parse_kept, help_heading = RABBITMQ))]
    pub revocations_kept: Duration,
    /// Topic exchange to which the gateway publishes who comes online and goes offline in the
    /// whole fleet; declared by the gateway; empty for none
    #[cfg_attr(feature = "cli", arg(long = "presence-exchange", env = "PRESENCE_EXCHANGE",
        value_name = "NAME", default_value = "", hide_default_value = true,
        value_parser = parse_presence_exchange, help_heading = RABBITMQ))]
    pub presence_exchange: String,
    /// How long after the end of a user's last socket the user still counts as online, so that
    /// reloads are no news
    #[cfg_attr(feature = "cli", arg(long = "presence-grace", env = "PRESENCE_GRACE",
        value_name = "DURATION", default_value = text(Self::default().presence_grace),
        value_parser = parse_grace, help_heading = RABBITMQ))]
    pub presence_grace: Duration,
    /// How long users may be online without an update before the gateway checks whether their
    /// updates are published with keys that it does not bind; 0 for never
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-silence-check",
        env = "RABBITMQ_SILENCE_CHECK", value_name = "DURATION",
        default_value = text(Self::default().silence_check), value_parser = parse_window,
        help_heading = RABBITMQ))]
    pub silence_check: Duration,
    /// Name of the instance in queue and connection names; without it, the host name
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "NAME", default_value = "",
        hide_default_value = true, value_parser = parse_instance_name, help_heading = RABBITMQ))]
    pub instance_name: String,
    #[cfg_attr(feature = "cli", command(flatten))]
    pub tls: RabbitMqTls,
}

/// How users share an instance's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Topology {
    /// A queue for each user.
    PerUser,
    /// One queue or a few, each with the bindings of its users.
    Shared,
    /// One queue that receives the updates of all users, online or not.
    Firehose,
    /// One stream that all instances read.
    Stream,
}

/// The certificates of `amqps://` connections, read at each connect.
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct RabbitMqTls {
    /// CA certificates (PEM) for the broker; without it, the public CAs
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-ca-file", env = "RABBITMQ_CA_FILE",
        value_name = "PATH", help_heading = RABBITMQ))]
    ca_file: Option<OptionalPath>,
    /// Client certificate (PEM) for a broker that asks for one
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-client-cert-file",
        env = "RABBITMQ_CLIENT_CERT_FILE", value_name = "PATH", requires = "client_key_file",
        help_heading = RABBITMQ))]
    client_cert_file: Option<OptionalPath>,
    /// Private key (PEM) of the client certificate
    #[cfg_attr(feature = "cli", arg(long = "rabbitmq-client-key-file",
        env = "RABBITMQ_CLIENT_KEY_FILE", value_name = "PATH", requires = "client_cert_file",
        help_heading = RABBITMQ))]
    client_key_file: Option<OptionalPath>,
}

impl RabbitMqTls {
    /// The file of CA certificates for the broker.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_ref()?.path()
    }

    /// The files of the client certificate and its key.
    pub fn client(&self) -> Option<(&Path, &Path)> {
        let certificate = self.client_cert_file.as_ref().and_then(OptionalPath::path);
        let key = self.client_key_file.as_ref().and_then(OptionalPath::path);
        // One without the other causes an error when the empty path is read, and never a
        // connection without the certificate.
        let empty = Path::new("");
        (certificate.is_some() || key.is_some())
            .then(|| (certificate.unwrap_or(empty), key.unwrap_or(empty)))
    }
}

impl Default for RabbitMqConfig {
    /// The documented defaults; the environment is not read.
    fn default() -> Self {
        Self {
            url: AmqpUrls::default(),
            exchange: "chat3_updates".to_owned(),
            binding_keys: BindingKeys::default(),
            topology: Topology::PerUser,
            shared_queues: 1,
            stream: "chat3-gateway.updates".to_owned(),
            stream_max_age: None,
            reconnect_delay: Duration::from_secs(5),
            prefetch: None,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            control_exchange: String::new(),
            control_stream: "chat3-gateway.orders".to_owned(),
            revocations_kept: Duration::from_hours(24),
            presence_exchange: String::new(),
            presence_grace: Duration::from_secs(10),
            silence_check: Duration::from_secs(5 * 60),
            instance_name: String::new(),
            tls: RabbitMqTls::default(),
        }
    }
}

/// Kept at least, whatever the window: a connection to RabbitMQ may be away for longer.
const DEFAULT_STREAM_MAX_AGE: Duration = Duration::from_secs(60 * 60);

impl RabbitMqConfig {
    /// Whether orders are kept, so that instances that were not there read them later.
    pub fn keeps_orders(&self) -> bool {
        !self.control_exchange.is_empty() && !self.control_stream.is_empty()
    }

    /// Whether orders and updates would go to the same stream.
    pub(crate) fn shares_a_stream(&self) -> bool {
        let reads_updates = self.topology == Topology::Stream;
        self.keeps_orders() && reads_updates && self.control_stream == self.stream
    }

    /// Whether the gateway publishes who is online.
    pub fn tells_presence(&self) -> bool {
        !self.presence_exchange.is_empty()
    }

    /// Shortest time that RabbitMQ keeps updates in the stream.
    pub fn stream_max_age(&self) -> Duration {
        self.stream_max_age.unwrap_or(DEFAULT_STREAM_MAX_AGE)
    }

    /// The age of the stream that recovery within `window` needs: instances keep, and read
    /// back when they start, somewhat more than the window.
    pub(crate) fn stream_age_for(window: Duration) -> Duration {
        window.saturating_mul(2)
    }

    /// Has the stream kept for as long as recovery within `window` needs, unless it is set
    /// how long.
    pub(crate) fn keep_stream_for(&mut self, window: Duration) {
        let needed = Self::stream_age_for(window).max(DEFAULT_STREAM_MAX_AGE);
        self.stream_max_age.get_or_insert(needed);
    }

    /// Whether there is a stream, and it is kept for less than recovery within `window` needs.
    pub(crate) fn keeps_too_little_for(&self, window: Duration) -> bool {
        self.topology == Topology::Stream && self.stream_max_age() < Self::stream_age_for(window)
    }

    /// Updates per queue that the broker sends before they are acknowledged.
    pub fn prefetch(&self) -> u16 {
        self.prefetch.unwrap_or(match self.topology {
            Topology::PerUser => 100,
            // The queue carries many users' updates: with a smaller window the broker would
            // wait for acknowledgements.
            Topology::Shared | Topology::Firehose | Topology::Stream => 1_000,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_kept_for_twice_the_window_unless_it_is_set_how_long() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        for (set, window, expected) in [
            (None, 0, 60),
            (None, 2, 60),
            (None, 45, 90),
            (Some(3), 45, 3),
        ] {
            let mut config = RabbitMqConfig {
                stream_max_age: set.map(minutes),
                ..RabbitMqConfig::default()
            };
            config.keep_stream_for(minutes(window));
            assert_eq!(config.stream_max_age(), minutes(expected), "{set:?}");
        }
    }
}
