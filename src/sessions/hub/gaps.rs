//! What goes on in the background so that no socket misses updates without being told.

use std::{sync::Weak, time::Duration};

use tokio::time::sleep;

use super::Hub;
use crate::sessions::{peer::Peer, resync::PAUSE};

/// Between two looks for sockets that may have missed updates.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for such sockets and closes them, for as long as the hub lives.
pub(super) async fn run<P: Peer>(hub: Weak<Hub<P>>) {
    loop {
        sleep(LOOK).await;
        let Some(hub) = hub.upgrade() else { return };
        for audience in hub.audiences() {
            audience.look_for_gaps();
        }
        loop {
            let sockets = hub.shared.resync.take();
            if sockets.is_empty() {
                break;
            }
            for close in sockets {
                close();
            }
            sleep(PAUSE).await;
        }
    }
}
