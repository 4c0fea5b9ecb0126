//! The program: arguments, configuration, start, a signal, the end.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use secrecy::SecretString;
use tidegate::app::{App, By, policy, tell_panics};
use tidegate::audit::{self, Finding, Hash};
use tidegate::auth::{self, Judge, Revoked};
use tidegate::broker::{BrokerUrl, Upstream};
use tidegate::cli::{AuditCommand, Cli, Command, Explain, Hashed};
use tidegate::config::{Config, ConfigError, Flags, TEMPLATE, environment};
use tidegate::log::{self, Log};
use tidegate::metrics;
use tidegate::runtime::{self, Descriptors, needed_descriptors};
use tidegate::session::explaining;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The status of a configuration that can't be used.
const BAD_CONFIGURATION: u8 = 2;
/// The status of an audit log that can't be read, which says nothing of what is in it.
const UNREADABLE: u8 = 2;

/// The most that is read of a token or password to hash, in bytes.
const MAX_HASHED: u64 = 64 << 10;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_check = match &cli.command {
        Some(Command::DefaultConfig) => return print(TEMPLATE),
        Some(Command::Audit(AuditCommand::Verify { expect_hash, files })) => return verify(files, *expect_hash),
        Some(Command::Hash { of }) => return hash(*of),
        Some(Command::CheckConfig) => true,
        Some(Command::Explain(_)) | None => false,
    };
    let config = match Config::load(&cli.flags, environment()) {
        Ok(config) => config,
        Err(error) => return fail(&error, BAD_CONFIGURATION),
    };
    if is_check {
        return print(&format!("{config}\nok\n"));
    }
    if let Some(Command::Explain(asked)) = cli.command {
        return match runtime::start(&config.runtime) {
            Ok(runtime) => runtime.block_on(explain(&config, *asked)),
            Err(error) => fail(&error, 1),
        };
    }
    let log = log::init(&config.log);
    let descriptors = Descriptors::raise();
    descriptors.judge(needed(&config));
    let runtime = match runtime::start(&config.runtime) {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let status = runtime.block_on(run(config, log, descriptors, &cli.flags));
    // A look-up of the broker's name may be under way, and nobody waits for it any more.
    runtime.shutdown_background();
    status
}

/// Tells what is wrong with an audit log, a line each, and what it comes to.
fn verify(files: &[PathBuf], noted: Option<Hash>) -> ExitCode {
    let mut tell = |finding: &Finding| {
        print(&format!("{finding}\n"));
    };
    match audit::verify(files, noted, &mut tell) {
        Ok(report) => {
            print(&format!("{report}\n"));
            ExitCode::from(u8::from(report.faults > 0))
        }
        Err(error) => fail(&error, UNREADABLE),
    }
}

async fn run(config: Config, log: Log, descriptors: Descriptors, flags: &Flags) -> ExitCode {
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing has chosen a provider before");
    let page = metrics::install().expect("nothing has installed a recorder before");
    tell_panics();
    let signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [Ok(terminate), Ok(interrupt), Ok(mut hangup)] = signals else {
        return fail(&"the signals SIGTERM, SIGINT and SIGHUP can't be listened to", 1);
    };
    let mut stops = Stops { terminate, interrupt };
    let mut app = match App::start(config, log, page).await {
        Ok(app) => app,
        Err(error) => return fail(&error, 1),
    };
    print(&app.to_string());
    let mut is_told = false;
    let is_signalled = loop {
        tokio::select! {
            () = stops.next() => break true,
            () = app.told_to_stop() => break false,
            _ = hangup.recv() => {
                let read = read_again(flags, &descriptors);
                // What became of it is in the log.
                let _ = app.reload(read, By::Signal);
            }
            askers = app.asked_to_reload() => {
                let read = read_again(flags, &descriptors);
                askers.tell(&app.reload(read, By::Api));
            }
            () = app.tell_ready(), if !is_told => is_told = true,
        }
    };
    let second_signal = async {
        if !is_signalled {
            stops.next().await;
        }
        stops.next().await;
    };
    tokio::select! {
        () = app.stop() => ExitCode::SUCCESS,
        () = second_signal => ExitCode::FAILURE,
    }
}

fn read_again(flags: &Flags, descriptors: &Descriptors) -> Result<Config, ConfigError> {
    let read = Config::load(flags, environment());
    if let Ok(config) = &read {
        descriptors.judge(needed(config));
    }
    read
}

/// Tells what somebody may do and why, by a configuration and without a gateway.
async fn explain(config: &Config, explain: Explain) -> ExitCode {
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing has chosen a provider before");
    let question = match explain.question() {
        Ok(question) => question,
        Err(error) => return fail(&error, BAD_CONFIGURATION),
    };
    let judge = Revoked::look(&config.auth).and_then(|revoked| Judge::new(&config.auth, revoked));
    let judge = match judge {
        Ok(judge) => judge,
        Err(error) => return fail(&error, BAD_CONFIGURATION),
    };
    let levels = config.wire.max_topic_levels.get();
    let answer = explaining::explain(&judge, &policy(config), levels, Ipv4Addr::LOCALHOST.into(), question).await;
    print(&format!("{answer}\n"));
    ExitCode::from(u8::from(answer.qos.is_none()))
}

/// Prints the hash of what stands on standard input, but for the end of its last line.
fn hash(of: Hashed) -> ExitCode {
    let mut text = String::new();
    if let Err(error) = io::stdin().take(MAX_HASHED + 1).read_to_string(&mut text) {
        return fail(&format!("standard input can't be read: {error}"), 1);
    }
    if text.len() as u64 > MAX_HASHED {
        return fail(&format!("standard input has more than {MAX_HASHED} bytes"), 1);
    }
    let secret = SecretString::from(text.trim_end_matches(['\r', '\n']));
    let hash = match of {
        Hashed::Token => auth::hash_token(&secret),
        Hashed::Password => auth::hash_password(&secret),
    };
    match hash {
        Ok(hash) => print(&format!("{hash}\n")),
        Err(why) => fail(&why, 1),
    }
}

/// The descriptors that this configuration asks for. A session has its browser's connection and its own to the broker, which has
/// its other end in this process too where the broker is embedded.
fn needed(config: &Config) -> u64 {
    let each = match (config.broker.upstream, &config.broker.url) {
        // Those that need a client of their own are few.
        (Upstream::Shared, _) => 1,
        (Upstream::PerSession, BrokerUrl::Embedded { .. }) => 3,
        (Upstream::PerSession, BrokerUrl::Mqtt { .. } | BrokerUrl::Unix { .. }) => 2,
    };
    needed_descriptors(&config.connections, each)
}

/// SIGTERM and SIGINT, which mean the same.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A closed pipe at the other end is no failure of ours.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::fmt::Display, status: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "tidegate: {error}");
    ExitCode::from(status)
}
