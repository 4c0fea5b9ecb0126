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

/// How much one outbox may hold for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Deliveries.
    pub count: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Bytes that are left of the memory that all outboxes share.
    pub free: usize,
}

impl Config {
    /// What one outbox may hold while so much is left for all.
    ///
    /// Never more than what is left (the dynamic threshold of shared-memory switches, Choudhury and Hahne 1998): a few slow
    /// browsers can't take it all, and n that are equally slow get one part in n + 1 each, so there is always some left.
    pub fn bound(&self, free: usize) -> Bound {
        Bound { count: self.max_queued.get(), bytes: self.max_queued_bytes.get().min(free), free }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_queued: const { NonZeroUsize::new(1000).unwrap() },
            max_queued_bytes: const { NonZeroUsize::new(4 << 20).unwrap() },
        }
    }
}
