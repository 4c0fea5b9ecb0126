//! The `[session]` section.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units;

/// How long a browser session may take over things, and how much it may have open.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long the gateway waits for the first frame.
    #[serde(with = "units::seconds")]
    pub auth_timeout: Duration,
    /// The time between WebSocket pings; three of them without a sign of life end the session.
    #[serde(with = "units::seconds")]
    pub heartbeat: Duration,
    /// How long the socket may take no byte before the session ends.
    #[serde(with = "units::seconds")]
    pub write_timeout: Duration,
    /// The most subscriptions a session may have.
    #[serde(deserialize_with = "units::count")]
    pub max_subscriptions: NonZeroUsize,
    /// The most publishes of a session that may be unanswered; the next ones wait, they are not refused.
    #[serde(deserialize_with = "units::count")]
    pub max_inflight: NonZeroUsize,
    /// The most frames a second, a second's worth of them at once; one over it is refused. WebSocket pings and pongs count too.
    #[serde(deserialize_with = "units::some_count")]
    pub max_frames_per_second: Option<NonZeroU32>,
    /// The most publishes a second, a second's worth of them at once; one over it is refused.
    #[serde(deserialize_with = "units::some_count")]
    pub max_publishes_per_second: Option<NonZeroU32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            auth_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(25),
            write_timeout: Duration::from_secs(30),
            max_subscriptions: const { NonZeroUsize::new(1000).unwrap() },
            max_inflight: const { NonZeroUsize::new(64).unwrap() },
            max_frames_per_second: None,
            max_publishes_per_second: None,
        }
    }
}
