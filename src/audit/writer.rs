//! The thread that writes: it takes what waits, gives each line its place in the chain, and tries until it is written.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc::Receiver;
use tracing::{info, warn};

use super::event::{Event, Kind};
use super::journal::{Journal, Torn};
use super::line::{Entry, Link};
use super::{Missing, State};
use crate::log::Seldom;
use crate::metrics;

/// What is written in one go ends with the line that makes it so large.
const BATCH: usize = 256 * 1024;
/// How long a write that failed is left alone, at first; each time twice as long.
const SHORTEST_REST: Duration = Duration::from_millis(50);
/// Short enough that little is dropped once there is room again.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// What the writer is told.
pub(super) enum Order {
    /// Write this.
    Write(Entry),
    /// End, now that all before this is written.
    Finish,
}

/// Owns the files.
pub(super) struct Writer {
    journal: Journal,
    link: Link,
    /// What is to be told first.
    torn: Option<Torn>,
    orders: Receiver<Order>,
    state: Arc<State>,
}

impl Writer {
    pub fn new(journal: Journal, torn: Option<Torn>, orders: Receiver<Order>, state: Arc<State>) -> Writer {
        Writer { link: journal.last(), journal, torn, orders, state }
    }

    /// Writes until it is told to finish. Blocks: it is for a thread of its own.
    pub fn run(mut self) {
        let mut batch = Batch::default();
        if let Some(Torn { bytes, hash }) = self.torn {
            warn!(bytes, "a write to the audit log was cut off: the log goes on, and tells of it");
            batch.add(&mut self.link, &Entry::of(&Event::Recovered { bytes, torn: hash }, SystemTime::now()));
            self.write(&mut batch);
        }
        let mut is_over = false;
        while !is_over {
            is_over = self.take(&mut batch);
            self.write(&mut batch);
        }
        let Link { seq, hash } = self.journal.last();
        info!(seq, %hash, "the audit log has ended with this line");
        self.orders.close();
        while let Some(order) = self.orders.blocking_recv() {
            if let Order::Write(_) = order {
                metrics::audit_queued(-1.0);
                metrics::audit_dropped(1);
            }
        }
    }

    /// Waits for something to write and takes what else there is. Says whether that is all there will be.
    fn take(&mut self, batch: &mut Batch) -> bool {
        let mut order = self.orders.blocking_recv();
        let is_over = loop {
            match order {
                Some(Order::Write(entry)) => batch.take(&mut self.link, &entry),
                Some(Order::Finish) | None => break true,
            }
            if batch.lines.len() >= BATCH {
                break false;
            }
            order = match self.orders.try_recv() {
                Ok(order) => Some(order),
                Err(_) => break false,
            };
        };
        if let Some(Missing { count, since }) = self.state.take_missing() {
            batch.add(&mut self.link, &Entry::of(&Event::Dropped { count, since }, SystemTime::now()));
        }
        is_over
    }

    /// Tries until it is written: what waits is not given up while it may wait.
    fn write(&mut self, batch: &mut Batch) {
        static LINES: Seldom = Seldom::new();
        let mut rest = SHORTEST_REST;
        while !batch.lines.is_empty() {
            match self.journal.append(&batch.lines, self.link) {
                Ok(()) => {
                    self.state.is_behind.store(false, Ordering::Relaxed);
                    batch.count_as_written();
                }
                Err(error) => {
                    self.state.is_behind.store(true, Ordering::Relaxed);
                    metrics::audit_write_failed();
                    if let Some(unsaid) = LINES.pass(Instant::now()) {
                        warn!(%error, unsaid, "the audit log can't be written: events wait, and are dropped when too many do");
                    }
                    sleep(rest);
                    rest = LONGEST_REST.min(rest * 2);
                }
            }
        }
    }
}

/// Lines that are written together.
#[derive(Default)]
struct Batch {
    lines: Vec<u8>,
    /// Of each kind, in the order of [`Kind::ALL`].
    counts: [u64; Kind::ALL.len()],
    /// Those of them that had waited in the queue.
    queued: u32,
}

impl Batch {
    fn take(&mut self, link: &mut Link, entry: &Entry) {
        self.queued += 1;
        self.add(link, entry);
    }

    fn add(&mut self, link: &mut Link, entry: &Entry) {
        link.follow(entry, &mut self.lines);
        self.counts[entry.kind() as usize] += 1;
    }

    /// Leaves it empty, with the room it has.
    fn count_as_written(&mut self) {
        for (kind, count) in Kind::ALL.iter().zip(&mut self.counts) {
            if *count > 0 {
                metrics::audit_written(kind.name(), std::mem::take(count));
            }
        }
        metrics::audit_queued(-f64::from(std::mem::take(&mut self.queued)));
        self.lines.clear();
    }
}
