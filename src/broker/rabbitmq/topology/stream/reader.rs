//! The instance's reader: it hands each update of the stream to its recipients, and
//! remembers its place in the stream from one connection to the next.
//!
//! The reader lives as long as the service. Each connection attaches the reader (`attach`)
//! and runs a loop (`read`). Messages that a former connection still holds are ignored.
//! `Place` owns the place and its rules, `Routes` the recipients.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use amqprs::channel::ConsumerMessage;
use tokio::{
    sync::{Notify, mpsc::UnboundedReceiver},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::{
    super::{
        super::{
            acks::Acks,
            consumer::{Turn, in_turns},
            link_error::LinkError,
            place::{End, Place, StartAt, Verdict},
            shared::Shared,
        },
        routes::Routes,
    },
    message::{Message, parse},
    pulse::Pulse,
    read_back,
};
use crate::{
    broker::{Delivery, Handler, LogPosition, history::History},
    observability::metrics::Metrics,
    user::User,
};

/// A connection that follows a loss this soon: nothing that RabbitMQ still had then is gone.
const AT_ONCE: Duration = Duration::from_secs(10);

pub(in super::super::super) struct Reader {
    routes: Routes,
    history: Arc<History>,
    metrics: Metrics,
    /// The routing key of this instance's markers.
    instance: String,
    /// The exchange of all instances' markers.
    markers: String,
    received: Arc<AtomicU64>,
    state: Mutex<State>,
    /// Wakes who waits until the place is certain.
    came: Notify,
    /// Whether users are subscribed as soon as they are known: the reader has a place.
    is_settled: AtomicBool,
    reading_back: TaskTracker,
}

struct State {
    place: Place,
    pulse: Pulse,
    marker: u64,
    /// Counts the attachments: messages of former ones are left alone.
    attachment: u64,
    lost_at: Option<Instant>,
}

impl Reader {
    pub(in super::super::super) fn new(shared: &Shared) -> Self {
        let config = &shared.config;
        let (keys, metrics) = (config.binding_keys.clone(), shared.metrics.clone());
        Self {
            routes: Routes::new(keys.clone(), metrics.clone()),
            history: Arc::new(History::new(&config.stream, keys, metrics)),
            metrics: shared.metrics.clone(),
            instance: shared.instance.clone(),
            markers: super::markers(&shared.config),
            received: shared.received.clone(),
            state: Mutex::new(State {
                place: Place::from_now_on(),
                pulse: Pulse::default(),
                marker: 0,
                attachment: 0,
                lost_at: None,
            }),
            came: Notify::new(),
            is_settled: AtomicBool::new(false),
            reading_back: TaskTracker::new(),
        }
    }

    /// The latest updates of everybody.
    pub(in super::super::super) fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Hands `user`'s updates to `handler` from now on. Returns whether nothing is missed from
    /// now on, however long the connection may be away.
    pub(in super::super::super) fn subscribe(&self, user: &User, handler: Handler) -> bool {
        self.routes.insert(user, handler);
        self.is_settled()
    }

    pub(in super::super::super) fn unsubscribe(&self, user: &User) {
        self.routes.remove(user);
    }

    /// The reader has a place. The first time, what the stream had before is read back.
    pub(super) fn settle(&self, shared: &Arc<Shared>) {
        if !self.is_settled.swap(true, Ordering::AcqRel) {
            let (history, markers) = (self.history.clone(), self.markers.clone());
            self.reading_back
                .spawn(read_back::run(shared.clone(), history, markers));
        }
    }

    /// Waits until nothing is read back any more, which ends when consuming is to stop.
    pub(in super::super::super) async fn close(&self) {
        self.reading_back.close();
        self.reading_back.wait().await;
    }

    fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Acquire)
    }

    /// Begins an attachment: its number, and where it attaches.
    pub(super) fn attach(&self) -> (u64, StartAt) {
        let mut state = self.state();
        let at_once = state.lost_at.is_some_and(|at| at.elapsed() < AT_ONCE);
        state.attachment += 1;
        state.pulse = Pulse::default();
        (state.attachment, state.place.attach(at_once))
    }

    /// Returns when messages are known to follow those that were handed on before.
    pub(super) async fn certain(&self) {
        loop {
            let came = self.came.notified();
            if self.state().place.is_certain() {
                return;
            }
            came.await;
        }
    }

    /// Messages may have been missed, whatever comes next.
    pub(super) fn give_up(&self) {
        self.state().place.give_up();
    }

    /// The connection has ended, with all that it had brought handed on.
    pub(in super::super::super) fn lose(&self, reason: &LinkError) {
        let mut state = self.state();
        state.place.lose(match reason {
            LinkError::Unreadable(_) => End::Unreadable,
            LinkError::Stopped => End::Silence,
            _ => End::Loss,
        });
        if reason.is_missing() {
            // The exchange is gone, and the stream no longer bound.
            state.place.give_up();
        }
        if self.is_settled() {
            // Users were subscribed without a place: what came since is not known.
            state.place.doubt();
        }
        state.lost_at = Some(Instant::now());
    }

    /// The consumer has ended, and nobody knows why.
    pub(super) fn lose_consumer(&self) {
        let mut state = self.state();
        state.place.lose(End::Loss);
        if self.is_settled() {
            state.place.doubt();
        }
    }

    /// The number of the marker to publish now.
    pub(super) fn begin_marker(&self) -> u64 {
        let mut state = self.state();
        state.marker += 1;
        let marker = state.marker;
        state.pulse.begin(marker, Instant::now());
        marker
    }

    /// RabbitMQ has taken the marker.
    pub(super) fn marker_taken(&self, marker: u64) {
        self.state().pulse.taken(marker, Instant::now());
    }

    /// Whether it has stopped, although its consumer has no end.
    pub(super) fn has_stopped(&self) -> bool {
        self.state().pulse.has_stopped(Instant::now())
    }

    /// Reads until the consumer has ended, and settles each message.
    pub(super) async fn read(
        &self,
        shared: &Shared,
        attachment: u64,
        messages: UnboundedReceiver<ConsumerMessage>,
        acks: &Acks,
    ) {
        let take = |message: &ConsumerMessage, turn: &mut Turn| {
            let tag = message.deliver.as_ref().map(amqprs::Deliver::delivery_tag);
            if let Some(message) = parse(message, &self.markers) {
                self.receive(shared, attachment, message, turn);
            } else {
                debug!("RabbitMQ message without a place in the stream");
            }
            if let Some(tag) = tag {
                acks.settle(tag);
            }
        };
        in_turns(messages, take).await;
    }

    fn receive(&self, shared: &Shared, attachment: u64, message: Message<'_>, turn: &mut Turn) {
        let Message {
            offset,
            is_marker,
            delivery,
        } = message;
        // Held while the update is handed on, which does not block: no other message comes
        // in between.
        let mut state = self.state();
        let state = &mut *state;
        if state.attachment != attachment {
            return;
        }
        let now = Instant::now();
        state.pulse.message(now);
        if is_marker
            && delivery.routing_key == self.instance
            && let Some(number) = number(delivery.body)
            && let Some(took) = state.pulse.back(number, now)
        {
            self.metrics.stream_round_trip.observe(took.as_secs_f64());
            self.history.note_round_trip(took);
        }
        let was_certain = state.place.is_certain();
        // The newest in the history is the last one that came.
        let is_the_last = || self.history.look().newest_is(&delivery);
        match state.place.receive(offset, is_the_last) {
            Verdict::Known => {
                if !was_certain {
                    debug!(offset, "RabbitMQ stream read on from the last place");
                    self.came.notify_waiters();
                }
                return;
            }
            // This reader never attaches only to try.
            Verdict::HandOn | Verdict::Again => {}
            Verdict::HandOnBehind { unreadable } => {
                self.metrics.messages_unreadable.inc();
                warn!(
                    offset = unreadable,
                    "RabbitMQ message in the stream stepped over: the AMQP library cannot read it"
                );
            }
            Verdict::Hole => {
                self.metrics.stream_holes.inc();
                warn!(
                    offset,
                    "RabbitMQ stream no longer has the last place: updates may have been missed"
                );
                self.history.cut();
                shared.desired.renew();
            }
        }
        if !was_certain {
            self.came.notify_waiters();
        }
        let past = self.history.push(offset, &delivery, !is_marker, now);
        let number = past.last();
        let delivery = Delivery {
            position: Some(LogPosition { offset, number }),
            ..delivery
        };
        if !is_marker && self.routes.deliver(&delivery, turn) {
            self.received.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A handler's panic is caught: what is locked is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of a marker.
fn number(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(body).ok()?.parse().ok()
}
