//! A TCP connection to a broker that can be cut.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// So long is the wire: what is on it when it is cut is lost.
const DELAY: Duration = Duration::from_millis(8);

/// Passes connections on to a broker while it is whole.
pub struct WireCutter {
    pub port: u16,
    is_whole: watch::Sender<bool>,
}

impl WireCutter {
    pub async fn before(broker: u16) -> WireCutter {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (is_whole, state) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, broker, state.clone()));
            }
        });
        WireCutter { port, is_whole }
    }

    /// Breaks all connections, and each new one until it is mended.
    pub fn cut(&self) {
        self.is_whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.is_whole.send_replace(true);
    }
}

async fn pass(mut client: TcpStream, broker: u16, mut is_whole: watch::Receiver<bool>) {
    if !*is_whole.borrow_and_update() {
        return;
    }
    let Ok(mut broker) = TcpStream::connect(("127.0.0.1", broker)).await else { return };
    let _ = (client.set_nodelay(true), broker.set_nodelay(true));
    let ((from_client, to_client), (from_broker, to_broker)) = (client.split(), broker.split());
    tokio::select! {
        _ = one_way(from_client, to_broker) => {}
        _ = one_way(from_broker, to_client) => {}
        _ = is_whole.wait_for(|whole| !whole) => {}
    }
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        sleep(DELAY).await;
        to.write_all(&buffer[..count]).await?;
    }
}
