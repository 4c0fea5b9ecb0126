//! At most so many deliveries a second for each topic: the newest waits in a slot until its time has come.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use smallvec::SmallVec;

use super::latest::{Following, Source};
use super::outbox::{Delivery, LANES, lane};
use super::rendition::Kind;
use crate::mqtt::Topic;
use crate::mqtt::inflight::Receipt;
use crate::wire::Contract;

/// One slot for each topic and contract that has a rate.
///
/// A slot holds the place in its lane at which the oldest of what was conflated into it arrived, so that it waits behind nothing that
/// came later, and is never overtaken by what came for the same topic in another way.
#[derive(Debug, Default)]
pub struct Conflation {
    /// Some are free.
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    /// Slots by the hash of their topic.
    by_topic: HashMap<u64, SmallVec<[u32; 2]>, BuildHasherDefault<Hashed>>,
    /// What waits for its time.
    timed: BTreeSet<(Instant, u32)>,
    /// What may be taken, by lane and by place.
    ready: [BTreeSet<(u64, u32)>; LANES],
    /// Nothing waits in these; they are forgotten at their time.
    resting: BTreeSet<(Instant, u32)>,
    /// Those with deliveries that share the memory that they were read into.
    fresh: Vec<u32>,
    /// How many of each [`Kind`] wait, by lane.
    droppable: [[usize; 2]; LANES],
    waiting: usize,
    kept: usize,
}

#[derive(Debug)]
struct Slot {
    topic: Topic,
    topic_hash: u64,
    contract: Contract,
    /// The shared subscription that it is for: deliveries of one are never merged with others.
    shared: Option<u32>,
    /// The subscriptions that its deliveries were for.
    readers: SmallVec<[u32; 2]>,
    stage: Stage,
    /// When the next may go.
    due: Instant,
    place: u64,
    waiting: Option<Delivery>,
    /// Where there may be a newer one by the time that this is taken.
    following: Option<Following>,
    is_fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing waits.
    Resting,
    /// It waits for its time.
    Timed,
    /// It may be taken.
    Ready,
}

/// What became of a delivery.
#[derive(Debug)]
pub enum Offered {
    /// It waits in the place of an older one, and has become larger by so many bytes.
    Replaced(Delivery, usize),
    /// It is the only one, and waits until then.
    Waits(Instant),
    /// It is the only one, and may be taken.
    Ready,
    /// There is no slot for one more topic.
    NoSlot(Delivery),
}

/// What a slot takes in the sets and the map, roughly.
const AROUND: usize = 128;

impl Conflation {
    /// Puts a delivery into the slot of its topic and contract. It would have this place in its lane. What it supersedes in other slots
    /// is put to what has left.
    pub fn offer(
        &mut self,
        (delivery, source): (Delivery, Option<Source>),
        place: u64,
        now: Instant,
        max_slots: usize,
        left: &mut Vec<Delivery>,
    ) -> Offered {
        let Some(index) = self.find(&delivery, left) else {
            self.forget_rested(now);
            if self.slots.len() - self.free.len() >= max_slots {
                return Offered::NoSlot(delivery);
            }
            let index = self.make(&delivery, now);
            let offered = self.begin(index, delivery, place, now);
            slot(&mut self.slots, index).follow(source);
            return offered;
        };
        let offered = match slot(&mut self.slots, index).waiting {
            Some(_) => self.replace(index, delivery),
            None => self.begin(index, delivery, place, now),
        };
        slot(&mut self.slots, index).follow(source);
        offered
    }

    /// The slot of a delivery. What waits for the same topic and the same subscriptions in other slots is older and came under a
    /// contract that they have no more: it is conflated away, or comes for other subscriptions alone.
    pub fn find(&mut self, delivery: &Delivery, left: &mut Vec<Delivery>) -> Option<u32> {
        let slots = self.by_topic.get(&delivery.rendition.topic_hash())?;
        let slot = |index: &u32| self.slots[*index as usize].as_ref();
        let is_ours = |index: &u32| slot(index).is_some_and(|slot| slot.takes(delivery));
        if let [only] = slots.as_slice()
            && is_ours(only)
        {
            return Some(*only);
        }
        let found = slots.iter().copied().find(is_ours);
        let is_theirs = |index: &u32| Some(*index) != found && slot(index).is_some_and(|slot| slot.is_for(delivery));
        let others: SmallVec<[u32; 2]> = slots.iter().copied().filter(is_theirs).collect();
        for index in others {
            for reader in &delivery.readers {
                left.extend(self.remove_reader(index, reader.id));
            }
        }
        found
    }

    /// A newer delivery takes the place of the one that waits, and comes for all that this was for.
    fn replace(&mut self, index: u32, mut delivery: Delivery) -> Offered {
        let slot = slot(&mut self.slots, index);
        let before = slot.waiting.take().expect("it was found to wait");
        let lane = lane(&slot.contract);
        let missed = slot.following.take().map_or(0, |following| following.missed());
        delivery.skipped = before.skipped.saturating_add(missed).saturating_add(1);
        let grown = delivery.join_readers(&before);
        slot.learn(&delivery);
        if !slot.is_fresh {
            slot.is_fresh = true;
            self.fresh.push(index);
        }
        let (old, new) = (before.kind(), delivery.kind());
        slot.waiting = Some(delivery);
        if old != new {
            self.count_out(lane, old);
            self.count_in(lane, new);
        }
        Offered::Replaced(before, grown)
    }

    /// The first that waits in a slot since it was taken last.
    fn begin(&mut self, index: u32, delivery: Delivery, place: u64, now: Instant) -> Offered {
        let slot = slot(&mut self.slots, index);
        let lane = lane(&slot.contract);
        self.resting.remove(&(slot.due, index));
        slot.learn(&delivery);
        slot.place = place;
        let kind = delivery.kind();
        slot.waiting = Some(delivery);
        if !slot.is_fresh {
            slot.is_fresh = true;
            self.fresh.push(index);
        }
        let offered = if slot.due <= now {
            slot.stage = Stage::Ready;
            self.ready[lane].insert((place, index));
            Offered::Ready
        } else {
            slot.stage = Stage::Timed;
            self.timed.insert((slot.due, index));
            Offered::Waits(slot.due)
        };
        self.waiting += 1;
        self.count_in(lane, kind);
        offered
    }

    /// A subscription has nothing to do with a slot any more; gives back what waited for it alone.
    fn remove_reader(&mut self, index: u32, subscription: u32) -> Option<Delivery> {
        let slot = self.slots[index as usize].as_mut()?;
        slot.readers.retain(|reader| *reader != subscription);
        let is_gone = slot.readers.is_empty();
        let leaves = slot.waiting.as_mut().is_some_and(|waiting| waiting.is_for_none_but(subscription));
        let left = if leaves || is_gone { self.empty(index) } else { None };
        if is_gone {
            self.forget(index);
        }
        left
    }

    /// What is due may be taken from now on.
    pub fn ripen(&mut self, now: Instant) {
        while let Some((due, _)) = self.timed.first()
            && *due <= now
        {
            self.ripen_next();
        }
        self.forget_rested(now);
    }

    /// All that waits may be taken, due or not.
    pub fn ripen_all(&mut self) {
        while !self.timed.is_empty() {
            self.ripen_next();
        }
    }

    /// What is due next may be taken; gives back its size, or more than anything has, if nothing is due.
    pub fn ripen_next(&mut self) -> usize {
        let Some((_, index)) = self.timed.pop_first() else { return usize::MAX };
        let slot = slot(&mut self.slots, index);
        slot.stage = Stage::Ready;
        self.ready[lane(&slot.contract)].insert((slot.place, index));
        slot.waiting.as_ref().map_or(0, Delivery::size)
    }

    /// Of what may be taken of a lane the first, and its place.
    pub fn first(&self, lane: usize) -> Option<(u64, &Delivery)> {
        let (place, index) = self.ready[lane].first()?;
        Some((*place, self.slots[*index as usize].as_ref()?.waiting.as_ref()?))
    }

    /// Takes that one, or what is newer: the next for its topic may go when the interval is over.
    pub fn pop(&mut self, lane: usize, now: Instant) -> Option<Delivery> {
        let (_, index) = *self.ready[lane].first()?;
        let following = slot(&mut self.slots, index).following.take();
        let mut delivery = self.empty(index)?;
        if let Some(following) = following {
            following.catch_up(&mut delivery);
        }
        let slot = slot(&mut self.slots, index);
        self.resting.remove(&(slot.due, index));
        slot.due = slot.contract.max_rate.map_or(now, |rate| now + rate.interval());
        self.resting.insert((slot.due, index));
        Some(delivery)
    }

    /// Takes one of a kind that may be dropped from a lane: of what may go the one that waits for longest, then what is due next.
    pub fn drop_oldest(&mut self, lane_of: usize, kind: Kind) -> Option<Delivery> {
        if !self.holds(lane_of, kind) {
            return None;
        }
        let ready = self.ready[lane_of].iter().map(|(_, index)| *index);
        let mut all = ready.chain(self.timed.iter().map(|(_, index)| *index));
        let index = all.find(|index| {
            let slot = self.slots[*index as usize].as_ref();
            slot.is_some_and(|slot| {
                lane(&slot.contract) == lane_of && slot.waiting.as_ref().and_then(Delivery::kind) == Some(kind)
            })
        })?;
        self.empty(index)
    }

    /// Whether one of that kind could be dropped from a lane.
    pub fn holds(&self, lane: usize, kind: Kind) -> bool {
        self.droppable[lane][kind as usize] > 0
    }

    /// When something may be taken next that may not yet.
    pub fn next_due(&self) -> Option<Instant> {
        self.timed.first().map(|(due, _)| *due)
    }

    /// The subscription has ended: what waits for it alone leaves, and its receipts are to be confirmed.
    pub fn purge(&mut self, subscription: u32, receipts: &mut Vec<Receipt>) {
        for index in 0..self.slots.len() {
            let is_reader = |slot: &Slot| slot.readers.contains(&subscription);
            if self.slots[index].as_ref().is_some_and(is_reader) {
                let left = self.remove_reader(index as u32, subscription);
                receipts.extend(left.and_then(|delivery| delivery.receipt));
            }
        }
    }

    /// Gives the payloads that came since this was last called memory of their own.
    pub fn detach(&mut self) {
        for index in self.fresh.drain(..) {
            if let Some(slot) = &mut self.slots[index as usize] {
                slot.is_fresh = false;
                if let Some(delivery) = &mut slot.waiting {
                    delivery.detach();
                }
            }
        }
    }

    /// All that waits.
    pub fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.slots.iter().flatten().filter_map(|slot| slot.waiting.as_ref())
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Delivery> {
        self.slots.iter_mut().flatten().filter_map(|slot| slot.waiting.as_mut())
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// No topic is known.
    pub fn is_unused(&self) -> bool {
        self.by_topic.is_empty()
    }

    /// What the slots take in memory, without what waits in them.
    pub fn kept(&self) -> usize {
        self.kept
    }

    fn make(&mut self, delivery: &Delivery, now: Instant) -> u32 {
        let topic = delivery.rendition.message.topic.clone();
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.kept += kept(&topic);
        let topic_hash = delivery.rendition.topic_hash();
        self.by_topic.entry(topic_hash).or_default().push(index);
        self.slots[index as usize] = Some(Slot {
            topic,
            topic_hash,
            contract: delivery.contract,
            shared: shared(delivery),
            readers: SmallVec::new(),
            stage: Stage::Resting,
            due: now,
            place: 0,
            waiting: None,
            following: None,
            is_fresh: false,
        });
        index
    }

    /// Takes what waits in a slot, which rests from then on.
    fn empty(&mut self, index: u32) -> Option<Delivery> {
        let slot = self.slots[index as usize].as_mut()?;
        let delivery = slot.waiting.take()?;
        slot.following = None;
        let lane = lane(&slot.contract);
        match slot.stage {
            Stage::Resting => {}
            Stage::Timed => drop(self.timed.remove(&(slot.due, index))),
            Stage::Ready => drop(self.ready[lane].remove(&(slot.place, index))),
        }
        slot.stage = Stage::Resting;
        self.resting.insert((slot.due, index));
        self.waiting -= 1;
        self.count_out(lane, delivery.kind());
        Some(delivery)
    }

    fn forget_rested(&mut self, now: Instant) {
        while let Some((due, index)) = self.resting.first().copied()
            && due <= now
        {
            self.forget(index);
        }
        if self.by_topic.is_empty() && !self.slots.is_empty() {
            *self = Conflation::default();
        }
    }

    /// Nothing waits in it.
    fn forget(&mut self, index: u32) {
        let Some(slot) = self.slots[index as usize].take() else { return };
        self.resting.remove(&(slot.due, index));
        self.free.push(index);
        self.kept -= kept(&slot.topic);
        if let Some(slots) = self.by_topic.get_mut(&slot.topic_hash) {
            slots.retain(|other| *other != index);
            if slots.is_empty() {
                self.by_topic.remove(&slot.topic_hash);
            }
        }
    }

    fn count_in(&mut self, lane: usize, kind: Option<Kind>) {
        if let Some(kind) = kind {
            self.droppable[lane][kind as usize] += 1;
        }
    }

    fn count_out(&mut self, lane: usize, kind: Option<Kind>) {
        if let Some(kind) = kind {
            self.droppable[lane][kind as usize] -= 1;
        }
    }
}

impl Slot {
    fn takes(&self, delivery: &Delivery) -> bool {
        self.is_of(delivery) && self.contract == delivery.contract && self.shared == shared(delivery)
    }

    fn is_of(&self, delivery: &Delivery) -> bool {
        self.topic == delivery.rendition.message.topic
    }

    /// Whether it has to do with a subscription that the delivery is for.
    fn is_for(&self, delivery: &Delivery) -> bool {
        self.is_of(delivery) && delivery.readers.iter().any(|reader| self.readers.contains(&reader.id))
    }

    fn follow(&mut self, source: Option<Source>) {
        self.following = source.map(|(latest, place)| latest.follow(place));
    }

    fn learn(&mut self, delivery: &Delivery) {
        for reader in &delivery.readers {
            if !self.readers.contains(&reader.id) {
                self.readers.push(reader.id);
            }
        }
    }
}

/// Of what is a hash already.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The shared subscription that a delivery is for.
fn shared(delivery: &Delivery) -> Option<u32> {
    delivery.readers.first().filter(|reader| reader.is_shared).map(|reader| reader.id)
}

fn slot(slots: &mut [Option<Slot>], index: u32) -> &mut Slot {
    slots[index as usize].as_mut().expect("it is in use")
}

fn kept(topic: &Topic) -> usize {
    size_of::<Slot>() + topic.as_str().len() + AROUND
}
