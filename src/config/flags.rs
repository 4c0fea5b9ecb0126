//! The settings that have a place on the command line.

use std::path::PathBuf;

use clap::Args;

use super::Setting;

/// What the command line says about the configuration.
///
/// The values are judged with the rest of the configuration, and in the same words.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// The configuration, in TOML [default: none is read]
    #[arg(long, global = true, value_name = "FILE", env = "TIDEGATE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,

    /// Where browsers connect [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDR", env = "TIDEGATE_LISTEN", hide_env_values = true)]
    pub listen: Option<String>,

    /// Where metrics are read [default: 127.0.0.1:9464]
    #[arg(long, global = true, value_name = "ADDR", env = "TIDEGATE_ADMIN_LISTEN", hide_env_values = true)]
    pub admin_listen: Option<String>,

    /// The MQTT broker, as mqtt://HOST, mqtts://HOST:PORT or unix:///PATH [default: embedded]
    #[arg(long, global = true, value_name = "URL", env = "TIDEGATE_BROKER", hide_env_values = true)]
    pub broker: Option<String>,

    /// How sessions reach the broker, per-session or shared [default: per-session]
    #[arg(long, global = true, value_name = "HOW", env = "TIDEGATE_UPSTREAM", hide_env_values = true)]
    pub upstream: Option<String>,
}

/// The variables that stand for flags; their values arrive as if they had been given there.
pub(super) const VARIABLES: [&str; 5] =
    ["TIDEGATE_CONFIG", "TIDEGATE_LISTEN", "TIDEGATE_ADMIN_LISTEN", "TIDEGATE_BROKER", "TIDEGATE_UPSTREAM"];

impl Flags {
    /// The settings that were given.
    pub(super) fn settings(&self) -> Vec<Setting> {
        [
            ("http", "listen", &self.listen, "--listen (or TIDEGATE_LISTEN)"),
            ("http", "admin_listen", &self.admin_listen, "--admin-listen (or TIDEGATE_ADMIN_LISTEN)"),
            ("broker", "url", &self.broker, "--broker (or TIDEGATE_BROKER)"),
            ("broker", "upstream", &self.upstream, "--upstream (or TIDEGATE_UPSTREAM)"),
        ]
        .into_iter()
        .filter_map(|(section, key, value, origin)| Some(Setting::new(&[section, key], value.as_deref()?, origin)))
        .collect()
    }
}
