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

    /// Whether it may be written as soon as it comes: the client has nothing to confirm.
    pub fn goes_at_once(&self) -> bool {
        self.contract.goes_at_once()
    }

    /// Gives the parts of its frame's text.
    pub fn write(&self, to: impl FnOnce(&[&[u8]])) {
        let (head, text) = (json::head(&self.head()), self.rendition.text());
        let (begun, rest) = text.split_at(json::HEAD_AT);
        to(&[begun, head.as_bytes(), rest]);
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
mod tests {
    use std::num::NonZeroUsize;
    use std::time::{Duration, Instant};

    use bytes::Bytes;

    use super::*;
    use crate::delivery::Config;
    use crate::mqtt::{Message, Qos, Topic};
    use crate::wire::{Batch, Format, Rate};

    fn rendition(payload: Bytes, qos: Qos, retain: bool) -> Arc<Rendition> {
        let message = Message { topic: Topic::parse("t").expect("a topic"), payload, qos, retain, properties: None };
        Arc::new(Rendition::new(message, Format::Text, 0, Instant::now()))
    }

    fn delivery(payload: &'static str, qos: Qos) -> Delivery {
        Delivery {
            rendition: rendition(Bytes::from_static(payload.as_bytes()), qos, false),
            contract: Contract::default(),
            readers: SmallVec::from_iter([Reader { id: 1, sid: None, is_shared: false }]),
            msgid: None,
            dup: false,
            receipt: (qos > Qos::AtMostOnce).then_some(7),
            skipped: 0,
        }
    }

    fn at_most(count: usize) -> Bound {
        Bound { count, bytes: 1 << 20, free: 1 << 20, topics: 10 }
    }

    fn stored(payload: &'static str) -> Delivery {
        let rendition = rendition(Bytes::from_static(payload.as_bytes()), Qos::AtMostOnce, true);
        Delivery { rendition, ..delivery(payload, Qos::AtMostOnce) }
    }

    fn with(priority: Priority, mut delivery: Delivery) -> Delivery {
        delivery.contract.priority = priority;
        delivery
    }

    fn payloads(outbox: &mut Outbox) -> Vec<Bytes> {
        outbox
            .take(usize::MAX, Instant::now())
            .into_iter()
            .map(|delivery| delivery.rendition.message.payload.clone())
            .collect()
    }

    #[test]
    fn deliveries_leave_in_the_order_in_which_they_came() {
        let mut outbox = Outbox::default();
        for payload in ["1", "2", "3"] {
            outbox.offer(delivery(payload, Qos::AtMostOnce), Excess::Hold, &at_most(10));
        }
        assert_eq!(outbox.take(1, Instant::now()).len(), 1, "at least one, whatever its size");
        assert_eq!(payloads(&mut outbox), ["2", "3"]);
        assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
    }

    #[test]
    fn while_the_browser_reads_nothing_is_dropped_and_fullness_is_told() {
        let mut outbox = Outbox::default();
        let bound = at_most(2);
        outbox.offer(delivery("1", Qos::AtMostOnce), Excess::Hold, &bound);
        assert!(!outbox.is_full(&bound));
        outbox.offer(delivery("2", Qos::AtMostOnce), Excess::Hold, &bound);
        assert!(outbox.is_full(&bound));
        assert_eq!(outbox.offer(delivery("3", Qos::AtMostOnce), Excess::Hold, &bound).dropped, 0);
        assert_eq!(payloads(&mut outbox), ["1", "2", "3"]);
    }

    #[test]
    fn bytes_fill_the_outbox_too() {
        let mut outbox = Outbox::default();
        let bound = Bound { bytes: delivery("small", Qos::AtMostOnce).size() + 100, ..at_most(10) };
        outbox.offer(delivery("small", Qos::AtMostOnce), Excess::Hold, &bound);
        assert!(!outbox.is_full(&bound));
        outbox.offer(delivery("small", Qos::AtMostOnce), Excess::Hold, &bound);
        assert!(outbox.is_full(&bound));
    }

    #[test]
    fn past_the_bound_the_oldest_of_qos_0_goes_first_and_stored_messages_stay() {
        let mut outbox = Outbox::default();
        let bound = at_most(3);
        outbox.offer(stored("stored"), Excess::Drop, &bound);
        outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &bound);
        for (payload, dropped) in [("1", 0), ("2", 1), ("3", 1)] {
            assert_eq!(
                outbox.offer(delivery(payload, Qos::AtMostOnce), Excess::Drop, &bound).dropped,
                dropped,
                "{payload}"
            );
        }
        assert!(outbox.has_room(Excess::Drop, &bound));
        for payload in ["sure 2", "sure 3"] {
            outbox.offer(delivery(payload, Qos::AtLeastOnce), Excess::Drop, &bound);
        }
        assert!(!outbox.has_room(Excess::Drop, &bound), "the broker holds stored messages as long as the browser may");
        assert_eq!(outbox.take_dropped(), 3);
        assert_eq!(payloads(&mut outbox), ["stored", "sure", "sure 2", "sure 3"]);
    }

    #[test]
    fn where_the_shared_memory_ends_stored_messages_are_dropped_last() {
        let mut outbox = Outbox::default();
        let some = [stored("old"), delivery("1", Qos::AtMostOnce), delivery("sure", Qos::AtLeastOnce), stored("new")];
        let size = some[0].size();
        for delivery in some {
            outbox.offer(delivery, Excess::Hold, &at_most(10));
        }
        let left = |free: usize| Bound { bytes: free, free, ..at_most(10) };
        assert_eq!(outbox.drop_excess(&left(3 * size + 10)), 1);
        assert_eq!(outbox.drop_excess(&left(2 * size + 10)), 1);
        assert_eq!(payloads(&mut outbox), ["sure", "new"]);
        outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &left(0));
        outbox.offer(stored("last"), Excess::Drop, &left(0));
        assert_eq!(payloads(&mut outbox), ["sure"]);
    }

    #[test]
    fn what_has_a_higher_priority_goes_first_in_the_order_in_which_it_came() {
        use Priority::{High, Low, Normal};
        let mut outbox = Outbox::default();
        for (payload, priority) in [("1", Low), ("2", Normal), ("3", High), ("4", Normal), ("5", High), ("6", Low)] {
            outbox.offer(with(priority, delivery(payload, Qos::AtMostOnce)), Excess::Hold, &at_most(10));
        }
        let one = delivery("1", Qos::AtMostOnce).size();
        let taken = |outbox: &mut Outbox, bytes| {
            outbox
                .take(bytes, Instant::now())
                .into_iter()
                .map(|delivery| delivery.rendition.message.payload.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(taken(&mut outbox, 3 * one), ["3", "5", "2"], "on into the next lane");
        outbox.offer(with(High, delivery("7", Qos::AtMostOnce)), Excess::Hold, &at_most(10));
        assert_eq!(taken(&mut outbox, 1), ["7"], "what came meanwhile goes first too");
        assert_eq!(taken(&mut outbox, usize::MAX), ["4", "1", "6"]);
        assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
    }

    #[test]
    fn what_has_a_lower_priority_is_dropped_first() {
        use Priority::{High, Low, Normal};
        let mut outbox = Outbox::default();
        for (payload, priority) in
            [("h1", High), ("h2", High), ("n1", Normal), ("n2", Normal), ("l1", Low), ("l2", Low)]
        {
            outbox.offer(with(priority, delivery(payload, Qos::AtMostOnce)), Excess::Hold, &at_most(10));
        }
        outbox.offer(with(Low, stored("stored")), Excess::Hold, &at_most(10));
        for (count, left) in [
            (6, vec!["h1", "h2", "n1", "n2", "l2", "stored"]),
            (4, vec!["h1", "h2", "n2", "stored"]),
            (2, vec!["h2", "stored"]),
            (1, vec!["stored"]),
        ] {
            outbox.drop_excess(&at_most(count));
            let all = outbox.take(usize::MAX, Instant::now());
            assert_eq!(
                all.iter().map(|delivery| &delivery.rendition.message.payload).collect::<Vec<_>>(),
                left,
                "at most {count}"
            );
            for delivery in all {
                outbox.offer(delivery, Excess::Hold, &at_most(10));
            }
        }
    }

    #[test]
    fn what_waits_for_another_read_holds_no_more_memory_than_is_counted() {
        let mut outbox = Outbox::default();
        let read = Bytes::from(vec![b'x'; 64 * 1024]);
        for priority in [Priority::High, Priority::Low, Priority::Low, Priority::Low] {
            let mut small = with(priority, delivery("", Qos::AtMostOnce));
            small.rendition = rendition(read.slice(100..110), Qos::AtMostOnce, false);
            outbox.offer(small, Excess::Hold, &at_most(10));
        }
        outbox.drop_excess(&at_most(3));
        assert!(!read.is_unique());
        outbox.detach();
        assert!(read.is_unique());
        assert!(
            outbox
                .take(usize::MAX, Instant::now())
                .iter()
                .all(|delivery| delivery.rendition.message.payload == [b'x'; 10][..])
        );
    }

    #[test]
    fn slow_browsers_share_what_is_left_fairly_and_leave_one_part() {
        let size = delivery("x", Qos::AtMostOnce).size();
        let config = Config { max_queued: const { NonZeroUsize::new(1 << 20).unwrap() }, ..Config::default() };
        let total = 1000 * size;
        for slow in [1, 4, 9] {
            let mut outboxes: Vec<_> = (0..slow).map(|_| Outbox::default()).collect();
            for _ in 0..2000 {
                for index in 0..slow {
                    let used: usize = outboxes.iter().map(Outbox::bytes).sum();
                    let bound = config.bound(total.saturating_sub(used));
                    outboxes[index].offer(delivery("x", Qos::AtMostOnce), Excess::Drop, &bound);
                }
            }
            let part = 1000 / (slow + 1);
            for outbox in &outboxes {
                assert!(outbox.len().abs_diff(part) <= 2, "{} of {part}, {slow} slow", outbox.len());
            }
        }
        let bound = config.bound(0);
        let mut fast = Outbox::default();
        assert!(fast.has_room(Excess::Hold, &bound), "a fast one goes on when the memory is gone");
        fast.offer(delivery("x", Qos::AtMostOnce), Excess::Hold, &bound);
        assert!(!fast.has_room(Excess::Hold, &bound));
    }

    #[test]
    fn what_must_not_be_dropped_holds_the_broker_even_while_the_browser_reads_nothing() {
        let mut outbox = Outbox::default();
        let bound = at_most(2);
        outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &bound);
        outbox.offer(delivery("maybe", Qos::AtMostOnce), Excess::Drop, &bound);
        assert!(outbox.has_room(Excess::Drop, &bound));
        assert!(!outbox.has_room(Excess::Hold, &bound));
        outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &bound);
        assert!(!outbox.has_room(Excess::Drop, &bound));
        outbox.take(usize::MAX, Instant::now());
        assert!(outbox.has_room(Excess::Hold, &bound));
    }

    #[test]
    fn what_waits_for_an_ended_subscription_leaves_and_is_confirmed() {
        let mut outbox = Outbox::default();
        let bound = at_most(10);
        outbox.offer(delivery("alone", Qos::AtLeastOnce), Excess::Hold, &bound);
        let mut both = delivery("both", Qos::AtLeastOnce);
        both.readers.push(Reader { id: 2, sid: Some(5), is_shared: false });
        outbox.offer(both, Excess::Hold, &bound);
        let mut nobody = delivery("no subscription known", Qos::AtMostOnce);
        nobody.readers.clear();
        outbox.offer(nobody, Excess::Hold, &bound);
        assert_eq!(outbox.purge(1), [7]);
        let left = outbox.take(usize::MAX, Instant::now());
        assert_eq!(left.iter().map(|delivery| delivery.head().sids).collect::<Vec<_>>(), [vec![5], vec![]]);
    }

    /// A moment so many milliseconds after another.
    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    /// A delivery of this topic and contract, received at that moment, for subscription 1.
    fn of(topic: &str, payload: &str, contract: Contract, received: Instant) -> Delivery {
        let message = Message {
            topic: Topic::parse(topic).expect("a topic"),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: None,
        };
        let rendition = Arc::new(Rendition::new(message, Format::Text, 0, received));
        Delivery { rendition, contract, ..delivery("", Qos::AtMostOnce) }
    }

    fn per_second(rate: f64) -> Contract {
        Contract { max_rate: Rate::per_second(rate), ..Contract::default() }
    }

    fn in_batches(max_messages: u16, max_delay: u32) -> Contract {
        let max_messages = max_messages.try_into().expect("not 0");
        Contract { batch: Some(Batch { max_messages, max_delay }), ..Contract::default() }
    }

    fn hold(outbox: &mut Outbox, delivery: Delivery) -> Offer {
        outbox.offer(delivery, Excess::Hold, &at_most(10))
    }

    fn taken(outbox: &mut Outbox, now: Instant) -> Vec<Bytes> {
        let taken = outbox.take(usize::MAX, now);
        taken.into_iter().map(|delivery| delivery.rendition.message.payload.clone()).collect()
    }

    #[test]
    fn of_a_topic_with_a_rate_the_newest_waits_for_its_time_and_the_last_arrives() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let two = per_second(2.0);
        let offer = |outbox: &mut Outbox, payload, millis| {
            let offer = hold(outbox, of("a", payload, two, after(start, millis)));
            (offer.conflated, offer.has_news, offer.due)
        };
        assert_eq!(offer(&mut outbox, "1", 0), (0, true, None));
        assert_eq!(taken(&mut outbox, start), ["1"]);
        assert_eq!(offer(&mut outbox, "2", 100), (0, false, Some(after(start, 500))));
        assert_eq!(offer(&mut outbox, "3", 200), (1, false, None), "nobody is woken for what only takes a place");
        assert_eq!(offer(&mut outbox, "4", 300), (1, false, None));
        assert_eq!((taken(&mut outbox, after(start, 499)), outbox.len()), (vec![], 1));
        assert_eq!(outbox.next_due(), Some(after(start, 500)));
        let last = outbox.take(usize::MAX, after(start, 510));
        assert_eq!(
            (&last[0].rendition.message.payload[..], last[0].skipped, last[0].head().skipped),
            (&b"4"[..], 2, 2)
        );
        assert_eq!(offer(&mut outbox, "5", 1009), (0, false, Some(after(start, 1010))), "from when it was taken");
        assert_eq!(taken(&mut outbox, after(start, 1010)), ["5"]);
        assert_eq!((outbox.len(), outbox.bytes(), outbox.next_due()), (0, 0, None));
        assert!(outbox.kept() > 0);
        assert_eq!(taken(&mut outbox, after(start, 1510)), Vec::<Bytes>::new());
        assert_eq!(outbox.kept(), 0, "what rests is forgotten when its interval is over");
        assert_eq!(offer(&mut outbox, "6", 1600), (0, true, None));
    }

    #[test]
    fn a_session_that_takes_late_gets_what_is_newest_by_then() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        for number in 0..1000 {
            let delivery = of("a", &number.to_string(), per_second(1000.0), after(start, number));
            hold(&mut outbox, delivery);
        }
        assert_eq!(outbox.len(), 1);
        assert_eq!(taken(&mut outbox, after(start, 1000)), ["999"]);
    }

    #[test]
    fn each_topic_and_each_contract_has_a_slot_of_its_own() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let json = Contract { format: Format::Json, ..per_second(1.0) };
        let for_another = |mut delivery: Delivery| {
            delivery.readers[0].id = 2;
            delivery
        };
        for payload in ["1", "2"] {
            for topic in ["a", "b"] {
                hold(&mut outbox, of(topic, payload, per_second(1.0), start));
                hold(&mut outbox, for_another(of(topic, payload, json, start)));
            }
            hold(&mut outbox, of("c", payload, Contract::default(), start));
        }
        assert_eq!(taken(&mut outbox, start), ["2", "2", "2", "2", "1", "2"]);
    }

    #[test]
    fn a_shared_subscription_is_never_merged_with_others() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let mut shared = of("a", "shared", per_second(1.0), start);
        shared.readers[0] = Reader { id: 2, sid: None, is_shared: true };
        hold(&mut outbox, of("a", "1", per_second(1.0), start));
        assert_eq!(hold(&mut outbox, shared).conflated, 0);
        assert_eq!(hold(&mut outbox, of("a", "2", per_second(1.0), start)).conflated, 1);
        assert_eq!(taken(&mut outbox, start), ["2", "shared"]);
    }

    #[test]
    fn a_slot_goes_in_the_place_of_what_came_for_it_first() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let plain = Contract::default();
        for (topic, payload, contract) in [
            ("p", "1", plain),
            ("a", "old", per_second(1.0)),
            ("p", "2", plain),
            ("a", "new", per_second(1.0)),
            ("p", "3", plain),
        ] {
            hold(&mut outbox, of(topic, payload, contract, start));
        }
        assert_eq!(taken(&mut outbox, start), ["1", "new", "2", "3"]);
    }

    #[test]
    fn what_is_conflated_away_is_confirmed_once() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        for receipt in 1..=4 {
            let rendition = rendition(Bytes::from_static(b"x"), Qos::AtLeastOnce, false);
            let delivery = Delivery { rendition, receipt: Some(receipt), ..of("t", "", per_second(1.0), start) };
            hold(&mut outbox, delivery);
        }
        assert_eq!((outbox.take_confirmed(), outbox.take_confirmed()), (vec![1, 2, 3], vec![]));
        assert_eq!(outbox.purge(1), [4]);
        assert_eq!((outbox.len(), outbox.bytes(), outbox.kept()), (0, 0, 0));
    }

    #[test]
    fn past_the_bound_a_new_topic_comes_unconflated_and_keeps_its_order() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let bound = Bound { topics: 2, ..at_most(100) };
        let offer = |outbox: &mut Outbox, topic, payload, millis| {
            let delivery = of(topic, payload, per_second(10.0), after(start, millis));
            outbox.offer(delivery, Excess::Hold, &bound).conflated
        };
        let seen = ["a", "b", "c", "a", "b", "c"].map(|topic| offer(&mut outbox, topic, topic, 0));
        assert_eq!(seen, [0, 0, 0, 1, 1, 0]);
        assert_eq!(taken(&mut outbox, start), ["a", "b", "c", "c"]);
        assert_eq!(offer(&mut outbox, "c", "1", 50), 0);
        assert_eq!(offer(&mut outbox, "c", "2", 100), 0, "there is room again, and it stays behind what came before");
        assert_eq!(taken(&mut outbox, after(start, 100)), ["1", "2"]);
    }

    #[test]
    fn subscribing_again_changes_how_often_and_what_is_older_never_comes_later() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let mut other = of("a", "for another", per_second(1.0), start);
        other.readers.push(Reader { id: 2, sid: None, is_shared: false });
        hold(&mut outbox, of("a", "1", per_second(1.0), start));
        taken(&mut outbox, start);
        hold(&mut outbox, of("a", "2", per_second(1.0), after(start, 100)));
        let offer = hold(&mut outbox, of("a", "3", Contract::default(), after(start, 200)));
        assert_eq!((offer.conflated, offer.has_news), (1, true));
        assert_eq!(taken(&mut outbox, after(start, 200)), ["3"]);
        assert_eq!((outbox.len(), outbox.kept()), (0, 0));
        hold(&mut outbox, other);
        let offer = hold(&mut outbox, of("a", "5", per_second(5.0), after(start, 300)));
        assert_eq!(offer.conflated, 0, "the other subscription has it still to come");
        let ids = |delivery: &Delivery| delivery.readers.iter().map(|reader| reader.id).collect::<Vec<_>>();
        let all = outbox.take(usize::MAX, after(start, 300));
        assert_eq!(all.iter().map(ids).collect::<Vec<_>>(), [vec![2], vec![1]]);
        hold(&mut outbox, of("b", "in a batch", in_batches(9, 1000), start));
        hold(&mut outbox, of("b", "alone", Contract::default(), start));
        assert_eq!(taken(&mut outbox, start), ["in a batch", "alone"]);
    }

    #[test]
    fn whoever_shared_a_value_that_was_conflated_away_gets_what_took_its_place() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let mut both = of("a", "live", per_second(1.0), start);
        both.readers.push(Reader { id: 2, sid: Some(2), is_shared: false });
        hold(&mut outbox, both);
        hold(&mut outbox, of("a", "stored", per_second(1.0), start));
        let all = outbox.take(usize::MAX, start);
        assert_eq!((all.len(), all[0].readers.len()), (1, 2));
    }

    #[test]
    fn a_batch_goes_when_it_is_full_or_its_first_has_waited() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let three = in_batches(3, 100);
        assert_eq!(hold(&mut outbox, of("a", "1", three, start)).due, Some(after(start, 100)));
        assert_eq!(hold(&mut outbox, of("b", "2", three, after(start, 50))).due, Some(after(start, 100)));
        assert_eq!((taken(&mut outbox, after(start, 99)), outbox.len()), (vec![], 2));
        assert_eq!(taken(&mut outbox, after(start, 100)), ["1", "2"]);
        for payload in ["3", "4"] {
            assert!(!hold(&mut outbox, of("a", payload, three, start)).has_news);
        }
        assert!(hold(&mut outbox, of("a", "5", three, start)).has_news);
        hold(&mut outbox, of("a", "6", three, after(start, 10)));
        assert_eq!(taken(&mut outbox, after(start, 10)), ["3", "4", "5"]);
        assert_eq!(outbox.next_due(), Some(after(start, 110)));
        outbox.relieve(&at_most(1));
        assert_eq!(taken(&mut outbox, after(start, 10)), ["6"]);
        assert_eq!((outbox.len(), outbox.bytes(), outbox.next_due()), (0, 0, None));
    }

    #[test]
    fn high_priority_waits_for_no_batch_and_a_delay_of_0_for_nobody() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let high = Contract { priority: Priority::High, ..in_batches(3, 100) };
        assert!(hold(&mut outbox, of("a", "1", high, start)).has_news);
        hold(&mut outbox, of("b", "2", in_batches(3, 0), start));
        hold(&mut outbox, of("c", "3", Contract { batch: high.batch, ..per_second(1.0) }, start));
        hold(&mut outbox, of("d", "4", Contract { batch: in_batches(3, 0).batch, ..per_second(1.0) }, start));
        assert_eq!(taken(&mut outbox, start), ["1", "2", "4"]);
        assert_eq!(taken(&mut outbox, after(start, 100)), ["3"]);
    }

    #[test]
    fn before_the_end_nothing_waits_for_its_time() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        for payload in ["1", "2"] {
            hold(&mut outbox, of("a", payload, per_second(1.0), start));
            outbox.take(usize::MAX, start);
        }
        hold(&mut outbox, of("b", "3", in_batches(3, 100), start));
        outbox.release_all();
        assert_eq!(taken(&mut outbox, start), ["2", "3"]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_waits_for_its_time_is_dropped_and_counted_like_all_else() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let delta = |contract| Contract { delta: true, ..contract };
        let size = of("a", "1", Contract::default(), start).size();
        let all = [
            of("a", "slot", delta(per_second(1.0)), start),
            of("b", "batch", in_batches(9, 100), start),
            of("c", "lane", Contract::default(), start),
            of("d", "slot 2", per_second(1.0), start),
        ];
        for delivery in all {
            hold(&mut outbox, delivery);
        }
        assert!(outbox.len() == 4 && outbox.bytes() >= 4 * size);
        assert!(!outbox.is_full(&at_most(3)), "what waits in slots takes nobody's place");
        assert!(outbox.is_full(&at_most(2)));
        let left = |count: usize| Bound { bytes: count * (size + 10), ..at_most(10) };
        assert!(outbox.has_room(Excess::Drop, &left(0)));
        assert_eq!(outbox.drop_excess(&left(2)), 2);
        assert_eq!(
            outbox.iter().map(|delivery| &delivery.rendition.message.payload).collect::<Vec<_>>(),
            ["slot", "slot 2"]
        );
        assert_eq!(outbox.drop_excess(&left(0)), 2);
        assert_eq!((outbox.len(), outbox.bytes(), outbox.take_dropped()), (0, 0, 4));
        assert!(!outbox.has_room(Excess::Drop, &left(0)) || outbox.is_empty());
        let mut gaps = Gaps::default();
        gaps.add(Topic::parse("a").expect("a topic"), delta(per_second(1.0)), 10);
        assert_eq!(outbox.take_gaps(), gaps);
    }

    #[test]
    fn too_many_in_line_cost_no_value_that_waits_for_its_time() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let low = Contract { priority: Priority::Low, ..per_second(1.0) };
        hold(&mut outbox, of("a", "slot", low, start));
        for payload in ["1", "2", "3"] {
            hold(&mut outbox, of("b", payload, Contract::default(), start));
        }
        assert_eq!(outbox.drop_excess(&at_most(1)), 2);
        assert_eq!(taken(&mut outbox, start), ["3", "slot"]);
        hold(&mut outbox, of("a", "slot", low, start));
        hold(&mut outbox, delivery("sure", Qos::AtLeastOnce));
        assert!(!outbox.has_room(Excess::Drop, &at_most(1)), "nothing in line can be dropped");
    }

    #[test]
    fn values_that_fill_the_memory_go_before_their_time_and_hold_nothing_up() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        for round in 0..2 {
            for topic in ["a", "b", "c"] {
                hold(&mut outbox, of(topic, topic, per_second(0.001), after(start, round)));
            }
            if round == 0 {
                assert_eq!(taken(&mut outbox, start), ["a", "b", "c"]);
            }
        }
        let bound = Bound { bytes: outbox.bytes() - 10, ..at_most(10) };
        outbox.relieve(&at_most(10));
        assert_eq!(taken(&mut outbox, after(start, 2)), Vec::<Bytes>::new(), "while there is room they wait");
        outbox.relieve(&bound);
        assert_eq!(taken(&mut outbox, after(start, 2)), ["a"]);
        assert!(!outbox.is_full(&bound));
    }

    #[test]
    fn a_waiting_value_holds_no_more_memory_than_is_counted() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let read = Bytes::from(vec![b'x'; 64 * 1024]);
        for contract in [per_second(1.0), in_batches(9, 100)] {
            for topic in ["a", "a", "b"] {
                let mut small = of(topic, "", contract, start);
                let message = Message { payload: read.slice(..10), ..small.rendition.message.clone() };
                small.rendition = Arc::new(Rendition::new(message, Format::Text, 0, start));
                small.readers[0].id = if contract.batch.is_some() { 2 } else { 1 };
                hold(&mut outbox, small);
            }
        }
        assert!(!read.is_unique());
        outbox.detach();
        assert!(read.is_unique());
    }

    mod chance {
        use std::collections::HashMap;

        use proptest::prelude::*;

        use super::*;

        #[derive(Clone, Debug)]
        enum Step {
            Offer { topic: usize, contract: usize, sure: bool },
            Take(usize),
            Pass(u64),
            Drop(usize),
            Purge(u32),
        }

        fn steps() -> impl Strategy<Value = Vec<Step>> {
            prop::collection::vec(
                prop_oneof![
                    8 => (0..3usize, 0..6usize, any::<bool>()).prop_map(|(topic, contract, sure)| Step::Offer { topic, contract, sure }),
                    3 => prop_oneof![Just(1), Just(2000), Just(usize::MAX)].prop_map(Step::Take),
                    2 => (0..700u64).prop_map(Step::Pass),
                    1 => (0..4usize).prop_map(Step::Drop),
                    1 => (0..6u32).prop_map(Step::Purge),
                ],
                0..80,
            )
        }

        proptest! {
            #[test]
            fn the_books_are_right_order_holds_and_nothing_vanishes(steps in steps()) {
                let start = Instant::now();
                let contracts = [
                    Contract::default(),
                    per_second(2.0),
                    in_batches(3, 200),
                    Contract { batch: in_batches(2, 100).batch, ..per_second(4.0) },
                    Contract { priority: Priority::Low, ..per_second(2.0) },
                    Contract { priority: Priority::High, ..in_batches(3, 200) },
                ];
                let (mut outbox, mut now, mut number) = (Outbox::default(), start, 0u64);
                let (mut offered, mut conflated, mut dropped, mut seen, mut purged) = (0usize, 0, 0, Vec::new(), 0);
                let (mut sure, mut confirmed) = (Vec::new(), Vec::new());
                let (mut last_taken, mut taken_at) = (HashMap::new(), HashMap::new());
                for step in steps.into_iter().chain([Step::Pass(60_000), Step::Take(usize::MAX), Step::Pass(60_000), Step::Take(usize::MAX)]) {
                    match step {
                        Step::Offer { topic, contract, sure: is_sure } => {
                            number += 1;
                            let mut delivery = of(["a", "b", "c"][topic], &number.to_string(), contracts[contract], now);
                            delivery.readers[0].id = contract as u32;
                            if contract == 1 && number % 2 == 0 {
                                delivery.readers.push(Reader { id: 7, sid: None, is_shared: false });
                            }
                            if is_sure {
                                let message = Message { qos: Qos::AtLeastOnce, ..delivery.rendition.message.clone() };
                                delivery.rendition = Arc::new(Rendition::new(message, Format::Text, 0, now));
                                delivery.receipt = Some(number);
                                sure.push(number);
                            }
                            offered += 1;
                            let offer = outbox.offer(delivery, Excess::Hold, &Bound { topics: 20, ..at_most(10) });
                            conflated += offer.conflated;
                            confirmed.extend(outbox.take_confirmed());
                        }
                        Step::Take(bytes) => {
                            for delivery in outbox.take(bytes, now) {
                                let payload = &delivery.rendition.message.payload;
                                let number: u64 = std::str::from_utf8(payload).unwrap().parse().unwrap();
                                let key = (delivery.rendition.message.topic.clone(), delivery.contract);
                                if let Some(before) = last_taken.insert(key.clone(), number) {
                                    prop_assert!(before < number, "{before} before {number}");
                                }
                                let is_alone = delivery.contract.batch.is_none();
                                if let Some(rate) = delivery.contract.max_rate.filter(|_| is_alone)
                                    && let Some(at) = taken_at.insert(key, now)
                                {
                                    prop_assert!(now - at >= rate.interval(), "{number} came too early");
                                }
                                confirmed.extend(delivery.receipt);
                                seen.push(number);
                            }
                        }
                        Step::Pass(millis) => now = after(now, millis),
                        Step::Drop(count) => dropped += outbox.drop_excess(&Bound { bytes: count * 1000, ..at_most(count) }),
                        Step::Purge(id) => {
                            let before = outbox.len();
                            confirmed.extend(outbox.purge(id));
                            purged += before - outbox.len();
                            // A subscription that is made anew begins anew.
                            taken_at.clear();
                        }
                    }
                    prop_assert_eq!(outbox.bytes(), outbox.iter().map(Delivery::size).sum::<usize>());
                    prop_assert_eq!(outbox.len(), outbox.iter().count());
                    prop_assert_eq!(offered, seen.len() + conflated + dropped + purged + outbox.len());
                    let is_live = |delivery: &Delivery| delivery.kind() == Some(Kind::Live);
                    prop_assert_eq!(outbox.holds(Kind::Live, true), outbox.iter().any(is_live));
                }
                prop_assert!(outbox.is_empty());
                confirmed.sort_unstable();
                prop_assert_eq!(confirmed, sure, "each receipt comes back once");
            }
        }
    }
}
