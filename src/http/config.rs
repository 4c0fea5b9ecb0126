//! The `[http]` section.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::units;

/// Where Tidegate listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where browsers connect: the console at `/`, the WebSocket at `/ws`, and `/healthz` and `/readyz`.
    #[serde(deserialize_with = "units::address")]
    pub listen: SocketAddr,
    /// Where operators look: `/metrics`, `/healthz` and `/readyz`. It asks for no credentials, so keep it private.
    #[serde(deserialize_with = "units::address")]
    pub admin_listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 8080).into(), admin_listen: (Ipv4Addr::LOCALHOST, 9464).into() }
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
        Ok(())
    }
}
