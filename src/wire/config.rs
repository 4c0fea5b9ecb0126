//! The `[wire]` section.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::units;

/// How large frames and their parts may be.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The largest frame taken from a browser, in bytes; a larger one ends the session.
    #[serde(deserialize_with = "units::count")]
    pub max_frame: NonZeroUsize,
    /// The largest payload taken from a browser, in bytes once decoded; a larger one is refused.
    #[serde(deserialize_with = "units::count")]
    pub max_payload: NonZeroUsize,
    /// The most levels of a topic or filter; Mosquitto ends the connection over more than 201.
    #[serde(deserialize_with = "units::count")]
    pub max_topic_levels: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_frame: const { NonZeroUsize::new(1 << 20).unwrap() },
            max_payload: const { NonZeroUsize::new(1 << 20).unwrap() },
            max_topic_levels: const { NonZeroUsize::new(200).unwrap() },
        }
    }
}
