//! The `[delivery]` section.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::units;

/// How much may wait for a browser that reads slowly.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The most deliveries that wait for one session.
    #[serde(deserialize_with = "units::count")]
    pub max_queued: NonZeroUsize,
    /// The most bytes that wait for one session.
    #[serde(deserialize_with = "units::count")]
    pub max_queued_bytes: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_queued: const { NonZeroUsize::new(1000).unwrap() },
            max_queued_bytes: const { NonZeroUsize::new(4 << 20).unwrap() },
        }
    }
}
