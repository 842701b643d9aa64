//! Which generation of Chat3 a routing key is of, and which binding keys are for it.
//!
//! Pure. User ids may hold dots, so a key is read from both of its ends.

use crate::{
    config::BindingKeys,
    embedded::topic_matches,
    user::{TenantId, User, UserId},
};

/// How Chat3 has built routing keys over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Generation {
    User,
    UserType,
    Update,
    Pack,
    Current,
}

impl Generation {
    pub(super) fn since(self) -> &'static str {
        match self {
            Self::User => "2025-10-31",
            Self::UserType => "2025-11-19",
            Self::Update => "2025-12-05",
            Self::Pack => "2026-02",
            Self::Current => "2026-05-31 (0.0.77)",
        }
    }

    /// The form of its keys.
    pub(super) fn form(self) -> &'static str {
        match self {
            Self::User => "user.{userId}.{slug}",
            Self::UserType => "user.{userType}.{userId}.{slug}",
            Self::Update => "update.{dialog|user}.{userType}.{userId}.{slug}",
            Self::Pack => "update.pack.{userType}.{userId}.{slug}",
            Self::Current => "update.{dialog|user}.{userType}.{userId}.{message|dialog|user}",
        }
    }

    /// The template that subscribes a user to its keys.
    pub(super) fn template(self) -> &'static str {
        match self {
            Self::User => "user.{userId}.*",
            Self::UserType => "user.*.{userId}.*",
            Self::Update | Self::Pack | Self::Current => "update.*.*.{userId}.*",
        }
    }
}

/// What the second generation has before the user id.
const USER_TYPES: [&str; 4] = ["user", "bot", "contact", "system"];

/// The generation of a key, and the user id in it.
pub(super) fn classify(key: &str) -> Option<(Generation, &str)> {
    let (head, last) = key.rsplit_once('.')?;
    if last.is_empty() {
        return None;
    }
    let (generation, id) = match head.split_once('.')? {
        ("user", rest) => match rest.split_once('.') {
            Some((kind, id)) if USER_TYPES.contains(&kind) => (Generation::UserType, id),
            _ => (Generation::User, rest),
        },
        ("update", rest) => {
            let (subject, rest) = rest.split_once('.')?;
            let (_, id) = rest.split_once('.')?;
            let generation = match (subject, last) {
                ("dialog" | "user", "message" | "dialog" | "user") => Generation::Current,
                ("dialog" | "user", _) => Generation::Update,
                ("pack", _) => Generation::Pack,
                _ => return None,
            };
            (generation, id)
        }
        _ => return None,
    };
    UserId::parse(id).ok().map(|_| (generation, id))
}

/// Whether the user of that id, and whatever tenant, gets what has this key.
pub(super) fn reaches(bindings: &BindingKeys, key: &str, id: &str) -> bool {
    let (Ok(id), Ok(tenant)) = (UserId::parse(id), TenantId::parse("x")) else {
        return false;
    };
    let words = key.split('.').collect::<Vec<_>>();
    // Only the broker sees which tenant a key is for: any word of the key may be it.
    let tenants = words.iter().filter_map(|word| TenantId::parse(word).ok());
    tenants.chain([tenant]).any(|tenant| {
        let user = User {
            id: id.clone(),
            tenant: Some(tenant),
        };
        bindings
            .render(&user)
            .any(|binding| topic_matches(&binding, key))
    })
}

/// The words of a key that are Chat3's; the others, which may be ids, are left out.
pub(super) fn shape(key: &str) -> String {
    const WORDS: [&str; 8] = [
        "user", "update", "dialog", "pack", "message", "typing", "bot", "contact",
    ];
    let known = |word: &str| WORDS.contains(&word) || word.ends_with("update");
    // Keys have at most 255 bytes; the first words tell what they are.
    let words = key.split('.').take(8);
    let words: Vec<_> = words
        .map(|word| if known(word) { word } else { "…" })
        .collect();
    words.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generation_is_recognised_with_the_user_in_its_keys() {
        for (key, expected, id) in [
            ("user.usr_a.messageupdate", Generation::User, "usr_a"),
            ("user.usr_a.typing", Generation::User, "usr_a"),
            ("user.first.last.typing", Generation::User, "first.last"),
            (
                "user.user.usr_a.messageupdate",
                Generation::UserType,
                "usr_a",
            ),
            (
                "user.bot.first.last.typing",
                Generation::UserType,
                "first.last",
            ),
            (
                "update.dialog.user.usr_a.messageupdate",
                Generation::Update,
                "usr_a",
            ),
            (
                "update.user.user.usr_a.userstatsupdate",
                Generation::Update,
                "usr_a",
            ),
            (
                "update.pack.user.usr_a.packstatsupdate",
                Generation::Pack,
                "usr_a",
            ),
            (
                "update.dialog.user.usr_a.message",
                Generation::Current,
                "usr_a",
            ),
            ("update.user.bot.a.b.user", Generation::Current, "a.b"),
        ] {
            assert_eq!(classify(key), Some((expected, id)), "{key}");
            let suggested: BindingKeys = expected.template().parse().unwrap();
            assert!(reaches(&suggested, key, id), "{key}");
        }
        for key in [
            "",
            "user",
            "user.a",
            "user..x",
            "update.x.user.a.b",
            "other.a.b",
            "update.dialog.user.a",
        ] {
            assert_eq!(classify(key), None, "{key}");
        }
    }

    #[test]
    fn bindings_of_another_generation_do_not_reach() {
        for (templates, key, expected) in [
            ("user.{userId}.*", "update.dialog.user.a.message", false),
            ("user.{userId}.*", "user.user.a.messageupdate", false),
            ("user.*.{userId}.*", "user.a.messageupdate", false),
            (
                "user.{userId}.*,update.*.*.{userId}.*",
                "update.dialog.user.a.message",
                true,
            ),
            ("user.{userId}.typing", "user.a.messageupdate", false),
            ("user.{userId}.#", "user.a.messageupdate", true),
        ] {
            let bindings: BindingKeys = templates.parse().unwrap();
            assert_eq!(reaches(&bindings, key, "a"), expected, "{templates} {key}");
        }
    }

    #[test]
    fn ids_are_in_no_shape() {
        assert_eq!(
            shape("update.x.usr_secret.messageupdate"),
            "update.….….messageupdate"
        );
    }
}
