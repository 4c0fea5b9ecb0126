//! What a run does: who reads, who publishes, how much and how fast.

use crate::client::Reading;
use crate::ledger::Stamp;
use crate::options::{Options, Scenario};
use std::ops::Range;
use std::time::Duration;

/// Who reads and who publishes: `each` messages in every lane, and so many copies of each message.
pub struct Plan {
    scenario: Scenario,
    pub readers: u32,
    pub lanes: u32,
    pub each: u32,
    pub copies: u32,
    pub size: usize,
    pub qos: u8,
    /// Readers ask for no more than so many deliveries a second of each topic.
    pub max_rate: Option<u32>,
    /// Between messages; `None`: saturated.
    pub interval: Option<Duration>,
    /// How long after the last publish what is missing is waited for.
    pub grace: Duration,
    /// Sessions that open at once.
    pub opening: usize,
}

impl Plan {
    pub fn new(options: &Options) -> Self {
        let sessions = options.sessions();
        let (readers, lanes, copies) = match options.scenario {
            Scenario::Unicast => (sessions, sessions, 1),
            Scenario::Ingest => (1, sessions, 1),
            Scenario::FanOut
            | Scenario::Idle
            | Scenario::Storm
            | Scenario::Slow
            | Scenario::Soak
            | Scenario::Check
            | Scenario::Bare => (sessions, 1, sessions),
        };
        Self {
            scenario: options.scenario,
            readers,
            lanes,
            each: options.messages(),
            copies,
            size: options.size as usize,
            qos: options.qos,
            max_rate: options.max_rate,
            interval: options.rate().map(|rate| Duration::from_secs_f64(rate.recip())),
            grace: Duration::from_secs(options.grace.unwrap_or(options.timeout())),
            opening: options.opening as usize,
        }
    }

    /// Messages in all.
    pub fn total(&self) -> u32 {
        self.lanes * self.each
    }

    /// What a reader subscribes to, and the lanes that it thereby reads.
    pub fn reading(&self, reader: u32) -> (Reading, Range<u32>) {
        let (filter, lanes) = match self.scenario {
            Scenario::Unicast => (topic(reader), reader..reader + 1),
            Scenario::Ingest => ("load/#".into(), 0..self.lanes),
            Scenario::FanOut
            | Scenario::Idle
            | Scenario::Storm
            | Scenario::Slow
            | Scenario::Soak
            | Scenario::Check
            | Scenario::Bare => (topic(0), 0..1),
        };
        (Reading { filter, qos: self.qos, max_rate: self.max_rate }, lanes)
    }

    /// Whether a message is the last of its lane.
    pub fn is_last(&self, stamp: Stamp) -> bool {
        stamp.seq + 1 == self.each
    }
}

pub fn topic(lane: u32) -> String {
    format!("load/{lane}")
}
