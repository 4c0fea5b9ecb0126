//! Orders on their way to a link, from one session or from many. While none waits it holds next to nothing: tokio's own channel keeps
//! room for 32, which for each of many sessions at rest would be the largest part of them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::Semaphore;

use super::link::Order;
use super::signal::Signal;

/// A way for so many orders at one time.
pub fn channel(capacity: usize) -> (Sender, Receiver) {
    let way = Arc::new(Way {
        orders: Mutex::default(),
        room: Semaphore::new(capacity),
        signal: Signal::default(),
        senders: AtomicUsize::new(1),
    });
    (Sender { way: way.clone() }, Receiver { way, has_looked: false })
}

#[derive(Debug)]
struct Way {
    orders: Mutex<VecDeque<Order>>,
    /// For so many more.
    room: Semaphore,
    /// There is an order, or the last sender is gone.
    signal: Signal,
    senders: AtomicUsize,
}

impl Way {
    fn orders(&self) -> MutexGuard<'_, VecDeque<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where orders go in.
#[derive(Debug)]
pub struct Sender {
    way: Arc<Way>,
}

impl Sender {
    /// Waits for room and sends this; the error says that nobody is there any more.
    pub async fn send(&self, order: Order) -> Result<(), ()> {
        self.send_with(|| Some(order)).await
    }

    /// Waits for room and sends the order that is made then, if one is; the error says that nobody is there any more. Safe to drop
    /// half-way.
    pub async fn send_with(&self, make: impl FnOnce() -> Option<Order>) -> Result<(), ()> {
        let room = self.way.room.acquire().await.map_err(drop)?;
        let mut orders = self.way.orders();
        // The receiver closes the way under this lock.
        if self.way.room.is_closed() {
            return Err(());
        }
        if let Some(order) = make() {
            room.forget();
            orders.push_back(order);
            drop(orders);
            self.way.signal.raise();
        }
        Ok(())
    }
}

impl Clone for Sender {
    fn clone(&self) -> Sender {
        self.way.senders.fetch_add(1, Ordering::Relaxed);
        Sender { way: self.way.clone() }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.way.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.way.signal.raise();
        }
    }
}

/// Where they come out.
#[derive(Debug)]
pub struct Receiver {
    way: Arc<Way>,
    /// And found nothing, so that the signal is to be waited for.
    has_looked: bool,
}

impl Receiver {
    /// The next order; nothing once all senders are gone and all that they sent is taken. Safe to drop half-way.
    pub async fn recv(&mut self) -> Option<Order> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// The same.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Order>> {
        loop {
            if self.has_looked {
                ready!(self.way.signal.poll_raised(context));
                self.has_looked = false;
            }
            // Looked at first: what the last one sent is there by then.
            let is_over = self.way.senders.load(Ordering::Acquire) == 0;
            let mut orders = self.way.orders();
            if let Some(order) = orders.pop_front() {
                if orders.is_empty() {
                    *orders = VecDeque::new();
                }
                drop(orders);
                self.way.room.add_permits(1);
                return Poll::Ready(Some(order));
            }
            if is_over {
                return Poll::Ready(None);
            }
            self.has_looked = true;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut orders = self.way.orders();
        self.way.room.close();
        let unheard = std::mem::take(&mut *orders);
        drop(orders);
        drop(unheard);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures_util::FutureExt;

    use super::*;
    use crate::broker::link::Command;

    fn order(id: u64) -> Option<Order> {
        Some(Order { made: Instant::now(), command: Box::new(Command::Fence(id)), from: None })
    }

    fn id(order: Option<Order>) -> Option<u64> {
        order.map(|order| match *order.command {
            Command::Fence(id) => id,
            other => panic!("{other:?} was not sent"),
        })
    }

    #[tokio::test]
    async fn orders_come_in_turn_and_wait_for_room() {
        let (sender, mut receiver) = channel(2);
        for number in 0..2 {
            sender.send_with(|| order(number)).await.expect("there is a receiver");
        }
        let mut third = Box::pin(sender.send_with(|| order(2)));
        assert!((&mut third).now_or_never().is_none(), "there is no room");
        assert_eq!(id(receiver.recv().await), Some(0));
        third.await.expect("there is a receiver");
        sender.send_with(|| None).now_or_never().unwrap_or(Ok(())).expect("there is a receiver");
        assert_eq!((id(receiver.recv().await), id(receiver.recv().await)), (Some(1), Some(2)));
        assert!(receiver.recv().now_or_never().is_none(), "nothing was sent");
        for number in 3..5 {
            sender.send_with(|| order(number)).now_or_never().expect("what made nothing took no room").expect("sent");
        }
    }

    #[tokio::test]
    async fn each_end_hears_that_the_other_is_gone() {
        let (sender, mut receiver) = channel(1);
        let other = sender.clone();
        sender.send_with(|| order(0)).await.expect("there is a receiver");
        drop(sender);
        assert_eq!(id(receiver.recv().await), Some(0));
        let mut end = Box::pin(receiver.recv());
        assert!((&mut end).now_or_never().is_none(), "one sender is left");
        drop(other);
        assert!(end.await.is_none());

        let (sender, receiver) = channel(1);
        sender.send_with(|| order(0)).await.expect("there is a receiver");
        let mut waiting = Box::pin(sender.send_with(|| order(1)));
        assert!((&mut waiting).now_or_never().is_none());
        drop(receiver);
        assert_eq!(waiting.await, Err(()));
        assert_eq!(sender.send_with(|| panic!("nobody would hear it")).await, Err(()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_order_is_missed_between_two_threads() {
        let (sender, mut receiver) = channel(3);
        let others = [0, 1].map(|from| {
            let sender = sender.clone();
            tokio::spawn(async move {
                for number in 0..10_000 {
                    sender.send_with(|| order(number * 2 + from)).await.expect("there is a receiver");
                }
            })
        });
        drop(sender);
        let mut next = [0, 1];
        while let Some(number) = id(receiver.recv().await) {
            let next = &mut next[number as usize % 2];
            assert_eq!(number, *next);
            *next += 2;
        }
        assert_eq!(next, [20_000, 20_001]);
        for other in others {
            other.await.expect("it ended");
        }
    }
}
