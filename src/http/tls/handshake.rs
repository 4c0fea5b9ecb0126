//! How a connection begins where there is TLS: with a handshake, or without one.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::info;

use super::{InForce, PeerCertificate, Tls};
use crate::access::Reason;
use crate::http::connection::LINGER;
use crate::http::stream::{Stream, TLS_BUFFER, Tcp};
use crate::log::Seldom;
use crate::metrics::{self, Handshake};
use crate::session::turned_away;

/// The first byte of every handshake, and of no request (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 0x16;

/// A connection that has begun.
pub enum Begun {
    /// By TLS, and with the certificate of the client if it has shown one.
    Tls(Stream, Option<Arc<PeerCertificate>>),
    /// Without TLS.
    Plain(Stream),
}

/// Waits for the first byte and, if it begins one, for the handshake; nothing comes of one that fails or takes too long. Safe to drop
/// half-way.
pub async fn begin(tls: &Arc<Tls>, stream: TcpStream, address: IpAddr) -> Option<Begun> {
    let in_force = tls.in_force.load_full();
    match timeout(in_force.handshake_timeout, shake(tls, &in_force, stream)).await {
        Ok(Ok(begun)) => {
            match &begun {
                Begun::Tls(..) => metrics::tls_handshake(Handshake::Ok),
                Begun::Plain(_) => metrics::tls_handshake(Handshake::Plain),
            }
            Some(begun)
        }
        Ok(Err(Failure::Gone)) => None,
        Ok(Err(Failure::Handshake(error, tcp))) => {
            metrics::tls_handshake(Handshake::Failed);
            tell(&error, address);
            // The peer shall read what was wrong.
            let _ = timeout(LINGER, tcp.linger()).await;
            None
        }
        Err(_) => {
            metrics::tls_handshake(Handshake::Timeout);
            turned_away(Reason::HandshakeTimeout, Some(address));
            None
        }
    }
}

enum Failure {
    /// Nothing has come: a health check that looks whether the port is open, say.
    Gone,
    /// The handshake failed.
    Handshake(io::Error, Tcp),
}

async fn shake(tls: &Arc<Tls>, in_force: &InForce, stream: TcpStream) -> Result<Begun, Failure> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1..) if first == [HANDSHAKE] => {}
        Ok(1..) => return Ok(Begun::Plain(Stream::Plain(Tcp::new(stream)))),
        Ok(0) | Err(_) => return Err(Failure::Gone),
    }
    let acceptor = TlsAcceptor::from(in_force.server.clone());
    let accepting = acceptor.accept_with(Tcp::new(stream), |connection| connection.set_buffer_limit(Some(TLS_BUFFER)));
    let stream = accepting.into_fallible().await.map_err(|(error, tcp)| Failure::Handshake(error, tcp))?;
    let chain = stream.get_ref().1.peer_certificates();
    let certificate = chain.map(|chain| Arc::new(PeerCertificate { chain: chain.to_vec(), tls: tls.clone() }));
    Ok(Begun::Tls(Stream::Tls(Box::new(stream)), certificate))
}

/// Says why in the log, at most once a second.
fn tell(error: &io::Error, address: IpAddr) {
    static LINES: Seldom = Seldom::new();
    if let Some(unsaid) = LINES.pass(Instant::now()) {
        info!(%error, %address, unsaid, "a TLS handshake failed");
    }
}
