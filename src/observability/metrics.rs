//! What operators can measure: every counter, gauge and histogram of the
//! service, and their text exposition for Prometheus.
//!
//! Names are static and labels come from small enums: never a user id. Gauges
//! that follow a lifetime are held through a [`GaugeGuard`].
//!
//! Imports nothing of this crate.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// The media type of [`Metrics::render`], from the OpenMetrics specification.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Event {
    event: &'static str,
}

/// All metrics of one gateway; clones share the same values.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Sockets that passed authentication and have not disconnected.
    pub sockets: Gauge,
    /// Users with at least one socket.
    pub users: Gauge,
    /// Users without a socket who may still recover their connection.
    pub users_away: Gauge,
    /// Updates kept so that connections can be recovered.
    pub kept_updates: Gauge,
    /// Their bytes.
    pub kept_bytes: Gauge,
    memory: Gauge,
    memory_per_socket: Gauge,
    /// What the process took before it had a socket, in bytes.
    memory_at_start: i64,
    /// Users whose updates are received.
    pub subscriptions: Gauge,
    /// Subscriptions that the broker refused, each try.
    pub subscriptions_refused: Counter,
    /// Binding keys that the broker refused, while it permits others.
    pub binding_keys_refused: Counter,
    /// 1 while the broker connection is up.
    pub broker_connected: Gauge,
    /// 1 while orders come from and go to the other instances.
    pub control_connected: Gauge,
    /// 1 while updates of users online are published that no binding matches.
    pub bindings_dead: Gauge,
    silence_looks: Family<Outcome, Counter>,
    /// Orders that the other instances were not told of, in time.
    pub orders_not_broadcast: Counter,
    /// Broker connections established after the first.
    pub broker_reconnects: Counter,
    /// Messages that ended the broker connection: the AMQP library cannot read them.
    pub messages_unreadable: Counter,
    /// Updates consumed; each is then delivered, kept or rejected, exactly once.
    pub updates_received: Counter,
    /// Updates that came over a queue of several users and were nobody's who is online.
    pub updates_unclaimed: Counter,
    /// Updates handed to the sockets of their user, at least one.
    pub updates_delivered: Counter,
    /// Updates kept for a user who is away or lags behind, and handed to no socket.
    pub updates_kept: Counter,
    updates_rejected: Family<Reason, Counter>,
    events_emitted: Family<Event, Counter>,
    /// Sockets let in.
    pub connects: Counter,
    connects_refused: Family<Reason, Counter>,
    connections_closed: Family<Reason, Counter>,
    jwks_reads: Family<Outcome, Counter>,
    /// Sockets whose transport was closed because they did not keep up.
    pub slow_sockets: Counter,
    /// Sockets whose transport was closed because they sent too many events.
    pub noisy_sockets: Counter,
    /// Sockets whose transport was closed because their token had expired.
    pub expired_sockets: Counter,
    /// Sockets that an operator's order sent away.
    pub revoked_sockets: Counter,
    /// Revocations in force that were forgotten, because there were too many.
    pub revocations_forgotten: Counter,
    admin_refused: Family<Reason, Counter>,
    refreshes_refused: Family<Reason, Counter>,
    recoveries: Family<Outcome, Counter>,
    recoveries_lost: Family<Reason, Counter>,
    latency: Histogram,
}

impl Metrics {
    /// A registry of its own, with everything at zero.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Arc::default(),
            sockets: Gauge::default(),
            users: Gauge::default(),
            users_away: Gauge::default(),
            kept_updates: Gauge::default(),
            kept_bytes: Gauge::default(),
            memory: Gauge::default(),
            memory_per_socket: Gauge::default(),
            memory_at_start: memory(),
            subscriptions: Gauge::default(),
            subscriptions_refused: Counter::default(),
            binding_keys_refused: Counter::default(),
            broker_connected: Gauge::default(),
            control_connected: Gauge::default(),
            bindings_dead: Gauge::default(),
            silence_looks: Family::default(),
            orders_not_broadcast: Counter::default(),
            broker_reconnects: Counter::default(),
            messages_unreadable: Counter::default(),
            updates_received: Counter::default(),
            updates_unclaimed: Counter::default(),
            updates_delivered: Counter::default(),
            updates_kept: Counter::default(),
            updates_rejected: Family::default(),
            events_emitted: Family::default(),
            connects: Counter::default(),
            connects_refused: Family::default(),
            connections_closed: Family::default(),
            jwks_reads: Family::default(),
            slow_sockets: Counter::default(),
            noisy_sockets: Counter::default(),
            expired_sockets: Counter::default(),
            revoked_sockets: Counter::default(),
            revocations_forgotten: Counter::default(),
            admin_refused: Family::default(),
            refreshes_refused: Family::default(),
            recoveries: Family::default(),
            recoveries_lost: Family::default(),
            // 0.5 ms to 16 s, doubling: from a local hop to a broker in trouble.
            latency: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
        };
        let registry = Arc::new(metrics.registry());
        Self {
            registry,
            ..metrics
        }
    }

    #[allow(clippy::too_many_lines)] // It is a list.
    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("chat3_gateway");
        let r = &mut registry;
        r.register("sockets", "Connected sockets", self.sockets.clone());
        r.register(
            "users",
            "Users with at least one socket",
            self.users.clone(),
        );
        r.register(
            "users_away",
            "Users without a socket who may still recover their connection",
            self.users_away.clone(),
        );
        r.register(
            "recovery_updates",
            "Updates kept so that connections can be recovered",
            self.kept_updates.clone(),
        );
        r.register_with_unit(
            "recovery",
            "Memory of the updates kept so that connections can be recovered",
            Unit::Bytes,
            self.kept_bytes.clone(),
        );
        r.register_with_unit(
            "memory",
            "Memory of the process (resident)",
            Unit::Bytes,
            self.memory.clone(),
        );
        r.register_with_unit(
            "memory_per_socket",
            "Memory of the process beyond that at its start, by socket; 0 without one",
            Unit::Bytes,
            self.memory_per_socket.clone(),
        );
        r.register(
            "subscriptions",
            "Users whose updates are received",
            self.subscriptions.clone(),
        );
        r.register(
            "subscriptions_refused",
            "Subscriptions that RabbitMQ refused, each try",
            self.subscriptions_refused.clone(),
        );
        r.register(
            "binding_keys_refused",
            "Binding keys that RabbitMQ refused, while it permits others of the same user",
            self.binding_keys_refused.clone(),
        );
        r.register(
            "rabbitmq_connected",
            "1 while the RabbitMQ connection is up",
            self.broker_connected.clone(),
        );
        r.register(
            "rabbitmq_control_connected",
            "1 while orders come from and go to the other instances",
            self.control_connected.clone(),
        );
        r.register(
            "rabbitmq_bindings_dead",
            "1 while updates of users online are published with keys that no binding matches",
            self.bindings_dead.clone(),
        );
        r.register(
            "rabbitmq_silence_looks",
            "Looks at what is published, since no update came, by what they found",
            self.silence_looks.clone(),
        );
        r.register(
            "rabbitmq_reconnects",
            "RabbitMQ connections established after the first",
            self.broker_reconnects.clone(),
        );
        r.register(
            "orders_not_broadcast",
            "Orders that RabbitMQ did not take in time, so that other instances do not know them",
            self.orders_not_broadcast.clone(),
        );
        r.register(
            "messages_unreadable",
            "Messages that ended the RabbitMQ connection, because the AMQP library cannot read them",
            self.messages_unreadable.clone(),
        );
        r.register(
            "updates_received",
            "Updates consumed from RabbitMQ",
            self.updates_received.clone(),
        );
        r.register(
            "updates_unclaimed",
            "Updates that came over a queue of several users and were nobody's who is online",
            self.updates_unclaimed.clone(),
        );
        r.register(
            "updates_delivered",
            "Updates handed to all sockets of their user",
            self.updates_delivered.clone(),
        );
        r.register(
            "updates_kept",
            "Updates kept for a user who is away, and handed to no socket",
            self.updates_kept.clone(),
        );
        r.register(
            "updates_rejected",
            "Updates not delivered, by reason",
            self.updates_rejected.clone(),
        );
        r.register(
            "events_emitted",
            "Socket.IO events handed to sockets, by event name",
            self.events_emitted.clone(),
        );
        r.register("connects", "Sockets let in", self.connects.clone());
        r.register(
            "connects_refused",
            "Sockets refused, by reason",
            self.connects_refused.clone(),
        );
        r.register(
            "connections_closed",
            "Connections and sessions ended because they took more than their share, by reason",
            self.connections_closed.clone(),
        );
        r.register(
            "jwks_reads",
            "Reads of the JSON Web Key Set, by outcome: ok or failed",
            self.jwks_reads.clone(),
        );
        r.register(
            "slow_sockets",
            "Sockets whose transport was closed because they did not keep up",
            self.slow_sockets.clone(),
        );
        r.register(
            "noisy_sockets",
            "Sockets whose transport was closed because they sent too many events",
            self.noisy_sockets.clone(),
        );
        r.register(
            "expired_sockets",
            "Sockets whose transport was closed because their token had expired",
            self.expired_sockets.clone(),
        );
        r.register(
            "revoked_sockets",
            "Sockets that an order sent away",
            self.revoked_sockets.clone(),
        );
        r.register(
            "revocations_forgotten",
            "Revocations in force that were forgotten, because there were too many",
            self.revocations_forgotten.clone(),
        );
        r.register(
            "admin_refused",
            "Requests to the admin API that were refused, by reason",
            self.admin_refused.clone(),
        );
        r.register(
            "refreshes_refused",
            "Tokens sent by auth:refresh that were refused, by reason",
            self.refreshes_refused.clone(),
        );
        r.register(
            "recoveries",
            "Reconnects that asked for what they missed, by outcome",
            self.recoveries.clone(),
        );
        r.register(
            "recoveries_lost",
            "Connections that can no longer be recovered, by reason",
            self.recoveries_lost.clone(),
        );
        r.register_with_unit(
            "update_latency",
            "From the publisher's AMQP timestamp to the hand-off to the sockets",
            Unit::Seconds,
            self.latency.clone(),
        );
        registry
    }

    /// Counts an update that is not delivered.
    pub fn update_rejected(&self, reason: &'static str) {
        self.updates_rejected
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// Counts a connection that is refused.
    pub fn connect_refused(&self, reason: &'static str) {
        self.connects_refused
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// Counts a connection or session that took more than its share, and is ended.
    pub fn connection_closed(&self, reason: &'static str) {
        self.connections_closed
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// Counts a request to the admin API that is refused.
    pub fn admin_refused(&self, reason: &'static str) {
        self.admin_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a token that cannot extend its socket's stay.
    pub fn refresh_refused(&self, reason: &'static str) {
        self.refreshes_refused
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// Counts a reconnect that asked for what it missed.
    pub fn recovery(&self, outcome: &'static str) {
        self.recoveries.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts connections that can no longer be recovered.
    pub fn recoveries_lost(&self, reason: &'static str, connections: u64) {
        self.recoveries_lost
            .get_or_create(&Reason { reason })
            .inc_by(connections);
    }

    /// Counts a look at why no updates come.
    pub fn silence_look(&self, outcome: &'static str) {
        self.silence_looks.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a read of the key set.
    pub fn jwks_read(&self, is_ok: bool) {
        let outcome = if is_ok { "ok" } else { "failed" };
        self.jwks_reads.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts `sockets` hand-offs of one event.
    pub fn emitted(&self, event: &'static str, sockets: u64) {
        self.events_emitted
            .get_or_create(&Event { event })
            .inc_by(sockets);
    }

    /// Records the time from publication to hand-off.
    pub fn latency(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
    }

    /// The exposition in OpenMetrics text, which Prometheus and `grep` both read.
    pub fn render(&self) -> String {
        let memory = memory();
        self.memory.set(memory);
        let by_sockets = (memory - self.memory_at_start).max(0);
        let per_socket = by_sockets.checked_div(self.sockets.get());
        self.memory_per_socket.set(per_socket.unwrap_or_default());
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

/// The process's resident memory, in bytes; 0 where the system does not tell.
fn memory() -> i64 {
    let bytes = memory_stats::memory_stats().map(|stats| stats.physical_mem);
    bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds one to a gauge for as long as it lives.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Counts one more until it is dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_names_what_happened() {
        let metrics = Metrics::new();
        metrics.update_rejected("not_json");
        metrics.latency(Duration::from_millis(3));
        let guard = GaugeGuard::new(&metrics.sockets);
        let text = metrics.render();
        assert!(text.contains("chat3_gateway_updates_rejected_total{reason=\"not_json\"} 1"));
        assert!(text.contains("chat3_gateway_update_latency_seconds_count 1"));
        assert!(text.contains("chat3_gateway_sockets 1"));
        drop(guard);
        assert!(metrics.render().contains("chat3_gateway_sockets 0"));
    }
}
