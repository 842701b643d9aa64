//! `RABBITMQ_BINDING_KEYS`: the templates of the keys that a user's queue is bound with.
//!
//! Renders the keys of a user and, where users share a queue, finds the users of a routing
//! key by the same rules that RabbitMQ applies to topics. Binds nothing itself.

use std::{borrow::Cow, fmt, str::FromStr};

use crate::user::{TenantId, User};

const USER_ID: &str = "{userId}";
const TENANT_ID: &str = "{tenantId}";
/// The tenant, or any tenant where the user has none.
const TENANT_ID_OR_ANY: &str = "{tenantId|*}";

/// AMQP 0-9-1: a routing key is a short string.
const MAX_KEY_BYTES: usize = 255;

/// The keys of every generation of Chat3.
const DEFAULT: &str =
    "user.{userId}.*,user.*.{userId}.*,update.*.*.{userId}.*,update.*.{tenantId|*}.*.{userId}.*";

/// One or more binding key templates, e.g. `user.{userId}.*`.
///
/// Invariant: every template contains `{userId}` once, as a whole word, so no rendered key
/// can match the routing keys of all users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingKeys(Vec<Template>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Template {
    text: String,
    words: Vec<Word>,
    /// The words before `{userId}`, for matching.
    before: Vec<Pattern>,
    /// The words after `{userId}`, the last word first.
    behind: Vec<Pattern>,
}

/// The text between two dots.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    UserId,
    /// A word with `{tenantId}` in it.
    Tenant(String),
    TenantOrAny,
    Star,
    Hash,
    Plain(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Word(String),
    AnyWord,
    /// `#`: any number of words, including none.
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
    #[error("has the template {0:?} with {{userId}} more than once")]
    SecondUserId(String),
    #[error(
        "has the template {0:?} with an unknown placeholder; known: {{userId}}, {{tenantId}} and, \
         as a word between dots, {{tenantId|*}}"
    )]
    UnknownPlaceholder(String),
    #[error("has the template {0:?}, whose keys are longer than {MAX_KEY_BYTES} bytes")]
    TooLong(String),
}

impl BindingKeys {
    /// Whether a template needs a tenant: users without one then miss updates.
    pub fn need_tenant(&self) -> bool {
        let is_tenant = |word: &Word| matches!(word, Word::Tenant(_));
        self.0
            .iter()
            .any(|template| template.words.iter().any(is_tenant))
    }

    /// The templates as they were given.
    pub fn templates(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|template| template.text.as_str())
    }

    /// The keys to bind for `user`. For a user without a tenant, templates that need one are
    /// left out.
    pub fn render(&self, user: &User) -> impl Iterator<Item = String> {
        self.render_each(user).map(|(_, key)| key)
    }

    /// Like [`Self::render`], with the position of each key's template in the list.
    pub fn render_each(&self, user: &User) -> impl Iterator<Item = (usize, String)> {
        let render = |(place, template): (usize, &Template)| Some((place, template.render(user)?));
        self.0.iter().enumerate().filter_map(render)
    }

    /// Whether every key of `user` is short enough for AMQP.
    pub fn fit(&self, user: &User) -> bool {
        self.render(user).all(|key| key.len() <= MAX_KEY_BYTES)
    }

    /// One key for each template, which matches the keys of all users that
    /// [`Self::cover`] accepts.
    pub fn render_for_all(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|template| {
            let words: Vec<_> = template.words.iter().map(Word::for_all).collect();
            words.join(".")
        })
    }

    /// Whether the keys of [`Self::render_for_all`] match every routing key of `user`. They do
    /// not if an id contains dots: it is several words, and a `*` stands for one.
    pub fn cover(&self, user: &User) -> bool {
        let of_tenant = |word: &Word| matches!(word, Word::Tenant(_) | Word::TenantOrAny);
        let mut words = self.0.iter().flat_map(|template| &template.words);
        let tenant = user.tenant.as_ref().filter(|_| words.any(of_tenant));
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

    /// Whether `routing_key` matches a key of `user`.
    pub fn are_for(&self, user: &User, routing_key: &str) -> bool {
        let is_for = |template: &Template| matches(&template.words, user, Some(routing_key));
        self.0.iter().any(is_for)
    }
}

impl Default for BindingKeys {
    /// The keys of every generation of Chat3.
    fn default() -> Self {
        DEFAULT.parse().expect("the default templates are valid")
    }
}

impl Word {
    fn parse(word: &str) -> Self {
        match word {
            USER_ID => Self::UserId,
            TENANT_ID_OR_ANY => Self::TenantOrAny,
            "*" => Self::Star,
            "#" => Self::Hash,
            word if word.contains(TENANT_ID) => Self::Tenant(word.to_owned()),
            word => Self::Plain(word.to_owned()),
        }
    }

    /// `None` if the word needs a tenant and `user` has none. Ids are inserted once: an id
    /// that looks like a placeholder stays as it is.
    fn render<'t>(&'t self, user: &'t User) -> Option<Cow<'t, str>> {
        let tenant = user.tenant.as_ref().map(TenantId::as_str);
        Some(match self {
            Self::UserId => user.id.as_str().into(),
            Self::Tenant(word) if word == TENANT_ID => tenant?.into(),
            Self::Tenant(word) => word.replace(TENANT_ID, tenant?).into(),
            Self::TenantOrAny => tenant.unwrap_or("*").into(),
            Self::Star => "*".into(),
            Self::Hash => "#".into(),
            Self::Plain(word) => word.into(),
        })
    }

    fn for_all(&self) -> &str {
        match self {
            Self::Plain(word) => word,
            Self::Hash => "#",
            Self::Star | Self::UserId | Self::Tenant(_) | Self::TenantOrAny => "*",
        }
    }
}

/// Whether the key that `words` render to for `user` matches `key`, the rest of a routing
/// key; `None` when no words remain.
fn matches(words: &[Word], user: &User, key: Option<&str>) -> bool {
    let Some((word, words_behind)) = words.split_first() else {
        return key.is_none();
    };
    let any_word =
        matches!(word, Word::Star) || (matches!(word, Word::TenantOrAny) && user.tenant.is_none());
    if *word == Word::Hash {
        return matches(words_behind, user, key)
            || key.is_some_and(|key| matches(words, user, first_word(key).1));
    }
    if any_word {
        return key.is_some_and(|key| matches(words_behind, user, first_word(key).1));
    }
    let (Some(literal), Some(key)) = (word.render(user), key) else {
        return false;
    };
    // The literal may be several words, and must end where a word of the key ends.
    match key.strip_prefix(&*literal) {
        Some("") => matches(words_behind, user, None),
        Some(rest) => rest
            .strip_prefix('.')
            .is_some_and(|rest| matches(words_behind, user, Some(rest))),
        None => false,
    }
}

impl Template {
    fn new(text: &str) -> Self {
        let words: Vec<_> = text.split('.').map(Word::parse).collect();
        let mut sides = words.split(|word| *word == Word::UserId);
        let (before, behind) = (sides.next(), sides.next());
        Self {
            before: patterns(before.into_iter().flatten()),
            behind: patterns(behind.into_iter().flatten())
                .into_iter()
                .rev()
                .collect(),
            text: text.to_owned(),
            words,
        }
    }

    fn render(&self, user: &User) -> Option<String> {
        let words = self.words.iter().map(|word| word.render(user));
        Some(words.collect::<Option<Vec<_>>>()?.join("."))
    }

    /// Takes the words before and after `{userId}` off both ends of the key: the id remains.
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

fn patterns<'t>(words: impl Iterator<Item = &'t Word>) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for word in words {
        match word {
            // `#.#` matches the same as `#`.
            Word::Hash if patterns.last() == Some(&Pattern::AnyWords) => {}
            Word::Hash => patterns.push(Pattern::AnyWords),
            // A tenant's id may be several words, too.
            Word::Tenant(_) | Word::TenantOrAny => {
                patterns.extend([Pattern::AnyWord, Pattern::AnyWords]);
            }
            Word::Star | Word::UserId => patterns.push(Pattern::AnyWord),
            Word::Plain(word) => patterns.push(Pattern::Word(word.clone())),
        }
    }
    patterns
}

/// Takes a word off one end of a key. Returns the word, and the rest of the key if there is
/// any.
type TakeWord = for<'k> fn(&'k str) -> (&'k str, Option<&'k str>);

fn first_word(key: &str) -> (&str, Option<&str>) {
    key.split_once('.')
        .map_or((key, None), |(word, rest)| (word, Some(rest)))
}

fn last_word(key: &str) -> (&str, Option<&str>) {
    key.rsplit_once('.')
        .map_or((key, None), |(rest, word)| (word, Some(rest)))
}

/// Calls `found` with what remains of `key` after `patterns`, once for each way in which
/// the patterns match.
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

impl FromStr for BindingKeys {
    type Err = InvalidBindingKeys;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let templates = text.split(',').map(str::trim);
        let templates: Vec<&str> = templates.filter(|template| !template.is_empty()).collect();
        if templates.is_empty() {
            return Err(InvalidBindingKeys::Empty);
        }
        for &template in &templates {
            let words = template.split('.');
            let users = words.clone().filter(|word| *word == USER_ID).count();
            if users == 0 {
                return Err(InvalidBindingKeys::NoUserId(template.to_owned()));
            }
            if template.matches(USER_ID).count() > 1 {
                return Err(InvalidBindingKeys::SecondUserId(template.to_owned()));
            }
            let known = |word: &&str| ![USER_ID, TENANT_ID_OR_ANY].contains(word);
            let mut others = words.filter(known).map(|word| word.replace(TENANT_ID, ""));
            if others.any(|word| word.contains(['{', '}'])) {
                return Err(InvalidBindingKeys::UnknownPlaceholder(template.to_owned()));
            }
            // A key with the shortest ids. Users whose ids make a key too long are refused
            // when they connect.
            let shortest = [USER_ID, TENANT_ID_OR_ANY, TENANT_ID]
                .iter()
                .fold(template.to_owned(), |key, id| key.replace(id, "x"));
            if shortest.len() > MAX_KEY_BYTES {
                return Err(InvalidBindingKeys::TooLong(template.to_owned()));
            }
        }
        Ok(Self(templates.into_iter().map(Template::new).collect()))
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
mod tests;
