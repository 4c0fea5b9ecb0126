//! The doors: the listener for browsers and the one for operators. The only place that knows axum.

mod config;
mod console;
mod drain;
mod health;
mod listener;
mod ws;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::{any, get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use listener::Listener;

use crate::metrics;
use crate::session::Context;

/// Serves browsers until `closing`.
pub async fn serve(listener: Listener, context: Arc<Context>, closing: CancellationToken) -> io::Result<()> {
    let router = Router::new().route("/ws", any(ws::upgrade)).merge(console::routes()).merge(health::routes());
    #[cfg(test)]
    let router = router.route("/echo", any(ws::echo));
    let router = router.with_state(context);
    serve_router(listener, router, closing).await
}

/// Serves operators until `closing`.
pub async fn serve_admin(
    listener: Listener,
    context: Arc<Context>,
    page: PrometheusHandle,
    closing: CancellationToken,
) -> io::Result<()> {
    let render = move || {
        let page = metrics::render(&page);
        std::future::ready(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page))
    };
    let router =
        Router::new().route("/metrics", get(render)).merge(health::routes()).merge(drain::routes()).with_state(context);
    serve_router(listener, router, closing).await
}

async fn serve_router(listener: Listener, router: Router, closing: CancellationToken) -> io::Result<()> {
    let service = router.into_make_service_with_connect_info::<listener::Peer>();
    axum::serve(listener, service).with_graceful_shutdown(closing.cancelled_owned()).await
}

/// Opens a listener; the error names the setting.
pub async fn listen(setting: &'static str, address: SocketAddr) -> Result<Listener, ListenError> {
    Listener::bind(address).await.map_err(|error| ListenError { setting, address, error })
}

/// An address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: can't listen on {address}: {error}; choose another address or end what holds it")]
pub struct ListenError {
    setting: &'static str,
    address: SocketAddr,
    error: io::Error,
}
