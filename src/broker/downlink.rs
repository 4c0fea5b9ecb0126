//! What comes down to a session from its link, and the confirmations that go back up: a shared place, in which both look.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::budget::Budget;
use super::link::{Event, Link, Renewal};
use super::signal::{Raise, Signal};
use crate::delivery::latest::Source;
use crate::delivery::outbox::{Excess, Offer};
use crate::delivery::{self, Bound, Delivery, Gaps, Outbox, Overflow, subscription_id};
use crate::metrics;
use crate::mqtt::TopicFilter;
use crate::mqtt::inflight::Receipt;
use crate::wire::Close;

/// A browser's socket, for frames that go out at once or not at all.
pub trait Direct: Send + Sync + std::fmt::Debug {
    /// Appends a text frame whose payload is these parts.
    fn frame(&self, out: &mut BytesMut, text: &[&[u8]]);

    /// Writes as many of the bytes as the network takes now.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

/// What a session took from its link.
#[derive(Debug)]
pub struct Taken {
    /// What happened, in order.
    pub events: VecDeque<Event>,
    /// What is to be written.
    pub deliveries: Vec<Delivery>,
    /// What the deliveries take in memory.
    pub bytes: usize,
    /// How many were dropped since the last time.
    pub dropped: u64,
    /// What is to be written before anything else.
    pub rest: Rest,
    /// Nothing was there to take: from now on frames may be written elsewhere.
    pub is_idle: bool,
    /// Topics of which something was dropped that a delta would rest on.
    pub gaps: Gaps,
    /// When there may be more to take though nothing new comes.
    pub again: Option<Instant>,
    /// What the session may keep for now.
    pub bound: Bound,
}

/// Frames whose writing was begun outside of the session: what the network has not taken of them.
#[derive(Debug, Default)]
pub struct Rest {
    /// The bytes.
    pub frames: Bytes,
    /// What they confirm once they are written.
    pub receipts: Vec<Receipt>,
}

/// Outlives the session, until the link has ended.
#[derive(Clone, Debug)]
pub struct Handle {
    downlink: Arc<Downlink>,
}

impl Handle {
    /// For the link of this downlink.
    pub(super) fn of(downlink: Arc<Downlink>) -> Handle {
        Handle { downlink }
    }

    /// Somebody else connects with this link's client identifier: the link gives way.
    pub fn take_over(&self) {
        let mut state = self.downlink.lock();
        state.taken_over = true;
        let successor = state.successor.clone();
        drop(state);
        self.downlink.to_link.raise();
        if let Some(downlink) = successor {
            Handle { downlink }.take_over();
        }
    }

    /// The session has ended so, and hangs up: what it asked before is finished first. Waits for no room among the commands.
    pub fn end(&self, close: Close) {
        let mut state = self.downlink.lock();
        state.ended_by.get_or_insert(close);
        // What waits is forgotten; what was not confirmed stays with the broker.
        state.phase = Phase::Ended;
        state.forget(&self.downlink.budget);
        let successor = state.successor.clone();
        drop(state);
        self.downlink.to_link.raise();
        if let Some(downlink) = successor {
            Handle { downlink }.end(close);
        }
    }

    /// The session is to look around.
    pub fn wake(&self) {
        let successor = self.downlink.lock().successor.clone();
        self.downlink.to_session.raise();
        if let Some(downlink) = successor {
            Handle { downlink }.wake();
        }
    }

    /// The gateway drains: what the link still waits for, a delayed will say, is left to the broker.
    pub fn abandon(&self) {
        self.downlink.lock().abandoned = true;
        self.downlink.to_link.raise();
    }

    /// Waits until the link has let go of the broker's session.
    pub async fn ended(&self) {
        self.downlink.let_go.notified().await;
        self.downlink.let_go.notify_one();
    }
}

/// For each so many bytes that are held, one more is taken by buffers that are not full and by the allocator: so much that the process
/// grows by no more than the setting says, as `cargo bench --bench load -- slow` sees it.
const LOSS: usize = 2;
/// Deliveries of a session that may wait without being counted.
const FEW: usize = 8;
/// How many times what may wait for a browser may wait for one that reads, where its link is read on for others.
const PATIENCE: usize = 8;
/// Bytes of frames that many sessions share which are written at once; for more than that, each session is woken.
const MOST_AT_ONCE: usize = 64 * 1024;
/// The same of frames that are made for one session: waking it costs little beside a large one, and the copy is not accounted for.
const MOST_AT_ONCE_ALONE: usize = 8 * 1024;
/// Bytes of deliveries that a session may take at one time, however little memory is left for all.
const LEAST_TAKEN: usize = 4 * 1024;

/// What comes down to a session, and the confirmations that go back up.
#[derive(Debug)]
#[repr(C)]
pub struct Downlink {
    state: Mutex<State>,
    config: delivery::Config,
    /// What the outboxes of all sessions share.
    budget: Arc<Budget>,
    /// Wakes the session: there are events, or the first deliveries.
    pub to_session: Signal,
    /// Wakes the link: there are confirmations, there is room, or it is to give way.
    pub to_link: Raise,
    let_go: Notify,
}

/// In this order, so that what is looked at for each delivery that is written at once lies together: with thousands of sessions it comes
/// from far away in memory each time.
#[derive(Debug, Default)]
#[repr(C)]
struct State {
    /// Where frames go at once while the session has nothing else to write.
    direct: Option<Arc<dyn Direct>>,
    /// The session has nothing to write, and was told all there is to tell.
    is_idle: bool,
    /// What it may do has changed and the link has not judged by that: nothing is delivered meanwhile.
    is_judging: bool,
    phase: Phase,
    outbox: Outbox,
    events: VecDeque<Event>,
    /// Bytes that the session has taken and the socket has not.
    taken: usize,
    /// Bytes of the broker's connection while that is not read.
    unread: usize,
    /// Bytes that the session keeps of what it has written.
    kept: usize,
    /// When the session looks again by itself.
    looks_at: Option<Instant>,
    confirmations: Vec<Receipt>,
    excess: Excess,
    /// The link waits for room.
    is_held: bool,
    taken_over: bool,
    ended_by: Option<Close>,
    abandoned: bool,
    rest: Rest,
    /// The session has moved, and is told there what it is told here.
    successor: Option<Arc<Downlink>>,
    /// What the session may do from now on, until the link has seen it.
    renewal: Option<Box<Renewal>>,
    /// Deliveries as the gauge knows them.
    counted: usize,
    /// Bytes as the budget knows them.
    charged: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The browser can be told nothing yet, and the broker has answers to give.
    #[default]
    Opening,
    Open,
    /// Only what waits already is delivered.
    Draining,
    /// There is no browser any more: what comes is for whoever takes the session up.
    Ended,
}

impl State {
    /// Tells what is held now. What is taken as soon as it is offered never shows: what all sessions share is dear.
    fn account(&mut self, budget: &Budget) {
        let held = self.outbox.bytes() + self.outbox.kept() + self.taken + self.unread + self.kept;
        self.charged = budget.charge(self.charged, held + held / LOSS);
        let deliveries = self.outbox.len();
        if deliveries > FEW || self.counted != 0 {
            metrics::outbox_deliveries_changed(self.counted, deliveries);
            self.counted = deliveries;
        }
    }

    fn forget(&mut self, budget: &Budget) {
        (self.outbox, self.taken, self.unread, self.kept) = (Outbox::default(), 0, 0, 0);
        self.direct = None;
        self.account(budget);
    }

    /// What comes now may go out at once: nothing waits that would have to go before it.
    fn is_free(&self) -> bool {
        self.is_idle && !self.is_judging && self.phase == Phase::Open && self.outbox.is_empty()
    }

    /// Writes frames at once, if nothing has to go before them and the network takes anything.
    fn send(&mut self, frames: &[u8]) -> Sent {
        let Some(direct) = self.direct.as_ref().filter(|_| self.is_free()) else { return Sent::Nothing };
        match direct.try_write(frames) {
            Ok(all) if all == frames.len() => Sent::All,
            Ok(some @ 1..) => {
                self.rest.frames = Bytes::copy_from_slice(&frames[some..]);
                self.taken = self.rest.frames.len();
                self.is_idle = false;
                Sent::Some
            }
            // The session finds out for itself what is wrong.
            Ok(0) | Err(_) => Sent::Nothing,
        }
    }

    /// Queues deliveries; what was conflated away by them is confirmed.
    fn offer(&mut self, deliveries: impl Iterator<Item = Delivery>, excess: Excess, bound: &Bound) -> Offer {
        let offers = deliveries.map(|delivery| self.outbox.offer(delivery, excess, bound));
        let offer = offers.fold(Offer::default(), Offer::and);
        self.note(offer)
    }

    fn note(&mut self, offer: Offer) -> Offer {
        metrics::deliveries_dropped(offer.dropped);
        metrics::deliveries_conflated(offer.conflated);
        self.confirmations.extend(self.outbox.take_confirmed());
        offer
    }

    /// Whether the session is to look: one that would find nothing to take is not woken.
    fn wakes(&mut self, offer: &Offer) -> bool {
        let is_sooner = offer.due.is_some_and(|due| self.looks_at.is_none_or(|at| due < at));
        if is_sooner {
            self.looks_at = offer.due;
        }
        offer.has_news || is_sooner
    }

    /// Encodes these and writes them at once, if they are confirmed by that and not too many.
    fn send_at_once(&mut self, deliveries: &[Delivery]) -> Sent {
        let size: usize = deliveries.iter().map(|delivery| delivery.rendition.message.size()).sum();
        if !self.is_free() || size > MOST_AT_ONCE_ALONE || !deliveries.iter().all(Delivery::goes_at_once) {
            return Sent::Nothing;
        }
        let Some(direct) = &self.direct else { return Sent::Nothing };
        let mut frames = BytesMut::with_capacity(size + deliveries.len() * 160);
        for delivery in deliveries {
            delivery.write(|parts| direct.frame(&mut frames, parts));
        }
        let sent = self.send(&frames);
        if sent != Sent::Nothing {
            let receipts = deliveries.iter().filter_map(|delivery| delivery.receipt);
            if sent == Sent::All {
                self.confirmations.extend(receipts)
            } else {
                self.rest.receipts.extend(receipts)
            }
            let now = Instant::now();
            for Delivery { rendition, .. } in deliveries {
                metrics::message_down(&rendition.message);
                metrics::delivered(now.saturating_duration_since(rendition.received));
            }
        }
        sent
    }

    fn drop_excess(&mut self, bound: &Bound) {
        metrics::deliveries_dropped(self.outbox.drop_excess(bound));
    }
}

/// What became of deliveries that were to wait.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// There was room for them.
    pub fits: bool,
    /// The session has something new to take, or to take at its time.
    pub wakes: bool,
}

/// What became of frames that were to go out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    All,
    /// The session writes the rest.
    Some,
    Nothing,
}

impl Downlink {
    /// Nothing waits.
    pub(super) fn new(config: delivery::Config, budget: Arc<Budget>, to_link: Raise) -> Arc<Downlink> {
        Arc::new(Downlink {
            state: Mutex::default(),
            config,
            budget,
            to_session: Signal::default(),
            to_link,
            let_go: Notify::new(),
        })
    }

    /// Link: tells the session something. Events are as many as the session's requests, and a few.
    pub fn tell(&self, event: Event) {
        let mut state = self.lock();
        if let Some(successor) = state.successor.clone() {
            drop(state);
            return successor.tell(event);
        }
        if state.phase == Phase::Opening && matches!(event, Event::Ready(_)) {
            state.phase = Phase::Open;
        }
        state.events.push_back(event);
        state.is_idle = false;
        drop(state);
        self.to_session.raise();
    }

    /// Link: offers what one read of the broker brought, and says whether none of it waits. What comes once the session drains is left
    /// to whoever resumes it.
    pub fn offer(&self, deliveries: SmallVec<[Delivery; 1]>) -> bool {
        let mut state = self.lock();
        let sent = state.send_at_once(&deliveries);
        let mut wakes = sent == Sent::Some;
        if sent == Sent::Nothing {
            let left = self.left();
            let (excess, bound) = match state.phase {
                Phase::Opening => (Excess::Drop, self.config.opening_bound(left)),
                Phase::Open => (state.excess, self.config.bound(left)),
                Phase::Draining | Phase::Ended => return false,
            };
            // What has waited for another read may wait for long.
            state.outbox.detach();
            let offer = state.offer(deliveries.into_iter(), excess, &bound);
            wakes = state.wakes(&offer);
        }
        if sent != Sent::All {
            state.account(&self.budget);
        }
        let is_confirming = !state.confirmations.is_empty();
        drop(state);
        if is_confirming {
            self.to_link.raise();
        }
        if wakes {
            self.to_session.raise();
        }
        sent == Sent::All
    }

    /// Brings what [`send`](Self::send) looks at near. It is a plain read beside it, so that of many that are asked for one after the
    /// other all are on their way at one time.
    pub fn touch(&self) {
        std::hint::black_box(self.state.is_poisoned());
    }

    /// Shared link: writes ready frames to the browser at once, if nothing has to go before them.
    pub fn send(&self, frames: &[u8]) -> bool {
        let mut state = self.lock();
        let sent = state.send(frames);
        if sent == Sent::Some {
            state.account(&self.budget);
            drop(state);
            self.to_session.raise();
        }
        sent != Sent::Nothing
    }

    /// The frames of these deliveries as they go over the wire, where they may go at once.
    pub fn frames<'a>(&self, deliveries: impl Iterator<Item = &'a Delivery>) -> Option<Bytes> {
        let state = self.lock();
        let direct = state.direct.as_ref()?;
        let mut frames = BytesMut::new();
        for delivery in deliveries {
            if !delivery.goes_at_once() {
                return None;
            }
            delivery.write(|parts| direct.frame(&mut frames, parts));
        }
        (frames.len() <= MOST_AT_ONCE).then(|| frames.freeze())
    }

    /// Session: where frames may be written at once while it has nothing to write.
    pub fn set_direct(&self, direct: Option<Arc<dyn Direct>>) {
        self.lock().direct = direct;
    }

    /// Session: it writes from now on, what is given back first.
    pub fn begin_writing(&self) -> Rest {
        let mut state = self.lock();
        state.is_idle = false;
        std::mem::take(&mut state.rest)
    }

    /// Shared link, which is read on for others: offers what one read brought, and wakes nobody yet. Where there is no room, what may be
    /// dropped is.
    pub fn offer_or_drop(&self, deliveries: impl Iterator<Item = Delivery>) -> Kept {
        self.keep_or_drop(|state, excess, bound| state.offer(deliveries, excess, bound))
    }

    /// The same with one that waits for its time, so that it may be a newer one that is taken then.
    pub fn follow(&self, delivery: Delivery, source: Source) -> Kept {
        self.keep_or_drop(|state, excess, bound| {
            let offer = state.outbox.offer_from(Some(source), delivery, excess, bound);
            state.note(offer)
        })
    }

    fn keep_or_drop(&self, offer: impl FnOnce(&mut State, Excess, &Bound) -> Offer) -> Kept {
        let left = self.left();
        let mut state = self.lock();
        let bound = match state.phase {
            Phase::Opening => self.config.opening_bound(left),
            Phase::Open => self.patient_bound(&state, left),
            Phase::Draining | Phase::Ended => return Kept { fits: true, wakes: false },
        };
        let excess = if self.config.overflow == Overflow::Drop { Excess::Drop } else { Excess::Hold };
        let offer = offer(&mut state, excess, &bound);
        state.account(&self.budget);
        // What waits for its batch takes room that others need.
        let is_full = state.outbox.is_full(&self.config.bound(left));
        Kept { fits: !state.outbox.is_over(&bound), wakes: state.wakes(&offer) || is_full }
    }

    /// A shared link can't be read more slowly, so a burst may be several times what may wait while the browser takes something.
    fn patient_bound(&self, state: &State, left: usize) -> Bound {
        let bound = self.config.bound(left);
        match state.excess {
            Excess::Drop => bound,
            Excess::Hold if self.config.overflow == Overflow::Close => bound,
            Excess::Hold => Bound {
                count: bound.count.saturating_mul(PATIENCE),
                bytes: self.config.max_queued_bytes.get().saturating_mul(PATIENCE).min(bound.free),
                ..bound
            },
        }
    }

    /// Shared link: whether stored messages may be offered, which come faster than a browser reads and are not dropped; half of the
    /// room is kept for what is new.
    pub fn has_room_for_stored(&self) -> bool {
        let bound = self.config.bound(self.left() / 2);
        let half = Bound { count: bound.count / 2, bytes: bound.bytes / 2, ..bound };
        let state = self.lock();
        match state.phase {
            Phase::Opening => state.outbox.bytes() < bound.free,
            Phase::Open => !state.outbox.is_full(&half),
            Phase::Draining | Phase::Ended => true,
        }
    }

    /// Link: whether the broker's connection may be read, which holds so many bytes.
    pub fn may_read(&self, unread: usize) -> bool {
        let left = self.left();
        let mut state = self.lock();
        let may_read = match state.phase {
            Phase::Opening | Phase::Draining | Phase::Ended => true,
            Phase::Open => state.outbox.has_room(state.excess, &self.config.bound(left)),
        };
        if may_read == state.is_held {
            state.is_held = !may_read;
            state.unread = if may_read { 0 } else { unread };
            if !may_read {
                state.outbox.detach();
                // It may hold deliveries back for an answer that will not be read now.
                self.to_session.raise();
            }
            state.account(&self.budget);
        }
        may_read
    }

    /// Another one for the same session.
    pub(super) fn like(&self, to_link: Raise) -> Arc<Downlink> {
        Downlink::new(self.config.clone(), self.budget.clone(), to_link)
    }

    /// Shared link: the session goes on over that link. What it is told here from now on, it is told there. It hears these last events
    /// together with that, so that what it asks because of them goes the new way.
    pub(super) fn move_to(&self, link: Link, last: Vec<Event>) {
        let successor = link.downlink.clone();
        let mut state = self.lock();
        state.events.extend(last);
        state.events.push_back(Event::Moved(Box::new(link)));
        state.is_idle = false;
        state.successor = Some(successor.clone());
        let (ended_by, taken_over, renewal) = (state.ended_by, state.taken_over, state.renewal.take());
        state.is_judging = false;
        drop(state);
        self.to_session.raise();
        if let Some(renewal) = renewal {
            successor.renew(*renewal);
        }
        let handle = Handle { downlink: successor };
        if taken_over {
            handle.take_over();
        }
        if let Some(close) = ended_by {
            handle.end(close);
        }
    }

    /// Takes the first event of a kind, and leaves all others.
    pub(super) fn take_event(&self, is_wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let events = &mut self.lock().events;
        let at = events.iter().position(is_wanted)?;
        events.remove(at)
    }

    /// Looks at what waits.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Outbox) -> T) -> T {
        at(&self.lock().outbox)
    }

    /// Leaves out of what waits what has come another way; that counts as delivered.
    pub(super) fn retain(&self, keep: impl FnMut(&Delivery) -> bool) {
        let mut state = self.lock();
        let receipts = state.outbox.retain(keep);
        state.confirmations.extend(receipts);
        state.account(&self.budget);
        drop(state);
        self.to_link.raise();
    }

    /// Session: it may do that from now on; the link tells what has ended by it. Until it has judged that, nothing is delivered.
    pub fn renew(&self, renewal: Renewal) {
        let mut state = self.lock();
        if let Some(successor) = state.successor.clone() {
            drop(state);
            return successor.renew(renewal);
        }
        state.renewal = Some(Box::new(renewal));
        state.is_judging = true;
        drop(state);
        self.to_link.raise();
    }

    /// Link: what the session may do from now on, where that has changed.
    pub fn take_renewal(&self) -> Option<Box<Renewal>> {
        self.lock().renewal.take()
    }

    /// Link: nothing waits any more that the session may not have, as far as it was renewed.
    pub fn judged(&self) {
        let mut state = self.lock();
        state.is_judging = state.renewal.is_some();
        drop(state);
        self.to_session.raise();
    }

    /// Link: what the session has confirmed since this was last asked.
    pub fn take_confirmations(&self) -> Vec<Receipt> {
        std::mem::take(&mut self.lock().confirmations)
    }

    /// Link: whether it is to give way to another connection of the same client.
    pub fn is_taken_over(&self) -> bool {
        self.lock().taken_over
    }

    /// Link: how the session has ended, if it has.
    pub fn ended_by(&self) -> Option<Close> {
        self.lock().ended_by
    }

    /// Link: whether it is to end without a goodbye.
    pub fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    /// Link: a subscription has ended; what waits for it alone leaves, and its receipts come back.
    pub fn purge(&self, filter: &TopicFilter) -> Vec<Receipt> {
        let mut state = self.lock();
        let receipts = state.outbox.purge(subscription_id(filter));
        state.account(&self.budget);
        receipts
    }

    /// Link: it has let go of the broker's session.
    pub fn let_go(&self) {
        self.let_go.notify_one();
    }

    /// Link: the broker has lost the session, so what it delivered can no longer be confirmed.
    pub fn void_receipts(&self) {
        let mut state = self.lock();
        state.outbox.void_receipts();
        state.confirmations.clear();
        state.rest.receipts.clear();
    }

    /// Session: what happened, in order.
    pub fn take_events(&self) -> VecDeque<Event> {
        std::mem::take(&mut self.lock().events)
    }

    /// Session: what happened, and deliveries up to roughly that many bytes if any are wanted. What was taken before has been
    /// written.
    ///
    /// One look at both, so that what a delivery follows from is always told before it.
    pub fn take(&self, bytes: Option<usize>, now: Instant) -> Taken {
        let left = self.left();
        let bound = self.config.bound(left);
        let mut state = self.lock();
        if state.phase == Phase::Draining {
            state.outbox.release_all();
        } else if state.is_held || state.outbox.is_full(&bound) {
            state.outbox.relieve(&bound);
        }
        let bytes = bytes.filter(|_| !state.is_judging);
        let before = state.outbox.bytes();
        let rest = std::mem::take(&mut state.rest);
        let deliveries = bytes.map_or_else(Vec::new, |bytes| state.outbox.take(bytes.min(left.max(LEAST_TAKEN)), now));
        state.looks_at = bytes.and_then(|_| state.outbox.next_due());
        state.taken = before - state.outbox.bytes() + rest.frames.len();
        state.is_idle = bytes.is_some() && rest.frames.is_empty() && deliveries.is_empty() && state.events.is_empty();
        if state.is_held && !deliveries.is_empty() {
            self.to_link.raise();
        }
        state.account(&self.budget);
        Taken {
            events: std::mem::take(&mut state.events),
            deliveries,
            bytes: state.taken,
            dropped: state.outbox.take_dropped(),
            rest,
            is_idle: state.is_idle,
            gaps: state.outbox.take_gaps(),
            again: state.looks_at,
            bound,
        }
    }

    /// Session: it keeps so many bytes of what it has written.
    pub fn keep(&self, bytes: usize) {
        let mut state = self.lock();
        if state.phase != Phase::Ended {
            state.kept = bytes;
            state.account(&self.budget);
        }
    }

    /// Session: what it took has become so many bytes to write.
    pub fn encoded(&self, bytes: usize) {
        let mut state = self.lock();
        state.taken = bytes;
        state.account(&self.budget);
    }

    /// Session: these deliveries are confirmed.
    pub fn confirm(&self, receipts: impl IntoIterator<Item = Receipt>) {
        let mut state = self.lock();
        let before = state.confirmations.len();
        state.confirmations.extend(receipts);
        if state.confirmations.len() > before {
            self.to_link.raise();
        }
    }

    /// Session: whether the browser takes nothing, so that what is over the bound is to be dropped, or takes something again.
    pub fn set_stalled(&self, stalled: bool) {
        let excess = if stalled && self.config.overflow == Overflow::Drop { Excess::Drop } else { Excess::Hold };
        let left = self.left();
        let mut state = self.lock();
        if state.excess != excess {
            state.excess = excess;
            if excess == Excess::Drop {
                state.drop_excess(&self.config.bound(left));
                state.account(&self.budget);
            }
            self.to_link.raise();
        }
    }

    /// Session: from now on only what waits already is delivered.
    pub fn drain(&self) {
        let mut state = self.lock();
        state.phase = Phase::Draining;
        state.is_idle = false;
        drop(state);
        self.to_link.raise();
    }

    /// Session: nothing waits for it.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.outbox.is_empty() && state.events.is_empty()
    }

    /// Session: whether it is to be closed if its browser takes nothing.
    pub fn closes_when_stalled(&self) -> bool {
        match self.config.overflow {
            Overflow::Close => self.is_full(),
            // What is left then can't be dropped, and its link is read on for others.
            Overflow::Drop if self.to_link.is_among() => {
                let bound = self.config.bound(self.left());
                let state = self.lock();
                state.excess == Excess::Drop && state.outbox.is_over(&bound)
            }
            Overflow::Drop => false,
        }
    }

    /// Session: whether the broker's connection is held up, or would be.
    pub fn is_full(&self) -> bool {
        let left = self.left();
        let state = self.lock();
        state.is_held || state.outbox.is_full(&self.config.bound(left))
    }

    /// Bytes that are left for all sessions.
    fn left(&self) -> usize {
        self.budget.left_of(self.config.max_total_bytes.get())
    }

    /// Also after a panic of the session or the link: the other one ends in good order.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Downlink {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.forget(&self.budget);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::{Duration, Instant};

    use futures_util::FutureExt;
    use smallvec::smallvec;

    use super::*;
    use crate::delivery::Rendition;
    use crate::delivery::subscriptions::Reader;
    use crate::mqtt::{Message, Qos, Topic};
    use crate::wire::{Format, Rate};

    const KIB: usize = 1024;

    fn delivery(bytes: usize) -> Delivery {
        let topic = Topic::parse("t").expect("a topic");
        let payload = Bytes::from(vec![b'x'; bytes]);
        let message = Message { topic, payload, qos: Qos::AtMostOnce, retain: false, properties: None };
        Delivery::plain(message)
    }

    /// Those of some sessions that may hold so many bytes together.
    fn downlinks<const N: usize>(total: usize) -> [Arc<Downlink>; N] {
        let budget = Arc::<Budget>::default();
        let max_total_bytes = NonZeroUsize::new(total).expect("not 0");
        let config = delivery::Config { max_total_bytes, ..Default::default() };
        std::array::from_fn(|_| Downlink::new(config.clone(), budget.clone(), Raise::default()))
    }

    fn open(downlink: &Downlink) {
        downlink.lock().phase = Phase::Open;
    }

    #[test]
    fn a_link_that_waits_for_room_is_woken_when_its_session_takes_something_whatever_others_freed_meanwhile() {
        let [ours, theirs] = downlinks(64 * KIB);
        open(&ours);
        open(&theirs);
        theirs.offer(smallvec![delivery(30 * KIB)]);
        ours.offer(smallvec![delivery(20 * KIB)]);
        assert!(!ours.may_read(0), "less is left than what waits");
        theirs.take(Some(usize::MAX), Instant::now());
        theirs.take(Some(usize::MAX), Instant::now());
        let _ = ours.to_link.raised().now_or_never();
        assert_eq!(ours.take(Some(usize::MAX), Instant::now()).deliveries.len(), 1);
        assert!(ours.to_link.raised().now_or_never().is_some());
        assert!(ours.may_read(0));
    }

    #[test]
    fn nothing_is_delivered_until_the_link_has_judged_by_the_latest_rights() {
        let [downlink] = downlinks(1024 * KIB);
        open(&downlink);
        let renewal = || Renewal { rights: None, credentials: None };
        downlink.offer(smallvec![delivery(10)]);
        downlink.renew(renewal());
        downlink.tell(Event::Up { session_present: true });
        let taken = take(&downlink);
        assert_eq!((taken.deliveries.len(), taken.events.len()), (0, 1), "what happened is told all the same");
        downlink.take_renewal();
        downlink.renew(renewal());
        downlink.judged();
        assert_eq!(take(&downlink).deliveries.len(), 0, "there are newer ones");
        downlink.take_renewal();
        let _ = downlink.to_session.raised().now_or_never();
        downlink.judged();
        assert!(downlink.to_session.raised().now_or_never().is_some());
        assert_eq!(take(&downlink).deliveries.len(), 1);
    }

    #[test]
    fn what_is_being_written_and_what_is_half_read_is_charged_until_it_is_gone() {
        let [downlink] = downlinks(1024 * KIB);
        open(&downlink);
        let left = || downlink.left() / KIB;
        downlink.offer(smallvec![delivery(100 * KIB)]);
        assert!((855..=874).contains(&left()), "{} KiB", left());
        assert_eq!(downlink.take(Some(usize::MAX), Instant::now()).deliveries.len(), 1);
        assert!((855..=874).contains(&left()), "{} KiB", left());
        downlink.encoded(200 * KIB);
        assert!((705..=724).contains(&left()), "{} KiB", left());
        downlink.take(Some(usize::MAX), Instant::now());
        assert_eq!(left(), 1024);
        downlink.offer((0..1000).map(|_| delivery(0)).collect());
        let before = left();
        assert!(!downlink.may_read(100 * KIB));
        assert!(before - left() >= 96, "{before} KiB, then {} KiB", left());
        let handle = Handle { downlink: downlink.clone() };
        handle.end(Close::Lost);
        assert_eq!(left(), 1024, "an ended session holds nothing");
        assert!(downlink.may_read(0));
        downlink.offer(smallvec![delivery(100 * KIB)]);
        assert_eq!(left(), 1024);
    }

    #[test]
    fn before_a_session_is_open_its_first_deliveries_are_bounded_by_what_is_left_for_all() {
        let [downlink] = downlinks(1024 * KIB);
        for _ in 0..100 {
            assert!(downlink.may_read(0));
            downlink.offer((0..50).map(|_| delivery(KIB)).collect());
        }
        let held = 1024 - downlink.left() / KIB;
        assert!((400..=700).contains(&held), "{held} KiB");
    }

    #[test]
    fn what_only_takes_the_place_of_a_waiting_value_wakes_nobody() {
        let [downlink] = downlinks(1024 * KIB);
        open(&downlink);
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let is_woken = || downlink.to_session.raised().now_or_never().is_some();
        let offer = |rate: f64, millis| {
            let mut delivery = delivery(10);
            let message = delivery.rendition.message.clone();
            delivery.rendition = Arc::new(Rendition::new(message, Format::Text, 0, after(millis)));
            delivery.contract.max_rate = Rate::per_second(rate);
            let id = rate as u32;
            delivery.readers.push(Reader { id, sid: None, is_shared: false });
            delivery.receipt = Some(millis);
            downlink.offer(smallvec![delivery]);
        };
        offer(1.0, 0);
        assert!(is_woken(), "it can be taken");
        let taken = downlink.take(Some(usize::MAX), start);
        assert_eq!((taken.deliveries.len(), taken.again), (1, None));
        offer(1.0, 10);
        assert!(is_woken(), "it must look again");
        assert_eq!(downlink.take(Some(usize::MAX), after(10)).again, Some(after(1000)));
        for millis in 20..500 {
            offer(1.0, millis);
            assert!(!is_woken(), "what waits is newer, and no more");
        }
        assert_eq!(downlink.take_confirmations(), [10].into_iter().chain(20..499).collect::<Vec<_>>());
        offer(2.0, 500);
        assert!(is_woken());
        assert_eq!(downlink.take(Some(usize::MAX), after(500)).again, Some(after(1000)));
        offer(2.0, 501);
        assert!(!is_woken(), "the timer is early enough");
        let taken = downlink.take(Some(usize::MAX), after(1000));
        assert_eq!((taken.deliveries.len(), taken.again), (2, None));
        assert_eq!((taken.deliveries[0].skipped, taken.deliveries[0].receipt), (480, Some(499)));
    }

    #[test]
    fn what_a_session_keeps_is_charged_while_it_lives() {
        let [downlink] = downlinks(1024 * KIB);
        open(&downlink);
        downlink.keep(200 * KIB);
        assert!(downlink.left() <= 1024 * KIB - 300 * KIB);
        Handle { downlink: downlink.clone() }.end(Close::Lost);
        downlink.keep(200 * KIB);
        assert_eq!(downlink.left(), 1024 * KIB);
    }

    fn take(downlink: &Downlink) -> Taken {
        downlink.take(Some(usize::MAX), Instant::now())
    }

    /// A socket that takes so many bytes.
    #[derive(Debug)]
    struct Narrow(Mutex<(usize, Vec<u8>)>);

    impl Direct for Narrow {
        fn frame(&self, out: &mut BytesMut, text: &[&[u8]]) {
            text.iter().for_each(|part| out.extend_from_slice(part));
        }

        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            let (room, taken) = &mut *self.0.lock().expect("nobody panics");
            let some = bytes.len().min(*room);
            if some == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            *room -= some;
            taken.extend_from_slice(&bytes[..some]);
            Ok(some)
        }
    }

    #[test]
    fn a_delivery_is_written_at_once_only_where_nothing_has_to_go_before_it_and_the_rest_is_the_sessions() {
        let [downlink] = downlinks(1024 * KIB);
        open(&downlink);
        let narrow = Arc::new(Narrow(Mutex::new((500, Vec::new()))));
        downlink.set_direct(Some(narrow.clone()));
        let written = || narrow.0.lock().expect("nobody panics").1.len();
        let frame = delivery(100).rendition.text().len();
        downlink.offer(smallvec![delivery(100)]);
        assert_eq!(written(), 0, "the session has not said that it writes nothing");
        assert_eq!(take(&downlink).deliveries.len(), 1);
        assert!(take(&downlink).is_idle);
        downlink.offer(smallvec![delivery(100)]);
        assert_eq!(written(), frame);
        downlink.tell(Event::Down);
        downlink.offer(smallvec![delivery(100)]);
        assert_eq!(written(), frame, "what was told goes first");
        let taken = take(&downlink);
        assert_eq!((taken.events.len(), taken.deliveries.len(), taken.is_idle), (1, 1, false));
        assert!(take(&downlink).is_idle);
        downlink.offer(smallvec![delivery(1000)]);
        assert_eq!(written(), 500, "as much as it takes");
        downlink.offer(smallvec![delivery(100)]);
        let taken = take(&downlink);
        assert_eq!(taken.rest.frames.len(), delivery(1000).rendition.text().len() - (500 - frame));
        assert_eq!(taken.deliveries.len(), 1, "and behind that what came since");
        assert!(take(&downlink).is_idle);
        assert!(downlink.begin_writing().frames.is_empty());
        downlink.offer(smallvec![delivery(100)]);
        assert_eq!(written(), 500, "the session writes");
    }
}
