//! What a configuration that is read again changes, and what of it can be put in force without a restart.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{Config, Known, every_setting, flatten, is_named, is_secret};
use crate::{audit, http, log, units};

/// One setting that is not as it was. A secret shows as `***`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Sections and key.
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
        let shown_wanted = new.shown_values();
        // A new section has to say here which it is.
        let next = Config {
            http: http::Config { allowed_origins: new.http.allowed_origins, ..self.http.clone() },
            admin: new.admin,
            tls: self.tls.replaced_by(new.tls),
            connections: new.connections,
            auth: new.auth,
            broker: self.broker.clone(),
            session: new.session,
            delivery: new.delivery,
            wire: new.wire,
            runtime: self.runtime.clone(),
            log: log::Config { format: self.log.format, level: new.log.level },
            audit: audit::Config { topics: new.audit.topics, when_full: new.audit.when_full, ..self.audit.clone() },
            shutdown: new.shutdown,
            roles: new.roles,
            groups: new.groups,
        };
        let (was, is, shown_was) = (self.values(), next.values(), self.shown_values());
        // In the order of the template; what its user named comes last.
        let known = every_setting().filter(|known| !is_named(&known.path)).map(Known::name).collect::<Vec<_>>();
        let mut named: Vec<_> = was.keys().chain(wanted.keys()).filter(|name| !known.contains(name)).cloned().collect();
        named.sort();
        named.dedup();
        let changes = known.into_iter().chain(named).filter_map(|setting| {
            let shown = |values: &BTreeMap<String, Value>| match values.get(&setting) {
                Some(_) if is_secret(&setting) => "***".to_owned(),
                Some(value) => value.to_string(),
                None => String::new(),
            };
            (was.get(&setting) != wanted.get(&setting)).then(|| Change {
                needs_restart: is.get(&setting) != wanted.get(&setting),
                from: shown(&shown_was),
                to: shown(&shown_wanted),
                setting: setting.clone(),
            })
        });
        let changes = changes.collect();
        (next, changes)
    }

    /// Every setting with its value, secrets not hidden: to compare, never to show.
    fn values(&self) -> BTreeMap<String, Value> {
        units::secret::shown(|| self.shown_values())
    }

    /// The same with `***` for secrets.
    fn shown_values(&self) -> BTreeMap<String, Value> {
        let mut values = BTreeMap::new();
        let table = Table::try_from(self).expect("a configuration is TOML");
        flatten(&table, &mut Vec::new(), &mut |path, value| drop(values.insert(path.join("."), value.clone())));
        values
    }
}
