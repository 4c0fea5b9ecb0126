//! What is in flight between a client and its broker, both ways, over any number of connections (MQTT 5 sections 4.3, 4.4, 4.6, 4.9).
//!
//! [`Outgoing`] holds what we ask of the broker until it has answered; [`Incoming`] holds what the broker delivered until its
//! readers have confirmed it. Neither knows a socket or a clock: the connection tells them what was read and writes what they say.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use super::packet::{PacketId, SubscribeOptions};
use super::{Message, Qos, Reason, TopicFilter};

/// Names a request for whoever made it.
pub type RequestId = u64;

/// Names a message of QoS 1 or 2 that was delivered to us and waits to be confirmed.
pub type Receipt = u64;

/// An answer that comes after its asker was told that it took too long.
pub type Late = bool;

/// SUBSCRIBEs and UNSUBSCRIBEs that are written and unanswered at one time; publishes are bounded by the broker's receive maximum.
const MAX_ASKING: usize = 1000;
/// The most publishes that are, whatever the broker takes: beside [`MAX_ASKING`], so that a packet identifier is always free.
const MAX_PUBLISHING: u16 = 60_000;

/// What a client asks of a broker and gets an answer for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A message of QoS 1 or 2.
    Publish(Message),
    /// One filter, with the subscription identifier that deliveries shall bear.
    Subscribe {
        /// What is asked for.
        filter: TopicFilter,
        /// How.
        options: SubscribeOptions,
        /// The identifier that deliveries shall bear.
        subscription_id: u32,
    },
    /// One filter.
    Unsubscribe(TopicFilter),
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker answered.
    Answered(Reason),
    /// No answer came in time, and the broker has not seen the request or may see it twice: it may be made again.
    TimedOut,
    /// Nobody knows whether a QoS 2 message was published: making the request again might publish it twice.
    Unknown,
}

/// A packet that is due now.
#[derive(Debug, PartialEq)]
pub enum Due<'a> {
    /// A request, for the first time or, with `dup`, again.
    Request(PacketId, &'a Request, bool),
    /// The second half of a QoS 2 publish.
    Pubrel(PacketId),
}

/// Requests to the broker, from being made to being answered.
///
/// Requests leave in the order in which they were made, but subscriptions before publishes: publishes wait while the broker's
/// receive maximum is used up, and subscriptions do not wait for them.
#[derive(Debug)]
pub struct Outgoing {
    requests: BTreeMap<RequestId, Entry>,
    ids: HashMap<PacketId, RequestId>,
    publishes: VecDeque<RequestId>,
    subscriptions: VecDeque<RequestId>,
    next_id: PacketId,
    window: usize,
    used: usize,
    /// Subscriptions that are written on the present connection and unanswered.
    asking: usize,
}

#[derive(Debug)]
struct Entry {
    request: Request,
    deadline: Instant,
    stage: Stage,
    /// The asker was told that it took too long.
    late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// Written on the present connection.
    Sent(PacketId),
    /// Written on a connection that is gone; the broker may have it.
    Resend(PacketId),
    /// PUBREC seen, PUBREL written.
    Released(PacketId),
    /// PUBREC seen, and the connection is gone.
    ReleaseAgain(PacketId),
}

impl Outgoing {
    /// Nothing in flight. Packet identifiers go up from `first_id`: choose it at random, as a broker may take a new QoS 2 message
    /// for one that it remembers from an earlier connection of the same session.
    pub fn new(first_id: PacketId) -> Outgoing {
        Outgoing {
            requests: BTreeMap::new(),
            ids: HashMap::new(),
            publishes: VecDeque::new(),
            subscriptions: VecDeque::new(),
            next_id: first_id,
            window: 0,
            used: 0,
            asking: 0,
        }
    }

    /// Takes a request; `id` is larger than that of every request before it.
    pub fn make(&mut self, id: RequestId, request: Request, deadline: Instant) {
        let queue = if let Request::Publish(_) = request { &mut self.publishes } else { &mut self.subscriptions };
        queue.push_back(id);
        self.requests.insert(id, Entry { request, deadline, stage: Stage::Waiting, late: false });
    }

    /// The next packet to write, until there is none.
    pub fn due(&mut self) -> Option<Due<'_>> {
        if self.window == 0 {
            return None;
        }
        let request = if self.asking < MAX_ASKING
            && let Some(request) = self.subscriptions.pop_front()
        {
            self.asking += 1;
            request
        } else if self.used < self.window {
            let request = self.publishes.pop_front()?;
            self.used += 1;
            request
        } else {
            return None;
        };
        let entry = self.requests.get_mut(&request).expect("what is queued is a request");
        match entry.stage {
            Stage::Waiting => {
                let id = free_id(&mut self.next_id, &self.ids);
                self.ids.insert(id, request);
                entry.stage = Stage::Sent(id);
                Some(Due::Request(id, &entry.request, false))
            }
            Stage::Resend(id) => {
                entry.stage = Stage::Sent(id);
                Some(Due::Request(id, &entry.request, matches!(entry.request, Request::Publish(_))))
            }
            Stage::ReleaseAgain(id) => {
                entry.stage = Stage::Released(id);
                Some(Due::Pubrel(id))
            }
            Stage::Sent(_) | Stage::Released(_) => unreachable!("only what is to be written is queued"),
        }
    }

    /// PUBACK: a QoS 1 publish has its answer.
    pub fn on_puback(&mut self, id: PacketId, reason: Reason) -> Option<(RequestId, Outcome)> {
        self.answered(id, reason, |request, stage| is_publish(request, Qos::AtLeastOnce) && stage == Stage::Sent(id))
    }

    /// PUBREC: `Ok` means that PUBREL is to be written; `Err` that the publish was refused, or that nothing is known of it.
    pub fn on_pubrec(&mut self, id: PacketId, reason: Reason) -> Result<(), Option<(RequestId, Outcome)>> {
        if !reason.is_success() {
            let sent = |request: &Request, stage| is_publish(request, Qos::ExactlyOnce) && stage == Stage::Sent(id);
            return Err(self.answered(id, reason, sent));
        }
        let request = self.ids.get(&id).ok_or(None)?;
        let entry = self.requests.get_mut(request).expect("an identifier in use belongs to a request");
        if !is_publish(&entry.request, Qos::ExactlyOnce) || !matches!(entry.stage, Stage::Sent(_) | Stage::Released(_))
        {
            return Err(None);
        }
        entry.stage = Stage::Released(id);
        Ok(())
    }

    /// PUBCOMP: a QoS 2 publish is complete. A reason like "packet identifier not found" comes where the broker had completed
    /// it before the connection was lost, so every reason ends it well.
    pub fn on_pubcomp(&mut self, id: PacketId) -> Option<(RequestId, Outcome)> {
        self.answered(id, Reason::SUCCESS, |_, stage| stage == Stage::Released(id))
    }

    /// SUBACK or UNSUBACK of one filter: what was asked, and whether the asker was told before that it took too long.
    pub fn on_suback(&mut self, id: PacketId) -> Option<(RequestId, Request, Late)> {
        let request = *self.ids.get(&id)?;
        let entry = self.requests.get(&request)?;
        if matches!(entry.request, Request::Publish(_)) || entry.stage != Stage::Sent(id) {
            return None;
        }
        self.ids.remove(&id);
        let entry = self.requests.remove(&request).expect("it was there");
        self.asking = self.asking.saturating_sub(1);
        Some((request, entry.request, entry.late))
    }

    /// The connection is gone; nothing is due until the next one is up.
    pub fn on_link_down(&mut self) {
        self.window = 0;
        self.used = 0;
        self.asking = 0;
        self.publishes.clear();
        self.subscriptions.clear();
        for (id, entry) in &mut self.requests {
            match entry.stage {
                Stage::Sent(packet) => entry.stage = Stage::Resend(packet),
                Stage::Released(packet) => entry.stage = Stage::ReleaseAgain(packet),
                Stage::Waiting | Stage::Resend(_) | Stage::ReleaseAgain(_) => {}
            }
            let queue =
                if let Request::Publish(_) = entry.request { &mut self.publishes } else { &mut self.subscriptions };
            queue.push_back(*id);
        }
    }

    /// A connection is up. With the broker's session lost, QoS 1 is published anew, QoS 2 that the broker had taken is done, and
    /// QoS 2 of which nobody knows is given back as [`Outcome::Unknown`].
    pub fn on_link_up(&mut self, session_present: bool, receive_maximum: u16) -> Vec<(RequestId, Outcome)> {
        self.window = receive_maximum.min(MAX_PUBLISHING).into();
        self.used = 0;
        self.asking = 0;
        if session_present {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for (id, entry) in &mut self.requests {
            match entry.stage {
                Stage::Resend(_) if is_publish(&entry.request, Qos::ExactlyOnce) => ended.push((*id, Outcome::Unknown)),
                Stage::ReleaseAgain(_) => ended.push((*id, Outcome::Answered(Reason::SUCCESS))),
                Stage::Resend(_) => entry.stage = Stage::Waiting,
                Stage::Waiting | Stage::Sent(_) | Stage::Released(_) => {}
            }
        }
        self.ids.clear();
        for (id, _) in &ended {
            self.requests.remove(id);
        }
        let requests = &self.requests;
        self.publishes.retain(|id| requests.contains_key(id));
        ended
    }

    /// Gives back the requests that the broker of the present connection would not take. What it has taken already goes on.
    pub fn refuse(&mut self, judge: impl Fn(&Request) -> Option<Reason>) -> Vec<(RequestId, Outcome)> {
        let refused: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, entry)| !matches!(entry.stage, Stage::Released(_) | Stage::ReleaseAgain(_)))
            .filter_map(|(id, entry)| Some((*id, Outcome::Answered(judge(&entry.request)?))))
            .collect();
        for (id, _) in &refused {
            self.requests.remove(id);
        }
        let requests = &self.requests;
        self.ids.retain(|_, id| requests.contains_key(id));
        self.publishes.retain(|id| requests.contains_key(id));
        self.subscriptions.retain(|id| requests.contains_key(id));
        refused
    }

    /// Tells whose time is up. What was never written is forgotten; what the broker may have stays in flight, and its answer,
    /// if one comes, is told a second time.
    pub fn on_time(&mut self, now: Instant) -> Vec<(RequestId, Outcome)> {
        let mut ended = Vec::new();
        for (id, entry) in self.requests.iter_mut().take_while(|(_, entry)| entry.deadline <= now) {
            if entry.late {
                continue;
            }
            entry.late = true;
            let at_risk = entry.stage != Stage::Waiting && is_publish(&entry.request, Qos::ExactlyOnce);
            ended.push((*id, if at_risk { Outcome::Unknown } else { Outcome::TimedOut }));
        }
        let requests = &mut self.requests;
        for (id, _) in &ended {
            if requests[id].stage == Stage::Waiting {
                requests.remove(id);
            }
        }
        if !ended.is_empty() {
            self.publishes.retain(|id| requests.contains_key(id));
            self.subscriptions.retain(|id| requests.contains_key(id));
        }
        ended
    }

    /// When [`on_time`](Self::on_time) has something to say next. Deadlines go up with the order of the requests.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.requests.values().find(|entry| !entry.late).map(|entry| entry.deadline)
    }

    /// The broker may have this request and may answer it yet.
    pub fn is_in_flight(&self, id: RequestId) -> bool {
        self.requests.contains_key(&id)
    }

    /// Publishes that wait for the connection or for room in the broker's window.
    pub fn waiting(&self) -> usize {
        self.publishes.len()
    }

    /// The same of subscriptions; their window is our own.
    pub fn waiting_subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// Gives back the memory of what is over.
    pub fn shrink(&mut self) {
        if self.requests.is_empty() {
            // It keeps its last leaf otherwise.
            self.requests = BTreeMap::new();
        }
        self.ids.shrink_to_fit();
        self.publishes.shrink_to_fit();
        self.subscriptions.shrink_to_fit();
    }

    /// Nothing was asked that has no answer.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn answered(
        &mut self,
        id: PacketId,
        reason: Reason,
        expected: impl Fn(&Request, Stage) -> bool,
    ) -> Option<(RequestId, Outcome)> {
        let request = *self.ids.get(&id)?;
        let entry = self.requests.get(&request)?;
        if !expected(&entry.request, entry.stage) {
            return None;
        }
        self.ids.remove(&id);
        self.requests.remove(&request);
        self.used = self.used.saturating_sub(1);
        Some((request, Outcome::Answered(reason)))
    }
}

fn is_publish(request: &Request, qos: Qos) -> bool {
    matches!(request, Request::Publish(message) if message.qos == qos)
}

/// There is always one: [`MAX_ASKING`] and [`MAX_PUBLISHING`] leave some.
fn free_id(next: &mut PacketId, used: &HashMap<PacketId, RequestId>) -> PacketId {
    loop {
        let id = *next;
        *next = id.checked_add(1).unwrap_or(PacketId::MIN);
        if !used.contains_key(&id) {
            return id;
        }
    }
}

/// What to do with a PUBLISH of QoS 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Deliver it, and confirm it by this receipt.
    New(Receipt),
    /// It is on its way to its readers, or was received before: its confirmation goes out on this connection.
    Known,
}

/// A confirmation that is due now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// For QoS 1.
    Puback(PacketId),
    /// For QoS 2.
    Pubrec(PacketId),
}

/// Messages that the broker delivered, from their arrival to their confirmation, in the order of their arrival on the present connection.
#[derive(Debug, Default)]
pub struct Incoming {
    messages: HashMap<Receipt, Arrived>,
    /// In the order in which this connection brought them: so they are confirmed.
    order: VecDeque<Receipt>,
    /// Brought by an earlier connection, and not yet again by this one.
    stale: Vec<Receipt>,
    /// PUBREC written, PUBREL not seen.
    received: HashMap<PacketId, u64>,
    next: Receipt,
}

#[derive(Debug)]
struct Arrived {
    id: PacketId,
    qos: Qos,
    digest: u64,
    /// Frames that are not confirmed.
    open: usize,
}

impl Incoming {
    /// A PUBLISH arrived. Unless it is known, [`opened`](Self::opened) must follow.
    ///
    /// QoS 1 that was confirmed is new when it comes again (MQTT-4.3.2-5): its identifier may bear an equal message by now.
    pub fn on_publish(&mut self, id: PacketId, qos: Qos, dup: bool, digest: u64) -> Arrival {
        let was_received = self.received.remove(&id) == Some(digest);
        if let Some(index) = self.stale.iter().position(|receipt| self.messages[receipt].id == id) {
            let receipt = self.stale.swap_remove(index);
            if self.messages[&receipt].digest == digest && dup {
                self.order.push_back(receipt);
                return Arrival::Known;
            }
            self.messages.remove(&receipt);
        }
        let receipt = self.next;
        self.next += 1;
        self.order.push_back(receipt);
        let (open, arrival) = if was_received && dup { (0, Arrival::Known) } else { (1, Arrival::New(receipt)) };
        self.messages.insert(receipt, Arrived { id, qos, digest, open });
        arrival
    }

    /// The message of this receipt became that many frames, each of which is confirmed by itself; none confirms it at once.
    pub fn opened(&mut self, receipt: Receipt, frames: usize) {
        if let Some(message) = self.messages.get_mut(&receipt) {
            message.open = frames;
        }
    }

    /// One frame of the message is confirmed. A receipt that a lost session made void is ignored.
    pub fn confirm(&mut self, receipt: Receipt) {
        if let Some(message) = self.messages.get_mut(&receipt) {
            message.open = message.open.saturating_sub(1);
        }
    }

    /// The next confirmation to write, until there is none: those before it in the order of arrival have left.
    pub fn due(&mut self) -> Option<Confirmation> {
        let receipt = *self.order.front()?;
        if self.messages[&receipt].open > 0 {
            return None;
        }
        self.order.pop_front();
        let message = self.messages.remove(&receipt).expect("what is in order is there");
        match message.qos {
            Qos::ExactlyOnce => {
                self.received.insert(message.id, message.digest);
                Some(Confirmation::Pubrec(message.id))
            }
            Qos::AtMostOnce | Qos::AtLeastOnce => Some(Confirmation::Puback(message.id)),
        }
    }

    /// PUBREL: the reason for the PUBCOMP that is to be written.
    pub fn on_pubrel(&mut self, id: PacketId) -> Reason {
        match self.received.remove(&id) {
            Some(_) => Reason::SUCCESS,
            None => Reason::PACKET_IDENTIFIER_NOT_FOUND,
        }
    }

    /// The connection is gone. What is with the readers stays with them: their confirmations wait for the next connection.
    pub fn on_link_down(&mut self) {
        self.stale.extend(self.order.drain(..));
    }

    /// A connection is up. With the broker's session lost, all confirmations are void.
    pub fn on_link_up(&mut self, session_present: bool) {
        if !session_present {
            let next = self.next;
            *self = Incoming { next, ..Incoming::default() };
        }
    }

    /// Messages that were not confirmed yet.
    pub fn unconfirmed(&self) -> usize {
        self.messages.len()
    }
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
