//! The `[connections]` section.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units;

/// How many connections there may be, and what happens to those over it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The most WebSocket connections in all; more of them wait in a queue.
    #[serde(deserialize_with = "units::count")]
    pub max: NonZeroUsize,
    /// The most WebSocket connections of one address: of IPv6, one network of 64 bits.
    #[serde(deserialize_with = "units::count")]
    pub max_per_address: NonZeroUsize,
    /// The most new WebSocket connections of one address a second; ten seconds' worth may come at once.
    #[serde(deserialize_with = "units::count")]
    pub max_new_per_second: NonZeroU32,
    /// The most WebSocket connections that wait for a place.
    #[serde(deserialize_with = "units::count")]
    pub max_queued: NonZeroUsize,
    /// How long one waits for a place.
    #[serde(with = "units::seconds")]
    pub queue_timeout: Duration,
    /// The most connections, of any kind, that have sent no frame yet; over it the oldest is let go.
    #[serde(deserialize_with = "units::count")]
    pub max_unauthenticated: NonZeroUsize,
    /// How late the event loop may be before new WebSockets are turned away.
    #[serde(with = "units::seconds")]
    pub max_stall: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max: const { NonZeroUsize::new(50_000).unwrap() },
            max_per_address: const { NonZeroUsize::new(10_000).unwrap() },
            max_new_per_second: const { NonZeroU32::new(1000).unwrap() },
            max_queued: const { NonZeroUsize::new(1000).unwrap() },
            queue_timeout: Duration::from_secs(30),
            max_unauthenticated: const { NonZeroUsize::new(5000).unwrap() },
            max_stall: Duration::from_millis(500),
        }
    }
}
