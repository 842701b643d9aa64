//! A hub between doubles, with helpers for directed tests.

use std::{sync::Arc, time::Duration};

use super::double::{Exchange, Wire};
use crate::{
    config::{HttpConfig, RecoveryConfig},
    observability::metrics::Metrics,
    sessions::{Admitted, Hub, ResumeRequest, Session, audience::Fed},
    user::User,
};

pub const AMPLE: usize = 1 << 30;

pub struct House {
    pub hub: Arc<Hub<Wire>>,
    pub exchange: Arc<Exchange>,
    pub metrics: Metrics,
}

impl House {
    pub fn new(config: &HttpConfig) -> Self {
        Self::on(config, Metrics::new())
    }

    pub fn on(config: &HttpConfig, metrics: Metrics) -> Self {
        let exchange = Arc::new(Exchange::default());
        exchange.set_up(true);
        let hub = Hub::without_expiry(exchange.clone(), config, metrics.clone());
        Self {
            hub,
            exchange,
            metrics,
        }
    }

    /// Connects a socket of `user` that is admitted and live.
    pub fn connect(&self, user: &User, request: ResumeRequest) -> (Session<Wire>, Wire) {
        self.connect_narrow(user, request, AMPLE)
    }

    /// The same with a socket that takes `capacity` events ahead of its client.
    pub fn connect_narrow(
        &self,
        user: &User,
        request: ResumeRequest,
        capacity: usize,
    ) -> (Session<Wire>, Wire) {
        let (session, wire, _) = self.admit(user, request);
        wire.state().capacity = capacity;
        catch_up(&session, &wire);
        (session, wire)
    }

    pub fn admit(
        &self,
        user: &User,
        request: ResumeRequest,
    ) -> (Session<Wire>, Wire, Option<Admitted<u32>>) {
        let session = Session::join(&self.hub, user, request, 0).unwrap();
        let wire = Wire::new(u32::try_from(session.number()).unwrap(), AMPLE);
        let admitted = session.admit(u32::try_from(session.number()).unwrap(), |_| false);
        (session, wire, admitted)
    }

    pub fn publish(&self, user: &User, bytes: usize) {
        let id = user.id.as_str();
        let padding = "x".repeat(bytes);
        let body = format!(r#"{{"userId":"{id}","padding":"{padding}"}}"#);
        assert!(self.exchange.publish(user, body));
    }

    pub fn kept(&self) -> usize {
        self.hub.shared.kept.bytes()
    }

    pub fn says(&self, line: &str) {
        let text = self.metrics.render();
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
}

pub fn catch_up(session: &Session<Wire>, wire: &Wire) {
    while session.audience.feed(session.number(), wire) == Fed::Turn {}
}

pub fn config(recovery: RecoveryConfig) -> HttpConfig {
    HttpConfig {
        recovery,
        ..HttpConfig::default()
    }
}

pub fn recovery() -> RecoveryConfig {
    RecoveryConfig {
        window: Duration::from_secs(120),
        max_updates: 1_000,
        max_bytes: 1 << 20,
        total_bytes: AMPLE,
        ..RecoveryConfig::default()
    }
}

/// A runtime with one thread: spawned catch-ups run only while a test awaits.
pub fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap()
}
