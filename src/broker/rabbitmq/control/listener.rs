//! The loop that takes orders from the stream, or from a queue where there can be no stream, and
//! hands them on. It outlives connections.
//!
//! Owns what an order that comes late means: what was kept is handed on with the moment since
//! when orders are news to this instance. Sockets are let in meanwhile only after a while
//! (`Shared::reading_orders`). That the end of the stream is reached is known by a marker of the
//! gateway's own, published after attaching; or, where RabbitMQ takes none, by silence.

mod opening;
mod receiving;

use std::{
    hash::RandomState,
    sync::Arc,
    time::{Duration, SystemTime},
};

use amqprs::channel::ConsumerMessage;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use self::{
    opening::{Attachment, Refusals},
    receiving::Next,
};
use super::{
    super::{
        link_error::LinkError,
        outbox::Outbox,
        place::{End, Place},
        shared::Shared,
    },
    wire::{Consumer, Wire},
};

/// How often to look whether the exchange is still there: bindings go with it, unannounced.
const MEND: Duration = Duration::from_secs(5);

/// A stream from which nothing comes for so long after attaching has nothing more.
const SILENCE: Duration = Duration::from_secs(5);

/// How often the stream is attached anew at its last message: a consumer may have stopped
/// without an end. At least twice as often as orders are forgotten. Sockets do not wait
/// meanwhile: an order that comes half a second late finds those that were let in.
const RENEWAL: Duration = Duration::from_secs(600);

/// Time limit for handing on what has arrived when a connection is lost.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Listener {
    shared: Arc<Shared>,
    /// For markers.
    outbox: Arc<Outbox>,
    place: Place,
    /// The digest of the last message.
    last: u64,
    hasher: RandomState,
    lost_at: Option<Instant>,
    /// Orders of later than this moment are news.
    heard_until: SystemTime,
    /// Orders came from a queue since the stream was read.
    heard_elsewhere: bool,
    /// The stream was left only to be attached anew.
    renews: bool,
    stream_refusals: Refusals,
    refusals: Refusals,
    attachments: u64,
}

/// What is consumed from, on one connection.
#[derive(Default)]
struct Sources {
    stream: Option<Attachment>,
    queue: Option<Consumer>,
    /// RabbitMQ was asked to attach the stream, and has not answered.
    is_attaching: bool,
    /// The stream is declared and bound, and nobody handles orders yet.
    awaits_handler: bool,
}

impl Listener {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            outbox: Arc::new(Outbox::new(shared.clone(), "orders' markers")),
            heard_until: shared.started_at,
            place: Place::from_the_start(),
            last: 0,
            hasher: RandomState::new(),
            lost_at: None,
            heard_elsewhere: false,
            renews: false,
            stream_refusals: Refusals::default(),
            refusals: Refusals::default(),
            attachments: 0,
            shared,
        }
    }

    /// Listens until the connection is lost; `Ok` when the service is closing.
    pub(super) async fn run(&mut self, wire: &mut Wire, epoch: u64) -> Result<(), LinkError> {
        let mut sources = Sources::default();
        let ended = self.listen(wire, epoch, &mut sources).await;
        self.shared.set_control_connected(false);
        self.shared.metrics.control_stream.set(0);
        let is_unreadable = matches!(ended, Err(LinkError::Unreadable(_)));
        if ended.is_err() {
            self.drain(&mut sources).await;
        }
        if sources.stream.is_some() || sources.is_attaching {
            self.place.lose(match is_unreadable {
                true => End::Unreadable,
                false => End::Loss,
            });
            if is_unreadable {
                self.stream_refusals.again_at = None;
            }
        } else if is_unreadable {
            // It is lost with the queue.
            self.shared.metrics.messages_unreadable.inc();
        }
        self.lost_at = Some(Instant::now());
        let stream = sources.stream.take().map(|it| it.consumer);
        for consumer in stream.into_iter().chain(sources.queue) {
            consumer.close().await;
        }
        ended
    }

    async fn listen(
        &mut self,
        wire: &mut Wire,
        epoch: u64,
        sources: &mut Sources,
    ) -> Result<(), LinkError> {
        let shared = self.shared.clone();
        self.refusals = Refusals::default();
        let mut mend_at = Instant::now() + MEND;
        loop {
            self.open(wire, epoch, sources).await?;
            let alarm = self.alarm(sources, mend_at);
            tokio::select! {
                () = wire.connection.lost.cancelled() => return Err(wire.connection.loss()),
                () = shared.close.cancelled() => return Ok(()),
                Some(tag) = wire.cancelled.recv() => self.forget(sources, &tag),
                () = shared.broadcasts_handled(), if sources.awaits_handler => {
                    sources.awaits_handler = false;
                }
                message = next(sources.stream.as_mut().map(|it| &mut it.consumer)) => {
                    self.take_from_stream(sources, message);
                    // A flood of orders takes turns with everything else.
                    tokio::task::yield_now().await;
                }
                message = next(sources.queue.as_mut()) => {
                    self.take_from_queue(sources, message);
                    tokio::task::yield_now().await;
                }
                () = sleep_until(alarm) => {
                    if Instant::now() >= mend_at {
                        mend_at = Instant::now() + MEND;
                        self.mend(wire, sources).await?;
                    }
                    self.look_at_stream(sources);
                }
            }
        }
    }

    /// When something is due.
    fn alarm(&self, sources: &Sources, mend_at: Instant) -> Instant {
        let retry_at = match (&sources.stream, &sources.queue) {
            (Some(stream), _) => match self.is_settled(stream) {
                true => Some(self.renewal_of(stream)),
                false => Some(stream.heard_at + SILENCE),
            },
            (None, Some(_)) => self.stream_refusals.again_at,
            (None, None) => self.refusals.again_at,
        };
        retry_at.map_or(mend_at, |at| at.min(mend_at))
    }

    fn renewal_of(&self, stream: &Attachment) -> Instant {
        let kept = self.shared.config.revocations_kept;
        stream.begun + (kept / 2).clamp(SILENCE, RENEWAL)
    }

    fn is_settled(&self, stream: &Attachment) -> bool {
        !stream.is_reading && self.place.is_certain()
    }

    /// Ends what has been quiet for too long, in one way or another.
    fn look_at_stream(&mut self, sources: &mut Sources) {
        let Some(stream) = &sources.stream else {
            return;
        };
        let now = Instant::now();
        if self.is_settled(stream) {
            if now >= self.renewal_of(stream) {
                self.leave_stream(sources, End::Released);
                self.renews = true;
            }
        } else if now >= stream.heard_at + SILENCE {
            if self.place.is_certain() {
                self.caught_up(sources);
            } else {
                debug!("RabbitMQ control stream is silent");
                self.leave_stream(sources, End::Silence);
            }
        }
    }

    /// A consumer has ended because its queue or stream was deleted.
    fn forget(&mut self, sources: &mut Sources, tag: &str) {
        let stream = sources.stream.as_ref();
        if stream.is_some_and(|it| it.consumer.tag == tag) {
            warn!("RabbitMQ ended the consumer of the control stream; attaching again");
            self.leave_stream(sources, End::Gone);
        }
        if sources.queue.take_if(|it| it.tag == tag).is_some() {
            warn!("RabbitMQ control channel lost: orders of the last moments may be missing");
        }
    }

    /// Hands on what had arrived before the connection was lost: the place is behind it.
    async fn drain(&mut self, sources: &mut Sources) {
        let drained = timeout(DRAIN_TIMEOUT, async {
            while let Some(stream) = &mut sources.stream
                && let Some(message) = stream.consumer.next().await
                && let Next::Continue | Next::CaughtUp = self.receive(stream, message)
            {
                tokio::task::yield_now().await;
            }
            while let Some(queue) = &mut sources.queue
                && let Some(message) = queue.next().await
            {
                self.take_from_queue(sources, Some(message));
            }
        });
        if drained.await.is_err() {
            debug!("RabbitMQ consumers of orders did not end in time");
        }
    }
}

/// The next message of a consumer, if there is one.
async fn next(consumer: Option<&mut Consumer>) -> Option<ConsumerMessage> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}
