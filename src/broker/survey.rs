//! Compares what is published with what is bound: which generation of Chat3 publishes the
//! updates, which of them the templates of `RABBITMQ_BINDING_KEYS` match, and which
//! templates would match the others.
//!
//! Pure. An update is represented by its routing key and the user in its body: see
//! [`Generation::of`].

// More of it than serving takes is for the command `doctor`.
#![cfg_attr(not(feature = "cli"), allow(dead_code))]

mod generation;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

pub(crate) use self::generation::Generation;
use crate::{
    config::BindingKeys,
    user::{User, UserId},
};

/// The most shapes of unknown keys that are counted separately.
const MAX_SHAPES: usize = 20;

/// Counts updates by what the templates make of them.
pub(crate) struct Survey<'c> {
    configured: &'c BindingKeys,
    default: BindingKeys,
    templates: Vec<Template>,
    users: HashSet<User>,
    updates: usize,
    missed: usize,
    missed_by_default: usize,
    missed_without_tenant: usize,
    generations: BTreeMap<Generation, Heard>,
    foreign: usize,
    unreadable: usize,
    unknown: BTreeMap<String, usize>,
}

/// One of the configured templates, and how many updates it matches.
pub(crate) struct Template {
    pub(crate) text: String,
    pub(crate) keys: BindingKeys,
    pub(crate) gets: usize,
}

/// The updates of one generation.
struct Heard {
    updates: usize,
    missed: usize,
    /// Its templates, and whether each matches all of its updates.
    fitting: Vec<(&'static str, BindingKeys, bool)>,
}

impl<'c> Survey<'c> {
    /// A survey of what `configured` matches.
    pub(crate) fn of(configured: &'c BindingKeys) -> Self {
        let templates = configured.templates().map(|text| Template {
            text: text.to_owned(),
            keys: one(text),
            gets: 0,
        });
        Self {
            configured,
            default: BindingKeys::default(),
            templates: templates.collect(),
            users: HashSet::new(),
            updates: 0,
            missed: 0,
            missed_by_default: 0,
            missed_without_tenant: 0,
            generations: BTreeMap::new(),
            foreign: 0,
            unreadable: 0,
            unknown: BTreeMap::new(),
        }
    }

    /// Counts an update. `user` is the user in its body; `None` if there is none.
    pub(crate) fn note(&mut self, routing_key: &str, user: Option<&User>) {
        let Some(user) = user else {
            self.unreadable += 1;
            return;
        };
        if !is_in(routing_key, &user.id) {
            self.foreign += 1;
            return;
        }
        if !self.users.contains(user) {
            self.users.insert(user.clone());
        }
        self.updates += 1;
        let is_for = |keys: &BindingKeys| keys.are_for(user, routing_key);
        let is_missed = !is_for(self.configured);
        self.missed += usize::from(is_missed);
        self.missed_by_default += usize::from(!is_for(&self.default));
        if !is_missed && !self.configured.need_tenant() {
            let tokens = User {
                id: user.id.clone(),
                tenant: None,
            };
            let is_missed = !self.configured.are_for(&tokens, routing_key);
            self.missed_without_tenant += usize::from(is_missed);
        }
        for template in &mut self.templates {
            template.gets += usize::from(is_for(&template.keys));
        }
        let Some(generation) = Generation::of(routing_key, user) else {
            let shape = shape(routing_key);
            if self.unknown.len() < MAX_SHAPES || self.unknown.contains_key(&shape) {
                *self.unknown.entry(shape).or_default() += 1;
            }
            return;
        };
        let heard = self.generations.entry(generation).or_insert_with(|| {
            let templates = generation.templates().iter();
            Heard {
                updates: 0,
                missed: 0,
                fitting: templates.map(|text| (*text, one(text), true)).collect(),
            }
        });
        heard.updates += 1;
        heard.missed += usize::from(is_missed);
        for (_, keys, fits) in &mut heard.fitting {
            *fits &= is_for(keys);
        }
    }

    /// How many updates are for the user in their routing key.
    pub(crate) fn updates(&self) -> usize {
        self.updates
    }

    /// How many users they are for.
    pub(crate) fn users(&self) -> usize {
        self.users.len()
    }

    /// How many of the updates no template matches.
    pub(crate) fn missed(&self) -> usize {
        self.missed
    }

    /// How many of the others no template matches for a user whose token has no tenant.
    pub(crate) fn missed_without_tenant(&self) -> usize {
        self.missed_without_tenant
    }

    /// How many updates name another user in the body than in the routing key.
    pub(crate) fn foreign(&self) -> usize {
        self.foreign
    }

    /// How many messages have a body that is not an update.
    pub(crate) fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// The generations with their counts.
    pub(crate) fn generations(&self) -> impl Iterator<Item = (Generation, usize)> {
        let each = self.generations.iter();
        each.map(|(generation, heard)| (*generation, heard.updates))
    }

    /// The shapes of keys of no known generation, with their counts.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = (&str, usize)> {
        let each = self.unknown.iter();
        each.map(|(shape, count)| (shape.as_str(), *count))
    }

    /// The configured templates with their counts.
    pub(crate) fn templates(&self) -> &[Template] {
        &self.templates
    }

    /// Whether the setting has its default value.
    pub(crate) fn is_default(&self) -> bool {
        *self.configured == self.default
    }

    /// The setting with which users get what they miss; `None` if they miss nothing, or
    /// only updates of no known generation.
    pub(crate) fn advice(&self) -> Option<String> {
        let missed = self.generations.values().filter(|heard| heard.missed > 0);
        // Templates that work stay; those for missed updates are added.
        let mut templates: Vec<&str> = match self.missed < self.updates {
            true => self.configured.templates().collect(),
            false => Vec::new(),
        };
        let before = templates.len();
        add_fitting(&mut templates, missed);
        if templates.len() == before {
            return None;
        }
        let mut advice = format!("set RABBITMQ_BINDING_KEYS='{}'", templates.join(","));
        if self.missed_by_default == 0 {
            advice.push_str(", or leave it unset");
        }
        write!(
            advice,
            " (and the topic permissions, if there are any: docs/SECURITY.md)"
        )
        .expect("writing to a String does not fail");
        Some(advice)
    }

    /// The templates that match all updates so far, if fewer than the configured ones do.
    pub(crate) fn enough(&self) -> Option<String> {
        if self.missed > 0 || !self.unknown.is_empty() || self.updates == 0 {
            return None;
        }
        let mut templates = Vec::new();
        add_fitting(&mut templates, self.generations.values());
        (templates.len() < self.templates.len()).then(|| templates.join(","))
    }
}

/// Adds, for each generation, a template that matches all of its updates.
fn add_fitting<'t, 'h>(templates: &mut Vec<&'t str>, generations: impl Iterator<Item = &'h Heard>) {
    for heard in generations {
        let fits = heard.fitting.iter().filter(|(_, _, fits)| *fits);
        let fitting: Vec<&str> = fits.map(|(text, ..)| *text).collect();
        if fitting.iter().any(|text| templates.contains(text)) {
            continue;
        }
        templates.extend(fitting.first());
    }
}

/// A list of one template.
pub(crate) fn one(template: &str) -> BindingKeys {
    let parsed = template.parse();
    parsed.expect("a template of a list is a list")
}

/// Whether `id` is one or several whole words of the key.
fn is_in(routing_key: &str, id: &UserId) -> bool {
    let key = format!(".{routing_key}.");
    key.contains(&format!(".{id}."))
}

/// A key with the words that are known to be Chat3's; others, which may be ids, are elided.
fn shape(key: &str) -> String {
    const WORDS: [&str; 8] = [
        "user", "update", "dialog", "pack", "message", "typing", "bot", "contact",
    ];
    let known = |word: &str| WORDS.contains(&word) || word.ends_with("update");
    // A key has at most 255 bytes; its first words are enough.
    let words = key.split('.').take(8);
    let words: Vec<_> = words
        .map(|word| if known(word) { word } else { "…" })
        .collect();
    words.join(".")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{broker::embedded::topic_matches, user::TenantId};

    fn user(id: &str, tenant: &str) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: TenantId::parse(tenant).ok(),
        }
    }

    /// A key as that generation publishes it.
    fn key(generation: Generation, User { id, tenant }: &User) -> String {
        let tenant = tenant.as_ref().map_or("t", TenantId::as_str);
        match generation {
            Generation::User => format!("user.{id}.messageupdate"),
            Generation::UserType => format!("user.user.{id}.messageupdate"),
            Generation::Category => format!("update.dialog.user.{id}.messageupdate"),
            Generation::Pack => format!("update.pack.user.{id}.packstatsupdate"),
            Generation::Segment => format!("update.user.bot.{id}.user"),
            Generation::Tenant => format!("update.dialog.{tenant}.user.{id}.message"),
        }
    }

    fn survey<'c>(configured: &'c BindingKeys, heard: &[(String, &User)]) -> Survey<'c> {
        let mut survey = Survey::of(configured);
        for (key, user) in heard {
            survey.note(key, Some(user));
        }
        survey
    }

    fn advised(advice: &str) -> BindingKeys {
        let (_, rest) = advice.split_once("RABBITMQ_BINDING_KEYS='").unwrap();
        rest.split_once('\'').unwrap().0.parse().unwrap()
    }

    /// Every template that is right for a generation.
    fn all_templates() -> Vec<&'static str> {
        let mut templates: Vec<_> = Generation::ALL
            .iter()
            .flat_map(|each| each.templates())
            .copied()
            .collect();
        templates.dedup();
        templates
    }

    fn some_users() -> [User; 6] {
        [
            user("usr_a", "tnt_1"),
            user("first.last", "tnt_1"),
            user("usr_a", "tnt.1"),
            user("user.usr_a", "tnt.1"),
            user("user", "user"),
            user("update.dialog", "user"),
        ]
    }

    #[test]
    fn each_template_gets_its_own_generation_and_no_other_and_the_advice_mends_it() {
        for user in &some_users() {
            for generation in Generation::ALL {
                let heard = [(key(generation, user), user)];
                for template in all_templates() {
                    let keys: BindingKeys = template.parse().unwrap();
                    let survey = survey(&keys, &heard);
                    let is_dotted = user.tenant.as_ref().unwrap().as_str().contains('.');
                    let expected = generation.templates().contains(&template)
                        && !(is_dotted && template == "update.*.*.*.{userId}.*");
                    let what = format!("{template} for {:?}", heard[0]);
                    assert_eq!(
                        survey.generations().collect::<Vec<_>>(),
                        [(generation, 1)],
                        "{what}"
                    );
                    assert_eq!(survey.missed() == 0, expected, "{what}");
                    assert_eq!(survey.templates()[0].gets == 1, expected, "{what}");
                    let Some(advice) = survey.advice() else {
                        assert!(expected, "{what}");
                        continue;
                    };
                    assert!(!expected, "{what}: {advice}");
                    let followed = advised(&advice);
                    assert_eq!(
                        self::survey(&followed, &heard).missed(),
                        0,
                        "{what}: {advice}"
                    );
                }
            }
        }
    }

    #[test]
    fn without_a_setting_nothing_is_missed_and_one_template_is_named_that_is_enough() {
        let default = BindingKeys::default();
        for user in &some_users() {
            for generation in Generation::ALL {
                let heard = [(key(generation, user), user)];
                let survey = survey(&default, &heard);
                assert_eq!((survey.missed(), survey.advice()), (0, None), "{heard:?}");
                let enough: BindingKeys = survey.enough().unwrap().parse().unwrap();
                assert_eq!(enough.templates().count(), 1);
                assert_eq!(self::survey(&enough, &heard).missed(), 0, "{heard:?}");
            }
        }
    }

    #[test]
    fn of_several_generations_what_works_stays_and_the_rest_is_added() {
        let keys: BindingKeys = "user.{userId}.*,user.x.{userId}.*".parse().unwrap();
        let carl = user("carl", "t");
        let heard = Generation::ALL.map(|generation| (key(generation, &carl), &carl));
        let survey = survey(&keys, &heard);
        assert_eq!(
            (survey.updates(), survey.missed(), survey.users()),
            (6, 5, 1)
        );
        let gets = |template: &Template| template.gets;
        assert_eq!(
            survey.templates().iter().map(gets).collect::<Vec<_>>(),
            [1, 0]
        );
        let advice = survey.advice().unwrap();
        let expected = "user.{userId}.*,user.x.{userId}.*,user.*.{userId}.*,update.*.*.{userId}.*,update.*.{tenantId|*}.*.{userId}.*";
        assert_eq!(advised(&advice).to_string(), expected);
        assert!(advice.contains("leave it unset"), "{advice}");
    }

    #[test]
    fn updates_for_nobody_or_of_no_known_generation_are_distinguished() {
        let keys: BindingKeys = "{tenantId}.user.{userId}.*".parse().unwrap();
        let carl = user("carl", "t");
        let mut survey = Survey::of(&keys);
        survey.note("user.carl.x", None);
        survey.note("user.bob.x", Some(&carl));
        survey.note("user.mycarl.x", Some(&carl));
        survey.note("t.user.carl.messageupdate", Some(&carl));
        survey.note("secret.carl.update", Some(&carl));
        assert_eq!((survey.unreadable(), survey.foreign()), (1, 2));
        assert_eq!((survey.updates(), survey.missed()), (2, 1));
        let unknown: Vec<_> = survey.unknown().collect();
        assert_eq!(unknown, [("….user.….messageupdate", 1), ("….….update", 1)]);
        assert_eq!((survey.advice(), survey.enough()), (None, None));
    }

    proptest! {
        #[test]
        fn a_template_gets_what_the_broker_would_route(
            id in "[ab]{1,2}(\\.[ab]){0,2}",
            tenant in "[ab](\\.[ab]){0,1}",
            before in "(user|update)(\\.[ab]){0,4}",
        ) {
            let user = user(&id, &tenant);
            let key = format!("{before}.{id}.x");
            for template in all_templates() {
                let keys: BindingKeys = template.parse().unwrap();
                let survey = survey(&keys, &[(key.clone(), &user)]);
                let routed = keys.render(&user).any(|binding| topic_matches(&binding, &key));
                prop_assert_eq!(survey.missed() == 0, routed, "{} {}", template, key);
            }
        }
    }
}
