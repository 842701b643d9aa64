//! Listens for a while to what the exchange carries, as far as that is permitted.

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

/// Enough to know; a busy exchange is not listened to any longer.
const ENOUGH: usize = 5_000;

/// What the broker keeps for us at most, if we are slower than Chat3.
const MAX_WAITING: i64 = 1_000;

/// Users for whom bindings are tried, and how long is waited for more of them after the
/// first.
const TRIED_USERS: usize = 20;
const MORE_USERS: Duration = Duration::from_millis(300);

/// How long the last updates may take to all queues.
const SETTLED: Duration = Duration::from_secs(3);

// The numbers of the queues.
const EVERYTHING: usize = 0;
const NOBODYS: usize = 1;
const _: () = assert!(NOBODYS < FIRST_NUMBER);

/// What was heard.
pub(super) struct Heard<'r> {
    pub(super) survey: Survey<'r>,
    pub(super) clock: Clock,
    /// All updates, also those that are no user's.
    pub(super) updates: usize,
    /// Updates for a user whom nobody publishes to.
    pub(super) for_nobody: usize,
    pub(super) trial: Option<Trial>,
}

/// A queue to listen with, and what it gets.
pub(super) struct Ear {
    queue: String,
    pub(super) scope: Scope,
}

impl Ear {
    /// Binds a queue with `#`, or else with all keys that RabbitMQ permits of those that
    /// the gateway and its users could have. `users` are known without listening.
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

    /// Listens until the time is over or enough has come. The queue for nobody
    /// must get nothing.
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
