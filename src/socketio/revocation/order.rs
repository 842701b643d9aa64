//! An order, its written form, and which users and tokens it concerns. Pure.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::Error};

use crate::{
    auth::Identity,
    user::{TenantId, User, UserId},
};

/// How far ahead a revocation can end: no sensible token lives longer. A later end is
/// brought forward to this one.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Largest order in its written form, in bytes.
pub const MAX_ORDER_BYTES: usize = 16 * 1024;

/// Longest reason, in bytes.
const MAX_REASON_BYTES: usize = 500;

/// Longest token id (`jti`), in bytes.
const MAX_TOKEN_ID_BYTES: usize = 1024;

/// An order in its written form. Times are seconds since 1970, as in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // docs/ADMIN_API.md says what each is.
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
    /// When the order was made, in milliseconds since 1970. The gateway itself does not write
    /// it, since its older versions refuse unknown fields: it sends a timestamp beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
}

impl OrderText {
    /// Reads an order, or a part of one. Serde alone would also accept a list of values.
    ///
    /// # Errors
    /// With what is wrong, for the author of the order.
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
    /// Whom the order sends away.
    pub target: Target,
    /// For the client and the log.
    pub reason: Option<String>,
    /// When the tokens are accepted again, in seconds since 1970. `None`: they are not
    /// refused at all.
    pub until: Option<u64>,
    /// Tokens that were issued later are accepted.
    pub(super) issued_before: u64,
    /// When it was made, as far as is known.
    pub made: SystemTime,
}

/// Whom an order sends away.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The user of this id: one tenant's, or every tenant's.
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

/// Why an order cannot be carried out.
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
    /// Checks an order that came at the time `now`, and was made then if it does not say
    /// when, or says a time to come.
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
        let made = text.at.map(Duration::from_millis);
        let made = made.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(at));
        let made = made.map_or(now, |made| made.min(now));
        Ok(Self {
            target,
            reason: text.reason,
            until: text.until.map(|until| until.min(last)),
            issued_before: text.issued_before.unwrap_or(seconds(made)),
            made,
        })
    }

    /// Whether the order no longer refuses any token, and would only send sockets away.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.until.is_some_and(|until| until <= seconds(now))
    }

    /// Whether the order refuses this bearer's token.
    pub fn refuses(&self, identity: &Identity, now: SystemTime) -> bool {
        let is_meant = self.until.is_some() && !self.is_over(now) && self.concerns(identity);
        let by_id = matches!(self.target, Target::Token(_));
        is_meant && (by_id || is_old(identity, self.issued_before))
    }

    /// Whether the order sends this bearer away.
    pub fn concerns(&self, identity: &Identity) -> bool {
        match &self.target {
            Target::User(id, tenant) => is_user(id, tenant.as_ref(), identity.user()),
            Target::Token(id) => identity.token_id() == Some(id),
        }
    }

    /// The order in its written form, for the other instances: with the time when it was
    /// given.
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

/// Whether the token was issued up to that second. One that does not say when may be an old
/// one. Tokens count whole seconds, so one that was issued in the same second counts as older.
pub(super) fn is_old(identity: &Identity, issued_before: u64) -> bool {
    let issued = identity.issued_at().map(seconds);
    issued.is_none_or(|at| at <= issued_before)
}

/// Whether `user` has this id, and this tenant if one is given.
pub fn is_user(id: &UserId, tenant: Option<&TenantId>, user: &User) -> bool {
    user.id == *id && tenant.is_none_or(|tenant| user.tenant.as_ref() == Some(tenant))
}

/// Seconds since 1970, as tokens count them.
pub(super) fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
impl Order {
    /// An order for tests.
    pub(super) fn of(target: Target, until: Option<u64>, issued_before: u64) -> Self {
        Self {
            target,
            reason: None,
            until,
            issued_before,
            made: SystemTime::UNIX_EPOCH,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn order(json: &str) -> Result<Order, String> {
        let text = OrderText::read(json.as_bytes()).map_err(|error| error.to_string())?;
        Order::parse(text, at(1_000)).map_err(|error| error.to_string())
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
            let text: OrderText = serde_json::from_str(&passed_on).unwrap();
            // An instance that parses the order later gets the same result, but for the time
            // when it was made, which goes beside the text.
            let text = OrderText {
                at: Some(1_000_000),
                ..text
            };
            assert_eq!(Order::parse(text, at(1_500)), Ok(given));
        }
    }

    #[test]
    fn an_order_was_made_when_it_says_but_never_later_than_now() {
        let made = |at: &str| {
            order(&format!(r#"{{"userId":"carl","at":{at}}}"#))
                .map(|order| (order.made, order.issued_before))
        };
        assert_eq!(
            made("900500"),
            Ok((at(900) + Duration::from_millis(500), 900))
        );
        for later in ["1000001", "18446744073709551615"] {
            assert_eq!(made(later), Ok((at(1_000), 1_000)), "{later}");
        }
        assert_eq!(order(r#"{"userId":"carl"}"#).unwrap().made, at(1_000));
        assert!(made("-1").is_err() && made("1.5").is_err());
    }

    #[test]
    fn the_written_form_is_what_older_versions_read() {
        let written = serde_json::to_value(order(r#"{"userId":"carl","at":5}"#).unwrap().text());
        assert_eq!(
            written.unwrap(),
            serde_json::json!({"userId": "carl", "issuedBefore": 0})
        );
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
