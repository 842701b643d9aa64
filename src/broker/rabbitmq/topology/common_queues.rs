//! Queues that users share: the topologies `shared` and `firehose`.
//!
//! A queue is exclusive, has one consumer, and lives as long as its link. Users are
//! spread over the queues by a hash of their id, so that the order of each user's
//! updates holds. Each user has bindings, except where the queue is bound for everybody.
//! `Routes` finds the recipients of an update by its routing key.
//!
//! Bindings are made in pipelined batches, and removed later and slowly: a user who
//! returns before that has missed nothing. Updates for users who have left are
//! acknowledged and counted.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use amqprs::channel::{Channel, QueueBindArguments, QueueDeclareArguments, QueueUnbindArguments};
use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::{debug, info};

use super::{
    super::{
        channels::{ADMIN_CHANNELS, Answer, Channels},
        consumer::Turn,
        desired::Subscription,
        link_error::{LinkError, NOT_FOUND, ServerClose},
        refused::RETRY_PAUSE,
        shared::Shared,
    },
    Refusal, Topology,
    members::Members,
    permitted::Permitted,
    routes::Routes,
};
use crate::{
    broker::Delivery,
    observability::metrics::GaugeGuard,
    user::{User, UserId},
};

/// Users who are bound on one channel between two barriers.
const BATCH: usize = 256;

/// Channels for binding, fewer than there are: RabbitMQ's transactions on bindings
/// conflict with each other. With two, the broker always has work during a round trip.
const BIND_CHANNELS: usize = 2;

/// How long a user who has left keeps the bindings: about as long as a page takes to load.
const LINGER: Duration = Duration::from_secs(10);

/// Pause between two portions of unbinding. With the portions of `Members`, at least
/// 160 users a second are unbound, a small part of what the broker can do.
const UNBIND_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct CommonQueues {
    shared: Arc<Shared>,
    epoch: u64,
    /// Whether the queue is bound for everybody. Then only users whom the keys for all do
    /// not cover have bindings.
    for_all: bool,
    queues: Vec<Option<Queue>>,
    declarations: u64,
    /// Why a queue could not be made, and when to try again.
    refused: Option<(ServerClose, Instant)>,
    permitted: Permitted,
    members: Members,
    /// When the next portion may be unbound.
    unbind_after: Instant,
}

struct Queue {
    name: String,
    routes: Arc<Routes>,
    /// Whether it has the bindings for everybody, if there are any.
    is_ready: bool,
}

/// A user whose bindings must be made.
struct Newcomer {
    user: User,
    subscription: Subscription,
    routes: Arc<Routes>,
    binds: Vec<QueueBindArguments>,
}

impl CommonQueues {
    /// One queue or a few, bound for each of their users.
    pub(super) fn shared(shared: Arc<Shared>, epoch: u64) -> Self {
        let count = shared.config.shared_queues.into();
        Self::new(shared, epoch, count, false)
    }

    /// One queue, bound for everybody.
    pub(super) fn firehose(shared: Arc<Shared>, epoch: u64) -> Self {
        Self::new(shared, epoch, 1, true)
    }

    fn new(shared: Arc<Shared>, epoch: u64, count: usize, for_all: bool) -> Self {
        Self {
            permitted: Permitted::new(&shared),
            shared,
            epoch,
            for_all,
            queues: std::iter::repeat_with(|| None).take(count).collect(),
            declarations: 0,
            refused: None,
            members: Members::default(),
            unbind_after: Instant::now(),
        }
    }

    /// Declares and consumes a queue that does not exist, and, in a firehose, binds it for
    /// everybody.
    async fn prepare_queue(
        &mut self,
        channels: &Channels,
        index: usize,
    ) -> Result<Answer<()>, LinkError> {
        let queue = match self.queues[index].take() {
            Some(queue) => queue,
            None => match self.declare(channels, index).await? {
                Ok(queue) => queue,
                Err(close) => return Ok(Err(close)),
            },
        };
        let (name, is_ready) = (queue.name.clone(), queue.is_ready);
        // The queue is kept even if the exchange is missing.
        let queue = self.queues[index].insert(queue);
        if is_ready {
            return Ok(Ok(()));
        }
        let keys = self.permitted.keys_for_all();
        let keys = keys.filter(|_| self.for_all);
        let binds = keys.map(|key| bind(&self.shared, &name, &key)).collect();
        let bound = bind_all(channels, 0, binds).await?;
        queue.is_ready = bound.is_ok();
        Ok(bound)
    }

    async fn declare(
        &mut self,
        channels: &Channels,
        index: usize,
    ) -> Result<Answer<Queue>, LinkError> {
        self.declarations += 1;
        let name = format!(
            "chat3-gateway.{}.{}.common{index}.{}",
            self.shared.instance, self.epoch, self.declarations
        );
        let declare = QueueDeclareArguments::new(&name)
            .exclusive(true)
            .auto_delete(true)
            .finish();
        let declare = |channel: Channel| async move { channel.queue_declare(declare).await };
        if let Err(close) = channels.on_admin(0, declare).await? {
            return Ok(Err(close));
        }
        let routes = Arc::new(Routes::new(
            self.shared.config.binding_keys.clone(),
            self.shared.metrics.clone(),
        ));
        let deliver = {
            let routes = routes.clone();
            move |delivery: &Delivery<'_>, turn: &mut Turn| {
                routes.deliver(delivery, turn);
            }
        };
        let on = &channels.consumers[index % channels.consumers.len()];
        channels.consume(on, vec![(name.clone(), deliver)]).await?;
        debug!(queue = name, "RabbitMQ queue consumed");
        Ok(Ok(Queue {
            name,
            routes,
            is_ready: false,
        }))
    }

    /// Notes that the user has the bindings.
    fn activate(&mut self, user: &User, subscription: &Subscription) {
        info!(user_id = %user.id, "User subscribed to updates");
        let gauge = GaugeGuard::new(&self.shared.metrics.subscriptions);
        self.members.arrive(user, subscription.serial, gauge);
        subscription.activation.activate();
    }

    /// The user's queue, if it exists.
    fn queue_of(&self, id: &UserId) -> Option<&Queue> {
        self.queues[self.index_of(id)].as_ref()
    }

    fn index_of(&self, id: &UserId) -> usize {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let count = self.queues.len() as u64;
        usize::try_from(hasher.finish() % count).expect("less than the count of queues")
    }

    /// Whether the bindings for everybody cover the user.
    fn is_covered(&self, user: &User) -> bool {
        self.for_all && self.shared.config.binding_keys.cover(user)
    }

    /// Binds newcomers in batches, each on one admin channel.
    async fn bind_batches(
        &mut self,
        channels: &Channels,
        mut newcomers: Vec<Newcomer>,
    ) -> Result<Vec<Refusal>, LinkError> {
        let mut batches = Vec::new();
        while !newcomers.is_empty() {
            let rest = newcomers.split_off(newcomers.len().min(BATCH));
            batches.push(std::mem::replace(&mut newcomers, rest));
        }
        let mut refusals = Vec::new();
        for batches in batches.chunks_mut(BIND_CHANNELS) {
            let binds = batches.iter_mut().enumerate().map(|(admin, batch)| {
                let binds = batch
                    .iter_mut()
                    .flat_map(|new| std::mem::take(&mut new.binds));
                bind_all(channels, admin, binds.collect())
            });
            let answers = join_all(binds).await;
            for (batch, answer) in batches.iter_mut().zip(answers) {
                match answer? {
                    Ok(()) => {
                        for new in batch {
                            self.permitted.accept(&new.user);
                            self.activate(&new.user, &new.subscription);
                        }
                    }
                    // Bindings that the batch has made stay, without effect, until the
                    // same users are bound again or the link ends.
                    Err(close) => {
                        let users = batch.drain(..).map(|new| {
                            new.routes.remove(&new.user);
                            (new.user, new.subscription)
                        });
                        let users = users.collect();
                        refusals.push(Refusal { users, close });
                    }
                }
            }
        }
        Ok(refusals)
    }
}

#[async_trait]
impl Topology for CommonQueues {
    async fn prepare(&mut self, channels: &Channels) -> Result<(), LinkError> {
        if let Some((_, until)) = self.refused
            && Instant::now() < until
        {
            return Ok(());
        }
        self.refused = None;
        for index in 0..self.queues.len() {
            if self.queues[index]
                .as_ref()
                .is_some_and(|queue| queue.is_ready)
            {
                continue;
            }
            let prepared = loop {
                match self.prepare_queue(channels, index).await? {
                    Err(close) if self.permitted.refuse_for_all(&close) => {}
                    prepared => break prepared,
                }
            };
            if let Err(close) = prepared {
                if close.missing_queue().is_some() {
                    self.queues[index] = None;
                }
                if close.code == NOT_FOUND {
                    return Err(LinkError::Closed(close));
                }
                self.refused = Some((close, Instant::now() + RETRY_PAUSE));
                return Ok(());
            }
        }
        Ok(())
    }

    async fn subscribe(
        &mut self,
        channels: &Channels,
        users: Vec<(User, Subscription)>,
    ) -> Result<Vec<Refusal>, LinkError> {
        self.prepare(channels).await?;
        let mut newcomers = Vec::new();
        let mut without_queue = Vec::new();
        for (user, subscription) in users {
            let Some(queue) = self.queue_of(&user.id).filter(|queue| queue.is_ready) else {
                without_queue.push((user, subscription));
                continue;
            };
            // Before the bindings, so that no update arrives without a recipient.
            let routes = queue.routes.clone();
            routes.insert(&user, subscription.handler.clone());
            if self.is_covered(&user) || self.members.contains(&user) {
                self.activate(&user, &subscription);
                continue;
            }
            let keys = self.permitted.keys(&user);
            let binds = keys.map(|key| {
                debug!(user_id = %user.id, queue = queue.name, binding_key = ?key, "RabbitMQ binding");
                bind(&self.shared, &queue.name, &key)
            });
            let binds = binds.collect();
            newcomers.push(Newcomer {
                user,
                subscription,
                routes,
                binds,
            });
        }
        let mut refusals = self.bind_batches(channels, newcomers).await?;
        if let Some((close, _)) = &self.refused
            && !without_queue.is_empty()
        {
            refusals.push(Refusal {
                users: without_queue,
                close: close.clone(),
            });
        }
        Ok(refusals)
    }

    async fn unsubscribe(&mut self, _: &Channels, users: Vec<User>) -> Result<(), LinkError> {
        let now = Instant::now();
        for user in users {
            if let Some(queue) = self.queue_of(&user.id) {
                queue.routes.remove(&user);
            }
            if self.is_covered(&user) {
                self.members.remove(&user);
            } else {
                self.members.leave(&user, now);
            }
            info!(user_id = %user.id, "User unsubscribed from updates");
        }
        Ok(())
    }

    /// Unbinds some of the users who left some time ago, spread over the channels: an
    /// unbind cannot be pipelined.
    async fn tidy(&mut self, channels: &Channels) -> Result<(), LinkError> {
        let now = Instant::now();
        self.unbind_after = now + UNBIND_PAUSE;
        let Some(deadline) = now.checked_sub(LINGER) else {
            return Ok(());
        };
        let mut unbinds = Vec::new();
        for user in self.members.take_departed(deadline) {
            let Some(queue) = self.queue_of(&user.id) else {
                continue;
            };
            let keys = |user: &User| self.permitted.keys(user).collect();
            for key in self.members.unused_keys(&user, keys) {
                let exchange = &self.shared.config.exchange;
                unbinds.push(QueueUnbindArguments::new(&queue.name, exchange, &key));
            }
        }
        debug!(bindings = unbinds.len(), "RabbitMQ unbinding");
        let portion = unbinds.len().div_ceil(ADMIN_CHANNELS).max(1);
        let portions = unbinds.chunks(portion).map(<[_]>::to_vec).enumerate();
        let answers = join_all(portions.map(|(admin, unbinds)| {
            let unbind =
                |channel: Channel, unbind| async move { channel.queue_unbind(unbind).await };
            channels.pipeline(admin, unbinds, unbind)
        }))
        .await;
        for answer in answers {
            // A permission was withdrawn. These bindings stay until the link ends.
            if let Err(close) = answer? {
                debug!(reason = %close, "RabbitMQ refused to unbind");
                self.unbind_after = now + RETRY_PAUSE;
            }
        }
        Ok(())
    }

    fn tidy_at(&self) -> Option<Instant> {
        let first = self.members.first_departure()?;
        Some((first + LINGER).max(self.unbind_after))
    }

    fn forget(&mut self, queue: &str) -> Vec<User> {
        let is_it = |other: &Option<Queue>| other.as_ref().is_some_and(|it| it.name == queue);
        let Some(index) = self.queues.iter().position(is_it) else {
            return Vec::new();
        };
        if let Some(queue) = self.queues[index].take() {
            // Updates that its consumer still holds must not arrive after newer ones.
            queue.routes.clear();
        }
        let mut members = std::mem::take(&mut self.members);
        let users = members.remove_all(|id| self.index_of(id) == index);
        self.members = members;
        users
    }

    fn serial(&self, user: &User) -> Option<u64> {
        self.members.serial(user)
    }

    fn count(&self) -> usize {
        self.members.present()
    }

    fn do_without(&mut self, user: &User, refused: &ServerClose) -> bool {
        self.permitted.refuse(user, refused)
    }

    fn a_binding(&self) -> Option<QueueBindArguments> {
        if self.for_all {
            let queue = self.queues.iter().flatten().find(|queue| queue.is_ready)?;
            let key = self.permitted.keys_for_all().next()?;
            return Some(QueueBindArguments::new(
                &queue.name,
                &self.shared.config.exchange,
                &key,
            ));
        }
        let user = self.members.anybody()?;
        let queue = self.queue_of(&user.id)?;
        let key = self.permitted.keys(&user).next()?;
        Some(QueueBindArguments::new(
            &queue.name,
            &self.shared.config.exchange,
            &key,
        ))
    }

    fn round(&self) -> usize {
        BATCH * BIND_CHANNELS
    }
}

fn bind(shared: &Shared, queue: &str, key: &str) -> QueueBindArguments {
    QueueBindArguments::new(queue, &shared.config.exchange, key)
        .no_wait(true)
        .finish()
}

async fn bind_all(
    channels: &Channels,
    admin: usize,
    binds: Vec<QueueBindArguments>,
) -> Result<Answer<()>, LinkError> {
    let bind = |channel: Channel, bind| async move { channel.queue_bind(bind).await };
    channels.pipeline(admin, binds, bind).await
}
