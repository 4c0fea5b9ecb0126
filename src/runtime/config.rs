//! The `[runtime]` section.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::units;

/// More threads than this are a slip of the pen: no machine of a gateway has as many processors.
const MOST_WORKERS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What the event loop takes of the machine.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The threads that serve sessions; as many as there are processors where none is given.
    #[serde(deserialize_with = "units::some_count")]
    pub worker_threads: Option<NonZeroUsize>,
    /// Each of them stays on one processor, of those that the process may use.
    pub pin_workers: bool,
}

impl Config {
    /// Judges the settings; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        match self.worker_threads {
            Some(workers) if workers > MOST_WORKERS => Err(format!(
                "runtime.worker_threads is {workers}: more than there are processors is no help, so take {MOST_WORKERS} or fewer"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_may_be_one_worker_or_1024_and_no_more() {
        for (workers, expected) in [(None, true), (Some(1), true), (Some(1024), true), (Some(1025), false)] {
            let worker_threads = workers.and_then(NonZeroUsize::new);
            let checked = Config { worker_threads, ..Config::default() }.check();
            assert_eq!(checked.is_ok(), expected, "{workers:?}: {checked:?}");
        }
    }
}
