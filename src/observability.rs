//! What the gateway tells operators: metrics, log lines, spans.

pub mod metrics;
pub(crate) mod sampled;
#[doc(hidden)]
pub mod telemetry;
