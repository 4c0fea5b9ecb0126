//! What a reader got, against what was sent to it: every message is stamped, so a lost, repeated,
//! late or foreign one shows by itself.

use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Duration;

/// One message's mark: the lane it travels in, its place there, and when it was sent.
///
/// A lane is one ordered stream of messages: one topic, written by one publisher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stamp {
    pub lane: u32,
    pub seq: u32,
    /// Time since the start of the run.
    pub sent: Duration,
}

impl Stamp {
    /// Bytes that a stamp takes at the start of a payload: `@` and 32 hexadecimal digits.
    pub const LEN: usize = 33;

    /// A payload of `size` bytes, plain ASCII, so that a JSON frame carries it as it is.
    pub fn payload(&self, size: usize) -> String {
        let sent = self.sent.as_nanos() as u64;
        let mark = format!("@{:08x}{:08x}{sent:016x}", self.lane, self.seq);
        format!("{mark:.<size$}")
    }

    /// The stamp inside a frame; `None` for a frame that carries no stamped message.
    pub fn find(frame: &[u8]) -> Option<Self> {
        let mark = frame.iter().position(|&byte| byte == b'@')? + 1;
        let digits = str::from_utf8(frame.get(mark..mark + Self::LEN - 1)?).ok()?;
        let number = |at: Range<usize>| u64::from_str_radix(digits.get(at)?, 16).ok();
        Some(Self {
            lane: number(0..8)? as u32,
            seq: number(8..16)? as u32,
            sent: Duration::from_nanos(number(16..32)?),
        })
    }
}

/// What a message turned out to be when it was entered.
#[derive(Debug, PartialEq)]
pub enum Entry {
    /// Seen for the first time, in its place or behind a later one.
    New,
    /// Seen before.
    Duplicate,
    /// Not meant for this reader.
    Stray,
}

/// One reader's book of the messages that it should get: `each` on every one of `lanes`.
pub struct Ledger {
    lanes: Range<u32>,
    each: u32,
    seen: Vec<bool>,
    /// For each lane, the place after the latest message seen.
    next: Vec<u32>,
    totals: Totals,
}

/// The sums of one ledger, or of several.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Totals {
    pub expected: u64,
    /// Lanes whose last message did not come.
    pub unfinished: u64,
    /// First copies only.
    pub received: u64,
    pub duplicated: u64,
    /// First copies that came behind a later message of their lane.
    pub reordered: u64,
    pub stray: u64,
    /// Send to receipt, in microseconds, one for each first copy.
    #[serde(with = "runs")]
    pub latencies: Vec<u32>,
}

impl Ledger {
    pub fn new(lanes: Range<u32>, each: u32) -> Self {
        let expected = lanes.len() * each as usize;
        Self {
            seen: vec![false; expected],
            next: vec![0; lanes.len()],
            totals: Totals { expected: expected as u64, ..Totals::default() },
            lanes,
            each,
        }
    }

    /// Enters a message that arrived `now`, on the clock of its stamp.
    pub fn enter(&mut self, stamp: Stamp, now: Duration) -> Entry {
        let Some(place) = self.place(stamp) else {
            self.totals.stray += 1;
            return Entry::Stray;
        };
        if std::mem::replace(&mut self.seen[place], true) {
            self.totals.duplicated += 1;
            return Entry::Duplicate;
        }
        let lane = (stamp.lane - self.lanes.start) as usize;
        self.totals.received += 1;
        self.totals.reordered += u64::from(stamp.seq < self.next[lane]);
        self.next[lane] = self.next[lane].max(stamp.seq + 1);
        self.totals.latencies.push(now.saturating_sub(stamp.sent).as_micros() as u32);
        Entry::New
    }

    /// Whether a message was entered already.
    pub fn holds(&self, stamp: Stamp) -> bool {
        self.place(stamp).is_some_and(|place| self.seen[place])
    }

    fn place(&self, stamp: Stamp) -> Option<usize> {
        let is_expected = self.lanes.contains(&stamp.lane) && stamp.seq < self.each;
        is_expected.then(|| (stamp.lane - self.lanes.start) as usize * self.each as usize + stamp.seq as usize)
    }

    /// The latencies since this was last asked.
    pub fn take_latencies(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.totals.latencies)
    }

    /// Closes the book.
    pub fn totals(self) -> Totals {
        let unfinished = self.next.iter().filter(|&&next| next < self.each).count() as u64;
        Totals { unfinished, ..self.totals }
    }
}

impl Totals {
    pub fn lost(&self) -> u64 {
        self.expected - self.received
    }

    pub fn add(&mut self, other: Self) {
        self.expected += other.expected;
        self.unfinished += other.unfinished;
        self.received += other.received;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.stray += other.stray;
        self.latencies.extend(other.latencies);
    }

    /// The latencies, in microseconds, that these shares of the messages did not exceed; exact, not
    /// estimated. Zeroes if nothing was received.
    pub fn percentiles<const N: usize>(&mut self, shares: [f64; N]) -> [u32; N] {
        self.latencies.sort_unstable();
        shares.map(|share| {
            let rank = (share * self.latencies.len() as f64).ceil() as usize;
            self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        })
    }
}

/// Latencies as they are written: each that occurs, in order, and how often it does.
mod runs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(latencies: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
        let mut sorted = latencies.to_vec();
        sorted.sort_unstable();
        let runs: Vec<_> = sorted.chunk_by(PartialEq::eq).map(|run| (run[0], run.len())).collect();
        runs.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
        let runs = Vec::<(u32, usize)>::deserialize(deserializer)?;
        Ok(runs.into_iter().flat_map(|(latency, count)| std::iter::repeat_n(latency, count)).collect())
    }
}
