//! What goes on in the background so that no socket misses updates without being told.

use std::{sync::Weak, time::Duration};

use tokio::time::{Instant, sleep};

use super::Hub;
use crate::sessions::peer::Peer;

/// Between two looks for sockets that may have missed updates.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for such sockets and closes them, for as long as the hub lives.
pub(super) async fn run<P: Peer>(hub: Weak<Hub<P>>) {
    let mut looked_at = Instant::now();
    loop {
        let Some(pause) = hub.upgrade().map(|hub| hub.shared.resync.pause) else {
            return;
        };
        sleep(pause).await;
        let Some(hub) = hub.upgrade() else { return };
        if looked_at.elapsed() >= LOOK {
            looked_at = Instant::now();
            for audience in hub.audiences() {
                audience.look_for_gaps();
            }
        }
        for close in hub.shared.resync.take() {
            close();
        }
    }
}
