//! Publishing without a session: for operators on their listener, for programs with a credential on that of the browsers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::time::timeout;

use super::{Problem, administered, body};
use crate::access::{Failure, Rights};
use crate::auth::Visitor;
use crate::broker::Publishing;
use crate::http::credentials;
use crate::http::serving::Peer;
use crate::metrics;
use crate::session::{Context, generated_client_id, note_failure};
use crate::wire::json::decode_message;

/// How much longer than its payload a body may be in the worst case that anybody means: base64, or each character escaped; and the
/// longest topic.
const FOLD: usize = 2;
const ROOM: usize = 64 << 10;

/// An operator may publish everything.
pub async fn as_operator(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Problem> {
    let place = context.broker.begin_publish()?;
    publish(&context, place, None, &peer, request).await
}

/// Anybody else may publish what the grants of its roles allow.
pub async fn as_client(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let response = judged(&context, &peer, request).await.into_response();
    metrics::http_publish(response.status().as_u16());
    response
}

async fn judged(context: &Context, peer: &Peer, request: Request) -> Result<Response, Problem> {
    let rights = rights(context, peer, request.headers()).await?;
    let place = context.broker.begin_publish()?;
    publish(context, place, Some(&rights), peer, request).await
}

/// Who this is. A credential is wanted of everybody: what nobody has to show, a page of anybody could have a browser send.
async fn rights(context: &Context, peer: &Peer, headers: &HeaderMap) -> Result<Rights, Problem> {
    let settings = context.settings.load_full();
    if !settings.judge.is_on() {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "Publishing over HTTP needs to know who publishes: configure a way to tell ([auth]).",
        ));
    }
    if context.broker.knows_users() {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "The broker is told who each session is (broker.session_username), and of a publish over HTTP it could not be: \
             publish in a session.",
        ));
    }
    if context.overload.is_overloaded() || context.audit.refuses_sessions() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "The gateway is busy; publish again later."));
    }
    let presented = credentials::presented(headers, None)
        .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "Show a token: Authorization: Bearer TOKEN."))?;
    let visitor = Visitor { address: peer.address, client_id: None };
    let judging = settings.judge.check(&presented.credential, &visitor);
    let judged = timeout(settings.session.auth_timeout, judging).await.unwrap_or_else(|_| {
        let why = "the credential could not be judged in time (session.auth_timeout)";
        Err(Failure::Unavailable(why.to_owned()))
    });
    let identity = judged.map_err(|failure| {
        note_failure(context, peer.address, &presented.credential, &failure);
        let status = match failure {
            Failure::Expired | Failure::NotYetValid | Failure::Refused(_) => StatusCode::UNAUTHORIZED,
            Failure::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, format!("Not authenticated: {failure}."))
    })?;
    Ok(Rights::new(settings.policy.clone(), identity, &generated_client_id()))
}

/// The place is taken before the body is read: as many bodies wait in memory as there are places.
async fn publish(
    context: &Context,
    place: Publishing,
    rights: Option<&Rights>,
    peer: &Peer,
    request: Request,
) -> Result<Response, Problem> {
    let most = context.settings.load().wire.max_payload.get().saturating_mul(FOLD).saturating_add(ROOM);
    let message = decode_message(&body::read(request, most).await?)?;
    let what = rights.is_none().then(|| format!("published to {}", message.topic.as_str()));
    context.publish(place, rights, peer.address, message).await?;
    if let Some(what) = what {
        administered(context, peer, &what);
    }
    Ok(Json(json!({"status": "published"})).into_response())
}
