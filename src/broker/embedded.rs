//! The exchange of the development mode, which takes RabbitMQ's place inside the process.
//!
//! It follows the rules of a topic exchange, so that binding keys mean the same as
//! in production, and calls the same handlers. Nothing outlives it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::{
    broker::{Activation, BroadcastHandler, Broker, Delivery, Handler, Subscribed},
    config::BindingKeys,
    user::User,
};

/// Updates that a user's queue holds before publishing waits.
const QUEUE_LENGTH: usize = 1_000;

/// A topic exchange with one queue per subscribed user.
pub struct EmbeddedExchange {
    binding_keys: BindingKeys,
    queues: Mutex<HashMap<User, Queue>>,
    consumers: TaskTracker,
}

struct Queue {
    binding_keys: Vec<String>,
    sender: mpsc::Sender<Published>,
    /// Dropped with the queue: until then, [`Subscribed`] answers.
    _active: Activation,
}

/// One update on its way to a user.
#[derive(Clone)]
struct Published {
    body: Bytes,
    routing_key: Arc<str>,
    at: SystemTime,
}

impl EmbeddedExchange {
    /// An exchange to which users are bound by `binding_keys`.
    pub fn new(binding_keys: BindingKeys) -> Self {
        Self {
            binding_keys,
            queues: Mutex::default(),
            consumers: TaskTracker::new(),
        }
    }

    /// Routes `body` as RabbitMQ would; returns the number of queues that it reached.
    pub async fn publish(&self, routing_key: &str, body: Bytes) -> usize {
        let matching: Vec<mpsc::Sender<Published>> = self
            .queues()
            .values()
            .filter(|queue| {
                let keys = &mut queue.binding_keys.iter();
                // RabbitMQ delivers once, however many bindings of a queue match.
                keys.any(|key| topic_matches(key, routing_key))
            })
            .map(|queue| queue.sender.clone())
            .collect();
        let published = Published {
            body,
            routing_key: routing_key.into(),
            at: SystemTime::now(),
        };
        for queue in &matching {
            // An error means that the user has just been unsubscribed.
            let _ = queue.send(published.clone()).await;
        }
        matching.len()
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<User, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Broker for EmbeddedExchange {
    fn needs_tenant(&self) -> bool {
        self.binding_keys.need_tenant()
    }

    fn has_room_for(&self, user: &User) -> bool {
        self.binding_keys.fit(user)
    }

    fn subscribe_user(&self, user: &User, handler: Handler) -> Subscribed {
        let (active, subscribed) = Subscribed::new();
        let (sender, mut receiver) = mpsc::channel::<Published>(QUEUE_LENGTH);
        self.consumers.spawn(async move {
            while let Some(published) = receiver.recv().await {
                let sockets = handler.handle(&Delivery {
                    body: &published.body,
                    routing_key: &published.routing_key,
                    published_at: Some(published.at),
                    position: None,
                });
                if sockets > 0 {
                    handler.flush();
                }
            }
        });
        active.activate();
        let queue = Queue {
            binding_keys: self.binding_keys.render(user).collect(),
            sender,
            _active: active,
        };
        self.queues().insert(user.clone(), queue);
        info!(user_id = %user.id, "User subscribed to updates");
        subscribed
    }

    fn unsubscribe_user(&self, user: &User) {
        if self.queues().remove(user).is_some() {
            info!(user_id = %user.id, "User unsubscribed from updates");
        }
    }

    fn subscribers_count(&self) -> usize {
        self.queues().len()
    }

    fn is_user_subscribed(&self, user: &User) -> bool {
        self.queues().contains_key(user)
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn is_embedded(&self) -> bool {
        true
    }

    async fn broadcast(&self, _: Bytes) -> bool {
        false
    }

    fn on_broadcast(&self, _: BroadcastHandler) {}

    async fn stop_consuming(&self) {
        self.queues().clear();
        self.consumers.close();
        self.consumers.wait().await;
    }

    async fn close(&self) {}
}

/// AMQP 0-9-1 topic matching: words are separated by dots, `*` is one word, `#`
/// is any number of words.
pub(crate) fn topic_matches(binding_key: &str, routing_key: &str) -> bool {
    fn matches(pattern: &[&str], words: &[&str]) -> bool {
        match (pattern.split_first(), words.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => (0..=words.len()).any(|n| matches(rest, &words[n..])),
            (Some((&"*", pattern)), Some((_, words))) => matches(pattern, words),
            (Some((a, pattern)), Some((b, words))) => a == b && matches(pattern, words),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
    let pattern: Vec<&str> = binding_key.split('.').collect();
    let words: Vec<&str> = routing_key.split('.').collect();
    matches(&pattern, &words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_match_as_in_rabbitmq() {
        for (binding, key, expected) in [
            ("user.carl.*", "user.carl.messageupdate", true),
            ("user.carl.*", "user.carl.message.update", false),
            ("user.carl.*", "user.carl", false),
            ("user.carl.*", "user.carla.messageupdate", false),
            ("update.*.*.carl.*", "update.dialog.user.carl.message", true),
            ("update.*.*.carl.*", "update.dialog.carl.message", false),
            ("#", "anything.at.all", true),
            ("user.#", "user", true),
            ("user.#.end", "user.a.b.end", true),
            ("user.#.end", "user.a.b", false),
            ("#.carl.#", "a.carl", true),
            ("*", "", true),
            ("", "", true),
        ] {
            assert_eq!(topic_matches(binding, key), expected, "{binding} {key}");
        }
    }
}
