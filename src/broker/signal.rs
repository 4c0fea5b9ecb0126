//! Wakes one task: cheaper than a channel without messages, as it is used for every delivery.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

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
        poll_fn(|context| {
            if self.raised.swap(false, Ordering::AcqRel) {
                return Poll::Ready(());
            }
            self.waiter.register(context.waker());
            // It may have been raised just before the waker was there.
            if self.raised.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
