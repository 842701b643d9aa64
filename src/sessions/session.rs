//! One socket's handle on its session.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use super::{
    audience::Audience,
    counts::Counted,
    hub::Hub,
    peer::Peer,
    resume::{Admitted, Claim, ResumeRequest},
};
use crate::user::User;

/// One socket's session; dropping it is leaving.
///
/// The socket owns its session, and the hub holds the socket only from
/// [`Session::go_live`] until the session is dropped. The owner must drop the session
/// on disconnect, or the two keep each other alive.
pub struct Session<P: Peer> {
    hub: Arc<Hub<P>>,
    number: u64,
    /// What its client asked for, until it is answered.
    claim: Mutex<Option<Box<Claim>>>,
    pub(super) audience: Arc<Audience<P>>,
    ended: AtomicBool,
    _counted: Counted,
}

impl<P: Peer> Session<P> {
    /// Begins a session of `user`, who is subscribed from now on. Returns `None` if
    /// the user has as many sockets as `limit` allows (0: any number), not counting
    /// the socket that `request` takes over from.
    pub fn join(
        hub: &Arc<Hub<P>>,
        user: &User,
        request: ResumeRequest,
        limit: u32,
    ) -> Option<Self> {
        let claim = hub.shared.claim(user, request);
        let (audience, number) = hub.join(user, claim.key(), limit)?;
        Some(Self {
            hub: hub.clone(),
            number,
            claim: Mutex::new(Some(Box::new(claim))),
            audience,
            ended: AtomicBool::new(false),
            _counted: hub.shared.sockets.one(),
        })
    }

    /// Returns once updates published from now on will be received.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "wait_for_subscription", skip_all, fields(user_id = %self.user().id)))]
    pub async fn subscribed(&self) {
        self.audience.subscribed().await;
    }

    /// Returns when it is known whether what the client missed is here, or after 5 s.
    pub async fn reached(&self) {
        let place = self.claim().as_ref().and_then(|claim| claim.place());
        if let (Some((place, _)), Some(common)) = (place, &self.hub.shared.common) {
            common.history.reach(place.offset).await;
        }
    }

    /// Decides what the session of the socket `id` begins with: what its client
    /// missed, if the client asks for that, all of it is here, and the session may be
    /// resumed although it began at the time that `is_ended` is given. Must be called once,
    /// before the CONNECT reply, which has to carry what is returned.
    pub fn admit(
        &self,
        id: P::Id,
        is_ended: impl Fn(SystemTime) -> bool,
    ) -> Option<Admitted<P::Id>> {
        let claim = self.claim().take()?;
        self.audience.admit(self.number, id, &claim, is_ended)
    }

    fn claim(&self) -> MutexGuard<'_, Option<Box<Claim>>> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `peer` what was missed before and what came since [`Session::admit`], at
    /// the pace at which the client takes it; from then on `peer` is handed every
    /// update at once.
    pub async fn go_live(&self, peer: P) {
        let is_live = self.audience.catch_up(self.number, &peer).await;
        // A session that was ended has told its client why. Otherwise another connection
        // of the same client has taken over.
        if !is_live && !self.ended.load(Ordering::Relaxed) {
            peer.close();
        }
    }

    /// Ends the session for good: nothing more is sent, and it cannot be resumed.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.leave();
    }

    /// Gives up the session's socket. The session may be resumed, unless it was ended.
    pub fn leave(&self) {
        let may_return = !self.ended.load(Ordering::Relaxed);
        self.hub.leave(&self.audience, self.number, may_return);
    }

    pub fn user(&self) -> &User {
        self.audience.user()
    }

    /// Identifies the session among all that the hub ever had.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl<P: Peer> Drop for Session<P> {
    fn drop(&mut self) {
        self.leave();
    }
}
