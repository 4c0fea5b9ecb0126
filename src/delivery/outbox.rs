//! The deliveries that wait for one browser, bounded by count and by bytes.

use std::collections::VecDeque;
use std::time::Instant;

use smallvec::SmallVec;

use super::Config;
use super::subscriptions::Reader;
use crate::mqtt::inflight::Receipt;
use crate::mqtt::{Message, Qos};
use crate::wire::{Ack, Format, Head};

/// A message on its way to one browser.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What is delivered; its QoS is that of the delivery.
    pub message: Message,
    /// How the payload is shown.
    pub format: Format,
    /// How it is confirmed.
    pub ack: Ack,
    /// The subscriptions it comes for.
    pub readers: SmallVec<[Reader; 1]>,
    /// How it is known to the client, exactly when its QoS is above 0.
    pub msgid: Option<String>,
    /// The broker delivered it before.
    pub dup: bool,
    /// What confirms it, exactly when its QoS is above 0.
    pub receipt: Option<Receipt>,
    /// Unix milliseconds at which the gateway received it.
    pub timestamp: u64,
    /// The same moment on the clock that measures how late it is.
    pub received: Instant,
}

impl Delivery {
    /// What the frame says beyond the message.
    pub fn head(&self) -> Head {
        Head {
            sids: self.readers.iter().filter_map(|reader| reader.sid).collect(),
            msgid: self.msgid.clone(),
            dup: self.dup,
            timestamp: self.timestamp,
        }
    }

    fn is_droppable(&self) -> bool {
        self.message.qos == Qos::AtMostOnce
    }

    /// What it takes in memory, roughly: its bytes, and the cost of an entry.
    fn size(&self) -> usize {
        size_of::<Delivery>() + self.message.topic.as_ref().len() + self.message.payload.len()
    }
}

/// What happens to a delivery that finds the outbox full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is queued all the same, and the broker's connection is read no further until there is room: while the browser reads.
    #[default]
    HoldUpstream,
    /// It takes the place of QoS 0 deliveries, oldest first and stored ones last: while the browser reads nothing.
    DropOldest,
}

/// The queue of one browser. Offering never waits: a slow browser must not hold up anybody else.
#[derive(Debug, Default)]
pub struct Outbox {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    /// How many are of QoS 0.
    droppable: usize,
    dropped: u64,
}

impl Outbox {
    /// Queues a delivery. QoS 1 and 2 always find room: the broker's receive window bounds them. Gives back how many deliveries
    /// were dropped for it.
    pub fn offer(&mut self, delivery: Delivery, overflow: Overflow, config: &Config) -> usize {
        self.bytes += delivery.size();
        if delivery.is_droppable() {
            self.droppable += 1;
        }
        self.deliveries.push_back(delivery);
        let mut dropped = 0;
        while overflow == Overflow::DropOldest && self.is_over(config) && self.drop_one() {
            dropped += 1;
        }
        self.dropped += dropped as u64;
        dropped
    }

    /// Takes what waits, oldest first, up to roughly that many bytes and at least one delivery.
    pub fn take(&mut self, bytes: usize) -> Vec<Delivery> {
        let mut size = 0;
        let fitting = self.deliveries.iter().take_while(|delivery| {
            size += delivery.size();
            size <= bytes
        });
        let count = fitting.count().max(1).min(self.deliveries.len());
        let taken: Vec<_> = self.deliveries.drain(..count).collect();
        self.bytes -= taken.iter().map(Delivery::size).sum::<usize>();
        self.droppable -= taken.iter().filter(|delivery| delivery.is_droppable()).count();
        if self.deliveries.is_empty() {
            self.deliveries = VecDeque::new();
        }
        taken
    }

    /// The subscription has ended: deliveries that came for it alone leave, and their receipts are to be confirmed.
    pub fn purge(&mut self, subscription: u32) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        self.deliveries.retain_mut(|delivery| {
            let before = delivery.readers.len();
            delivery.readers.retain(|reader| reader.id != subscription);
            let leaves = before > 0 && delivery.readers.is_empty();
            if leaves {
                receipts.extend(delivery.receipt);
            }
            !leaves
        });
        self.bytes = self.deliveries.iter().map(Delivery::size).sum();
        self.droppable = self.deliveries.iter().filter(|delivery| delivery.is_droppable()).count();
        receipts
    }

    /// The broker has lost the session: what it delivered can no longer be confirmed.
    pub fn void_receipts(&mut self) {
        for delivery in &mut self.deliveries {
            delivery.receipt = None;
        }
    }

    /// How many deliveries were dropped since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Whether more may be offered: there is room, or what is over the bound can be made room for.
    pub fn has_room(&self, overflow: Overflow, config: &Config) -> bool {
        !self.is_full(config) || (overflow == Overflow::DropOldest && self.droppable > 0)
    }

    /// No more should be offered while the browser reads.
    pub fn is_full(&self, config: &Config) -> bool {
        self.deliveries.len() >= config.max_queued.get() || self.bytes >= config.max_queued_bytes.get()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// What they take in memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_over(&self, config: &Config) -> bool {
        self.deliveries.len() > config.max_queued.get() || self.bytes > config.max_queued_bytes.get()
    }

    fn drop_one(&mut self) -> bool {
        let of = |stored: bool| move |delivery: &Delivery| delivery.is_droppable() && delivery.message.retain == stored;
        let oldest = self.deliveries.iter().position(of(false)).or_else(|| self.deliveries.iter().position(of(true)));
        let Some(delivery) = oldest.and_then(|index| self.deliveries.remove(index)) else { return false };
        self.bytes -= delivery.size();
        self.droppable -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use bytes::Bytes;

    use super::*;
    use crate::mqtt::Topic;

    fn delivery(payload: &'static str, qos: Qos) -> Delivery {
        Delivery {
            message: Message {
                topic: Topic::parse("t").expect("a topic"),
                payload: Bytes::from_static(payload.as_bytes()),
                qos,
                retain: false,
                properties: None,
            },
            format: Format::Text,
            ack: Ack::Auto,
            readers: SmallVec::from_iter([Reader { id: 1, sid: None }]),
            msgid: None,
            dup: false,
            receipt: (qos > Qos::AtMostOnce).then_some(7),
            timestamp: 0,
            received: Instant::now(),
        }
    }

    fn at_most(count: usize) -> Config {
        Config { max_queued: NonZeroUsize::new(count).expect("not 0"), ..Config::default() }
    }

    fn payloads(outbox: &mut Outbox) -> Vec<Bytes> {
        outbox.take(usize::MAX).into_iter().map(|delivery| delivery.message.payload).collect()
    }

    #[test]
    fn deliveries_leave_in_the_order_in_which_they_came() {
        let mut outbox = Outbox::default();
        for payload in ["1", "2", "3"] {
            outbox.offer(delivery(payload, Qos::AtMostOnce), Overflow::HoldUpstream, &at_most(10));
        }
        assert_eq!(outbox.take(1).len(), 1, "at least one, whatever its size");
        assert_eq!(payloads(&mut outbox), ["2", "3"]);
        assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
    }

    #[test]
    fn while_the_browser_reads_nothing_is_dropped_and_fullness_is_told() {
        let mut outbox = Outbox::default();
        let config = at_most(2);
        outbox.offer(delivery("1", Qos::AtMostOnce), Overflow::HoldUpstream, &config);
        assert!(!outbox.is_full(&config));
        outbox.offer(delivery("2", Qos::AtMostOnce), Overflow::HoldUpstream, &config);
        assert!(outbox.is_full(&config));
        assert_eq!(outbox.offer(delivery("3", Qos::AtMostOnce), Overflow::HoldUpstream, &config), 0);
        assert_eq!(payloads(&mut outbox), ["1", "2", "3"]);
    }

    #[test]
    fn bytes_fill_the_outbox_too() {
        let mut outbox = Outbox::default();
        let config = Config {
            max_queued_bytes: NonZeroUsize::new(size_of::<Delivery>() + 100).expect("not 0"),
            ..Config::default()
        };
        outbox.offer(delivery("small", Qos::AtMostOnce), Overflow::HoldUpstream, &config);
        assert!(!outbox.is_full(&config));
        outbox.offer(delivery("small", Qos::AtMostOnce), Overflow::HoldUpstream, &config);
        assert!(outbox.is_full(&config));
    }

    #[test]
    fn past_the_bound_the_oldest_of_qos_0_goes_first_and_stored_messages_last() {
        let mut outbox = Outbox::default();
        let config = at_most(3);
        let mut stored = delivery("stored", Qos::AtMostOnce);
        stored.message.retain = true;
        outbox.offer(stored, Overflow::DropOldest, &config);
        outbox.offer(delivery("sure", Qos::AtLeastOnce), Overflow::DropOldest, &config);
        for (payload, dropped) in [("1", 0), ("2", 1), ("3", 1)] {
            assert_eq!(
                outbox.offer(delivery(payload, Qos::AtMostOnce), Overflow::DropOldest, &config),
                dropped,
                "{payload}"
            );
        }
        for payload in ["sure 2", "sure 3", "sure 4"] {
            outbox.offer(delivery(payload, Qos::AtLeastOnce), Overflow::DropOldest, &config);
        }
        assert_eq!(outbox.take_dropped(), 4);
        assert_eq!(payloads(&mut outbox), ["sure", "sure 2", "sure 3", "sure 4"]);
    }

    #[test]
    fn what_must_not_be_dropped_holds_the_broker_even_while_the_browser_reads_nothing() {
        let mut outbox = Outbox::default();
        let config = at_most(2);
        outbox.offer(delivery("sure", Qos::AtLeastOnce), Overflow::DropOldest, &config);
        outbox.offer(delivery("maybe", Qos::AtMostOnce), Overflow::DropOldest, &config);
        assert!(outbox.has_room(Overflow::DropOldest, &config));
        assert!(!outbox.has_room(Overflow::HoldUpstream, &config));
        outbox.offer(delivery("sure", Qos::AtLeastOnce), Overflow::DropOldest, &config);
        assert!(!outbox.has_room(Overflow::DropOldest, &config));
        outbox.take(usize::MAX);
        assert!(outbox.has_room(Overflow::HoldUpstream, &config));
    }

    #[test]
    fn what_waits_for_an_ended_subscription_leaves_and_is_confirmed() {
        let mut outbox = Outbox::default();
        let config = at_most(10);
        outbox.offer(delivery("alone", Qos::AtLeastOnce), Overflow::HoldUpstream, &config);
        let mut both = delivery("both", Qos::AtLeastOnce);
        both.readers.push(Reader { id: 2, sid: Some(5) });
        outbox.offer(both, Overflow::HoldUpstream, &config);
        let mut nobody = delivery("no subscription known", Qos::AtMostOnce);
        nobody.readers.clear();
        outbox.offer(nobody, Overflow::HoldUpstream, &config);
        assert_eq!(outbox.purge(1), [7]);
        let left = outbox.take(usize::MAX);
        assert_eq!(left.iter().map(|delivery| delivery.head().sids).collect::<Vec<_>>(), [vec![5], vec![]]);
    }
}
