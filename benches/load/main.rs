//! The load tool: `cargo bench --bench load -- --help`.

mod bare;
mod check;
mod client;
mod guarded;
mod house;
mod ledger;
mod options;
mod packets;
mod page;
mod plan;
mod process;
mod progress;
mod publisher;
mod readers;
mod report;
mod scenario;
mod slow;
mod soak;
mod trend;

use clap::Parser;
use options::{Options, Scenario, Served};
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
        return ended("the bare program", bare::serve(options.sessions(), options.server == Served::Coalescing));
    }
    if options.guarded {
        guarded::begin();
    }
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    if let Some(share) = &options.share {
        let served = runtime.block_on(readers::serve(&options, share));
        // Standard input is read by a thread that nobody can call back.
        runtime.shutdown_background();
        return ended("a process of readers", served);
    }
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

/// How a child process of the tool ends.
fn ended(who: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{who}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One run. However it ends, what it started ends with it.
async fn attempt(options: &Options) -> Result<Value> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let is_of_gateways = matches!(options.scenario, Scenario::Soak | Scenario::Slow | Scenario::Check);
    if is_of_gateways && (options.server != Served::Gateway || options.processes > 1) {
        return fail("this scenario is for a gateway, and reads in one process");
    }
    let run = async {
        match options.scenario {
            Scenario::Soak => soak::run(options).await,
            Scenario::Slow => slow::run(options).await,
            Scenario::Check => check::run(options).await,
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
