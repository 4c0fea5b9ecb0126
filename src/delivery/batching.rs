//! Deliveries that wait for others to come in one frame with them.

use std::time::Instant;

use smallvec::SmallVec;

use super::outbox::{Delivery, lane};
use super::queue::Queue;
use super::rendition::Kind;
use crate::mqtt::inflight::Receipt;
use crate::wire::{Batch, Contract};

/// What waits, by contract.
#[derive(Debug, Default)]
pub struct Batching {
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    contract: Contract,
    most: usize,
    due: Instant,
    deliveries: Queue,
    /// The subscriptions that any of them is for.
    readers: SmallVec<[u32; 4]>,
}

impl Batching {
    /// One more waits. Gives back all that wait under its contract if they are as many as a frame may hold.
    pub fn add(&mut self, delivery: Delivery, batch: Batch, now: Instant) -> Option<Queue> {
        let contract = delivery.contract;
        let at = self.pending.iter().position(|pending| pending.contract == contract).unwrap_or_else(|| {
            self.pending.push(Pending {
                contract,
                most: batch.max_messages.get().into(),
                due: now + batch.delay(),
                deliveries: Queue::default(),
                readers: SmallVec::new(),
            });
            self.pending.len() - 1
        });
        let pending = &mut self.pending[at];
        for reader in &delivery.readers {
            if !pending.readers.contains(&reader.id) {
                pending.readers.push(reader.id);
            }
        }
        pending.deliveries.push(delivery);
        (pending.deliveries.len() >= pending.most).then(|| self.pending.remove(at).deliveries)
    }

    /// Gives back what has waited long enough, with its lane.
    pub fn due(&mut self, now: Instant) -> Option<(usize, Queue)> {
        self.remove(|pending| pending.due <= now)
    }

    /// Gives back what waits, due or not, with its lane.
    pub fn any(&mut self) -> Option<(usize, Queue)> {
        self.remove(|_| true)
    }

    /// A subscription has another contract now: what waits for it under an earlier one must not come behind this delivery.
    pub fn superseded(&mut self, delivery: &Delivery) -> Option<(usize, Queue)> {
        self.remove(|pending| {
            pending.contract != delivery.contract
                && delivery.readers.iter().any(|reader| pending.readers.contains(&reader.id))
        })
    }

    /// When the first of them has waited long enough.
    pub fn next_due(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.due).min()
    }

    /// Takes the oldest of a kind that may be dropped from a lane.
    pub fn drop_oldest(&mut self, lane_of: usize, kind: Kind) -> Option<Delivery> {
        let in_lane = self.pending.iter_mut().filter(|pending| lane(&pending.contract) == lane_of);
        let dropped = in_lane.map(|pending| &mut pending.deliveries).find_map(|queue| queue.drop_oldest(kind));
        self.forget_empty();
        dropped
    }

    /// Whether one of that kind could be dropped.
    pub fn holds(&self, kind: Kind) -> bool {
        self.pending.iter().any(|pending| pending.deliveries.holds(kind))
    }

    /// The subscription has ended: what waits for it alone leaves, and its receipts are to be confirmed.
    pub fn purge(&mut self, subscription: u32, receipts: &mut Vec<Receipt>) {
        for pending in &mut self.pending {
            pending.deliveries.purge(subscription, receipts);
            pending.readers.retain(|reader| *reader != subscription);
        }
        self.forget_empty();
    }

    /// Gives the payloads memory of their own.
    pub fn detach(&mut self) {
        self.pending.iter_mut().for_each(|pending| pending.deliveries.detach());
    }

    /// All that waits.
    pub fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.pending.iter().flat_map(|pending| pending.deliveries.iter())
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Delivery> {
        self.pending.iter_mut().flat_map(|pending| pending.deliveries.iter_mut())
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.pending.iter().map(|pending| pending.deliveries.len()).sum()
    }

    fn remove(&mut self, is_meant: impl FnMut(&Pending) -> bool) -> Option<(usize, Queue)> {
        let at = self.pending.iter().position(is_meant)?;
        let pending = self.pending.remove(at);
        Some((lane(&pending.contract), pending.deliveries))
    }

    fn forget_empty(&mut self) {
        self.pending.retain(|pending| !pending.deliveries.is_empty());
    }
}
