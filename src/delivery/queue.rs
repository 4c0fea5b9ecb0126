//! Deliveries one behind the other.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::outbox::Delivery;
use super::rendition::Kind;
use crate::mqtt::inflight::Receipt;

/// Deliveries in the order in which they came, each at a place that no other ever has.
#[derive(Debug, Default)]
pub struct Queue {
    deliveries: VecDeque<(u64, Delivery)>,
    next_place: u64,
    /// How many of each [`Kind`].
    droppable: [usize; 2],
    /// How many of the last ones share the memory that they were read into.
    shared: usize,
}

impl Queue {
    /// Behind all others.
    pub fn push(&mut self, delivery: Delivery) {
        if let Some(kind) = delivery.kind() {
            self.droppable[kind as usize] += 1;
        }
        self.shared += 1;
        self.deliveries.push_back((self.next_place, delivery));
        self.next_place += 1;
    }

    /// All of another one, behind all others.
    pub fn append(&mut self, mut other: Queue) {
        for (_, delivery) in other.deliveries.drain(..) {
            self.push(delivery);
        }
    }

    /// The place of the next that comes.
    pub fn next_place(&self) -> u64 {
        self.next_place
    }

    /// The first and its place.
    pub fn first(&self) -> Option<(u64, &Delivery)> {
        self.deliveries.front().map(|(place, delivery)| (*place, delivery))
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<Delivery> {
        let (_, delivery) = self.deliveries.pop_front()?;
        if let Some(kind) = delivery.kind() {
            self.droppable[kind as usize] -= 1;
        }
        self.shared = self.shared.min(self.deliveries.len());
        Some(delivery)
    }

    /// Gives back the memory of what has left.
    pub fn shrink(&mut self) {
        if self.deliveries.capacity() > 4 * self.deliveries.len() {
            self.deliveries.shrink_to_fit();
        }
    }

    /// Takes the oldest of a kind.
    pub fn drop_oldest(&mut self, kind: Kind) -> Option<Delivery> {
        if self.droppable[kind as usize] == 0 {
            return None;
        }
        let index = self.deliveries.iter().position(|(_, delivery)| delivery.kind() == Some(kind))?;
        let (_, delivery) = self.deliveries.remove(index)?;
        self.droppable[kind as usize] -= 1;
        if index + self.shared > self.deliveries.len() {
            self.shared -= 1;
        }
        Some(delivery)
    }

    /// Whether one of that kind could be dropped.
    pub fn holds(&self, kind: Kind) -> bool {
        self.droppable[kind as usize] > 0
    }

    /// The subscription has ended: what came for it alone leaves, and its receipts are to be confirmed.
    pub fn purge(&mut self, subscription: u32, receipts: &mut Vec<Receipt>) {
        self.retain_mut(receipts, |delivery| !delivery.is_for_none_but(subscription));
    }

    /// What is not to be kept leaves, and its receipts are to be confirmed.
    pub fn retain(&mut self, receipts: &mut Vec<Receipt>, mut keep: impl FnMut(&Delivery) -> bool) {
        self.retain_mut(receipts, |delivery| keep(delivery));
    }

    fn retain_mut(&mut self, receipts: &mut Vec<Receipt>, mut keep: impl FnMut(&mut Delivery) -> bool) {
        self.detach();
        self.deliveries.retain_mut(|(_, delivery)| {
            let stays = keep(delivery);
            if !stays {
                receipts.extend(delivery.receipt);
            }
            stays
        });
        let count = |kind| self.iter().filter(|delivery| delivery.kind() == Some(kind)).count();
        self.droppable = [Kind::Live, Kind::Stored].map(count);
    }

    /// Gives the payloads memory of their own.
    pub fn detach(&mut self) {
        let shared = std::mem::take(&mut self.shared);
        if shared == 0 {
            return;
        }
        self.deliveries.iter_mut().rev().take(shared).for_each(|(_, delivery)| delivery.detach());
    }

    /// All, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.deliveries.iter().map(|(_, delivery)| delivery)
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Delivery> {
        self.deliveries.iter_mut().map(|(_, delivery)| delivery)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }
}

impl Delivery {
    /// Takes an ended subscription from its readers; says whether nobody is left of those who were.
    pub fn is_for_none_but(&mut self, subscription: u32) -> bool {
        let before = self.readers.len();
        self.readers.retain(|reader| reader.id != subscription);
        before > 0 && self.readers.is_empty()
    }

    /// Gives the payload memory of its own.
    pub fn detach(&mut self) {
        // What several sessions share was given memory of its own before.
        if let Some(rendition) = Arc::get_mut(&mut self.rendition) {
            rendition.message.payload = Bytes::copy_from_slice(&rendition.message.payload);
        }
    }
}
