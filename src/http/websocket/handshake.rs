//! The opening handshake (RFC 6455 section 4.2), after which the connection is the WebSocket's.

use std::future::Future;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::BytesMut;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};

use crate::http::connection::Connection;

/// What a server shows that it has understood the client's key with.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A request for a WebSocket that keeps to the rules.
pub struct Handshake {
    key: HeaderValue,
    upgrade: OnUpgrade,
}

impl<S: Sync> FromRequestParts<S> for Handshake {
    type Rejection = (StatusCode, [(HeaderName, &'static str); 1], &'static str);

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Handshake, Self::Rejection> {
        let has = |name: HeaderName, wanted: &str| {
            let values = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
        };
        let wrong = if parts.method != Method::GET {
            Some((StatusCode::METHOD_NOT_ALLOWED, "A WebSocket begins with GET.\n"))
        } else if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
            Some((StatusCode::BAD_REQUEST, "Only WebSockets are served here.\n"))
        } else if !has(header::SEC_WEBSOCKET_VERSION, "13") {
            Some((StatusCode::UPGRADE_REQUIRED, "Only version 13 of the WebSocket protocol is served here.\n"))
        } else {
            None
        };
        let answer = |(status, text)| (status, [(header::SEC_WEBSOCKET_VERSION, "13")], text);
        if let Some(wrong) = wrong {
            return Err(answer(wrong));
        }
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
        let key = key.ok_or_else(|| answer((StatusCode::BAD_REQUEST, "A WebSocket needs a Sec-WebSocket-Key.\n")))?;
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let upgrade = upgrade.ok_or_else(|| answer((StatusCode::UPGRADE_REQUIRED, "A WebSocket needs HTTP/1.1.\n")))?;
        Ok(Handshake { key, upgrade })
    }
}

impl Handshake {
    /// The answer. Once it is written, the connection is served, with what the client has sent already.
    pub fn accept<F>(
        self,
        subprotocol: Option<&'static str>,
        serve: impl FnOnce(Connection, BytesMut) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Handshake { key, upgrade } = self;
        let accepted = accepted(key.as_bytes());
        tokio::spawn(async move {
            // What is held here is held as long as the connection: the call's result and nothing else.
            let Some((connection, begun)) = upgrade.await.ok().and_then(taken) else { return };
            serve(connection, begun).await;
        });
        let mut response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, accepted);
        if let Some(subprotocol) = subprotocol {
            response = response.header(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
        }
        response.body(Body::empty()).expect("the headers are valid")
    }
}

/// The connection, and what was read of it already.
fn taken(upgraded: Upgraded) -> Option<(Connection, BytesMut)> {
    let Parts { io, read_buf, .. } = upgraded.downcast::<TokioIo<Connection>>().ok()?;
    // That is all of hyper's buffer, however little is in it.
    Some((io.into_inner(), BytesMut::from(&read_buf[..])))
}

fn accepted(key: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_in_the_example_of_the_rfc() {
        assert_eq!(accepted(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
