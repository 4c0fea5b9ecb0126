//! `/ws`: the upgrade, and axum's WebSocket as a session sees it.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Sink, Stream};
use rand::Rng;
use tungstenite::error::{CapacityError, Error as WsError};

use super::connection::{Phase, Wire};
use super::serving::Peer;
use super::unfinished::{Share, Unfinished};
use crate::access::{Network, Reason, addresses};
use crate::session::{self, Arrival, Context, Inbound, Outbound, Socket, turned_away};
use crate::wire::negotiate::negotiate;
use crate::wire::{self, Close};

/// Small, so that an idle session is; a larger frame makes them grow.
const READ_BUFFER: usize = 2048;
const WRITE_BUFFER: usize = 16 * 1024;

/// Agrees on a subprotocol and starts the session. It is for the session to say that there is no place for it: browsers can't see
/// an HTTP status.
pub async fn upgrade(
    State(context): State<Arc<Context>>,
    Extension(trusted_proxies): Extension<Arc<[Network]>>,
    Extension(peer): Extension<Peer>,
    Extension(unfinished): Extension<Arc<Unfinished>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if context.overload.is_overloaded() {
        turned_away(Reason::MaxStall, Some(peer.address));
        return shed();
    }
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let agreed = match negotiate(offered) {
        Ok(agreed) => agreed,
        Err(text) => return (StatusCode::BAD_REQUEST, text).into_response(),
    };
    if context.closing.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "The gateway is going away; connect again later.\n").into_response();
    }
    let has_credential = agreed.has_bearer || headers.get(header::AUTHORIZATION).is_some_and(is_bearer);
    let client = client(&peer, &headers, &trusted_proxies);
    let pass = context.entrance.arrive(client);
    if let Err(reason) = pass {
        turned_away(reason, Some(client));
    }
    let arrival = Arrival { has_credential, client, pass, newcomer: Some(peer.newcomer) };
    let settings = context.settings.load_full();
    let share = Share::new(unfinished, settings.wire.max_unfinished_bytes.get());
    let task = context.tasks.token();
    fitted(upgrade, agreed.subprotocol, &settings.wire).on_upgrade(async move |socket| {
        let wire = peer.wire;
        wire.set_phase(Phase::Session);
        let socket = AxumSocket { socket, finished: wire.read(), wire, share };
        session::run(socket, context, settings, arrival).await;
        drop(task);
    })
}

/// With our subprotocol, buffers and limits.
fn fitted(upgrade: WebSocketUpgrade, subprotocol: Option<&'static str>, limits: &wire::Config) -> WebSocketUpgrade {
    let max_frame = limits.max_frame.get();
    upgrade
        .protocols(subprotocol)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(max_frame)
        .max_frame_size(max_frame)
}

/// Sends every message back: the WebSocket without a session, for what judges WebSockets by themselves. Only tests have it.
#[cfg(test)]
pub async fn echo(State(context): State<Arc<Context>>, upgrade: WebSocketUpgrade) -> Response {
    let settings = context.settings.load_full();
    fitted(upgrade, None, &settings.wire).on_upgrade(async |mut socket| {
        while let Some(read) = socket.recv().await {
            let answer = match read {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => message,
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => continue,
                Err(error) => close_message(close_of(error)),
            };
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    })
}

/// Whom the request comes from, behind the proxies that are trusted.
fn client(peer: &Peer, headers: &HeaderMap, trusted_proxies: &[Network]) -> IpAddr {
    // What is no text is no address either.
    let values = headers.get_all("x-forwarded-for").iter().rev().map(|value| value.to_str().unwrap_or_default());
    addresses::client(peer.address, values.flat_map(|value| value.rsplit(',')), trusted_proxies)
}

/// Turns a newcomer away at once. Those who were turned away together are told to come back one after the other.
fn shed() -> Response {
    let headers =
        [(header::RETRY_AFTER, rand::rng().random_range(2..=10).to_string()), (header::CONNECTION, "close".to_owned())];
    let text = "The gateway is too busy to take one more; connect again later.\n";
    (StatusCode::SERVICE_UNAVAILABLE, headers, text).into_response()
}

fn is_bearer(value: &axum::http::HeaderValue) -> bool {
    value.as_bytes().get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
}

struct AxumSocket {
    socket: WebSocket,
    wire: Arc<Wire>,
    /// Of the bytes that have come, those that belong to whole messages, give or take a read buffer.
    finished: u64,
    share: Share,
}

/// axum's text, as text.
struct Text(Utf8Bytes);

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self.0.as_str()
    }
}

impl Socket for AxumSocket {
    type Text = Text;

    fn written(&self) -> u64 {
        self.wire.written()
    }
}

impl Stream for AxumSocket {
    type Item = Result<Inbound<Text>, Close>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let Poll::Ready(read) = Pin::new(&mut self.socket).poll_next(context) else {
            let unfinished = self.wire.read().saturating_sub(self.finished);
            return match self.share.hold(unfinished, context.waker()) {
                Ok(()) => Poll::Pending,
                Err(close) => Poll::Ready(Some(Err(close))),
            };
        };
        Poll::Ready(read.map(|read| match read {
            Ok(Message::Text(text)) => {
                self.finish();
                Ok(Inbound::Text(Text(text)))
            }
            Ok(Message::Binary(_)) => Ok(Inbound::Binary),
            // These may come in the middle of a message.
            Ok(Message::Ping(bytes)) => {
                self.finished += control_frame(&bytes);
                Ok(Inbound::Ping(bytes.len()))
            }
            Ok(Message::Pong(bytes)) => {
                self.finished += control_frame(&bytes);
                Ok(Inbound::Pong)
            }
            Ok(Message::Close(_)) => Ok(Inbound::Close),
            Err(error) => Err(close_of(error)),
        }))
    }
}

impl AxumSocket {
    /// A message is whole.
    fn finish(&mut self) {
        self.finished = self.wire.read();
        self.share.release();
    }
}

/// What a control frame of a client takes on the wire: a head of two bytes and a mask of four stand before its own.
fn control_frame(bytes: &Bytes) -> u64 {
    6 + bytes.len() as u64
}

impl Sink<Outbound> for AxumSocket {
    type Error = Close;

    fn poll_ready(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Result<(), Close>> {
        Pin::new(&mut self.socket).poll_ready(context).map_err(close_of)
    }

    fn start_send(mut self: Pin<&mut Self>, frame: Outbound) -> Result<(), Close> {
        let message = match frame {
            Outbound::Text(text) => Message::Text(text.into()),
            Outbound::Ping => Message::Ping(Bytes::new()),
            Outbound::Close(close) => close_message(close),
        };
        Pin::new(&mut self.socket).start_send(message).map_err(close_of)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Result<(), Close>> {
        Pin::new(&mut self.socket).poll_flush(context).map_err(close_of)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Result<(), Close>> {
        Pin::new(&mut self.socket).poll_close(context).map_err(close_of)
    }
}

fn close_message(close: Close) -> Message {
    Message::Close(Some(CloseFrame { code: close.code(), reason: close.reason().into() }))
}

/// What a WebSocket error means for the session.
fn close_of(error: axum::Error) -> Close {
    match error.into_inner().downcast_ref::<WsError>() {
        Some(WsError::Capacity(CapacityError::MessageTooLong { .. })) => Close::FrameTooLarge,
        Some(WsError::Utf8(_)) => Close::InvalidUtf8,
        Some(WsError::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => Close::Lost,
        Some(WsError::Protocol(_)) => Close::ProtocolError,
        _ => Close::Lost,
    }
}
