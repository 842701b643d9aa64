//! How much memory the logs of one hub's users take, and when that is too much.
//! Gauges mirror it for operators and decide nothing.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use crate::{compact::Era, observability::metrics::Metrics};

/// The updates that all logs of a hub keep. Clones are of the same total.
#[derive(Debug, Clone)]
pub(super) struct Kept(Arc<Total>);

#[derive(Debug)]
struct Total {
    era: Era,
    bytes: AtomicUsize,
    limit: usize,
    passed: Notify,
    updates_gauge: Gauge,
    bytes_gauge: Gauge,
}

impl Kept {
    /// A total of nothing; more than `limit` bytes are too many.
    pub(super) fn new(limit: usize, metrics: &Metrics) -> Self {
        Self(Arc::new(Total {
            era: Era::begin(),
            bytes: AtomicUsize::new(0),
            limit,
            passed: Notify::new(),
            updates_gauge: metrics.kept_updates.clone(),
            bytes_gauge: metrics.kept_bytes.clone(),
        }))
    }

    /// What the moments of kept updates are counted from.
    pub(super) fn era(&self) -> Era {
        self.0.era
    }

    /// Adds an update of that many bytes.
    pub(super) fn add(&self, bytes: usize) {
        let total = &*self.0;
        total.updates_gauge.inc();
        total.bytes_gauge.inc_by(gauge_value(bytes));
        let before = total.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before > total.limit {
            total.passed.notify_one();
        }
    }

    /// Takes away an update of that many bytes.
    pub(super) fn remove(&self, bytes: usize) {
        let total = &*self.0;
        total.updates_gauge.dec();
        total.bytes_gauge.dec_by(gauge_value(bytes));
        total.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of all updates.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// The number of bytes that are not too many yet.
    pub(super) fn limit(&self) -> usize {
        self.0.limit
    }

    /// Waits until an update is added to more bytes than the limit. For one task.
    pub(super) async fn over_limit(&self) {
        self.0.passed.notified().await;
    }
}

fn gauge_value(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
impl Default for Kept {
    fn default() -> Self {
        Self::new(usize::MAX, &Metrics::new())
    }
}
