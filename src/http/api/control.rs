//! The process itself: its configuration, its log, its end.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tracing::info;

use super::body::{self, MAX_BODY};
use super::{BY, Problem, administered};
use crate::audit::Event;
use crate::http::serving::Peer;
use crate::log::Level;
use crate::session::{Context, Reloaded};

/// Reads the configuration again, and says what became of it.
pub async fn reload(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
) -> Result<Response, Problem> {
    administered(&context, &peer, "had the configuration read again");
    match context.reloads.ask().await {
        Some(Ok(Reloaded { changed, needing_restart })) => {
            let body = json!({"status": "applied", "changed": changed, "needingRestart": needing_restart});
            Ok(Json(body).into_response())
        }
        Some(Err(why)) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("The configuration can't be used, and the old one stays in force: {why}"),
        )),
        None => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "The gateway is going away.")),
    }
}

/// Asks for the end, as SIGTERM does.
pub async fn drain(State(context): State<Arc<Context>>, Extension(peer): Extension<Peer>) -> Response {
    info!("an operator asks for the end");
    administered(&context, &peer, "asked for the end");
    context.drain.announce();
    (StatusCode::ACCEPTED, Json(json!({"status": "draining"}))).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLevel {
    level: Level,
}

/// How much the process tells of itself.
pub async fn log_level(State(context): State<Arc<Context>>) -> Response {
    Json(json!({"level": *context.log.level()})).into_response()
}

/// Changes that, until the configuration is read again.
pub async fn set_log_level(State(context): State<Arc<Context>>, request: Request) -> Result<Response, Problem> {
    let NewLevel { level } = body::parse(&body::read(request, MAX_BODY).await?)?;
    let (from, to) = (context.log.level().to_string(), level.to_string());
    // Told at the more talkative of the two.
    if level.tells_more_than(&context.log.level()) {
        context.log.set_level(&level);
    }
    info!(from, to, "an operator has changed the level of the log");
    context.log.set_level(&level);
    let (setting, needs_restart) = ("log.level", false);
    context.audit.record(&Event::ConfigurationChanged { by: BY, setting, from: &from, to: &to, needs_restart });
    Ok(Json(json!({"level": level})).into_response())
}
