//! `POST /drain` on the admin listener: the gateway is asked to end, as by SIGTERM.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::json;
use tracing::info;

use crate::session::Context;

/// The route, for the admin listener alone.
pub fn routes() -> Router<Arc<Context>> {
    Router::new().route("/drain", post(drain))
}

async fn drain(State(context): State<Arc<Context>>, headers: HeaderMap) -> Response {
    // No credentials are asked for here, and a page in an operator's browser can reach what the operator can.
    if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
        return (StatusCode::FORBIDDEN, "Browsers may not do this: ask with a program such as curl.\n").into_response();
    }
    info!("an operator asks for the end");
    context.drain.announce();
    (StatusCode::ACCEPTED, Json(json!({"status": "draining"}))).into_response()
}
