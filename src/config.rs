//! The configuration: every module's section, gathered from the command line, the environment and a file.
//!
//! Flags go before the environment, the environment before the file, the file before the defaults. A setting that
//! ends in `_file` names a file, which must be readable. Where there is also a setting of that name without `_file`,
//! this one is a secret: given in one form or the other, read at the start, and never shown.

mod changes;
mod environment;
mod file;
mod flags;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::{Table, Value};

pub use self::changes::Change;
pub use self::environment::environment;
pub use self::flags::Flags;
use crate::{access, audit, auth, broker, delivery, http, log, runtime, session, shutdown, wire};

/// A configuration file with every setting, its meaning and, as a comment, its default.
pub const TEMPLATE: &str = include_str!("config/default.toml");

/// Every setting of every module. Shown as TOML, without its secrets.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where Tidegate listens.
    pub http: http::Config,
    /// Who may do what operators do.
    pub admin: http::AdminConfig,
    /// Whether browsers come by TLS.
    pub tls: http::TlsConfig,
    /// How many may connect, and when.
    pub connections: access::Config,
    /// Who may come in, and how that is shown.
    pub auth: auth::Config,
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
    /// What is recorded.
    pub audit: audit::Config,
    /// How Tidegate stops.
    pub shutdown: shutdown::Config,
    /// Who may do what, by the name of the role.
    pub roles: BTreeMap<String, access::RoleConfig>,
    /// Devices by the name of their group.
    pub groups: BTreeMap<String, access::GroupConfig>,
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
        let mut all = Table::new();
        for setting in &settings {
            let (key, sections) = setting.path.split_last().expect("a path has a last part");
            let mut table = &mut all;
            for section in sections {
                let entry = table.entry(section).or_insert_with(|| Table::new().into());
                table = entry.as_table_mut().expect("sections are tables");
            }
            table.insert(key.clone(), setting.value.clone());
        }
        serde_path_to_error::deserialize(all).map_err(|error| {
            let path = error.path().to_string();
            // A mistake in a table that its user named is told by the table.
            let is_within = |name: String| path == name || path.starts_with(&format!("{name}."));
            let culprit = settings.iter().find(|setting| is_within(setting.name()));
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
            .and_then(|()| self.admin.check())
            .and_then(|()| self.auth.check())
            .and_then(|()| self.check_certificates())
            .and_then(|()| self.auth.policy(&self.roles, &self.groups).map(drop))
            .and_then(|()| self.tls.check())
            .and_then(|()| self.broker.check())
            .and_then(|()| self.wire.check())
            .and_then(|()| self.runtime.check())
            .and_then(|()| self.audit.check())
            .map_err(ConfigError::Together)
    }
}

impl Config {
    fn check_certificates(&self) -> Result<(), String> {
        if self.auth.certificate.is_some() && !self.tls.asks_for_certificates() {
            return Err(
                "[auth.certificate] needs client certificates: set tls.client_certificates to \"optional\" or \
                        \"required\""
                    .to_owned(),
            );
        }
        Ok(())
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
    /// Its sections, and its key last.
    path: Vec<String>,
    value: Value,
    /// Where it was given, in the words of an error.
    origin: String,
}

impl Setting {
    fn new(path: &[&str], value: impl Into<Value>, origin: impl Into<String>) -> Self {
        Self { path: path.iter().map(|part| (*part).to_owned()).collect(), value: value.into(), origin: origin.into() }
    }

    fn name(&self) -> String {
        self.path.join(".")
    }

    /// The name of the setting that this file's text belongs to, where it is the file of a secret.
    fn secret(&self) -> Option<String> {
        self.name().strip_suffix("_file").filter(|name| is_secret(name)).map(str::to_owned)
    }

    /// What this setting decides: both forms of a secret decide the same.
    fn subject(&self) -> String {
        self.secret().unwrap_or_else(|| self.name())
    }
}

/// A setting that there is.
struct Known {
    /// Its sections, and its key last.
    path: Vec<&'static str>,
    /// Its default, or else an example.
    example: &'static Value,
}

impl Known {
    fn name(&self) -> String {
        self.path.join(".")
    }

    fn key(&self) -> &'static str {
        self.path.last().expect("a path has a last part")
    }
}

/// Every setting there is, with its default or else an example: the template without its comment signs.
static TEMPLATE_TABLE: LazyLock<Table> = LazyLock::new(|| {
    let lines: Vec<_> = TEMPLATE.lines().map(uncommented).collect();
    lines.join("\n").parse().expect("the template is TOML")
});

static EVERY_SETTING: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let mut known = Vec::new();
    flatten(&TEMPLATE_TABLE, &mut Vec::new(), &mut |path, example| {
        known.push(Known { path: path.to_vec(), example });
    });
    known
});

/// Takes the comment sign off a setting or the name of a section, but not off a sentence.
fn uncommented(line: &str) -> &str {
    let setting = line.strip_prefix("# ").unwrap_or(line);
    let is_setting = setting.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let is_section = setting.starts_with('[') && setting.ends_with(']');
    if is_setting || is_section { setting } else { line }
}

/// Tables whose names their user chooses; each is one setting.
const NAMED: [&[&str]; 4] = [&["auth", "tokens"], &["auth", "users"], &["groups"], &["roles"]];

/// Its user chose the name of it, or of a part before it.
fn is_named(path: &[&str]) -> bool {
    NAMED.iter().any(|section| path.starts_with(section))
}

/// Calls `each` with every setting of a table. An empty section is one too: that it is there may mean something.
fn flatten<'t>(table: &'t Table, path: &mut Vec<&'t str>, each: &mut impl FnMut(&[&'t str], &'t Value)) {
    let are_named = NAMED.contains(&path.as_slice());
    for (key, value) in table {
        path.push(key);
        match value {
            Value::Table(section) if !are_named && (path.len() == 1 || !section.is_empty()) => {
                flatten(section, path, each);
            }
            value => each(path, value),
        }
        path.pop();
    }
}

/// Every setting there is.
fn every_setting() -> impl Iterator<Item = &'static Known> {
    EVERY_SETTING.iter()
}

fn is_secret(name: &str) -> bool {
    let exists = |name: &str| every_setting().any(|known| known.name() == name);
    exists(name) && exists(&format!("{name}_file"))
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
    for setting in settings.iter().filter(|setting| setting.path.last().is_some_and(|key| key.ends_with("_file"))) {
        let path = PathBuf::from(setting.value.as_str().unwrap_or_default());
        let text = fs::read_to_string(&path).map_err(|cause| ConfigError::NamedFile {
            setting: setting.name(),
            path: path.clone(),
            cause,
        })?;
        if let Some(secret) = setting.secret() {
            let text = text.trim_end_matches(['\r', '\n']);
            let origin = format!("{}, {}", setting.name(), path.display());
            secrets.push(Setting::new(&secret.split('.').collect::<Vec<_>>(), text, origin));
        }
    }
    settings.extend(secrets);
    Ok(())
}

#[cfg(test)]
mod tests;
