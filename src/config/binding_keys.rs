//! `RABBITMQ_BINDING_KEYS`: the templates that say which routing keys are a user's.

use std::{borrow::Cow, fmt, str::FromStr};

use crate::user::{TenantId, User};

const USER_ID: &str = "{userId}";
const TENANT_ID: &str = "{tenantId}";
/// The tenant, or any one where the user has none.
const TENANT_ID_OR_ANY: &str = "{tenantId|*}";

/// AMQP 0-9-1: a routing key is a short string.
const MAX_KEY_BYTES: usize = 255;

/// The keys of every generation of Chat3.
const DEFAULT: &str =
    "user.{userId}.*,user.*.{userId}.*,update.*.*.{userId}.*,update.*.{tenantId|*}.*.{userId}.*";

/// One or more binding key templates, e.g. `user.{userId}.*`.
///
/// Invariant: every template contains `{userId}` once, as a word of its own, so no
/// rendered key can match the keys of all users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingKeys(Vec<Template>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Template {
    text: String,
    words: Vec<Word>,
    /// What stands before `{userId}`, for matching.
    before: Vec<Pattern>,
    /// What stands behind it, the last word first.
    behind: Vec<Pattern>,
}

/// What stands between two dots.
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
    /// Whether the keys need a tenant, so that users without one cannot be served.
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

    /// The keys to bind for `user`. A user without a tenant gets none of the
    /// templates that need one.
    pub fn render(&self, user: &User) -> impl Iterator<Item = String> {
        self.render_each(user).map(|(_, key)| key)
    }

    /// As [`Self::render`], with the place of each key's template in the list.
    pub fn render_each(&self, user: &User) -> impl Iterator<Item = (usize, String)> {
        let render = |(place, template): (usize, &Template)| Some((place, template.render(user)?));
        self.0.iter().enumerate().filter_map(render)
    }

    /// Whether every key of `user`'s is short enough for AMQP.
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

    /// Whether [`Self::render_for_all`] matches all that is `user`'s: a `*` stands for
    /// one word, and an id with dots is several.
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

    /// Whether `routing_key` matches a key of `user`'s.
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

    /// `None` if it needs a tenant that `user` has not. What is put in is not looked
    /// at again: an id is never a placeholder.
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

/// Whether the key that `words` become for `user` matches what is left of a routing key.
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
    // It may be several words; a word of the key ends where it ends.
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

fn patterns<'t>(words: impl Iterator<Item = &'t Word>) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for word in words {
        match word {
            // Two in a row are no more than one.
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
            // The key of the shortest ids. Users whose ids make it too long are refused
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
mod tests {
    use proptest::prelude::*;

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
            "{userId}.x{userId}",
            "a{tenantId|*}.{userId}",
        ] {
            assert!(text.parse::<BindingKeys>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn by_default_every_generation_reaches_its_user() {
        let keys = BindingKeys::default();
        assert!(!keys.need_tenant());
        let rendered = |user| keys.render(&user).collect::<Vec<_>>();
        let before = ["user.carl.*", "user.*.carl.*", "update.*.*.carl.*"];
        let expected = |last| [&before[..], &[last]].concat();
        assert_eq!(
            rendered(user("carl", Some("tnt_1"))),
            expected("update.*.tnt_1.*.carl.*")
        );
        assert_eq!(
            rendered(user("carl", None)),
            expected("update.*.*.*.carl.*")
        );
        for (tenant, key, expected) in [
            (Some("t.1"), "update.dialog.t.1.user.a.b.message", true),
            (Some("t.2"), "update.dialog.t.1.user.a.b.message", false),
            (None, "update.dialog.t1.user.a.b.message", true),
            (Some("t1"), "update.dialog.user.a.b.message", true),
            (None, "user.bot.a.b.typing", true),
        ] {
            assert_eq!(keys.are_for(&user("a.b", tenant), key), expected, "{key}");
        }
    }

    #[test]
    fn keys_that_are_too_long_are_a_single_users_matter() {
        let text = format!("{}.{{userId}}.{{tenantId}}", "x".repeat(200));
        let keys: BindingKeys = text.parse().unwrap();
        assert!(keys.fit(&user("carl", Some("t1"))));
        assert!(!keys.fit(&user("carl", Some(&"t".repeat(50)))));
        assert!(keys.fit(&user(&"u".repeat(50), None)));
        let text = format!("{}.{{userId}}", "x".repeat(254));
        assert_eq!(
            text.parse::<BindingKeys>(),
            Err(InvalidBindingKeys::TooLong(text))
        );
        // The longest ids there are fit into the default ones.
        let longest = user(&"u".repeat(128), Some(&"t".repeat(64)));
        assert!(BindingKeys::default().fit(&longest));
    }

    fn ids<'k>(templates: &str, routing_key: &'k str) -> Vec<&'k str> {
        let keys: BindingKeys = templates.parse().unwrap();
        let mut ids = Vec::new();
        keys.for_each_id(routing_key, |id| ids.push(id));
        ids
    }

    #[test]
    fn a_routing_key_tells_which_users_it_may_mean() {
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

    /// A second opinion on the documented rules, by plain means.
    mod model {
        use super::*;

        pub fn keys(templates: &[&str], user: &User) -> Vec<String> {
            let tenant = user.tenant.as_ref().map(TenantId::as_str);
            let key = |template: &&str| {
                let words = template.split('.').map(|word| match word {
                    "{userId}" => Some(user.id.as_str().to_owned()),
                    "{tenantId|*}" => Some(tenant.unwrap_or("*").to_owned()),
                    word => match word.split_once("{tenantId}") {
                        Some((before, behind)) => Some(format!("{before}{}{behind}", tenant?)),
                        None => Some(word.to_owned()),
                    },
                });
                Some(words.collect::<Option<Vec<_>>>()?.join("."))
            };
            templates.iter().filter_map(key).collect()
        }

        /// What RabbitMQ's documentation says of topics.
        pub fn matches(binding: &[&str], key: &[&str]) -> bool {
            match binding {
                [] => key.is_empty(),
                ["#", rest @ ..] => (0..=key.len()).any(|n| matches(rest, &key[n..])),
                ["*", rest @ ..] => !key.is_empty() && matches(rest, &key[1..]),
                [word, rest @ ..] => key.first() == Some(word) && matches(rest, &key[1..]),
            }
        }

        pub fn routes(binding: &str, key: &str) -> bool {
            let (binding, key): (Vec<_>, Vec<_>) =
                (binding.split('.').collect(), key.split('.').collect());
            matches(&binding, &key)
        }
    }

    const TEMPLATES: [&str; 10] = [
        "user.{userId}.*",
        "user.*.{userId}.*",
        "update.*.*.{userId}.*",
        "update.*.{tenantId|*}.*.{userId}.*",
        "update.*.{tenantId}.*.{userId}.*",
        "{tenantId}.{userId}",
        "a-{tenantId}.{userId}.#",
        "#.{userId}.#",
        "{userId}",
        "user.#.{userId}.a",
    ];

    /// Few, so that they meet; among them what a template is made of.
    const WORDS: [&str; 11] = [
        "a",
        "b",
        "a-b",
        "user",
        "update",
        "",
        "{tenantId}",
        "{userId}",
        "{tenantId|*}",
        "x{tenantId}",
        "*",
    ];

    fn word() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(&WORDS[..])
    }

    fn words(count: std::ops::Range<usize>) -> impl Strategy<Value = String> {
        proptest::collection::vec(word(), count).prop_map(|words| words.join("."))
    }

    /// A user that a token may name: the rules for ids apply.
    fn somebody() -> impl Strategy<Value = User> {
        let id = words(1..4).prop_filter_map("no id", |id| UserId::parse(&id).ok());
        let tenant = words(1..3).prop_filter_map("no id", |id| TenantId::parse(&id).ok());
        (id, proptest::option::of(tenant)).prop_map(|(id, tenant)| User { id, tenant })
    }

    fn templates() -> impl Strategy<Value = Vec<&'static str>> {
        proptest::sample::subsequence(&TEMPLATES[..], 1..=TEMPLATES.len())
    }

    /// Keys as a publisher makes them for one of the users, and any others.
    fn published(users: &[User], place: usize, noise: &str) -> String {
        let user = &users[place % users.len()];
        let tenant = user.tenant.as_ref().map_or("b", TenantId::as_str);
        match place % 5 {
            0 => format!("user.{}.a", user.id),
            1 => format!("user.user.{}.a", user.id),
            2 => format!("update.a.user.{}.b", user.id),
            3 => format!("update.a.{tenant}.user.{}.b", user.id),
            _ => noise.to_owned(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn nobody_binds_or_loses_what_is_not_exactly_theirs_in_any_topology(
            templates in templates(),
            users in proptest::collection::vec(somebody(), 1..5),
            place in 0_usize..20,
            noise in words(1..7),
        ) {
            let keys: BindingKeys = templates.join(",").parse().unwrap();
            let key = published(&users, place, &noise);
            // per-user: what is bound is what the templates say, and RabbitMQ does the rest.
            let theirs = |user: &User| {
                let bound = model::keys(&templates, user);
                bound.iter().any(|binding| model::routes(binding, &key))
            };
            for user in &users {
                let rendered: Vec<_> = keys.render(user).collect();
                prop_assert_eq!(&rendered, &model::keys(&templates, user));
                prop_assert!(keys.fit(user));
            }
            // shared: what comes to the queue is handed to the same users.
            let mut ids = Vec::new();
            keys.for_each_id(&key, |id| ids.push(id));
            for user in &users {
                let found = ids.contains(&user.id.as_str()) && keys.are_for(user, &key);
                prop_assert_eq!(found, theirs(user), "{:?} {}", user, key);
            }
            // firehose: who is covered needs no binding of their own.
            let for_all = || keys.render_for_all();
            for user in users.iter().filter(|user| keys.cover(user)) {
                if theirs(user) {
                    let comes = for_all().any(|binding| model::routes(&binding, &key));
                    prop_assert!(comes, "{:?} {}", user, key);
                }
            }
        }
    }
}
