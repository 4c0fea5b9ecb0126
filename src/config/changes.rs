//! What a configuration that is read again changes, and what of it can be put in force without a restart.

use secrecy::ExposeSecret;
use toml::Table;

use super::{Config, every_setting, is_secret};
use crate::log;

/// One setting that is not as it was. A secret shows as `***`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Section and key.
    pub setting: String,
    /// What it was; empty where it was not set.
    pub from: String,
    /// What it is to be.
    pub to: String,
    /// The process has to be started anew for it.
    pub needs_restart: bool,
}

impl Config {
    /// What is in force after `new` was read, as far as a running gateway can change, and every difference to what was.
    pub fn replaced_by(&self, new: Config) -> (Config, Vec<Change>) {
        let wanted = new.values();
        // A new section has to say here which it is.
        let next = Config {
            http: self.http.clone(),
            tls: self.tls.replaced_by(new.tls),
            connections: new.connections,
            broker: self.broker.clone(),
            session: new.session,
            delivery: new.delivery,
            wire: new.wire,
            runtime: self.runtime.clone(),
            log: log::Config { format: self.log.format, level: new.log.level },
            shutdown: new.shutdown,
        };
        let (was, is) = (self.values(), next.values());
        let changes = every_setting().filter_map(|(section, key, _)| {
            let of = |values: &Table| values.get(section).and_then(|section| section.get(key)).cloned();
            let (was, is, wanted) = (of(&was), of(&is), of(&wanted));
            let shown = |value: Option<toml::Value>| match value {
                Some(_) if is_secret(section, key) => "***".to_owned(),
                Some(value) => value.to_string(),
                None => String::new(),
            };
            (was != wanted).then(|| Change {
                setting: format!("{section}.{key}"),
                needs_restart: is != wanted,
                from: shown(was),
                to: shown(wanted),
            })
        });
        let changes = changes.collect();
        (next, changes)
    }

    /// Every setting with its value, secrets not hidden: to compare, never to show.
    fn values(&self) -> Table {
        let mut values = Table::try_from(self).expect("a configuration is TOML");
        let broker = values.get_mut("broker").and_then(|section| section.as_table_mut()).expect("there is [broker]");
        for (key, secret) in [("password", &self.broker.password), ("client_key", &self.broker.client_key)] {
            if let Some(secret) = secret {
                broker.insert(key.to_owned(), secret.expose_secret().into());
            }
        }
        if let Some(key) = &self.tls.key {
            values["tls"]["key"] = key.expose_secret().into();
        }
        values
    }
}
