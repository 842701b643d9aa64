//! What the service, its supervisor and the parts of a link share.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{desired::Desired, instance::instance_id};
use crate::{
    broker::{Broadcast, BroadcastHandler},
    config::{RabbitMqConfig, Topology},
    observability::metrics::Metrics,
};

pub(super) struct Shared {
    pub(super) config: RabbitMqConfig,
    pub(super) metrics: Metrics,
    /// Distinguishes this process's queues from those of any other.
    pub(super) instance: String,
    pub(super) desired: Desired,
    /// Counts the updates that have arrived, on any link.
    pub(super) received: Arc<AtomicU64>,
    pub(super) connected: watch::Sender<bool>,
    /// Stage one of the shutdown: consume no more.
    pub(super) stop_consuming: CancellationToken,
    /// Whether consumers may still have deliveries to hand off; false after stage one.
    pub(super) consuming: watch::Sender<bool>,
    /// Stage two: close the connection.
    pub(super) close: CancellationToken,
    /// Whether orders from other instances arrive, and so reach them, too.
    control_connected: AtomicBool,
    /// Whether kept orders wait to be read, and so sockets to be let in.
    pub(super) reading_orders: watch::Sender<bool>,
    pub(super) started_at: SystemTime,
    broadcast_handlers: watch::Sender<Vec<BroadcastHandler>>,
}

impl Shared {
    pub(super) fn new(config: RabbitMqConfig, metrics: Metrics) -> Self {
        Self {
            instance: instance_id(&config),
            reading_orders: watch::Sender::new(config.keeps_orders()),
            started_at: SystemTime::now(),
            config,
            metrics,
            desired: Desired::default(),
            received: Arc::default(),
            connected: watch::Sender::new(false),
            stop_consuming: CancellationToken::new(),
            consuming: watch::Sender::new(true),
            close: CancellationToken::new(),
            control_connected: AtomicBool::new(false),
            broadcast_handlers: watch::Sender::new(Vec::new()),
        }
    }

    pub(super) fn link_up(&self) {
        self.desired.link_up();
        self.metrics.broker_connected.set(1);
        self.connected.send_replace(true);
    }

    pub(super) fn link_down(&self) {
        self.connected.send_replace(false);
        self.metrics.broker_connected.set(0);
        match self.config.topology {
            Topology::Stream => self.desired.unlink(),
            Topology::PerUser | Topology::Shared | Topology::Firehose => self.desired.link_down(),
        }
    }

    pub(super) fn set_control_connected(&self, connected: bool) {
        self.control_connected.store(connected, Ordering::Relaxed);
        self.metrics.control_connected.set(connected.into());
    }

    pub(super) fn is_control_connected(&self) -> bool {
        self.control_connected.load(Ordering::Relaxed)
    }

    pub(super) fn on_broadcast(&self, handler: BroadcastHandler) {
        self.broadcast_handlers
            .send_modify(|handlers| handlers.push(handler));
    }

    /// Returns when somebody handles broadcasts.
    pub(super) async fn broadcasts_handled(&self) {
        let mut handlers = self.broadcast_handlers.subscribe();
        // An error cannot happen: `self` holds the sender.
        let _ = handlers.wait_for(|handlers| !handlers.is_empty()).await;
    }

    pub(super) fn are_broadcasts_handled(&self) -> bool {
        !self.broadcast_handlers.borrow().is_empty()
    }

    /// Calls all handlers with a message that another instance broadcast. A handler that
    /// panics must neither keep the message from the others nor end the consumer of orders.
    pub(super) fn broadcast_came(&self, message: &Broadcast<'_>) {
        // Without the lock, since a handler may add another one.
        let handlers = self.broadcast_handlers.borrow().clone();
        for handler in handlers {
            if catch_unwind(AssertUnwindSafe(|| handler(message))).is_err() {
                error!("RabbitMQ control message handler panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    fn shared() -> Arc<Shared> {
        Arc::new(Shared::new(RabbitMqConfig::default(), Metrics::new()))
    }

    fn broadcast(body: &[u8]) -> Broadcast<'_> {
        Broadcast {
            body,
            published_at: None,
            kept_since: None,
        }
    }

    #[test]
    fn a_broadcast_reaches_all_handlers_though_one_panics() {
        let shared = shared();
        let (sender, received) = mpsc::channel();
        shared.on_broadcast(Arc::new(|_| panic!("a handler of an embedder")));
        shared.on_broadcast(Arc::new(move |message| {
            sender.send(message.body.to_vec()).unwrap();
        }));
        for message in [b"one", b"two"] {
            shared.broadcast_came(&broadcast(message));
            assert_eq!(received.try_recv().unwrap(), message);
        }
    }

    #[test]
    fn a_handler_may_add_another_one() {
        let shared = shared();
        let weak = Arc::downgrade(&shared);
        shared.on_broadcast(Arc::new(move |_| {
            weak.upgrade().unwrap().on_broadcast(Arc::new(|_| {}));
        }));
        let (sender, is_done) = mpsc::channel();
        thread::spawn(move || {
            shared.broadcast_came(&broadcast(b""));
            sender.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}
