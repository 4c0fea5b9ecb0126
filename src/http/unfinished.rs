//! What clients have begun to send and not finished. It waits in memory for its rest, so all of it together has a budget.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use crate::metrics;
use crate::wire::Close;

/// What each connection may have begun, whatever the others have.
const FREE: u64 = 64 * 1024;

/// The account of all connections.
#[derive(Debug, Default)]
pub struct Unfinished(Mutex<Account>);

#[derive(Debug, Default)]
struct Account {
    total: u64,
    next: u64,
    /// Who holds more than is free; who has held longest comes first.
    holders: BTreeMap<u64, Holder>,
}

#[derive(Debug)]
struct Holder {
    bytes: u64,
    waker: Waker,
}

impl Unfinished {
    fn change<T>(&self, change: impl FnOnce(&mut Account) -> T) -> T {
        let mut account = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut account);
        metrics::unfinished(account.total);
        result
    }
}

impl Account {
    fn put(&mut self, number: u64, holder: Holder) {
        self.total += holder.bytes;
        if let Some(before) = self.holders.insert(number, holder) {
            self.total -= before.bytes;
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(holder) = self.holders.remove(&number) {
            self.total -= holder.bytes;
        }
    }

    /// Ends who has held longest.
    fn let_go(&mut self) {
        if let Some((_, holder)) = self.holders.pop_first() {
            self.total -= holder.bytes;
            holder.waker.wake();
        }
    }
}

/// What one connection has begun.
#[derive(Debug)]
pub struct Share {
    unfinished: Arc<Unfinished>,
    max: u64,
    /// Its place among the holders, and the bytes it told last.
    held: Option<(u64, u64)>,
}

impl Share {
    /// Of a connection that has begun nothing. Over `max` bytes in all, who has held longest is let go.
    pub fn new(unfinished: Arc<Unfinished>, max: usize) -> Share {
        Share { unfinished, max: max as u64, held: None }
    }

    /// So many bytes wait for their rest. The error ends the connection; where another has to end, this wakes it.
    pub fn hold(&mut self, bytes: u64, waker: &Waker) -> Result<(), Close> {
        if bytes <= FREE {
            self.release();
            return Ok(());
        }
        let (max, held) = (self.max, self.held);
        let number = self.unfinished.change(|account| {
            let number = match held {
                Some((number, _)) if !account.holders.contains_key(&number) => return None,
                Some((number, told)) if told == bytes => return Some(number),
                Some((number, _)) => number,
                None => account.next,
            };
            account.next = account.next.max(number + 1);
            account.put(number, Holder { bytes, waker: waker.clone() });
            while account.total > max {
                account.let_go();
            }
            account.holders.contains_key(&number).then_some(number)
        });
        self.held = number.map(|number| (number, bytes));
        number.map(drop).ok_or(Close::OverLimit)
    }

    /// Nothing waits any more.
    pub fn release(&mut self) {
        if let Some((number, _)) = self.held.take() {
            self.unfinished.change(|account| account.remove(number));
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    const KIB: u64 = 1024;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn total(unfinished: &Unfinished) -> u64 {
        unfinished.change(|account| account.total)
    }

    #[test]
    fn up_to_the_budget_all_may_hold_and_over_it_the_longest_goes() {
        let unfinished = Arc::<Unfinished>::default();
        let share = || Share::new(unfinished.clone(), 300 * KIB as usize);
        let bell = Arc::<Bell>::default();
        let rung = || bell.0.load(Ordering::Relaxed);
        let waker = Waker::from(bell.clone());
        let (mut first, mut second, mut third) = (share(), share(), share());
        for share in [&mut first, &mut second, &mut third] {
            assert_eq!(share.hold(100 * KIB, &waker), Ok(()));
        }
        assert_eq!((total(&unfinished), rung()), (300 * KIB, 0));
        assert_eq!(second.hold(100 * KIB + 1, &waker), Ok(()), "one byte over it");
        assert_eq!((total(&unfinished), rung()), (200 * KIB + 1, 1));
        assert_eq!(first.hold(100 * KIB, &waker), Err(Close::OverLimit));
        assert_eq!(third.hold(100 * KIB, &waker), Ok(()));
        drop((first, second, third));
        assert_eq!(total(&unfinished), 0);
    }

    #[test]
    fn little_is_free_and_what_is_finished_is_given_back() {
        let unfinished = Arc::<Unfinished>::default();
        let mut share = Share::new(unfinished.clone(), 100 * KIB as usize);
        let waker = Waker::noop();
        assert_eq!((share.hold(FREE, waker), total(&unfinished)), (Ok(()), 0));
        assert_eq!((share.hold(FREE + 1, waker), total(&unfinished)), (Ok(()), FREE + 1));
        share.release();
        assert_eq!((share.hold(90 * KIB, waker), total(&unfinished)), (Ok(()), 90 * KIB));
        assert_eq!((share.hold(0, waker), total(&unfinished)), (Ok(()), 0));
    }

    #[test]
    fn one_that_alone_is_over_the_budget_goes_itself() {
        let unfinished = Arc::<Unfinished>::default();
        let mut share = Share::new(unfinished.clone(), 100 * KIB as usize);
        assert_eq!(share.hold(101 * KIB, Waker::noop()), Err(Close::OverLimit));
        assert_eq!(total(&unfinished), 0);
    }

    #[test]
    fn who_finished_and_begins_again_is_the_last_to_go() {
        let unfinished = Arc::<Unfinished>::default();
        let share = || Share::new(unfinished.clone(), 250 * KIB as usize);
        let (mut first, mut second, mut third) = (share(), share(), share());
        let waker = Waker::noop();
        assert_eq!(first.hold(100 * KIB, waker), Ok(()));
        assert_eq!(second.hold(100 * KIB, waker), Ok(()));
        first.release();
        assert_eq!(first.hold(100 * KIB, waker), Ok(()));
        assert_eq!(third.hold(100 * KIB, waker), Ok(()));
        assert_eq!(second.hold(100 * KIB, waker), Err(Close::OverLimit));
        assert_eq!(first.hold(100 * KIB, waker), Ok(()));
    }
}
