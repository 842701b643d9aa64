//! Chat3's generations of routing keys. Pure.

use crate::user::User;

/// How Chat3 has built routing keys over its life, the oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Generation {
    User,
    UserType,
    Category,
    Pack,
    Segment,
    Tenant,
}

impl Generation {
    /// The generation of a key that is published for `user`: the user's id has to stand
    /// where that generation has it. By the key alone this cannot be told, since ids may
    /// hold dots: the six words for `usr_a` may as well be the five words for
    /// `user.usr_a`.
    pub(crate) fn of(routing_key: &str, user: &User) -> Option<Self> {
        let (head, last) = routing_key.rsplit_once('.')?;
        let before = head.strip_suffix(user.id.as_str())?.strip_suffix('.')?;
        let words: Vec<&str> = before.split('.').collect();
        if last.is_empty() || words.contains(&"") {
            return None;
        }
        match words[..] {
            ["user"] => Some(Self::User),
            ["user", _] => Some(Self::UserType),
            ["update", "dialog" | "user", _] => match last {
                "message" | "dialog" | "user" => Some(Self::Segment),
                _ => Some(Self::Category),
            },
            ["update", "pack", _] => Some(Self::Pack),
            ["update", _, _, _] => Some(Self::Tenant),
            // A tenant's id of several words is known by the body alone.
            ["update", _, ref tenant @ .., _] if tenant.len() > 1 => {
                let expected = user.tenant.as_ref()?;
                (tenant.join(".") == expected.as_str()).then_some(Self::Tenant)
            }
            _ => None,
        }
    }

    /// Since when Chat3 publishes them.
    pub(crate) fn since(self) -> &'static str {
        match self {
            Self::User => "2025-10-31",
            Self::UserType => "2025-11-19",
            Self::Category => "2025-12-05",
            Self::Pack => "2026-02",
            Self::Segment => "2026-05-31 (0.0.77)",
            Self::Tenant => "2026-09-28 (0.0.86)",
        }
    }

    /// The form of its keys.
    pub(crate) fn form(self) -> &'static str {
        match self {
            Self::User => "user.{userId}.{slug}",
            Self::UserType => "user.{userType}.{userId}.{slug}",
            Self::Category => "update.{dialog|user}.{userType}.{userId}.{slug}",
            Self::Pack => "update.pack.{userType}.{userId}.{slug}",
            Self::Segment => "update.{dialog|user}.{userType}.{userId}.{message|dialog|user}",
            Self::Tenant => "update.{dialog|user}.{tenantId}.{userType}.{userId}.{segment}",
        }
    }

    /// The templates that subscribe a user to its keys, the first that does so is the one
    /// to advise.
    pub(crate) fn templates(self) -> &'static [&'static str] {
        match self {
            Self::User => &["user.{userId}.*"],
            Self::UserType => &["user.*.{userId}.*"],
            Self::Category | Self::Pack | Self::Segment => &["update.*.*.{userId}.*"],
            Self::Tenant => &[
                "update.*.{tenantId|*}.*.{userId}.*",
                "update.*.{tenantId}.*.{userId}.*",
                // One word, and a tenant's id may be several.
                "update.*.*.*.{userId}.*",
            ],
        }
    }

    pub(crate) const ALL: [Self; 6] = [
        Self::User,
        Self::UserType,
        Self::Category,
        Self::Pack,
        Self::Segment,
        Self::Tenant,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::{TenantId, UserId};

    fn user(id: &str, tenant: &str) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: TenantId::parse(tenant).ok(),
        }
    }

    #[test]
    fn a_key_and_the_id_in_its_body_tell_the_generation() {
        for (expected, key) in [
            (Generation::User, "user.{}.messageupdate"),
            (Generation::UserType, "user.user.{}.typing"),
            (Generation::UserType, "user.own.{}.typing"),
            (Generation::Category, "update.dialog.user.{}.messageupdate"),
            (Generation::Category, "update.user.bot.{}.userstatsupdate"),
            (Generation::Pack, "update.pack.user.{}.packstatsupdate"),
            (Generation::Segment, "update.dialog.user.{}.message"),
            (Generation::Segment, "update.user.bot.{}.user"),
            (Generation::Tenant, "update.dialog.t.user.{}.message"),
            (Generation::Tenant, "update.user.t.bot.{}.messageupdate"),
        ] {
            for id in ["a", "a.b", "user.a", "t", "update.dialog"] {
                let key = key.replace("{}", id);
                let generation = Generation::of(&key, &user(id, "t"));
                assert_eq!(generation, Some(expected), "{key} for {id}");
            }
        }
    }

    #[test]
    fn one_key_may_be_of_two_generations_for_two_users() {
        let of = |key, id, tenant| Generation::of(key, &user(id, tenant));
        let key = "user.user.a.messageupdate";
        assert_eq!(of(key, "a", "t"), Some(Generation::UserType));
        assert_eq!(of(key, "user.a", "t"), Some(Generation::User));
        let key = "update.dialog.t.user.a.message";
        assert_eq!(of(key, "a", "t"), Some(Generation::Tenant));
        assert_eq!(of(key, "user.a", "t"), Some(Generation::Segment));
        // The body may name no tenant, or one with dots.
        assert_eq!(of(key, "a", ""), Some(Generation::Tenant));
        let key = "update.dialog.t.1.user.a.message";
        assert_eq!(of(key, "a", "t.1"), Some(Generation::Tenant));
        assert_eq!(of(key, "a", "t"), None);
    }

    #[test]
    fn keys_that_do_not_have_the_id_where_chat3_has_it_are_of_no_generation() {
        for (key, id) in [
            ("user.usr_a.messageupdate", "usr_b"),
            ("user.usr_a.messageupdate", "a"),
            ("user.usr_a", "usr_a"),
            ("user.usr_a.", "usr_a"),
            ("user..usr_a.x", "usr_a"),
            ("update.x.user.a.b", "a"),
            ("update.dialog.t.1.user.a.message", "a"),
            ("other.a.b", "a"),
            ("", "a"),
        ] {
            assert_eq!(Generation::of(key, &user(id, "t")), None, "{key} for {id}");
        }
    }
}
