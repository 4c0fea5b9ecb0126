//! Wakes one task: cheaper than a channel without messages, as it is used for every delivery.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// A flag that one task waits for. Raising it twice before it is seen is raising it once.
#[derive(Debug, Default)]
pub struct Signal {
    raised: AtomicBool,
    waiter: AtomicWaker,
}

impl Signal {
    /// Raises the flag.
    pub fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.waiter.wake();
        }
    }

    /// Waits for the flag and lowers it. One task at a time may wait; to stop waiting loses nothing.
    pub async fn raised(&self) {
        poll_fn(|context| self.poll_raised(context)).await;
    }

    /// The same.
    pub fn poll_raised(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.lower() {
            return Poll::Ready(());
        }
        self.waiter.register(context.waker());
        // It may have been raised just before the waker was there.
        if self.lower() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn lower(&self) -> bool {
        self.raised.load(Ordering::Acquire) && self.raised.swap(false, Ordering::AcqRel)
    }
}

/// Wakes whoever serves a link.
#[derive(Debug)]
pub enum Raise {
    /// A task that serves this one alone.
    One(Signal),
    /// A task that serves many, and hears which of them it was.
    Among {
        /// Where that task listens.
        bell: Arc<Bell>,
        /// What it knows this one by.
        number: u64,
        rung: AtomicBool,
    },
}

impl Default for Raise {
    fn default() -> Raise {
        Raise::One(Signal::default())
    }
}

impl Raise {
    /// One of many.
    pub fn among(bell: Arc<Bell>, number: u64) -> Raise {
        Raise::Among { bell, number, rung: AtomicBool::new(false) }
    }

    /// Wakes the task. Once is enough until it has looked.
    pub fn raise(&self) {
        match self {
            Raise::One(signal) => signal.raise(),
            Raise::Among { bell, number, rung } => {
                if !rung.swap(true, Ordering::AcqRel) {
                    bell.numbers.lock().unwrap_or_else(PoisonError::into_inner).push(*number);
                    bell.signal.raise();
                }
            }
        }
    }

    /// Others share the task.
    pub fn is_among(&self) -> bool {
        matches!(self, Raise::Among { .. })
    }

    /// One of many: it is looked at now, and what comes from now on is to be told anew.
    pub fn seen(&self) {
        if let Raise::Among { rung, .. } = self {
            rung.store(false, Ordering::Release);
        }
    }

    /// The only one: waits as [`Signal::raised`]. One of many is never waited for here.
    pub async fn raised(&self) {
        poll_fn(|context| self.poll_raised(context)).await;
    }

    /// The same.
    pub fn poll_raised(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Raise::One(signal) => signal.poll_raised(context),
            Raise::Among { .. } => Poll::Pending,
        }
    }
}

/// Where a task that serves many hears which of them want something; as many as there are, at most.
#[derive(Debug, Default)]
pub struct Bell {
    numbers: Mutex<Vec<u64>>,
    signal: Signal,
}

impl Bell {
    /// Waits until it rings, and says who rang.
    pub async fn rung(&self) -> Vec<u64> {
        self.signal.raised().await;
        std::mem::take(&mut self.numbers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flag_that_was_raised_before_is_seen_once() {
        let signal = Signal::default();
        signal.raise();
        signal.raise();
        signal.raised().await;
        assert!(futures_util::FutureExt::now_or_never(signal.raised()).is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_raise_is_missed_between_two_threads() {
        let (there, back) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let other = tokio::spawn({
            let (there, back) = (there.clone(), back.clone());
            async move {
                for _ in 0..20_000 {
                    there.raised().await;
                    back.raise();
                }
            }
        });
        for _ in 0..20_000 {
            there.raise();
            back.raised().await;
        }
        other.await.expect("it ended");
    }
}
