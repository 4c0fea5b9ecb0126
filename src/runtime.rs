//! What the process takes of its machine: threads, the processors they run on, and descriptors.

mod config;
mod descriptors;
#[cfg(not(target_os = "linux"))]
#[path = "runtime/not_linux.rs"]
mod processors;
#[cfg(target_os = "linux")]
mod processors;

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::available_parallelism;

use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

pub use self::config::Config;
pub use self::descriptors::{Descriptors, needed_descriptors};
use self::processors::Processors;

/// Starts the event loop; on the way back, each worker runs where it is to run.
pub fn start(config: &Config) -> Result<Runtime, StartError> {
    let workers = config.worker_threads.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().worker_threads(workers);
    let runtime = if config.pin_workers {
        start_pinned(builder, workers)?
    } else {
        builder.build().map_err(StartError::EventLoop)?
    };
    info!(workers, pinned = config.pin_workers, "the event loop has started");
    Ok(runtime)
}

/// The workers are the first threads of a runtime, so they are waited for before anything can ask for one that may block. Such a
/// thread begins where the one is pinned that asked for it, and has to be set free.
fn start_pinned(mut builder: Builder, workers: usize) -> Result<Runtime, StartError> {
    let processors = Processors::available().map_err(StartError::Processors)?;
    let settled = Arc::new(Barrier::new(workers + 1));
    let (settling, started) = (settled.clone(), AtomicUsize::new(0));
    builder.on_thread_start(move || {
        let number = started.fetch_add(1, Ordering::Relaxed);
        let placed = if number < workers { processors.pin(number) } else { processors.unpin() };
        if let Err(error) = placed {
            warn!(%error, number, "a thread can't be told where to run (runtime.pin_workers)");
        }
        if number < workers {
            settling.wait();
        }
    });
    let runtime = builder.build().map_err(StartError::EventLoop)?;
    settled.wait();
    Ok(runtime)
}

/// There is no event loop to run in.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error("the event loop can't start: {0}")]
    EventLoop(io::Error),
    #[error("runtime.pin_workers: which processors there are can't be told: {0}; leave it false")]
    Processors(io::Error),
}
