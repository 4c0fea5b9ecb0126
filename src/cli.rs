//! The command line.

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::Flags;

/// MQTT for web apps: a WebSocket gateway that gives every browser session its own MQTT client.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// What the command line says about the configuration.
    #[command(flatten)]
    pub flags: Flags,
    /// What to do instead of running the gateway.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What Tidegate can do besides running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Show the configuration as it would be in force, its secrets aside, or what is wrong with it
    CheckConfig,
    /// Print a configuration file with every setting, its meaning and its default
    DefaultConfig,
    /// Print the hash of a token or a password, which is read from standard input
    Hash {
        /// What it is
        of: Hashed,
    },
}

/// What the configuration has a hash of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hashed {
    /// A static token, for [auth.tokens.NAME]
    Token,
    /// A password, for [auth.users.NAME]
    Password,
}

const AFTER_HELP: &str = "\
Without a command, the gateway runs until it is told to stop (SIGINT or SIGTERM).

Every setting has an environment variable, TIDEGATE_SECTION__KEY: TIDEGATE_BROKER__PASSWORD_FILE is
`password_file` in the file's [broker] section. Flags go before the environment, the environment
before the file, the file before the defaults. A configuration that is wrong ends the program with
status 2, before it listens anywhere.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_follow_the_command() {
        for line in [
            ["tidegate", "--broker", "mqtt://mosquitto", "check-config"],
            ["tidegate", "check-config", "--broker", "mqtt://mosquitto"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.command, Some(Command::CheckConfig), "{line:?}");
            assert_eq!(cli.flags.broker.as_deref(), Some("mqtt://mosquitto"), "{line:?}");
        }
    }
}
