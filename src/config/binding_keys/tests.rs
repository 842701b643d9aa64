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
    // The longest ids that are allowed fit into the default templates.
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

/// The documented rules in their plainest form, to compare with.
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

    /// Topic matching as the documentation of RabbitMQ describes it.
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

/// Few, so that ids and keys coincide; among them the placeholders of templates.
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

/// A user whose ids satisfy the rules for ids.
fn somebody() -> impl Strategy<Value = User> {
    let id = words(1..4).prop_filter_map("no id", |id| UserId::parse(&id).ok());
    let tenant = words(1..3).prop_filter_map("no id", |id| TenantId::parse(&id).ok());
    (id, proptest::option::of(tenant)).prop_map(|(id, tenant)| User { id, tenant })
}

fn templates() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(&TEMPLATES[..], 1..=TEMPLATES.len())
}

/// A routing key as a publisher makes it for one of the users, or any other key.
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
        // per-user: a user's queue is bound as the templates say, and RabbitMQ routes.
        let theirs = |user: &User| {
            let bound = model::keys(&templates, user);
            bound.iter().any(|binding| model::routes(binding, &key))
        };
        for user in &users {
            let rendered: Vec<_> = keys.render(user).collect();
            prop_assert_eq!(&rendered, &model::keys(&templates, user));
            prop_assert!(keys.fit(user));
        }
        // shared: an update in the common queue is handed to the same users.
        let mut ids = Vec::new();
        keys.for_each_id(&key, |id| ids.push(id));
        for user in &users {
            let found = ids.contains(&user.id.as_str()) && keys.are_for(user, &key);
            prop_assert_eq!(found, theirs(user), "{:?} {}", user, key);
        }
        // firehose: users who are covered need no further bindings.
        let for_all = || keys.render_for_all();
        for user in users.iter().filter(|user| keys.cover(user)) {
            if theirs(user) {
                let comes = for_all().any(|binding| model::routes(&binding, &key));
                prop_assert!(comes, "{:?} {}", user, key);
            }
        }
    }
}
