//! When the token of a session ends, and when its client hears of that.

use std::time::Duration;

use tokio::time::Instant;

/// So long before the end the client is asked for a new token.
const NOTICE: Duration = Duration::from_secs(60);

/// The end of a token.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    at: Instant,
    is_told: bool,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The client is to be told that the token ends in so many seconds.
    Notice(u64),
    /// The token has ended.
    End,
}

impl Expiry {
    /// Of a token that ends at that Unix time, seen from `unix_now`, which is `now`.
    pub fn new(unix_end: u64, unix_now: Duration, now: Instant) -> Expiry {
        let left = Duration::from_secs(unix_end).saturating_sub(unix_now);
        // A token that is good for centuries has no end that a clock could reach.
        let at = now.checked_add(left).unwrap_or_else(|| now + Duration::from_secs(1 << 31));
        Expiry { at, is_told: false }
    }

    /// Whole seconds that are left.
    pub fn left(&self, now: Instant) -> u64 {
        self.at.saturating_duration_since(now).as_secs_f64().ceil() as u64
    }

    /// When something is due next.
    pub fn next(&self) -> Instant {
        if self.is_told { self.at } else { self.at.checked_sub(NOTICE).unwrap_or(self.at) }
    }

    /// What is due now; a notice is due once.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        if now >= self.at {
            return Some(Due::End);
        }
        if now < self.next() || self.is_told {
            return None;
        }
        self.is_told = true;
        Some(Due::Notice(self.left(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_a_minute_before_the_end_or_at_once() {
        let (now, unix_now) = (Instant::now(), Duration::from_secs(1000));
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut long = Expiry::new(1100, unix_now, now);
        assert_eq!((long.left(now), long.next(), long.due(now)), (100, after(40), None));
        assert_eq!((long.due(after(40)), long.due(after(41))), (Some(Due::Notice(60)), None));
        assert_eq!(long.next(), after(100));
        assert_eq!((long.due(after(99)), long.due(after(100))), (None, Some(Due::End)));
        let mut short = Expiry::new(1030, unix_now, now);
        assert_eq!(short.due(now), Some(Due::Notice(30)));
        assert_eq!(Expiry::new(900, unix_now, now).due(now), Some(Due::End));
        assert_eq!(Expiry::new(u64::MAX, unix_now, now).due(now), None);
    }
}
