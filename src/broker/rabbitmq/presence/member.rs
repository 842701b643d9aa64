//! What each instance does: it reports its users to the keeper, and asks the keeper for others.
//!
//! Changes are gathered for a moment, so that a client that comes and goes costs nothing, and a
//! flood of clients a bounded number of messages.

use std::{collections::HashMap, future::pending, time::Duration};

use amqprs::channel::ConsumerMessage;
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver},
        oneshot,
    },
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tracing::debug;

use super::{
    super::{link_error::LinkError, shared::Shared},
    ANSWER_TIMEOUT, Presence, Question,
    names::{Names, TO_KEEPER},
    silence,
    wire::{Letter, Line},
};
use crate::broker::presence::{
    State,
    fleet::PAGE_LINES,
    words::{Here, Report, ToInstance, ToKeeper, Whom},
};

/// How long changes are gathered.
const GATHERING: Duration = Duration::from_millis(100);

/// How often the instance sends a sign of life. The first one to a new keeper tells it that it is
/// the keeper.
const HELLO: Duration = Duration::from_secs(3);

/// Reports that are sent before their confirms are waited for.
const AT_ONCE: usize = 16;

/// Questions without an answer. A further one is not asked.
const MOST_OPEN: usize = 256;

pub(super) struct Member<'m> {
    shared: &'m Shared,
    presence: &'m Presence,
    names: &'m Names,
    line: Line,
    run: u64,
    /// The number of the next report.
    next: u64,
    questions: u64,
    open: HashMap<u64, Open>,
}

/// A question without an answer.
struct Open {
    reply: oneshot::Sender<Vec<State>>,
    until: Instant,
}

impl<'m> Member<'m> {
    pub(super) fn new(
        shared: &'m Shared,
        presence: &'m Presence,
        names: &'m Names,
        line: Line,
        run: u64,
    ) -> Self {
        Self {
            shared,
            presence,
            names,
            line,
            run,
            next: 0,
            questions: 0,
            open: HashMap::new(),
        }
    }

    /// Serves until the connection is lost.
    pub(super) async fn run(
        &mut self,
        mut messages: UnboundedReceiver<ConsumerMessage>,
        asked: &mut mpsc::Receiver<Question>,
    ) -> LinkError {
        let mut report_at = None;
        let mut hellos = interval(HELLO);
        hellos.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // From the keeper's first message on.
        let mut silent_at = None;
        loop {
            let done = tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => {
                        silent_at = Some(Instant::now() + silence(&self.shared.config));
                        self.hear(message).await
                    }
                    None => Err(LinkError::Amqp("the connection broke".to_owned())),
                },
                Some(question) = asked.recv() => self.ask(question).await,
                () = self.presence.attendance.changed(), if report_at.is_none() => {
                    report_at = Some(Instant::now() + GATHERING);
                    Ok(())
                }
                () = alarm(report_at) => {
                    report_at = None;
                    self.report_changes().await
                }
                _ = hellos.tick() => self.say_hello().await,
                () = alarm(silent_at), if messages.is_empty() => {
                    // A process that was suspended has messages that it has not read yet.
                    sleep(HELLO).await;
                    match messages.is_empty() {
                        // The keeper may not find this queue any more.
                        true => Err(LinkError::Amqp("nothing came from the keeper".to_owned())),
                        false => Ok(()),
                    }
                }
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// Reports everybody who is here.
    pub(super) async fn report_everybody(&mut self) -> Result<(), LinkError> {
        let everybody = self.presence.attendance.everybody(Instant::now());
        let last = everybody.len().div_ceil(PAGE_LINES).max(1) - 1;
        let mut parts = everybody.chunks(PAGE_LINES);
        let mut reports = Vec::new();
        for index in 0..=last {
            let part = parts.next().unwrap_or_default().to_vec();
            reports.push(self.report(part, index == 0, index == last));
            if reports.len() == AT_ONCE || index == last {
                self.send(std::mem::take(&mut reports)).await?;
            }
        }
        Ok(())
    }

    /// Reports what has changed: of so many users at most, so that the keeper's calls are heard.
    async fn report_changes(&mut self) -> Result<(), LinkError> {
        let mut reports = Vec::new();
        while reports.len() < AT_ONCE {
            let changes = self.presence.attendance.changes(PAGE_LINES, Instant::now());
            if changes.is_empty() {
                break;
            }
            reports.push(self.report(changes, false, false));
        }
        self.send(reports).await
    }

    fn report(&mut self, users: Vec<Here>, begins: bool, ends: bool) -> ToKeeper {
        let number = self.next;
        self.next += 1;
        ToKeeper::Report(Report {
            from: self.shared.instance.clone(),
            run: self.run,
            number,
            begins,
            ends,
            users,
        })
    }

    async fn send(&mut self, messages: Vec<ToKeeper>) -> Result<(), LinkError> {
        let letter = |message| Letter::within(&self.names.fleet, TO_KEEPER, message);
        let letters = messages.iter().map(letter).collect();
        match self.line.publish(letters).await?.is_empty() {
            true => Ok(()),
            false => Err(LinkError::Amqp("the keeper's queue is gone".to_owned())),
        }
    }

    /// Sends a sign of life. While RabbitMQ takes nothing, that is no reason to give up.
    async fn say_hello(&mut self) -> Result<(), LinkError> {
        let from = self.shared.instance.clone();
        let hello = ToKeeper::Hello { from };
        let letter = Letter::within(&self.names.fleet, TO_KEEPER, &hello);
        self.line.tell(vec![letter]).await.map(drop)
    }

    async fn hear(&mut self, message: ConsumerMessage) -> Result<(), LinkError> {
        if let Some(deliver) = &message.deliver {
            self.line.acknowledge(deliver.delivery_tag()).await?;
        }
        let body = message.content.unwrap_or_default();
        match serde_json::from_slice(&body) {
            Ok(ToInstance::Call) => self.report_everybody().await?,
            Ok(ToInstance::Ping) => {}
            Ok(ToInstance::Answer { number, states }) => {
                if let Some(open) = self.open.remove(&number) {
                    let states = states.into_iter().map(State::from).collect();
                    // An error means that nobody waits any more.
                    let _ = open.reply.send(states);
                }
            }
            Err(error) => debug!(%error, "RabbitMQ presence message ignored"),
        }
        Ok(())
    }

    async fn ask(&mut self, question: Question) -> Result<(), LinkError> {
        let now = Instant::now();
        self.open.retain(|_, open| open.until > now);
        if self.open.len() >= MOST_OPEN {
            return Ok(());
        }
        self.questions += 1;
        let open = Open {
            reply: question.reply,
            until: now + ANSWER_TIMEOUT,
        };
        self.open.insert(self.questions, open);
        let message = ToKeeper::Question {
            from: self.shared.instance.clone(),
            number: self.questions,
            users: question.users.into_iter().map(Whom).collect(),
        };
        self.send(vec![message]).await
    }
}

async fn alarm(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
