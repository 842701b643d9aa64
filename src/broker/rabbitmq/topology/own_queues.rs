//! A queue for each user: the topology `per-user`.
//!
//! A queue is exclusive and auto-delete, and named after the instance, the epoch of the
//! connection, a hash of the user and a serial of the declaration. The serial keeps the
//! queue of a returning user apart from the previous one, which may still be going.
//!
//! The changes of a round are spread over the admin channels, as one batch on each.

use std::{collections::HashMap, sync::Arc, time::Duration};

use amqprs::channel::{
    BasicCancelArguments, Channel, QueueBindArguments, QueueDeclareArguments, QueueDeleteArguments,
};
use async_trait::async_trait;
use futures_util::future::join_all;
use sha2::{Digest, Sha256};
use tokio::{sync::Mutex, time::Instant};
use tracing::{debug, info};

use super::{
    super::{
        channels::{ADMIN_CHANNELS, Answer, Channels},
        consumer::Turn,
        desired::Subscription,
        link_error::{LinkError, ServerClose},
        shared::Shared,
    },
    Refusal, Topology,
    permitted::Permitted,
};
use crate::{broker::Delivery, observability::metrics::GaugeGuard, user::User};

/// Users whose queues are declared, bound and consumed on one channel between two
/// barriers: enough to hide the round trip, few enough to make a failure cheap to repair.
const BATCH: usize = 16;

/// How often deleting leftover queues is tried again.
const LEFTOVERS_RETRY: Duration = Duration::from_secs(5);

pub(super) struct OwnQueues {
    shared: Arc<Shared>,
    epoch: u64,
    permitted: Permitted,
    active: HashMap<User, Active>,
    users_by_queue: HashMap<String, User>,
    /// Queues that may have been declared for subscriptions that were then refused.
    leftovers: Vec<String>,
    /// When to try to delete them.
    clean_up_after: Instant,
    declarations: u64,
}

/// A consumed queue.
struct Active {
    serial: u64,
    queue: String,
    _gauge: GaugeGuard,
}

/// A queue to make for a user.
struct Queue {
    user: User,
    subscription: Subscription,
    name: String,
}

/// One step of making a queue.
enum Step {
    Declare(QueueDeclareArguments),
    Bind(QueueBindArguments),
}

impl OwnQueues {
    pub(super) fn new(shared: Arc<Shared>, epoch: u64) -> Self {
        Self {
            permitted: Permitted::new(&shared),
            shared,
            epoch,
            active: HashMap::new(),
            users_by_queue: HashMap::new(),
            leftovers: Vec::new(),
            clean_up_after: Instant::now(),
            declarations: 0,
        }
    }

    fn name_queues(&mut self, users: Vec<(User, Subscription)>) -> Vec<Queue> {
        let name_queue = |(user, subscription)| {
            self.declarations += 1;
            let name = queue_name(&self.shared.instance, self.epoch, &user, self.declarations);
            Queue {
                user,
                subscription,
                name,
            }
        };
        users.into_iter().map(name_queue).collect()
    }

    /// Notes that the users' queues are consumed.
    fn activate(&mut self, queues: Vec<Queue>) {
        for Queue {
            user,
            subscription,
            name,
        } in queues
        {
            info!(user_id = %user.id, "User subscribed to updates");
            subscription.activation.activate();
            self.permitted.accept(&user);
            self.users_by_queue.insert(name.clone(), user.clone());
            let active = Active {
                serial: subscription.serial,
                queue: name,
                _gauge: GaugeGuard::new(&self.shared.metrics.subscriptions),
            };
            self.active.insert(user, active);
        }
    }

    /// Subscribes users in batches, one on each admin channel.
    async fn subscribe_batches(
        &mut self,
        channels: &Channels,
        mut users: Vec<(User, Subscription)>,
    ) -> Result<Vec<Refusal>, LinkError> {
        let mut batches = Vec::new();
        while !users.is_empty() {
            let rest = users.split_off(users.len().min(BATCH));
            batches.push(self.name_queues(std::mem::replace(&mut users, rest)));
        }
        let answers = {
            let this = &*self;
            // The consumers' channel may have one RPC in flight, like every channel.
            let consuming = Mutex::new(());
            let consuming = &consuming;
            let each = batches.iter().enumerate();
            join_all(each.map(|(admin, queues)| async move {
                let declared = this.declare(channels, admin, queues).await?;
                if declared.is_ok() {
                    let _turn = consuming.lock().await;
                    Self::consume(channels, queues).await?;
                }
                Ok::<_, LinkError>(declared)
            }))
            .await
        };
        let mut refusals = Vec::new();
        for (admin, (batch, answer)) in batches.into_iter().zip(answers).enumerate() {
            match answer? {
                Ok(()) => self.activate(batch),
                Err(close) => {
                    // The refused declaration of a single queue leaves nothing behind.
                    if batch.len() > 1 || !close.is_of_declare() {
                        let names = batch.iter().map(|queue| queue.name.clone());
                        self.leftovers.extend(names);
                        self.clean_up(channels, admin).await?;
                    }
                    let users = batch
                        .into_iter()
                        .map(|queue| (queue.user, queue.subscription));
                    let users = users.collect();
                    refusals.push(Refusal { users, close });
                }
            }
        }
        Ok(refusals)
    }

    /// Declares and binds queues.
    async fn declare(
        &self,
        channels: &Channels,
        admin: usize,
        queues: &[Queue],
    ) -> Result<Answer<()>, LinkError> {
        let config = &self.shared.config;
        let mut steps = Vec::new();
        for Queue { name, .. } in queues {
            let declare = QueueDeclareArguments::new(name)
                .exclusive(true)
                .auto_delete(true)
                .no_wait(true)
                .finish();
            steps.push(Step::Declare(declare));
        }
        for Queue { user, name, .. } in queues {
            for key in self.permitted.keys(user) {
                debug!(user_id = %user.id, queue = name, binding_key = ?key, "RabbitMQ binding");
                let bind = QueueBindArguments::new(name, &config.exchange, &key)
                    .no_wait(true)
                    .finish();
                steps.push(Step::Bind(bind));
            }
        }
        let step = |channel: Channel, step| async move {
            match step {
                Step::Declare(declare) => channel.queue_declare(declare).await.map(drop),
                Step::Bind(bind) => channel.queue_bind(bind).await,
            }
        };
        channels.pipeline(admin, steps, step).await
    }

    /// Starts the queues' consumers.
    async fn consume(channels: &Channels, queues: &[Queue]) -> Result<(), LinkError> {
        let with_handler = |queue: &Queue| {
            let handler = queue.subscription.handler.clone();
            let deliver = move |delivery: &Delivery<'_>, turn: &mut Turn| {
                turn.hand_off(&handler, delivery);
            };
            (queue.name.clone(), deliver)
        };
        let queues = queues.iter().map(with_handler).collect();
        channels.consume(&channels.consumers[0], queues).await
    }

    /// Deletes queues in batches, one on each admin channel.
    async fn delete_batches(&self, channels: &Channels, names: &[String]) -> Result<(), LinkError> {
        let batches = || names.chunks(BATCH);
        let deletes = batches().enumerate();
        let deletes = deletes.map(|(admin, names)| Self::delete(channels, admin, names));
        let answers = join_all(deletes).await;
        for (names, answer) in batches().zip(answers) {
            // A permission was withdrawn. Cancelling a consumer needs none, and its queue
            // goes with it; but it is slower, with one round trip each.
            if answer?.is_err() {
                Self::cancel(channels, names).await?;
            }
        }
        Ok(())
    }

    async fn delete(
        channels: &Channels,
        admin: usize,
        names: &[String],
    ) -> Result<Answer<()>, LinkError> {
        let delete = |name: &String| QueueDeleteArguments::new(name).no_wait(true).finish();
        let deletes = names.iter().map(delete).collect();
        let delete =
            |channel: Channel, delete| async move { channel.queue_delete(delete).await.map(drop) };
        channels.pipeline(admin, deletes, delete).await
    }

    /// Cancels the queues' consumers, if they have not ended yet.
    async fn cancel(channels: &Channels, names: &[String]) -> Result<(), LinkError> {
        let on = &channels.consumers[0].channel;
        for name in names {
            let channel = on.channel.clone();
            let cancel = BasicCancelArguments::new(name);
            let cancel = async move { channel.basic_cancel(cancel).await };
            channels.rpc(on, cancel).await?;
        }
        Ok(())
    }

    /// Deletes the queues that refused batches have left behind, as far as that is
    /// permitted. One at a time: no frame may follow a refusal.
    async fn clean_up(&mut self, channels: &Channels, admin: usize) -> Result<(), LinkError> {
        self.clean_up_after = Instant::now() + LEFTOVERS_RETRY;
        while let Some(name) = self.leftovers.last() {
            let delete = QueueDeleteArguments::new(name);
            let delete = |channel: Channel| async move { channel.queue_delete(delete).await };
            if channels.on_admin(admin, delete).await?.is_err() {
                // The permission was withdrawn: try again later.
                break;
            }
            self.leftovers.pop();
        }
        Ok(())
    }
}

#[async_trait]
impl Topology for OwnQueues {
    async fn prepare(&mut self, _: &Channels) -> Result<(), LinkError> {
        Ok(())
    }

    async fn subscribe(
        &mut self,
        channels: &Channels,
        mut users: Vec<(User, Subscription)>,
    ) -> Result<Vec<Refusal>, LinkError> {
        let mut refusals = Vec::new();
        while !users.is_empty() {
            let rest = users.split_off(users.len().min(self.round()));
            let round = std::mem::replace(&mut users, rest);
            refusals.extend(self.subscribe_batches(channels, round).await?);
        }
        Ok(refusals)
    }

    /// Deletes the users' queues, in batches. Each consumer ends when the server's
    /// `basic.cancel` arrives, after all deliveries. Sending `basic.cancel` without
    /// waiting would make amqprs drop deliveries that are in flight.
    async fn unsubscribe(
        &mut self,
        channels: &Channels,
        users: Vec<User>,
    ) -> Result<(), LinkError> {
        let mut names = Vec::new();
        for user in &users {
            if let Some(active) = self.active.remove(user) {
                self.users_by_queue.remove(&active.queue);
                names.push(active.queue);
            }
        }
        // Users who left, and users whose subscription is replaced: more than a round.
        for names in names.chunks(BATCH * ADMIN_CHANNELS) {
            self.delete_batches(channels, names).await?;
        }
        for user in users {
            info!(user_id = %user.id, "User unsubscribed from updates");
        }
        Ok(())
    }

    async fn tidy(&mut self, channels: &Channels) -> Result<(), LinkError> {
        self.clean_up(channels, 0).await
    }

    fn tidy_at(&self) -> Option<Instant> {
        (!self.leftovers.is_empty()).then_some(self.clean_up_after)
    }

    fn forget(&mut self, queue: &str) -> Vec<User> {
        let user = self.users_by_queue.remove(queue);
        user.inspect(|user| drop(self.active.remove(user)))
            .into_iter()
            .collect()
    }

    fn serial(&self, user: &User) -> Option<u64> {
        self.active.get(user).map(|active| active.serial)
    }

    fn count(&self) -> usize {
        self.active.len()
    }

    fn do_without(&mut self, user: &User, refused: &ServerClose) -> bool {
        self.permitted.refuse(user, refused)
    }

    fn a_binding(&self) -> Option<QueueBindArguments> {
        let (user, active) = self.active.iter().next()?;
        let config = &self.shared.config;
        let key = self.permitted.keys(user).next()?;
        Some(QueueBindArguments::new(
            &active.queue,
            &config.exchange,
            &key,
        ))
    }

    fn round(&self) -> usize {
        BATCH * ADMIN_CHANNELS
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
