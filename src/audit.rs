//! The audit log: who connected, published, was refused or revoked, and what of the configuration changed.
//!
//! A file of JSON lines that is only ever appended to, and that goes on in a new file when it is large. Each line holds the hash of the
//! one before, so that a line that is changed, taken out, put in or moved is found.
//!
//! **The chain.** A line is one JSON object and a newline. Its first field is `seq`, which counts the lines from 1 and goes on over all
//! files and restarts; its last two are `prev` and `hash`. `hash` is the SHA-256, in lower-case hex, of the bytes of the line before
//! `,"hash":"`. `prev` is the `hash` of the line before, in the file before where need be; of the very first line it is 64 zeros. So
//! this checks the files of a log, given in their order:
//!
//! ```python
//! import fileinput, hashlib
//! seq = prev = None
//! for line in fileinput.input(mode="rb"):
//!     text, end = line[:-76], line[-76:]
//!     hash = hashlib.sha256(text).hexdigest().encode()
//!     assert end == b',"hash":"' + hash + b'"}\n', "changed"
//!     assert text.startswith(b'{"seq":%d,' % seq if seq else b'{"seq":'), "missing or moved"
//!     assert text.endswith(b'"prev":"' + prev + b'"' if prev else b'"'), "does not follow"
//!     seq, prev = int(text[7:text.index(b",")]) + 1, hash
//! ```
//!
//! **What it can't show.** Whoever may write to the files can cut off the end, or write everything from some line on anew. Against that
//! keep a hash elsewhere: `tidegate audit verify --expect-hash` finds its line, which vouches for all before it. The log of the process
//! tells the hash at each start, rotation and stop.
//!
//! **A write that was cut off**, by a crash, leaves bytes that are no line. They stay; the next line is `recovered`, with the SHA-256 of
//! those bytes as `torn`, and follows the last line that is whole. So a torn line is not taken for one that was changed.
//!
//! **A queue that is full**, because the disk is full or slow, drops what comes: nobody waits for this log. When it can be written
//! again, a line `dropped` tells how many events are missing, and since when.

mod config;
mod event;
mod fields;
mod journal;
mod line;
mod verify;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::{self, Sender};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::config::{Config, Topics, WhenFull};
pub use self::event::{Event, Kind, Request};
pub use self::fields::MAX_TEXT;
use self::journal::Journal;
use self::line::Entry;
pub use self::line::Hash;
pub use self::verify::{Finding, Report, Unreadable, What, verify};
use self::writer::{Order, Writer};
use crate::metrics;
use crate::mqtt::Topic;

/// Where events are recorded; nowhere, if no file is configured. Cheap to clone.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Running>>);

struct Running {
    queue: Sender<Order>,
    state: Arc<State>,
    rules: ArcSwap<Rules>,
    /// The writer has ended.
    ended: CancellationToken,
}

/// What the writer and those who record know of each other.
#[derive(Default)]
struct State {
    /// A write has failed, or the queue was full, and nothing has been written since.
    is_behind: AtomicBool,
    /// What no line tells of yet.
    missing: Mutex<Option<Missing>>,
}

/// Events that found the queue full.
struct Missing {
    count: u64,
    since: SystemTime,
}

/// What can change while the log is written.
struct Rules {
    topics: Topics,
    when_full: WhenFull,
}

impl Rules {
    fn of(config: &Config) -> Rules {
        Rules { topics: config.topics.clone(), when_full: config.when_full }
    }
}

/// The audit log can't be written; the message names the setting.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error("audit.log: cannot use {}: {cause}", path.display())]
    Unusable { path: PathBuf, cause: io::Error },
    #[error("audit.log: {} is no file: name one, which is made if it is not there", path.display())]
    NoFile { path: PathBuf },
    #[error("audit.log: {} holds something else than an audit log: name another file, or move this one away", path.display())]
    NoLog { path: PathBuf },
    #[error("audit.log: another process writes to {}: name another file for each", path.display())]
    Taken { path: PathBuf },
    #[error("the thread of the audit log can't start: {0}")]
    Thread(io::Error),
}

impl Audit {
    /// Opens the log, goes on where it ends, and starts the thread that writes it. Without a file there is nothing to do.
    pub fn start(config: &Config) -> Result<Audit, StartError> {
        let Some(path) = &config.log else { return Ok(Audit::default()) };
        let (journal, torn) = Journal::open(path, config)?;
        let (queue, orders) = mpsc::channel(usize::try_from(config.queue.get()).unwrap_or(usize::MAX));
        let (state, ended) = (Arc::new(State::default()), CancellationToken::new());
        let writer = Writer::new(journal, torn, orders, state.clone());
        let guard = ended.clone().drop_guard();
        for kind in Kind::ALL {
            metrics::audit_written(kind.name(), 0);
        }
        let run = move || {
            let _guard = guard;
            writer.run();
        };
        std::thread::Builder::new().name("audit".to_owned()).spawn(run).map_err(StartError::Thread)?;
        Ok(Audit(Some(Arc::new(Running { queue, state, rules: ArcSwap::from_pointee(Rules::of(config)), ended }))))
    }

    /// Records an event. Never waits: what finds the queue full is dropped and counted.
    pub fn record(&self, event: &Event<'_>) {
        if let Some(running) = &self.0 {
            running.record(Entry::of(event, SystemTime::now()));
        }
    }

    /// Whether publishes to this topic are to be recorded.
    pub fn covers(&self, topic: &Topic) -> bool {
        self.0.as_ref().is_some_and(|running| running.rules.load().topics.contain(topic))
    }

    /// Whether what is recorded is written soon. Not while writes fail, nor from when the queue was full until it is written.
    pub fn is_keeping_up(&self) -> bool {
        self.0.as_ref().is_none_or(|running| !running.state.is_behind.load(Ordering::Relaxed))
    }

    /// Whether new sessions are to be turned away until the log can be written again.
    pub fn refuses_sessions(&self) -> bool {
        let when_full = self.0.as_ref().map_or(WhenFull::Drop, |running| running.rules.load().when_full);
        when_full == WhenFull::Refuse && !self.is_keeping_up()
    }

    /// From now on these topics are audited, and this happens when the queue is full. All else needs a new process.
    pub fn set_rules(&self, config: &Config) {
        if let Some(running) = &self.0 {
            running.rules.store(Arc::new(Rules::of(config)));
        }
    }

    /// Waits until all that was recorded is written, at most until then. What is recorded later is dropped.
    pub async fn finish(&self, until: Instant) {
        let Some(Running { queue, ended, .. }) = self.0.as_deref() else { return };
        let finished = async {
            // No order is taken by a writer that has ended.
            let _ = queue.send(Order::Finish).await;
            ended.cancelled().await;
        };
        if timeout_at(until, finished).await.is_err() {
            let queued = queue.max_capacity() - queue.capacity();
            warn!(queued, "the audit log could not be written in time: its last events are lost");
        }
    }
}

impl Running {
    fn record(&self, entry: Entry) {
        // Before the writer can take it off again.
        metrics::audit_queued(1.0);
        let time = entry.time();
        if self.queue.try_send(Order::Write(entry)).is_err() {
            metrics::audit_queued(-1.0);
            metrics::audit_dropped(1);
            self.state.drop_one(time);
        }
    }
}

impl State {
    /// Held for a few instructions, and by those who drop an event or write a batch only.
    fn drop_one(&self, time: SystemTime) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get_or_insert(Missing { count: 0, since: time }).count += 1;
        self.is_behind.store(true, Ordering::Relaxed);
    }

    fn take_missing(&self) -> Option<Missing> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
#[path = "audit/tests.rs"]
mod tests;
