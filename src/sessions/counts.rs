//! Counts that the hub decides by or answers with. Each is mirrored by a gauge,
//! which is never read here: hubs that share one `Metrics` share the gauge, and
//! nothing else.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prometheus_client::metrics::gauge::Gauge;

use crate::observability::metrics::GaugeGuard;

/// A number of things that exist.
pub(super) struct Count {
    number: Arc<AtomicUsize>,
    mirror: Gauge,
}

/// One thing that is counted until it is dropped.
pub(super) struct Counted {
    number: Arc<AtomicUsize>,
    _mirror: GaugeGuard,
}

impl Count {
    /// A count from zero, mirrored by `mirror`.
    pub(super) fn new(mirror: &Gauge) -> Self {
        Self {
            number: Arc::default(),
            mirror: mirror.clone(),
        }
    }

    /// Counts one more.
    pub(super) fn one(&self) -> Counted {
        self.number.fetch_add(1, Ordering::Relaxed);
        Counted {
            number: self.number.clone(),
            _mirror: GaugeGuard::new(&self.mirror),
        }
    }

    /// The current number.
    pub(super) fn number(&self) -> usize {
        self.number.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.number.fetch_sub(1, Ordering::Relaxed);
    }
}
