//! The one task that asks the broker for what the sessions read: by one owner, a late UNSUBSCRIBE can't cut off who has come since.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::select;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::moving::{self, Arrived, Mover, Moving};
use super::readers::{Index, Readers};
use super::stored::{self, Answer, Found, Seekers};
use crate::access::Rights;
use crate::broker::Setup;
use crate::broker::downlink::Downlink;
use crate::broker::link::{
    Abilities, Command, Credentials, Event, Link, Opening, Owner, Queue, Ready, Renewal, needs_own_client,
};
use crate::broker::signal::Bell;
use crate::delivery::Delivery;
use crate::metrics;
use crate::mqtt::inflight::RequestId;
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Outcome, Qos, TopicFilter};
use crate::wire::{Ack, Close, Contract, Refusal, Subscription};

/// Requests to the broker that wait for room; over it no more are taken from sessions.
const MAX_WAITING: usize = 256;
/// Connections at one time that fetch stored messages.
const MAX_FETCHES: usize = 4;
/// Filters that one of them fetches for.
const FILTERS_A_FETCH: usize = 64;

/// A session that shares from now on.
pub struct Newcomer {
    /// Its name here, given once.
    pub number: u64,
    /// What it wants before anything else.
    pub opening: Opening,
    /// Where it hears.
    pub downlink: Arc<Downlink>,
}

/// A command of a session, publishes apart.
#[derive(Debug)]
pub struct Asked {
    /// Whose.
    pub number: u64,
    /// From then on its time runs.
    pub made: Instant,
    /// What.
    pub command: Box<Command>,
}

/// What the hub listens to.
pub struct Ends {
    pub newcomers: mpsc::UnboundedReceiver<Newcomer>,
    pub asked: mpsc::Receiver<Asked>,
    pub bell: Arc<Bell>,
    pub upstream: Link,
}

/// Everything that the sessions share, but for what they publish.
pub struct Hub {
    setup: Arc<Setup>,
    tasks: TaskTracker,
    closing: CancellationToken,
    ends: Ends,
    readers: Readers,
    sessions: HashMap<u64, Session>,
    /// Sessions that wait until the broker is there.
    early: Vec<u64>,
    /// What the broker can do, once it was reached.
    abilities: Option<Abilities>,
    is_up: bool,
    /// What is asked of the broker, by filter.
    asked: HashMap<TopicFilter, Asking>,
    /// Requests of ours that the broker owes an answer to.
    requests: HashMap<RequestId, Request>,
    next_request: RequestId,
    /// For the broker, as it has room.
    waiting: Queue,
    /// What sessions have asked while the broker is away.
    away: Away,
    stored: Stored,
    /// Sessions that get an MQTT client of their own, and where their movers tell.
    moving: Vec<u64>,
    movers: (mpsc::UnboundedSender<Arrived>, mpsc::UnboundedReceiver<Arrived>),
}

/// What became of a session's first subscriptions, as far as it is known.
type Results = Vec<Option<Result<Qos, Refusal>>>;

/// What the hub knows of a session.
struct Session {
    index: Index,
    downlink: Arc<Downlink>,
    /// Until it is open.
    opening: Option<(Box<Opening>, Results)>,
    client_id: String,
    /// Subscribes of it that wait for the broker.
    waiting: usize,
    /// While it gets an MQTT client of its own.
    moving: Option<Box<Moving>>,
    /// What it may do; nothing stands for everything.
    rights: Option<Arc<Rights>>,
    /// What it shows to the broker once it has a client of its own.
    credentials: Option<Arc<Credentials>>,
}

/// A filter as the broker knows it.
#[derive(Default)]
struct Asking {
    /// The QoS that was asked for last, and what came of it when it is known.
    qos: Qos,
    granted: Option<Qos>,
    /// The request that is under way.
    request: Option<RequestId>,
    /// Who waits for that.
    waiting: Vec<Waiting>,
}

struct Waiting {
    number: u64,
    what: Wanted,
}

/// What a session wants of a filter while the broker's answer is awaited.
enum Wanted {
    Read(Box<Subscription>, To),
    /// No more, after all.
    Unread(RequestId),
}

/// What a session waits for.
#[derive(Clone, Copy)]
enum To {
    /// The answer to its command.
    Request(RequestId),
    /// That subscription of its opening.
    Opening(usize),
}

enum Request {
    Subscribe(TopicFilter),
    Unsubscribe,
    /// What was fetched may go out once all that came before it has.
    Fence(u64),
    /// A session leaves once all that came before its own connection stood has come.
    Leave(u64),
}

/// What waits for a broker that is away, also where it would not have to be asked: what it has granted is as good as lost.
#[derive(Default)]
struct Away {
    by_session: HashMap<u64, Queue>,
    /// When each of them is answered without the broker, and whose it is, in the order in which they came.
    deadlines: VecDeque<(Instant, u64)>,
}

/// Who waits for stored messages, and who fetches them.
#[derive(Default)]
struct Stored {
    /// By filter; one that is not in the queue is being fetched.
    seekers: HashMap<TopicFilter, Seekers>,
    queue: VecDeque<TopicFilter>,
    /// What each fetch has found and waits to be given out.
    fetches: HashMap<u64, Fetch>,
    next: u64,
}

struct Fetch {
    filters: Vec<TopicFilter>,
    found: Option<Found>,
}

/// Nobody needs the hub any more, or the broker does not take it.
struct Over(Option<(Close, Option<Refusal>)>);

impl Hub {
    /// Without sessions.
    pub fn new(setup: Arc<Setup>, tasks: TaskTracker, closing: CancellationToken, ends: Ends) -> Hub {
        Hub {
            setup,
            tasks,
            closing,
            readers: Readers::default(),
            sessions: HashMap::new(),
            early: Vec::new(),
            abilities: None,
            is_up: false,
            asked: HashMap::new(),
            requests: HashMap::new(),
            next_request: 0,
            waiting: Queue::new(),
            away: Away::default(),
            stored: Stored::default(),
            moving: Vec::new(),
            movers: mpsc::unbounded_channel(),
            ends,
        }
    }

    /// Serves the sessions until the gateway drains and all have left, or the broker refuses the gateway.
    pub async fn run(mut self) {
        let (answers, mut found) = mpsc::channel(MAX_FETCHES);
        let Over(why) = loop {
            let overdue = self.away.deadlines.front().map(|(until, _)| tokio::time::Instant::from_std(*until));
            let is_closing = self.closing.is_cancelled();
            if is_closing && self.sessions.is_empty() {
                break Over(None);
            }
            let result = select! {
                () = self.ends.upstream.downlink.to_session.raised() => self.on_upstream().await,
                numbers = self.ends.bell.rung() => {
                    numbers.into_iter().for_each(|number| self.on_rung(number));
                    Ok(())
                }
                handed = self.ends.upstream.commands.hand_over(&mut self.waiting), if !self.waiting.is_empty() => {
                    match handed {
                        Ok(()) => Ok(()),
                        // It said why, or it failed.
                        Err(()) => self.on_upstream().await.and(Err(Over(Some((Close::Fault, None))))),
                    }
                }
                Some(newcomer) = self.ends.newcomers.recv() => {
                    self.on_newcomer(newcomer);
                    Ok(())
                }
                Some(asked) = self.ends.asked.recv(), if self.waiting.len() < MAX_WAITING => {
                    self.on_asked(asked);
                    Ok(())
                }
                Some(answer) = found.recv() => {
                    self.on_found(answer);
                    Ok(())
                }
                Some(arrived) = self.movers.1.recv() => {
                    self.on_arrived(arrived);
                    Ok(())
                }
                () = sleep_until(overdue.unwrap_or_else(tokio::time::Instant::now)), if overdue.is_some() => {
                    self.on_overdue(Instant::now());
                    Ok(())
                }
                () = self.closing.cancelled(), if !is_closing => Ok(()),
            };
            if let Err(over) = result {
                break over;
            }
            self.begin_fetches(&answers);
        };
        self.end(why).await;
    }

    async fn end(mut self, why: Option<(Close, Option<Refusal>)>) {
        self.ends.newcomers.close();
        let (close, refusal) = why.unwrap_or((Close::NoBroker, None));
        while let Ok(Newcomer { downlink, .. }) = self.ends.newcomers.try_recv() {
            downlink.tell(Event::Ended(close, refusal.clone()));
            downlink.let_go();
        }
        for session in self.sessions.values() {
            session.downlink.tell(Event::Ended(close, refusal.clone()));
            session.downlink.let_go();
            metrics::subscriptions_changed(self.readers.subscriptions(session.index), 0);
        }
        let upstream = self.ends.upstream.handle();
        upstream.end(Close::Drain);
        upstream.ended().await;
    }

    async fn on_upstream(&mut self) -> Result<(), Over> {
        let taken = self.ends.upstream.downlink.take(Some(usize::MAX), Instant::now());
        let mut fences = Vec::new();
        for event in taken.events {
            match event {
                // What came before it is among the deliveries.
                Event::Answered(request, _) => fences.push(request),
                event => self.on_event(event)?,
            }
        }
        self.fan_out(taken.deliveries).await;
        // It is the readers' now, and charged to them.
        self.ends.upstream.downlink.encoded(0);
        fences.into_iter().for_each(|request| self.on_answered(request));
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<(), Over> {
        match event {
            Event::Ready(Ready { abilities, .. }) => {
                self.abilities = Some(abilities);
                self.open_early();
            }
            Event::Up { session_present } => {
                self.tell_open(|| Event::Up { session_present });
                self.open_early();
                if !session_present {
                    // What is stored may have changed while nobody heard of it.
                    for (number, filter) in self.readers.wanting_stored() {
                        self.stored.seek(number, filter);
                    }
                }
            }
            Event::Down => {
                self.is_up = false;
                self.tell_open(|| Event::Down);
            }
            Event::Subscribed(request, result) => self.on_subscribed(request, result),
            Event::SubscriptionLost(filter, refusal) => self.lose(&filter, &refusal),
            Event::Ended(close, refusal) => return Err(Over(Some((close, refusal)))),
            // What was delivered is confirmed when it waits for its readers, and who publishes is answered by the link.
            Event::SessionLost | Event::Answered(..) | Event::Overdue(..) | Event::Moved(_) | Event::Judged(_) => {}
        }
        Ok(())
    }

    fn open_early(&mut self) {
        self.is_up = true;
        for number in std::mem::take(&mut self.early) {
            self.open(number);
        }
        let Away { mut by_session, deadlines } = std::mem::take(&mut self.away);
        for (_, number) in deadlines {
            if let Some((made, command)) = by_session.get_mut(&number).and_then(Queue::pop_front) {
                self.on_asked(Asked { number, made, command });
            }
        }
    }

    /// What waits for the broker longer than a request may is answered without it.
    fn on_overdue(&mut self, now: Instant) {
        while let Some((_, number)) = self.away.deadlines.pop_front_if(|(until, _)| *until <= now) {
            let command = self.away.by_session.get_mut(&number).and_then(Queue::pop_front);
            if let (Some((_, command)), Some(session)) = (command, self.sessions.get(&number)) {
                let refusal = Refusal::from_outcome(Outcome::TimedOut).expect("a time-out is no success");
                session.downlink.tell(refused(*command, refusal));
            }
        }
    }

    /// Gives the messages to all who read them, and only then wakes those.
    async fn fan_out(&mut self, mut deliveries: Vec<Delivery>) {
        if deliveries.is_empty() {
            return;
        }
        // rumqttd brings stored messages with a subscription whether they are wanted or not, and flags no others.
        let is_embedded = self.setup.is_embedded();
        let mut receipts = Vec::new();
        deliveries.retain(|delivery| {
            receipts.extend(delivery.receipt);
            !(is_embedded && delivery.rendition.message.retain)
        });
        deliveries.iter_mut().for_each(Delivery::detach);
        self.stored.note(&deliveries, &self.readers);
        self.note_moving(&deliveries);
        let offered = self.readers.offer(&deliveries).await;
        self.ends.upstream.downlink.confirm(receipts);
        offered.wake();
        for slow in offered.slow {
            if let Some(member) = self.readers.member(slow) {
                member.downlink.tell(Event::Ended(Close::SlowConsumer, None));
            }
        }
    }

    fn on_newcomer(&mut self, Newcomer { number, opening, downlink }: Newcomer) {
        let index = self.readers.enter(number, downlink.clone());
        let results = vec![None; opening.subscriptions.len()];
        let (client_id, rights, credentials) =
            (opening.client_id.clone(), opening.rights.clone(), opening.credentials.clone());
        let opening = Some((Box::new(opening), results));
        let session = Session { index, downlink, opening, client_id, waiting: 0, moving: None, rights, credentials };
        self.sessions.insert(number, session);
        if self.is_up {
            self.open(number);
        } else {
            self.early.push(number);
        }
    }

    fn open(&mut self, number: u64) {
        let Some(session) = self.sessions.get(&number) else { return };
        let subscriptions = session.opening.as_ref().map(|(opening, _)| opening.subscriptions.clone());
        for (index, subscription) in subscriptions.into_iter().flatten().enumerate() {
            self.subscribe(number, Instant::now(), Box::new(subscription), To::Opening(index));
        }
        self.tell_if_ready(number);
    }

    fn tell_if_ready(&mut self, number: u64) {
        let (Some(session), Some(abilities)) = (self.sessions.get_mut(&number), self.abilities) else { return };
        let Some((opening, results)) = session.opening.take_if(|(_, results)| results.iter().all(Option::is_some))
        else {
            return;
        };
        session.downlink.tell(Event::Ready(Ready {
            client_id: opening.client_id,
            session_present: false,
            subscriptions: results.into_iter().flatten().collect(),
            abilities,
        }));
    }

    /// Tells all sessions that are open.
    fn tell_open(&self, event: impl Fn() -> Event) {
        for session in self.sessions.values().filter(|session| session.opening.is_none()) {
            session.downlink.tell(event());
        }
    }

    /// A session has ended, or has to give way.
    fn on_rung(&mut self, number: u64) {
        let Some(session) = self.sessions.get(&number) else { return };
        session.downlink.to_link.seen();
        self.take_up_renewal(number);
        let Some(session) = self.sessions.get(&number) else { return };
        let is_ended = session.downlink.ended_by().is_some();
        if session.downlink.is_taken_over() && !is_ended {
            session.downlink.tell(Event::Ended(Close::TakenOver, None));
        } else if !is_ended {
            return;
        }
        self.leave(number);
    }

    /// What the session may do now, where that has changed.
    fn take_up_renewal(&mut self, number: u64) {
        let Some(downlink) = self.sessions.get(&number).map(|session| session.downlink.clone()) else { return };
        if let Some(renewal) = downlink.take_renewal() {
            self.judge_anew(number, *renewal);
            downlink.judged();
        }
    }

    /// Ends what the session may not read any more, at once.
    fn judge_anew(&mut self, number: u64, renewal: Renewal) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        session.rights.clone_from(&renewal.rights);
        session.credentials = renewal.credentials;
        let Some(rights) = renewal.rights else { return };
        let (index, downlink) = (session.index, session.downlink.clone());
        let mut ended = Vec::new();
        for Subscription { filter, options, .. } in self.readers.subscriptions_of(index) {
            // What is allowed in part is judged message by message, which takes a client of its own: who wants that asks again.
            if rights.subscribe(&filter, options.qos).is_ok_and(|granted| !granted.is_narrowed) {
                continue;
            }
            self.stop_reading(number, &filter);
            ended.push(filter);
        }
        downlink.tell(Event::Judged(ended));
    }

    fn leave(&mut self, number: u64) {
        let Some(session) = self.sessions.remove(&number) else { return };
        self.away.by_session.remove(&number);
        self.moving.retain(|other| *other != number);
        metrics::subscriptions_changed(self.readers.subscriptions(session.index), 0);
        for filter in self.readers.leave(session.index) {
            self.unsubscribe(&filter);
        }
        session.downlink.let_go();
    }

    fn on_asked(&mut self, Asked { number, made, command }: Asked) {
        // It is judged by the rights that the session had when it asked, or newer ones, whichever was heard of first.
        self.take_up_renewal(number);
        let Some(session) = self.sessions.get_mut(&number) else { return };
        if let Command::Subscribe(request, subscription) = &*command {
            let Subscription { filter, options, .. } = subscription;
            if let Some(Err(refusal)) = session.rights.as_ref().map(|rights| rights.subscribe(filter, options.qos)) {
                return session.downlink.tell(Event::Subscribed(*request, Err(refusal)));
            }
            if needs_own_client(subscription, session.rights.as_deref()) && session.moving.is_none() {
                session.moving = Some(Box::default());
            }
        }
        if let Some(moving) = &mut session.moving {
            if moving.held.len() < self.setup.config.max_waiting.get() {
                moving.held.push_back((made, command));
            } else {
                session.downlink.tell(refused(*command, Refusal::broker_unavailable()));
            }
            return self.begin_to_move(number);
        }
        if !self.is_up {
            let asked = self.away.by_session.entry(number).or_default();
            if asked.len() >= self.setup.config.max_waiting.get() {
                return session.downlink.tell(refused(*command, Refusal::broker_unavailable()));
            }
            asked.push_back((made, command));
            return self.away.deadlines.push_back((made + self.setup.config.request_timeout, number));
        }
        match *command {
            Command::Subscribe(request, subscription) => {
                self.subscribe(number, made, Box::new(subscription), To::Request(request));
            }
            Command::Unsubscribe(request, filter) => {
                let asking = self.asked.get_mut(&filter);
                match asking.filter(|asking| asking.waiting.iter().any(|waiting| waiting.number == number)) {
                    Some(asking) => asking.waiting.push(Waiting { number, what: Wanted::Unread(request) }),
                    None => self.unread(number, request, &filter),
                }
            }
            Command::Publish(..) | Command::Fence(_) => unreachable!("these take another way"),
        }
    }

    /// Asks the broker, unless it gives as much already.
    fn subscribe(&mut self, number: u64, made: Instant, mut subscription: Box<Subscription>, answer: To) {
        match self.judge(number, &subscription) {
            Ok(qos) => subscription.options.qos = qos,
            Err(refusal) => return self.answer(number, answer, Err(refusal)),
        }
        let (filter, qos) = (subscription.filter.clone(), subscription.options.qos);
        let asking = self.asked.entry(filter.clone()).or_default();
        let is_enough = asking.qos >= qos;
        match (asking.granted, asking.request) {
            (Some(granted), _) if is_enough => return self.admit(number, *subscription, granted.min(qos), answer),
            (None, Some(_)) if is_enough => {}
            _ => {
                asking.qos = asking.qos.max(qos);
                asking.granted = None;
                let request = self.next_request;
                asking.request = Some(request);
                let upstream = Subscription {
                    filter: filter.clone(),
                    // One message for all readers, flagged as it was published: what is stored is fetched for each by itself.
                    options: SubscribeOptions {
                        qos: asking.qos,
                        no_local: false,
                        retain_as_published: true,
                        retain_handling: 2,
                    },
                    sid: None,
                    contract: Contract::default(),
                };
                self.next_request += 1;
                self.requests.insert(request, Request::Subscribe(filter.clone()));
                self.waiting.push_back((made, Box::new(Command::Subscribe(request, upstream))));
            }
        }
        if let Some(session) = self.sessions.get_mut(&number) {
            session.waiting += 1;
        }
        let asking = self.asked.get_mut(&filter).expect("it was made above");
        asking.waiting.push(Waiting { number, what: Wanted::Read(subscription, answer) });
    }

    /// With which qos the session may read that.
    fn judge(&self, number: u64, subscription: &Subscription) -> Result<Qos, Refusal> {
        let Subscription { filter, options, .. } = subscription;
        match self.sessions.get(&number).and_then(|session| session.rights.as_ref()) {
            None => Ok(options.qos),
            Some(rights) => rights.subscribe(filter, options.qos).map(|granted| granted.qos),
        }
    }

    fn unread(&mut self, number: u64, request: RequestId, filter: &TopicFilter) {
        self.stop_reading(number, filter);
        if let Some(session) = self.sessions.get(&number) {
            session.downlink.tell(Event::Answered(request, Ok(())));
        }
    }

    fn stop_reading(&mut self, number: u64, filter: &TopicFilter) {
        let Some(session) = self.sessions.get(&number) else { return };
        let before = self.readers.subscriptions(session.index);
        let unread = self.readers.unread(session.index, filter);
        metrics::subscriptions_changed(before, self.readers.subscriptions(session.index));
        session.downlink.purge(filter);
        if unread.is_some() {
            self.unsubscribe(filter);
        }
    }

    fn unsubscribe(&mut self, filter: &TopicFilter) {
        if self.asked.get(filter).is_some_and(|asking| !asking.waiting.is_empty()) {
            return;
        }
        self.asked.remove(filter);
        let request = self.next_request;
        self.next_request += 1;
        self.requests.insert(request, Request::Unsubscribe);
        self.waiting.push_back((Instant::now(), Box::new(Command::Unsubscribe(request, filter.clone()))));
    }

    fn on_subscribed(&mut self, request: RequestId, result: Result<Qos, Refusal>) {
        let Some(Request::Subscribe(filter)) = self.requests.remove(&request) else { return };
        // While they wait still: then the filter is not left because one of them may not have it any more.
        let waiting = self.asked.get(&filter).map_or(&[][..], |asking| &asking.waiting);
        for number in waiting.iter().map(|waiting| waiting.number).collect::<Vec<_>>() {
            self.take_up_renewal(number);
        }
        let Some(asking) = self.asked.get_mut(&filter).filter(|asking| asking.request == Some(request)) else {
            // A later request for more takes its place.
            return;
        };
        asking.request = None;
        asking.granted = result.as_ref().ok().copied();
        let waiting = std::mem::take(&mut asking.waiting);
        for Waiting { number, what } in waiting {
            match (what, &result) {
                (Wanted::Read(subscription, answer), Ok(granted)) => {
                    let granted = subscription.options.qos.min(*granted);
                    self.admit(number, *subscription, granted, answer);
                }
                (Wanted::Read(_, answer), Err(refusal)) => self.answer(number, answer, Err(refusal.clone())),
                (Wanted::Unread(request), _) => {
                    self.unread(number, request, &filter);
                    continue;
                }
            }
            if let Some(session) = self.sessions.get_mut(&number) {
                session.waiting -= 1;
            }
            self.begin_to_move(number);
        }
        // Those who read it go on as before a refusal.
        if self.readers.members_of(&filter).is_empty() && self.asked.contains_key(&filter) {
            match result {
                Ok(_) => self.unsubscribe(&filter),
                Err(_) => drop(self.asked.remove(&filter)),
            }
        }
    }

    /// The session reads the filter from now on.
    fn admit(&mut self, number: u64, subscription: Subscription, granted: Qos, answer: To) {
        // The right to it may be gone since it was asked for.
        if let Err(refusal) = self.judge(number, &subscription) {
            return self.answer(number, answer, Err(refusal));
        }
        let Some(session) = self.sessions.get(&number) else { return };
        let index = session.index;
        let before = self.readers.subscriptions(index);
        self.answer(number, answer, Ok(granted));
        let is_new = self.readers.read(index, &subscription, granted);
        metrics::subscriptions_changed(before, self.readers.subscriptions(index));
        match subscription.options.retain_handling {
            0 => self.stored.seek(number, subscription.filter),
            1 if is_new => self.stored.seek(number, subscription.filter),
            _ => {}
        }
        self.tell_if_ready(number);
    }

    fn answer(&mut self, number: u64, answer: To, result: Result<Qos, Refusal>) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        match answer {
            To::Request(request) => session.downlink.tell(Event::Subscribed(request, result)),
            To::Opening(index) => {
                let is_refused = result.is_err();
                if let Some((_, results)) = &mut session.opening {
                    results[index] = Some(result);
                }
                if is_refused {
                    self.tell_if_ready(number);
                }
            }
        }
    }

    /// The broker did not give a subscription back after it had lost the session.
    fn lose(&mut self, filter: &TopicFilter, refusal: &Refusal) {
        self.asked.remove(filter);
        for member in self.readers.members_of(filter) {
            let before = self.readers.subscriptions(member);
            self.readers.unread(member, filter);
            metrics::subscriptions_changed(before, self.readers.subscriptions(member));
            if let Some(session) = self.readers.member(member) {
                session.downlink.purge(filter);
                session.downlink.tell(Event::SubscriptionLost(filter.clone(), refusal.clone()));
            }
        }
    }

    fn begin_fetches(&mut self, answers: &mpsc::Sender<Answer>) {
        while self.stored.fetches.len() < MAX_FETCHES && !self.stored.queue.is_empty() {
            let count = self.stored.queue.len().min(FILTERS_A_FETCH);
            let filters: Vec<_> = self.stored.queue.drain(..count).collect();
            let mut wanted = Vec::new();
            for filter in &filters {
                let Some(seekers) = self.stored.seekers.get_mut(filter) else { continue };
                seekers.begin();
                let index = |number: &u64| self.sessions.get(number).map(|session| session.index);
                let granted = |number: &u64| self.readers.granted(index(number)?, filter);
                wanted.push((filter.clone(), seekers.served().filter_map(granted).max().unwrap_or_default()));
            }
            let number = self.stored.next;
            self.stored.next += 1;
            self.stored.fetches.insert(number, Fetch { filters, found: None });
            let fetch = stored::fetch(self.setup.clone(), number, wanted, answers.clone());
            self.tasks.spawn(self.closing.clone().run_until_cancelled_owned(fetch));
        }
    }

    fn on_found(&mut self, answer: Answer) {
        let Some(fetch) = self.stored.fetches.get_mut(&answer.fetch) else { return };
        match answer.found {
            Some(found) => {
                fetch.found = Some(found);
                self.fence(Request::Fence(answer.fetch));
            }
            None => {
                let filters = std::mem::take(&mut fetch.filters);
                self.stored.fetches.remove(&answer.fetch);
                filters.into_iter().for_each(|filter| self.stored.end(filter));
            }
        }
    }

    fn on_answered(&mut self, request: RequestId) {
        match self.requests.remove(&request) {
            Some(Request::Fence(fetch)) => self.give_out(fetch),
            Some(Request::Leave(number)) => self.let_move(number),
            Some(Request::Subscribe(_) | Request::Unsubscribe) | None => {}
        }
    }

    fn fence(&mut self, request: Request) {
        self.requests.insert(self.next_request, request);
        self.waiting.push_back((Instant::now(), Box::new(Command::Fence(self.next_request))));
        self.next_request += 1;
    }

    /// A session that wants what needs a client of its own, once the hub owes it nothing.
    fn begin_to_move(&mut self, number: u64) {
        let Some(session) = self.sessions.get_mut(&number).filter(|session| session.waiting == 0) else { return };
        let Some(moving) = session.moving.as_mut().filter(|moving| !moving.has_begun) else { return };
        let Some((_, command)) = moving.held.pop_front() else { return };
        let Command::Subscribe(request, subscription) = *command else { unreachable!("a subscribe makes it move") };
        moving.has_begun = true;
        // The same filter with other options takes the place of the earlier one.
        let mut subscriptions = self.readers.subscriptions_of(session.index);
        subscriptions.retain(|earlier| earlier.filter != subscription.filter);
        subscriptions.push(subscription);
        let opening = Opening {
            client_id: session.client_id.clone(),
            clean: true,
            session_expiry: 0,
            will: None,
            subscriptions,
            ack: Ack::Auto,
            max_inflight: u16::MAX,
            owner: Owner::Browser,
            is_named: true,
            rights: session.rights.clone(),
            credentials: session.credentials.clone(),
        };
        let mover = Mover { number, opening, request, old: session.downlink.clone() };
        self.moving.push(number);
        self.tasks.spawn(moving::run(self.setup.clone(), mover, self.movers.0.clone()));
    }

    fn on_arrived(&mut self, Arrived { number, left }: Arrived) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        match left {
            Some(left) => {
                if let Some(moving) = &mut session.moving {
                    moving.left = Some(left);
                }
                self.fence(Request::Leave(number));
            }
            None => {
                self.moving.retain(|other| *other != number);
                let held = session.moving.take().map(|moving| moving.held).unwrap_or_default();
                for (made, command) in held {
                    self.on_asked(Asked { number, made, command });
                }
            }
        }
    }

    /// What both ways bring is told twice by neither.
    fn note_moving(&mut self, deliveries: &[Delivery]) {
        for number in &self.moving {
            let Some(session) = self.sessions.get_mut(number) else { continue };
            let Some(moving) = &mut session.moving else { continue };
            for delivery in deliveries {
                if self.readers.filters_of(delivery).into_iter().any(|filter| self.readers.reads(session.index, filter))
                {
                    moving.seen.push(moving::seen(&delivery.rendition.message));
                }
            }
        }
    }

    fn let_move(&mut self, number: u64) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let Some(mut moving) = session.moving.take() else { return };
        let Some(left) = moving.left.take() else { return };
        moving.renewal = Some(Renewal { rights: session.rights.clone(), credentials: session.credentials.clone() });
        self.leave(number);
        let _ = left.send(*moving);
    }

    /// All that was published before the stored messages were found has come, so whoever has seen something newer is known.
    fn give_out(&mut self, fetch: u64) {
        let Some(Fetch { filters, found }) = self.stored.fetches.get_mut(&fetch) else { return };
        let Some(Found { messages, go_on }) = found.take() else { return };
        let mut receivers = Vec::new();
        for (filter, message) in messages {
            let Some(filter) = filters.get(filter) else { continue };
            let Some(seekers) = self.stored.seekers.get(filter) else { continue };
            for number in seekers.without_news(&message.rendition.message.topic) {
                if let Some(session) = self.sessions.get(&number) {
                    self.readers.offer_stored(session.index, filter, &message);
                }
            }
        }
        for number in filters.iter().filter_map(|filter| self.stored.seekers.get(filter)).flat_map(Seekers::served) {
            receivers.extend(self.sessions.get(number).map(|session| session.downlink.clone()));
        }
        if go_on.send(receivers).is_err() {
            warn!("a fetch of stored messages has ended half-way");
        }
    }
}

/// By a panic: nobody waits for a hub that is not there any more.
impl Drop for Hub {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ends.newcomers.close();
            let unheard = std::iter::from_fn(|| self.ends.newcomers.try_recv().ok()).map(|newcomer| newcomer.downlink);
            for downlink in self.sessions.drain().map(|(_, session)| session.downlink).chain(unheard) {
                downlink.tell(Event::Ended(Close::Fault, None));
                downlink.let_go();
            }
        }
    }
}

/// The answer to a command that is not carried out.
fn refused(command: Command, refusal: Refusal) -> Event {
    match command {
        Command::Subscribe(request, _) => Event::Subscribed(request, Err(refusal)),
        other => Event::Answered(other.request(), Err(refusal)),
    }
}

impl Stored {
    /// The session has subscribed, and wants what is stored.
    fn seek(&mut self, number: u64, filter: TopicFilter) {
        let is_known = self.seekers.contains_key(&filter);
        self.seekers.entry(filter.clone()).or_default().add(number);
        if !is_known {
            self.queue.push_back(filter);
        }
    }

    /// Remembers which topics have news, for those who wait for what is stored there.
    fn note(&mut self, deliveries: &[Delivery], readers: &Readers) {
        if self.seekers.is_empty() {
            return;
        }
        for delivery in deliveries {
            for filter in readers.filters_of(delivery) {
                if let Some(seekers) = readers.name(filter).and_then(|filter| self.seekers.get_mut(filter)) {
                    seekers.note(&delivery.rendition.message.topic);
                }
            }
        }
    }

    /// A fetch is over; who has come since waits for the next.
    fn end(&mut self, filter: TopicFilter) {
        let Some(seekers) = self.seekers.get_mut(&filter) else { return };
        if seekers.end() {
            self.seekers.remove(&filter);
        } else {
            self.queue.push_back(filter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::downlink::Handle;
    use crate::broker::link::Commands;
    use crate::broker::signal::Raise;
    use crate::broker::transport::Target;
    use crate::broker::{Config, Place, Reach, orders};

    fn newcomer(number: u64, downlink: &Arc<Downlink>) -> Newcomer {
        Newcomer { number, opening: Opening::plain("anna"), downlink: downlink.clone() }
    }

    #[tokio::test]
    async fn a_hub_that_panics_ends_its_sessions_and_those_at_its_door() {
        let place = Place::Elsewhere(Target::plain("127.0.0.1".to_owned(), 1));
        let setup = Arc::new(Setup { config: Config::default(), place, reach: Reach::default() });
        let downlink = || Downlink::new(Default::default(), Arc::default(), Raise::default());
        let upstream = Link { commands: Commands::Own(orders::channel(1).0), downlink: downlink() };
        let (door, newcomers) = mpsc::unbounded_channel();
        let (_commands, asked) = mpsc::channel(1);
        let ends = Ends { newcomers, asked, bell: Arc::default(), upstream };
        let mut hub = Hub::new(setup, TaskTracker::new(), CancellationToken::new(), ends);
        let (inside, outside) = (downlink(), downlink());
        hub.on_newcomer(newcomer(1, &inside));
        assert!(door.send(newcomer(2, &outside)).is_ok());
        let faulty = tokio::spawn(async move {
            let _hub = hub;
            panic!("a fault of the test's own");
        });
        assert!(faulty.await.expect_err("it panics").is_panic());
        for downlink in [inside, outside] {
            assert_eq!(downlink.take_events(), [Event::Ended(Close::Fault, None)]);
            Handle::of(downlink).ended().await;
        }
        assert!(door.is_closed(), "the next session has a new one made");
    }
}
