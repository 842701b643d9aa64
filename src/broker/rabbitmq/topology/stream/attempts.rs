//! Remembers, at RabbitMQ, that this instance is reading back: if the process dies of what it
//! reads, the next one must not do the same for ever.
//!
//! An attempt is a queue that nobody uses, and that RabbitMQ deletes after a while. It is
//! deleted at the attempt's end, however the attempt ends; only a process that is gone leaves
//! it behind. Instances of the same name on one host share the attempts, so those of others
//! are waited for.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::{
    FieldValue,
    channel::{QueueDeclareArguments, QueueDeleteArguments},
};
use tokio::time::{Instant, sleep, timeout};

use super::super::super::{
    instance::instance_name,
    link_error::{LinkError, NOT_FOUND},
    shared::Shared,
    side_connection::SideConnection,
};

/// Attempts that may have ended with their process: some may have been stopped by chance.
const MAX_LEFT: usize = 3;

/// Names of attempts: more than may be left, since those on a node that is down are not free.
const NAMES: usize = MAX_LEFT + 2;

/// An attempt counts in the period in which it began, and in the next one: longer than three
/// starts take, with the pauses of a supervisor that waits longer each time, and short enough that
/// instances which are killed often go on reading. The period is part of the name, since RabbitMQ
/// keeps for longer what somebody looks at.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// How long RabbitMQ keeps one that nobody looks at.
const REMEMBERED: Duration = Duration::from_secs(2 * PERIOD.as_secs());

/// How long those of other instances are waited for: they end well before.
const OTHERS_WITHIN: Duration = Duration::from_secs(15);

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// An attempt that is being made.
pub(super) struct Attempt {
    side: SideConnection,
    queue: String,
}

impl Attempt {
    /// Begins one; `None` if the last ones have ended with their process. An error if consuming
    /// is to stop meanwhile.
    pub(super) async fn begin(shared: &Shared) -> Result<Option<Self>, LinkError> {
        let config = &shared.config;
        let mut side = SideConnection::open(config, "reading", &shared.instance).await?;
        let (instance, period) = (instance_name(config), period());
        let until = Instant::now() + OTHERS_WITHIN;
        loop {
            let former = (0..NAMES).map(|number| (period.saturating_sub(1), number));
            let mut left = 0;
            for (of, number) in former.chain((0..NAMES).map(|number| (period, number))) {
                let queue = name(&config.stream, &instance, of, number);
                if exists(&mut side, &queue).await? {
                    left += 1;
                    if left == MAX_LEFT {
                        break;
                    }
                    continue;
                }
                if of != period {
                    continue;
                }
                match declare(&mut side, &queue).await {
                    Ok(()) => return Ok(Some(Self { side, queue })),
                    // It is on a node that is down.
                    Err(LinkError::Closed(close)) if close.code == NOT_FOUND => {}
                    Err(error) => return Err(error),
                }
            }
            let is_stopping = shared.stop_consuming.is_cancelled();
            if is_stopping || Instant::now() > until {
                side.close().await;
                return match is_stopping {
                    true => Err(LinkError::Stopped),
                    false => Ok(None),
                };
            }
            sleep(LOOK).await;
        }
    }

    /// The process has survived it. If RabbitMQ does not answer, a task goes on asking.
    pub(super) async fn end(mut self, shared: Arc<Shared>) {
        let deleted = delete(&mut self.side, &self.queue).await;
        self.side.close().await;
        if deleted.is_err() {
            tokio::spawn(timeout(REMEMBERED, async move {
                while delete_anew(&shared, &self.queue).await.is_err() {
                    sleep(LOOK).await;
                }
            }));
        }
    }
}

/// The queue of an attempt. The prefix is that of the documented rights, whatever the stream is
/// called.
fn name(stream: &str, instance: &str, period: u64, number: usize) -> String {
    format!("chat3-gateway.reading.{stream}.{instance}.{period}.{number}")
}

/// The number of the current period.
fn period() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs() / PERIOD.as_secs()
}

/// Deletes an attempt over another connection.
async fn delete_anew(shared: &Shared, queue: &str) -> Result<(), LinkError> {
    let mut side = SideConnection::open(&shared.config, "reading", &shared.instance).await?;
    let deleted = delete(&mut side, queue).await;
    side.close().await;
    deleted
}

async fn delete(side: &mut SideConnection, queue: &str) -> Result<(), LinkError> {
    let delete = QueueDeleteArguments::new(queue);
    side.ask(|channel| async move { channel.queue_delete(delete).await.map(drop) })
        .await
}

/// Asks passively: a 404 closes the channel, and the next question gets another one.
async fn exists(side: &mut SideConnection, queue: &str) -> Result<bool, LinkError> {
    let passive = QueueDeclareArguments::new(queue).passive(true).finish();
    let asked = side.ask(|channel| async move { channel.queue_declare(passive).await.map(drop) });
    match asked.await {
        Ok(()) => Ok(true),
        Err(LinkError::Closed(close)) if close.code == NOT_FOUND => Ok(false),
        Err(error) => Err(error),
    }
}

async fn declare(side: &mut SideConnection, queue: &str) -> Result<(), LinkError> {
    let millis = i64::try_from(REMEMBERED.as_millis()).unwrap_or(i64::MAX);
    let arguments = super::table([("x-expires", FieldValue::l(millis))]);
    let declare = QueueDeclareArguments::new(queue)
        .durable(true)
        .arguments(arguments)
        .finish();
    side.ask(|channel| async move { channel.queue_declare(declare).await.map(drop) })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits_into_amqp() {
        // As long as RABBITMQ_STREAM and INSTANCE_NAME may be.
        let name = name(&"s".repeat(140), &"i".repeat(64), u64::MAX, NAMES);
        assert!(name.len() <= 255, "{}", name.len());
    }
}
