//! Publishing without a session: for operators on their listener, for programs with a credential on that of the browsers.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::time::timeout;

use super::{Problem, administered, body};
use crate::access::{Failure, Network, Page, Reason, Rights};
use crate::auth::Visitor;
use crate::http::credentials::Shown;
use crate::http::serving::Peer;
use crate::http::ws;
use crate::metrics;
use crate::mqtt::Message;
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
    let message = message(&context, request).await?;
    let what = format!("published to {}", message.topic.as_str());
    context.publish(place, None, peer.address, message).await?;
    administered(&context, &peer, &what);
    Ok(published())
}

/// Anybody else may publish what the grants of its roles allow.
pub async fn as_client(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    Extension(trusted_proxies): Extension<Arc<[Network]>>,
    request: Request,
) -> Response {
    let client = ws::client(&peer, request.headers(), &trusted_proxies);
    let response = judged(&context, &peer, client, request).await.into_response();
    metrics::http_publish(response.status().as_u16());
    response
}

async fn judged(context: &Context, peer: &Peer, client: IpAddr, request: Request) -> Result<Response, Problem> {
    let rights = rights(context, peer, client, request.headers()).await?;
    let place = context.broker.begin_publish()?;
    let message = message(context, request).await?;
    context.publish(place, Some(&rights), client, message).await?;
    Ok(published())
}

/// Who this is. A credential is wanted of everybody: what nobody has to show, a page of anybody could have a browser send.
async fn rights(context: &Context, peer: &Peer, client: IpAddr, headers: &HeaderMap) -> Result<Rights, Problem> {
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
    let page = ws::page(peer, headers, &settings.doors.allowed_origins);
    if page == Page::Foreign && !settings.doors.allowed_origins.is_empty() {
        return Err(Problem::new(StatusCode::FORBIDDEN, Reason::AllowedOrigins.sentence()));
    }
    let certificate = peer.certificate.as_deref();
    if certificate.is_some_and(|certificate| !certificate.is_trusted()) {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "The client certificate is not believed any more."));
    }
    // A program can set headers, so that no token need be where logs keep it.
    let shown = Shown { headers, bearer: None, query: None, certificate, page };
    let presented = shown
        .credential(&settings.doors)
        .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "Show a token: Authorization: Bearer TOKEN."))?;
    let visitor = Visitor { address: client, client_id: None };
    let judging = settings.judge.check(&presented.credential, &visitor);
    let judged = timeout(settings.session.auth_timeout, judging).await.unwrap_or_else(|_| {
        let why = "the credential could not be judged in time (session.auth_timeout)";
        Err(Failure::Unavailable(why.to_owned()))
    });
    let identity = judged.map_err(|failure| {
        note_failure(context, client, &presented.credential, &failure);
        let status = match failure {
            Failure::Expired | Failure::NotYetValid | Failure::Refused(_) => StatusCode::UNAUTHORIZED,
            Failure::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, format!("Not authenticated: {failure}."))
    })?;
    Ok(Rights::new(settings.policy.clone(), identity, &generated_client_id()))
}

/// What is to be published. A place is taken before this: as many bodies wait in memory as there are places.
async fn message(context: &Context, request: Request) -> Result<Message, Problem> {
    let most = context.settings.load().wire.max_payload.get().saturating_mul(FOLD).saturating_add(ROOM);
    Ok(decode_message(&body::read(request, most).await?)?)
}

fn published() -> Response {
    Json(json!({"status": "published"})).into_response()
}
