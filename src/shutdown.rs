//! How Tidegate stops: announced first, then begun, and over by a deadline.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::units;

/// The longest time that a browser is asked to stay away.
const LONGEST_ABSENCE: Duration = Duration::from_secs(60);

/// The `[shutdown]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long `/readyz` says no before sessions are told; not at all by default.
    #[serde(with = "units::some_seconds")]
    pub notice: Option<Duration>,
    /// How long sessions have to end in good order, once they are told; what is left then is cut off.
    #[serde(with = "units::seconds")]
    pub deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { notice: None, deadline: Duration::from_secs(10) }
    }
}

/// The end of the gateway, as all of its parts see it.
#[derive(Debug)]
pub struct Drain {
    announced: CancellationToken,
    begun: CancellationToken,
    plan: OnceLock<Plan>,
    /// Sessions that were told when to come back, from a random number on.
    told: AtomicU64,
}

impl Default for Drain {
    fn default() -> Self {
        Drain {
            announced: CancellationToken::new(),
            begun: CancellationToken::new(),
            plan: OnceLock::new(),
            told: AtomicU64::new(rand::rng().random()),
        }
    }
}

impl Drain {
    /// Asks for the end: the gateway is not ready any more, and still serves.
    pub fn announce(&self) {
        self.announced.cancel();
    }

    /// Whether the end was asked for.
    pub fn is_announced(&self) -> bool {
        self.announced.is_cancelled()
    }

    /// Waits until the end is asked for.
    pub async fn announced(&self) {
        self.announced.cancelled().await;
    }

    /// Lets the end begin: no session is opened any more, and the open ones are told.
    pub fn begin(&self, config: &Config) -> Plan {
        let plan = *self.plan.get_or_init(|| Plan::new(Instant::now(), config));
        self.announce();
        self.begun.cancel();
        plan
    }

    /// Cancelled when the end begins.
    pub fn begun(&self) -> &CancellationToken {
        &self.begun
    }

    /// By when what is to be done; asked once the end has begun.
    pub fn plan(&self) -> Plan {
        self.plan.get().copied().unwrap_or_else(|| Plan::new(Instant::now(), &Config::default()))
    }

    /// How long the next session should stay away.
    pub fn absence(&self) -> Duration {
        self.plan().absence(self.told.fetch_add(1, Ordering::Relaxed))
    }
}

/// By when what is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Sessions have written what waited for their browsers, and got the answers of the broker.
    pub written: Instant,
    /// Links have taken leave of the broker; those that wait for more are cut short.
    pub left: Instant,
    /// Everything: what is not done is cut off.
    pub over: Instant,
    window: Duration,
}

impl Plan {
    fn new(now: Instant, config: &Config) -> Plan {
        let window = config.deadline;
        Plan { written: now + window / 2, left: now + window * 4 / 5, over: now + window, window }
    }

    /// Spread evenly over the window, or a minute of it, but for its first twentieth; so is any run of sessions.
    fn absence(&self, nth: u64) -> Duration {
        // The multiples of the golden ratio, less their whole parts, fall into the largest gap that is left.
        let fraction = nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) as f64 / 2f64.powi(64);
        let longest = self.window.min(LONGEST_ABSENCE);
        longest.mul_f64(0.05 + 0.95 * fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(deadline: u64) -> Plan {
        let config = Config { deadline: Duration::from_secs(deadline), ..Config::default() };
        Plan::new(Instant::now(), &config)
    }

    #[tokio::test]
    async fn absences_are_spread_evenly_over_the_deadline_wherever_one_begins() {
        let plan = plan(20);
        for (start, count) in [(0, 10), (7, 10), (u64::MAX - 50, 100), (12_345, 1000)] {
            let mut tenths = [0; 10];
            for nth in 0..count {
                let absence = plan.absence(start.wrapping_add(nth)).as_secs_f64();
                assert!((1.0..20.0).contains(&absence), "{absence}");
                tenths[((absence - 1.0) / 1.9) as usize] += 1;
            }
            let even = count as i32 / 10;
            assert!(tenths.iter().all(|tenth: &i32| tenth.abs_diff(even) <= 2), "{start}, {count}: {tenths:?}");
        }
    }

    #[tokio::test]
    async fn nobody_is_sent_away_for_more_than_a_minute() {
        assert!((0..100).all(|nth| plan(3600).absence(nth) <= LONGEST_ABSENCE));
    }

    #[tokio::test]
    async fn a_drain_is_announced_before_it_begins_and_keeps_the_deadline_it_began_with() {
        let drain = Drain::default();
        drain.announce();
        assert!(drain.is_announced() && !drain.begun().is_cancelled());
        let plan = drain.begin(&Config::default());
        assert!(drain.begun().is_cancelled() && plan.written < plan.left && plan.left < plan.over);
        let other = Config { deadline: Duration::from_secs(1), ..Config::default() };
        assert_eq!((drain.begin(&other), drain.plan()), (plan, plan));
    }
}
