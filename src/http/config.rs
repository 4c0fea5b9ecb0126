//! The `[http]` section.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::{Network, Origin};
use crate::units;

/// A browser's request has a head of several hundred bytes.
const LEAST_HEADER: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Where Tidegate listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where browsers connect: the console at `/`, the WebSocket at `/ws`, and `/healthz` and `/readyz`.
    #[serde(deserialize_with = "units::address")]
    pub listen: SocketAddr,
    /// Where operators look: `/metrics`, `/healthz` and `/readyz`, for which it asks no credentials, so keep it private; and the admin
    /// API, for which see `[admin]`.
    #[serde(deserialize_with = "units::address")]
    pub admin_listen: SocketAddr,
    /// How long the head of a request may take, and how long a connection may be idle between two requests.
    #[serde(with = "units::seconds")]
    pub header_timeout: Duration,
    /// The largest head of a request, in bytes.
    #[serde(deserialize_with = "units::count")]
    pub max_header: NonZeroUsize,
    /// The most connections that wait to be accepted; Linux makes it `net.core.somaxconn` if that is lower.
    #[serde(deserialize_with = "units::count")]
    pub backlog: NonZeroU32,
    /// The proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// The origins whose pages may connect, beside the gateway's own; without any, pages of all origins may.
    pub allowed_origins: Vec<Origin>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            admin_listen: (Ipv4Addr::LOCALHOST, 9464).into(),
            header_timeout: Duration::from_secs(10),
            max_header: const { NonZeroUsize::new(16 << 10).unwrap() },
            backlog: const { NonZeroU32::new(4096).unwrap() },
            trusted_proxies: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}

impl Config {
    /// Judges the settings together; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.listen == self.admin_listen && self.listen.port() != 0 {
            return Err(format!(
                "http.listen and http.admin_listen are both {}: give each a port of its own",
                self.listen
            ));
        }
        if self.max_header < LEAST_HEADER {
            return Err(format!(
                "http.max_header is {}: browsers send heads of several hundred bytes, so allow {LEAST_HEADER} or more",
                self.max_header
            ));
        }
        Ok(())
    }
}
