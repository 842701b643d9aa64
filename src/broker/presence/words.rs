//! What instances say to each other about who is online, what the keeper writes into its ledger,
//! and the events that consumers get. All of it is JSON.
//!
//! Users are written as `[tenantId or null, userId, …]`. A message that cannot be read, or has an
//! unacceptable id, is an error as a whole: only gateways write here.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Asked, State};
use crate::user::{InvalidId, TenantId, User, UserId};

/// Milliseconds since 1970 by the keeper's clock.
pub type Millis = u64;

/// The milliseconds from `earlier` to `later`, 0 if it is not earlier.
pub fn millis_between(earlier: Instant, later: Instant) -> u64 {
    let age = later.saturating_duration_since(earlier);
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// How many sockets a user has at one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenHere", into = "WrittenHere")]
pub struct Here {
    pub user: User,
    pub sockets: u32,
    /// Milliseconds since the first of the sockets came, or the last went.
    pub age: u64,
}

/// What an instance says to the keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase")]
pub enum ToKeeper {
    Report(Report),
    Question {
        from: String,
        number: u64,
        users: Vec<Whom>,
    },
    /// A sign of life.
    Hello {
        from: String,
    },
}

impl ToKeeper {
    /// The instance that says it.
    pub fn from(&self) -> &str {
        match self {
            Self::Report(Report { from, .. })
            | Self::Question { from, .. }
            | Self::Hello { from } => from,
        }
    }
}

/// Who is at an instance, or what changed there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub from: String,
    /// Numbers the instance's connections.
    pub run: u64,
    /// Numbers the reports of one connection.
    pub number: u64,
    /// Whether this begins the list of everybody.
    #[serde(default)]
    pub begins: bool,
    /// Whether this ends the list of everybody.
    #[serde(default)]
    pub ends: bool,
    pub users: Vec<Here>,
}

/// What the keeper says to an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase")]
pub enum ToInstance {
    /// Report everybody.
    Call,
    /// Only to see whether the instance's queue is there.
    Ping,
    /// To the question of this number, in the order of its users.
    Answer { number: u64, states: Vec<Told> },
}

/// A part of the ledger: what was published, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Grows from page to page.
    pub number: u64,
    /// The latest time of an event so far.
    pub at: Millis,
    /// Whether the events of these lines follow. If this is the last page, they may not have.
    #[serde(default)]
    pub announces: bool,
    pub lines: Vec<Line>,
}

/// One user's line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenLine", into = "WrittenLine")]
pub struct Line {
    pub user: User,
    /// What consumers were told; `None`: one or the other.
    pub online: Option<bool>,
    pub since: Millis,
    /// The instance that the event named.
    pub instance: String,
}

/// A user in a question. Without a tenant, the users of that id in all tenants are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "(Option<String>, String)",
    into = "(Option<String>, String)"
)]
pub struct Whom(pub Asked);

/// A user's state in an answer: online, sockets, since.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Told(bool, u64, Option<Millis>);

/// What consumers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub user: User,
    pub online: bool,
    pub at: Millis,
    pub since: Millis,
    pub instance: String,
    pub sockets: u64,
}

/// Stands for the tenant in the routing key of a user without one.
const NO_TENANT: &str = "-";

impl Event {
    /// `presence.{tenantId}.{userId}`: at most 202 bytes, of the 255 that AMQP allows.
    pub fn routing_key(&self) -> String {
        let tenant = self
            .user
            .tenant
            .as_ref()
            .map_or(NO_TENANT, TenantId::as_str);
        format!("presence.{tenant}.{}", self.user.id)
    }

    /// The body, as JSON.
    pub fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'e> {
            tenant_id: Option<&'e str>,
            user_id: &'e str,
            online: bool,
            at: Millis,
            since: Millis,
            instance: &'e str,
            sockets: u64,
        }
        let body = Body {
            tenant_id: self.user.tenant.as_ref().map(TenantId::as_str),
            user_id: self.user.id.as_str(),
            online: self.online,
            at: self.at,
            since: self.since,
            instance: &self.instance,
            sockets: self.sockets,
        };
        serde_json::to_vec(&body).expect("plain JSON")
    }
}

impl From<State> for Told {
    fn from(state: State) -> Self {
        Self(state.online, state.sockets, state.since)
    }
}

impl From<Told> for State {
    fn from(Told(online, sockets, since): Told) -> Self {
        Self {
            online,
            sockets,
            since,
        }
    }
}

type WrittenHere = (Option<String>, String, u32, u64);
type WrittenLine = (Option<String>, String, Option<bool>, Millis, String);

fn user(tenant: Option<&str>, id: &str) -> Result<User, InvalidId> {
    Ok(User {
        id: UserId::parse(id)?,
        tenant: tenant.map(TenantId::parse).transpose()?,
    })
}

fn written(user: &User) -> (Option<String>, String) {
    let tenant = user.tenant.as_ref().map(ToString::to_string);
    (tenant, user.id.to_string())
}

impl TryFrom<WrittenHere> for Here {
    type Error = InvalidId;

    fn try_from((tenant, id, sockets, age): WrittenHere) -> Result<Self, InvalidId> {
        Ok(Self {
            user: user(tenant.as_deref(), &id)?,
            sockets,
            age,
        })
    }
}

impl From<Here> for WrittenHere {
    fn from(here: Here) -> Self {
        let (tenant, id) = written(&here.user);
        (tenant, id, here.sockets, here.age)
    }
}

impl TryFrom<WrittenLine> for Line {
    type Error = InvalidId;

    fn try_from((tenant, id, online, since, instance): WrittenLine) -> Result<Self, InvalidId> {
        Ok(Self {
            user: user(tenant.as_deref(), &id)?,
            online,
            since,
            instance,
        })
    }
}

impl From<Line> for WrittenLine {
    fn from(line: Line) -> Self {
        let (tenant, id) = written(&line.user);
        (tenant, id, line.online, line.since, line.instance)
    }
}

impl TryFrom<(Option<String>, String)> for Whom {
    type Error = InvalidId;

    fn try_from((tenant, id): (Option<String>, String)) -> Result<Self, InvalidId> {
        let User { id, tenant } = user(tenant.as_deref(), &id)?;
        Ok(Self(Asked { id, tenant }))
    }
}

impl From<Whom> for (Option<String>, String) {
    fn from(Whom(asked): Whom) -> Self {
        let tenant = asked.tenant.as_ref().map(ToString::to_string);
        (tenant, asked.id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(tenant: Option<&str>, id: &str) -> Event {
        Event {
            user: user(tenant, id).unwrap(),
            online: true,
            at: 20,
            since: 10,
            instance: "gw-1".to_owned(),
            sockets: 2,
        }
    }

    #[test]
    fn an_event_says_who_and_since_when() {
        assert_eq!(
            String::from_utf8(event(Some("t"), "a.b").body()).unwrap(),
            r#"{"tenantId":"t","userId":"a.b","online":true,"at":20,"since":10,"instance":"gw-1","sockets":2}"#
        );
        assert!(event(None, "a").body().starts_with(br#"{"tenantId":null,"#));
    }

    #[test]
    fn routing_keys_have_a_word_for_no_tenant_and_fit_into_amqp() {
        assert_eq!(event(Some("t"), "a.b").routing_key(), "presence.t.a.b");
        assert_eq!(event(None, "a").routing_key(), "presence.-.a");
        let longest = event(Some(&"t".repeat(64)), &"я".repeat(64)).routing_key();
        assert!(longest.len() <= 255);
    }

    #[test]
    fn messages_are_read_as_they_are_written_and_unacceptable_ids_are_refused() {
        let report = Report {
            from: "gw-1".to_owned(),
            run: 1,
            number: 2,
            begins: true,
            ends: false,
            users: vec![Here {
                user: user(Some("t"), "a").unwrap(),
                sockets: 3,
                age: 5,
            }],
        };
        let text = serde_json::to_string(&ToKeeper::Report(report.clone())).unwrap();
        assert_eq!(
            text,
            r#"{"is":"report","from":"gw-1","run":1,"number":2,"begins":true,"ends":false,"users":[["t","a",3,5]]}"#
        );
        match serde_json::from_str(&text).unwrap() {
            ToKeeper::Report(read) => assert_eq!(read, report),
            _ => panic!("it is a report"),
        }
        assert!(serde_json::from_str::<ToKeeper>(&text.replace(r#""a""#, r##""#""##)).is_err());
        assert!(serde_json::from_str::<ToKeeper>(&text.replace("report", "song")).is_err());
    }
}
