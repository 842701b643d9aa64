//! Spans for an OpenTelemetry collector, over OTLP/HTTP.
//!
//! The standard `OTEL_…` variables configure the export; without an endpoint there is none.
//! A collector that cannot be reached costs spans and nothing else: spans wait in a bounded
//! queue, a separate thread sends them, and those that find the queue full are dropped.

use std::{
    env,
    error::Error,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, hyper::HyperClient};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracerProvider, Tracer},
};
use tracing::{info, warn};

use crate::tls::{self, TlsError};

const SERVICE_NAME: &str = "chat3-gateway";

/// Longest time that the end of the process waits for the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The default of the specification.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A running export. Dropping it sends the spans that are still queued.
pub struct Export(SdkTracerProvider);

impl Export {
    /// Starts the export if the environment names a collector.
    ///
    /// # Errors
    /// When the environment asks for something that is not supported.
    pub fn start() -> Result<Option<Self>, Box<dyn Error>> {
        if !is_wanted() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new()?)
            .with_protocol(protocol()?)
            .build()?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        Ok(Some(Self(provider)))
    }

    pub fn tracer(&self) -> Tracer {
        self.0.tracer(SERVICE_NAME)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            warn!(%error, "the last spans are not exported");
        }
    }
}

fn is_wanted() -> bool {
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|is| is.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
    exporter_variable("ENDPOINT").is_some() && !is_off
}

/// Without the variable, the default of the specification: the library's own default
/// depends on its cargo features.
fn protocol() -> Result<Protocol, String> {
    match exporter_variable("PROTOCOL").as_deref() {
        None | Some("http/protobuf") => Ok(Protocol::HttpBinary),
        Some("http/json") => Ok(Protocol::HttpJson),
        Some(other) => Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL: {other:?} is none of http/protobuf, http/json"
        )),
    }
}

/// Who sends the spans: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`.
fn resource() -> Resource {
    let resource = Resource::builder_empty()
        .with_service_name(SERVICE_NAME)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// The variable of the exporter of spans, or else of all exporters.
fn exporter_variable(name: &str) -> Option<String> {
    variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
        .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

/// A variable. An empty one counts as unset, as the specification says.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The HTTP client that sends spans to the collector.
#[derive(Debug)]
struct Collector {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    /// Whether the last request failed: an outage of any length causes two log lines.
    failing: AtomicBool,
}

impl Collector {
    fn new() -> Result<Self, TlsError> {
        let ca_file = exporter_variable("CERTIFICATE").map(PathBuf::from);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(ca_file.as_deref(), None)?)
            .https_or_http()
            .enable_http1()
            .build();
        let timeout = exporter_variable("TIMEOUT");
        let timeout = timeout.and_then(|text| Some(Duration::from_millis(text.parse().ok()?)));
        Ok(Self {
            client: HyperClient::new(connector, timeout.unwrap_or(DEFAULT_TIMEOUT), None),
            failing: AtomicBool::new(false),
        })
    }

    fn note(&self, failure: Option<String>) {
        match failure {
            Some(reason) if !self.failing.swap(true, Ordering::Relaxed) => {
                warn!(%reason, "Spans not exported");
            }
            None if self.failing.swap(false, Ordering::Relaxed) => info!("Spans exported again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    /// The exporter calls this in its own thread, which may block. A new runtime for each
    /// batch makes the export independent of the runtime of the process.
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // A connection cannot outlive its runtime.
        let close = http::HeaderValue::from_static("close");
        request
            .headers_mut()
            .insert(http::header::CONNECTION, close);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let response = runtime.block_on(self.client.send_bytes(request));
        // Does not wait for a name look-up that hangs.
        runtime.shutdown_background();
        self.note(match &response {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answers {}", response.status())),
            // The reason is in the causes of the error.
            Err(error) => Some(
                anyhow::Chain::new(&**error)
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(": "),
            ),
        });
        response
    }
}
