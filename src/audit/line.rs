//! A line and its place in the chain: how it is written, and how it is read again.

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;

use super::event::{Event, Kind};

/// A SHA-256, written as 64 digits of lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash::from_digest(digest(&SHA256, bytes))
    }

    pub(super) fn from_digest(digest: aws_lc_rs::digest::Digest) -> Hash {
        Hash(digest.as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Hash {
    type Err = String;

    /// Takes what is written by `Display`, and nothing else: no upper case.
    fn from_str(text: &str) -> Result<Hash, String> {
        let mut hash = [0; 32];
        let is_hex = text.len() == 64 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex {
            return Err("a hash is 64 digits, 0 to 9 and a to f".to_owned());
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).expect("digits are ASCII");
            *byte = u8::from_str_radix(digits, 16).expect("digits are hex");
        }
        Ok(Hash(hash))
    }
}

/// An event as it waits to be written.
#[derive(Debug)]
pub(super) struct Entry {
    time: SystemTime,
    kind: Kind,
    fields: Box<str>,
}

impl Entry {
    pub fn of(event: &Event<'_>, time: SystemTime) -> Entry {
        Entry { time, kind: event.kind(), fields: event.fields() }
    }

    pub fn time(&self) -> SystemTime {
        self.time
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// What the next line follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub seq: u64,
    pub hash: Hash,
}

/// Between the text that is hashed and the hash.
const BEFORE_HASH: &[u8] = b",\"hash\":\"";
const AFTER_HASH: &[u8] = b"\"}";
const HASH_DIGITS: usize = 64;

impl Link {
    /// Before the first line there is none.
    pub const START: Link = Link { seq: 0, hash: Hash([0; 32]) };

    /// Writes the line that follows this, and becomes the link to it.
    pub fn follow(&mut self, entry: &Entry, to: &mut Vec<u8>) {
        let start = to.len();
        let Entry { time, kind, fields } = entry;
        let (seq, time, event, prev) = (self.seq.saturating_add(1), Timestamp(*time), kind.name(), self.hash);
        write!(to, r#"{{"seq":{seq},"time":"{time}","event":"{event}"{fields},"prev":"{prev}""#)
            .expect("a Vec takes it");
        let hash = Hash::of(&to[start..]);
        writeln!(to, r#","hash":"{hash}"}}"#).expect("a Vec takes it");
        *self = Link { seq, hash };
    }
}

/// A line as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub link: Link,
    pub prev: Hash,
    /// Its hash is that of its text.
    pub is_intact: bool,
    pub told: Told,
}

/// What a line tells of the log itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// What comes before it, and has this hash, was torn.
    Recovered(Hash),
    /// So many events are missing.
    Dropped(u64),
    Other,
}

#[derive(Deserialize)]
struct Written<'a> {
    seq: u64,
    event: &'a str,
    prev: &'a str,
    torn: Option<&'a str>,
    count: Option<u64>,
}

impl Line {
    /// Reads a line without its newline; none, if it has not the form of one.
    pub fn read(bytes: &[u8]) -> Option<Line> {
        let rest = bytes.strip_suffix(AFTER_HASH)?;
        let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(HASH_DIGITS)?)?;
        let text = rest.strip_suffix(BEFORE_HASH)?;
        let hash: Hash = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let written: Written = serde_json::from_slice(bytes).ok()?;
        let told = match (written.event, written.torn, written.count) {
            ("recovered", Some(torn), _) => Told::Recovered(torn.parse().ok()?),
            ("dropped", _, Some(count)) => Told::Dropped(count),
            _ => Told::Other,
        };
        let link = Link { seq: written.seq, hash };
        Some(Line { link, prev: written.prev.parse().ok()?, is_intact: Hash::of(text) == hash, told })
    }

    /// Reads a line that is as it was written.
    pub fn read_intact(bytes: &[u8]) -> Option<Line> {
        Line::read(bytes).filter(|line| line.is_intact)
    }
}

/// A time as RFC 3339 has it: in UTC, to the millisecond.
pub(super) struct Timestamp(pub SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A clock that is before 1970 is not set at all.
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (year, month, day) = date(since.as_secs() / 86_400);
        let second = since.as_secs() % 86_400;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
    }
}

/// The year, the month and the day of the Gregorian calendar, so many days after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    /// From 0000-03-01, where a year begins that ends with its leap day, to 1970-01-01.
    const BEFORE_1970: u64 = 719_468;
    const FOUR_CENTURIES: u64 = 146_097;
    const FOUR_YEARS: u64 = 1461;
    /// March to July, and August to December, have 153 days each.
    const FIVE_MONTHS: u64 = 153;

    // Doubling twice makes whole numbers of a century's and of a year's days, the quarter of a day included.
    let day = days + BEFORE_1970;
    let century = (4 * day + 3) / FOUR_CENTURIES;
    let day = day - century * FOUR_CENTURIES / 4;
    let year = (4 * day + 3) / FOUR_YEARS;
    let day = day - year * FOUR_YEARS / 4;
    let month = (5 * day + 2) / FIVE_MONTHS;
    let day = day - (month * FIVE_MONTHS + 2) / 5;
    let is_next_year = month >= 10;
    (100 * century + year + u64::from(is_next_year), if is_next_year { month - 9 } else { month + 3 }, day + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_line_is_what_the_chain_is_defined_by() {
        let mut link = Link::START;
        let mut log = Vec::new();
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_379_215_042);
        for version in ["1", "2"] {
            link.follow(&Entry::of(&Event::Started { version }, time), &mut log);
        }
        let log = String::from_utf8(log).expect("UTF-8");
        let zeros = "0".repeat(64);
        // By sha256sum.
        let first = "d18c2a902fb5b004739d40179901311b0d7b4bdc400007116f97d490324ac542";
        let second = "f15e7c5a6a35ddeb5d18fd4a0c960859d2d90b312b2edc8baf5671594d8c8ab0";
        assert_eq!(
            log,
            format!(
                "{{\"seq\":1,\"time\":\"2025-11-29T01:20:15.042Z\",\"event\":\"started\",\"version\":\"1\",\"prev\":\"{zeros}\",\"hash\":\"{first}\"}}\n\
                 {{\"seq\":2,\"time\":\"2025-11-29T01:20:15.042Z\",\"event\":\"started\",\"version\":\"2\",\"prev\":\"{first}\",\"hash\":\"{second}\"}}\n"
            )
        );
        assert_eq!((link.seq, link.hash.to_string().as_str()), (2, second));
    }

    proptest! {
        #[test]
        fn any_event_is_one_line_of_json_that_reads_as_it_was_written(
            texts in prop::array::uniform4(any::<String>()), millis in 0..4_000_000_000_000u64
        ) {
            let [by, setting, from, to] = &texts;
            let event = Event::ConfigurationChanged { by, setting, from, to, needs_restart: true };
            let mut link = Link { seq: 41, hash: Hash::of(b"before") };
            let before = link;
            let mut bytes = Vec::new();
            link.follow(&Entry::of(&event, SystemTime::UNIX_EPOCH + Duration::from_millis(millis)), &mut bytes);
            let line = bytes.strip_suffix(b"\n").expect("a newline");
            prop_assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
            let value: Value = serde_json::from_slice(line).expect("JSON");
            prop_assert_eq!(&value["event"], "configuration_changed");
            prop_assert_eq!(
                Line::read(line),
                Some(Line { link, prev: before.hash, is_intact: true, told: Told::Other })
            );
            prop_assert_eq!(link.seq, 42);
        }

        #[test]
        fn reading_what_is_no_line_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Line::read(&bytes), None);
        }
    }

    #[test]
    fn what_lacks_a_part_of_a_line_is_none() {
        let mut bytes = Vec::new();
        Link { seq: 1, ..Link::START }.follow(&Entry::of(&Event::Stopped, SystemTime::UNIX_EPOCH), &mut bytes);
        let line = std::str::from_utf8(&bytes).expect("UTF-8").trim_end();
        assert!(Line::read(line.as_bytes()).is_some_and(|line| line.is_intact));
        for (part, other) in
            [("\"seq\":2", "\"seq\":-2"), ("\"seq\":2", "\"sex\":2"), ("\"prev\":\"0", "\"prev\":\"O"), ("\"}", "\"}}")]
        {
            assert_eq!(Line::read(line.replace(part, other).as_bytes()), None, "{other}");
        }
        let changed = Line::read(line.replace("stopped", "started").as_bytes()).expect("a line in form");
        assert!(!changed.is_intact);
        assert!((0..line.len()).all(|end| Line::read(&line.as_bytes()[..end]).is_none()));
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = Hash::of(b"");
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!((hash.to_string().as_str(), text.parse()), (text, Ok(hash)));
        for wrong in ["", &text[1..], &text.to_uppercase(), &text.replace('e', "g"), &format!("{text}0")] {
            assert!(wrong.parse::<Hash>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        for (millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_078_012_800_000, "2004-02-29T00:00:00.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis)).to_string(), expected);
        }
        assert_eq!(Timestamp(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn days_follow_each_other_as_in_the_calendar() {
        let mut expected = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(date(days), expected, "{days}");
            let (year, month, day) = expected;
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(is_leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day == length) {
                (_, false) => (year, month, day + 1),
                (12, true) => (year + 1, 1, 1),
                (_, true) => (year, month + 1, 1),
            };
        }
    }
}
