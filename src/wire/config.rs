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
    /// The most bytes of frames that all clients together have begun and not finished; over it, the connection that has held
    /// more than 64 KiB for the longest time is ended.
    #[serde(deserialize_with = "units::count")]
    pub max_unfinished_bytes: NonZeroUsize,
    /// The most levels of a topic or filter; Mosquitto ends the connection over more than 201.
    #[serde(deserialize_with = "units::count")]
    pub max_topic_levels: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_frame: const { NonZeroUsize::new(1 << 20).unwrap() },
            max_payload: const { NonZeroUsize::new(1 << 20).unwrap() },
            max_unfinished_bytes: const { NonZeroUsize::new(64 << 20).unwrap() },
            max_topic_levels: const { NonZeroUsize::new(200).unwrap() },
        }
    }
}

impl Config {
    /// Judges the settings together; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.max_unfinished_bytes < self.max_frame {
            return Err(format!(
                "wire.max_unfinished_bytes is {}, less than a single frame may have (wire.max_frame, {}): make it several times as \
                 large",
                self.max_unfinished_bytes, self.max_frame
            ));
        }
        Ok(())
    }
}
