//! `/healthz`: alive. `/readyz`: able to serve. Both answer in JSON.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::broker::Standing;
use crate::session::Context;

/// The routes, for both listeners.
pub fn routes() -> Router<Arc<Context>> {
    Router::new().route("/healthz", get(|| async { Json(json!({"status": "ok"})) })).route("/readyz", get(ready))
}

async fn ready(State(context): State<Arc<Context>>) -> (StatusCode, Json<Value>) {
    let broker = context.broker.reach().standing();
    let draining = context.drain.is_announced();
    let overloaded = context.overload.is_overloaded();
    let (code, status) = match broker == Standing::Up && !draining && !overloaded {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    (code, Json(json!({"status": status, "broker": broker.name(), "draining": draining, "overloaded": overloaded})))
}
