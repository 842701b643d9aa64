//! What operators observe while the gateway serves: metrics and sampled log lines.

pub mod metrics;
pub(crate) mod sampled;
