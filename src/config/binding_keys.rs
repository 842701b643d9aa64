//! `RABBITMQ_BINDING_KEYS`: the templates that say which routing keys are a user's.

use std::{fmt, str::FromStr};

use crate::user::{MAX_TENANT_ID_BYTES, MAX_USER_ID_BYTES, User};

const USER_ID: &str = "{userId}";
const TENANT_ID: &str = "{tenantId}";

/// AMQP 0-9-1: a routing key is a short string.
const MAX_KEY_BYTES: usize = 255;

/// One or more binding key templates, e.g. `user.{userId}.*`.
///
/// Invariant: every template contains `{userId}` as a word of its own, so no
/// rendered key can match the keys of all users; and every rendered key fits AMQP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingKeys(Vec<String>);

/// Why a text is no list of templates.
#[allow(missing_docs)] // Each variant's text says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBindingKeys {
    #[error("names no template")]
    Empty,
    #[error("has the template {0:?} without {{userId}} as a word between dots")]
    NoUserId(String),
    #[error("has the template {0:?} with an unknown placeholder; known: {{userId}}, {{tenantId}}")]
    UnknownPlaceholder(String),
    #[error("has the template {0:?} that can become longer than {MAX_KEY_BYTES} bytes")]
    TooLong(String),
}

impl BindingKeys {
    /// Whether the keys need a tenant, so that users without one cannot be served.
    pub fn need_tenant(&self) -> bool {
        self.0.iter().any(|template| template.contains(TENANT_ID))
    }

    /// The templates as they were given.
    pub fn templates(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The keys to bind for `user`. A user without a tenant gets none of the
    /// templates that need one.
    pub fn render(&self, user: &User) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(move |template| {
            let key = template.replace(USER_ID, user.id.as_str());
            match &user.tenant {
                Some(tenant) => Some(key.replace(TENANT_ID, tenant.as_str())),
                None if template.contains(TENANT_ID) => None,
                None => Some(key),
            }
        })
    }
}

impl FromStr for BindingKeys {
    type Err = InvalidBindingKeys;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let templates: Vec<String> = text
            .split(',')
            .map(str::trim)
            .filter(|template| !template.is_empty())
            .map(str::to_owned)
            .collect();
        if templates.is_empty() {
            return Err(InvalidBindingKeys::Empty);
        }
        for template in &templates {
            if !template.split('.').any(|word| word == USER_ID) {
                return Err(InvalidBindingKeys::NoUserId(template.clone()));
            }
            let literal = template.replace(USER_ID, "").replace(TENANT_ID, "");
            if literal.contains(['{', '}']) {
                return Err(InvalidBindingKeys::UnknownPlaceholder(template.clone()));
            }
            let longest = literal.len()
                + template.matches(USER_ID).count() * MAX_USER_ID_BYTES
                + template.matches(TENANT_ID).count() * MAX_TENANT_ID_BYTES;
            if longest > MAX_KEY_BYTES {
                return Err(InvalidBindingKeys::TooLong(template.clone()));
            }
        }
        Ok(Self(templates))
    }
}

impl fmt::Display for BindingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::{TenantId, UserId};

    fn user(id: &str, tenant: Option<&str>) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        }
    }

    fn rendered(templates: &str, user: &User) -> Vec<String> {
        let keys: BindingKeys = templates.parse().unwrap();
        keys.render(user).collect()
    }

    #[test]
    fn placeholders_are_filled_in() {
        let carl = user("carl", Some("tnt_1"));
        assert_eq!(rendered("user.{userId}.*", &carl), ["user.carl.*"]);
        assert_eq!(
            rendered(
                " update.*.*.{userId}.* , {tenantId}.update.{userId}.#",
                &carl
            ),
            ["update.*.*.carl.*", "tnt_1.update.carl.#"]
        );
        assert!(rendered("{tenantId}.{userId}", &user("carl", None)).is_empty());
    }

    #[test]
    fn templates_that_would_match_other_users_are_refused() {
        for text in [
            "",
            " , ",
            "user.*.*",
            "#",
            "user.{userId}x.*",
            "user.{userid}.*",
            "user.{userId}.{slug}",
            "{userId}.{userId}",
        ] {
            assert!(text.parse::<BindingKeys>().is_err(), "{text:?}");
        }
    }
}
