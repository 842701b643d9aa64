//! Remembers, at RabbitMQ, that this instance is reading back: if the process dies of what it
//! reads, the next one must not do the same for ever.
//!
//! An attempt is a queue that nobody uses, and that RabbitMQ deletes after a while. It is
//! deleted at the attempt's end, however the attempt ends; only a process that is gone leaves
//! it behind. Instances of the same name on one host share the attempts, so those of others
//! are waited for.

use std::time::Duration;

use amqprs::{
    FieldValue,
    channel::{QueueDeclareArguments, QueueDeleteArguments},
};
use tokio::time::{Instant, sleep};

use super::super::super::{
    instance::instance_name,
    link_error::{LinkError, NOT_FOUND},
    shared::Shared,
    side_connection::SideConnection,
};

/// Attempts that may have ended with their process: some may have been stopped by chance.
const MAX_LEFT: usize = 3;

/// How long RabbitMQ remembers one: longer than three starts take, however much a supervisor
/// waits between them, and short enough that instances which are killed often go on reading.
const REMEMBERED: Duration = Duration::from_secs(3 * 60);

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
    /// Begins one; `None` if the last ones have ended with their process.
    pub(super) async fn begin(shared: &Shared) -> Result<Option<Self>, LinkError> {
        let config = &shared.config;
        let mut side = SideConnection::open(config, "reading", &shared.instance).await?;
        let name = format!("{}.reading.{}", config.stream, instance_name(config));
        let until = Instant::now() + OTHERS_WITHIN;
        loop {
            for number in 0..MAX_LEFT {
                let queue = format!("{name}.{number}");
                if exists(&mut side, &queue).await? {
                    continue;
                }
                match declare(&mut side, &queue).await {
                    Ok(()) => return Ok(Some(Self { side, queue })),
                    // It is on a node that is down.
                    Err(LinkError::Closed(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() > until {
                side.close().await;
                return Ok(None);
            }
            sleep(LOOK).await;
        }
    }

    /// The process has survived it.
    pub(super) async fn end(mut self) {
        let delete = QueueDeleteArguments::new(&self.queue);
        let deleted = self
            .side
            .ask(|channel| async move { channel.queue_delete(delete).await.map(drop) });
        // RabbitMQ deletes it later.
        let _ = deleted.await;
        self.side.close().await;
    }
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
