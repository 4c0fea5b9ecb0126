//! `/api/v1`: what operators can ask and do; and publishing over HTTP, which programs may too.

mod body;
mod control;
mod explain;
mod problem;
mod publish;
mod revocations;
mod sessions;

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, any, get, post};

pub use problem::Problem;

use super::gate::{self, Gate};
use super::serving::Peer;
use crate::audit::Event;
use crate::metrics;
use crate::session::Context;

/// What the API can do, for programs that read such descriptions.
pub const DOCUMENT: &str = include_str!("../../protocol/openapi.json");

/// Who changes something, as the audit log has it.
const BY: &str = "admin API";

/// The paths that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Who is here.
    Sessions,
    /// One of them.
    Session,
    /// Who is shut out.
    Revocations,
    /// A message for the broker.
    Publish,
    /// The configuration, read again.
    Reload,
    /// The end.
    Drain,
    /// The end, as it could be asked for before there was an API.
    OldDrain,
    /// The level of the log.
    LogLevel,
    /// Why?
    Explain,
    /// What all of this is.
    OpenApi,
    /// None of them.
    Unknown,
}

impl Route {
    /// All of them.
    pub const ALL: [Route; 11] = [
        Route::Sessions,
        Route::Session,
        Route::Revocations,
        Route::Publish,
        Route::Reload,
        Route::Drain,
        Route::OldDrain,
        Route::LogLevel,
        Route::Explain,
        Route::OpenApi,
        Route::Unknown,
    ];

    /// As it stands in a URL, what varies in braces.
    pub fn path(self) -> &'static str {
        match self {
            Route::Sessions => "/api/v1/sessions",
            Route::Session => "/api/v1/sessions/{id}",
            Route::Revocations => "/api/v1/revocations",
            Route::Publish => "/api/v1/publish",
            Route::Reload => "/api/v1/reload",
            Route::Drain => "/api/v1/drain",
            Route::OldDrain => "/drain",
            Route::LogLevel => "/api/v1/log-level",
            Route::Explain => "/api/v1/explain",
            Route::OpenApi => "/api/v1/openapi.json",
            Route::Unknown => "/api/{*rest}",
        }
    }

    /// As it stands in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Route::Sessions => "sessions",
            Route::Session => "session",
            Route::Revocations => "revocations",
            Route::Publish => "publish",
            Route::Reload => "reload",
            Route::Drain | Route::OldDrain => "drain",
            Route::LogLevel => "log_level",
            Route::Explain => "explain",
            Route::OpenApi => "openapi",
            Route::Unknown => "unknown",
        }
    }

    fn methods(self) -> MethodRouter<Arc<Context>> {
        match self {
            Route::Sessions => get(sessions::list),
            Route::Session => get(sessions::show).delete(sessions::kick),
            Route::Revocations => get(revocations::list).post(revocations::add).delete(revocations::remove),
            Route::Publish => post(publish::as_operator),
            Route::Reload => post(control::reload),
            Route::Drain | Route::OldDrain => post(control::drain),
            Route::LogLevel => get(control::log_level).put(control::set_log_level),
            Route::Explain => post(explain::answer),
            Route::OpenApi => get(document),
            Route::Unknown => any(unknown),
        }
    }
}

/// The routes for the admin listener, behind their gate.
pub fn routes(gate: Arc<Gate>, context: Arc<Context>) -> Router<Arc<Context>> {
    let routes =
        Route::ALL.into_iter().fold(Router::new(), |router, route| router.route(route.path(), route.methods()));
    routes
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state((gate, context), gate::guard))
        .layer(middleware::from_fn(count))
}

/// What there is of it on the listener for browsers.
pub fn public_routes() -> Router<Arc<Context>> {
    Router::new().route(Route::Publish.path(), post(publish::as_client)).method_not_allowed_fallback(not_allowed)
}

async fn count(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let is_asked = |route: &Route| path.as_ref().is_some_and(|path| path.as_str() == route.path());
    let route = Route::ALL.into_iter().find(is_asked).unwrap_or(Route::Unknown);
    let response = next.run(request).await;
    metrics::admin_request(route.name(), response.status().as_u16());
    response
}

async fn document() -> ([(header::HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)
}

async fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "There is nothing here: /api/v1/openapi.json says what there is.")
}

async fn not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "This can't be done here: the Allow header says what can.")
}

/// Has it recorded what an operator has done.
fn administered(context: &Context, peer: &Peer, what: &str) {
    context.audit.record(&Event::Administered { by: BY, address: peer.address, what });
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_description_has_every_path_that_there_is_and_no_other() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let mut described: Vec<_> = document["paths"].as_object().expect("paths").keys().cloned().collect();
        described.sort();
        let is_described = |route: &Route| *route != Route::Unknown && *route != Route::OldDrain;
        let mut routes: Vec<_> =
            Route::ALL.into_iter().filter(is_described).map(|route| route.path().to_owned()).collect();
        routes.sort();
        assert_eq!(described, routes);
    }
}
