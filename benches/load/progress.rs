//! How far the messages have come, as all readers together know it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// How long nothing may arrive before what is missing counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often arrivals are looked at where none makes itself heard.
const GLANCE: Duration = Duration::from_millis(20);

/// The arrivals of first copies. One task at a time waits for them.
#[derive(Default)]
pub struct Progress {
    arrived: AtomicU64,
    /// Those of them that were the last message of a lane.
    lasts: AtomicU64,
    /// Deliveries that nobody waits for any more.
    given_up: AtomicU64,
    changed: Notify,
}

impl Progress {
    /// Counts one more arrival; gives how many there are.
    pub fn arrived(&self, is_last: bool) -> u64 {
        if is_last {
            self.lasts.fetch_add(1, Relaxed);
        }
        self.arrived.fetch_add(1, Relaxed) + 1
    }

    /// Tells whoever waits that it is worth a look.
    pub fn tell(&self) {
        self.changed.notify_one();
    }

    /// Adds what readers elsewhere have counted since they last said so.
    pub fn add(&self, arrived: u64, lasts: u64) {
        self.lasts.fetch_add(lasts, Relaxed);
        self.arrived.fetch_add(arrived, Relaxed);
        self.tell();
    }

    /// Arrivals, and how many of them were the last of a lane.
    pub fn counts(&self) -> (u64, u64) {
        (self.arrived.load(Relaxed), self.lasts.load(Relaxed))
    }

    /// Waits until so many deliveries have arrived, or until the rest must be taken for lost.
    pub async fn until(&self, count: u64) {
        let have = || self.arrived.load(Relaxed) + self.given_up.load(Relaxed);
        if !self.wait(|| have() >= count).await {
            self.given_up.fetch_add(count.saturating_sub(have()), Relaxed);
        }
    }

    /// Waits until so many readers have the last message of a lane, or until no more will.
    pub async fn until_lasts(&self, count: u64) {
        self.wait(|| self.lasts.load(Relaxed) >= count).await;
    }

    /// Waits for news, for a glance at most.
    pub async fn news(&self) {
        let _ = timeout(GLANCE, self.changed.notified()).await;
    }

    /// False if nothing has arrived for too long before it became so.
    async fn wait(&self, is_so: impl Fn() -> bool) -> bool {
        let mut last = (self.counts(), Instant::now());
        while !is_so() {
            self.news().await;
            let counts = self.counts();
            if counts != last.0 {
                last = (counts, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                return false;
            }
        }
        true
    }
}
