//! Whether the event loop keeps up. How late a timer fires says how long everything else waits; when that is too long, no new
//! session is taken, so that the open ones come through.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::sleep_until;

use crate::metrics;

/// The time between two beats.
const BEAT: Duration = Duration::from_millis(20);
/// How long the worst beat is remembered, at least; at most twice as long.
const MEMORY: Duration = Duration::from_secs(1);

/// How late the event loop is, for all to see.
#[derive(Debug)]
pub struct Overload {
    /// In microseconds, like the others.
    max_stall: AtomicU64,
    start: Instant,
    /// The worst stall of late, in microseconds.
    worst: AtomicU64,
    /// When the last beat was, in microseconds from the start.
    beat: AtomicU64,
}

impl Overload {
    /// Over a stall of `max_stall` there is overload.
    pub fn new(max_stall: Duration) -> Overload {
        Overload {
            max_stall: AtomicU64::new(micros(max_stall)),
            start: Instant::now(),
            worst: AtomicU64::new(0),
            beat: AtomicU64::new(0),
        }
    }

    /// Over this stall there is overload from now on.
    pub fn set_max_stall(&self, max_stall: Duration) {
        self.max_stall.store(micros(max_stall), Ordering::Relaxed);
    }

    /// The event loop does not keep up, or did not a moment ago.
    pub fn is_overloaded(&self) -> bool {
        self.is_overloaded_at(Instant::now())
    }

    /// When the event loop was last seen to be alive. While it runs, that is never long ago.
    fn last_beat(&self) -> Instant {
        self.start + Duration::from_micros(self.beat.load(Ordering::Relaxed))
    }

    /// Beats for ever, and measures how late each beat is.
    pub async fn watch(&self) {
        let mut stalls = Stalls::default();
        let mut work = Work::default();
        let mut due = Instant::now() + BEAT;
        loop {
            sleep_until(due.into()).await;
            let now = Instant::now();
            let stall = now.saturating_duration_since(due);
            self.worst.store(micros(stalls.worst(stall, now)), Ordering::Relaxed);
            self.beat.store(micros(now - self.start), Ordering::Relaxed);
            metrics::event_loop(stall, self.is_overloaded_at(now));
            let runtime = Handle::current().metrics();
            let workers = runtime.num_workers();
            let busy = (0..workers).map(|worker| runtime.worker_total_busy_duration(worker)).sum();
            let share = work.share(busy, workers, now);
            metrics::runtime(runtime.num_alive_tasks(), runtime.global_queue_depth(), share);
            due = now + BEAT;
        }
    }

    /// A beat that is due and has not come counts as much as one that came late.
    fn is_overloaded_at(&self, now: Instant) -> bool {
        let missing = now.saturating_duration_since(self.last_beat() + BEAT);
        let worst = Duration::from_micros(self.worst.load(Ordering::Relaxed));
        missing.max(worst) > Duration::from_micros(self.max_stall.load(Ordering::Relaxed))
    }
}

/// The worst of the last beats.
#[derive(Debug, Default)]
struct Stalls {
    since: Option<Instant>,
    before: Duration,
    now: Duration,
}

impl Stalls {
    fn worst(&mut self, stall: Duration, now: Instant) -> Duration {
        if now >= *self.since.get_or_insert(now) + MEMORY {
            self.before = std::mem::take(&mut self.now);
            self.since = Some(now);
        }
        self.now = self.now.max(stall);
        self.now.max(self.before)
    }
}

/// How busy the workers are.
#[derive(Debug, Default)]
struct Work {
    since: Option<(Instant, Duration)>,
    share: f64,
}

impl Work {
    fn share(&mut self, busy: Duration, workers: usize, now: Instant) -> f64 {
        let (since, before) = *self.since.get_or_insert((now, busy));
        let passed = now - since;
        if passed >= MEMORY {
            let share = busy.saturating_sub(before).as_secs_f64() / (passed.as_secs_f64() * workers as f64);
            self.share = share.min(1.0);
            self.since = Some((now, busy));
        }
        self.share
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_stall_up_to_the_bound_is_borne_and_a_longer_one_is_overload() {
        let overload = Overload::new(MILLI * 500);
        for (stall, expected) in [(0, false), (500, false), (501, true)] {
            overload.worst.store(stall * 1000, Ordering::Relaxed);
            assert_eq!(overload.is_overloaded_at(overload.start), expected, "{stall} ms");
        }
    }

    #[test]
    fn a_beat_that_does_not_come_is_overload_before_it_comes() {
        let overload = Overload::new(MILLI * 500);
        let last = overload.last_beat();
        assert!(!overload.is_overloaded_at(last + BEAT + MILLI * 500));
        assert!(overload.is_overloaded_at(last + BEAT + MILLI * 501));
    }

    #[test]
    fn the_worst_stall_is_remembered_for_a_second_or_two() {
        let mut stalls = Stalls::default();
        let start = Instant::now();
        assert_eq!(stalls.worst(MILLI, start), MILLI);
        assert_eq!(stalls.worst(MILLI * 900, start + MILLI * 990), MILLI * 900);
        let mut forgotten = 0;
        for passed in (1000..5000).step_by(20) {
            if stalls.worst(MILLI, start + MILLI * passed) == MILLI {
                forgotten = passed;
                break;
            }
        }
        assert!((1990..=2990).contains(&forgotten), "after {forgotten} ms");
    }

    #[test]
    fn how_busy_the_workers_are_is_told_of_the_last_second() {
        let mut work = Work::default();
        let start = Instant::now();
        assert_eq!(work.share(MILLI * 700, 2, start), 0.0);
        assert_eq!(work.share(MILLI * 1700, 2, start + MILLI * 1000), 0.5);
        assert_eq!(work.share(MILLI * 1800, 2, start + MILLI * 1100), 0.5);
        assert_eq!(work.share(MILLI * 3700, 2, start + MILLI * 2000), 1.0);
    }

    #[tokio::test]
    async fn an_event_loop_that_is_held_up_tells_of_it() {
        let overload = std::sync::Arc::new(Overload::new(MILLI * 100));
        let watching = overload.clone();
        tokio::spawn(async move { watching.watch().await });
        let beat_after = async |last| {
            while overload.last_beat() <= last {
                tokio::time::sleep(MILLI).await;
            }
        };
        beat_after(overload.start).await;
        std::thread::sleep(MILLI * 300);
        assert!(overload.is_overloaded(), "already while nothing runs");
        let last = overload.last_beat();
        beat_after(last).await;
        assert!(overload.is_overloaded(), "and for a moment after");
    }
}
