//! Where connections come from.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;
use tracing::debug;

use crate::access::Reason;
use crate::session::turned_away;

/// Between two tries to accept where the system gives no connection. It says at once that one waits, so without a pause this would spin.
const PAUSE: Duration = Duration::from_millis(200);

/// A TCP listener.
pub struct Listener(TcpListener);

impl Listener {
    /// Binds the address; so many connections may wait to be accepted.
    pub async fn bind(address: SocketAddr, backlog: NonZeroU32) -> io::Result<Listener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(backlog.get()).map(Listener)
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

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// How many clients are connected before one is not, while nobody accepts. On loopback they are connected at once or have to
    /// try again after a second.
    async fn waiting(backlog: u32) -> usize {
        let backlog = NonZeroU32::new(backlog).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), backlog).await.unwrap();
        let address = listener.address().unwrap();
        let mut clients = Vec::new();
        while let Ok(Ok(client)) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
            clients.push(client);
        }
        clients.len()
    }

    #[tokio::test]
    async fn as_many_connections_wait_as_the_backlog_says() {
        // Linux lets in one more than it is told.
        for backlog in [1, 8] {
            assert_eq!(waiting(backlog).await, backlog as usize + 1, "a backlog of {backlog}");
        }
    }
}
