//! The deliveries that wait for one browser, bounded by count and by bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::config::Bound;
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
}

impl Delivery {
    /// What the frame says beyond the message.
    pub fn head(&self) -> Head {
        Head {
            sids: self.readers.iter().filter_map(|reader| reader.sid).collect(),
            msgid: self.msgid.clone(),
            dup: self.dup,
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

    /// Gives the payload memory of its own: until then it holds the whole of the buffer that it was read into, which is not counted.
    /// What several sessions share has it already.
    pub fn detach(&mut self) {
        if let Some(rendition) = Arc::get_mut(&mut self.rendition) {
            rendition.message.payload = Bytes::copy_from_slice(&rendition.message.payload);
        }
    }

    fn kind(&self) -> Option<Kind> {
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

/// The queue of one browser. Offering never waits: a slow browser must not hold up anybody else.
#[derive(Debug, Default)]
pub struct Outbox {
    /// By priority: the first goes first. Deliveries of one priority keep their order.
    lanes: [Lane; 3],
    bytes: usize,
    dropped: u64,
}

impl Outbox {
    /// Queues a delivery. QoS 1 and 2 always find room: the broker's receive window bounds them. Gives back how many deliveries
    /// were dropped for it.
    pub fn offer(&mut self, delivery: Delivery, excess: Excess, bound: &Bound) -> usize {
        self.bytes += delivery.size();
        let lane = match delivery.contract.priority {
            Priority::High => 0,
            Priority::Normal => 1,
            Priority::Low => 2,
        };
        self.lanes[lane].push(delivery);
        match excess {
            Excess::Hold => 0,
            Excess::Drop => self.drop_excess(bound),
        }
    }

    /// Drops what is over the bound, as far as it may be dropped; gives back how many deliveries.
    pub fn drop_excess(&mut self, bound: &Bound) -> usize {
        let mut dropped = 0;
        while (self.is_over(bound) && self.drop_one(Kind::Live))
            || (self.bytes > bound.free && self.drop_one(Kind::Stored))
        {
            dropped += 1;
        }
        self.dropped += dropped as u64;
        dropped
    }

    /// Takes what waits, highest priority and oldest first, up to roughly that many bytes and at least one delivery.
    pub fn take(&mut self, bytes: usize) -> Vec<Delivery> {
        let (mut taken, mut size) = (Vec::new(), 0);
        for lane in &mut self.lanes {
            let fitting = lane.deliveries.iter().take_while(|delivery| {
                let is_first = size == 0;
                size += delivery.size();
                is_first || size <= bytes
            });
            lane.take(fitting.count(), &mut taken);
            if !lane.deliveries.is_empty() {
                break;
            }
        }
        self.bytes -= taken.iter().map(Delivery::size).sum::<usize>();
        taken
    }

    /// Gives what waits memory of its own.
    pub fn detach(&mut self) {
        for lane in &mut self.lanes {
            lane.detach();
        }
    }

    /// The subscription has ended: deliveries that came for it alone leave, and their receipts are to be confirmed.
    pub fn purge(&mut self, subscription: u32) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        for lane in &mut self.lanes {
            lane.retain(&mut receipts, |delivery| {
                let before = delivery.readers.len();
                delivery.readers.retain(|reader| reader.id != subscription);
                before == 0 || !delivery.readers.is_empty()
            });
        }
        self.bytes = self.iter().map(Delivery::size).sum();
        receipts
    }

    /// Leaves out what is not to be kept; the receipts of that are to be confirmed.
    pub fn retain(&mut self, mut keep: impl FnMut(&Delivery) -> bool) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        for lane in &mut self.lanes {
            lane.retain(&mut receipts, |delivery| keep(delivery));
        }
        self.bytes = self.iter().map(Delivery::size).sum();
        receipts
    }

    /// All that waits, what goes first first.
    pub fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.lanes.iter().flat_map(|lane| &lane.deliveries)
    }

    /// The broker has lost the session: what it delivered can no longer be confirmed.
    pub fn void_receipts(&mut self) {
        for delivery in self.lanes.iter_mut().flat_map(|lane| &mut lane.deliveries) {
            delivery.receipt = None;
        }
    }

    /// How many deliveries were dropped since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Whether more may be offered: there is room, or what is over the bound can be made room for.
    pub fn has_room(&self, excess: Excess, bound: &Bound) -> bool {
        !self.is_full(bound)
            || (excess == Excess::Drop && self.lanes.iter().any(|lane| lane.droppable[Kind::Live as usize] > 0))
    }

    /// No more should be offered while the browser reads. Never so while nothing waits, however little may be held.
    pub fn is_full(&self, bound: &Bound) -> bool {
        !self.is_empty() && (self.len() >= bound.count || self.bytes >= bound.bytes)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.deliveries.len()).sum()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.deliveries.is_empty())
    }

    /// What they take in memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// More waits than may.
    pub fn is_over(&self, bound: &Bound) -> bool {
        self.len() > bound.count || self.bytes > bound.bytes
    }

    fn drop_one(&mut self, kind: Kind) -> bool {
        let Some(lane) = self.lanes.iter_mut().rev().find(|lane| lane.droppable[kind as usize] > 0) else {
            return false;
        };
        self.bytes -= lane.drop_oldest(kind);
        true
    }
}

/// The deliveries of one priority.
#[derive(Debug, Default)]
struct Lane {
    deliveries: VecDeque<Delivery>,
    /// How many of each [`Kind`].
    droppable: [usize; 2],
    /// How many of the last ones share the memory that they were read into.
    shared: usize,
}

impl Lane {
    fn push(&mut self, delivery: Delivery) {
        if let Some(kind) = delivery.kind() {
            self.droppable[kind as usize] += 1;
        }
        self.shared += 1;
        self.deliveries.push_back(delivery);
    }

    fn take(&mut self, count: usize, taken: &mut Vec<Delivery>) {
        for index in 0..count {
            if let Some(kind) = self.deliveries[index].kind() {
                self.droppable[kind as usize] -= 1;
            }
        }
        taken.extend(self.deliveries.drain(..count));
        self.shared = self.shared.min(self.deliveries.len());
        if self.deliveries.capacity() > 4 * self.deliveries.len() {
            self.deliveries.shrink_to_fit();
        }
    }

    /// Gives back the size of what was dropped.
    fn drop_oldest(&mut self, kind: Kind) -> usize {
        let oldest = self.deliveries.iter().position(|delivery| delivery.kind() == Some(kind));
        let index = oldest.expect("of a kind that is counted there is one");
        let delivery = self.deliveries.remove(index).expect("it was found there");
        self.droppable[kind as usize] -= 1;
        if index + self.shared > self.deliveries.len() {
            self.shared -= 1;
        }
        delivery.size()
    }

    fn retain(&mut self, receipts: &mut Vec<Receipt>, mut keep: impl FnMut(&mut Delivery) -> bool) {
        self.detach();
        self.deliveries.retain_mut(|delivery| {
            let stays = keep(delivery);
            if !stays {
                receipts.extend(delivery.receipt);
            }
            stays
        });
        let count = |kind| self.deliveries.iter().filter(|delivery| delivery.kind() == Some(kind)).count();
        self.droppable = [Kind::Live, Kind::Stored].map(count);
    }

    fn detach(&mut self) {
        let shared = std::mem::take(&mut self.shared);
        self.deliveries.iter_mut().rev().take(shared).for_each(Delivery::detach);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Instant;

    use super::*;
    use crate::delivery::Config;
    use crate::mqtt::{Message, Qos, Topic};
    use crate::wire::Format;

    fn rendition(payload: Bytes, qos: Qos, retain: bool) -> Arc<Rendition> {
        let message = Message { topic: Topic::parse("t").expect("a topic"), payload, qos, retain, properties: None };
        Arc::new(Rendition::new(message, Format::Text, 0, Instant::now()))
    }

    fn delivery(payload: &'static str, qos: Qos) -> Delivery {
        Delivery {
            rendition: rendition(Bytes::from_static(payload.as_bytes()), qos, false),
            contract: Contract::default(),
            readers: SmallVec::from_iter([Reader { id: 1, sid: None }]),
            msgid: None,
            dup: false,
            receipt: (qos > Qos::AtMostOnce).then_some(7),
        }
    }

    fn at_most(count: usize) -> Bound {
        Bound { count, bytes: 1 << 20, free: 1 << 20 }
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
        outbox.take(usize::MAX).into_iter().map(|delivery| delivery.rendition.message.payload.clone()).collect()
    }

    #[test]
    fn deliveries_leave_in_the_order_in_which_they_came() {
        let mut outbox = Outbox::default();
        for payload in ["1", "2", "3"] {
            outbox.offer(delivery(payload, Qos::AtMostOnce), Excess::Hold, &at_most(10));
        }
        assert_eq!(outbox.take(1).len(), 1, "at least one, whatever its size");
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
        assert_eq!(outbox.offer(delivery("3", Qos::AtMostOnce), Excess::Hold, &bound), 0);
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
            assert_eq!(outbox.offer(delivery(payload, Qos::AtMostOnce), Excess::Drop, &bound), dropped, "{payload}");
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
        let left = |free: usize| Bound { count: 10, bytes: free, free };
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
                .take(bytes)
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
            let all = outbox.take(usize::MAX);
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
        assert!(outbox.take(usize::MAX).iter().all(|delivery| delivery.rendition.message.payload == [b'x'; 10][..]));
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
        outbox.take(usize::MAX);
        assert!(outbox.has_room(Excess::Hold, &bound));
    }

    #[test]
    fn what_waits_for_an_ended_subscription_leaves_and_is_confirmed() {
        let mut outbox = Outbox::default();
        let bound = at_most(10);
        outbox.offer(delivery("alone", Qos::AtLeastOnce), Excess::Hold, &bound);
        let mut both = delivery("both", Qos::AtLeastOnce);
        both.readers.push(Reader { id: 2, sid: Some(5) });
        outbox.offer(both, Excess::Hold, &bound);
        let mut nobody = delivery("no subscription known", Qos::AtMostOnce);
        nobody.readers.clear();
        outbox.offer(nobody, Excess::Hold, &bound);
        assert_eq!(outbox.purge(1), [7]);
        let left = outbox.take(usize::MAX);
        assert_eq!(left.iter().map(|delivery| delivery.head().sids).collect::<Vec<_>>(), [vec![5], vec![]]);
    }
}
