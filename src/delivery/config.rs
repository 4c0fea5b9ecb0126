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
    /// The most bytes that wait for all sessions together. One session never gets more than what is left of them.
    #[serde(deserialize_with = "units::count")]
    pub max_total_bytes: NonZeroUsize,
    /// The most topics of one session that are kept with a value, for `maxRate` and for `delta` each; further ones come unconflated, and
    /// in full.
    #[serde(deserialize_with = "units::count")]
    pub max_topics: NonZeroUsize,
    /// What happens to a session whose queue is full and whose browser has read nothing for a second.
    pub overflow: Overflow,
}

/// What happens to a session whose queue is full and whose browser reads nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// Deliveries of QoS 0 are dropped: for pages that want what is new, whenever they come back to it.
    #[default]
    Drop,
    /// It is closed: for clients that must know at once that they have missed something.
    Close,
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
    /// Topics that are kept with a value.
    pub topics: usize,
}

impl Config {
    /// What one outbox may hold while so much is left for all.
    ///
    /// Never more than what is left (the dynamic threshold of shared-memory switches, Choudhury and Hahne 1998): a few slow
    /// browsers can't take it all, and n that are equally slow get one part in n + 1 each, so there is always some left.
    pub fn bound(&self, free: usize) -> Bound {
        Bound {
            count: self.max_queued.get(),
            bytes: self.max_queued_bytes.get().min(free),
            free,
            topics: self.max_topics.get(),
        }
    }

    /// The same before the session is open: its browser can be written nothing yet, and the broker must be read on for its
    /// answers, so all that the first subscriptions bring has to wait here.
    pub fn opening_bound(&self, free: usize) -> Bound {
        Bound { count: usize::MAX, bytes: free, ..self.bound(free) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_queued: const { NonZeroUsize::new(1000).unwrap() },
            max_queued_bytes: const { NonZeroUsize::new(4 << 20).unwrap() },
            max_total_bytes: const { NonZeroUsize::new(256 << 20).unwrap() },
            max_topics: const { NonZeroUsize::new(10_000).unwrap() },
            overflow: Overflow::Drop,
        }
    }
}
