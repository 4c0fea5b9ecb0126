//! How Tidegate stops.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units;

/// The `[shutdown]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long sessions have to end in good order, from the signal on; what is left then is cut off.
    #[serde(with = "units::seconds")]
    pub deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10) }
    }
}
