//! What the keeper does: it hears all instances, and alone publishes events.
//!
//! Invariant: consuming, the ledger and the events share one channel. Once RabbitMQ gives the
//! keeper's queue to another instance, nothing of this one is published any more.

use std::{future::Future, time::Duration};

use amqprs::channel::ConsumerMessage;
use tokio::{
    sync::mpsc::UnboundedReceiver,
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    super::{instance::is_instance_id, link_error::LinkError, shared::Shared},
    ledger::{Doubt, Ledger},
    names::{Names, TO_ALL},
    silence,
    wire::{Clock, Letter, Line},
};
use crate::{
    broker::presence::{
        fleet::{Fleet, Heard},
        words::{Event, ToInstance, ToKeeper, Told},
    },
    observability::sampled::Sampled,
};

/// How long a new keeper waits: RabbitMQ gives back to the ledger what the last one had taken
/// out and not acknowledged.
const HANDOVER: Duration = Duration::from_secs(1);

/// How often the keeper looks which instances are there.
const LOOK: Duration = Duration::from_secs(2);

/// How long instances have to report after a new keeper's call, before they are called again.
const CALLED_WITHIN: Duration = Duration::from_secs(10);

/// Messages that are heard before something may be published.
const AT_ONCE: usize = 32;

/// Messages that are heard before others get their turn: each may be about hundreds of users.
const TURN: usize = 4;

/// Events that RabbitMQ did not confirm.
static UNCONFIRMED: Sampled = Sampled::new();

/// Waits until this instance becomes the keeper, and is it until the connection is lost.
pub(super) async fn run(
    shared: &Shared,
    names: &Names,
    mut line: Line,
    reader: impl Future<Output = Result<Line, LinkError>>,
    doubt: &Doubt,
) -> LinkError {
    let tag = format!("chat3-gateway.{}.keeper", shared.instance);
    let ended = async {
        let mut messages = line.consume(&names.keeper, &tag).await?;
        // RabbitMQ gives messages to the keeper alone.
        let Some(first) = messages.recv().await else {
            return Err(LinkError::Amqp("the connection broke".to_owned()));
        };
        sleep(HANDOVER).await;
        let (ledger, pages) = Ledger::read(reader.await?, &mut line, names, doubt).await?;
        let clock = Clock::new();
        let grace = u64::try_from(shared.config.presence_grace.as_millis());
        let (grace, now) = (grace.unwrap_or(u64::MAX), clock.now());
        // Of many users, that takes a while.
        let reading = spawn_blocking(move || Fleet::from_ledger(grace, pages, now));
        let fleet = reading
            .await
            .map_err(|panic| LinkError::Amqp(panic.to_string()))?;
        info!(
            online = fleet.announced(),
            "RabbitMQ: this instance keeps who is online, for the whole fleet"
        );
        let mut keeper = Keeper {
            shared,
            names,
            line: &mut line,
            ledger,
            fleet,
            clock,
            began: Instant::now(),
        };
        keeper.take_over().await?;
        keeper.keep(first, messages).await
    };
    let ended: Result<std::convert::Infallible, LinkError> = ended.await;
    match ended {
        Err(error) => error,
    }
}

struct Keeper<'k> {
    shared: &'k Shared,
    names: &'k Names,
    line: &'k mut Line,
    ledger: Ledger,
    fleet: Fleet,
    clock: Clock,
    began: Instant,
}

impl Keeper<'_> {
    async fn take_over(&mut self) -> Result<(), LinkError> {
        self.shared.metrics.presence_keeper.set(1);
        self.show_users();
        self.ledger.renew(self.line, &mut self.fleet).await?;
        self.send(vec![self.letter(TO_ALL, &ToInstance::Call)])
            .await
    }

    async fn keep(
        &mut self,
        first: ConsumerMessage,
        mut messages: UnboundedReceiver<ConsumerMessage>,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut next = Some(first);
        let mut look_at = Instant::now() + LOOK;
        let silence = silence(&self.shared.config);
        let mut silent_at = Instant::now() + silence;
        let mut is_in_doubt = false;
        loop {
            if let Some(first) = next.take() {
                self.hear(first, &mut messages).await?;
                silent_at = Instant::now() + silence;
                is_in_doubt = false;
            } else if Instant::now() >= silent_at && messages.is_empty() {
                if is_in_doubt {
                    // Not even of this instance: the queue may be another one's by now.
                    return Err(LinkError::Amqp("nothing came to the keeper".to_owned()));
                }
                // A process that was suspended has messages that it has not read yet.
                is_in_doubt = true;
            }
            self.announce().await?;
            if Instant::now() >= look_at {
                look_at = Instant::now() + LOOK;
                self.look().await?;
            }
            let due = self.fleet.next_due();
            let wait = due.map(|due| Duration::from_millis(due.saturating_sub(self.clock.now())));
            let alarm = wait.map_or(look_at, |wait| look_at.min(Instant::now() + wait));
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => next = Some(message),
                    None => return Err(LinkError::Amqp("the connection broke".to_owned())),
                },
                () = sleep_until(alarm) => {}
            }
        }
    }

    /// Takes in `first` and what else is there, and answers.
    async fn hear(
        &mut self,
        first: ConsumerMessage,
        messages: &mut UnboundedReceiver<ConsumerMessage>,
    ) -> Result<(), LinkError> {
        let (mut letters, mut last) = (Vec::new(), 0);
        let mut next = Some(first);
        let mut heard = 0;
        while let Some(message) = next.take() {
            if let Some(deliver) = &message.deliver {
                last = deliver.delivery_tag();
            }
            letters.extend(self.answer_to(&message.content.unwrap_or_default()));
            heard += 1;
            if heard % TURN == 0 {
                yield_now().await;
            }
            if heard < AT_ONCE {
                next = messages.try_recv().ok();
            }
        }
        self.line.acknowledge(last).await?;
        self.send(letters).await
    }

    fn answer_to(&mut self, message: &[u8]) -> Option<Letter> {
        match serde_json::from_slice::<ToKeeper>(message) {
            // Its queue could not be asked whether it is still there.
            Ok(message) if !is_instance_id(message.from()) => {
                debug!("RabbitMQ presence message ignored: no instance has the name of its sender");
                None
            }
            Ok(ToKeeper::Hello { from }) => {
                // Before, it has been called with all others and may be about to report.
                let is_settled = self.began.elapsed() > CALLED_WITHIN;
                let is_known = self.fleet.instances().any(|known| known == from);
                (is_settled && !is_known).then(|| self.letter(&from, &ToInstance::Call))
            }
            Ok(ToKeeper::Report(report)) => {
                let from = report.from.clone();
                let heard = self.fleet.hear(report, self.clock.now());
                (heard == Heard::Gap).then(|| self.letter(&from, &ToInstance::Call))
            }
            Ok(ToKeeper::Question {
                from,
                number,
                users,
            }) => {
                let states = users.iter().map(|whom| self.fleet.state(&whom.0));
                let states = states.map(Told::from).collect();
                Some(self.letter(&from, &ToInstance::Answer { number, states }))
            }
            Err(error) => {
                debug!(%error, "RabbitMQ presence message ignored");
                None
            }
        }
    }

    /// Publishes what is due, of so many users at most.
    async fn announce(&mut self) -> Result<(), LinkError> {
        let Some((page, events)) = self.fleet.announce(self.clock.now()) else {
            return Ok(());
        };
        self.ledger.write(self.line, &page).await?;
        let letter = |event: &Event| Letter {
            exchange: self.names.events.clone(),
            routing_key: event.routing_key(),
            body: event.body(),
            mandatory: false,
            persistent: true,
        };
        let metrics = &self.shared.metrics;
        let published = events.len() as u64;
        let confirmed = self.line.tell(events.iter().map(letter).collect()).await;
        let unconfirmed = published - confirmed.as_ref().map_or(0, |confirmed| *confirmed);
        metrics.presence_unconfirmed.inc_by(unconfirmed);
        if confirmed? < published
            && let Some(line) = UNCONFIRMED.note("")
        {
            warn!(
                unconfirmed,
                left_out = line.left_out,
                "RabbitMQ presence events not confirmed: a queue that is bound to their exchange is full, down or slow"
            );
        }
        for event in &events {
            metrics.presence_event(if event.online { "online" } else { "offline" });
        }
        self.show_users();
        self.ledger.tidy(self.line, &mut self.fleet).await
    }

    /// Looks which instances are there.
    async fn look(&mut self) -> Result<(), LinkError> {
        let ping = |instance: &str| self.letter(instance, &ToInstance::Ping);
        let pings: Vec<_> = self.fleet.instances().map(ping).collect();
        self.send(pings).await
    }

    fn show_users(&self) {
        let online = i64::try_from(self.fleet.announced());
        let shown = online.unwrap_or(i64::MAX);
        self.shared.metrics.presence_users.set(shown);
    }

    fn letter(&self, instance: &str, message: &ToInstance) -> Letter {
        Letter::within(&self.names.fleet, instance, message)
    }

    /// Sends messages to instances: where one comes back, its instance is gone.
    async fn send(&mut self, letters: Vec<Letter>) -> Result<(), LinkError> {
        if letters.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        for instance in self.line.publish(letters).await? {
            debug!(instance, "RabbitMQ: an instance is gone");
            self.fleet.lose(&instance, now);
        }
        Ok(())
    }
}
