//! The `[audit]` section.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::mqtt::{Topic, TopicFilter};
use crate::units;

/// A smaller file holds but some dozens of lines.
const LEAST_SIZE: NonZeroU64 = NonZeroU64::new(64 << 10).unwrap();

/// Where the audit log is written, and what of.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The file that is written; without one, nothing is recorded.
    pub log: Option<PathBuf>,
    /// The size, in bytes, that a file does not grow beyond; what comes then goes to a new one.
    #[serde(deserialize_with = "units::count")]
    pub max_size: NonZeroU64,
    /// The most files kept that are full; all of them where none is given.
    #[serde(deserialize_with = "units::some_count")]
    pub keep: Option<NonZeroUsize>,
    /// The topics whose publishes are recorded.
    pub topics: Topics,
    /// The most events that wait to be written.
    #[serde(deserialize_with = "units::count")]
    pub queue: NonZeroU32,
    /// Each write is on the disk before the next begins, so that no loss of power takes it back.
    pub sync: bool,
    /// What happens when the queue is full.
    pub when_full: WhenFull,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log: None,
            max_size: const { NonZeroU64::new(100 << 20).unwrap() },
            keep: None,
            topics: Topics::default(),
            queue: const { NonZeroU32::new(10_000).unwrap() },
            sync: true,
            when_full: WhenFull::default(),
        }
    }
}

impl Config {
    /// Judges the settings together; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.max_size < LEAST_SIZE {
            let size = self.max_size;
            return Err(format!(
                "audit.max_size is {size}: that is full after a few lines, so allow {LEAST_SIZE} or more"
            ));
        }
        if self.log.is_none() && self.topics != Topics::default() {
            return Err("audit.topics says what is recorded, but audit.log not where: name a file".to_owned());
        }
        Ok(())
    }
}

/// What happens when more events wait than may, because the disk is full or slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// Events are dropped, and a line tells how many: to serve is worth more than to record.
    #[default]
    Drop,
    /// The same, and no session is opened from the first write that fails until one succeeds: none shall be there unrecorded.
    Refuse,
}

/// Filters of topics, none of them shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Topics(Arc<[TopicFilter]>);

impl Topics {
    /// Whether one of the filters matches.
    pub fn contain(&self, topic: &Topic) -> bool {
        self.0.iter().any(|filter| filter.matches(topic))
    }
}

impl TryFrom<Vec<String>> for Topics {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Topics, String> {
        let filters = texts.iter().map(|text| match TopicFilter::parse(text) {
            Ok(filter) if filter.is_shared() => {
                Err(format!("{text:?}: a share is for subscribers, so name {:?}", filter.pattern()))
            }
            Ok(filter) => Ok(filter),
            Err(error) => Err(format!("{text:?}: {error}")),
        });
        filters.collect::<Result<_, _>>().map(Topics)
    }
}

impl From<Topics> for Vec<String> {
    fn from(topics: Topics) -> Vec<String> {
        topics.0.iter().map(|filter| filter.as_str().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_64_kib_or_more() {
        for (size, expected) in [(1, false), (65_535, false), (65_536, true), (u64::MAX, true)] {
            let max_size = NonZeroU64::new(size).expect("not zero");
            let checked = Config { max_size, ..Config::default() }.check();
            assert_eq!(checked.is_ok(), expected, "{size}: {checked:?}");
        }
    }

    #[test]
    fn topics_are_filters_without_a_share_and_need_a_log() {
        let read = |topics: &str| toml::from_str::<Config>(&format!("topics = {topics}"));
        let config = read(r#"["valves/#", "+/set"]"#).expect("filters");
        for (topic, expected) in [("valves", true), ("valves/7", true), ("lamp/set", true), ("lamp", false)] {
            assert_eq!(config.topics.contain(&Topic::parse(topic).expect("a topic")), expected, "{topic}");
        }
        let complaint = config.check().expect_err("there is no log");
        assert!(complaint.contains("audit.log"), "{complaint}");
        assert_eq!(Config { log: Some("audit.jsonl".into()), ..config.clone() }.check(), Ok(()));
        let written = toml::to_string(&config).expect("TOML");
        assert_eq!(toml::from_str::<Config>(&written).expect("as written").topics, config.topics);
        for (topics, said) in
            [(r##"["a#"]"##, "\"a#\""), (r#"[""]"#, "at least one"), (r#"["$share/g/a"]"#, "name \"a\"")]
        {
            let refusal = read(topics).expect_err(topics).to_string();
            assert!(refusal.contains(said), "{topics}: {refusal}");
        }
    }
}
