//! Tries the binding keys at RabbitMQ: compares queues that are bound as the gateway would
//! bind them, for users who were seen, with a queue that receives everything permitted.
//!
//! The latter is bound last. So an update that arrives there was routed when the other
//! queues were bound, and must have arrived in those whose keys match.

use std::collections::HashSet;

use tokio::time::Instant;

use crate::{
    broker::rabbitmq::{Heard, LinkError, Listening, SideConnection},
    broker::survey::Template,
    config::{RabbitMqConfig, Topology},
    user::User,
};

/// The numbers of the queues of a [`Trial`] begin here.
pub(super) const FIRST_NUMBER: usize = 2;
const COMPARED: usize = FIRST_NUMBER;
const FIRST_TEMPLATE: usize = FIRST_NUMBER + 1;

/// The most updates that are compared: fewer than a queue keeps, so that none is lost.
const ENOUGH: usize = 500;
const QUEUE_LENGTH: i64 = 1_000;

/// The most templates that are tried, each with one queue.
const MAX_TEMPLATES: usize = 16;

/// Queues bound for some users.
pub(super) struct Trial {
    users: HashSet<User>,
    compared: usize,
    templates: Vec<Tried>,
}

/// How many updates arrived through one template, and how many should have.
#[derive(Clone, Copy, Default)]
pub(super) struct Tried {
    pub(super) came: usize,
    pub(super) expected: usize,
    /// RabbitMQ does not permit these bindings.
    pub(super) refused: bool,
}

impl Trial {
    /// Binds one queue per template, for all of the users, and one with `everything`.
    pub(super) async fn begin(
        side: &mut SideConnection,
        listening: &mut Listening,
        config: &RabbitMqConfig,
        templates: &[Template],
        users: HashSet<User>,
        everything: &[String],
    ) -> Result<Self, LinkError> {
        let mut tried = Vec::new();
        for (index, template) in templates.iter().take(MAX_TEMPLATES).enumerate() {
            let queue = format!("{}.template{index}", side.prefix);
            side.declare(&queue, QUEUE_LENGTH).await?;
            let keys = keys(config, template, &users);
            let refused = match side.bind_all(&queue, &config.exchange, &keys).await {
                Ok(()) => false,
                Err(LinkError::Closed(_)) => true,
                Err(error) => return Err(error),
            };
            listening.to(&queue, FIRST_TEMPLATE + index).await?;
            tried.push(Tried {
                refused,
                ..Tried::default()
            });
        }
        let queue = format!("{}.compare", side.prefix);
        side.declare(&queue, QUEUE_LENGTH).await?;
        side.bind_all(&queue, &config.exchange, everything).await?;
        listening.to(&queue, COMPARED).await?;
        Ok(Self {
            users,
            compared: 0,
            templates: tried,
        })
    }

    /// Counts an update that arrived in one of the queues.
    pub(super) fn note(&mut self, heard: &Heard, templates: &[Template]) {
        let Some(user) = heard.user.as_ref().filter(|user| self.users.contains(user)) else {
            return;
        };
        if let Some(index) = heard.queue.checked_sub(FIRST_TEMPLATE) {
            self.templates[index].came += 1;
        } else if self.compared < ENOUGH {
            self.compared += 1;
            for (tried, template) in self.templates.iter_mut().zip(templates) {
                tried.expected += usize::from(template.keys.are_for(user, &heard.routing_key));
            }
        }
    }

    /// Whether all updates have arrived that should have.
    pub(super) fn is_settled(&self) -> bool {
        let is_complete = |tried: &Tried| tried.refused || tried.came >= tried.expected;
        self.templates.iter().all(is_complete)
    }

    /// Waits for updates that are still in flight.
    pub(super) async fn settle(
        &mut self,
        listening: &mut Listening,
        until: Instant,
        templates: &[Template],
    ) -> Result<(), LinkError> {
        while !self.is_settled() {
            match listening.next(until).await? {
                Some(heard) if heard.queue >= FIRST_TEMPLATE => self.note(&heard, templates),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// The result for each template.
    pub(super) fn templates(&self) -> &[Tried] {
        &self.templates
    }
}

/// The keys that the gateway would bind by one template for these users.
fn keys(config: &RabbitMqConfig, template: &Template, users: &HashSet<User>) -> Vec<String> {
    let keys = &template.keys;
    let for_all = config.topology == Topology::Firehose;
    let own = users.iter().filter(|user| !(for_all && keys.cover(user)));
    let own = own.flat_map(|user| keys.render(user));
    match for_all {
        true => keys.render_for_all().chain(own).collect(),
        false => own.collect(),
    }
}
