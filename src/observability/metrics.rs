//! Every counter, gauge and histogram of the service, and their text exposition for
//! Prometheus.
//!
//! Names are static and labels have few values: never a user id. A [`GaugeGuard`] keeps a
//! gauge in step with a lifetime. Metrics observe; no decision depends on one.
//!
//! Imports nothing of this crate.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::text,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};

/// The media type of [`Metrics::render`], from the OpenMetrics specification.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

// The values of each label. Every one is in the exposition from the start, at zero:
// Prometheus sees no increase in the first value of a series.

const REJECTED: &[&str] = &[
    "empty",
    "too_large",
    "too_deep",
    "not_json",
    "not_an_update",
    "foreign_user",
    "foreign_tenant",
    "no_socket",
    "repeated",
];
const EVENTS: &[&str] = &[
    "chat3:update",
    "message:new",
    "message:update",
    "dialog:update",
    "typing:update",
    "recovery:offset",
];
/// Of sockets and of `auth:refresh`.
const TOKENS_REFUSED: &[&str] = &[
    "token_missing",
    "token_invalid",
    "token_expired",
    "token_not_yet_valid",
    "token_without_expiry",
    "token_revoked",
    "issuer",
    "audience",
    "user_id_missing",
    "user_id_invalid",
    "tenant_id_missing",
    "tenant_id_invalid",
    "address_refusals",
    "overloaded",
];
const CONNECTS_REFUSED: &[&str] = &[
    "ids_too_long",
    "too_many_sockets",
    "too_many_connects",
    "address_rate",
    "server_full",
    "foreign_origin",
    "bad_websocket",
];
const REFRESHES_REFUSED: &[&str] = &["another_user"];
const CLOSED: &[&str] = &[
    "packets",
    "bytes",
    "namespaces",
    "slow_body",
    "address",
    "full",
];
const ADMIN_REFUSED: &[&str] = &["wrong_token", "token_missing", "address_refusals"];
const READS: &[&str] = &["ok", "failed"];
const LOOKS: &[&str] = &["quiet", "others", "matched", "dead", "refused", "failed"];
const RECOVERIES: &[&str] = &["recovered", "unknown", "gap", "unreadable"];
const RECOVERIES_LOST: &[&str] = &["expired", "memory", "too_many"];
const PRESENCE: &[&str] = &["online", "offline"];

/// A counter for each value of one label.
#[derive(Clone)]
struct Counters {
    label: &'static str,
    family: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Counters {
    fn add(&self, value: &'static str, count: u64) {
        let series = [(self.label, value)];
        debug_assert!(self.family.get(&series).is_some(), "{value} is not listed");
        self.family.get_or_create(&series).inc_by(count);
    }
}

/// The metrics of one server; clones share the same values.
///
/// Metrics observe. The service decides by state of its own, so servers that count into
/// the same metrics do not share limits. [`Metrics::new`] says what each metric counts.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Memory of the process before it had a socket, in bytes.
    memory_at_start: i64,
    pub(crate) sockets: Gauge,
    pub(crate) users: Gauge,
    pub(crate) users_away: Gauge,
    pub(crate) kept_updates: Gauge,
    pub(crate) kept_bytes: Gauge,
    pub(crate) history_age: Gauge,
    pub(crate) history_reading: Gauge,
    memory: Gauge,
    memory_per_socket: Gauge,
    #[doc(hidden)] // For tests/rabbitmq_service/.
    pub subscriptions: Gauge,
    #[doc(hidden)] // For tests/rabbitmq_service/.
    pub subscriptions_refused: Counter,
    pub(crate) binding_keys_refused: Counter,
    pub(crate) broker_connected: Gauge,
    pub(crate) control_connected: Gauge,
    pub(crate) control_stream: Gauge,
    pub(crate) orders_read: Counter,
    pub(crate) presence_connected: Gauge,
    pub(crate) presence_keeper: Gauge,
    pub(crate) presence_users: Gauge,
    presence_events: Counters,
    pub(crate) presence_unconfirmed: Counter,
    pub(crate) bindings_dead: Gauge,
    silence_looks: Counters,
    pub(crate) broker_reconnects: Counter,
    pub(crate) orders_not_broadcast: Counter,
    pub(crate) messages_unreadable: Counter,
    pub(crate) stream_holes: Counter,
    pub(crate) stream_stops: Counter,
    pub(crate) stream_round_trip: Histogram,
    pub(crate) updates_received: Counter,
    #[doc(hidden)] // For tests/rabbitmq_service/.
    pub updates_unclaimed: Counter,
    pub(crate) updates_delivered: Counter,
    pub(crate) updates_kept: Counter,
    updates_rejected: Counters,
    events_emitted: Counters,
    pub(crate) connects: Counter,
    connects_refused: Counters,
    connections_closed: Counters,
    jwks_reads: Counters,
    pub(crate) slow_sockets: Counter,
    pub(crate) noisy_sockets: Counter,
    pub(crate) expired_sockets: Counter,
    pub(crate) revoked_sockets: Counter,
    pub(crate) revocations_forgotten: Counter,
    admin_refused: Counters,
    refreshes_refused: Counters,
    recoveries: Counters,
    recoveries_lost: Counters,
    pub(crate) resyncs: Counter,
    latency: Histogram,
}

impl Metrics {
    /// Metrics in a new registry, all at zero.
    #[rustfmt::skip] // One line for each: name and help text, as `/metrics` shows them.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("chat3_gateway");
        let mut r = Register(&mut registry);
        let metrics = Self {
            memory_at_start: memory(),
            sockets: r.metric("sockets", "Sockets that were let in and have not disconnected"),
            users: r.metric("users", "Users with at least one socket"),
            users_away: r.metric("users_away", "Users without a socket who may still recover their connection"),
            kept_updates: r.metric("recovery_updates", "Updates kept so that connections can be recovered"),
            kept_bytes: r.metric_in(Unit::Bytes, "recovery", "Memory of the updates kept so that connections can be recovered"),
            history_age: r.metric_in(Unit::Seconds, "history", "Age of the oldest update that is kept, where everybody's updates are"),
            history_reading: r.metric("history_reading", "1 while updates from before the start are read back"),
            memory: r.metric_in(Unit::Bytes, "memory", "Memory of the process (resident)"),
            memory_per_socket: r.metric_in(Unit::Bytes, "memory_per_socket", "Memory of the process beyond that at its start, by socket; 0 without one"),
            subscriptions: r.metric("subscriptions", "Users whose updates are received"),
            subscriptions_refused: r.metric("subscriptions_refused", "Subscriptions that RabbitMQ refused, each try"),
            binding_keys_refused: r.metric("binding_keys_refused", "Binding keys that RabbitMQ refused, while it permits others of the same user"),
            broker_connected: r.metric("rabbitmq_connected", "1 while the RabbitMQ connection is up"),
            control_connected: r.metric("rabbitmq_control_connected", "1 while orders come from and go to the other instances"),
            control_stream: r.metric("rabbitmq_control_stream", "1 while orders come from the stream in which RabbitMQ keeps them"),
            orders_read: r.metric("orders_read", "Orders that RabbitMQ had kept and that were read after a start or a lost connection"),
            presence_connected: r.metric("presence_connected", "1 while the other instances hear who is online here"),
            presence_keeper: r.metric("presence_keeper", "1 while this instance keeps who is online for the fleet, and publishes it"),
            presence_users: r.metric("presence_users", "Users online in the fleet, as published; 0 at instances that do not keep it"),
            presence_events: r.counters("presence_events", "Presence events published, by event: online or offline", "event", PRESENCE),
            presence_unconfirmed: r.metric("presence_unconfirmed", "Presence events that RabbitMQ did not confirm: a queue that is bound to their exchange is full, down or slow"),
            bindings_dead: r.metric("rabbitmq_bindings_dead", "1 while updates of users online are published with keys that no binding matches"),
            silence_looks: r.counters("rabbitmq_silence_looks", "Looks at what is published, since no update came, by what they found", "outcome", LOOKS),
            broker_reconnects: r.metric("rabbitmq_reconnects", "RabbitMQ connections established after the first"),
            orders_not_broadcast: r.metric("orders_not_broadcast", "Orders that RabbitMQ did not take in time, so that other instances do not know them"),
            messages_unreadable: r.metric("messages_unreadable", "Messages that ended the RabbitMQ connection, because the AMQP library cannot read them"),
            stream_holes: r.metric("stream_holes", "Times that the reader of the stream did not find its place again, so that updates may have been missed"),
            stream_stops: r.metric("stream_stops", "Times that the reader of the stream had stopped without an end, and was replaced"),
            stream_round_trip: r.latency("stream_round_trip", "Time that a marker of the gateway takes through the stream"),
            updates_received: r.metric("updates_received", "Updates consumed from RabbitMQ, once for each user"),
            updates_unclaimed: r.metric("updates_unclaimed", "Updates that came over a queue of several users and were for no user who is online"),
            updates_delivered: r.metric("updates_delivered", "Updates handed to at least one socket of their user"),
            updates_kept: r.metric("updates_kept", "Updates kept for a user who is away or whose sockets lag, and handed to no socket yet"),
            updates_rejected: r.counters("updates_rejected", "Updates not delivered, by reason", "reason", REJECTED),
            events_emitted: r.counters("events_emitted", "Socket.IO events handed to sockets, replays included, by event name", "event", EVENTS),
            connects: r.metric("connects", "Sockets let in"),
            connects_refused: r.counters("connects_refused", "Handshakes and sockets refused, by reason", "reason", &[TOKENS_REFUSED, CONNECTS_REFUSED].concat()),
            connections_closed: r.counters("connections_closed", "Connections and sessions ended because they took more than their share, by reason", "reason", CLOSED),
            jwks_reads: r.counters("jwks_reads", "Reads of the JSON Web Key Set, by outcome: ok or failed", "outcome", READS),
            slow_sockets: r.metric("slow_sockets", "Sockets whose transport was closed because they did not keep up"),
            noisy_sockets: r.metric("noisy_sockets", "Sockets whose transport was closed because they sent too many events"),
            expired_sockets: r.metric("expired_sockets", "Sockets whose transport was closed because their token had expired"),
            revoked_sockets: r.metric("revoked_sockets", "Sockets that an order sent away"),
            revocations_forgotten: r.metric("revocations_forgotten", "Revocations in force that were forgotten, because there were too many"),
            admin_refused: r.counters("admin_refused", "Requests to the admin API that were refused, by reason", "reason", ADMIN_REFUSED),
            refreshes_refused: r.counters("refreshes_refused", "Tokens sent by auth:refresh that were refused, by reason", "reason", &[TOKENS_REFUSED, REFRESHES_REFUSED].concat()),
            recoveries: r.counters("recoveries", "Reconnects that asked for what they missed, by outcome", "outcome", RECOVERIES),
            recoveries_lost: r.counters("recoveries_lost", "Connections that can no longer be recovered, by reason", "reason", RECOVERIES_LOST),
            resyncs: r.metric("resyncs", "Sockets closed because their user may have missed updates, so that the frontend fetches"),
            latency: r.latency("update_latency", "From the publisher's AMQP timestamp to the hand-off to the sockets"),
            registry: Arc::default(),
        };
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// Counts an update that was not delivered.
    pub(crate) fn update_rejected(&self, reason: &'static str) {
        self.updates_rejected.add(reason, 1);
    }

    /// Counts a connection that is refused.
    pub(crate) fn connect_refused(&self, reason: &'static str) {
        self.connects_refused.add(reason, 1);
    }

    /// Counts a connection or session that is closed because it exceeds a limit.
    pub(crate) fn connection_closed(&self, reason: &'static str) {
        self.connections_closed.add(reason, 1);
    }

    /// Counts a request to the admin API that is refused.
    pub(crate) fn admin_refused(&self, reason: &'static str) {
        self.admin_refused.add(reason, 1);
    }

    /// Counts a token that `auth:refresh` refused.
    pub(crate) fn refresh_refused(&self, reason: &'static str) {
        self.refreshes_refused.add(reason, 1);
    }

    /// Counts a reconnect that asked for the updates it missed.
    pub(crate) fn recovery(&self, outcome: &'static str) {
        self.recoveries.add(outcome, 1);
    }

    /// Counts connections that can no longer be recovered.
    pub(crate) fn recoveries_lost(&self, reason: &'static str, connections: u64) {
        self.recoveries_lost.add(reason, connections);
    }

    /// Counts a check for the reason why no updates arrive.
    pub(crate) fn silence_look(&self, outcome: &'static str) {
        self.silence_looks.add(outcome, 1);
    }

    /// Counts an event that consumers of presence were sent.
    pub(crate) fn presence_event(&self, event: &'static str) {
        self.presence_events.add(event, 1);
    }

    /// Counts a read of the key set.
    pub(crate) fn jwks_read(&self, is_ok: bool) {
        let outcome = if is_ok { "ok" } else { "failed" };
        self.jwks_reads.add(outcome, 1);
    }

    /// Counts one event that was handed to `sockets` sockets.
    pub(crate) fn emitted(&self, event: &'static str, sockets: u64) {
        self.events_emitted.add(event, sockets);
    }

    /// Records the time from publication to the hand-off to sockets.
    pub(crate) fn latency(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
    }

    /// Writes all metrics as OpenMetrics text.
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

/// Makes metrics and registers them, in one step.
struct Register<'r>(&'r mut Registry);

impl Register<'_> {
    fn metric<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[&'static str],
    ) -> Counters {
        let family: Family<_, Counter> = self.metric(name, help);
        for value in values {
            drop(family.get_or_create(&[(label, *value)]));
        }
        Counters { label, family }
    }

    fn metric_in<M: Metric + Clone + Default>(&mut self, unit: Unit, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }

    fn latency(&mut self, name: &str, help: &str) -> Histogram {
        // 0.5 ms to 16 s, doubling: from a local hop to a broker in trouble.
        let metric = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        self.0
            .register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
}

/// Resident memory of the process in bytes; 0 where the system does not report it.
fn memory() -> i64 {
    let bytes = memory_stats::memory_stats().map(|stats| stats.physical_mem);
    bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds one to a gauge until the guard is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Adds one to `gauge`.
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
