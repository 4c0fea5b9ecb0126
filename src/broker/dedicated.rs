//! A link with an MQTT client of its own: one session, one connection at a time, restored until the session ends.

mod delivering;
mod ending;
mod subscribing;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, SystemTime};

use rand::Rng;
use secrecy::ExposeSecret;
use smallvec::SmallVec;
use tokio::select;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use self::ending::{End, Stage};
use super::connection::{Connection, Lost, Turn};
use super::downlink::{Downlink, Handle};
use super::link::{Abilities, Command, Credentials, Event, Opening, Order, Owner, Ready};
use super::{Setup, Standing, orders, rules};
use crate::delivery::{Delivery, Subscriptions};
use crate::metrics::{self, LinkState};
use crate::mqtt::inflight::{Confirmation, Due, Incoming, Outcome, Outgoing, Request, RequestId};
use crate::mqtt::packet::{self, Connack, Connect, Packet};
use crate::mqtt::{Message, Qos, Reason, TopicFilter};
use crate::wire::{Close, Refusal, Subscription};

/// A link that is cut so soon after each of two reconnects, while the broker was there for others, was taken over by another connection
/// of the same client.
const TAKEOVER_WINDOW: Duration = Duration::from_secs(5);
const TAKEOVER_LOSSES: u32 = 2;
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(15);
/// The same for the embedded broker, to which the way is short.
const LONGEST_BACK_OFF_INSIDE: Duration = Duration::from_secs(2);
/// How long an ended session's last requests may take.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// The same, where the session has waited for them already.
const LAST_REQUESTS_OF_DRAINED: Duration = Duration::from_secs(1);
/// The same, where another connection of the client waits.
const LAST_REQUESTS_OF_PREDECESSOR: Duration = Duration::from_secs(1);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Commands are taken while less than this waits to be written to the broker.
const MAX_OUTBOUND: usize = 64 * 1024;

/// Serves one session until it has ended and the broker knows. Not an `async fn`, which would hold what it is given twice.
pub(super) fn run(
    setup: Arc<Setup>,
    opening: Opening,
    downlink: Arc<Downlink>,
    commands: orders::Receiver,
    predecessor: Option<Handle>,
) -> impl Future<Output = ()> + Send {
    live(Box::new(Dedicated::new(setup, opening, downlink, commands)), predecessor)
}

async fn live(mut dedicated: Box<Dedicated>, predecessor: Option<Handle>) {
    if let Some(predecessor) = predecessor {
        predecessor.take_over();
        let _ = timeout(LAST_REQUESTS, predecessor.ended()).await;
        drop(predecessor);
    }
    while let Some((connection, connack)) = dedicated.offline().await {
        dedicated.is_now(LinkState::Up);
        let lost = dedicated.online(connection, connack).await;
        dedicated.is_now(LinkState::Down);
        match lost {
            Some(lost) => dedicated.on_lost(&lost),
            None => break,
        }
    }
    if dedicated.end.as_ref().is_some_and(|end| end.close == Close::Revoked) && dedicated.is_connected_once() {
        // Rare, and larger than all of the above: on the heap only while it lasts.
        Box::pin(dedicated.forget()).await;
    }
}

/// Also by a panic: nobody waits for a link that is not there any more, and no gauge keeps it.
impl Drop for Dedicated {
    fn drop(&mut self) {
        metrics::link_changed(Some(self.state), None);
        self.count_subscriptions(self.subscriptions.len(), 0);
        if std::thread::panicking() {
            self.downlink.tell(Event::Ended(Close::Fault, None));
        }
        self.downlink.let_go();
    }
}

struct Dedicated {
    setup: Arc<Setup>,
    opening: Opening,
    downlink: Arc<Downlink>,
    commands: orders::Receiver,
    client_id: String,
    outgoing: Outgoing,
    incoming: Incoming,
    subscriptions: Subscriptions,
    origins: HashMap<RequestId, Origin>,
    next_request: RequestId,
    /// Of all requests so far the latest.
    last_deadline: std::time::Instant,
    /// What became of the opening's subscriptions, until all is known.
    opened: Vec<Option<Result<Qos, Refusal>>>,
    ready: Option<Ready>,
    is_ready: bool,
    /// Subscriptions that a broker without our session has not given back yet.
    restoring: usize,
    /// Connections in a row that were cut right after they had been restored.
    quick_losses: u32,
    /// How often the broker had come and gone when they began.
    turns: u64,
    /// Connections that were not to be had, or did not hold, since one held.
    attempts: u32,
    /// The session was told that its link is down.
    is_told_down: bool,
    /// The broker has lost the session since the link was last told to be up.
    is_session_lost: bool,
    /// The session has no more commands.
    is_hung_up: bool,
    end: Option<End>,
    /// The session lost the right to publish its will.
    is_will_void: bool,
    is_abandoned: bool,
    /// As the gauge knows it.
    state: LinkState,
}

/// Who made a request of ours.
enum Origin {
    /// And who is answered, where that is not the link's own session.
    Publish(RequestId, Option<Arc<Downlink>>),
    Subscribe(RequestId, Box<Subscription>),
    Unsubscribe(RequestId, TopicFilter),
    Opening(usize, Box<Subscription>),
    Restore(Box<Subscription>),
    /// A subscribe that the session lost its right to while it was under way, and why.
    Revoked(RequestId, TopicFilter, Refusal),
    /// Nobody waits for the answer.
    Own,
}

impl Origin {
    /// The filter that the request is about, if somebody waits for its answer.
    fn filter(&self) -> Option<&TopicFilter> {
        match self {
            Origin::Subscribe(_, subscription) | Origin::Opening(_, subscription) | Origin::Restore(subscription) => {
                Some(&subscription.filter)
            }
            Origin::Unsubscribe(_, filter) => Some(filter),
            Origin::Publish(..) | Origin::Revoked(..) | Origin::Own => None,
        }
    }
}

/// What one read brought.
type Deliveries = SmallVec<[Delivery; 1]>;

/// What a link that is up has to do.
enum Next {
    /// See what the session has changed.
    Look,
    /// See what time it is.
    Timer,
    /// Carry that out; nothing once there are no more.
    Order(Option<Order>),
    /// See what follows from what the connection did.
    Turned(Turn),
}

/// When something happens by itself on a connection.
struct Clock {
    keep_alive: Duration,
    last_write: Instant,
    pinged: Option<Instant>,
    /// PINGREQs that are unanswered, and the fence that each stands for.
    pings: VecDeque<Option<RequestId>>,
    stuck_since: Option<Instant>,
}

impl Dedicated {
    fn new(setup: Arc<Setup>, opening: Opening, downlink: Arc<Downlink>, commands: orders::Receiver) -> Dedicated {
        metrics::link_changed(None, Some(LinkState::Down));
        let opened = vec![None; opening.subscriptions.len()];
        Dedicated {
            client_id: if setup.is_embedded() {
                rules::client_id(&opening.client_id)
            } else {
                opening.client_id.clone()
            },
            setup,
            opening,
            downlink,
            commands,
            outgoing: Outgoing::new(rand::rng().random()),
            incoming: Incoming::default(),
            subscriptions: Subscriptions::default(),
            origins: HashMap::new(),
            next_request: 0,
            last_deadline: std::time::Instant::now(),
            opened,
            ready: None,
            is_ready: false,
            restoring: 0,
            quick_losses: 0,
            turns: 0,
            attempts: 0,
            is_told_down: false,
            is_session_lost: false,
            is_hung_up: false,
            end: None,
            is_will_void: false,
            is_abandoned: false,
            state: LinkState::Down,
        }
    }

    fn is_now(&mut self, state: LinkState) {
        metrics::link_changed(Some(self.state), Some(state));
        self.state = state;
    }

    /// Without a connection: tries for one, and serves what can be served meanwhile. Nothing means that the session is over.
    async fn offline(&mut self) -> Option<(Connection, Connack)> {
        loop {
            if self.is_done_offline(false) {
                return None;
            }
            let wait = self.back_off();
            let begins = Instant::now() + wait;
            let is_suspicious = self.opening.owner == Owner::Browser && self.quick_losses >= TAKEOVER_LOSSES;
            let suspicion = is_suspicious.then_some(self.turns);
            // On the heap, as it is gone while the link is up.
            let mut attempt = Box::pin(attempt(self.setup.clone(), self.connecting(), wait, suspicion));
            let result = loop {
                let deadline = self.offline_deadline();
                select! {
                    result = &mut attempt => break result,
                    order = self.commands.recv(), if self.hears_commands() => self.on_order(order, None),
                    () = self.downlink.to_link.raised() => self.on_downlink(false),
                    () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => self.on_time(),
                }
                if self.is_done_offline(Instant::now() >= begins) {
                    return None;
                }
            };
            if suspicion.is_some() {
                self.quick_losses = 0;
            }
            match result {
                Ok(connection) => return Some(connection),
                Err(lost) if lost.is_takeover() => self.on_lost(&lost),
                Err(lost) if lost.is_final() => {
                    warn!(%lost, "the broker does not take the session");
                    let refusal =
                        Refusal::new(crate::wire::Code::BrokerRejected, format!("Not taken by the broker: {lost}."));
                    self.downlink.tell(Event::Ended(Close::NoBroker, Some(refusal)));
                    return None;
                }
                Err(lost) => {
                    debug!(%lost, "no connection to the broker");
                    self.attempts = self.attempts.saturating_add(1);
                }
            }
        }
    }

    fn back_off(&self) -> Duration {
        let longest = if self.setup.is_embedded() { LONGEST_BACK_OFF_INSIDE } else { LONGEST_BACK_OFF };
        back_off(self.attempts, longest, rand::rng().random())
    }

    fn connecting(&self) -> Connecting {
        let grace = self.setup.config.grace.as_secs() as u32;
        Connecting {
            client_id: self.client_id.clone(),
            clean_start: self.opening.clean && !self.is_connected_once(),
            session_expiry: if self.opening.clean { grace } else { self.opening.session_expiry.max(grace) },
            // The embedded broker lives and dies with this process, so a will of its own is never needed.
            will: self.opening.will.clone().filter(|_| !self.setup.is_embedded() && !self.is_will_void).map(
                |mut will| {
                    will.delay = will.delay.max(grace);
                    will
                },
            ),
            credentials: self.opening.credentials.clone(),
        }
    }

    fn is_connected_once(&self) -> bool {
        self.ready.is_some() || self.is_ready
    }

    fn offline_deadline(&self) -> Option<Instant> {
        let request = self.outgoing.next_deadline().map(Instant::from_std);
        request.into_iter().chain(self.end.as_ref().map(|end| end.until)).min()
    }

    /// With a connection, until it is lost, or, as nothing, until the session is over and the broker knows.
    async fn online(&mut self, mut connection: Connection, connack: Connack) -> Option<Lost> {
        let connected = Instant::now();
        let mut clock = Clock {
            keep_alive: connack
                .server_keep_alive
                .map_or(self.setup.config.keep_alive, |seconds| Duration::from_secs(seconds.into())),
            last_write: connected,
            pinged: None,
            pings: VecDeque::new(),
            stuck_since: None,
        };
        let is_reconnect = self.is_connected_once();
        let turns = self.setup.reach.turns();
        self.on_connected(connack);
        if self.setup.is_embedded() {
            // rumqttd holds a PUBREL of a resumed session back until it has something else to say.
            packet::write_pingreq(&mut connection.outbound);
            clock.pings.push_back(None);
        }
        let lost = self.serve(&mut connection, &mut clock).await.err();
        for fence in clock.pings.drain(..).flatten() {
            self.downlink.tell(Event::Answered(fence, Ok(())));
        }
        if lost.is_none() || self.setup.is_embedded() {
            // Closing at once, with packets unread, would reset the connection under the goodbye; and for rumqttd the identifier is
            // free only when it has seen the end.
            let patience = if self.is_abandoned { GOODBYE / 5 } else { GOODBYE };
            let _ = timeout(patience, connection.finish()).await;
        }
        self.outgoing.on_link_down();
        self.incoming.on_link_down();
        self.restoring = 0;
        let quick = is_reconnect && connected.elapsed() < TAKEOVER_WINDOW;
        self.attempts = if quick { self.attempts.saturating_add(1) } else { 0 };
        let is_cut = matches!(lost, Some(Lost::Closed | Lost::Io(_)));
        if self.quick_losses == 0 {
            self.turns = turns;
        }
        self.quick_losses = if quick && is_cut { self.quick_losses + 1 } else { 0 };
        lost
    }

    async fn serve(&mut self, connection: &mut Connection, clock: &mut Clock) -> Result<(), Lost> {
        let timer = sleep(Duration::ZERO);
        tokio::pin!(timer);
        // What the broker sent right behind its CONNACK has been read already.
        self.on_read(connection, clock)?;
        loop {
            self.write_due(connection);
            if self.is_abandoned {
                // A broker that was not told keeps the will, and publishes it.
                let keeps_will = self.end.as_ref().is_none_or(|end| self.fires_will(end) && self.is_ready);
                return if keeps_will { Ok(()) } else { self.leave(connection).await };
            }
            if self.is_leaving(connection) {
                return self.leave(connection).await;
            }
            let may_read = self.end.is_some() || self.downlink.may_read(connection.buffered());
            if !may_read {
                // A connection that is not read is not dead, and its answers to pings wait with all else; the broker wants to be
                // pinged all the same.
                clock.pinged = None;
            }
            self.set_timer(timer.as_mut(), connection, clock);
            if self.outgoing.is_empty() {
                // Most links rest most of the time: they keep no tables for it.
                self.outgoing.shrink();
                self.origins.shrink_to_fit();
            }
            match self.next(timer.as_mut(), connection, clock, may_read).await? {
                Next::Look => self.on_downlink(true),
                Next::Timer => self.on_timer(connection, clock)?,
                Next::Order(order) => self.on_order(order, Some((connection, clock))),
                Next::Turned(turn) => {
                    clock.stuck_since = None;
                    if turn == Turn::Wrote {
                        clock.last_write = Instant::now();
                    }
                }
            }
        }
    }

    /// Waits until something is to be done. Most of what comes is written to the browser as it comes and leaves nothing to do: that
    /// happens in here.
    async fn next(
        &mut self,
        mut timer: Pin<&mut Sleep>,
        connection: &mut Connection,
        clock: &mut Clock,
        may_read: bool,
    ) -> Result<Next, Lost> {
        poll_fn(|context| {
            // Commands can't keep the connection waiting: what they have to say must be written before more are taken.
            if self.downlink.to_link.poll_raised(context).is_ready() {
                return Poll::Ready(Ok(Next::Look));
            }
            if timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(Next::Timer));
            }
            if self.takes_commands(connection)
                && let Poll::Ready(order) = self.commands.poll_recv(context)
            {
                return Poll::Ready(Ok(Next::Order(order)));
            }
            loop {
                let turn = ready!(connection.poll_turn(context, may_read))?;
                if turn == Turn::Wrote || !self.on_read(connection, clock)? || !connection.outbound.is_empty() {
                    return Poll::Ready(Ok(Next::Turned(turn)));
                }
            }
        })
        .await
    }

    /// What was asked before the end is heard after it too.
    fn hears_commands(&self) -> bool {
        !self.is_hung_up && self.end.as_ref().is_none_or(|end| end.stage == Stage::Requests)
    }

    fn takes_commands(&self, connection: &Connection) -> bool {
        self.hears_commands()
            && connection.outbound.len() < MAX_OUTBOUND
            && self.outgoing.waiting() == 0
            && self.outgoing.waiting_subscriptions() == 0
    }

    fn on_connected(&mut self, connack: Connack) {
        if self.setup.reach.standing() != Standing::Up {
            self.setup.reach.ask();
        }
        if let Some(id) = connack.assigned_client_id {
            self.opening.client_id.clone_from(&id);
            self.client_id = id;
        }
        // rumqttd forgets what was in flight and the identifiers of subscriptions: its session counts as lost with the link.
        let session_present = connack.session_present && !(self.setup.is_embedded() && self.is_connected_once());
        let mut abilities = Abilities {
            receive_maximum: connack.receive_maximum,
            maximum_qos: connack.maximum_qos,
            maximum_packet_size: connack.maximum_packet_size,
            retain: connack.retain_available,
            shared: connack.shared_available,
            wildcards: connack.wildcards_available,
            subscription_ids: connack.subscription_ids_available,
        };
        if self.setup.is_embedded() {
            abilities = rules::correct(abilities);
        }
        self.incoming.on_link_up(session_present);
        let window = connack.receive_maximum.min(self.opening.max_inflight);
        let ended = self.outgoing.on_link_up(session_present, window);
        self.on_outcomes(ended);
        if !session_present && self.is_connected_once() {
            self.downlink.void_receipts();
            if self.is_ready {
                self.downlink.tell(Event::SessionLost);
            }
        }
        match &mut self.ready {
            Some(ready) => {
                ready.abilities = abilities;
                metrics::broker_reconnected();
                let refused = self.outgoing.refuse(|request| match request {
                    Request::Publish(message) => abilities.refuse_message(message),
                    Request::Subscribe { filter, .. } => abilities.refuse_filter(filter),
                    Request::Unsubscribe(filter) => abilities.refuse_size(packet::unsubscribe_size(filter.as_str())),
                });
                self.on_outcomes(refused);
                self.is_session_lost |= !session_present;
                // Also where the broker has the session: one that was killed may have it as it was before they were made.
                self.restore();
                self.restoring = self.origins.values().filter(|origin| matches!(origin, Origin::Restore(_))).count();
                if self.is_ready && self.restoring == 0 {
                    self.tell_up();
                }
            }
            None => {
                if session_present {
                    self.subscriptions.resume(self.opening.ack);
                }
                self.ready = Some(Ready {
                    client_id: self.opening.client_id.clone(),
                    session_present,
                    subscriptions: Vec::new(),
                    abilities,
                });
                if self.end.is_none() {
                    self.subscribe_opening(session_present);
                    self.tell_if_ready();
                }
            }
        }
        self.hasten_end();
    }

    fn tell_up(&mut self) {
        self.downlink.tell(Event::Up { session_present: !self.is_session_lost });
        self.is_told_down = false;
        self.is_session_lost = false;
    }

    fn tell_if_ready(&mut self) {
        if self.is_ready || !self.opened.iter().all(Option::is_some) {
            return;
        }
        let Some(ready) = &mut self.ready else { return };
        ready.subscriptions = self.opened.drain(..).flatten().collect();
        ready.session_present &= !std::mem::take(&mut self.is_session_lost);
        self.is_ready = true;
        self.downlink.tell(Event::Ready(ready.clone()));
    }

    /// Something of our own, from now on.
    fn ask(&mut self, request: Request, origin: Origin) {
        self.ask_since(std::time::Instant::now(), request, origin);
    }

    /// The time of a request runs since it was made, not since its turn has come; but no request goes before an earlier one.
    fn ask_since(&mut self, made: std::time::Instant, request: Request, origin: Origin) {
        let id = self.next_request;
        self.next_request += 1;
        self.origins.insert(id, origin);
        self.last_deadline = self.last_deadline.max(made + self.setup.config.request_timeout);
        self.outgoing.make(id, request, self.last_deadline);
    }

    fn on_order(&mut self, order: Option<Order>, online: Option<(&mut Connection, &mut Clock)>) {
        let Some(Order { made, command, from }) = order else {
            self.is_hung_up = true;
            self.on_downlink(online.is_some());
            if self.end.is_none() {
                self.begin_end(Close::Fault, online.is_some());
            }
            return;
        };
        let (connection, clock) = online.unzip();
        match *command {
            Command::Publish(id, message) => self.on_publish_command((id, made, from), message, connection),
            Command::Subscribe(id, mut subscription) => {
                // It is judged by the rights that the session had when it asked, or newer ones, whichever was heard of first.
                self.take_up_renewal();
                match self.judge_wait(connection.as_deref()).and_then(|()| self.judge_filter(&mut subscription)) {
                    Ok(()) => self.ask_subscribe(made, Origin::Subscribe(id, Box::new(subscription))),
                    Err(refusal) => self.downlink.tell(Event::Subscribed(id, Err(refusal))),
                }
            }
            Command::Unsubscribe(id, filter) => match self.judge_wait(connection.as_deref()) {
                Ok(()) => self.on_unsubscribe_command((id, made), filter),
                Err(refusal) => self.downlink.tell(Event::Answered(id, Err(refusal))),
            },
            Command::Fence(id) => match connection.zip(clock) {
                Some((connection, clock)) => {
                    packet::write_pingreq(&mut connection.outbound);
                    clock.pings.push_back(Some(id));
                    clock.pinged.get_or_insert_with(Instant::now);
                }
                None => self.downlink.tell(Event::Answered(id, Ok(()))),
            },
        }
    }

    fn on_publish_command(
        &mut self,
        (id, made, from): (RequestId, std::time::Instant, Option<Arc<Downlink>>),
        message: Message,
        connection: Option<&mut Connection>,
    ) {
        let refusal = match (self.judge(&message), &connection) {
            (Err(refusal), _) => refusal,
            (Ok(()), None)
                if message.qos == Qos::AtMostOnce || self.outgoing.waiting() >= self.setup.config.max_waiting.get() =>
            {
                Refusal::broker_unavailable()
            }
            (Ok(()), Some(_)) | (Ok(()), None) => {
                metrics::message_up(&message);
                return match connection {
                    Some(connection) if message.qos == Qos::AtMostOnce => {
                        packet::write_publish(&mut connection.outbound, &message, None, false);
                        self.asker(&from).tell(Event::Answered(id, Ok(())));
                    }
                    _ => self.ask_since(made, Request::Publish(message), Origin::Publish(id, from)),
                };
            }
        };
        self.asker(&from).tell(Event::Answered(id, Err(refusal)));
    }

    fn asker<'a>(&'a self, from: &'a Option<Arc<Downlink>>) -> &'a Downlink {
        from.as_ref().unwrap_or(&self.downlink)
    }

    /// What the broker said that it does not take must not be sent: it would end the connection.
    fn judge(&self, message: &Message) -> Result<(), Refusal> {
        if self.setup.is_embedded() {
            rules::judge_topic(&message.topic)?;
        }
        let reason = self.ready.as_ref().and_then(|ready| ready.abilities.refuse_message(message));
        reason.map_or(Ok(()), |reason| Err(Refusal::from_reason(reason)))
    }

    /// What the session may do now, where that has changed.
    fn take_up_renewal(&mut self) {
        if let Some(renewal) = self.downlink.take_renewal() {
            self.opening.credentials = renewal.credentials;
            self.judge_anew(renewal.rights);
            self.downlink.judged();
        }
    }

    fn on_downlink(&mut self, is_online: bool) {
        self.is_abandoned = self.downlink.is_abandoned();
        self.take_up_renewal();
        for receipt in self.downlink.take_confirmations() {
            self.incoming.confirm(receipt);
        }
        if self.downlink.is_taken_over() && self.end.as_ref().is_none_or(|end| end.close != Close::TakenOver) {
            self.downlink.tell(Event::Ended(Close::TakenOver, None));
            self.is_hung_up = true;
            self.begin_end(Close::TakenOver, is_online);
        }
        if let Some(close) = self.downlink.ended_by()
            && self.end.is_none()
        {
            // The gateway keeps the other end of its own links, and ends them when nobody is left to ask anything.
            self.is_hung_up |= self.opening.owner == Owner::Gateway;
            self.begin_end(close, is_online);
        }
    }

    fn write_due(&mut self, connection: &mut Connection) {
        let with_ids = self.ready.as_ref().is_none_or(|ready| ready.abilities.subscription_ids);
        while let Some(confirmation) = self.incoming.due() {
            match confirmation {
                Confirmation::Puback(id) => packet::write_puback(&mut connection.outbound, id),
                Confirmation::Pubrec(id) => packet::write_pubrec(&mut connection.outbound, id),
            }
        }
        while let Some(due) = self.outgoing.due() {
            let out = &mut connection.outbound;
            match due {
                Due::Pubrel(id) => packet::write_pubrel(out, id),
                Due::Request(id, Request::Publish(message), dup) => packet::write_publish(out, message, Some(id), dup),
                Due::Request(id, Request::Subscribe { filter, options, subscription_id }, _) => {
                    let subscription_id = with_ids.then_some(*subscription_id);
                    packet::write_subscribe(out, id, subscription_id, filter.as_str(), *options);
                }
                Due::Request(id, Request::Unsubscribe(filter), _) => {
                    packet::write_unsubscribe(out, id, filter.as_str())
                }
            }
        }
    }

    /// Says whether all that came is done with: it was qos 0 and was written to the browser.
    fn on_read(&mut self, connection: &mut Connection, clock: &mut Clock) -> Result<bool, Lost> {
        let mut deliveries = SmallVec::new();
        let result = self.on_packets(connection, clock, &mut deliveries);
        // Also where the connection ends: what it brought is known, and would not be taken for new on the next.
        let is_written = self.offer(&mut deliveries);
        result.map(|is_done| is_done && is_written)
    }

    fn on_packets(
        &mut self,
        connection: &mut Connection,
        clock: &mut Clock,
        deliveries: &mut Deliveries,
    ) -> Result<bool, Lost> {
        let mut is_done = true;
        let received = std::time::Instant::now();
        let timestamp = unix_millis();
        while let Some(packet) = connection.next_packet()? {
            is_done &= matches!(&packet, Packet::Publish(publish) if publish.id.is_none());
            match packet {
                Packet::Publish(publish) => {
                    let moment = (timestamp, received);
                    self.on_publish(publish, moment, deliveries);
                }
                Packet::Puback(id, reason) => {
                    let outcome = self.outgoing.on_puback(id, reason);
                    self.on_outcomes(outcome);
                }
                Packet::Pubrec(id, reason) => match self.outgoing.on_pubrec(id, reason) {
                    Ok(()) => packet::write_pubrel(&mut connection.outbound, id),
                    // The broker must hear of an identifier that nobody here knows, or it would ask for ever.
                    Err(None) if reason.is_success() => packet::write_pubrel(&mut connection.outbound, id),
                    Err(outcome) => self.on_outcomes(outcome),
                },
                Packet::Pubrel(id, _) => {
                    let reason = self.incoming.on_pubrel(id);
                    packet::write_pubcomp(&mut connection.outbound, id, reason);
                }
                Packet::Pubcomp(id, _) => {
                    let outcome = self.outgoing.on_pubcomp(id);
                    self.on_outcomes(outcome);
                }
                Packet::Suback(id, reasons) | Packet::Unsuback(id, reasons) => {
                    // What came before the answer belongs before it.
                    self.offer(deliveries);
                    let reason = reasons.first().copied().ok_or(Lost::Malformed(packet::Malformed::Truncated))?;
                    self.on_subscription_answer(id, reason);
                }
                Packet::Pingresp => {
                    clock.pinged = None;
                    if let Some(fence) = clock.pings.pop_front().flatten() {
                        self.offer(deliveries);
                        self.downlink.tell(Event::Answered(fence, Ok(())));
                    }
                }
                Packet::Disconnect(reason) => return Err(Lost::Disconnected(reason)),
                Packet::Connack(_) => return Err(Lost::Malformed(packet::Malformed::PacketType(0x20))),
            }
        }
        Ok(is_done)
    }

    /// Says whether none of them waits.
    fn offer(&self, deliveries: &mut Deliveries) -> bool {
        deliveries.is_empty() || self.downlink.offer(std::mem::take(deliveries))
    }

    fn on_outcomes(&mut self, outcomes: impl IntoIterator<Item = (RequestId, Outcome)>) {
        for (id, outcome) in outcomes {
            let result = Refusal::from_outcome(outcome).map_or(Ok(()), Err);
            // Whose time is up may still be answered: its origin stays.
            let overdue = self.outgoing.is_in_flight(id);
            let Some(origin) = self.origins.get(&id) else { continue };
            match (origin, result) {
                (Origin::Publish(request, from), Err(refusal)) if overdue => {
                    self.asker(from).tell(Event::Overdue(*request, refusal))
                }
                (Origin::Publish(request, from), result) => {
                    self.asker(from).tell(Event::Answered(*request, result));
                }
                (Origin::Unsubscribe(request, _), result) => {
                    self.downlink.tell(Event::Answered(*request, result));
                }
                (Origin::Subscribe(request, _), Err(refusal)) => {
                    self.downlink.tell(Event::Subscribed(*request, Err(refusal)))
                }
                (Origin::Revoked(request, _, refusal), _) => {
                    self.downlink.tell(Event::Subscribed(*request, Err(refusal.clone())))
                }
                (Origin::Opening(index, _), Err(refusal)) => {
                    let index = *index;
                    if let Some(opened) = self.opened.get_mut(index) {
                        *opened = Some(Err(refusal));
                    }
                    self.tell_if_ready();
                }
                (Origin::Restore(subscription), Err(refusal)) if !overdue => {
                    let filter = subscription.filter.clone();
                    self.lose_subscription(filter, refusal);
                    self.on_restored();
                }
                (Origin::Subscribe(..) | Origin::Opening(..), Ok(())) | (Origin::Restore(_) | Origin::Own, _) => {}
            }
            if !overdue {
                self.origins.remove(&id);
            }
        }
    }

    fn on_time(&mut self) {
        let ended = self.outgoing.on_time(std::time::Instant::now());
        self.on_outcomes(ended);
    }

    fn set_timer(&self, timer: Pin<&mut Sleep>, connection: &Connection, clock: &mut Clock) {
        let patience = self.setup.config.connect_timeout;
        if connection.outbound.is_empty() {
            clock.stuck_since = None;
        } else if clock.stuck_since.is_none() {
            clock.stuck_since = Some(Instant::now());
        }
        let next = [
            (!clock.keep_alive.is_zero() && clock.pinged.is_none()).then(|| clock.last_write + clock.keep_alive),
            clock.pinged.map(|at| at + patience),
            clock.stuck_since.map(|at| at + patience),
            self.offline_deadline(),
        ];
        let next = next.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        // A timer that fires early only looks around: it is moved when something comes sooner, not each time something goes later.
        if timer.is_elapsed() || next < timer.deadline() {
            timer.reset(next);
        }
    }

    fn on_timer(&mut self, connection: &mut Connection, clock: &mut Clock) -> Result<(), Lost> {
        let now = Instant::now();
        let patience = self.setup.config.connect_timeout;
        let overdue = |since: Option<Instant>| since.is_some_and(|since| now >= since + patience);
        if overdue(clock.pinged) || overdue(clock.stuck_since) {
            return Err(Lost::TimedOut);
        }
        if !clock.keep_alive.is_zero() && clock.pinged.is_none() && now >= clock.last_write + clock.keep_alive {
            packet::write_pingreq(&mut connection.outbound);
            clock.pings.push_back(None);
            (clock.pinged, clock.last_write) = (Some(now), now);
        }
        self.on_time();
        Ok(())
    }

    fn on_lost(&mut self, lost: &Lost) {
        info!(%lost, "broker link lost");
        if lost.is_takeover() && self.opening.owner == Owner::Browser {
            self.downlink.tell(Event::Ended(Close::TakenOver, None));
            // The other connection has the session now: there is nothing to say goodbye to.
            self.end = Some(End { close: Close::TakenOver, stage: Stage::Requests, until: Instant::now() });
            return;
        }
        if let Some(end) = &mut self.end {
            end.until = end.until.max(Instant::now() + self.setup.config.grace);
        } else if self.is_ready && !self.is_told_down {
            self.is_told_down = true;
            self.downlink.tell(Event::Down);
        }
    }
}

/// What a CONNECT says that differs between sessions.
struct Connecting {
    client_id: String,
    clean_start: bool,
    session_expiry: u32,
    will: Option<crate::wire::Will>,
    credentials: Option<Arc<Credentials>>,
}

/// Connects after a wait. A takeover is suspected since that many turns of the broker: it is one if the broker was there for others all
/// the time.
async fn attempt(
    setup: Arc<Setup>,
    connecting: Connecting,
    wait: Duration,
    suspicion: Option<u64>,
) -> Result<(Connection, Connack), Lost> {
    if let Some(turns) = suspicion
        && setup.reach.is_there_since(turns).await
    {
        return Err(Lost::Disconnected(Reason::SESSION_TAKEN_OVER));
    }
    sleep(wait).await;
    let connect = Connect {
        client_id: &connecting.client_id,
        clean_start: connecting.clean_start,
        session_expiry: connecting.session_expiry,
        will: connecting.will.as_ref().map(|will| packet::Will { message: &will.message, delay: will.delay }),
        ..setup.connect()
    };
    let connect = match &connecting.credentials {
        None => connect,
        Some(own) => Connect {
            username: own.username.as_deref(),
            password: own.password.as_ref().map(ExposeSecret::expose_secret),
            ..connect
        },
    };
    timeout(setup.config.connect_timeout, Connection::open(&setup.target(), &connect))
        .await
        .unwrap_or(Err(Lost::TimedOut))
}

/// Nothing before the first attempt, then that part of a bound that doubles.
pub(super) fn back_off(attempts: u32, longest: Duration, part: f64) -> Duration {
    match attempts {
        0 => Duration::ZERO,
        _ => longest.min(FIRST_BACK_OFF * 2u32.saturating_pow(attempts - 1)).mul_f64(part),
    }
}

fn unix_millis() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::transport::Target;
    use crate::broker::{Config, Place, Reach};

    #[tokio::test]
    async fn a_link_that_panics_ends_its_session_and_lets_go() {
        let place = Place::Elsewhere(Target::plain("127.0.0.1".to_owned(), 1));
        let setup = Arc::new(Setup { config: Config::default(), place, reach: Reach::default() });
        let downlink = Downlink::new(Default::default(), Arc::default(), Default::default());
        let (_commands, receiver) = orders::channel(1);
        let dedicated = Dedicated::new(setup, Opening::plain("anna"), downlink.clone(), receiver);
        let faulty = tokio::spawn(async move {
            let _dedicated = dedicated;
            panic!("a fault of the test's own");
        });
        assert!(faulty.await.expect_err("it panics").is_panic());
        assert_eq!(downlink.take_events(), [Event::Ended(Close::Fault, None)]);
        Handle::of(downlink).ended().await;
    }

    #[test]
    fn the_wait_before_an_attempt_is_random_up_to_a_bound_that_doubles() {
        let bounds = [0, 250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000];
        for (attempts, bound) in (0..).zip(bounds) {
            let wait = |part| back_off(attempts, LONGEST_BACK_OFF, part).as_millis();
            assert_eq!((wait(0.0), wait(0.5), wait(1.0)), (0, bound / 2, bound), "{attempts}");
        }
        assert_eq!(back_off(u32::MAX, LONGEST_BACK_OFF, 1.0), LONGEST_BACK_OFF);
        assert_eq!(back_off(u32::MAX, LONGEST_BACK_OFF_INSIDE, 1.0), LONGEST_BACK_OFF_INSIDE);
    }

    #[test]
    fn sessions_that_lost_one_broker_come_back_spread() {
        const SESSIONS: usize = 10_000;
        let mut second = [0; 15];
        for _ in 0..SESSIONS {
            let wait = back_off(9, LONGEST_BACK_OFF, rand::rng().random());
            second[wait.as_secs() as usize] += 1;
        }
        // Evenly, within six times the deviation of chance.
        let even = SESSIONS / second.len();
        assert!(second.iter().all(|count| (even - 150..even + 150).contains(count)), "{second:?}");
    }
}
