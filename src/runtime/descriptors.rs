//! How many descriptors the process may have open, and how many it needs.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::access;

/// What the process has open beside connections: listeners, the event loop, standard streams, what is read now and then.
const OWN: u64 = 64;

/// The limit of descriptors, raised at the start.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    limit: u64,
}

impl Descriptors {
    /// Raises the limit as far as the system lets this process, and tells.
    pub fn raise() -> Descriptors {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).map_err(io::Error::from);
        let from = current.unwrap_or(u64::MAX);
        match raised {
            Ok(()) => {
                let to = maximum.unwrap_or(u64::MAX);
                info!(from, to, "the descriptor limit is as high as it may be");
                Descriptors { limit: to }
            }
            Err(error) => {
                warn!(%error, limit = from, "the descriptor limit can't be raised");
                Descriptors { limit: from }
            }
        }
    }

    /// Warns if a full house needs more. The gateway serves all the same, and accepts no more connections at the limit.
    pub fn judge(self, needed: u64) {
        if !self.is_enough(needed) {
            warn!(
                limit = self.limit,
                needed,
                "too few descriptors for connections.max: raise the hard limit (LimitNOFILE of systemd, ulimit -Hn) or lower connections.max"
            );
        }
    }

    fn is_enough(self, needed: u64) -> bool {
        needed <= self.limit
    }
}

/// What it takes to have as many sessions as there may be, with so many descriptors each, and everybody else who may be connected.
pub fn needed_descriptors(connections: &access::Config, each: u64) -> u64 {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    count(connections.max.get())
        .saturating_mul(each)
        .saturating_add(count(connections.max_queued.get()))
        .saturating_add(count(connections.max_unauthenticated.get()))
        .saturating_add(OWN)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn connections(max: usize) -> access::Config {
        let count = |count| NonZeroUsize::new(count).unwrap();
        access::Config {
            max: count(max),
            max_queued: count(30),
            max_unauthenticated: count(6),
            ..access::Config::default()
        }
    }

    #[test]
    fn a_session_needs_its_descriptors_and_who_waits_needs_one() {
        for (max, each, needed) in [(1000, 2, 2100), (1000, 3, 3100), (1, 1, 101), (usize::MAX, 3, u64::MAX)] {
            assert_eq!(needed_descriptors(&connections(max), each), needed, "{max} sessions of {each}");
        }
    }

    #[test]
    fn as_many_as_are_needed_are_enough() {
        for (limit, expected) in [(2099, false), (2100, true), (2101, true)] {
            assert_eq!(Descriptors { limit }.is_enough(2100), expected, "{limit}");
        }
    }
}
