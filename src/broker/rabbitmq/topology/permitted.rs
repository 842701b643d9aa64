//! Which binding keys RabbitMQ permits: topic permissions may permit the keys of some
//! templates and refuse those of others.
//!
//! Bookkeeping for one connection. A user is bound with the keys that are permitted, and
//! is refused only if none is. Invariant: the refusal of a template to one user does not
//! take it from others, unless nobody is permitted to use it.

use std::collections::HashSet;

use tracing::{debug, warn};

use super::super::{link_error::ServerClose, shared::Shared};
use crate::{config::BindingKeys, observability::metrics::Metrics, user::User};

/// After this many users were refused a template, and nobody was permitted it, it is not
/// tried any more: each refusal costs a channel.
const REFUSED_TO_ALL: usize = 3;

pub(super) struct Permitted {
    keys: BindingKeys,
    templates: Vec<Template>,
    metrics: Metrics,
}

#[derive(Default)]
struct Template {
    /// A user is bound with it.
    is_permitted: bool,
    refused_to: HashSet<User>,
    /// The key for all users at once was refused.
    refused_for_all: bool,
}

impl Permitted {
    pub(super) fn new(shared: &Shared) -> Self {
        Self::of(shared.config.binding_keys.clone(), shared.metrics.clone())
    }

    fn of(keys: BindingKeys, metrics: Metrics) -> Self {
        Self {
            templates: keys.templates().map(|_| Template::default()).collect(),
            keys,
            metrics,
        }
    }

    /// The keys to bind for `user`, as far as they are known to be permitted.
    pub(super) fn keys(&self, user: &User) -> impl Iterator<Item = String> {
        self.open(user).map(|(_, key)| key)
    }

    /// The keys to bind for everybody.
    pub(super) fn keys_for_all(&self) -> impl Iterator<Item = String> {
        let each = self.keys.render_for_all().zip(&self.templates);
        each.filter(|(_, template)| !template.refused_for_all)
            .map(|(key, _)| key)
    }

    /// Notes that `user` is bound with the keys.
    pub(super) fn accept(&mut self, user: &User) {
        if self.templates.iter().all(|template| template.is_permitted) {
            return;
        }
        let accepted: Vec<_> = self.open(user).map(|(place, _)| place).collect();
        for place in accepted {
            self.templates[place].is_permitted = true;
        }
    }

    /// Notes that one of the keys was refused to `user`; returns whether others are left.
    pub(super) fn refuse(&mut self, user: &User, close: &ServerClose) -> bool {
        let open: Vec<_> = self.open(user).collect();
        let Some((place, _)) = open.iter().find(|(_, key)| close.refuses_key(key)) else {
            return false;
        };
        if open.len() > 1 {
            let template = &mut self.templates[*place];
            template.refused_to.insert(user.clone());
            let is_first = template.refused_to.len() == 1;
            self.note(*place, close, is_first);
            return true;
        }
        // The next time, all are tried again.
        for template in &mut self.templates {
            template.refused_to.remove(user);
        }
        false
    }

    /// Notes that one of the keys for everybody was refused; returns whether others are left.
    pub(super) fn refuse_for_all(&mut self, close: &ServerClose) -> bool {
        let mut keys = self.keys.render_for_all();
        let Some(place) = keys.position(|key| close.refuses_key(&key)) else {
            return false;
        };
        self.templates[place].refused_for_all = true;
        if self.keys_for_all().next().is_some() {
            self.note(place, close, true);
            return true;
        }
        for template in &mut self.templates {
            template.refused_for_all = false;
        }
        false
    }

    fn note(&self, place: usize, close: &ServerClose, is_first: bool) {
        self.metrics.binding_keys_refused.inc();
        let template = self.keys.templates().nth(place).unwrap_or_default();
        if is_first {
            warn!(
                template, reason = %close,
                "RabbitMQ refused a binding key: users get no updates by this template; permit it \
                 (docs/SECURITY.md), or name in RABBITMQ_BINDING_KEYS what your Chat3 needs"
            );
        } else {
            debug!(template, reason = %close, "RabbitMQ refused a binding key");
        }
    }

    fn open(&self, user: &User) -> impl Iterator<Item = (usize, String)> {
        let is_open = |(place, _): &(usize, String)| self.templates[*place].is_open(user);
        self.keys.render_each(user).filter(is_open)
    }
}

impl Template {
    fn is_open(&self, user: &User) -> bool {
        let is_tried = self.is_permitted || self.refused_to.len() < REFUSED_TO_ALL;
        is_tried && !self.refused_to.contains(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::UserId;

    fn user(id: &str) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: None,
        }
    }

    fn refusal(key: &str) -> ServerClose {
        let text = format!("ACCESS_REFUSED - access to topic '{key}' in exchange 'x' refused");
        ServerClose::new(403, &text, (50, 20))
    }

    fn permitted() -> Permitted {
        let keys = "user.{userId}.*,update.{userId}".parse().unwrap();
        Permitted::of(keys, Metrics::new())
    }

    fn keys(permitted: &Permitted, id: &str) -> Vec<String> {
        permitted.keys(&user(id)).collect()
    }

    #[test]
    fn a_user_gets_the_keys_that_are_permitted() {
        let mut permitted = permitted();
        assert!(permitted.refuse(&user("a"), &refusal("update.a")));
        assert_eq!(keys(&permitted, "a"), ["user.a.*"]);
        assert_eq!(keys(&permitted, "b"), ["user.b.*", "update.b"]);
        // It is not a key of this user.
        assert!(!permitted.refuse(&user("b"), &refusal("update.a")));
        // When none is left, all are tried again.
        assert!(!permitted.refuse(&user("a"), &refusal("user.a.*")));
        assert_eq!(keys(&permitted, "a"), ["user.a.*", "update.a"]);
    }

    #[test]
    fn what_is_refused_to_several_and_permitted_to_nobody_is_not_asked_for_again() {
        let mut permitted = permitted();
        for id in ["a", "b", "c"] {
            assert!(permitted.refuse(&user(id), &refusal(&format!("update.{id}"))));
            permitted.accept(&user(id));
        }
        assert_eq!(keys(&permitted, "d"), ["user.d.*"]);
    }

    #[test]
    fn users_with_odd_ids_take_nothing_from_others() {
        let mut permitted = permitted();
        permitted.accept(&user("a"));
        for id in ["b", "c", "d", "e"] {
            assert!(permitted.refuse(&user(id), &refusal(&format!("update.{id}"))));
        }
        assert_eq!(keys(&permitted, "f"), ["user.f.*", "update.f"]);
    }

    #[test]
    fn of_the_keys_for_all_those_that_are_permitted_stay() {
        let mut permitted = permitted();
        assert!(permitted.refuse_for_all(&refusal("user.*.*")));
        assert_eq!(permitted.keys_for_all().collect::<Vec<_>>(), ["update.*"]);
        assert!(!permitted.refuse_for_all(&refusal("update.*")));
        assert_eq!(permitted.keys_for_all().count(), 2);
    }
}
