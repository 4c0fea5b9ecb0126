//! What scenes are made of: a broker, a gateway, browsers and devices, each the real thing.

pub mod api;
mod browser;
pub mod certificates;
mod device;
mod gateway;
mod mosquitto;
pub mod paho;
mod proxy;
pub mod raw;
pub mod scripted;

pub use browser::Browser;
pub use device::Device;
pub use gateway::Gateway;
pub use mosquitto::Mosquitto;
pub use proxy::{Kind, Proxy, Way};

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

/// How long anything may take before a scene fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A connection, by TLS or not.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A port for a server that is started later, and perhaps again: below those that the system hands out by itself, each only once.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id() * 97 + TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (number % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A TCP connection from one of the addresses of this machine, 127.0.0.2 say, to another.
pub async fn dial(from: [u8; 4], to: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("an address of this machine");
    socket.connect(to.parse().expect("an address")).await.expect("it listens")
}

/// Polls until the claim holds.
pub async fn eventually(claim: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < until, "never: {claim}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
