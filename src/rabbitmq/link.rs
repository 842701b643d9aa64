//! One connection to RabbitMQ: opened, kept in line with the wishes, lost or closed.
//!
//! What amqprs leaves to its user decides the shape (its source, 2.1.5):
//! - Replies are matched by method type per channel, and the reply to a dropped
//!   future goes to the next caller. So all RPCs are issued by this one task,
//!   one after the other, each in a task of its own that is never dropped; after
//!   a timeout the whole connection is thrown away.
//! - Nothing reports every kind of loss, except the `Drop` of the callbacks that
//!   the reader and the dispatchers own: see the module `connection`.
//! - A channel that the server closes takes its consumers along. So declares and
//!   binds, which may fail, have channels of their own.
//!
//! RabbitMQ works on one channel's declares one after the other, and waits with
//! each for its metadata store. So the changes of a round are spread over several
//! channels, as one batch on each; the next round begins when all have answered,
//! which keeps the operations on one user in order.
//!
//! Topology: one queue per user, exclusive and auto-delete, named after the
//! instance, the connection's epoch, a hash of the user and a serial of the
//! declaration. The serial keeps a returning user's queue apart from the one that
//! is being deleted.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use amqprs::{
    channel::{
        BasicCancelArguments, BasicConsumeArguments, QueueBindArguments, QueueDeclareArguments,
        QueueDeleteArguments,
    },
    connection::Connection,
};
use futures_util::{FutureExt, future::join_all};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{debug, info, warn};

use super::{
    Shared, Wish,
    acks::Acks,
    connection::{
        LinkError, NOT_FOUND, OnConnection, OpenChannel, ServerClose, barrier, open_channel,
        open_connection,
    },
    consumer::UserConsumer,
    control::Control,
};
use crate::{metrics::GaugeGuard, user::User};

/// Limit of one RPC. A broker that needs longer is in no state to deliver.
const RPC_TIMEOUT: Duration = Duration::from_secs(20);

/// Channels for declares, binds and deletes. RabbitMQ 3.10 on two cores takes 400
/// users a second over one, and 1,000 over 16: then its cores are busy.
const ADMIN_CHANNELS: usize = 16;

/// Users that are declared, bound and consumed on one channel between two waits
/// for the broker: enough to hide the round trip, few enough to keep a failure's
/// repair small.
const BATCH: usize = 16;

/// How often a long resubscription reports in the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How often a missing exchange is looked for. Users wait for it, so it is short.
const EXCHANGE_RETRY: Duration = Duration::from_secs(2);

/// How often it is looked whether the exchange still exists, and tried to delete
/// what could not be deleted.
const EXCHANGE_PROBE: Duration = Duration::from_secs(5);

/// How long a refused subscription rests. Only an operator can mend it.
const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// amqprs never reuses the id of a channel that the server closed, and panics
/// when it has used 65,535. A new connection long before that is cheap.
const MAX_REOPENED_CHANNELS: usize = 500;

/// Limit of handing off what consumers still hold when a link ends. Handlers do
/// not block; only an acknowledgement into a dead connection could.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Link {
    connection: Connection,
    /// Declare, bind, delete. Each is replaced when the server closes it.
    admins: Vec<OpenChannel>,
    /// Consumes, cancels, acknowledges. Its loss is the link's loss.
    consumers: OpenChannel,
    lost: CancellationToken,
    close_reason: Arc<OnceLock<ServerClose>>,
    /// Consumer tags that the server cancelled, because the queue was deleted.
    cancelled: mpsc::UnboundedReceiver<String>,
    cancelled_sender: mpsc::UnboundedSender<String>,
    active: HashMap<User, Active>,
    users_by_tag: HashMap<String, User>,
    /// Consumers that have not handed off all they received.
    handing_off: TaskTracker,
    acks: Arc<Acks>,
    _acknowledging: AbortOnDropHandle<()>,
    /// The way to the other instances.
    _control: Option<Control>,
    /// Queues that may have been declared for subscriptions that were then refused.
    leftovers: Vec<String>,
    /// Users whose subscription the broker refused, and when to try again.
    parked: HashMap<User, Instant>,
    epoch: u64,
    declarations: u64,
    reopened_channels: usize,
    warned_of_missing_exchange: bool,
    /// The probe of the exchange is not permitted: each try would cost a channel.
    probe_refused: bool,
}

/// A consumed queue. The consumer's tag is the queue's name.
struct Active {
    serial: u64,
    tag: String,
    _gauge: GaugeGuard,
}

/// A queue that is to be made for a user, or is being made.
struct Queue {
    user: User,
    wish: Wish,
    name: String,
}

/// How a link ended.
pub(super) enum Ended {
    /// The service is closing.
    Stopped,
    Lost(LinkError),
}

impl Link {
    /// Connects and opens the channels.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "rabbitmq_connect", skip_all, fields(otel.kind = "client", epoch)))]
    pub(super) async fn open(shared: &Arc<Shared>, epoch: u64) -> Result<Self, LinkError> {
        let open = Self::open_unbounded(shared, epoch);
        let limit = shared.config.connect_timeout;
        timeout(limit, open)
            .await
            .unwrap_or(Err(LinkError::Timeout(limit)))
    }

    async fn open_unbounded(shared: &Arc<Shared>, epoch: u64) -> Result<Self, LinkError> {
        let name = format!("chat3-gateway {}", shared.instance);
        let config = &shared.config;
        let connection = open_connection(&config.url, &config.tls, &name, config.heartbeat).await?;
        let lost = CancellationToken::new();
        let close_reason = Arc::new(OnceLock::new());
        connection
            .register_callback(OnConnection {
                close_reason: close_reason.clone(),
                _lost: lost.clone().drop_guard(),
            })
            .await?;
        let (cancelled_sender, cancelled) = mpsc::unbounded_channel();
        let prefetch = config.prefetch;
        let mut admins = Vec::with_capacity(ADMIN_CHANNELS);
        for _ in 0..ADMIN_CHANNELS {
            admins.push(open_channel(&connection, prefetch, None, &cancelled_sender).await?);
        }
        let lost_with_channel = Some(lost.clone().drop_guard());
        let consumers =
            open_channel(&connection, prefetch, lost_with_channel, &cancelled_sender).await?;
        // Per consumer; bounds what amqprs buffers without bound.
        barrier(&consumers.channel, prefetch).await?;
        let acks = Arc::new(Acks::default());
        let acknowledging = {
            let (acks, channel) = (acks.clone(), consumers.channel.clone());
            tokio::spawn(async move { acks.run(&channel).await })
        };
        let control = if config.control_exchange.is_empty() {
            None
        } else {
            let channel = open_channel(&connection, prefetch, None, &cancelled_sender).await?;
            let queue = format!("chat3-gateway.{}.{epoch}.control", shared.instance);
            let opened = Control::open(shared, channel, &queue).await;
            let opened = opened.inspect_err(|error| {
                warn!(%error, "RabbitMQ control exchange not usable: orders do not reach other instances");
            });
            opened.ok()
        };
        Ok(Self {
            connection,
            admins,
            consumers,
            lost,
            close_reason,
            cancelled,
            cancelled_sender,
            active: HashMap::new(),
            users_by_tag: HashMap::new(),
            handing_off: TaskTracker::new(),
            acks,
            _acknowledging: AbortOnDropHandle::new(acknowledging),
            _control: control,
            leftovers: Vec::new(),
            parked: HashMap::new(),
            epoch,
            declarations: 0,
            reopened_channels: 0,
            warned_of_missing_exchange: false,
            probe_refused: false,
        })
    }

    /// Keeps the broker's state in line with the wishes until the link is lost.
    pub(super) async fn run(&mut self, shared: &Shared) -> Ended {
        let mut probe = interval(EXCHANGE_PROBE);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        probe.reset();
        loop {
            let applied = self.apply_changes(shared).await;
            let without_exchange = match applied {
                Ok(()) => false,
                Err(LinkError::Closed(close)) if close.code == NOT_FOUND => true,
                Err(error) => return Ended::Lost(self.loss_or(error)),
            };
            if self.reopened_channels >= MAX_REOPENED_CHANNELS {
                let reason = "renewed after many closed channels".to_owned();
                return Ended::Lost(LinkError::Amqp(reason));
            }
            let retry_at = self.parked.values().min().copied();
            tokio::select! {
                () = self.lost.cancelled() => return Ended::Lost(self.loss()),
                () = shared.stop_consuming.cancelled() => return Ended::Stopped,
                Some(tag) = self.cancelled.recv() => self.forget_cancelled(shared, &tag),
                () = shared.changed.notified(), if !without_exchange => {}
                () = sleep(EXCHANGE_RETRY), if without_exchange => {}
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.unpark(shared);
                }
                _ = probe.tick() => {
                    if let Err(error) = self.probe(shared).await {
                        return Ended::Lost(self.loss_or(error));
                    }
                }
            }
        }
    }

    async fn apply_changes(&mut self, shared: &Shared) -> Result<(), LinkError> {
        let mut progress = interval(PROGRESS_EVERY);
        progress.reset();
        loop {
            if progress.tick().now_or_never().is_some() {
                let (subscribed, to_do) = (self.active.len(), shared.changes_count());
                info!(subscribed, to_do, "RabbitMQ subscriptions in progress");
            }
            // While nothing is known to work, one user tries it for all.
            let limit = match self.active.is_empty() {
                true => 1,
                false => BATCH * ADMIN_CHANNELS,
            };
            let changes = shared.take_changes(limit);
            if changes.is_empty() || shared.stop_consuming.is_cancelled() {
                return Ok(());
            }
            let users: Vec<User> = changes.iter().map(|(user, _)| user.clone()).collect();
            if let Err(error) = self.apply(shared, changes).await {
                shared.return_changes(users);
                return Err(error);
            }
        }
    }

    /// Brings the given users to the state that is wished. Applying a change
    /// twice, or one that is already true, does nothing.
    async fn apply(
        &mut self,
        shared: &Shared,
        changes: Vec<(User, Option<Wish>)>,
    ) -> Result<(), LinkError> {
        let mut missing: HashMap<User, Wish> = HashMap::new();
        let mut outdated = Vec::new();
        for (user, wish) in changes {
            let active_serial = self.active.get(&user).map(|active| active.serial);
            let wished_serial = wish.as_ref().map(|wish| wish.serial);
            if active_serial == wished_serial {
                continue;
            }
            self.parked.remove(&user);
            if active_serial.is_some() {
                outdated.push(user.clone());
            }
            if let Some(wish) = wish {
                missing.insert(user, wish);
            }
        }
        self.unsubscribe(outdated).await?;
        self.subscribe(shared, missing.into_iter().collect()).await
    }

    /// Subscribes all at once, or, where the broker refuses something, one by one:
    /// a user who is refused waits alone.
    async fn subscribe(
        &mut self,
        shared: &Shared,
        wishes: Vec<(User, Wish)>,
    ) -> Result<(), LinkError> {
        for (batch, close) in self.subscribe_batches(shared, wishes).await? {
            if close.code == NOT_FOUND {
                return self.exchange_is_missing(shared, close);
            }
            if batch.len() > 1 {
                for wish in batch {
                    Box::pin(self.subscribe(shared, vec![wish])).await?;
                }
                continue;
            }
            let error = LinkError::Closed(close);
            for (user, _) in batch {
                warn!(user_id = %user.id, %error, "RabbitMQ refused a subscription");
                self.parked.insert(user, Instant::now() + REFUSED_RETRY);
            }
        }
        Ok(())
    }

    /// A bind said that the exchange does not exist: an error for the caller.
    fn exchange_is_missing(
        &mut self,
        shared: &Shared,
        close: ServerClose,
    ) -> Result<(), LinkError> {
        if !self.active.is_empty() {
            // Bindings go with their exchange, unannounced: all queues are deaf.
            return Err(LinkError::Amqp(close.to_string()));
        }
        if !std::mem::replace(&mut self.warned_of_missing_exchange, true) {
            warn!(
                exchange = shared.config.exchange, reason = %close,
                "RabbitMQ exchange not found; updates will flow when Chat3 has created it"
            );
        }
        Err(LinkError::Closed(close))
    }

    /// Subscribes the users in batches, one on each admin channel. Returns the
    /// batches that the broker refused.
    async fn subscribe_batches(
        &mut self,
        shared: &Shared,
        mut wishes: Vec<(User, Wish)>,
    ) -> Result<Vec<(Vec<(User, Wish)>, ServerClose)>, LinkError> {
        let mut batches = Vec::new();
        while !wishes.is_empty() {
            let rest = wishes.split_off(wishes.len().min(BATCH));
            batches.push(self.name_queues(shared, std::mem::replace(&mut wishes, rest)));
        }
        // The channel of the consumers has one RPC in flight, as every channel.
        let consuming = Mutex::new(());
        let declare_and_consume = async |admin: &OpenChannel, queues: &[Queue]| {
            self.declare(shared, admin, queues).await?;
            let _turn = consuming.lock().await;
            self.consume(queues).await
        };
        let each = self.admins.iter().zip(&batches);
        let results = join_all(each.map(|(admin, batch)| declare_and_consume(admin, batch))).await;

        let mut refused = Vec::new();
        for (channel, (batch, result)) in batches.into_iter().zip(results).enumerate() {
            match result {
                Ok(()) => self.activate(shared, batch),
                Err(LinkError::Closed(close)) if !self.lost.is_cancelled() => {
                    self.reopen_admin(channel).await?;
                    // A single user whose declare is refused has left nothing.
                    if batch.len() > 1 || !close.is_of_declare() {
                        let names = batch.iter().map(|queue| queue.name.clone());
                        self.leftovers.extend(names);
                        self.clean_up(channel).await?;
                    }
                    let wishes = batch.into_iter().map(|queue| (queue.user, queue.wish));
                    refused.push((wishes.collect(), close));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    fn name_queues(&mut self, shared: &Shared, wishes: Vec<(User, Wish)>) -> Vec<Queue> {
        let name_queue = |(user, wish)| {
            self.declarations += 1;
            let name = queue_name(&shared.instance, self.epoch, &user, self.declarations);
            Queue { user, wish, name }
        };
        wishes.into_iter().map(name_queue).collect()
    }

    /// The users' queues are consumed.
    fn activate(&mut self, shared: &Shared, queues: Vec<Queue>) {
        for Queue { user, wish, name } in queues {
            info!(user_id = %user.id, "User subscribed to updates");
            wish.active.activate();
            self.users_by_tag.insert(name.clone(), user.clone());
            let active = Active {
                serial: wish.serial,
                tag: name,
                _gauge: GaugeGuard::new(&shared.metrics.subscriptions),
            };
            self.active.insert(user, active);
        }
    }

    /// Takes up again the users who have waited long enough after a refusal.
    fn unpark(&mut self, shared: &Shared) {
        let now = Instant::now();
        let due = self.parked.extract_if(|_, retry_at| *retry_at <= now);
        shared.return_changes(due.map(|(user, _)| user).collect());
    }

    /// What nothing else would tell or remind of.
    async fn probe(&mut self, shared: &Shared) -> Result<(), LinkError> {
        self.probe_exchange(shared).await?;
        self.clean_up(0).await
    }

    /// Binds one user's key once more: without effect, unless the exchange was
    /// deleted since, of which nothing else would tell.
    async fn probe_exchange(&mut self, shared: &Shared) -> Result<(), LinkError> {
        if self.probe_refused {
            return Ok(());
        }
        let Some((user, active)) = self.active.iter().next() else {
            return Ok(());
        };
        let keys = &shared.config.binding_keys;
        let Some(key) = keys.render(user).next() else {
            return Ok(());
        };
        let bind = QueueBindArguments::new(&active.tag, &shared.config.exchange, &key);
        let admin = &self.admins[0];
        let channel = admin.channel.clone();
        let bind = async move { channel.queue_bind(bind).await };
        match self.rpc(admin, bind).await {
            // A permission was withdrawn, from newcomers: who is bound stays so.
            Err(LinkError::Closed(close))
                if close.code != NOT_FOUND && !self.lost.is_cancelled() =>
            {
                self.probe_refused = true;
                self.reopen_admin(0).await
            }
            other => other,
        }
    }

    /// Declares and binds the queues, pipelined: without waiting for each answer,
    /// then one barrier, which only an accepted sequence passes.
    #[cfg_attr(feature = "otlp", tracing::instrument(name = "subscribe", skip_all, fields(otel.kind = "client", users = queues.len())))]
    async fn declare(
        &self,
        shared: &Shared,
        admin: &OpenChannel,
        queues: &[Queue],
    ) -> Result<(), LinkError> {
        let mut binds = Vec::new();
        let mut declares = Vec::new();
        for Queue { user, name, .. } in queues {
            declares.push(
                QueueDeclareArguments::new(name)
                    .exclusive(true)
                    .auto_delete(true)
                    .no_wait(true)
                    .finish(),
            );
            for key in shared.config.binding_keys.render(user) {
                debug!(user_id = %user.id, queue = name, binding_key = ?key, "RabbitMQ binding");
                binds.push(
                    QueueBindArguments::new(name, &shared.config.exchange, &key)
                        .no_wait(true)
                        .finish(),
                );
            }
        }
        let (channel, prefetch) = (admin.channel.clone(), admin.prefetch);
        let sequence = async move {
            // A frame after the server closed the channel would cost the connection.
            for declare in declares {
                if channel.is_open() {
                    channel.queue_declare(declare).await?;
                }
            }
            for bind in binds {
                if channel.is_open() {
                    channel.queue_bind(bind).await?;
                }
            }
            barrier(&channel, prefetch).await
        };
        self.rpc(admin, sequence).await
    }

    /// Starts the queues' consumers, pipelined likewise.
    async fn consume(&self, queues: &[Queue]) -> Result<(), LinkError> {
        let mut consumers = Vec::new();
        for Queue { wish, name, .. } in queues {
            let consumer = UserConsumer {
                handler: wish.handler.clone(),
                acks: self.acks.clone(),
                _handing_off: self.handing_off.token(),
            };
            let arguments = BasicConsumeArguments::new(name, name)
                .manual_ack(true)
                .exclusive(true)
                .no_wait(true)
                .finish();
            consumers.push((consumer, arguments));
        }
        let (channel, prefetch) = (self.consumers.channel.clone(), self.consumers.prefetch);
        let sequence = async move {
            for (consumer, arguments) in consumers {
                channel.basic_consume(consumer, arguments).await?;
            }
            barrier(&channel, prefetch).await
        };
        self.rpc(&self.consumers, sequence).await
    }

    /// Deletes the users' queues, in batches. Each consumer ends when the server's
    /// `basic.cancel` arrives, behind all deliveries; a `basic.cancel` of ours that
    /// does not wait would make amqprs drop what is still on its way.
    async fn unsubscribe(&mut self, users: Vec<User>) -> Result<(), LinkError> {
        let mut names = Vec::new();
        for user in &users {
            if let Some(active) = self.active.remove(user) {
                self.users_by_tag.remove(&active.tag);
                names.push(active.tag);
            }
        }
        let each = self.admins.iter().zip(names.chunks(BATCH));
        let deletes = each.map(|(admin, names)| self.delete(admin, names));
        let results = join_all(deletes).await;
        for (channel, (names, result)) in names.chunks(BATCH).zip(results).enumerate() {
            match result {
                Ok(()) => {}
                // A permission was withdrawn. To end a consumer needs none, and with
                // it goes its queue: slower, one wait for the broker each.
                Err(LinkError::Closed(_)) if !self.lost.is_cancelled() => {
                    self.reopen_admin(channel).await?;
                    self.cancel(names).await?;
                }
                Err(error) => return Err(error),
            }
        }
        for user in users {
            info!(user_id = %user.id, "User unsubscribed from updates");
        }
        Ok(())
    }

    /// Deletes queues, pipelined likewise.
    async fn delete(&self, admin: &OpenChannel, names: &[String]) -> Result<(), LinkError> {
        let delete = |name: &String| QueueDeleteArguments::new(name).no_wait(true).finish();
        let deletes: Vec<_> = names.iter().map(delete).collect();
        let (channel, prefetch) = (admin.channel.clone(), admin.prefetch);
        let sequence = async move {
            for delete in deletes {
                if channel.is_open() {
                    channel.queue_delete(delete).await?;
                }
            }
            barrier(&channel, prefetch).await
        };
        self.rpc(admin, sequence).await
    }

    /// Ends the queues' consumers, if they have not ended yet.
    async fn cancel(&self, names: &[String]) -> Result<(), LinkError> {
        for name in names {
            let channel = self.consumers.channel.clone();
            let cancel = BasicCancelArguments::new(name);
            let cancel = async move { channel.basic_cancel(cancel).await };
            self.rpc(&self.consumers, cancel).await?;
        }
        Ok(())
    }

    /// Deletes what refused batches have left, as far as that is permitted. One by
    /// one, each awaited: a second refusal must not meet further frames.
    async fn clean_up(&mut self, channel: usize) -> Result<(), LinkError> {
        while let Some(name) = self.leftovers.last() {
            let admin = &self.admins[channel];
            let delete = QueueDeleteArguments::new(name);
            let on = admin.channel.clone();
            let delete = async move { on.queue_delete(delete).await.map(drop) };
            match self.rpc(admin, delete).await {
                Ok(()) => drop(self.leftovers.pop()),
                // The permission went meanwhile: tried again with the next probe.
                Err(LinkError::Closed(_)) if !self.lost.is_cancelled() => {
                    return self.reopen_admin(channel).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn reopen_admin(&mut self, channel: usize) -> Result<(), LinkError> {
        self.reopened_channels += 1;
        let prefetch = self.consumers.prefetch;
        let open = open_channel(&self.connection, prefetch, None, &self.cancelled_sender);
        self.admins[channel] = timeout(RPC_TIMEOUT, open)
            .await
            .unwrap_or(Err(LinkError::Timeout(RPC_TIMEOUT)))?;
        Ok(())
    }

    /// The server cancelled a consumer because its queue was deleted. If that was
    /// not our wish: subscribe anew.
    fn forget_cancelled(&mut self, shared: &Shared, tag: &str) {
        if let Some(user) = self.users_by_tag.remove(tag) {
            warn!(user_id = %user.id, "RabbitMQ deleted a user's queue; subscribing anew");
            self.active.remove(&user);
            shared.deactivate(&user);
            shared.return_changes(vec![user]);
        }
    }

    /// Ends all consumers at once, so that nothing more is received: the answer
    /// to `channel.close` comes behind all deliveries. The queues, auto-delete, go.
    pub(super) async fn stop_consuming(&mut self) {
        self.flush_acks().await;
        let channel = self.consumers.channel.clone();
        if let Err(error) = self.rpc(&self.consumers, channel.close()).await {
            debug!(error = %self.loss_or(error), "RabbitMQ consumers not stopped");
        }
    }

    /// Waits until everything received has been handed off and acknowledged, after
    /// the consumers were cancelled or the connection was lost or closed.
    pub(super) async fn handed_off(consumers: &TaskTracker) {
        consumers.close();
        if timeout(DRAIN_TIMEOUT, consumers.wait()).await.is_err() {
            debug!("RabbitMQ consumers did not end in time");
        }
    }

    /// Acknowledges what was handed off and is not acknowledged yet.
    pub(super) async fn flush_acks(&self) {
        // Only a dead connection makes it wait.
        let flush = self.acks.flush(&self.consumers.channel);
        if timeout(DRAIN_TIMEOUT, flush).await.is_err() {
            debug!("RabbitMQ acknowledgements not sent in time");
        }
    }

    /// The consumers that have not handed off all they received.
    pub(super) fn handing_off(&self) -> TaskTracker {
        self.handing_off.clone()
    }

    /// Says goodbye to the broker; bounded, because it may not be listening.
    pub(super) async fn close(self) {
        let goodbye = async move {
            let Self {
                connection,
                admins,
                consumers,
                ..
            } = self;
            // Their `Drop` would each spawn a closing handshake.
            let _ = consumers.channel.close().await;
            for admin in admins {
                let _ = admin.channel.close().await;
            }
            connection.close().await
        };
        // In a task of its own: dropping an RPC's future is what must not happen.
        match timeout(DRAIN_TIMEOUT, tokio::spawn(goodbye)).await {
            Ok(Ok(Ok(()))) => {}
            other => debug!(?other, "RabbitMQ connection not closed cleanly"),
        }
    }

    /// Runs one RPC, or one pipelined sequence that ends in an RPC.
    async fn rpc<T: Send + 'static>(
        &self,
        on: &OpenChannel,
        call: impl Future<Output = Result<T, amqprs::error::Error>> + Send + 'static,
    ) -> Result<T, LinkError> {
        let answered = tokio::select! {
            answered = timeout(RPC_TIMEOUT, tokio::spawn(call)) => answered,
            () = self.lost.cancelled() => return Err(self.loss()),
        };
        match answered {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(error))) => Err(match on.close_reason.get() {
                Some(close) => LinkError::Closed(close.clone()),
                None => error.into(),
            }),
            Ok(Err(panic)) => Err(LinkError::Amqp(panic.to_string())),
            Err(_) => Err(LinkError::Timeout(RPC_TIMEOUT)),
        }
    }

    /// Why the link is lost, if it is; else `error`.
    fn loss_or(&self, error: LinkError) -> LinkError {
        match self.lost.is_cancelled() {
            true => self.loss(),
            false => error,
        }
    }

    fn loss(&self) -> LinkError {
        let reasons = [&self.close_reason, &self.consumers.close_reason];
        let reason = reasons.iter().find_map(|reason| reason.get());
        reason.map_or_else(
            || LinkError::Amqp("the connection broke".to_owned()),
            |close| LinkError::Closed(close.clone()),
        )
    }
}

fn queue_name(instance: &str, epoch: u64, user: &User, serial: u64) -> String {
    let mut hash = Sha256::new();
    hash.update(user.id.as_str());
    if let Some(tenant) = &user.tenant {
        // Ids hold no control characters, so the separator is unambiguous.
        hash.update([0]);
        hash.update(tenant.as_str());
    }
    let hash = hash.finalize();
    let hash = hash[..8]
        .iter()
        .fold(0_u64, |hash, byte| hash << 8 | u64::from(*byte));
    format!("chat3-gateway.{instance}.{epoch}.{hash:016x}.{serial}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::{TenantId, UserId};

    #[test]
    fn queue_names_tell_users_apart_and_hide_their_ids() {
        let user = |id: &str, tenant: Option<&str>| User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        };
        let name = |user: &User| queue_name("host-1", 2, user, 3);
        let carl = name(&user("carl", None));
        assert!(carl.starts_with("chat3-gateway.host-1.2."));
        assert!(!carl.contains("carl"));
        assert_ne!(carl, name(&user("carl", Some("tnt_1"))));
        assert_ne!(carl, name(&user("bob", None)));
        assert!(queue_name(&"h".repeat(73), u64::MAX, &user("c", None), u64::MAX).len() < 255);
    }
}
