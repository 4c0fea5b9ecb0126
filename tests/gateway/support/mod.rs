//! What scenes are made of: a broker, a gateway, browsers and devices, each the real thing.

mod browser;
mod device;
mod gateway;
mod mosquitto;
mod proxy;

pub use browser::Browser;
pub use device::Device;
pub use gateway::Gateway;
pub use mosquitto::Mosquitto;
pub use proxy::{Kind, Proxy, Way};

use std::net::TcpListener;
use std::time::Duration;

/// How long anything may take before a scene fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Polls until the claim holds.
pub async fn eventually(claim: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < until, "never: {claim}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
