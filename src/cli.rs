//! The command line.

use std::fs;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, value_parser};
use secrecy::SecretString;
use serde_json::{Map, Value};

use crate::access::identity::{Claims, is_name, names};
use crate::access::{Credential, Identity, Source};
use crate::audit::Hash;
use crate::config::Flags;
use crate::mqtt::Qos;
use crate::session::explaining::{Question, Wanted, Who};
use crate::wire::Refusal;
use crate::wire::json::{filter, topic};

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
#[derive(Clone, Debug, Subcommand)]
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
    /// Tell what somebody may do, and by which rule; the status is 0 if it is allowed, 1 if it is not
    Explain(Box<Explain>),
    /// Look at an audit log
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// What the configuration has a hash of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hashed {
    /// A static token, for [auth.tokens.NAME]
    Token,
    /// A password, for [auth.users.NAME]
    Password,
}

/// What can be done with an audit log.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum AuditCommand {
    /// Find lines that were changed, taken out or moved; the status is 0 if there are none, 1 if there are, 2 if a file can't be read
    Verify {
        /// A hash of this log that was noted down: if its line is not there, the log was cut off or written anew
        #[arg(long, value_name = "HASH")]
        expect_hash: Option<Hash>,
        /// The files of one log, in any order
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Who wants what.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("who").required(true))]
pub struct Explain {
    /// Whoever shows this token, which other users of the machine may see here
    #[arg(long, group = "who")]
    token: Option<SecretString>,
    /// Whoever shows the token in this file
    #[arg(long, group = "who", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Whoever comes without a credential
    #[arg(long, group = "who")]
    anonymous: bool,
    /// A user, of whom a token would say what --role, --group and --claim say
    #[arg(long, group = "who", value_name = "NAME")]
    user: Option<String>,
    /// A role of the user
    #[arg(long, value_name = "NAME")]
    role: Vec<String>,
    /// A group of the user
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// A claim of the user; given again, it has several values
    #[arg(long, value_name = "NAME=VALUE", value_parser = claim)]
    claim: Vec<(String, String)>,
    /// The client identifier
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// The QoS, 0, 1 or 2
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u8).range(..=2))]
    qos: u8,
    /// The message is to be stored
    #[arg(long)]
    retain: bool,
    /// What it wants
    action: Wish,
    /// A topic, or a filter
    topic: String,
}

/// What somebody wants of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wish {
    /// To get messages
    Subscribe,
    /// To send them
    Publish,
}

impl Explain {
    /// What is asked; the error says what would be right. Reads the file of the token.
    pub fn question(self) -> Result<Question, String> {
        let qos = Qos::from_number(self.qos.into()).expect("it was judged");
        let sentence = |refusal: Refusal| refusal.message.into_owned();
        let wanted = match self.action {
            Wish::Publish => Wanted::Publish { topic: topic(&self.topic).map_err(sentence)?, qos, retain: self.retain },
            Wish::Subscribe if self.retain => return Err("--retain is for publishes: leave it out".to_owned()),
            Wish::Subscribe => Wanted::Subscribe { filter: filter(&self.topic).map_err(sentence)?, qos },
        };
        let is_described = !self.role.is_empty() || !self.group.is_empty() || !self.claim.is_empty();
        if is_described && self.user.is_none() {
            return Err("--role, --group and --claim are those of a --user: name it".to_owned());
        }
        let who = match (self.token, self.token_file, self.user) {
            (Some(token), _, _) => Who::Shows(Credential::Token(token)),
            (None, Some(path), _) => {
                let text = fs::read_to_string(&path)
                    .map_err(|error| format!("--token-file: cannot read {}: {error}", path.display()))?;
                Who::Shows(Credential::Token(text.trim_end_matches(['\r', '\n']).into()))
            }
            (None, None, Some(user)) if !is_name(&user) => {
                return Err("--user: a name has 1 to 256 bytes, and no control characters".to_owned());
            }
            (None, None, Some(user)) => {
                let mut claims = Map::new();
                for (name, value) in self.claim {
                    let values = claims.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                    values.as_array_mut().expect("all are lists").push(value.into());
                }
                Who::Is(Identity {
                    user: Some(user.into()),
                    source: Source::Token,
                    roles: names(&self.role),
                    groups: names(&self.group),
                    claims: Claims::of(&claims),
                    token_id: None,
                    expires: None,
                })
            }
            (None, None, None) => Who::Anonymous,
        };
        Ok(Question { who, client_id: self.client_id, wanted })
    }
}

fn claim(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as site=north")?;
    Ok((name.to_owned(), value.to_owned()))
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
            assert!(matches!(cli.command, Some(Command::CheckConfig)), "{line:?}");
            assert_eq!(cli.flags.broker.as_deref(), Some("mqtt://mosquitto"), "{line:?}");
        }
    }

    #[test]
    fn an_audit_log_is_verified_by_its_files_and_a_hash_that_was_noted_down() {
        let hash = Hash::of(b"");
        for (arguments, expected) in [
            (vec!["a.jsonl"], Some(None)),
            (vec!["a.jsonl", "b.jsonl", "--expect-hash", &hash.to_string()], Some(Some(hash))),
            (vec![], None),
            (vec!["a.jsonl", "--expect-hash", "e3b0"], None),
        ] {
            let parsed = Cli::try_parse_from(["tidegate", "audit", "verify"].iter().chain(&arguments));
            let command = match parsed.ok().and_then(|cli| cli.command) {
                Some(Command::Audit(command)) => Some(command),
                _ => None,
            };
            let files = arguments.iter().take_while(|argument| !argument.starts_with('-')).map(PathBuf::from).collect();
            let expected = expected.map(|expect_hash| AuditCommand::Verify { expect_hash, files });
            assert_eq!(command, expected, "{arguments:?}");
        }
    }
}
