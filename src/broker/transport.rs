//! The byte stream to the broker: TCP, TLS over it, or a Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Config;

/// Any stream that carries MQTT.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where the broker is and how to get there.
#[derive(Clone)]
pub struct Target {
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    end: Option<CancellationToken>,
}

#[derive(Clone)]
enum Address {
    Tcp {
        host: String,
        port: u16,
    },
    /// So many try at a time, the others wait for their turn.
    Unix {
        path: PathBuf,
        trying: Arc<Semaphore>,
    },
}

/// Connections to one Unix socket that are tried at a time.
const MOST_TRYING: usize = 64;
/// How long one waits for a place in the listener's queue before it is tried again.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// The TLS settings of the broker can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that holds no PEM.
    #[error("broker.{setting}: {} holds no usable PEM: {error}", path.display())]
    Pem {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: rustls::pki_types::pem::Error,
    },
    /// The private key.
    #[error("broker.client_key holds no usable PEM key: {0}")]
    Key(rustls::pki_types::pem::Error),
    /// Key and certificate don't belong together, or a root is none.
    #[error("the broker's TLS settings don't fit together: {0}")]
    Tls(#[from] rustls::Error),
    /// The name can't stand in a certificate.
    #[error("broker.url: {0} can't be verified as the name of a TLS server")]
    Name(String),
}

impl Target {
    /// A broker without TLS.
    pub fn plain(host: String, port: u16) -> Target {
        Target { address: Address::Tcp { host, port }, tls: None, end: None }
    }

    /// A broker on this machine, by the path of its socket.
    pub fn unix(path: PathBuf) -> Target {
        let address = Address::Unix { path, trying: Arc::new(Semaphore::new(MOST_TRYING)) };
        Target { address, tls: None, end: None }
    }

    /// A broker with TLS, as the configuration wants it.
    pub fn tls(host: String, port: u16, config: &Config) -> Result<Target, TlsError> {
        let name = ServerName::try_from(host.clone()).map_err(|_| TlsError::Name(host.clone()))?;
        let connector = TlsConnector::from(Arc::new(client_config(config)?));
        Ok(Target { address: Address::Tcp { host, port }, tls: Some((connector, name)), end: None })
    }

    /// A broker that may end without its streams: they break when this is cancelled.
    pub fn until(self, end: CancellationToken) -> Target {
        Target { end: Some(end), ..self }
    }

    /// Opens a stream.
    pub async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (host, port) = match &self.address {
            Address::Tcp { host, port } => (host.as_str(), *port),
            Address::Unix { path, trying } => return Ok(Box::new(connect_unix(path, trying).await?)),
        };
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(match &self.end {
                // A token of its own, as all streams waiting on one would wait for its lock with every packet.
                Some(end) => Box::new(Mortal { stream, end: Box::pin(end.child_token().cancelled_owned()) }),
                None => Box::new(stream),
            }),
            Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), stream).await?)),
        }
    }
}

/// TCP has connections wait, one behind the other, where the listener's queue is full; a Unix socket turns them away at once
/// (connect(2), EAGAIN).
async fn connect_unix(path: &Path, trying: &Semaphore) -> io::Result<UnixStream> {
    let _turn = trying.acquire().await.map_err(io::Error::other)?;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_FULL).await,
            done => return done,
        }
    }
}

/// A stream that breaks when its broker is given up.
struct Mortal {
    stream: TcpStream,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Mortal {
    fn is_alive(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the broker was given up")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Mortal {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.is_alive(context)?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    /// Who does not read at the time learns of the end here.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_alive(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn client_config(config: &Config) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder();
    let builder = match &config.ca_file {
        None => builder.with_platform_verifier()?,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("ca_file", path)? {
                roots.add(certificate)?;
            }
            builder.with_root_certificates(roots)
        }
    };
    match (&config.client_certificate_file, &config.client_key) {
        (Some(path), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes()).map_err(TlsError::Key)?;
            Ok(builder.with_client_auth_cert(certificates("client_certificate_file", path)?, key)?)
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => {
            Err(TlsError::Pem { setting, path: path.to_owned(), error: rustls::pki_types::pem::Error::NoItemsFound })
        }
        Err(error) => Err(TlsError::Pem { setting, path: path.to_owned(), error }),
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use futures_util::future::try_join_all;
    use socket2::{Domain, SockAddr, Socket, Type};
    use tempfile::TempDir;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_socket_whose_queue_is_full_is_waited_for() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("mqtt.sock");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        socket.bind(&SockAddr::unix(&path).expect("it fits")).expect("bound");
        socket.listen(1).expect("it listens");
        let target = Target::unix(path);
        let connections =
            tokio::spawn(async move { try_join_all((0..MOST_TRYING + 10).map(|_| target.connect())).await.map(drop) });
        while !connections.is_finished() {
            yield_now().await;
            let listener = UnixListener::from(socket.try_clone().expect("a descriptor"));
            listener.set_nonblocking(true).expect("set");
            // One at a time, so that most find the queue full.
            let _ = listener.accept();
            sleep(QUEUE_FULL).await;
        }
        connections.await.expect("no panic").expect("all are let in");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_no_full_queue() {
        let folder = TempDir::new().expect("a folder");
        let error = Target::unix(folder.path().join("mqtt.sock")).connect().await.err().expect("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
