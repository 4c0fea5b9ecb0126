//! `Strict-Transport-Security` (RFC 6797): browsers remember that they may come by TLS alone.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::Tls;

/// Says so with a response.
pub async fn hsts(State(tls): State<Arc<Tls>>, mut response: Response) -> Response {
    response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, tls.in_force.load().hsts.clone());
    response
}

/// Not for names below this one, which may be anybody's.
pub(super) fn value(max_age: u32) -> HeaderValue {
    HeaderValue::try_from(format!("max-age={max_age}")).expect("digits are fine in a header")
}
