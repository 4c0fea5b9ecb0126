//! How often something may happen.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// A token bucket: so many in such a time, all of which may come at once.
#[derive(Clone, Debug)]
pub struct Rate {
    within: Duration,
    /// What one takes, and how long the bucket needs to get it back.
    each: Duration,
    /// From then on the bucket is full.
    full_at: Option<Instant>,
}

impl Rate {
    /// `count` of them `within` this time. The bucket is full at first.
    pub fn new(count: NonZeroU32, within: Duration) -> Rate {
        Rate { within, each: within / count.get(), full_at: None }
    }

    /// So many within its time from now on; of these as large a part is there as was before.
    pub fn set(&mut self, count: NonZeroU32) {
        self.each = self.within / count.get();
    }

    /// Takes one, if there is one at this time.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + self.each;
        let is_there = full_at <= now + self.within;
        if is_there {
            self.full_at = Some(full_at);
        }
        is_there
    }

    /// Takes so many at one time, if any is there: more than there are leave the bucket in debt.
    pub fn take_many(&mut self, count: u32, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let is_there = full_at < now + self.within;
        if is_there {
            self.full_at = Some(full_at + self.each * count);
        }
        is_there
    }

    /// Whether all of them are there at this time.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(count: u32, within: Duration) -> Rate {
        Rate::new(NonZeroU32::new(count).expect("some"), within)
    }

    fn taken(rate: &mut Rate, tries: u32, now: Instant) -> usize {
        (0..tries).filter(|_| rate.take(now)).count()
    }

    #[test]
    fn all_may_come_at_once_and_one_more_may_not() {
        for count in [1, 3, 7, 10, 1000] {
            let mut rate = rate(count, SECOND);
            let now = Instant::now();
            assert_eq!(taken(&mut rate, count, now), count as usize, "{count} a second");
            assert!(!rate.take(now), "{count} a second");
        }
    }

    #[test]
    fn what_was_taken_comes_back_in_time() {
        let mut rate = rate(10, SECOND);
        let now = Instant::now();
        assert_eq!(taken(&mut rate, 20, now), 10);
        assert!(!rate.take(now + SECOND / 10 - Duration::from_nanos(1)));
        assert!(rate.take(now + SECOND / 10));
        assert!(!rate.take(now + SECOND / 10));
        assert_eq!(taken(&mut rate, 20, now + SECOND / 2), 4);
        assert_eq!(taken(&mut rate, 20, now + SECOND * 100), 10, "no more than there were at first");
    }

    #[test]
    fn a_bucket_that_got_all_back_is_full() {
        let mut rate = rate(10, SECOND);
        let now = Instant::now();
        assert!(rate.is_full(now));
        rate.take(now);
        assert!(!rate.is_full(now + SECOND / 11) && rate.is_full(now + SECOND / 10));
    }

    #[test]
    fn who_comes_at_the_very_rate_is_never_refused() {
        let mut rate = rate(3, SECOND);
        let start = Instant::now();
        assert!((0..1000).all(|number| rate.take(start + SECOND * number / 3)));
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let mut rate = rate(1, SECOND);
        let now = Instant::now();
        assert_eq!(taken(&mut rate, 1000, now), 1);
        assert!(rate.take(now + SECOND));
    }
}
