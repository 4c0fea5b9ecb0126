//! What Tidegate writes about itself, as lines on standard error.

use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The `[log]` section.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The form of a line.
    pub format: Format,
    /// What is worth a line.
    pub level: Level,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs that collect logs.
    Json,
}

/// A level (`info`), or levels for single parts of the program (`info,tidegate::broker=debug`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Level(String);

/// The log of this process, whose level can change. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    /// Nothing where the process logs nothing.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    level: Arc<ArcSwap<Level>>,
}

/// Starts logging for the whole process. Called once, before anything is logged.
pub fn init(config: &Config) -> Log {
    let (filter, handle) = reload::Layer::new(config.level.filter());
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(has_colours());
    let log = tracing_subscriber::registry().with(filter);
    match config.format {
        Format::Text => log.with(lines).init(),
        Format::Json => log.with(lines.json().flatten_event(true).with_current_span(false)).init(),
    }
    Log { filter: Some(handle), level: Arc::new(ArcSwap::from_pointee(config.level.clone())) }
}

impl Log {
    /// Lines are judged by this level from now on.
    pub fn set_level(&self, level: &Level) {
        self.level.store(Arc::new(level.clone()));
        if let Some(filter) = &self.filter {
            filter.reload(level.filter()).expect("the log lasts as long as the process");
        }
    }

    /// The level that lines are judged by.
    pub fn level(&self) -> Arc<Level> {
        self.level.load_full()
    }
}

/// A log that nobody reads.
impl Default for Log {
    fn default() -> Self {
        Log { filter: None, level: Arc::default() }
    }
}

/// Lets a line pass once a second, and counts those it holds back.
#[derive(Debug)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// The first line passes.
    pub const fn new() -> Seldom {
        Seldom(Mutex::new((None, 0)))
    }

    /// Whether the line may pass, and then how many were held back since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let (last, held_back) = &mut *self.0.lock().expect("nobody panics while holding it");
        if last.is_some_and(|last| now < last + Duration::from_secs(1)) {
            *held_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held_back))
    }
}

impl Default for Seldom {
    fn default() -> Self {
        Seldom::new()
    }
}

fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !unwanted
}

/// rumqttd tells every connection and its filters, rustls whatever a peer makes it tell; whoever wants that asks for it by name.
const QUIET: [&str; 2] = ["rumqttd", "rustls"];

impl Level {
    /// Some line is worth less than `other` asks for.
    pub fn tells_more_than(&self, other: &Level) -> bool {
        self.filter().max_level_hint() > other.filter().max_level_hint()
    }

    fn filter(&self) -> EnvFilter {
        let quiet = QUIET.iter().filter(|part| !self.0.contains(**part));
        let level = quiet.fold(self.0.clone(), |level, part| format!("{level},{part}=off"));
        EnvFilter::try_new(level).expect("a level was parsed when it was read")
    }
}

impl Default for Level {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let text = text.replace(' ', "");
        // The filter takes a bare word that is no level for a target: `inof` would silence nearly everything.
        let is_known = |part: &str| part.contains('=') || LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
        match text.split(',').find(|part| !is_known(part)) {
            None if EnvFilter::try_new(&text).is_ok() => Ok(Self(text)),
            misspelt => Err(format!(
                "`{}` is not a level: use off, error, warn, info, debug or trace, \
                 or add levels for parts of the program, as in `info,tidegate::broker=debug`",
                misspelt.unwrap_or(&text)
            )),
        }
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Level> for String {
    fn from(level: Level) -> Self {
        level.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Also together with what is added to it.
        #[test]
        fn what_is_taken_for_a_level_makes_a_filter(
            parts in prop::collection::vec("info|WARN|off|rumqttd|tidegate::x|[=,\\[\\]{}\". a-z0-9é]{1,3}", 0..8)
        ) {
            if let Ok(level) = parts.concat().parse::<Level>() {
                level.filter();
                prop_assert_eq!(String::from(level.clone()).parse(), Ok(level));
            }
        }
    }

    #[test]
    fn a_line_that_comes_too_often_is_counted_instead() {
        let (seldom, now) = (Seldom::new(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!([seldom.pass(now), seldom.pass(now), seldom.pass(now + second / 2)], [Some(0), None, None]);
        assert_eq!([seldom.pass(now + second), seldom.pass(now + 2 * second)], [Some(2), Some(0)]);
    }

    #[test]
    fn a_level_is_a_known_word_or_a_list_of_directives() {
        for (text, fits) in [
            ("info", true),
            ("off", true),
            ("info,tidegate::broker=debug", true),
            ("WARN,tidegate[session{id}]=trace", true),
            ("info, tidegate=debug", true),
            ("inof", false),
            ("info,tidegate", false),
            ("tidegate=loud", false),
            ("info!", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Level>().is_ok(), fits, "{text:?}");
        }
    }
}
