//! The admin API's answers about who is online in the whole fleet.
//!
//! Without RabbitMQ this process is the fleet.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    broker::presence::{Asked, State},
    socketio::Hub,
    user::{TenantId, UserId},
};

/// Most users of one request.
const MOST_USERS: usize = 1_000;

/// Largest request: so many of the longest ids, with room for escapes.
pub(super) const MAX_BYTES: usize = 256 * 1024;

/// A request about many users.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    user_ids: Vec<String>,
    tenant_id: Option<String>,
}

/// What cannot be answered, and why.
type Problem = (StatusCode, String);

fn bad(why: impl ToString) -> Problem {
    (StatusCode::BAD_REQUEST, why.to_string())
}

/// Answers a request about many users.
pub(super) async fn answer(body: &[u8], hub: &Hub) -> Result<Value, Problem> {
    let request: Request = serde_json::from_slice(body).map_err(bad)?;
    if request.user_ids.len() > MOST_USERS {
        return Err(bad(format!("more than {MOST_USERS} userIds")));
    }
    let tenant = request.tenant_id.as_deref().map(TenantId::parse);
    let tenant = tenant
        .transpose()
        .map_err(|why| bad(format!("tenantId {why}")))?;
    let ask = |id: &String| {
        let id = UserId::parse(id).map_err(|why| bad(format!("a userId {why}")))?;
        let tenant = tenant.clone();
        Ok(Asked { id, tenant })
    };
    let asked: Vec<_> = request.user_ids.iter().map(ask).collect::<Result<_, _>>()?;
    if !is_on(hub) {
        let problem = "PRESENCE_EXCHANGE is not set: only GET /api/users/{userId} is answered, for this instance";
        return Err((StatusCode::NOT_IMPLEMENTED, problem.to_owned()));
    }
    let unknown = || {
        let problem = "not known now: RabbitMQ, or the instance that keeps who is online, is away";
        (StatusCode::SERVICE_UNAVAILABLE, problem.to_owned())
    };
    let states = states(&asked, hub).await.ok_or_else(unknown)?;
    let users: Map<_, _> = request
        .user_ids
        .into_iter()
        .zip(states.iter().map(written))
        .collect();
    Ok(json!({"users": users}))
}

/// Adds the state in the fleet, over all tenants, to what is known of a user here; `null` if it
/// cannot be told now, and nothing if presence is off.
pub(super) async fn add_to(answer: &mut Value, id: UserId, hub: &Hub) {
    if is_on(hub) {
        let asked = [Asked { id, tenant: None }];
        let states = states(&asked, hub).await;
        let state = states.as_deref().and_then(<[State]>::first);
        answer["fleet"] = state.map_or(Value::Null, written);
    }
}

fn is_on(hub: &Hub) -> bool {
    let broker = hub.broker();
    broker.is_embedded() || broker.attendance().is_some()
}

async fn states(asked: &[Asked], hub: &Hub) -> Option<Vec<State>> {
    let broker = hub.broker();
    if !broker.is_embedded() {
        return broker.presence(asked).await;
    }
    let here = asked.iter().map(|Asked { id, tenant }| {
        let sockets = hub.describe_in(id, tenant.as_ref()).sockets as u64;
        State {
            online: sockets > 0,
            sockets,
            since: None,
        }
    });
    Some(here.collect())
}

fn written(state: &State) -> Value {
    json!({"online": state.online, "sockets": state.sockets, "since": state.since})
}
