//! How fast a client may send, and when it is let go.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::Config;
use crate::access::Rate;
use crate::wire::{Code, Refusal};

/// The fewest refusals in [`PATIENCE`] that end a session, however low its rate.
const MIN_REFUSALS: NonZeroU32 = NonZeroU32::new(20).unwrap();
const PATIENCE: Duration = Duration::from_secs(10);

/// The rates of a session, where it has any.
#[derive(Debug, Default)]
pub struct Rates {
    frames: Option<Box<Limit>>,
    publishes: Option<Box<Limit>>,
}

#[derive(Debug)]
struct Limit {
    per_second: NonZeroU32,
    rate: Rate,
    /// Refusals that the client may get before it is let go.
    patience: Rate,
    what: &'static str,
    setting: &'static str,
}

/// A frame came too early.
#[derive(Debug)]
pub struct Over {
    /// What the client hears.
    pub refusal: Refusal,
    /// The client goes on although it was told.
    pub is_too_much: bool,
}

impl Rates {
    /// As the settings say.
    pub fn new(config: &Config) -> Rates {
        Rates {
            frames: config
                .max_frames_per_second
                .map(|per_second| Limit::new(per_second, "frames", "session.max_frames_per_second"))
                .map(Box::new),
            publishes: config
                .max_publishes_per_second
                .map(|per_second| Limit::new(per_second, "publishes", "session.max_publishes_per_second"))
                .map(Box::new),
        }
    }

    /// Judges a frame by its time, before anything of it is carried out.
    pub fn judge(&mut self, is_publish: bool, now: Instant) -> Result<(), Over> {
        self.frames.as_mut().map_or(Ok(()), |limit| limit.judge(now))?;
        self.publishes.as_mut().filter(|_| is_publish).map_or(Ok(()), |limit| limit.judge(now))
    }
}

impl Limit {
    fn new(per_second: NonZeroU32, what: &'static str, setting: &'static str) -> Limit {
        Limit {
            per_second,
            rate: Rate::new(per_second, Duration::from_secs(1)),
            patience: Rate::new(per_second.max(MIN_REFUSALS), PATIENCE),
            what,
            setting,
        }
    }

    fn judge(&mut self, now: Instant) -> Result<(), Over> {
        if self.rate.take(now) {
            return Ok(());
        }
        let Limit { per_second, what, setting, .. } = self;
        let message = format!("A session may send {per_second} {what} a second ({setting}); send it again, slower.");
        Err(Over { refusal: Refusal::for_now(Code::RateLimited, message), is_too_much: !self.patience.take(now) })
    }
}
