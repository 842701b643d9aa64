//! `RABBITMQ_BINDING_KEYS`: the templates that say which routing keys are a user's.

use std::{fmt, str::FromStr};

use crate::user::{MAX_TENANT_ID_BYTES, MAX_USER_ID_BYTES, User};

const USER_ID: &str = "{userId}";
const TENANT_ID: &str = "{tenantId}";

/// AMQP 0-9-1: a routing key is a short string.
const MAX_KEY_BYTES: usize = 255;

/// One or more binding key templates, e.g. `user.{userId}.*`.
///
/// Invariant: every template contains `{userId}` once, as a word of its own, so no
/// rendered key can match the keys of all users; and every rendered key fits AMQP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingKeys(Vec<Template>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Template {
    text: String,
    needs_tenant: bool,
    /// What stands before `{userId}`, for matching.
    before: Vec<Pattern>,
    /// What stands behind it, the last word first.
    behind: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Word(String),
    AnyWord,
    /// `#`: any number of words, also none.
    AnyWords,
}

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
        self.0.iter().any(|template| template.needs_tenant)
    }

    /// The templates as they were given.
    pub fn templates(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|template| template.text.as_str())
    }

    /// The keys to bind for `user`. A user without a tenant gets none of the
    /// templates that need one.
    pub fn render(&self, user: &User) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(move |template| {
            let key = template.text.replace(USER_ID, user.id.as_str());
            match &user.tenant {
                Some(tenant) => Some(key.replace(TENANT_ID, tenant.as_str())),
                None if template.needs_tenant => None,
                None => Some(key),
            }
        })
    }

    /// The keys that match those of all users at once, whom [`Self::cover`] names.
    pub fn render_for_all(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|template| {
            let any = |word| match is_placeholder(word) {
                true => "*",
                false => word,
            };
            let words: Vec<_> = template.text.split('.').map(any).collect();
            words.join(".")
        })
    }

    /// Whether [`Self::render_for_all`] matches all that is `user`'s: a `*` stands for
    /// one word, and an id with dots is several.
    pub fn cover(&self, user: &User) -> bool {
        let tenant = user.tenant.as_ref().filter(|_| self.need_tenant());
        let has_dot = tenant.is_some_and(|tenant| tenant.as_str().contains('.'));
        !has_dot && !user.id.as_str().contains('.')
    }

    /// Calls `found` with each user id for which `routing_key` may match one of the
    /// rendered keys, possibly more than once. [`Self::are_for`] tells whether it does.
    pub fn for_each_id<'k>(&self, routing_key: &'k str, mut found: impl FnMut(&'k str)) {
        for template in &self.0 {
            template.for_each_id(routing_key, &mut found);
        }
    }

    /// Whether `routing_key` matches a key of `user`'s.
    pub fn are_for(&self, user: &User, routing_key: &str) -> bool {
        let is_for = |template: &Template| match (&user.tenant, template.needs_tenant) {
            (None, true) => false,
            (Some(tenant), true) => {
                let key = template.text.replace(TENANT_ID, tenant.as_str());
                Template::new(&key).has_id(user.id.as_str(), routing_key)
            }
            (_, false) => template.has_id(user.id.as_str(), routing_key),
        };
        self.0.iter().any(is_for)
    }
}

impl Template {
    fn new(text: &str) -> Self {
        let mut words = text.split('.');
        let before = patterns(words.by_ref().take_while(|word| *word != USER_ID));
        let mut behind = patterns(words);
        behind.reverse();
        Self {
            text: text.to_owned(),
            needs_tenant: text.contains(TENANT_ID),
            before,
            behind,
        }
    }

    fn has_id(&self, id: &str, routing_key: &str) -> bool {
        let mut has_id = false;
        self.for_each_id(routing_key, &mut |found| has_id |= found == id);
        has_id
    }

    /// The id is what remains when the other words are taken off at both ends.
    fn for_each_id<'k>(&self, routing_key: &'k str, found: &mut dyn FnMut(&'k str)) {
        strip(&self.before, first_word, Some(routing_key), &mut |rest| {
            strip(&self.behind, last_word, rest, &mut |id| {
                if let Some(id) = id {
                    found(id);
                }
            });
        });
    }
}

fn patterns<'t>(words: impl Iterator<Item = &'t str>) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for word in words {
        match word {
            // Two in a row are no more than one.
            "#" if patterns.last() == Some(&Pattern::AnyWords) => {}
            "#" => patterns.push(Pattern::AnyWords),
            "*" => patterns.push(Pattern::AnyWord),
            // A tenant's id may be several words, too.
            word if word.contains(TENANT_ID) => {
                patterns.extend([Pattern::AnyWord, Pattern::AnyWords]);
            }
            word => patterns.push(Pattern::Word(word.to_owned())),
        }
    }
    patterns
}

/// Takes a word off one end of a key: that word, and the key's rest, if there is one.
type TakeWord = for<'k> fn(&'k str) -> (&'k str, Option<&'k str>);

fn first_word(key: &str) -> (&str, Option<&str>) {
    key.split_once('.')
        .map_or((key, None), |(word, rest)| (word, Some(rest)))
}

fn last_word(key: &str) -> (&str, Option<&str>) {
    key.rsplit_once('.')
        .map_or((key, None), |(rest, word)| (word, Some(rest)))
}

/// Calls `found` with what remains of `key` behind `patterns`, for each way in which
/// they match.
fn strip<'k>(
    patterns: &[Pattern],
    take_word: TakeWord,
    key: Option<&'k str>,
    found: &mut dyn FnMut(Option<&'k str>),
) {
    let Some((pattern, others)) = patterns.split_first() else {
        return found(key);
    };
    let taken = key.map(take_word);
    match (pattern, taken) {
        (Pattern::AnyWords, taken) => {
            strip(others, take_word, key, found);
            if let Some((_, rest)) = taken {
                strip(patterns, take_word, rest, found);
            }
        }
        (Pattern::AnyWord, Some((_, rest))) => strip(others, take_word, rest, found),
        (Pattern::Word(expected), Some((word, rest))) if expected == word => {
            strip(others, take_word, rest, found);
        }
        (Pattern::Word(_) | Pattern::AnyWord, _) => {}
    }
}

fn is_placeholder(word: &str) -> bool {
    word.contains(USER_ID) || word.contains(TENANT_ID)
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
        Ok(Self(
            templates.iter().map(|text| Template::new(text)).collect(),
        ))
    }
}

impl fmt::Display for BindingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self
            .0
            .iter()
            .map(|template| template.text.as_str())
            .collect();
        f.write_str(&texts.join(","))
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

    fn ids<'k>(templates: &str, routing_key: &'k str) -> Vec<&'k str> {
        let keys: BindingKeys = templates.parse().unwrap();
        let mut ids = Vec::new();
        keys.for_each_id(routing_key, |id| ids.push(id));
        ids
    }

    #[test]
    fn a_routing_key_tells_whose_it_may_be() {
        for (templates, key, expected) in [
            ("user.{userId}.*", "user.carl.messageupdate", &["carl"][..]),
            (
                "user.{userId}.*",
                "user.a.b@example.com.x",
                &["a.b@example.com"],
            ),
            ("user.{userId}.*", "user.carl", &[]),
            ("user.{userId}.*", "users.carl.x", &[]),
            (
                "update.*.*.{userId}.*",
                "update.dialog.user.carl.x",
                &["carl"],
            ),
            ("update.*.*.{userId}.*", "update.dialog.user.x", &[]),
            ("{userId}", "carl", &["carl"]),
            ("user.{userId}.#", "user.a.b", &["a.b", "a"]),
            ("#.{userId}.end", "a.b.end", &["a.b", "b"]),
            ("{tenantId}.{userId}.*", "tnt_1.carl.x", &["carl"]),
            ("{tenantId}.{userId}.*", "tnt.1.carl.x", &["1.carl", "carl"]),
            (
                "user.{userId}.*,user.{userId}.x",
                "user.carl.x",
                &["carl", "carl"],
            ),
        ] {
            assert_eq!(ids(templates, key), expected, "{templates} {key}");
        }
    }

    #[test]
    fn a_routing_key_is_for_whom_the_broker_would_route_it_to() {
        let keys: BindingKeys = "t.{tenantId}.{userId}.*,user.{userId}.#".parse().unwrap();
        let (one, other) = (user("carl", Some("tnt.1")), user("carl", Some("tnt_2")));
        let nobodys = user("carl", None);
        let receivers = |key| [&one, &other, &nobodys].map(|user| keys.are_for(user, key));
        assert_eq!(receivers("t.tnt.1.carl.x"), [true, false, false]);
        assert_eq!(receivers("t.tnt_2.carl.x"), [false, true, false]);
        assert_eq!(receivers("user.carl"), [true, true, true]);
        assert_eq!(receivers("user.carl.x.y"), [true, true, true]);
        assert_eq!(receivers("user.carla.x"), [false, false, false]);
    }

    #[test]
    fn one_key_for_all_covers_ids_of_one_word() {
        let keys: BindingKeys = "user.{userId}.#,t-{tenantId}.{userId}".parse().unwrap();
        let for_all: Vec<_> = keys.render_for_all().collect();
        assert_eq!(for_all, ["user.*.#", "*.*"]);
        assert!(keys.cover(&user("carl", Some("tnt_1"))));
        assert!(!keys.cover(&user("carl", Some("tnt.1"))));
        assert!(!keys.cover(&user("a.b", None)));
    }
}
