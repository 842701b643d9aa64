//! Listens to the exchange for a while, as far as RabbitMQ permits.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    clock::Clock,
    rights::Rights,
    trial::{FIRST_NUMBER, Trial},
};
use crate::{
    broker::rabbitmq::{LinkError, Scope, SideConnection},
    broker::survey::Survey,
    config::RabbitMqConfig,
    user::User,
};

/// Listening ends after this many updates: they are enough on a busy exchange.
const ENOUGH: usize = 5_000;

/// The most updates that a queue keeps if the doctor is slower than Chat3.
const MAX_WAITING: i64 = 1_000;

/// The most users for whom bindings are tried, and how long to wait for more of them after
/// the first.
const TRIED_USERS: usize = 20;
const MORE_USERS: Duration = Duration::from_millis(300);

/// How long the last updates may take to reach all queues.
const SETTLED: Duration = Duration::from_secs(3);

// The numbers of the queues; those of the trial follow.
const EVERYTHING: usize = 0;
const NOBODYS: usize = 1;
const _: () = assert!(NOBODYS < FIRST_NUMBER);

/// What arrived while listening.
pub(super) struct Heard<'r> {
    pub(super) survey: Survey<'r>,
    pub(super) clock: Clock,
    /// All messages, including those that are for no user.
    pub(super) updates: usize,
    /// Updates for a user who does not exist.
    pub(super) for_nobody: usize,
    pub(super) trial: Option<Trial>,
}

/// A queue to listen to, and which updates it receives.
pub(super) struct Ear {
    queue: String,
    pub(super) scope: Scope,
}

impl Ear {
    /// Binds a queue with `#`, or otherwise with every permitted key that the gateway could
    /// use. `users` are users who are known in advance.
    pub(super) async fn open(
        side: &mut SideConnection,
        config: &RabbitMqConfig,
        users: &[User],
    ) -> Result<Self, LinkError> {
        let queue = format!("{}.listen", side.prefix);
        side.declare(&queue, MAX_WAITING).await?;
        let scope = side.bind_widely(&queue, config, users).await?;
        Ok(Self { queue, scope })
    }

    /// Listens until the time is over or enough updates have arrived. The queue for nobody
    /// must receive nothing.
    pub(super) async fn listen<'r>(
        &self,
        side: &mut SideConnection,
        config: &RabbitMqConfig,
        rights: &'r Rights,
        listen: Duration,
    ) -> Result<Heard<'r>, LinkError> {
        let mut heard = Heard {
            survey: Survey::of(&rights.permitted),
            clock: Clock::default(),
            updates: 0,
            for_nobody: 0,
            trial: None,
        };
        let everything = match &self.scope {
            Scope::Everything => vec!["#".to_owned()],
            Scope::Some(keys) => keys.clone(),
            Scope::Nothing(_) => Vec::new(),
        };
        let mut listening = side.listen().await?;
        if let Some(probe) = &rights.probe {
            listening.to(probe, NOBODYS).await?;
        } else if everything.is_empty() {
            return Ok(heard);
        }
        if !everything.is_empty() {
            listening.to(&self.queue, EVERYTHING).await?;
        }
        let end = Instant::now() + listen;
        let mut users = HashSet::new();
        let mut try_at = None;
        while heard.updates + heard.for_nobody < ENOUGH {
            let until = try_at.unwrap_or(end).min(end);
            let Some(update) = listening.next(until).await? else {
                if Instant::now() >= end || try_at.take().is_none() {
                    break;
                }
                let templates = heard.survey.templates();
                let users = std::mem::take(&mut users);
                let trial =
                    Trial::begin(side, &mut listening, config, templates, users, &everything);
                heard.trial = Some(trial.await?);
                continue;
            };
            match update.queue {
                EVERYTHING => {
                    heard.updates += 1;
                    heard.clock.note(update.timestamp, update.at);
                    heard.survey.note(&update.routing_key, update.user.as_ref());
                    let Some(user) = update.user else { continue };
                    if heard.trial.is_none() && users.len() < TRIED_USERS {
                        users.insert(user);
                        try_at.get_or_insert_with(|| Instant::now() + MORE_USERS);
                    }
                }
                NOBODYS => heard.for_nobody += 1,
                _ => {
                    if let Some(trial) = &mut heard.trial {
                        trial.note(&update, heard.survey.templates());
                    }
                }
            }
        }
        if let Some(trial) = &mut heard.trial {
            let templates = heard.survey.templates();
            let until = Instant::now() + SETTLED;
            trial.settle(&mut listening, until, templates).await?;
        }
        Ok(heard)
    }
}
