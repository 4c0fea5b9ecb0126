//! The configuration: every module's section, gathered from the command line, the environment and a file.
//!
//! Flags go before the environment, the environment before the file, the file before the defaults. A setting that
//! ends in `_file` names a file, which must be readable. Where there is also a setting of that name without `_file`,
//! this one is a secret: given in one form or the other, read at the start, and never shown.

mod changes;
mod environment;
mod file;
mod flags;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::{Table, Value};

pub use self::changes::Change;
pub use self::environment::environment;
pub use self::flags::Flags;
use crate::{access, broker, delivery, http, log, runtime, session, shutdown, wire};

/// A configuration file with every setting, its meaning and, as a comment, its default.
pub const TEMPLATE: &str = include_str!("config/default.toml");

/// Every setting of every module. Shown as TOML, without its secrets.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where Tidegate listens.
    pub http: http::Config,
    /// Whether browsers come by TLS.
    pub tls: http::TlsConfig,
    /// How many may connect, and when.
    pub connections: access::Config,
    /// Which broker stands behind it.
    pub broker: broker::Config,
    /// What a browser session may take and have.
    pub session: session::Config,
    /// What may wait for a browser.
    pub delivery: delivery::Config,
    /// How large frames may be.
    pub wire: wire::Config,
    /// What the event loop takes of the machine.
    pub runtime: runtime::Config,
    /// What is logged.
    pub log: log::Config,
    /// How Tidegate stops.
    pub shutdown: shutdown::Config,
}

impl Config {
    /// Gathers the configuration and reads the files it names. [`environment()`] is the environment to pass.
    pub fn load(flags: &Flags, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => file::settings(path)?,
            None => Vec::new(),
        };
        let mut settings = Vec::new();
        for layer in [file, environment::settings(environment)?, flags.settings()] {
            overlay(&mut settings, layer)?;
        }
        read_files(&mut settings)?;
        let config = Self::from_settings(settings)?;
        config.check()?;
        Ok(config)
    }

    fn from_settings(settings: Vec<Setting>) -> Result<Self, ConfigError> {
        let mut sections = Table::new();
        for setting in &settings {
            sections
                .entry(&setting.section)
                .or_insert_with(|| Table::new().into())
                .as_table_mut()
                .expect("sections are tables")
                .insert(setting.key.clone(), setting.value.clone());
        }
        serde_path_to_error::deserialize(sections).map_err(|error| {
            let path = error.path().to_string();
            let culprit = settings.iter().find(|setting| setting.name() == path);
            ConfigError::Value {
                origin: culprit.map_or(path, |setting| setting.origin.clone()),
                message: error.inner().message().to_owned(),
            }
        })
    }

    /// Judges the settings together, those of one section at a time.
    fn check(&self) -> Result<(), ConfigError> {
        self.http
            .check()
            .and_then(|()| self.tls.check())
            .and_then(|()| self.broker.check())
            .and_then(|()| self.wire.check())
            .and_then(|()| self.runtime.check())
            .map_err(ConfigError::Together)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&toml::to_string(self).expect("a configuration is TOML"))
    }
}

/// Why there is no configuration: the whole message for whoever wrote it, without any secret.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{}, line {line}, column {column}: {message}{excerpt}", path.display())]
    File { path: PathBuf, line: usize, column: usize, message: String, excerpt: String },
    #[error("there is no setting for {name}{}", did_you_mean(near))]
    UnknownVariable { name: String, near: Vec<String> },
    #[error("{origin}: {message}")]
    Value { origin: String, message: String },
    #[error("{secret} and {secret}_file are both given: keep one of the two")]
    BothForms { secret: String },
    #[error("{setting}: cannot read {}: {cause}", path.display())]
    NamedFile { setting: String, path: PathBuf, cause: io::Error },
    #[error("{0}")]
    Together(String),
}

fn did_you_mean(near: &[String]) -> String {
    match near {
        [] => ": `tidegate default-config` shows those there are".to_owned(),
        near => format!(": is it {}?", near.join(" or ")),
    }
}

/// A value that was given for a setting.
struct Setting {
    section: String,
    key: String,
    value: Value,
    /// Where it was given, in the words of an error.
    origin: String,
}

impl Setting {
    fn new(section: &str, key: &str, value: impl Into<Value>, origin: impl Into<String>) -> Self {
        Self { section: section.to_owned(), key: key.to_owned(), value: value.into(), origin: origin.into() }
    }

    fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// The key that this file's text belongs to, where it is the file of a secret.
    fn key_of_secret(&self) -> Option<&str> {
        self.key.strip_suffix("_file").filter(|key| is_secret(&self.section, key))
    }

    /// What this setting decides: both forms of a secret decide the same.
    fn subject(&self) -> String {
        format!("{}.{}", self.section, self.key_of_secret().unwrap_or(&self.key))
    }
}

/// Every setting there is, with its default or else an example: the template without its comment signs.
static EVERY_SETTING: LazyLock<Table> = LazyLock::new(|| {
    let lines: Vec<_> = TEMPLATE.lines().map(uncommented).collect();
    lines.join("\n").parse().expect("the template is TOML")
});

/// Takes the comment sign off a setting, but not off a sentence.
fn uncommented(line: &str) -> &str {
    let setting = line.strip_prefix("# ").unwrap_or(line);
    match setting.split_once(" = ") {
        Some((key, _)) if !key.contains(' ') => setting,
        _ => line,
    }
}

/// The section, the key, and the default or example of every setting.
fn every_setting() -> impl Iterator<Item = (&'static str, &'static str, &'static Value)> {
    EVERY_SETTING.iter().flat_map(|(section, settings)| {
        let settings = settings.as_table().expect("sections are tables");
        settings.iter().map(move |(key, example)| (section.as_str(), key.as_str(), example))
    })
}

fn is_secret(section: &str, key: &str) -> bool {
    let exists = |key: &str| EVERY_SETTING.get(section).is_some_and(|section| section.get(key).is_some());
    exists(key) && exists(&format!("{key}_file"))
}

/// Lets a layer replace what lies below. Either form of a secret replaces the other.
fn overlay(settings: &mut Vec<Setting>, layer: Vec<Setting>) -> Result<(), ConfigError> {
    for (index, setting) in layer.iter().enumerate() {
        if layer[..index].iter().any(|other| other.subject() == setting.subject()) {
            return Err(ConfigError::BothForms { secret: setting.subject() });
        }
    }
    settings.retain(|below| !layer.iter().any(|above| above.subject() == below.subject()));
    settings.extend(layer);
    Ok(())
}

/// Reads every file that a setting names, so that none is found missing later, and puts the secrets in their place.
fn read_files(settings: &mut Vec<Setting>) -> Result<(), ConfigError> {
    let mut secrets = Vec::new();
    for setting in settings.iter().filter(|setting| setting.key.ends_with("_file")) {
        let path = PathBuf::from(setting.value.as_str().unwrap_or_default());
        let text = fs::read_to_string(&path).map_err(|cause| ConfigError::NamedFile {
            setting: setting.name(),
            path: path.clone(),
            cause,
        })?;
        if let Some(key) = setting.key_of_secret() {
            let secret = text.trim_end_matches(['\r', '\n']);
            let origin = format!("{}, {}", setting.name(), path.display());
            secrets.push(Setting::new(&setting.section, key, secret, origin));
        }
    }
    settings.extend(secrets);
    Ok(())
}

#[cfg(test)]
mod tests;
