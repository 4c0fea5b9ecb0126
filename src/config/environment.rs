//! Settings from environment variables: `TIDEGATE_SECTION__KEY`.

use std::env;

use toml::Value;

use super::{ConfigError, Known, Setting, every_setting, flags, is_named};

const PREFIX: &str = "TIDEGATE_";

/// The environment of this process, as [`Config::load`](super::Config::load) takes it. What is not Unicode in a value
/// is replaced, and then refused by its setting if it matters there.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

/// The settings that the variables give. A variable with our prefix that is no setting is an error.
pub(super) fn settings(environment: impl IntoIterator<Item = (String, String)>) -> Result<Vec<Setting>, ConfigError> {
    environment
        .into_iter()
        .filter(|(name, value)| {
            name.starts_with(PREFIX) && !flags::VARIABLES.contains(&name.as_str()) && !is_service_link(name, value)
        })
        .map(|(name, value)| setting(&name, &value))
        .collect()
}

fn setting(name: &str, text: &str) -> Result<Setting, ConfigError> {
    let known = every_setting()
        .find(|known| variable(known).is_some_and(|variable| variable == name))
        .ok_or_else(|| ConfigError::UnknownVariable { name: name.to_owned(), near: near(name) })?;
    // A text is taken as it is, so that a password may look like a number. All else is written as in the file.
    let value = match known.example {
        Value::String(_) => Value::from(text),
        _ => text.parse().unwrap_or_else(|_| text.into()),
    };
    Ok(Setting::new(&known.path, value, name))
}

/// The variable of a setting. What its user named has none: a file has room for it.
fn variable(known: &Known) -> Option<String> {
    (!is_named(&known.path)).then(|| format!("{PREFIX}{}", known.path.join("__")).to_ascii_uppercase())
}

/// Kubernetes tells every container about every Service, so that one named `tidegate` or `tidegate-…` uses our prefix:
/// `TIDEGATE_SERVICE_HOST`, `TIDEGATE_PORT=tcp://…`, `TIDEGATE_PORT_8080_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.contains("_PORT_")
            || name.ends_with("_PORT") && value.contains("://"))
}

/// The variables that may have been meant: a few letters off, or the same key in its section.
fn near(name: &str) -> Vec<String> {
    let name = name.to_ascii_uppercase();
    let key = name.rsplit("__").next().unwrap_or(&name).trim_start_matches(PREFIX);
    let known = every_setting().filter_map(variable).chain(flags::VARIABLES.map(str::to_owned));
    let mut all: Vec<_> = known.map(|known| (distance(&name, &known), known)).collect();
    all.sort();
    let (close, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(distance, _)| *distance <= 3);
    let same_key = others.into_iter().filter(|(_, known)| close.is_empty() && known.ends_with(&format!("__{key}")));
    close.iter().cloned().chain(same_key).map(|(_, known)| known).take(3).collect()
}

/// The fewest letters to insert, remove or change that make one word the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings_of(name: &str, value: &str) -> Result<Vec<Setting>, ConfigError> {
        settings([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn a_variable_has_the_type_of_its_setting() {
        for (name, text, expected) in [
            ("TIDEGATE_BROKER__KEEP_ALIVE", "45", Value::Integer(45)),
            ("TIDEGATE_SESSION__HEARTBEAT", "2.5", Value::Float(2.5)),
            ("TIDEGATE_SESSION__HEARTBEAT", "soon", "soon".into()),
            ("TIDEGATE_BROKER__PASSWORD", "31415", "31415".into()),
            ("TIDEGATE_BROKER__USERNAME", "true", "true".into()),
        ] {
            assert_eq!(settings_of(name, text).unwrap()[0].value, expected, "{name}={text}");
        }
    }

    #[test]
    fn an_unknown_variable_is_told_what_may_have_been_meant() {
        for (name, near) in [
            ("TIDEGATE_BROKER_URL", "is it TIDEGATE_BROKER__URL"),
            ("TIDEGATE_BROKR__URL", "is it TIDEGATE_BROKER__URL"),
            ("TIDEGATE_broker__url", "is it TIDEGATE_BROKER__URL?"),
            ("TIDEGATE_URL", "is it TIDEGATE_BROKER__URL or TIDEGATE_AUTH__HOOK__URL?"),
            ("TIDEGATE_WIRE__MAX_PACKET", "TIDEGATE_BROKER__MAX_PACKET"),
            ("TIDEGATE_BROKERS", "is it TIDEGATE_BROKER?"),
            ("TIDEGATE_FLUX_CAPACITOR", "tidegate default-config"),
        ] {
            let refusal = settings_of(name, "1").err().expect(name).to_string();
            assert!(refusal.contains(name) && refusal.contains(near), "{refusal}");
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        for (name, value) in [
            ("PATH", "/bin"),
            ("TIDEGATES__URL", "x"),
            ("TIDEGATE_LISTEN", "read by the command line"),
            ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
            ("TIDEGATE_SERVICE_PORT_METRICS", "9464"),
            ("TIDEGATE_PORT", "tcp://10.0.0.1:8080"),
            ("TIDEGATE_ADMIN_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(settings_of(name, value).unwrap().is_empty(), "{name}");
        }
    }
}
