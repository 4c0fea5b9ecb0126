//! Sessions: who is here, and who has to go.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Problem, administered};
use crate::access::{Identity, Network};
use crate::http::serving::Peer;
use crate::session::listing::{Filter, page};
use crate::session::{Context, Summons, Visitor};
use crate::wire::Close;

/// The sessions of a page where nobody says how many, and at most.
const LIMIT: NonZeroUsize = NonZeroUsize::new(100).unwrap();
const MAX_LIMIT: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// What may stand behind the question mark.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    user: Option<String>,
    client_id: Option<String>,
    role: Option<String>,
    address: Option<Network>,
    limit: Option<NonZeroUsize>,
    after: Option<String>,
}

/// A session, as operators see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    session_id: String,
    client_id: String,
    address: String,
    /// Unix seconds.
    since: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    identity: Option<ShownIdentity>,
}

/// An identity, as operators see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownIdentity {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Box<str>>,
    source: &'static str,
    roles: Box<[Box<str>]>,
    groups: Box<[Box<str>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<Box<str>>,
    /// Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

impl From<&Identity> for ShownIdentity {
    fn from(identity: &Identity) -> ShownIdentity {
        let Identity { user, source, roles, groups, claims: _, token_id, expires } = identity.clone();
        ShownIdentity { user, source: source.name(), roles, groups, token_id, expires }
    }
}

impl Shown {
    fn of(visitor: &Visitor) -> Shown {
        let rights = visitor.rights.load();
        Shown {
            session_id: visitor.session(),
            client_id: visitor.client_id.to_string(),
            address: visitor.address.to_string(),
            since: visitor.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            identity: rights.as_ref().map(|rights| rights.identity().into()),
        }
    }
}

/// Those that are wanted, a page of them.
pub async fn list(State(context): State<Arc<Context>>, uri: Uri) -> Result<Response, Problem> {
    let Query(wanted) = Query::<Wanted>::try_from_uri(&uri)
        .map_err(|error| Problem::bad_request(format!("The query is not as it should be: {}.", error.body_text())))?;
    let Wanted { user, client_id, role, address, limit, after } = wanted;
    let limit = limit.unwrap_or(LIMIT);
    if limit > MAX_LIMIT {
        return Err(Problem::bad_request(format!("`limit` must be {MAX_LIMIT} or less; ask for page after page.")));
    }
    let after = after.as_deref().map(number).transpose()?;
    let page = page(context.roster.visitors(), &Filter { user, client_id, role, address }, after, limit);
    let sessions: Vec<_> = page.visitors.iter().map(|visitor| Shown::of(visitor)).collect();
    let mut body = json!({"sessions": sessions});
    if let Some(next) = page.next {
        body["next"] = json!(format!("{next:016x}"));
    }
    Ok(Json(body).into_response())
}

/// One of them.
pub async fn show(State(context): State<Arc<Context>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let number = number(&id)?;
    let visitor = context.roster.visitors().into_iter().find(|visitor| visitor.session_id == number);
    visitor.map(|visitor| Json(Shown::of(&visitor)).into_response()).ok_or_else(unknown)
}

/// Ends one. Its client is asked to come again, and may.
pub async fn kick(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let number = number(&id)?;
    let is_meant = |visitor: &Visitor| visitor.session_id == number;
    if context.roster.summon(is_meant, || Summons::End(Close::Kicked, None)) == 0 {
        return Err(unknown());
    }
    administered(&context, &peer, &format!("ended the session {id}"));
    Ok((StatusCode::ACCEPTED, Json(json!({"status": "ending"}))).into_response())
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "There is no such session here, or it has ended.")
}

/// A session as `welcome` names it.
fn number(id: &str) -> Result<u64, Problem> {
    let is_one = id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let number = u64::from_str_radix(id, 16).ok().filter(|_| is_one);
    number.ok_or_else(|| {
        Problem::bad_request("A session is named by 16 hexadecimal digits, as `sessionId` in `welcome` has them.")
    })
}
