//! Who is online, over RabbitMQ: how instances and their keeper find and hear each other, on a
//! connection of their own. [`crate::broker::presence`] decides what is said.
//!
//! All instances consume the keeper's queue, and RabbitMQ gives it to one of them: that one is
//! the keeper, for as long as its connection lives. Each instance also has a queue of its own; an
//! instance is gone when what the keeper sends there comes back. What consumers were told is in
//! the ledger, a queue that only the keeper writes, so that the next one knows.
//!
//! - `names`: the exchange, the queues and their declarations
//! - `wire`: the connection, and publishing with confirms
//! - `member`: what each instance does: reports, and questions
//! - `keeper`: what the keeper does; `ledger`: how it remembers
//!
//! Whatever fails ends the connection, and nothing else: the next one begins with a report of
//! everybody, and the next keeper with the ledger.

mod keeper;
mod ledger;
mod member;
mod names;
mod wire;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

#[cfg(not(feature = "cli"))]
use self::names::Names;
#[cfg(feature = "cli")] // For the doctor.
pub(crate) use self::names::{Names, declaration};
use self::{ledger::Doubt, member::Member, wire::Wire};
use super::{backoff::Backoff, link_error::LinkError, shared::Shared};
use crate::{
    broker::presence::{Asked, Attendance, MOST_ASKED, State},
    config::RabbitMqConfig,
};

/// How long the caller waits for the keeper's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Questions that wait to be sent.
const MOST_WAITING: usize = 64;

/// After so long without a word from the other side, although each sends one every few seconds,
/// the keeper or an instance gives up its connection: RabbitMQ may have given what it consumes to
/// somebody else, or have lost it. It takes up to three heartbeats to notice that a keeper's
/// machine is gone.
fn silence(config: &RabbitMqConfig) -> Duration {
    Duration::from_secs(60).max(config.heartbeat * 4)
}

/// The longest pause before a new connection while RabbitMQ is away: its users are offline to the
/// fleet until then, unless the grace is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Who is online, for the service.
pub(super) struct Presence {
    pub(super) attendance: Arc<Attendance>,
    questions: mpsc::Sender<Question>,
    /// Until the task takes it.
    asked: Mutex<Option<mpsc::Receiver<Question>>>,
    is_connected: AtomicBool,
    doubt: Doubt,
}

/// A question to the keeper.
struct Question {
    users: Vec<Asked>,
    reply: oneshot::Sender<Vec<State>>,
}

impl Default for Presence {
    fn default() -> Self {
        let (questions, asked) = mpsc::channel(MOST_WAITING);
        Self {
            attendance: Arc::default(),
            questions,
            asked: Mutex::new(Some(asked)),
            is_connected: AtomicBool::new(false),
            doubt: Doubt::default(),
        }
    }
}

impl Presence {
    /// Asks the keeper, in several questions if there are many users; `None` if it does not
    /// answer within seconds.
    pub(super) async fn states(&self, users: &[Asked]) -> Option<Vec<State>> {
        if !self.is_connected() {
            return None;
        }
        let asking = async {
            let mut answers = Vec::new();
            for users in users.chunks(MOST_ASKED) {
                let (reply, answer) = oneshot::channel();
                let question = Question {
                    users: users.to_vec(),
                    reply,
                };
                self.questions.send(question).await.ok()?;
                answers.push((users.len(), answer));
            }
            let mut states = Vec::with_capacity(users.len());
            for (asked, answer) in answers {
                let some = answer.await.ok()?;
                (some.len() == asked).then(|| states.extend(some))?;
            }
            Some(states)
        };
        timeout(ANSWER_TIMEOUT, asking).await.ok().flatten()
    }

    fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    fn set_connected(&self, shared: &Shared, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
        shared.metrics.presence_connected.set(is_connected.into());
    }
}

/// Takes part until the service is closed, if presence is on.
pub(super) async fn take_part(shared: Arc<Shared>, presence: Option<Arc<Presence>>) {
    let Some(presence) = presence else {
        return;
    };
    let asked = presence
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(mut asked) = asked else {
        return;
    };
    let names = Names::new(&shared.config);
    let mut backoff = Backoff::new(
        shared.config.reconnect_delay,
        shared.config.url.nodes().len(),
    );
    let mut is_reported = false;
    for run in 0_u64.. {
        let opened = tokio::select! {
            opened = Wire::open(&shared) => opened,
            () = shared.close.cancelled() => break,
        };
        let (error, delay) = match opened {
            Ok(mut wire) => {
                let up_since = Instant::now();
                let error = tokio::select! {
                    error = connected(&shared, &presence, &names, &mut wire, run, &mut asked) => error,
                    () = shared.close.cancelled() => None,
                };
                is_reported &= !presence.is_connected();
                presence.attendance.forget_changes();
                shared.metrics.presence_keeper.set(0);
                shared.metrics.presence_users.set(0);
                presence.set_connected(&shared, false);
                wire.close().await;
                let Some(error) = error else {
                    break;
                };
                let now = Instant::now();
                let delay = backoff.after_loss(&error, now.duration_since(up_since), now);
                (error, delay)
            }
            Err(error) => {
                let delay = backoff.after_failure(&error);
                (error, delay)
            }
        };
        let is_known = std::mem::replace(&mut is_reported, true);
        if is_known && !error.is_configuration() {
            debug!(%error, "RabbitMQ connection for presence not made, or lost");
        } else {
            warn!(
                %error,
                "RabbitMQ connection for presence not made, or lost: what changes here is not known to the fleet"
            );
        }
        let delay = match error.is_configuration() {
            true => delay,
            false => delay
                .min(LONGEST_PAUSE)
                .min(shared.config.presence_grace / 2),
        };
        tokio::select! {
            () = sleep(delay) => {}
            () = shared.close.cancelled() => break,
        }
    }
}

/// Takes part over one connection; returns why it was lost.
async fn connected(
    shared: &Shared,
    presence: &Presence,
    names: &Names,
    wire: &mut Wire,
    run: u64,
    asked: &mut mpsc::Receiver<Question>,
) -> Option<LinkError> {
    let open = async {
        let own = format!("chat3-gateway.{}.{run}.presence", shared.instance);
        let mut line = wire.line().await?;
        names.declare(&line, &own, &shared.instance).await?;
        let messages = line.consume(&own, &own).await?;
        let keeper = wire.line().await?;
        Ok::<_, LinkError>((line, messages, keeper))
    };
    let (line, messages, keeper) = match open.await {
        Ok(opened) => opened,
        Err(error) => return Some(error),
    };
    let mut member = Member::new(shared, presence, names, line, run);
    let reader = wire.another_line();
    let ended = async {
        if let Err(error) = member.report_everybody().await {
            return error;
        }
        presence.set_connected(shared, true);
        info!("RabbitMQ connection for presence made");
        tokio::select! {
            error = member.run(messages, asked) => error,
            error = keeper::run(shared, names, keeper, reader, &presence.doubt) => error,
        }
    };
    let error = tokio::select! {
        error = ended => error,
        () = wire.connection.lost.cancelled() => wire.connection.loss(),
        Some(tag) = wire.cancelled.recv() => LinkError::Amqp(format!("{tag} was deleted")),
    };
    let unreadable = wire.connection.unreadable();
    if unreadable.is_none() {
        presence.doubt.end();
    }
    Some(unreadable.unwrap_or(error))
}
