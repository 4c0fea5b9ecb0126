//! A session's way to the broker: requests go up as commands, answers and deliveries come down through a shared place.
//!
//! A session never learns whether the connection behind is its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, mpsc};

use super::signal::Signal;

use crate::delivery::outbox::Excess;
use crate::delivery::{self, Bound, Delivery, Outbox, subscription_id};
use crate::metrics;
use crate::mqtt::inflight::{Receipt, RequestId};
use crate::mqtt::{Message, Qos, Reason, TopicFilter, packet};
use crate::wire::{Ack, Close, Refusal, Subscription, Will};

/// What a session wants of the broker before anything else.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The MQTT client identifier.
    pub client_id: String,
    /// Forget what the broker knows, and let nothing be kept.
    pub clean: bool,
    /// Seconds that the broker keeps the session after its end.
    pub session_expiry: u32,
    /// What is published if the session ends without goodbye.
    pub will: Option<Will>,
    /// In force before the first delivery.
    pub subscriptions: Vec<Subscription>,
    /// How deliveries are confirmed that match no subscription of this connection.
    pub ack: Ack,
    /// QoS 1 and 2 publishes that may be unanswered at one time; the broker may want fewer.
    pub max_inflight: u16,
}

/// A request of the session. Each is answered by an event that bears its number, numbers going up.
#[derive(Debug)]
pub enum Command {
    /// A message for the broker.
    Publish(RequestId, Message),
    /// One subscription.
    Subscribe(RequestId, Subscription),
    /// One filter.
    Unsubscribe(RequestId, TopicFilter),
}

/// What the broker's side tells the session.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The broker has accepted the session.
    Ready(Ready),
    /// A publish or an unsubscribe was carried out, or not.
    Answered(RequestId, Result<(), Refusal>),
    /// The time of a publish is up, but the broker may have it: it may be answered yet.
    Overdue(RequestId, Refusal),
    /// A subscribe was carried out, or not.
    Subscribed(RequestId, Result<Qos, Refusal>),
    /// The link is lost; it is being restored.
    Down,
    /// The broker has lost the session: what it delivered before this can't be confirmed.
    SessionLost,
    /// The link is back and the subscriptions with it.
    Up {
        /// The broker had the session all the time.
        session_present: bool,
    },
    /// The broker did not give a subscription back after it had lost the session.
    SubscriptionLost(TopicFilter, Refusal),
    /// The broker's side gives the session up.
    Ended(Close, Option<Refusal>),
}

/// The broker's answer to [`Opening`].
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// The identifier that the session has at the broker.
    pub client_id: String,
    /// The broker had a session for it.
    pub session_present: bool,
    /// One for each subscription of the opening.
    pub subscriptions: Vec<Result<Qos, Refusal>>,
    /// What the broker can do.
    pub abilities: Abilities,
}

/// What the broker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// QoS 1 and 2 publishes that may be unanswered at one time.
    pub receive_maximum: u16,
    /// The highest QoS.
    pub maximum_qos: Qos,
    /// The largest PUBLISH, in bytes.
    pub maximum_packet_size: usize,
    /// Whether messages are stored.
    pub retain: bool,
    /// Whether `$share` works.
    pub shared: bool,
    /// Whether filters may hold wildcards.
    pub wildcards: bool,
    /// Whether deliveries tell their subscription.
    pub subscription_ids: bool,
}

impl Abilities {
    /// Why the broker would not take a message: sent all the same, it might end the connection.
    pub fn refuse_message(&self, message: &Message) -> Option<Reason> {
        if message.qos > self.maximum_qos {
            return Some(Reason::QOS_NOT_SUPPORTED);
        }
        if message.retain && !self.retain {
            return Some(Reason::RETAIN_NOT_SUPPORTED);
        }
        self.refuse_size(packet::publish_size(message))
    }

    /// The same for a filter.
    pub fn refuse_filter(&self, filter: &TopicFilter) -> Option<Reason> {
        if filter.is_shared() && !self.shared {
            return Some(Reason::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        if filter.as_str().contains(['+', '#']) && !self.wildcards {
            return Some(Reason::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        self.refuse_size(packet::subscribe_size(filter.as_str()))
    }

    /// The same for a packet of so many bytes.
    pub fn refuse_size(&self, bytes: usize) -> Option<Reason> {
        (bytes > self.maximum_packet_size).then_some(Reason::PACKET_TOO_LARGE)
    }
}

/// A session's end of its link.
#[derive(Debug)]
pub struct Link {
    /// Waits while the broker's side is behind, so that a browser is read no faster than the broker takes. A command bears the moment at
    /// which it was made: from then on its time runs.
    pub commands: mpsc::Sender<(Instant, Box<Command>)>,
    /// What comes down.
    pub downlink: Arc<Downlink>,
}

impl Link {
    /// A handle for those who may have to end the link from outside.
    pub fn handle(&self) -> Handle {
        Handle::of(self.downlink.clone())
    }
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
        self.downlink.lock().taken_over = true;
        self.downlink.to_link.raise();
    }

    /// The session has ended so, and hangs up: what it asked before is finished first. Waits for no room among the commands.
    pub fn end(&self, close: Close) {
        self.downlink.lock().ended_by.get_or_insert(close);
        self.downlink.to_link.raise();
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

/// Deliveries of a session that may wait without being counted.
const FEW: usize = 8;

/// What comes down to a session, and the confirmations that go back up.
#[derive(Debug)]
pub struct Downlink {
    state: Mutex<State>,
    config: delivery::Config,
    /// Wakes the session: there are events, or the first deliveries.
    pub to_session: Signal,
    /// Wakes the link: there are confirmations, there is room, or it is to give way.
    pub to_link: Signal,
    let_go: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    outbox: Outbox,
    confirmations: Vec<Receipt>,
    excess: Excess,
    taken_over: bool,
    ended_by: Option<Close>,
    abandoned: bool,
    is_draining: bool,
    /// Deliveries and bytes as the gauges know them.
    counted: (usize, usize),
}

impl State {
    /// Tells the gauges what waits. What is taken as soon as it is offered never shows: gauges that all sessions share are dear.
    fn count_outbox(&mut self) {
        let now = (self.outbox.len(), self.outbox.bytes());
        if now.0 > FEW || self.counted != (0, 0) {
            metrics::outbox_changed(self.counted, now);
            self.counted = now;
        }
    }
}

impl Downlink {
    /// Nothing waits.
    pub fn new(config: delivery::Config) -> Arc<Downlink> {
        Arc::new(Downlink {
            state: Mutex::default(),
            config,
            to_session: Signal::default(),
            to_link: Signal::default(),
            let_go: Notify::new(),
        })
    }

    /// Link: tells the session something. Events are as many as the session's requests, and a few.
    pub fn tell(&self, event: Event) {
        self.lock().events.push_back(event);
        self.to_session.raise();
    }

    /// Link: offers what one read of the broker brought. What comes once the session drains is left to whoever resumes it.
    pub fn offer(&self, deliveries: impl Iterator<Item = Delivery>) {
        let bound = self.bound();
        let mut state = self.lock();
        if state.is_draining {
            return;
        }
        let mut dropped = 0;
        for delivery in deliveries {
            let excess = state.excess;
            dropped += state.outbox.offer(delivery, excess, &bound);
        }
        state.count_outbox();
        metrics::deliveries_dropped(dropped);
        drop(state);
        self.to_session.raise();
    }

    /// Link: whether the broker's connection may be read.
    pub fn may_read(&self) -> bool {
        let state = self.lock();
        state.is_draining || state.outbox.has_room(state.excess, &self.bound())
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
        state.count_outbox();
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
    }

    /// Session: what happened, in order.
    pub fn take_events(&self) -> VecDeque<Event> {
        std::mem::take(&mut self.lock().events)
    }

    /// Session: what happened, deliveries up to roughly that many bytes if any are wanted, and how many were dropped since the
    /// last time.
    ///
    /// One look at both, so that what a delivery follows from is always told before it.
    pub fn take(&self, bytes: Option<usize>) -> (VecDeque<Event>, Vec<Delivery>, u64) {
        let mut state = self.lock();
        let was_full = state.outbox.is_full(&self.bound());
        let taken = bytes.map_or_else(Vec::new, |bytes| state.outbox.take(bytes));
        let dropped = state.outbox.take_dropped();
        state.count_outbox();
        if was_full {
            self.to_link.raise();
        }
        (std::mem::take(&mut state.events), taken, dropped)
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
        let excess = if stalled { Excess::Drop } else { Excess::Hold };
        let mut state = self.lock();
        if state.excess != excess {
            state.excess = excess;
            self.to_link.raise();
        }
    }

    /// Session: from now on only what waits already is delivered.
    pub fn drain(&self) {
        self.lock().is_draining = true;
        self.to_link.raise();
    }

    /// Session: nothing waits for it.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.outbox.is_empty() && state.events.is_empty()
    }

    /// Session: whether a stall would hold up the broker's connection.
    pub fn is_full(&self) -> bool {
        self.lock().outbox.is_full(&self.bound())
    }

    fn bound(&self) -> Bound {
        self.config.bound(usize::MAX)
    }

    /// Also after a panic of the session or the link: the other one ends in good order.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Downlink {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        metrics::outbox_changed(state.counted, (0, 0));
    }
}
