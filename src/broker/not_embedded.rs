//! What stands in for the embedded broker in a build without it.

use std::net::SocketAddr;

use super::transport::Target;

/// No packet goes to a broker that is not there.
pub const MAX_PACKET: usize = 1;

/// There is none.
#[derive(Debug)]
pub enum Embedded {}

/// The embedded broker was asked for.
#[derive(Debug, thiserror::Error)]
#[error("broker.url: this build has no embedded broker (feature `embedded-broker`); set mqtt://HOST[:PORT]")]
pub struct EmbeddedError;

impl Embedded {
    /// Says that this build can't.
    pub fn start(_: SocketAddr, _: bool) -> Result<Embedded, EmbeddedError> {
        Err(EmbeddedError)
    }

    /// Never called.
    pub fn address(&self) -> SocketAddr {
        match *self {}
    }

    /// Never called.
    pub(super) fn target(&self) -> Target {
        match *self {}
    }

    /// Never called.
    pub fn restart(&self) -> Result<(), EmbeddedError> {
        match *self {}
    }

    /// Never called.
    pub async fn probe(&self) -> Result<(), ProbeError> {
        match *self {}
    }
}

/// Why a probe failed; none does.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "there is none")]
pub enum ProbeError {
    #[error("never")]
    Broken {},
    #[error("never")]
    Silent {},
}
