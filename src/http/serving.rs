//! The accept loop, and each connection until it ends or a session takes it over.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::select;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Config;
use super::connection::{Connection, Phase, Wire};
use super::listener::Listener;
use super::stream::{Stream, Tcp};
use super::tls::{self, Begun, PeerCertificate, Tls};
use crate::access::Reason;
use crate::session::{Context, Lobby, Newcomer, turned_away};

/// hyper takes no smaller buffer; the limit of a head is a setting of its own.
const LEAST_BUFFER: usize = 8192;
/// How long what is in hand at the drain may still take.
const CLOSING: Duration = Duration::from_secs(2);

/// How connections are served.
pub struct Terms {
    /// How long a request may take to come, and to be how large.
    pub config: Config,
    /// With which certificate, where there is TLS.
    pub tls: Option<Arc<Tls>>,
    /// What all sessions share; it also says how long a peer may read nothing of a response.
    pub context: Arc<Context>,
    /// Where connections wait that have said nothing.
    pub lobby: Arc<Lobby>,
    /// Every connection of the listener is among them.
    pub tasks: TaskTracker,
    /// The ends of connections: who waits for them says goodbye to peers that read slowly.
    pub lingering: TaskTracker,
    /// The listener's end.
    pub closing: CancellationToken,
}

/// What a handler knows of its connection.
#[derive(Clone)]
pub struct Peer {
    /// What it writes.
    pub wire: Arc<Wire>,
    /// The address at the other end.
    pub address: IpAddr,
    /// Its place among those who have said nothing, kept as long as anybody has this.
    pub newcomer: Arc<Newcomer>,
    /// It came by TLS.
    pub is_secure: bool,
    /// The certificate that it has shown, which was believed then.
    #[allow(dead_code, reason = "for whoever asks who the client is")]
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// What a listener serves, and how.
struct Serving {
    router: Router,
    /// For those who come without TLS where there is TLS.
    unencrypted: Router,
    terms: Terms,
}

/// Accepts connections, and serves each in a task of its own, until the drain.
pub async fn serve(listener: Listener, router: Router, terms: Terms) {
    let unencrypted = terms.tls.clone().map_or_else(Router::new, tls::unencrypted);
    let serving = Arc::new(Serving { router, unencrypted, terms });
    loop {
        let (stream, address) = select! {
            biased;
            () = serving.terms.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        serving.terms.tasks.spawn(serve_connection(stream, address, serving.clone()));
    }
}

async fn serve_connection(stream: TcpStream, address: SocketAddr, serving: Arc<Serving>) {
    let Serving { router, unencrypted, terms } = &*serving;
    let address = address.ip().to_canonical();
    let newcomer = Arc::new(terms.lobby.enter(address));
    let begun = match &terms.tls {
        None => Some((Stream::Plain(Tcp::new(stream)), None, router)),
        Some(tls) => select! {
            // In a box, as connections without TLS shall not be larger for it.
            begun = Box::pin(tls::begin(tls, stream, address)) => begun.map(|begun| match begun {
                Begun::Tls(stream, certificate) => (stream, certificate, router),
                Begun::Plain(stream) => (stream, None, unencrypted),
            }),
            () = newcomer.let_go() => return,
            () = terms.closing.cancelled() => return,
        },
    };
    let Some((stream, certificate, router)) = begun else { return };
    let is_secure = matches!(stream, Stream::Tls(..));
    let write_timeout = terms.context.settings.load().session.write_timeout;
    let connection = Connection::new(stream, write_timeout, terms.lingering.clone());
    let wire = connection.wire();
    let peer = Peer { wire: wire.clone(), address, newcomer: newcomer.clone(), is_secure, certificate };
    let service = service(router.clone(), peer);
    let max_header = terms.config.max_header.get();
    let serving = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(terms.config.header_timeout)
        .max_header_size(max_header)
        .max_buf_size(max_header.max(LEAST_BUFFER))
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    let mut serving = pin!(serving);
    let served = select! {
        served = serving.as_mut() => served,
        () = newcomer.let_go() => return wire.set_phase(Phase::Cut),
        () = terms.closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            timeout(CLOSING, serving).await.unwrap_or_else(|_| {
                wire.set_phase(Phase::Cut);
                Ok(())
            })
        }
    };
    if let Err(error) = served
        && let Some(reason) = reason(&error, &wire)
    {
        turned_away(reason, Some(address));
    }
}

/// The router, told of the connection with each request.
fn service(
    router: Router,
    peer: Peer,
) -> impl Service<
    Request<Incoming>,
    Response = Response<axum::body::Body>,
    Error = std::convert::Infallible,
    Future: Send + 'static,
> {
    let router = TowerToHyperService::new(router);
    service_fn(move |mut request: Request<Incoming>| {
        peer.wire.set_phase(Phase::Http);
        request.extensions_mut().insert(peer.clone());
        router.call(request)
    })
}

/// Why a connection failed, where that was our doing.
fn reason(error: &hyper::Error, wire: &Wire) -> Option<Reason> {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    if cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut) {
        Some(Reason::WriteTimeout)
    } else if error.is_parse_too_large() {
        Some(Reason::MaxHeader)
    } else if error.is_timeout() && wire.is(Phase::New) {
        Some(Reason::HeaderTimeout)
    } else {
        // Among others a connection that was idle after a request.
        None
    }
}
