//! The load tool: `cargo bench --bench load -- --help`.

mod bare;
mod client;
mod ledger;
mod options;
mod process;
mod report;
mod scenario;
mod slow;
mod soak;
mod trend;

use clap::Parser;
use options::{Options, Scenario};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

fn fail<T>(why: impl Into<String>) -> Result<T> {
    Err(why.into().into())
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.scenario == Scenario::Bare {
        return match bare::serve(options.sessions()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("the bare program: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let line = runtime
        .block_on(attempt(&options))
        .unwrap_or_else(|error| json!({"scenario": options::name(options.scenario), "failures": [error.to_string()]}));
    println!("{line}");
    match line["failures"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => ExitCode::SUCCESS,
        failures => {
            for failure in failures {
                eprintln!("failed: {}", failure.as_str().unwrap_or_default());
            }
            ExitCode::FAILURE
        }
    }
}

/// One run. However it ends, what it started ends with it.
async fn attempt(options: &Options) -> Result<Value> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let run = async {
        match options.scenario {
            Scenario::Soak => soak::run(options).await,
            Scenario::Slow => slow::run(options).await,
            _ => Ok(scenario::run(options).await?.line(options)),
        }
    };
    tokio::select! {
        line = run => line,
        () = tokio::time::sleep(Duration::from_secs(options.timeout())) => {
            fail(format!("not done after {} seconds", options.timeout()))
        }
        _ = terminate.recv() => fail("terminated"),
        _ = interrupt.recv() => fail("interrupted"),
    }
}
