//! What the gateway tells operators while it serves: metrics and sampled log lines.

pub mod metrics;
pub(crate) mod sampled;
