//! The doors: the listener for browsers and the one for operators. The only place that knows axum and hyper.

mod admin_config;
mod api;
mod config;
mod connection;
mod console;
mod credentials;
mod gate;
mod health;
mod listener;
mod serving;
mod stream;
mod tls;
mod unfinished;
pub mod websocket;
mod ws;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::http::header;
use axum::middleware::map_response_with_state;
use axum::routing::{any, get};
use axum::{Extension, Router};
use metrics_exporter_prometheus::PrometheusHandle;

pub use admin_config::AdminConfig;
pub use config::Config;
pub use gate::Gate;
pub use listener::Listener;
pub use serving::Terms;
pub use tls::{Config as TlsConfig, PeerCertificate, Tls, TlsError};

use unfinished::Unfinished;

use crate::access::Network;
use crate::metrics;
use crate::session::Context;

/// Serves browsers until the drain.
pub async fn serve(listener: Listener, terms: Terms) {
    let trusted_proxies: Arc<[Network]> = terms.config.trusted_proxies.as_slice().into();
    let router = Router::new()
        .route("/ws", any(ws::upgrade))
        .merge(api::public_routes())
        .layer(Extension(trusted_proxies))
        .layer(Extension(Arc::<Unfinished>::default()))
        .merge(console::routes())
        .merge(health::routes());
    #[cfg(test)]
    let router = router.route("/echo", any(ws::echo));
    serve_router(listener, router, terms).await;
}

/// Serves operators until the drain: metrics and health to whoever asks, all else behind the gate.
pub async fn serve_admin(listener: Listener, page: PrometheusHandle, gate: Arc<Gate>, terms: Terms) {
    let render = move || {
        let page = metrics::render(&page);
        std::future::ready(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page))
    };
    let router = Router::new()
        .route("/metrics", get(render))
        .merge(health::routes())
        .merge(api::routes(gate, terms.context.clone()));
    serve_router(listener, router, terms).await;
}

async fn serve_router(listener: Listener, router: Router<Arc<Context>>, terms: Terms) {
    let router = match &terms.tls {
        Some(tls) => router.layer(map_response_with_state(tls.clone(), tls::hsts)),
        None => router,
    };
    serving::serve(listener, router.with_state(terms.context.clone()), terms).await;
}

/// Opens a listener; the error names the setting.
pub async fn listen(setting: &'static str, address: SocketAddr, backlog: NonZeroU32) -> Result<Listener, ListenError> {
    Listener::bind(address, backlog).await.map_err(|error| ListenError { setting, address, error })
}

/// An address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: can't listen on {address}: {error}; choose another address or end what holds it")]
pub struct ListenError {
    setting: &'static str,
    address: SocketAddr,
    error: io::Error,
}
