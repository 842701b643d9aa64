//! Finds out why no updates arrive: whether updates for users who are online here are
//! published with keys that no binding matches.
//!
//! A wrong `RABBITMQ_BINDING_KEYS` looks like a quiet chat: everything is connected, bound
//! and empty. So while users are online and nothing has arrived for a while, this module
//! looks at what the exchange carries: for a short time, over a separate connection, and
//! more rarely the longer the silence lasts.
//!
//! The only finding is an update of a known generation of Chat3, for a user who is online
//! here, that no configured template matches. A quiet exchange, or one that carries
//! updates for others only, proves nothing.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    link_error::LinkError,
    shared::Shared,
    side_connection::{Scope, SideConnection},
};
use crate::{broker::survey::Survey, user::User};

/// The longest time of one look; it also lasts no longer than the silence before it.
const LOOK: Duration = Duration::from_secs(30);

/// Time limit of all requests of a look to RabbitMQ, beside listening.
const AROUND_LOOK: Duration = Duration::from_secs(60);

/// The most updates that a look examines.
const ENOUGH: usize = 2_000;

/// A look ends after this many missed updates for users who are online here.
const ENOUGH_MISSED: usize = 20;

/// The most updates that the queue keeps: on a busy exchange, some are enough.
const QUEUE_LENGTH: i64 = 500;

/// Users for whom other keys are tried where `#` is not permitted.
const SAMPLE: usize = 20;

/// Longest pause between two looks, unless the configured silence is longer.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Longest pause between two checks whether anything has arrived.
const MAX_TICK: Duration = Duration::from_secs(30);

/// The result of a look.
enum Found {
    /// No updates, or only updates for users who are not online here.
    Nothing { heard: usize },
    /// An update for a user who is online here that the bindings match: it will arrive.
    Matched,
    /// Updates for users who are online here that no binding matches, and what to do.
    Dead { missed: usize, advice: String },
    /// RabbitMQ does not permit to listen.
    Refused(LinkError),
}

impl Found {
    /// The metric's label.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Nothing { heard: 0 } => "quiet",
            Self::Nothing { .. } => "others",
            Self::Matched => "matched",
            Self::Dead { .. } => "dead",
            Self::Refused(_) => "refused",
        }
    }
}

/// Watches until the service stops consuming.
pub(super) async fn watch(shared: Arc<Shared>) {
    let after = shared.config.silence_check;
    if after.is_zero() {
        return;
    }
    let tick = (after / 4).min(MAX_TICK);
    let mut silence = Silence::new(&shared);
    loop {
        select! {
            () = sleep(tick) => {}
            () = shared.stop_consuming.cancelled() => return,
        }
        if !silence.has_lasted(&shared) {
            continue;
        }
        let limit = after.min(LOOK) + AROUND_LOOK;
        let looking = timeout(limit, look(&shared, after.min(LOOK)));
        let found = select! {
            found = looking => found.unwrap_or(Err(LinkError::Timeout(limit))),
            () = shared.stop_consuming.cancelled() => return,
        };
        silence.was_looked_into(&shared, found);
    }
}

/// How long no update has arrived, and what is known about it.
struct Silence {
    after: Duration,
    received: u64,
    since: Instant,
    looked_at: Instant,
    pause: Duration,
    is_dead: bool,
    warned_of_refusal: bool,
}

impl Silence {
    fn new(shared: &Shared) -> Self {
        let after = shared.config.silence_check;
        Self {
            after,
            received: shared.received.load(Ordering::Relaxed),
            since: Instant::now(),
            looked_at: Instant::now(),
            // Instances that started together must not look together.
            pause: after.mul_f64(rand::random_range(1.0..=1.25)),
            is_dead: false,
            warned_of_refusal: false,
        }
    }

    /// Whether users are online, nothing arrives, and a look is due.
    fn has_lasted(&mut self, shared: &Shared) -> bool {
        let received = shared.received.load(Ordering::Relaxed);
        let has_come = received != self.received;
        if has_come && self.is_dead {
            info!("RabbitMQ binding keys match what is published again");
            shared.metrics.bindings_dead.set(0);
        }
        if has_come || !*shared.connected.borrow() || !shared.desired.has_active() {
            let warned_of_refusal = self.warned_of_refusal;
            let is_dead = self.is_dead && !has_come;
            *self = Self {
                is_dead,
                warned_of_refusal,
                ..Self::new(shared)
            };
            return false;
        }
        self.looked_at.elapsed() >= self.pause
    }

    fn was_looked_into(&mut self, shared: &Shared, found: Result<Found, LinkError>) {
        self.looked_at = Instant::now();
        self.pause = (self.pause * 2).min(MAX_PAUSE.max(self.after));
        let outcome = found.as_ref().map_or("failed", Found::outcome);
        shared.metrics.silence_look(outcome);
        match found {
            // Something has arrived meanwhile after all.
            Ok(Found::Dead { .. }) if shared.received.load(Ordering::Relaxed) != self.received => {}
            Ok(Found::Dead { missed, advice }) => {
                shared.metrics.bindings_dead.set(1);
                if !std::mem::replace(&mut self.is_dead, true) {
                    warn!(
                        silent_for = ?self.since.elapsed(), missed, binding_keys = %shared.config.binding_keys, advice,
                        "⚠️  RabbitMQ binding keys match none of the updates that are published for users online here"
                    );
                }
            }
            Ok(Found::Refused(error)) => {
                if !std::mem::replace(&mut self.warned_of_refusal, true) {
                    info!(%error, "RabbitMQ does not permit to look at why no updates come");
                }
            }
            Ok(Found::Nothing { .. } | Found::Matched) => {
                debug!(outcome, silent_for = ?self.since.elapsed(), "RabbitMQ looked at for why no updates come");
            }
            Err(error) => debug!(%error, "RabbitMQ could not be looked at for why no updates come"),
        }
    }
}

/// Listens for at most `time`.
async fn look(shared: &Shared, time: Duration) -> Result<Found, LinkError> {
    let mut side = SideConnection::open(&shared.config, "look", &shared.instance).await?;
    let found = look_over(&mut side, shared, time).await;
    side.close().await;
    found
}

async fn look_over(
    side: &mut SideConnection,
    shared: &Shared,
    time: Duration,
) -> Result<Found, LinkError> {
    let queue = format!("{}.{:08x}", side.prefix, rand::random::<u32>());
    side.declare(&queue, QUEUE_LENGTH).await?;
    let users = shared.desired.some_active(SAMPLE);
    let scope = side.bind_widely(&queue, &shared.config, &users).await?;
    if let Scope::Nothing(refusal) = scope {
        return Ok(Found::Refused(refusal));
    }
    let mut listening = side.listen().await?;
    listening.to(&queue, 0).await?;
    let mut survey = Survey::of(&shared.config.binding_keys);
    let mut heard = 0;
    let end = Instant::now() + time;
    while heard < ENOUGH && survey.missed() < ENOUGH_MISSED {
        let Some(update) = listening.next(end).await? else {
            break;
        };
        heard += 1;
        let Some(subscriber) = update.user.and_then(|user| subscriber(shared, user)) else {
            continue;
        };
        let missed = survey.missed();
        survey.note(&update.routing_key, Some(&subscriber));
        if survey.updates() > survey.missed() {
            return Ok(Found::Matched);
        }
        debug!(
            user_id = %subscriber.id, routing_key = ?update.routing_key, is_new = survey.missed() > missed,
            "RabbitMQ update that no binding matches"
        );
    }
    Ok(match survey.advice() {
        Some(advice) => Found::Dead {
            missed: survey.missed(),
            advice,
        },
        None => Found::Nothing { heard },
    })
}

/// The user who is subscribed here and gets the updates of `user`: with the same tenant,
/// or without one.
fn subscriber(shared: &Shared, user: User) -> Option<User> {
    let without_tenant = User {
        id: user.id.clone(),
        tenant: None,
    };
    let candidates = [user, without_tenant];
    candidates
        .into_iter()
        .find(|user| shared.desired.is_active(user))
}
