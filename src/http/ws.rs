//! `/ws`: who is let in, and the session that begins.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use rand::Rng;

use super::connection::Phase;
use super::credentials::Shown;
use super::serving::Peer;
use super::unfinished::{Share, Unfinished};
use super::websocket::{Handshake, WebSocket};
use crate::access::{Network, Origin, Page, Reason, addresses};
use crate::session::{self, Arrival, Context, Vouching, turned_away};
use crate::wire::negotiate::negotiate;

/// Agrees on a subprotocol and starts the session. It is for the session to say that there is no place for it: browsers can't see
/// an HTTP status.
pub async fn upgrade(
    State(context): State<Arc<Context>>,
    Extension(trusted_proxies): Extension<Arc<[Network]>>,
    Extension(peer): Extension<Peer>,
    Extension(unfinished): Extension<Arc<Unfinished>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    handshake: Handshake,
) -> Response {
    if let Some(reason) = reason_to_shed(&context) {
        turned_away(reason, Some(peer.address));
        return shed(reason);
    }
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let agreed = match negotiate(offered) {
        Ok(agreed) => agreed,
        Err(text) => return (StatusCode::BAD_REQUEST, text).into_response(),
    };
    if context.closing.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "The gateway is going away; connect again later.\n").into_response();
    }
    let settings = context.settings.load_full();
    let client = client(&peer, &headers, &trusted_proxies);
    let page = page(&peer, &headers, &settings.doors.allowed_origins);
    if page == Page::Foreign && !settings.doors.allowed_origins.is_empty() {
        turned_away(Reason::AllowedOrigins, Some(client));
        return (StatusCode::FORBIDDEN, format!("{}\n", Reason::AllowedOrigins.sentence())).into_response();
    }
    let certificate = peer.certificate.as_deref();
    let shown = Shown { headers: &headers, bearer: agreed.bearer, query: query.as_deref(), certificate, page };
    let credential = shown.credential(&settings.doors);
    let pass = context.entrance.arrive(client);
    if let Err(reason) = pass {
        turned_away(reason, Some(client));
    }
    let vouching =
        peer.certificate.clone().map(|certificate| -> Vouching { Arc::new(move || certificate.is_trusted()) });
    let arrival = Box::new(Arrival { credential, vouching, client, pass, newcomer: Some(peer.newcomer) });
    let share = Share::new(unfinished, settings.wire.max_unfinished_bytes.get());
    let task = context.tasks.token();
    handshake.accept(agreed.subprotocol, move |connection, begun| {
        peer.wire.set_phase(Phase::Session);
        let socket = WebSocket::new(connection, begun, settings.wire.max_frame.get(), share);
        session::run(socket, context, settings, arrival).map(move |()| drop(task))
    })
}

/// Sends every message back: the WebSocket without a session, for what judges WebSockets by themselves. Only tests have it.
#[cfg(test)]
pub async fn echo(State(context): State<Arc<Context>>, handshake: Handshake) -> Response {
    use std::future::poll_fn;

    use super::websocket::frame::{Event, Opcode};

    let max_frame = context.settings.load().wire.max_frame.get();
    handshake.accept(None, async move |connection, begun| {
        let mut socket = WebSocket::new(connection, begun, max_frame, Share::new(Arc::default(), usize::MAX));
        while let Some(read) = poll_fn(|context| socket.poll_event(context)).await {
            match read {
                Ok(Event::Text(text)) => socket.send(Opcode::Text, &[text.as_ref().as_bytes()]),
                Ok(Event::Binary(bytes)) => socket.send(Opcode::Binary, &[&bytes]),
                Ok(Event::Ping(_) | Event::Pong | Event::Close(_)) => {}
                Err(close) => socket.send_close(close),
            }
            if poll_fn(|context| socket.poll_write(context)).await.is_err() {
                return;
            }
        }
    })
}

/// Whose page asks, if one does.
pub fn page(peer: &Peer, headers: &HeaderMap, allowed: &[Origin]) -> Page {
    let origins = headers.get_all(header::ORIGIN).iter().map(|origin| origin.as_bytes());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    Page::of(origins, host, peer.is_secure, allowed)
}

/// Whom the request comes from, behind the proxies that are trusted.
pub fn client(peer: &Peer, headers: &HeaderMap, trusted_proxies: &[Network]) -> IpAddr {
    // What is no text is no address either.
    let values = headers.get_all("x-forwarded-for").iter().rev().map(|value| value.to_str().unwrap_or_default());
    addresses::client(peer.address, values.flat_map(|value| value.rsplit(',')), trusted_proxies)
}

/// Why nobody is let in for the moment, whoever it is.
fn reason_to_shed(context: &Context) -> Option<Reason> {
    if context.overload.is_overloaded() {
        return Some(Reason::MaxStall);
    }
    context.audit.refuses_sessions().then_some(Reason::WhenFull)
}

/// Turns a newcomer away at once. Those who were turned away together are told to come back one after the other.
fn shed(reason: Reason) -> Response {
    let headers =
        [(header::RETRY_AFTER, rand::rng().random_range(2..=10).to_string()), (header::CONNECTION, "close".to_owned())];
    let text = format!("{}\n", reason.refusal().message);
    (StatusCode::SERVICE_UNAVAILABLE, headers, text).into_response()
}
