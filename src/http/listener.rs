//! Where connections come from.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;
use tracing::debug;

use crate::access::Reason;
use crate::session::turned_away;

/// Connections that wait to be accepted: a whole floor of browsers may come back at one time.
const BACKLOG: u32 = 4096;
/// Between two tries to accept where the system gives no connection. It says at once that one waits, so without a pause this would spin.
const PAUSE: Duration = Duration::from_millis(200);

/// A TCP listener.
pub struct Listener(TcpListener);

impl Listener {
    /// Binds the address.
    pub async fn bind(address: SocketAddr) -> io::Result<Listener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG).map(Listener)
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The next connection, however long it takes. Safe to drop half-way.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => {
                    let _ = stream.set_nodelay(true);
                    return (stream, address);
                }
                Err(error) if is_peers(&error) => {}
                Err(error) => {
                    debug!(%error, "no connection can be accepted");
                    turned_away(Reason::Accept, None);
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// The peer went away before it was accepted.
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
