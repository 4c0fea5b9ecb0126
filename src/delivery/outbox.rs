//! The deliveries that wait for one browser, bounded by count and by bytes.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::batching::Batching;
use super::config::Bound;
use super::conflation::{Conflation, Offered};
use super::delta::Gaps;
use super::latest::Source;
use super::queue::Queue;
use super::rendition::{Kind, Rendition};
use super::subscriptions::Reader;
use crate::mqtt::inflight::Receipt;
use crate::wire::{Contract, Head, Priority, json};

/// A message on its way to one browser.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What is delivered, shared by all who get it in the same form.
    pub rendition: Arc<Rendition>,
    /// How it comes.
    pub contract: Contract,
    /// The subscriptions it comes for.
    pub readers: SmallVec<[Reader; 1]>,
    /// How it is known to the client, exactly when its QoS is above 0.
    pub msgid: Option<Arc<str>>,
    /// The broker delivered it before.
    pub dup: bool,
    /// What confirms it; nothing at QoS 0, and where it is confirmed as soon as it waits here.
    pub receipt: Option<Receipt>,
    /// How many for its topic it took the place of; counted here, so it begins as 0.
    pub skipped: u32,
}

impl Delivery {
    /// What the frame says beyond the message.
    pub fn head(&self) -> Head {
        Head {
            sids: self.readers.iter().filter_map(|reader| reader.sid).collect(),
            msgid: self.msgid.clone(),
            dup: self.dup,
            skipped: self.skipped,
        }
    }

    /// Of a message, for nobody by name.
    #[cfg(test)]
    pub fn plain(message: crate::mqtt::Message) -> Delivery {
        Delivery {
            rendition: Arc::new(Rendition::new(message, crate::wire::Format::Text, 0, Instant::now())),
            contract: Contract::default(),
            readers: SmallVec::new(),
            msgid: None,
            dup: false,
            receipt: None,
            skipped: 0,
        }
    }

    /// Whether it may be written as soon as it comes: the client has nothing to confirm.
    pub fn goes_at_once(&self) -> bool {
        self.contract.goes_at_once()
    }

    /// Gives the parts of its frame's text.
    pub fn write(&self, to: impl FnOnce(&[&[u8]])) {
        let (head, text) = (json::head(&self.head()), self.rendition.text());
        let (begun, rest) = text.split_at(json::HEAD_AT);
        to(&[begun, &head, rest]);
    }

    /// It comes for the readers of an older one too, and is so many bytes larger then.
    pub fn join_readers(&mut self, older: &Delivery) -> usize {
        let ours = |reader: &Reader, readers: &[Reader]| readers.iter().any(|other| other.id == reader.id);
        if older.readers.iter().all(|reader| ours(reader, &self.readers)) {
            return 0;
        }
        let size = self.size();
        for reader in &older.readers {
            if !ours(reader, &self.readers) {
                self.readers.push(*reader);
            }
        }
        self.size() - size
    }

    /// What may be done with it while its browser reads nothing.
    pub fn kind(&self) -> Option<Kind> {
        self.rendition.kind()
    }

    /// What it takes in memory while it waits, roughly; twice itself, as a queue that grows makes room for as much again. What it
    /// shares with others counts whole: they may be gone before it.
    pub fn size(&self) -> usize {
        let readers = if self.readers.spilled() { self.readers.capacity() * size_of::<Reader>() } else { 0 };
        let msgid = self.msgid.as_ref().map_or(0, |msgid| msgid.len());
        2 * size_of::<Delivery>() + size_of::<Rendition>() + self.rendition.message.size() + readers + msgid
    }
}

/// What happens to what is over the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Excess {
    /// It is queued all the same, and the broker's connection is read no further until there is room: while the browser reads.
    #[default]
    Hold,
    /// QoS 0 is dropped, lowest priority and oldest first: while the browser reads nothing. Stored messages, which may not come
    /// again for long, are held as above, and dropped only where the memory that all outboxes share is at its end.
    Drop,
}

/// What came of offering one delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Deliveries that were dropped.
    pub dropped: usize,
    /// Deliveries that a newer one for their topic took the place of.
    pub conflated: usize,
    /// There is something to take that was not there before.
    pub has_news: bool,
    /// Something waits that was not there before, until then.
    pub due: Option<Instant>,
}

impl Offer {
    /// What came of both, one after the other.
    pub fn and(self, next: Offer) -> Offer {
        Offer {
            dropped: self.dropped + next.dropped,
            conflated: self.conflated + next.conflated,
            has_news: self.has_news || next.has_news,
            due: self.due.into_iter().chain(next.due).min(),
        }
    }
}

/// How many priorities there are.
pub const LANES: usize = 3;

/// Which of the lanes a contract's deliveries go by: the first goes first.
pub fn lane(contract: &Contract) -> usize {
    match contract.priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// What waits for one browser. Offering never waits: a slow browser must not hold up anybody else.
///
/// A delivery with a rate waits in a slot, where newer ones take its place until it is taken; one that comes in a batch waits for the
/// others of it; all else, and then that too, waits in the lane of its priority.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Outbox {
    /// First, as it tells by itself whether anything waits.
    bytes: usize,
    /// By priority. Deliveries of one priority keep their order.
    lanes: [Queue; LANES],
    /// While topics with a rate are known.
    conflation: Option<Box<Conflation>>,
    batching: Batching,
    dropped: u64,
    /// What was dropped that a later delta would rest on.
    gaps: Gaps,
    /// Of what was conflated away.
    confirmed: Vec<Receipt>,
}

impl Outbox {
    /// Takes a delivery up at the moment at which it was received. QoS 1 and 2 always find room: the broker's receive window bounds
    /// them.
    pub fn offer(&mut self, delivery: Delivery, excess: Excess, bound: &Bound) -> Offer {
        self.offer_from(None, delivery, excess, bound)
    }

    /// The same, where newer ones are to be found when it is taken out of its slot.
    pub fn offer_from(&mut self, source: Option<Source>, delivery: Delivery, excess: Excess, bound: &Bound) -> Offer {
        let mut offer = Offer::default();
        self.bytes += delivery.size();
        while let Some((lane, batch)) = self.batching.superseded(&delivery) {
            self.lanes[lane].append(batch);
            offer.has_news = true;
        }
        let mut left = Vec::new();
        if delivery.contract.max_rate.is_some() {
            let place = self.lanes[lane(&delivery.contract)].next_place();
            let now = delivery.rendition.received;
            match self.conflation.get_or_insert_default().offer((delivery, source), place, now, bound.topics, &mut left)
            {
                Offered::Replaced(older, grown) => {
                    self.bytes += grown;
                    self.leave(older, &mut offer);
                }
                Offered::Waits(due) => offer.due = Some(due),
                Offered::Ready => offer.has_news = true,
                Offered::NoSlot(delivery) => self.queue(delivery, now, &mut offer),
            }
        } else {
            if let Some(conflation) = &mut self.conflation {
                conflation.find(&delivery, &mut left);
            }
            let now = delivery.rendition.received;
            self.queue(delivery, now, &mut offer);
        }
        for older in left {
            self.leave(older, &mut offer);
        }
        if excess == Excess::Drop {
            offer.dropped = self.drop_excess(bound);
        }
        offer
    }

    /// It was conflated away, and counts as delivered.
    fn leave(&mut self, older: Delivery, offer: &mut Offer) {
        offer.conflated += 1;
        self.bytes -= older.size();
        self.confirmed.extend(older.receipt);
    }

    /// Behind all others of its priority, or first among those that it is to come with.
    fn queue(&mut self, delivery: Delivery, now: Instant, offer: &mut Offer) {
        let contract = delivery.contract;
        let lane = &mut self.lanes[lane(&contract)];
        match contract.batch {
            Some(batch) if contract.priority != Priority::High => match self.batching.add(delivery, batch, now) {
                Some(batch) => {
                    lane.append(batch);
                    offer.has_news = true;
                }
                None => offer.due = self.batching.next_due(),
            },
            Some(_) | None => {
                lane.push(delivery);
                offer.has_news = true;
            }
        }
    }

    /// Drops what is over the bound, as far as it may be dropped; gives back how many deliveries.
    pub fn drop_excess(&mut self, bound: &Bound) -> usize {
        let mut dropped = 0;
        while (self.is_over(bound) && self.drop_one(Kind::Live, bound))
            || (self.bytes > bound.free && self.drop_one(Kind::Stored, bound))
        {
            dropped += 1;
        }
        self.dropped += dropped as u64;
        dropped
    }

    /// Takes what may go by now, highest priority and oldest first, up to roughly that many bytes and at least one delivery.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Vec<Delivery> {
        if let Some(conflation) = &mut self.conflation {
            conflation.ripen(now);
            if conflation.is_unused() {
                self.conflation = None;
            }
        }
        self.release_due(now);
        let (mut taken, mut size) = (Vec::new(), 0);
        for lane in 0..LANES {
            while let Some(next) = self.next(lane) {
                let next_size = next.size();
                if !taken.is_empty() && size + next_size > bytes {
                    break;
                }
                if let Some(delivery) = self.pop(lane, now) {
                    size += delivery.size();
                    taken.push(delivery);
                }
            }
            self.lanes[lane].shrink();
            if self.next(lane).is_some() {
                break;
            }
        }
        self.bytes -= size;
        taken
    }

    /// What goes next of a lane: a slot goes in its place.
    fn next(&self, lane: usize) -> Option<&Delivery> {
        match (self.lanes[lane].first(), self.first_slot(lane)) {
            (Some((queued, _)), Some((place, newest))) if place <= queued => Some(newest),
            (Some((_, delivery)), _) | (None, Some((_, delivery))) => Some(delivery),
            (None, None) => None,
        }
    }

    /// Takes that; nothing where it joins a batch instead.
    fn pop(&mut self, lane: usize, now: Instant) -> Option<Delivery> {
        let is_queued = match (self.lanes[lane].first(), self.first_slot(lane)) {
            (Some((queued, _)), Some((place, _))) => queued < place,
            (queued, _) => queued.is_some(),
        };
        if is_queued {
            return self.lanes[lane].pop();
        }
        let before = self.first_slot(lane).map_or(0, |(_, delivery)| delivery.size());
        let delivery = self.conflation.as_mut()?.pop(lane, now)?;
        // It may be a newer one than what waited.
        self.bytes = self.bytes - before + delivery.size();
        match delivery.contract {
            Contract { batch: Some(batch), priority: Priority::Normal | Priority::Low, .. } => {
                if let Some(batch) = self.batching.add(delivery, batch, now) {
                    self.lanes[lane].append(batch);
                }
                self.release_due(now);
                None
            }
            _ => Some(delivery),
        }
    }

    fn first_slot(&self, lane: usize) -> Option<(u64, &Delivery)> {
        self.conflation.as_ref()?.first(lane)
    }

    fn release_due(&mut self, now: Instant) {
        while let Some((lane, batch)) = self.batching.due(now) {
            self.lanes[lane].append(batch);
        }
    }

    /// When something may be taken next that may not yet.
    pub fn next_due(&self) -> Option<Instant> {
        self.conflation
            .as_ref()
            .and_then(|conflation| conflation.next_due())
            .into_iter()
            .chain(self.batching.next_due())
            .min()
    }

    /// It is full: what waits for others to come in one frame with it waits no longer, as they would not come; and if what waits for its
    /// time is all there is, some of that goes before it.
    pub fn relieve(&mut self, bound: &Bound) {
        self.release_batches();
        let is_stuck = (0..LANES).all(|lane| self.next(lane).is_none());
        let mut over = if is_stuck && self.is_full(bound) { self.bytes.saturating_sub(bound.bytes) + 1 } else { 0 };
        while over > 0 {
            over =
                over.saturating_sub(self.conflation.as_mut().map_or(usize::MAX, |conflation| conflation.ripen_next()));
        }
    }

    fn release_batches(&mut self) {
        while let Some((lane, batch)) = self.batching.any() {
            self.lanes[lane].append(batch);
        }
    }

    /// Nothing waits for its time any longer: the session ends as soon as all is taken.
    pub fn release_all(&mut self) {
        if let Some(conflation) = &mut self.conflation {
            conflation.ripen_all();
        }
        self.release_batches();
    }

    /// Gives what waits memory of its own.
    pub fn detach(&mut self) {
        for lane in &mut self.lanes {
            lane.detach();
        }
        if let Some(conflation) = &mut self.conflation {
            conflation.detach();
        }
        self.batching.detach();
    }

    /// The subscription has ended: deliveries that came for it alone leave, and their receipts are to be confirmed.
    pub fn purge(&mut self, subscription: u32) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        for lane in &mut self.lanes {
            lane.purge(subscription, &mut receipts);
        }
        if let Some(conflation) = &mut self.conflation {
            conflation.purge(subscription, &mut receipts);
        }
        self.batching.purge(subscription, &mut receipts);
        self.bytes = self.iter().map(Delivery::size).sum();
        receipts
    }

    /// Leaves out what is not to be kept of all that waits in line; the receipts of that are to be confirmed.
    pub fn retain(&mut self, mut keep: impl FnMut(&Delivery) -> bool) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        for lane in &mut self.lanes {
            lane.retain(&mut receipts, &mut keep);
        }
        self.bytes = self.iter().map(Delivery::size).sum();
        receipts
    }

    /// The broker has lost the session: what it delivered can no longer be confirmed.
    pub fn void_receipts(&mut self) {
        self.confirmed.clear();
        let queued = self.lanes.iter_mut().flat_map(Queue::iter_mut);
        for delivery in
            queued.chain(self.conflation.iter_mut().flat_map(|slots| slots.iter_mut())).chain(self.batching.iter_mut())
        {
            delivery.receipt = None;
        }
    }

    /// Receipts of what was conflated away since this was last asked: it counts as delivered.
    pub fn take_confirmed(&mut self) -> Vec<Receipt> {
        std::mem::take(&mut self.confirmed)
    }

    /// How many deliveries were dropped since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// The topics with deltas of which something was dropped since this was last asked.
    pub fn take_gaps(&mut self) -> Gaps {
        std::mem::take(&mut self.gaps)
    }

    /// Whether more may be offered: there is room, or what is over the bound can be made room for.
    pub fn has_room(&self, excess: Excess, bound: &Bound) -> bool {
        !self.is_full(bound) || (excess == Excess::Drop && self.holds(Kind::Live, self.bytes >= bound.bytes))
    }

    /// No more should be offered while the browser reads. Never so while nothing waits, however little may be held.
    pub fn is_full(&self, bound: &Bound) -> bool {
        !self.is_empty() && (self.queued() >= bound.count || self.bytes >= bound.bytes)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queued() + self.conflation.as_ref().map_or(0, |conflation| conflation.len())
    }

    /// None waits: each takes some memory.
    pub fn is_empty(&self) -> bool {
        debug_assert_eq!(self.bytes == 0, self.len() == 0);
        self.bytes == 0
    }

    /// What they take in memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is remembered of topics with a rate takes so much memory, roughly.
    pub fn kept(&self) -> usize {
        self.conflation.as_ref().map_or(0, |conflation| conflation.kept())
    }

    /// How many wait that nothing takes the place of: what waits in slots is bounded by their number.
    fn queued(&self) -> usize {
        self.lanes.iter().map(Queue::len).sum::<usize>() + self.batching.len()
    }

    /// More waits than may.
    pub fn is_over(&self, bound: &Bound) -> bool {
        self.queued() > bound.count || self.bytes > bound.bytes
    }

    /// Whether one of that kind could be dropped, in slots too or not: those are no part of what is counted.
    fn holds(&self, kind: Kind, in_slots: bool) -> bool {
        self.batching.holds(kind)
            || (0..LANES).any(|lane| self.lanes[lane].holds(kind) || (in_slots && self.slots_hold(lane, kind)))
    }

    fn slots_hold(&self, lane: usize, kind: Kind) -> bool {
        self.conflation.as_ref().is_some_and(|conflation| conflation.holds(lane, kind))
    }

    /// Of the lowest priority the oldest that waits in line, then what waits in slots, which is the newest of its topic, and only where
    /// it is memory that lacks.
    fn drop_one(&mut self, kind: Kind, bound: &Bound) -> bool {
        let in_slots = self.bytes > bound.bytes;
        let dropped = (0..LANES).rev().find_map(|lane| {
            self.lanes[lane]
                .drop_oldest(kind)
                .or_else(|| self.batching.drop_oldest(lane, kind))
                .or_else(|| self.conflation.as_mut().filter(|_| in_slots)?.drop_oldest(lane, kind))
        });
        let Some(delivery) = dropped else { return false };
        self.bytes -= delivery.size();
        if delivery.contract.delta {
            self.gaps.add(delivery.rendition.message.topic.clone(), delivery.contract, bound.topics);
        }
        true
    }

    /// All that waits.
    pub fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.lanes
            .iter()
            .flat_map(Queue::iter)
            .chain(self.conflation.iter().flat_map(|slots| slots.iter()))
            .chain(self.batching.iter())
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
