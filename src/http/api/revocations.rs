//! Revocations: who is shut out, until when.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::extract::Query;
use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tracing::{error, info};

use super::body::{self, MAX_BODY};
use super::{BY, Problem, administered};
use crate::access::Revocation;
use crate::access::revocations::{NotTaken, Subject};
use crate::http::serving::Peer;
use crate::session::{Context, Shut};

/// A subject, one of three, and until when it is shut out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    user: Option<Box<str>>,
    token_id: Option<Box<str>>,
    device: Option<Box<str>>,
    until: Option<u64>,
}

impl Wanted {
    fn subject(&mut self) -> Result<Subject, Problem> {
        match (self.user.take(), self.token_id.take(), self.device.take()) {
            (Some(user), None, None) => Ok(Subject::User(user)),
            (None, Some(id), None) => Ok(Subject::TokenId(id)),
            (None, None, Some(device)) => Ok(Subject::Device(device)),
            _ => Err(Problem::bad_request("Name one of `user`, `tokenId` and `device`.")),
        }
    }
}

/// Those that hold.
pub async fn list(State(context): State<Arc<Context>>) -> Response {
    Json(json!({"revocations": context.revoked.list()})).into_response()
}

/// Shuts somebody out.
pub async fn add(State(context): State<Arc<Context>>, request: Request) -> Result<Response, Problem> {
    let mut wanted: Wanted = body::parse(&body::read(request, MAX_BODY).await?)?;
    let subject = wanted.subject()?;
    let until = wanted.until.ok_or_else(|| Problem::bad_request("Say `until` when, in Unix seconds."))?;
    let revocation = Revocation { subject, until };
    let shown = revocation.clone();
    let shut = on_disk(move || context.revoke(revocation, BY)).await?;
    let Shut { sessions, kept } = shut.map_err(not_taken)?;
    info!(subject = %shown.subject, until, sessions, "somebody was revoked");
    kept.map_err(|error| not_kept(&error, "The revocation holds, but not over a restart"))?;
    let mut body = json!(shown);
    body["sessions"] = json!(sessions);
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// Lets somebody in again.
pub async fn remove(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let Query(mut wanted) = Query::<Wanted>::try_from_uri(&uri)
        .map_err(|error| Problem::bad_request(format!("The query is not as it should be: {}.", error.body_text())))?;
    if wanted.until.is_some() {
        return Err(Problem::bad_request("Leave `until` out: a subject has one revocation."));
    }
    let subject = wanted.subject()?;
    let (revoked, lifted) = (context.revoked.clone(), subject.clone());
    let removed = on_disk(move || revoked.remove(&lifted)).await?;
    let was_there = removed.map_err(|error| not_kept(&error, "The revocation is lifted until a restart"))?;
    if !was_there {
        return Err(Problem::new(StatusCode::NOT_FOUND, "There is no such revocation."));
    }
    administered(&context, &peer, &format!("lifted the revocation of {subject}"));
    info!(%subject, "a revocation was lifted");
    Ok(StatusCode::NO_CONTENT)
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "A fault of the gateway: its log says more."))
}

fn not_taken(why: NotTaken) -> Problem {
    let status = match why {
        NotTaken::Name | NotTaken::Over => StatusCode::BAD_REQUEST,
        NotTaken::Full => StatusCode::CONFLICT,
    };
    let text = why.to_string();
    let (first, rest) = text.split_at(1);
    Problem::new(status, format!("{}{rest}.", first.to_uppercase()))
}

fn not_kept(error: &io::Error, what: &str) -> Problem {
    error!(%error, "revocations can't be written (auth.revocations)");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}: {error} (auth.revocations)."))
}
