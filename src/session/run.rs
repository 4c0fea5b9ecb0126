//! The life of one session, from the upgrade to its end: this loop waits, and `state` decides.

mod standing;

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant, SystemTime};

use arc_swap::ArcSwap;
use rand::Rng;
use serde_json::Number;
use tokio::select;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::composing::Composer;
use super::entrance::{Entrance, Lobby, Newcomer, Pass};
use super::expiry::{Due, Expiry};
use super::guard::{Greeting, Guest, Presented, Renewing, Vouching, expiry, greeted, max_subscriptions};
use super::queue::enter;
use super::quota::{Quota, Quotas};
use super::rates::Rates;
use super::reloads::Reloads;
use super::roster::{Place, Summons, Visitor};
use super::socket::{Inbound, Outbound, Socket, Turn, Writing};
use super::state::{Effect, State};
use super::{Config, Roster};
use crate::access::{Identity, Origin, Policy, Reason, Rights};
use crate::audit::{Audit, Event as Recorded};
use crate::auth::{Judge, Revoked};
use crate::broker::{Broker, Command, Credentials, Event, Link, Opening, Owner, Queue, Ready, Rest};
use crate::delivery::{self, Form};
use crate::log::Log;
use crate::metrics;
use crate::mqtt::inflight::Receipt;
use crate::overload::Overload;
use crate::shutdown::Drain;
use crate::wire::{self, Auth, Close, Limits, MsgId, Refusal, Reply, TopicResult, json};

/// Bytes of deliveries that are written in one go.
const BATCH: usize = 64 * 1024;
/// Bytes that the session may remember more of what it has written, or less, before the link hears of it.
const KEPT_STEP: usize = 1024;
/// How long a Close frame may take to be written.
const CLOSING: Duration = Duration::from_secs(2);
/// How long the link of an ended session may take while the gateway drains, if the deadline leaves it so much: longer than its last
/// requests and its goodbye, so that only what waits for more, a delayed will say, is cut short.
const LINGER: Duration = Duration::from_secs(8);
/// How long a draining gateway waits for the browser's answer to that: it tells that all before it was read.
const ECHO: Duration = Duration::from_secs(1);
/// How long a client is asked to stay away whose session an operator has ended.
const KICKED_FOR: Duration = Duration::from_secs(1);
/// Pings without a sign of life that end a session.
const MISSED_HEARTBEATS: u32 = 3;
/// A browser that takes nothing for so long, with its outbox full, has stalled.
const STALL: Duration = Duration::from_secs(1);

/// What all sessions share.
pub struct Context {
    /// What sessions go by that open from now on.
    pub settings: ArcSwap<Settings>,
    /// The `[broker]` request time-out: how long a session waits for its link.
    pub broker_timeout: Duration,
    /// Where links come from.
    pub broker: Broker,
    /// Who holds which client identifier.
    pub roster: Roster,
    /// Who gets a place.
    pub entrance: Arc<Entrance>,
    /// Who has said nothing yet.
    pub lobby: Arc<Lobby>,
    /// Waited for at the end.
    pub tasks: TaskTracker,
    /// The gateway drains.
    pub closing: CancellationToken,
    /// How, and by when.
    pub drain: Drain,
    /// Whether the event loop keeps up.
    pub overload: Overload,
    /// What each user has done of late.
    pub quotas: Quotas,
    /// Who is shut out.
    pub revoked: Arc<Revoked>,
    /// Those who wait for the configuration to be read again.
    pub reloads: Reloads,
    /// How much the process tells of itself.
    pub log: Log,
    /// Where is recorded what sessions do.
    pub audit: Audit,
}

/// What a session goes by from its upgrade to its end, whatever the configuration becomes meanwhile.
pub struct Settings {
    /// The `[session]` section.
    pub session: Config,
    /// The `[wire]` section.
    pub wire: wire::Config,
    /// The `[delivery]` section.
    pub delivery: delivery::Config,
    /// By which ways credentials come in.
    pub doors: Doors,
    /// Who says who a session is.
    pub judge: Judge,
    /// What the roles of a session allow.
    pub policy: Arc<Policy>,
}

/// By which ways credentials come in, beside those that are always open, and whose pages may come.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    /// The cookie that may hold a token.
    pub cookie: Option<String>,
    /// A token may stand in the query of the URL.
    pub query_token: bool,
    /// A client certificate says who somebody is.
    pub certificate: bool,
    /// The origins whose pages may connect, beside the gateway's own; without any, all may.
    pub allowed_origins: Vec<Origin>,
}

/// A WebSocket as it comes from the door.
pub struct Arrival {
    /// What came with the handshake to say who it is.
    pub credential: Option<Presented>,
    /// Who vouches for its client certificate, where its connection has shown one.
    pub vouching: Option<Vouching>,
    /// Whose it is, for the log.
    pub client: IpAddr,
    /// Its right to be there, or why there is none.
    pub pass: Result<Pass, Reason>,
    /// Its place among those who have said nothing, until it has.
    pub newcomer: Option<Arc<Newcomer>>,
}

/// Serves a WebSocket until its end. Not an `async fn`, which would hold what it is given twice.
pub fn run<S: Socket>(
    socket: S,
    context: Arc<Context>,
    settings: Arc<Settings>,
    arrival: Box<Arrival>,
) -> impl Future<Output = ()> + Send {
    let peer = Box::new(Peer { socket, writing: Writing::default(), early: VecDeque::new() });
    live(peer, context, settings, arrival)
}

async fn live<S: Socket>(
    mut peer: Box<Peer<S>>,
    context: Arc<Context>,
    settings: Arc<Settings>,
    mut arrival: Box<Arrival>,
) {
    // Each phase is on the heap, and gone when it is over: a session would take the room of all of them to its end.
    if let Err(close) = Box::pin(enter(&mut peer, &context, &mut arrival)).await {
        // Whoever waits behind it moves up.
        drop(arrival);
        Box::pin(peer.close(close, &context.drain)).await;
        metrics::closed(close);
        return;
    }
    let counted = metrics::session_opened();
    let close = match Box::pin(serve(&mut peer, &context, &settings, &mut arrival)).await {
        Ok(never) => match never {},
        Err(close) => close,
    };
    Box::pin(peer.close(close, &context.drain)).await;
    counted.closed(close);
}

/// Nothing of this type exists: a session ends by a [`Close`].
enum Never {}

async fn serve<S: Socket>(
    peer: &mut Peer<S>,
    context: &Arc<Context>,
    settings: &Arc<Settings>,
    arrival: &mut Arrival,
) -> Result<Never, Close> {
    let Greeting { auth, answer, first, guest } = Box::pin(greeted(peer, context, settings, arrival)).await?;
    let mut attached = attach(peer, context, settings, arrival, &auth, guest)?;
    let opened = async {
        let ready = Box::pin(attached.ready(peer)).await?;
        attached.record();
        let state = attached.welcome(peer, auth, answer, ready);
        let mut open = Box::new(Open::new(peer, state, &mut attached));
        open.begin(first)?;
        let result = Box::pin(open.serve()).await;
        open.begin_writing();
        result
    };
    let Err(close) = opened.await;
    attached.on_end(close);
    Err(close)
}

/// Asks for the session at the broker, for a guest who may have it.
fn attach<S: Socket>(
    peer: &mut Peer<S>,
    context: &Arc<Context>,
    settings: &Arc<Settings>,
    arrival: &mut Arrival,
    auth: &Auth,
    guest: Guest,
) -> Result<Attached, Close> {
    let Guest { client_id, rights, token, quota } = guest;
    let identity = rights.as_ref().map(|rights| rights.identity());
    let names = context.broker.names(identity, &client_id, token.as_ref());
    let (broker_id, credentials) = names.map_err(|lacking| {
        let message = format!("The broker is to be told the {lacking}, which your credential does not say.");
        peer.reply(Reply::refused(Refusal::new(wire::Code::NotAuthenticated, message), None));
        Close::AuthenticationFailed
    })?;
    if let Some(refusal) = context.shut_out(identity, &client_id) {
        peer.reply(Reply::refused(refusal, None));
        return Err(Close::AuthenticationFailed);
    }
    let visitor =
        Visitor::new(rand::rng().random(), arrival.client, &client_id, rights.clone(), arrival.vouching.take());
    let opening = Opening {
        client_id: broker_id,
        clean: auth.clean,
        session_expiry: auth.session_expiry,
        will: auth.will.clone(),
        subscriptions: auth.subscriptions.clone(),
        ack: auth.ack,
        max_inflight: u16::try_from(settings.session.max_inflight.get()).unwrap_or(u16::MAX),
        owner: Owner::Browser,
        is_named: auth.client_id.is_some(),
        rights,
        credentials: credentials.clone(),
    };
    let (link, place) = context.roster.open(&context.broker, opening, settings.delivery.clone(), visitor.clone());
    // What changed before it was in the roster was not told to it.
    if !Arc::ptr_eq(&context.settings.load(), settings) {
        visitor.summon(Summons::Judge);
    }
    visitor.judge_revocations(context);
    Ok(Attached {
        link,
        place: Some(place),
        context: context.clone(),
        settings: settings.clone(),
        visitor,
        credentials,
        quota: Some(quota),
        is_recorded: false,
        close: Close::Fault,
    })
}

/// What a client is called that does not say.
pub fn generated_client_id() -> String {
    format!("tidegate-{:016x}", rand::rng().random::<u64>())
}

/// Resolves when one that has said nothing has to go.
pub async fn let_go(newcomer: Option<&Newcomer>) {
    match newcomer {
        Some(newcomer) => newcomer.let_go().await,
        None => pending().await,
    }
}

/// A session's hold on its link: however the session ends, the link hears of it.
struct Attached {
    link: Link,
    place: Option<Place>,
    context: Arc<Context>,
    settings: Arc<Settings>,
    visitor: Arc<Visitor>,
    credentials: Option<Arc<Credentials>>,
    /// Until the session is open. Nobody else may hold it: by those who do, sessions are counted.
    quota: Option<Arc<Quota>>,
    /// It was recorded that the session has opened.
    is_recorded: bool,
    close: Close,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        self.visitor.leave();
        let handle = self.link.handle();
        handle.end(self.close);
        let context = self.context.clone();
        self.context.tasks.spawn(async move {
            select! {
                () = handle.ended() => {}
                () = context.closing.cancelled() => {
                    let until = context.drain.plan().left.min(Instant::now() + LINGER);
                    if timeout_at(until, handle.ended()).await.is_err() {
                        handle.abandon();
                        handle.ended().await;
                    }
                }
            }
            context.roster.leave(&place);
        });
    }
}

impl Attached {
    /// Has it recorded who has come.
    fn record(&mut self) {
        self.is_recorded = true;
        let rights = self.visitor.rights.load();
        let nobody;
        let identity = match rights.as_ref() {
            Some(rights) => rights.identity(),
            None => {
                nobody = Identity::anonymous(&[]);
                &nobody
            }
        };
        let (session, address, client_id) = (self.visitor.session(), self.visitor.address, &*self.visitor.client_id);
        self.context.audit.record(&Recorded::Connected { session: &session, identity, address, client_id });
    }

    /// The session ends so, and it is said.
    fn on_end(&mut self, close: Close) {
        self.close = close;
        let session = self.visitor.session();
        if self.is_recorded {
            let user = self.visitor.user();
            self.context.audit.record(&Recorded::Disconnected { session: &session, user: user.as_deref(), close });
        }
        info!(session, %close, "session ended");
    }

    /// Says what the session is, which is open from now on.
    #[expect(clippy::boxed_local, reason = "its place is free from here on, and not only when the session ends")]
    fn welcome<S: Socket>(
        &mut self,
        peer: &mut Peer<S>,
        auth: Box<Auth>,
        answer: Option<Option<MsgId>>,
        ready: Ready,
    ) -> State {
        let session_id = self.visitor.session();
        let rights = self.visitor.rights.load_full();
        let limits = limits(&self.settings, &ready, rights.as_deref());
        // Where users are told apart, the broker knows the client by another name than its own.
        let client_id = if rights.is_some() { self.visitor.client_id.to_string() } else { ready.client_id };
        let user = rights.as_ref().and_then(|rights| rights.identity().user.clone());
        debug!(session = session_id, client = client_id, user, "session opened");
        let expires_in = rights.as_ref().and_then(|rights| expiry(rights.identity())?.left(Instant::now()).into());
        if let Some(msgid) = &answer {
            peer.reply(auth_response(msgid.clone(), expires_in));
        }
        let asked = auth.subscriptions.iter().map(|subscription| &subscription.filter);
        let results = asked.clone().zip(ready.subscriptions.clone()).map(|(filter, result)| match result {
            Ok(qos) => TopicResult::granted(filter.as_str(), qos),
            Err(refusal) => TopicResult::refused(filter.as_str(), refusal),
        });
        peer.reply(Reply::Welcome {
            session_id,
            client_id,
            protocol: 1,
            session_present: ready.session_present,
            heartbeat: seconds(self.settings.session.heartbeat),
            expires_in,
            subscriptions: (!auth.subscriptions.is_empty()).then(|| results.collect()),
            limits,
            msgid: answer.flatten(),
        });
        let granted =
            asked.zip(&ready.subscriptions).filter(|(_, result)| result.is_ok()).map(|(filter, _)| filter.clone());
        let rates = Rates::new(&self.settings.session);
        State::new(
            limits,
            self.settings.wire.max_topic_levels.get(),
            rates,
            rights,
            self.quota.take().unwrap_or_default(),
            granted,
        )
    }

    /// Waits until the broker has accepted the session.
    async fn ready<S: Socket>(&self, peer: &mut Peer<S>) -> Result<Ready, Close> {
        let until = Instant::now() + self.context.broker_timeout;
        loop {
            // Whoever has to go before the session is open goes; all else is seen when it is.
            if let Some((close, refusal)) = self.visitor.take_end() {
                peer.refuse(refusal);
                return Err(close);
            }
            for event in self.link.downlink.take_events() {
                match event {
                    Event::Ready(ready) => return Ok(ready),
                    Event::Ended(close, refusal) => {
                        if let Some(refusal) = refusal {
                            peer.reply(Reply::refused(refusal, None));
                        }
                        return Err(close);
                    }
                    other => debug!(?other, "too early an event"),
                }
            }
            select! {
                () = self.link.downlink.to_session.raised() => {}
                () = peer.gone() => return Err(Close::Lost),
                () = sleep_until(until) => {
                    peer.reply(Reply::refused(Refusal::broker_unavailable(), None));
                    return Err(Close::NoBroker);
                }
                () = self.context.closing.cancelled() => return Err(Close::Drain),
            }
        }
    }
}

/// The session while it is open.
struct Open<'a, S: Socket> {
    peer: &'a mut Peer<S>,
    state: State,
    link: &'a mut Link,
    place: Option<&'a Place>,
    /// Where the session goes on when all that waits on this link is taken.
    next_link: Option<Box<Link>>,
    /// What was asked by an earlier link is not all answered.
    is_settling: bool,
    context: &'a Context,
    settings: &'a Settings,
    visitor: &'a Visitor,
    /// Who let it in.
    judged_by: Judge,
    /// What it shows to the broker.
    credentials: Option<Arc<Credentials>>,
    /// When its token ends.
    expiry: Option<Expiry>,
    /// A new token that is being judged; meanwhile the client is not read.
    renewing: Option<Box<Renewing>>,
    /// For the broker's side, as it has room.
    commands: Queue,
    /// What is being written.
    batch: Batch,
    /// How it is written.
    composer: Composer,
    /// What that remembers takes so much memory, as the link knows.
    kept: usize,
    /// When there may be more to write though nothing wakes the session.
    looks_at: Option<StdInstant>,
    last_life: Instant,
    missed: u32,
    next_ping: Instant,
    is_stalled: bool,
    /// Nothing is being written, and others may write frames.
    is_idle: bool,
    /// Bytes that the network had taken when this last wrote something itself.
    flushed: u64,
    dropped: u64,
    told_drops: Option<Instant>,
}

/// Deliveries whose writing has begun.
#[derive(Default)]
struct Batch {
    receipts: Vec<Receipt>,
    received: Vec<StdInstant>,
    progress: Option<(u64, Instant)>,
}

impl<'a, S: Socket> Open<'a, S> {
    fn new(peer: &'a mut Peer<S>, state: State, attached: &'a mut Attached) -> Open<'a, S> {
        let now = Instant::now();
        Open {
            peer,
            state,
            link: &mut attached.link,
            place: attached.place.as_ref(),
            next_link: None,
            is_settling: false,
            context: &attached.context,
            settings: &attached.settings,
            visitor: &attached.visitor,
            judged_by: attached.settings.judge.clone(),
            credentials: attached.credentials.clone(),
            expiry: attached.visitor.rights.load().as_ref().and_then(|rights| expiry(rights.identity())),
            renewing: None,
            commands: VecDeque::new(),
            batch: Batch::default(),
            composer: Composer::default(),
            kept: 0,
            looks_at: None,
            last_life: now,
            missed: 0,
            next_ping: now + attached.settings.session.heartbeat,
            is_stalled: false,
            is_idle: false,
            flushed: 0,
            dropped: 0,
            told_drops: None,
        }
    }

    /// With the frame that opened it, if that is to be served.
    fn begin(&mut self, first: Option<S::Text>) -> Result<(), Close> {
        self.link.downlink.set_direct(self.peer.socket.direct());
        first.map_or(Ok(()), |text| self.on_text(text.as_ref()))
    }

    async fn serve(&mut self) -> Result<Never, Close> {
        let timer = sleep(Duration::ZERO);
        // Of its own: all sessions waiting on one token would wait for its lock with every delivery.
        let closing = self.context.closing.child_token();
        let closing = closing.cancelled();
        tokio::pin!(timer, closing);
        loop {
            if let Some(summons) = self.visitor.take_summons() {
                self.on_summons(summons)?;
            }
            if !self.peer.writing.is_pending() {
                self.fill()?;
            }
            let wake = self.next_wake();
            if timer.is_elapsed() || wake < timer.deadline() {
                timer.as_mut().reset(wake);
            }
            self.change_links();
            if self.peer.writing.is_pending() {
                self.begin_writing();
            }
            let (is_writing, may_read) = (self.peer.writing.is_pending(), self.may_read());
            self.state.shrink();
            select! {
                // In this order, as most turns are deliveries; none of those before the turn can keep it waiting.
                biased;
                () = self.link.downlink.to_session.raised(), if !is_writing => {}
                () = timer.as_mut() => self.on_timer()?,
                () = closing.as_mut() => return Box::pin(self.drain()).await,
                handed = self.link.commands.hand_over(&mut self.commands), if self.hands_over() => {
                    if handed.is_err() {
                        // It said why, or it failed.
                        self.on_events(self.link.downlink.take_events())?;
                        return Err(Close::Fault);
                    }
                }
                turn = self.peer.turn(may_read) => match turn? {
                    Turn::Flushed { frames } => self.on_flushed(frames),
                    Turn::Read(None) => return Err(Close::Lost),
                    Turn::Read(Some(read)) => self.on_read(read?)?,
                },
                () = self.link.downlink.to_session.raised(), if is_writing => {
                    self.on_events(self.link.downlink.take_events())?;
                }
                judged = standing::judged(&mut self.renewing) => self.on_renewed(judged),
            }
        }
    }

    /// The gateway drains: what waits now is written and what was asked is answered, while the browser takes it and there is time.
    async fn drain(&mut self) -> Result<Never, Close> {
        let until = self.context.drain.plan().written;
        self.begin_writing();
        self.link.downlink.drain();
        // No more pings.
        self.next_ping = until;
        loop {
            if !self.peer.writing.is_pending() {
                self.fill()?;
            }
            if self.is_drained() {
                return Err(Close::Drain);
            }
            let wake = self.next_wake();
            select! {
                // The browser is not read any more, and a client that goes away meanwhile has not been lost.
                turn = self.peer.turn(false) => match turn.map_err(|_| Close::Drain)? {
                    Turn::Flushed { frames } => self.on_flushed(frames),
                    Turn::Read(_) => {}
                },
                handed = self.link.commands.hand_over(&mut self.commands), if self.hands_over() => {
                    if handed.is_err() {
                        self.on_events(self.link.downlink.take_events())?;
                        return Err(Close::Drain);
                    }
                }
                () = self.link.downlink.to_session.raised() => self.on_events(self.link.downlink.take_events())?,
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= until || self.watch_progress(now).is_err() || self.is_stalled {
                        return Err(Close::Drain);
                    }
                }
            }
        }
    }

    fn is_drained(&self) -> bool {
        !self.peer.writing.is_pending()
            && self.commands.is_empty()
            && !self.state.is_asking()
            && self.link.downlink.is_empty()
    }

    /// Takes all that waits for the browser and encodes it.
    fn fill(&mut self) -> Result<(), Close> {
        // The answer to several filters precedes what the first of them bring, unless that is more than may be held.
        let holds = self.state.is_subscribing() && !self.link.downlink.is_full();
        let now = StdInstant::now();
        let taken = self.link.downlink.take(if holds { None } else { Some(BATCH) }, now);
        self.is_idle = taken.is_idle;
        self.write_rest(taken.rest);
        self.on_events(taken.events)?;
        self.tell_drops(taken.dropped);
        self.composer.forget_gaps(taken.gaps);
        self.looks_at = taken.again;
        let mut write = |frame| self.peer.writing.push(frame);
        for delivery in &taken.deliveries {
            self.batch.receipts.extend(self.state.on_delivery(delivery));
            match self.composer.add(delivery, &taken.bound, &mut write) {
                Form::Full => {}
                Form::Patch(_, saved) => metrics::delivery_patched(saved),
                Form::Unchanged(saved) => {
                    metrics::delivery_unchanged(saved);
                    continue;
                }
            }
            metrics::message_down(&delivery.rendition.message);
            if !delivery.contract.waits() {
                self.batch.received.push(delivery.rendition.received);
            }
        }
        self.composer.finish(&mut write);
        if !taken.deliveries.is_empty() {
            self.on_composed(taken.bytes, now);
        }
        Ok(())
    }

    /// What was begun elsewhere goes before anything of the session's own.
    fn write_rest(&mut self, rest: Rest) {
        self.peer.writing.push_rest(rest.frames);
        self.batch.receipts.extend(rest.receipts);
    }

    /// Has the socket for itself.
    fn begin_writing(&mut self) {
        if std::mem::take(&mut self.is_idle) {
            let rest = self.link.downlink.begin_writing();
            self.write_rest(rest);
        }
    }

    fn hands_over(&self) -> bool {
        !self.is_settling
            && self.next_link.is_none()
            && self.link.commands.takes(&self.commands, self.state.is_changing_subscriptions(), self.state.mover())
    }

    /// Goes on over the next link once this one has nothing more to say.
    fn change_links(&mut self) {
        if let Some(link) = self.next_link.take_if(|_| self.link.downlink.is_empty()) {
            if let Some(place) = self.place {
                self.context.roster.moved(place, link.handle());
            }
            self.begin_writing();
            // The old one may outlive the session, and shall not hold its socket.
            self.link.downlink.set_direct(None);
            *self.link = *link;
            self.link.downlink.set_direct(self.peer.socket.direct());
            self.link.downlink.to_session.raise();
            self.link.downlink.set_stalled(self.is_stalled);
            self.is_settling = true;
        }
        // What waits here has gone over neither.
        let next = self.commands.front().map(|(_, command)| command.request());
        self.is_settling = self.is_settling && self.state.is_asking_before(next);
    }

    /// What was taken has become frames, or nothing, if it was no news.
    fn on_composed(&mut self, taken: usize, now: StdInstant) {
        let is_writing = self.peer.writing.is_pending();
        if self.peer.writing.bytes() > taken || !is_writing {
            self.link.downlink.encoded(self.peer.writing.bytes());
        }
        if !is_writing {
            // Nothing will be flushed: it is confirmed now, and there may be more.
            self.link.downlink.confirm(self.batch.receipts.drain(..));
            self.looks_at = Some(now);
        }
        let kept = self.composer.bytes();
        if kept.abs_diff(self.kept) > KEPT_STEP {
            self.kept = kept;
            self.link.downlink.keep(kept);
        }
    }

    /// The client is read no faster than the broker takes its requests and than itself takes their answers.
    fn may_read(&self) -> bool {
        self.commands.is_empty() && !self.peer.writing.is_full() && self.renewing.is_none()
    }

    fn on_flushed(&mut self, frames: bool) {
        let now = StdInstant::now();
        for received in self.batch.received.drain(..) {
            metrics::delivered(now - received);
        }
        if !self.batch.receipts.is_empty() {
            self.link.downlink.confirm(self.batch.receipts.drain(..));
        }
        self.batch.progress = None;
        self.flushed = self.peer.socket.written();
        self.set_stalled(false);
        if frames {
            self.last_life = Instant::now();
        }
    }

    fn on_read(&mut self, read: Inbound<S::Text>) -> Result<(), Close> {
        self.last_life = Instant::now();
        match read {
            Inbound::Text(text) => self.on_text(text.as_ref()),
            Inbound::Binary => Err(Close::WrongKind),
            Inbound::Ping | Inbound::Pong => self.state.on_life(StdInstant::now()),
            Inbound::Close => Err(Close::ByClient),
        }
    }

    fn on_text(&mut self, text: &str) -> Result<(), Close> {
        let effects = self.state.on_text(text, StdInstant::now());
        self.carry_out(effects)
    }

    fn on_events(&mut self, events: VecDeque<Event>) -> Result<(), Close> {
        for event in events {
            if let Event::Moved(link) = event {
                self.next_link = Some(link);
                continue;
            }
            let effects = self.state.on_event(event, StdInstant::now());
            self.carry_out(effects)?;
        }
        self.composer.forget(&self.state.take_renewed());
        Ok(())
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), Close> {
        for effect in effects {
            match effect {
                Effect::Reply(reply) => self.peer.reply(reply),
                Effect::Renew(credential, msgid) => self.on_renewal(credential, msgid),
                Effect::Ask(command) => {
                    if let Command::Publish(_, message) = &*command {
                        self.note_publish(message);
                    }
                    self.commands.push_back((StdInstant::now(), command));
                }
                Effect::Denied { request, topic, why } => self.note_denied(request, &topic, &why),
                Effect::Confirm(receipt) => self.link.downlink.confirm([receipt]),
                Effect::Published(qos, after) => metrics::publish_answered(qos, after),
                Effect::Close(close) => return Err(close),
            }
        }
        Ok(())
    }

    fn tell_drops(&mut self, dropped: u64) {
        self.dropped += dropped;
        if self.dropped == 0 {
            return;
        }
        let now = Instant::now();
        if self.told_drops.is_none_or(|told| now >= told + Duration::from_secs(1)) {
            let count = std::mem::take(&mut self.dropped);
            self.told_drops = Some(now);
            self.peer.reply(Reply::Error {
                code: wire::Code::Dropped,
                message: format!("{count} deliveries of QoS 0 were dropped because they were not read in time."),
                msgid: None,
                retryable: false,
                count: Some(count),
            });
        }
    }

    /// Also marks the moment from which the network has to take some of what waits to be written.
    fn next_wake(&mut self) -> Instant {
        let is_writing = self.peer.writing.is_pending();
        let looks_at = self.looks_at.filter(|_| !is_writing).map(Instant::from_std);
        let next = self.expiry.map_or(self.next_ping, |expiry| expiry.next().min(self.next_ping));
        if !is_writing && self.dropped == 0 {
            return looks_at.map_or(next, |at| at.min(next));
        }
        let now = Instant::now();
        if is_writing && self.batch.progress.is_none() {
            self.batch.progress = Some((self.peer.socket.written(), now));
        }
        let writing = self.batch.progress.map(|(_, since)| (since + STALL).max(now + STALL / 4));
        let drops = (self.dropped > 0).then(|| now + Duration::from_secs(1));
        writing.into_iter().chain(drops).chain(looks_at).fold(next, Instant::min)
    }

    fn on_timer(&mut self) -> Result<(), Close> {
        let now = Instant::now();
        self.watch_progress(now)?;
        if !self.peer.writing.is_pending() {
            self.tell_drops(0);
        }
        match self.expiry.as_mut().and_then(|expiry| expiry.due(now)) {
            Some(Due::Notice(seconds)) => self.peer.reply(Reply::Expiring { seconds }),
            Some(Due::End) => return Err(Close::TokenExpired),
            None => {}
        }
        if now < self.next_ping {
            return Ok(());
        }
        if self.peer.socket.written() != self.flushed {
            // What was written elsewhere is progress too.
            self.last_life = now;
        }
        // The silence of a client that is not read says nothing.
        let last_ping = self.next_ping - self.settings.session.heartbeat;
        let is_alive = self.last_life >= last_ping || !self.may_read();
        self.missed = if is_alive { 0 } else { self.missed + 1 };
        if self.missed >= MISSED_HEARTBEATS {
            return Err(Close::Heartbeat);
        }
        self.next_ping = now + self.settings.session.heartbeat;
        self.peer.writing.push_ping();
        Ok(())
    }

    /// Whether the network takes what is being written.
    fn watch_progress(&mut self, now: Instant) -> Result<(), Close> {
        let Some((written, since)) = &mut self.batch.progress else { return Ok(()) };
        let current = self.peer.socket.written();
        if current != *written {
            (*written, *since) = (current, now);
            self.last_life = now;
            self.set_stalled(false);
        } else if now >= *since + self.settings.session.write_timeout {
            return Err(Close::SlowConsumer);
        } else if now >= *since + STALL {
            if self.link.downlink.closes_when_stalled() {
                return Err(Close::SlowConsumer);
            }
            self.set_stalled(true);
        }
        Ok(())
    }

    fn set_stalled(&mut self, stalled: bool) {
        if self.is_stalled != stalled {
            self.is_stalled = stalled;
            self.link.downlink.set_stalled(stalled);
        }
    }
}

/// The socket and what waits for it.
pub struct Peer<S: Socket> {
    socket: S,
    /// What waits to be written.
    pub writing: Writing,
    /// What it said while it waited for a place, to be read before anything else.
    pub early: VecDeque<S::Text>,
}

impl<S: Socket> Peer<S> {
    /// Writes and, if `reading`, reads on.
    async fn turn(&mut self, reading: bool) -> Result<Turn<S::Text>, Close> {
        if reading && let Some(text) = self.early.pop_front() {
            return Ok(Turn::Read(Some(Ok(Inbound::Text(text)))));
        }
        self.socket_turn(reading).await
    }

    /// A turn of the socket alone.
    pub async fn socket_turn(&mut self, reading: bool) -> Result<Turn<S::Text>, Close> {
        poll_fn(|context| self.writing.poll_turn(&mut self.socket, reading, context)).await
    }

    /// The next text frame.
    pub async fn text(&mut self) -> Result<S::Text, Close> {
        loop {
            match self.turn(!self.writing.is_full()).await? {
                Turn::Flushed { .. } => {}
                Turn::Read(None) => return Err(Close::Lost),
                Turn::Read(Some(read)) => match read? {
                    Inbound::Text(text) => return Ok(text),
                    Inbound::Binary => return Err(Close::WrongKind),
                    Inbound::Ping | Inbound::Pong => {}
                    Inbound::Close => return Err(Close::ByClient),
                },
            }
        }
    }

    /// Resolves when writing finds that the connection is gone. Reading would take a frame that is not due yet.
    pub async fn gone(&mut self) {
        while self.turn(false).await.is_ok() {}
    }

    /// Queues a frame.
    pub fn reply(&mut self, reply: Reply) {
        reply.refusals().for_each(metrics::refused);
        self.writing.push(Outbound::Text(json::reply(&reply)));
    }

    /// Says what was turned down, if that is to be said.
    pub fn refuse(&mut self, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal {
            self.reply(Reply::refused(refusal, None));
        }
    }

    /// Says why there is no place.
    pub fn turn_away(&mut self, reason: Reason) -> Close {
        self.reply(Reply::refused(reason.refusal(), None));
        Close::OverLimit
    }

    /// Writes what waits, the `bye` of a drain, and the Close frame.
    async fn close(&mut self, close: Close, drain: &Drain) {
        if close == Close::Lost {
            return;
        }
        if close == Close::Drain {
            let reconnect_after = drain.absence().as_millis() as u64;
            self.reply(Reply::Bye { reason: "drain", reconnect_after });
        }
        if close == Close::Kicked {
            let reconnect_after = KICKED_FOR.as_millis() as u64;
            self.reply(Reply::Bye { reason: "kick", reconnect_after });
        }
        if close.is_told() {
            self.writing.push(Outbound::Close(close));
        } else {
            // After the client's Close frame nothing but its echo may be sent.
            self.writing = Writing::default();
        }
        // Also where nothing of ours waits: the answer to the client's Close frame does, below.
        let flushed = timeout(CLOSING, poll_fn(|context| self.writing.poll_flush(&mut self.socket, context))).await;
        if close == Close::Drain && matches!(flushed, Ok(Ok(()))) {
            let _ = timeout_at(drain.plan().left.min(Instant::now() + ECHO), self.answered()).await;
        }
    }

    /// Resolves when the client has answered our Close frame, or is gone. What else it sent is not read any more.
    async fn answered(&mut self) {
        while let Ok(Turn::Read(Some(Ok(read)))) = self.turn(true).await {
            if matches!(read, Inbound::Close) {
                return;
            }
        }
    }
}

fn limits(settings: &Settings, ready: &Ready, rights: Option<&Rights>) -> Limits {
    let abilities = &ready.abilities;
    Limits {
        max_frame: settings.wire.max_frame.get(),
        max_payload: settings.wire.max_payload.get().min(abilities.maximum_packet_size),
        max_subscriptions: max_subscriptions(settings, rights),
        max_inflight: settings.session.max_inflight.get().min(abilities.receive_maximum.into()),
        max_qos: abilities.maximum_qos.number(),
        retain: abilities.retain,
        shared: abilities.shared,
    }
}

/// The answer to an `auth`.
fn auth_response(msgid: Option<MsgId>, expires_in: Option<u64>) -> Reply {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Reply::AuthResponse { status: "success", timestamp: now.as_millis() as u64, expires_in, msgid }
}

fn seconds(duration: Duration) -> Number {
    match duration.subsec_nanos() {
        0 => duration.as_secs().into(),
        _ => Number::from_f64(duration.as_secs_f64()).unwrap_or_else(|| duration.as_secs().into()),
    }
}
