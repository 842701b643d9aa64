//! Orders to the other instances: what becomes of one that cannot be published.

use std::sync::Arc;

use bytes::Bytes;
use tracing::warn;

use super::{link_error::LinkError, outbox::Outbox, shared::Shared};

/// The way out for orders.
pub(super) struct Orders {
    shared: Arc<Shared>,
    outbox: Outbox,
}

impl Orders {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            outbox: Outbox::new(shared.clone(), "orders"),
            shared,
        }
    }

    /// Publishes `message`: whether RabbitMQ has it. One that it has not in time may
    /// arrive later; until then, none is sent after it.
    pub(super) async fn publish(&self, message: Bytes) -> bool {
        let exchange = &self.shared.config.control_exchange;
        let published = self
            .outbox
            .publish(exchange, "", "application/json", message);
        let published = published.await;
        if let Err(error) = &published {
            self.shared.metrics.orders_not_broadcast.inc();
            match error {
                LinkError::Closed(reason) => {
                    warn!(%reason, "RabbitMQ closed the control channel: the order does not reach other instances");
                }
                LinkError::Timeout(_) => warn!(
                    %error,
                    "RabbitMQ control message not sent in time: the order reaches other instances late or \
                     never; RabbitMQ takes none while it is short of memory or disk"
                ),
                _ => {
                    warn!(%error, "RabbitMQ control message not sent: the order does not reach other instances");
                }
            }
        }
        published.is_ok()
    }

    /// Closes the connection, if there is one.
    pub(super) async fn close(&self) {
        self.outbox.close().await;
    }
}
