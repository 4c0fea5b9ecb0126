//! What an open session has asked and how each frame is judged. No sockets, tasks or clocks: `now` is an argument.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::{Allowance, Credential, Rights};
use crate::audit::Request;
use crate::broker::{Command, Event, needs_own_client};
use crate::delivery::Delivery;
use crate::mqtt::inflight::{Receipt, RequestId};
use crate::mqtt::{Message, Qos, TopicFilter};
use crate::wire::frame::Asked;
use crate::wire::{
    Ack, ClientFrame, Close, Code, Limits, MsgId, Refusal, Reply, Subscription, TopicResult, Undecoded, json,
};

use super::guard::credential_of;
use super::quota::Quota;
use super::rates::{Over, Rates};

/// Answers that are remembered for publishes that come again.
const REMEMBERED_ANSWERS: usize = 256;
/// Filters that a frame may name, however few subscriptions the session may have: each costs far more than its bytes in the frame.
const MAX_LISTED: usize = 1000;
/// Invalid frames in a row that end a session.
const MAX_INVALID_FRAMES: u32 = 20;

/// What is to be done about a frame or an event.
#[derive(Debug)]
pub enum Effect {
    /// The client is told.
    Reply(Reply),
    /// An `auth` of an open session: its credential is judged, if it has one, and it is answered.
    Renew(Option<Credential>, Option<MsgId>),
    /// The broker is asked.
    Ask(Box<Command>),
    /// It was asked for what may not be had.
    Denied {
        /// What that was.
        request: Request,
        /// Of which topic or filter.
        topic: Box<str>,
        /// The rule that says so.
        why: Box<str>,
    },
    /// The broker is told that the client has these.
    Confirm(Receipt),
    /// The broker confirmed a publish after so long.
    Published(Qos, Duration),
    /// The session ends.
    Close(Close),
}

/// An open session.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    max_topic_levels: usize,
    next_request: RequestId,
    requests: HashMap<RequestId, Asker>,
    /// `subscribe` and `unsubscribe` frames that wait for some of their entries.
    lists: HashMap<RequestId, List>,
    filters: HashSet<TopicFilter>,
    publishes: Publishes,
    /// Deliveries that the client has not acked.
    unacked: HashMap<Arc<str>, Receipt>,
    /// Filters whose deltas begin anew.
    renewed: Vec<TopicFilter>,
    /// Requests among those above by which the session comes to need an MQTT client of its own.
    movers: u32,
    invalid: InvalidFrames,
    rates: Rates,
    /// What it may do; nothing stands for everything.
    rights: Option<Arc<Rights>>,
    /// How much its user may do, and what it has done of late.
    allowance: Allowance,
    quota: Arc<Quota>,
}

/// How many frames in a row were none of the protocol.
#[derive(Debug, Default)]
pub struct InvalidFrames(u32);

impl InvalidFrames {
    /// Counts a refused frame; the error ends the session.
    pub fn count(&mut self, code: Code) -> Result<(), Close> {
        self.0 = if code.is_invalid_frame() { self.0 + 1 } else { 0 };
        if self.0 < MAX_INVALID_FRAMES { Ok(()) } else { Err(Close::InvalidFrames) }
    }
}

/// Who waits for a request.
#[derive(Debug)]
enum Asker {
    Publish { msgid: Option<MsgId>, qos: Qos, since: Instant, answers: usize, overdue: Option<Refusal> },
    Subscribe { list: RequestId, index: usize, filter: TopicFilter, is_new: bool, is_delta: bool, moves: bool },
    Unsubscribe { list: RequestId, index: usize, filter: TopicFilter },
}

impl Asker {
    /// The client has not been told to do without an answer.
    fn is_awaited(&self) -> bool {
        !matches!(self, Asker::Publish { overdue: Some(_), .. })
    }
}

/// A frame that is answered when all its entries are.
#[derive(Debug)]
struct List {
    msgid: Option<MsgId>,
    results: Vec<Option<TopicResult>>,
    is_subscribe: bool,
}

/// Publishes by the msgid that a client may send again.
#[derive(Debug, Default)]
struct Publishes {
    unanswered: HashMap<MsgId, RequestId>,
    answers: HashMap<MsgId, Result<(), Refusal>>,
    order: VecDeque<MsgId>,
}

impl State {
    /// A session with these subscriptions in force.
    pub fn new(
        limits: Limits,
        max_topic_levels: usize,
        rates: Rates,
        rights: Option<Arc<Rights>>,
        quota: Arc<Quota>,
        filters: impl Iterator<Item = TopicFilter>,
    ) -> State {
        State {
            limits,
            max_topic_levels,
            next_request: 0,
            requests: HashMap::new(),
            lists: HashMap::new(),
            filters: filters.collect(),
            publishes: Publishes::default(),
            unacked: HashMap::new(),
            renewed: Vec::new(),
            movers: 0,
            invalid: InvalidFrames::default(),
            rates,
            allowance: rights.as_ref().map(|rights| rights.allowance()).unwrap_or_default(),
            rights,
            quota,
        }
    }

    /// Judges a text frame.
    pub fn on_text(&mut self, text: &str, now: Instant) -> Vec<Effect> {
        let decoded = json::decode(text);
        let is_publish = matches!(decoded, Ok((ClientFrame::Publish(_), _)));
        if let Err(over) = self.rates.judge(is_publish, now) {
            let msgid = decoded.map_or_else(|undecoded| undecoded.msgid, |(_, msgid)| msgid);
            let too_many = over.is_too_much.then_some(Effect::Close(Close::OverLimit));
            return [Effect::Reply(Reply::refused(over.refusal, msgid))].into_iter().chain(too_many).collect();
        }
        match decoded {
            Ok((frame, msgid)) => {
                self.invalid = InvalidFrames::default();
                self.on_frame(frame, msgid, now)
            }
            Err(Undecoded { refusal, msgid, .. }) => {
                let too_many = self.invalid.count(refusal.code).err().map(Effect::Close);
                [Effect::Reply(Reply::refused(refusal, msgid))].into_iter().chain(too_many).collect()
            }
        }
    }

    /// Takes up a WebSocket ping or pong: a frame that nothing but its number can make wrong.
    pub fn on_life(&mut self, now: Instant) -> Result<(), Close> {
        match self.rates.judge(false, now) {
            Err(Over { is_too_much: true, .. }) => Err(Close::OverLimit),
            Err(Over { is_too_much: false, .. }) | Ok(()) => Ok(()),
        }
    }

    fn on_frame(&mut self, frame: ClientFrame, msgid: Option<MsgId>, now: Instant) -> Vec<Effect> {
        match frame {
            ClientFrame::Publish(message) => self.on_publish(message, msgid, now),
            ClientFrame::Ack(msgids) => {
                msgids.iter().filter_map(|msgid| self.acked(msgid)).map(Effect::Confirm).collect()
            }
            ClientFrame::Subscribe(entries) => self.on_subscribe(entries, msgid),
            ClientFrame::Unsubscribe(entries) => self.on_unsubscribe(entries, msgid),
            ClientFrame::Ping => vec![Effect::Reply(Reply::Pong { msgid })],
            // A renewal; all but its credential is ignored.
            ClientFrame::Auth(auth) => vec![Effect::Renew(credential_of(&auth), msgid)],
        }
    }

    fn on_publish(&mut self, message: Message, msgid: Option<MsgId>, now: Instant) -> Vec<Effect> {
        if let Some(msgid) = &msgid {
            if let Some(answer) = self.publishes.answers.get(msgid) {
                return vec![Effect::Reply(published(msgid.clone(), answer.clone()))];
            }
            if let Some(Asker::Publish { answers, overdue, .. }) =
                self.publishes.unanswered.get(msgid).and_then(|request| self.requests.get_mut(request))
            {
                return match overdue {
                    Some(refusal) => vec![Effect::Reply(Reply::refused(refusal.clone(), Some(msgid.clone())))],
                    None => {
                        *answers += 1;
                        Vec::new()
                    }
                };
            }
        }
        if let Err(refusal) = self.judge(&message, now) {
            let denied = denied(Request::Publish, message.topic.as_ref(), &refusal);
            return denied.into_iter().chain([Effect::Reply(Reply::refused(refusal, msgid))]).collect();
        }
        let request = self.request(Asker::Publish {
            msgid: msgid.clone(),
            qos: message.qos,
            since: now,
            answers: 1,
            overdue: None,
        });
        if let Some(msgid) = msgid {
            self.publishes.unanswered.insert(msgid, request);
        }
        vec![Effect::Ask(Box::new(Command::Publish(request, message)))]
    }

    fn judge(&self, message: &Message, now: Instant) -> Result<(), Refusal> {
        let max = self.limits.max_payload;
        if message.payload.len() > max {
            return Err(Refusal::new(
                Code::PayloadTooLarge,
                format!("The payload may have {max} bytes (wire.max_payload)."),
            ));
        }
        judge_levels(message.topic.as_ref(), self.max_topic_levels)?;
        let Some(rights) = &self.rights else { return Ok(()) };
        rights.publish(message)?;
        if self.allowance == Allowance::default() {
            return Ok(());
        }
        self.quota.publish(&self.allowance, message.payload.len(), now)
    }

    /// From now on the session may do that. What it has subscribed to is for the link to judge.
    pub fn set_rights(&mut self, rights: Option<Arc<Rights>>, max_subscriptions: usize) {
        self.allowance = rights.as_ref().map(|rights| rights.allowance()).unwrap_or_default();
        self.limits.max_subscriptions = max_subscriptions;
        self.rights = rights;
    }

    fn on_subscribe(&mut self, entries: Vec<Asked<Subscription>>, msgid: Option<MsgId>) -> Vec<Effect> {
        self.on_list(entries, msgid, true, |state, list, index, subscription| {
            let filter = subscription.filter.clone();
            judge_levels(filter.as_str(), state.max_topic_levels)?;
            let max = state.limits.max_subscriptions;
            if !state.filters.contains(&filter) && state.filters.len() >= max {
                let message =
                    format!("A session may have {max} subscriptions (session.max_subscriptions); end another first.");
                return Err(Refusal::for_now(Code::QuotaExceeded, message));
            }
            let is_new = state.filters.insert(filter.clone());
            let is_delta = subscription.contract.delta;
            let moves = needs_own_client(&subscription, state.rights.as_deref());
            state.movers += u32::from(moves);
            let request = state.request(Asker::Subscribe { list, index, filter, is_new, is_delta, moves });
            Ok(Command::Subscribe(request, subscription))
        })
    }

    fn on_unsubscribe(&mut self, entries: Vec<Asked<TopicFilter>>, msgid: Option<MsgId>) -> Vec<Effect> {
        self.on_list(entries, msgid, false, |state, list, index, filter| {
            judge_levels(filter.as_str(), state.max_topic_levels)?;
            let request = state.request(Asker::Unsubscribe { list, index, filter: filter.clone() });
            Ok(Command::Unsubscribe(request, filter))
        })
    }

    /// Serves a list entry by entry, and answers it at once if nothing has to be asked.
    fn on_list<T: Named>(
        &mut self,
        entries: Vec<Asked<T>>,
        msgid: Option<MsgId>,
        is_subscribe: bool,
        serve: impl Fn(&mut State, RequestId, usize, T) -> Result<Command, Refusal>,
    ) -> Vec<Effect> {
        let max = self.limits.max_subscriptions.max(MAX_LISTED);
        if entries.len() > max {
            let message = format!("A frame may name {max} topics; send several frames.");
            return vec![Effect::Reply(Reply::refused(Refusal::new(Code::QuotaExceeded, message), msgid))];
        }
        let list = self.next_request;
        self.next_request += 1;
        let mut effects = Vec::new();
        let mut results = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            results.push(match entry {
                Asked::Invalid { topic, refusal } => Some(TopicResult::refused(&topic, refusal)),
                Asked::Valid(entry) => {
                    let topic = entry.topic().to_owned();
                    match serve(self, list, index, entry) {
                        Err(refusal) => Some(TopicResult::refused(&topic, refusal)),
                        Ok(command) => {
                            effects.push(Effect::Ask(Box::new(command)));
                            None
                        }
                    }
                }
            });
        }
        self.lists.insert(list, List { msgid, results, is_subscribe });
        effects.extend(self.answer_list(list));
        effects
    }

    /// The broker owes an answer that the client has not been told to do without.
    pub fn is_asking(&self) -> bool {
        self.is_asking_before(None)
    }

    /// The same of what was asked before this request.
    pub fn is_asking_before(&self, next: Option<RequestId>) -> bool {
        let is_before = |request: RequestId| next.is_none_or(|next| request < next);
        self.requests.iter().any(|(request, asker)| is_before(*request) && asker.is_awaited())
    }

    /// A `subscribe` or an `unsubscribe` is not answered yet.
    pub fn is_changing_subscriptions(&self) -> bool {
        !self.lists.is_empty()
    }

    /// The first request, of those that are not answered, by which the session comes to need an MQTT client of its own.
    pub fn mover(&self) -> Option<RequestId> {
        if self.movers == 0 {
            return None;
        }
        let moves = |asker: &Asker| matches!(asker, Asker::Subscribe { moves: true, .. });
        self.requests.iter().filter(|(_, asker)| moves(asker)).map(|(request, _)| *request).min()
    }

    /// Gives back the memory of what is over.
    pub fn shrink(&mut self) {
        if self.requests.is_empty() {
            self.requests.shrink_to_fit();
            self.lists.shrink_to_fit();
        }
        if self.unacked.is_empty() {
            self.unacked.shrink_to_fit();
        }
    }

    /// Takes up what the broker's side tells.
    pub fn on_event(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Answered(request, result) => self.on_answered(request, result, now),
            Event::Overdue(request, refusal) => self.on_overdue(request, refusal),
            Event::Subscribed(request, result) => self.on_subscribed(request, result),
            Event::Down => vec![Effect::Reply(Reply::Broker { status: "down", session_present: None })],
            Event::SessionLost => {
                self.unacked.clear();
                Vec::new()
            }
            Event::Up { session_present } => {
                vec![Effect::Reply(Reply::Broker { status: "up", session_present: Some(session_present) })]
            }
            Event::SubscriptionLost(filter, refusal) => {
                self.filters.remove(&filter);
                let topics = vec![TopicResult::refused(filter.as_str(), refusal)];
                vec![Effect::Reply(Reply::Unsubscribed { topics, msgid: None })]
            }
            Event::Judged(mut ended) => {
                // A session that moves is judged on both ways.
                ended.retain(|filter| self.filters.remove(filter));
                if ended.is_empty() {
                    return Vec::new();
                }
                let refusal =
                    Refusal::new(Code::NotAuthorized, "Your rights have changed: this is not allowed any more.");
                let topics =
                    ended.iter().map(|filter| TopicResult::refused(filter.as_str(), refusal.clone())).collect();
                self.renewed.extend(ended);
                vec![Effect::Reply(Reply::Unsubscribed { topics, msgid: None })]
            }
            Event::Ended(close, refusal) => {
                let reply = refusal.map(|refusal| Effect::Reply(Reply::refused(refusal, None)));
                reply.into_iter().chain([Effect::Close(close)]).collect()
            }
            // The session has been welcomed; and where it goes on is for the loop to know.
            Event::Ready(_) | Event::Moved(_) => Vec::new(),
        }
    }

    fn on_answered(&mut self, request: RequestId, result: Result<(), Refusal>, now: Instant) -> Vec<Effect> {
        match self.requests.remove(&request) {
            Some(Asker::Publish { msgid: None, qos, since, overdue, .. }) => match result {
                Ok(()) => vec![Effect::Published(qos, now - since)],
                Err(_) if overdue.is_some() => Vec::new(),
                Err(refusal) => vec![Effect::Reply(Reply::refused(refusal, None))],
            },
            Some(Asker::Publish { msgid: Some(msgid), qos, since, answers, overdue }) => {
                self.publishes.on_answered(&msgid, &result);
                let answers = if overdue.is_some() { 0 } else { answers };
                let latency = result.is_ok().then(|| Effect::Published(qos, now - since));
                let replies = (0..answers).map(|_| Effect::Reply(published(msgid.clone(), result.clone())));
                replies.chain(latency).collect()
            }
            Some(Asker::Unsubscribe { list, index, filter }) => {
                let result = match result {
                    Ok(()) => {
                        self.filters.remove(&filter);
                        self.renewed.push(filter.clone());
                        TopicResult::ended(filter.as_str())
                    }
                    Err(refusal) => TopicResult::refused(filter.as_str(), refusal),
                };
                self.on_result(list, index, result)
            }
            Some(Asker::Subscribe { .. }) | None => Vec::new(),
        }
    }

    /// The client is told, and told the same if it asks again, until the broker answers after all.
    fn on_overdue(&mut self, request: RequestId, refusal: Refusal) -> Vec<Effect> {
        let Some(Asker::Publish { msgid, answers, overdue, .. }) = self.requests.get_mut(&request) else {
            return Vec::new();
        };
        *overdue = Some(refusal.clone());
        (0..*answers).map(|_| Effect::Reply(Reply::refused(refusal.clone(), msgid.clone()))).collect()
    }

    fn on_subscribed(&mut self, request: RequestId, result: Result<Qos, Refusal>) -> Vec<Effect> {
        let Some(Asker::Subscribe { list, index, filter, is_new, is_delta, moves }) = self.requests.remove(&request)
        else {
            return Vec::new();
        };
        self.movers -= u32::from(moves);
        let result = match result {
            Ok(qos) => {
                let granted = TopicResult::granted(filter.as_str(), qos);
                if is_delta {
                    self.renewed.push(filter.clone());
                }
                // An earlier request for it may have been denied meanwhile.
                self.filters.insert(filter);
                granted
            }
            Err(refusal) => {
                if is_new {
                    self.filters.remove(&filter);
                }
                let denied = denied(Request::Subscribe, filter.as_str(), &refusal);
                let answer = self.on_result(list, index, TopicResult::refused(filter.as_str(), refusal));
                return denied.into_iter().chain(answer).collect();
            }
        };
        self.on_result(list, index, result)
    }

    fn on_result(&mut self, list: RequestId, index: usize, result: TopicResult) -> Vec<Effect> {
        if let Some(slot) = self.lists.get_mut(&list).and_then(|list| list.results.get_mut(index)) {
            *slot = Some(result);
        }
        self.answer_list(list).into_iter().collect()
    }

    /// The filters that were subscribed again, or have ended, since this was last asked: a delta rests on nothing from before.
    pub fn take_renewed(&mut self) -> Vec<TopicFilter> {
        std::mem::take(&mut self.renewed)
    }

    /// A `subscribe` of several filters is not answered yet: some may be in force at the broker already.
    pub fn is_subscribing(&self) -> bool {
        self.lists.values().any(|list| list.is_subscribe && list.results.len() > 1)
    }

    fn answer_list(&mut self, list: RequestId) -> Option<Effect> {
        if !self.lists.get(&list)?.results.iter().all(Option::is_some) {
            return None;
        }
        let List { msgid, results, is_subscribe } = self.lists.remove(&list)?;
        let topics = results.into_iter().flatten().collect();
        Some(Effect::Reply(match is_subscribe {
            true => Reply::Subscribed { topics, msgid },
            false => Reply::Unsubscribed { topics, msgid },
        }))
    }

    /// A delivery has been handed to the socket; gives back what confirms it once it is written.
    pub fn on_delivery(&mut self, delivery: &Delivery) -> Option<Receipt> {
        let (msgid, receipt) = (delivery.msgid.as_ref()?, delivery.receipt?);
        match delivery.contract.ack {
            Ack::Auto => Some(receipt),
            Ack::Manual => {
                self.unacked.insert(msgid.clone(), receipt);
                None
            }
        }
    }

    fn acked(&mut self, msgid: &MsgId) -> Option<Receipt> {
        match msgid {
            MsgId::Text(text) => self.unacked.remove(text.as_ref()),
            MsgId::Number(_) => None,
        }
    }

    fn request(&mut self, asker: Asker) -> RequestId {
        let request = self.next_request;
        self.next_request += 1;
        self.requests.insert(request, asker);
        request
    }
}

impl Publishes {
    /// Remembers the answer to a publish that its readers may have got. One that was refused before may be mended and sent again.
    fn on_answered(&mut self, msgid: &MsgId, result: &Result<(), Refusal>) {
        self.unanswered.remove(msgid);
        let may_be_published = match result {
            Ok(()) => true,
            Err(refusal) => refusal.code == Code::Timeout && !refusal.retryable,
        };
        if !may_be_published {
            return;
        }
        if self.order.len() == REMEMBERED_ANSWERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
        self.order.push_back(msgid.clone());
        self.answers.insert(msgid.clone(), result.clone());
    }
}

/// What a refusal is worth a note of: that somebody wanted what is not theirs.
fn denied(request: Request, topic: &str, refusal: &Refusal) -> Option<Effect> {
    let is_denied = refusal.code == Code::NotAuthorized;
    is_denied.then(|| Effect::Denied { request, topic: topic.into(), why: refusal.message.as_ref().into() })
}

fn published(msgid: MsgId, result: Result<(), Refusal>) -> Reply {
    match result {
        Ok(()) => Reply::Ack { msgid },
        Err(refusal) => Reply::refused(refusal, Some(msgid)),
    }
}

/// Brokers end the connection over a topic with too many levels (Mosquitto: 200 slashes).
pub fn judge_levels(topic: &str, max: usize) -> Result<(), Refusal> {
    if topic.split('/').count() > max {
        return Err(Refusal::new(
            Code::InvalidTopic,
            format!("A topic may have {max} levels (wire.max_topic_levels)."),
        ));
    }
    Ok(())
}

/// An entry of a list, by the name that its result bears.
trait Named {
    fn topic(&self) -> &str;
}

impl Named for Subscription {
    fn topic(&self) -> &str {
        self.filter.as_str()
    }
}

impl Named for TopicFilter {
    fn topic(&self) -> &str {
        self.as_str()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
