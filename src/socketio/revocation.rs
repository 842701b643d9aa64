//! Who is sent away, and whose tokens are refused before they expire.
//!
//! An [`Order`] comes from the admin API or from another instance, as JSON; the
//! [`Revocations`] remember it for as long as it says. Nothing here outlives the
//! process: an instance that starts later is told by whoever repeats the order.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize, de::Error};

use crate::{
    auth::Identity,
    user::{TenantId, User, UserId},
};

/// Revocations that are remembered at once. Of more, the oldest are forgotten: the
/// newest is what an operator wants now.
const MAX_REVOCATIONS: usize = 100_000;

/// Forgotten at once, since each time costs a look at all.
const FORGOTTEN_AT_ONCE: usize = MAX_REVOCATIONS / 100;

/// How far ahead a revocation can end: later than tokens do that anybody should
/// have issued. One that is to last longer is remembered until then.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Largest order as it is written, in bytes.
pub const MAX_ORDER_BYTES: usize = 16 * 1024;

/// Longest reason, in bytes.
const MAX_REASON_BYTES: usize = 500;

/// Longest token id (`jti`), in bytes.
const MAX_TOKEN_ID_BYTES: usize = 1024;

/// An order as it is written. Times are seconds since 1970, as in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // docs/OPERATIONS.md says what each is.
pub struct OrderText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Tokens issued up to this second are refused; the time of the order if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<u64>,
}

impl OrderText {
    /// Reads an order, or a part of it. Serde alone would also take a list of values.
    ///
    /// # Errors
    /// With what is wrong, for whoever wrote it.
    pub fn read(json: &[u8]) -> serde_json::Result<Self> {
        if json.len() > MAX_ORDER_BYTES {
            return Err(Error::custom(format_args!(
                "an order has at most {MAX_ORDER_BYTES} bytes"
            )));
        }
        match json.trim_ascii_start().first() {
            Some(b'{') => serde_json::from_slice(json),
            _ => Err(Error::custom("an order is a JSON object")),
        }
    }
}

/// Sends sockets away, and may refuse their tokens for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Whose sockets.
    pub target: Target,
    /// For the client and the log.
    pub reason: Option<String>,
    /// How long the tokens are refused, in seconds since 1970; not at all if absent.
    pub until: Option<u64>,
    issued_before: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The user of that id: of one tenant, or of all.
    User(UserId, Option<TenantId>),
    /// The bearer of one token, by its `jti`.
    Token(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id, None) => write!(f, "user {id}"),
            Self::User(id, Some(tenant)) => write!(f, "user {id} of tenant {tenant}"),
            Self::Token(id) => write!(f, "token {id:?}"),
        }
    }
}

/// Why an order is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrder {
    #[error("give either userId or tokenId")]
    Target,
    #[error("userId not acceptable")]
    UserId,
    #[error("tenantId not acceptable")]
    TenantId,
    #[error("tokenId must have 1 to {MAX_TOKEN_ID_BYTES} bytes")]
    TokenId,
    #[error("reason must have at most {MAX_REASON_BYTES} bytes")]
    Reason,
}

impl Order {
    /// Checks an order at the time `now`.
    pub fn parse(text: OrderText, now: SystemTime) -> Result<Self, InvalidOrder> {
        let tenant = text.tenant_id.as_deref().map(TenantId::parse).transpose();
        let tenant = tenant.map_err(|_| InvalidOrder::TenantId)?;
        let target = match (text.user_id, text.token_id) {
            (Some(id), None) => {
                let id = UserId::parse(&id).map_err(|_| InvalidOrder::UserId)?;
                Target::User(id, tenant)
            }
            (None, Some(id)) if tenant.is_none() => {
                match (1..=MAX_TOKEN_ID_BYTES).contains(&id.len()) {
                    true => Target::Token(id),
                    false => return Err(InvalidOrder::TokenId),
                }
            }
            _ => return Err(InvalidOrder::Target),
        };
        if text
            .reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_REASON_BYTES)
        {
            return Err(InvalidOrder::Reason);
        }
        let last = seconds(now + LONGEST);
        let now = seconds(now);
        Ok(Self {
            target,
            reason: text.reason,
            until: text.until.map(|until| until.min(last)),
            issued_before: text.issued_before.unwrap_or(now),
        })
    }

    /// Whether it would refuse no token any more, and only send away.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.until.is_some_and(|until| until <= seconds(now))
    }

    /// Whether the bearer is one whom the order sends away.
    pub fn concerns(&self, identity: &Identity) -> bool {
        match &self.target {
            Target::User(id, tenant) => is_user(id, tenant.as_ref(), identity.user()),
            Target::Token(id) => identity.token_id() == Some(id),
        }
    }

    /// For the other instances: the same order, with the time it was given.
    pub fn text(&self) -> OrderText {
        let mut text = OrderText {
            reason: self.reason.clone(),
            until: self.until,
            issued_before: Some(self.issued_before),
            ..OrderText::default()
        };
        match &self.target {
            Target::User(id, tenant) => {
                text.user_id = Some(id.as_str().to_owned());
                text.tenant_id = tenant.as_ref().map(|tenant| tenant.as_str().to_owned());
            }
            Target::Token(id) => text.token_id = Some(id.clone()),
        }
        text
    }
}

/// Whether `user` is the one of that id, of that tenant or of any.
pub fn is_user(id: &UserId, tenant: Option<&TenantId>, user: &User) -> bool {
    user.id == *id && tenant.is_none_or(|tenant| user.tenant.as_ref() == Some(tenant))
}

/// The revocations in force, the oldest first.
#[derive(Default)]
pub struct Revocations(Mutex<IndexMap<Target, Revoked>>);

#[derive(Clone, Copy)]
struct Revoked {
    issued_before: u64,
    until: u64,
}

impl Revocations {
    /// Remembers the order, if it says until when. Returns how many others that were
    /// in force had to be forgotten for it.
    pub fn add(&self, order: &Order, now: SystemTime) -> usize {
        let until = match order.until {
            Some(until) if !order.is_over(now) => until,
            _ => return 0,
        };
        let mut revoked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut forgotten = 0;
        if revoked.len() >= MAX_REVOCATIONS && !revoked.contains_key(&order.target) {
            let now = seconds(now);
            revoked.retain(|_, revoked| revoked.until > now);
            if revoked.len() >= MAX_REVOCATIONS {
                forgotten = revoked.drain(..FORGOTTEN_AT_ONCE).count();
            }
        }
        let new = Revoked {
            issued_before: order.issued_before,
            until,
        };
        let entry = revoked.entry(order.target.clone()).or_insert(new);
        // A second order takes nothing back from whom the first one refuses.
        entry.issued_before = entry.issued_before.max(new.issued_before);
        entry.until = entry.until.max(new.until);
        forgotten
    }

    /// Whether a token of this bearer is refused.
    pub fn refuse(&self, identity: &Identity, now: SystemTime) -> bool {
        let now = seconds(now);
        let revoked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if revoked.is_empty() {
            return false;
        }
        let in_force = |target: &Target| revoked.get(target).filter(|revoked| revoked.until > now);
        let user = identity.user();
        let of_user = |tenant| in_force(&Target::User(user.id.clone(), tenant));
        let by_user = [
            of_user(None),
            user.tenant.clone().and_then(|tenant| of_user(Some(tenant))),
        ];
        // A token that does not say when it was issued may be an old one. Tokens
        // count whole seconds: one of the order's own second is taken for older.
        let issued = identity.issued_at().map(seconds);
        let is_old = |revoked: &Revoked| issued.is_none_or(|at| at <= revoked.issued_before);
        let by_token = identity
            .token_id()
            .is_some_and(|id| in_force(&Target::Token(id.to_owned())).is_some());
        by_token || by_user.into_iter().flatten().any(is_old)
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::auth::tests::a_token;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn order(json: &str) -> Result<Order, String> {
        let text = OrderText::read(json.as_bytes()).map_err(|error| error.to_string())?;
        Order::parse(text, at(1_000)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_users_old_tokens_are_refused_until_the_order_ends() {
        let revocations = Revocations::default();
        let order = order(r#"{"userId":"carl","tenantId":"t","until":2000}"#).unwrap();
        revocations.add(&order, at(1_000));
        for (user, tenant, issued, now, refused) in [
            ("carl", Some("t"), Some(999), 1_500, true),
            // Of the order's own second: perhaps from before.
            ("carl", Some("t"), Some(1_000), 1_500, true),
            ("carl", Some("t"), Some(1_001), 1_500, false),
            ("carl", Some("t"), None, 1_500, true),
            ("carl", Some("t"), Some(999), 2_000, false),
            ("carl", Some("u"), Some(999), 1_500, false),
            ("carl", None, Some(999), 1_500, false),
            ("bob", Some("t"), Some(999), 1_500, false),
        ] {
            let identity = a_token(user, tenant, issued.map(at), None);
            let is_refused = revocations.refuse(&identity, at(now));
            assert_eq!(is_refused, refused, "{user} {tenant:?} {issued:?} {now}");
        }
    }

    #[test]
    fn an_order_without_a_tenant_is_for_all_and_the_stricter_of_two_holds() {
        let revocations = Revocations::default();
        let add = |json: &str| revocations.add(&order(json).unwrap(), at(1_000));
        add(r#"{"userId":"carl","until":3000,"issuedBefore":900}"#);
        add(r#"{"userId":"carl","until":2000,"issuedBefore":1100}"#);
        for tenant in [None, Some("t")] {
            let identity = a_token("carl", tenant, Some(at(1_050)), None);
            assert!(revocations.refuse(&identity, at(2_500)));
        }
    }

    #[test]
    fn one_token_is_refused_by_its_id() {
        let revocations = Revocations::default();
        let order = order(r#"{"tokenId":"j","until":2000}"#).unwrap();
        revocations.add(&order, at(1_000));
        let refuse = |id| revocations.refuse(&a_token("carl", None, None, id), at(1_500));
        assert!(refuse(Some("j")));
        assert!(!refuse(Some("k")));
        assert!(!refuse(None));
    }

    #[test]
    fn the_newest_finds_room_where_others_end_and_else_where_the_oldest_were() {
        let revocations = Revocations::default();
        let numbered = |number: usize, until: u64| {
            order(&format!(r#"{{"tokenId":"{number}","until":{until}}}"#)).unwrap()
        };
        let is_refused = |number: usize, now| {
            let identity = a_token("carl", None, None, Some(&number.to_string()));
            revocations.refuse(&identity, at(now))
        };
        for number in 0..MAX_REVOCATIONS {
            let until = if number < 10 { 2_000 } else { u64::MAX };
            assert_eq!(revocations.add(&numbered(number, until), at(1_000)), 0);
        }
        // Once more is none more.
        assert_eq!(revocations.add(&numbered(0, 1_500), at(1_000)), 0);
        let (next, last) = (MAX_REVOCATIONS, MAX_REVOCATIONS + 1);
        assert_eq!(revocations.add(&numbered(next, 3_000), at(2_000)), 0);
        for number in next + 1..next + 10 {
            assert_eq!(revocations.add(&numbered(number, 3_000), at(2_000)), 0);
        }
        assert!(is_refused(10, 2_000) && is_refused(next, 2_000));
        let one_more = numbered(last + 100, 3_000);
        assert_eq!(revocations.add(&one_more, at(2_000)), FORGOTTEN_AT_ONCE);
        assert!(!is_refused(10, 2_000));
        assert!(is_refused(next, 2_000) && is_refused(last + 100, 2_000));
    }

    #[test]
    fn an_order_holds_for_a_year_at_most() {
        let until = |text: &str| {
            order(&format!(r#"{{"userId":"carl","until":{text}}}"#))
                .unwrap()
                .until
        };
        let a_year = 1_000 + LONGEST.as_secs();
        assert_eq!(until("2000"), Some(2_000));
        assert_eq!(until(&a_year.to_string()), Some(a_year));
        assert_eq!(until("4102444800"), Some(a_year));
        assert_eq!(until(&u64::MAX.to_string()), Some(a_year));
    }

    #[test]
    fn an_order_is_an_object() {
        for json in ["", "[]", r#"["alice"]"#, "null", "1", r#""alice""#, " [{}]"] {
            assert!(OrderText::read(json.as_bytes()).is_err(), "{json}");
        }
        assert!(OrderText::read(b" \n{}").is_ok());
    }

    #[test]
    fn an_order_reads_the_same_for_every_instance() {
        for json in [
            r#"{"userId":"carl","tenantId":"t","reason":"left","until":2000}"#,
            r#"{"tokenId":"j"}"#,
        ] {
            let given = order(json).unwrap();
            let passed_on = serde_json::to_string(&given.text()).unwrap();
            let text = serde_json::from_str(&passed_on).unwrap();
            // Also by one that reads it later.
            assert_eq!(Order::parse(text, at(1_500)), Ok(given));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(json in ".{0,60}", id in ".{0,20}", until in any::<u64>()) {
            let _ = order(&json);
            let text = serde_json::json!({"userId": id, "tenantId": id, "until": until});
            let _ = order(&text.to_string());
        }
    }
}
