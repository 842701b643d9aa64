//! The supervisor: one link after the other, until the service is closed.
//!
//! Invariant: two links never overlap, and the consumers of one have handed off what they
//! received before the next link opens: a user's order holds over a reconnect.

use std::sync::Arc;

use indexmap::IndexSet;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{
    backoff::Backoff,
    channels::Channels,
    control,
    link::{Ended, Link},
    link_error::LinkError,
    presence::{self, Presence},
    shared::Shared,
    silence,
    topology::Reader,
};

/// Connects, runs the link until it is lost, and again.
pub(super) async fn supervise(
    shared: Arc<Shared>,
    reader: Option<Arc<Reader>>,
    presence: Option<Arc<Presence>>,
) {
    let mut backoff = Backoff::new(
        shared.config.reconnect_delay,
        shared.config.url.nodes().len(),
    );
    let mut linked_before = false;
    let mut refused = IndexSet::new();
    let control = AbortOnDropHandle::new(tokio::spawn(control::listen(shared.clone())));
    let presence =
        AbortOnDropHandle::new(tokio::spawn(presence::take_part(shared.clone(), presence)));
    let silence = AbortOnDropHandle::new(tokio::spawn(silence::watch(shared.clone())));
    for epoch in 0_u64.. {
        let opened = tokio::select! {
            opened = Link::open(&shared, epoch, &refused, reader.as_ref()) => opened,
            () = shared.stop_consuming.cancelled() => break,
        };
        let delay = match opened {
            Ok(link) => {
                info!(address = %link.node(), "RabbitMQ connected");
                if linked_before {
                    shared.metrics.broker_reconnects.inc();
                }
                linked_before = true;
                let up_since = Instant::now();
                let ended = run(&shared, link).await;
                let Ended::Lost {
                    reason,
                    refused: known,
                } = ended
                else {
                    break;
                };
                warn!(%reason, "⚠️  RabbitMQ connection closed");
                let is_unreadable = matches!(reason, LinkError::Unreadable(_));
                match &reader {
                    // In a stream the message is still there, and the reader counts it.
                    Some(reader) => reader.lose(&reason),
                    None if is_unreadable => drop(shared.metrics.messages_unreadable.inc()),
                    None => {}
                }
                refused = known;
                let now = Instant::now();
                backoff.after_loss(&reason, now.duration_since(up_since), now)
            }
            Err(error) => {
                warn!(
                    address = %shared.config.url,
                    %error,
                    "⚠️  Failed to connect to RabbitMQ. Updates will not be available."
                );
                backoff.after_failure(&error)
            }
        };
        info!(?delay, "RabbitMQ reconnect scheduled");
        tokio::select! {
            () = sleep(delay) => {}
            () = shared.stop_consuming.cancelled() => break,
        }
    }
    // An error is its panic, which has been logged.
    let _ = silence.await;
    shared.consuming.send_replace(false);
    let _ = control.await;
    let _ = presence.await;
}

/// Follows the desired state through `link` until it is lost or the service is closed.
async fn run(shared: &Shared, mut link: Link) -> Ended {
    shared.link_up();
    let ended = link.run().await;
    shared.link_down();
    let handing_off = link.handing_off();
    match ended {
        Ended::Stopped => {
            link.stop_consuming().await;
            Channels::handed_off(&handing_off).await;
            shared.consuming.send_replace(false);
            shared.close.cancelled().await;
            link.close().await;
        }
        Ended::Lost { .. } => {
            link.close().await;
            Channels::handed_off(&handing_off).await;
        }
    }
    ended
}
