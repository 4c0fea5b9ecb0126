//! Publishes of programs that have no session: over one connection of the gateway's own, which is opened when it is needed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as StdInstant};

use rand::Rng;
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::downlink::Downlink;
use super::link::{Command, Commands, Event, Link, Opening, Order, Owner};
use super::signal::Raise;
use super::{Setup, Standing, dedicated, orders};
use crate::delivery;
use crate::mqtt::{Message, Outcome};
use crate::wire::{Ack, Close, Code, Refusal};

/// Publishes that may be under way at one time: each holds its message in memory.
pub const MAX_PUBLISHES: usize = 64;
/// The connection is given up when nobody has published for so long.
const IDLE: Duration = Duration::from_secs(60);
/// How much later than the link itself a publish is given up: it knows better what became of it.
const SLACK: Duration = Duration::from_secs(1);
/// How long a gateway that drains waits for the publishes under way, and then for the link.
const LAST: Duration = Duration::from_secs(1);

/// Who publishes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Publisher(Arc<Inner>);

struct Inner {
    setup: Arc<Setup>,
    budget: Arc<Budget>,
    tasks: TaskTracker,
    closing: CancellationToken,
    room: Arc<Semaphore>,
    client: Mutex<Option<Client>>,
}

/// The connection, as those see it who publish over it.
#[derive(Clone)]
struct Client {
    orders: orders::Sender,
    stage: watch::Receiver<Stage>,
    used: Instant,
}

/// How far the connection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The broker has not accepted it yet.
    Opening,
    Up,
    Down,
    Ended,
}

/// A place among those who publish.
pub struct Publishing {
    publisher: Arc<Inner>,
    _place: OwnedSemaphorePermit,
}

impl Publisher {
    /// Connects when the first publish comes.
    pub fn new(setup: Arc<Setup>, budget: Arc<Budget>, tasks: TaskTracker, closing: CancellationToken) -> Publisher {
        let room = Arc::new(Semaphore::new(MAX_PUBLISHES));
        Publisher(Arc::new(Inner { setup, budget, tasks, closing, room, client: Mutex::default() }))
    }

    /// A place for one publish, if there is any left.
    pub fn enter(&self) -> Result<Publishing, Refusal> {
        let Publisher(inner) = self;
        if inner.closing.is_cancelled() {
            return Err(Refusal::for_now(Code::BrokerUnavailable, "The gateway is going away; publish again later."));
        }
        let place = inner.room.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_PUBLISHES} publishes are under way already; publish again later.");
            Refusal::for_now(Code::RateLimited, message)
        })?;
        Ok(Publishing { publisher: inner.clone(), _place: place })
    }
}

impl Publishing {
    /// Publishes, and waits until the broker has taken the message as its qos promises.
    pub async fn publish(self, message: Message) -> Result<(), Refusal> {
        let Publishing { publisher, _place } = self;
        let until = Instant::now() + publisher.setup.config.request_timeout;
        let mut client = publisher.client();
        let is_up = timeout_at(until, client.is_up(&publisher.setup)).await;
        if !is_up.unwrap_or(false) {
            return Err(Refusal::broker_unavailable());
        }
        let answers = Downlink::new(delivery::Config::default(), publisher.budget.clone(), Raise::default());
        let command = Box::new(Command::Publish(0, message));
        let order = Order { made: StdInstant::now(), command, from: Some(answers.clone()) };
        if !matches!(timeout_at(until, client.orders.send(order)).await, Ok(Ok(()))) {
            return Err(Refusal::broker_unavailable());
        }
        select! {
            biased;
            result = answer(&answers) => result,
            () = client.ended() => unknown(),
            () = sleep_until(until + SLACK) => unknown(),
        }
    }
}

async fn answer(answers: &Downlink) -> Result<(), Refusal> {
    loop {
        answers.to_session.raised().await;
        for event in answers.take_events() {
            match event {
                Event::Answered(_, result) => return result,
                Event::Overdue(_, refusal) => return Err(refusal),
                // Nothing else is said to whoever only publishes.
                Event::Ready(_)
                | Event::Subscribed(..)
                | Event::Down
                | Event::SessionLost
                | Event::Up { .. }
                | Event::SubscriptionLost(..)
                | Event::Judged(_)
                | Event::Ended(..)
                | Event::Moved(_) => {}
            }
        }
    }
}

fn unknown() -> Result<(), Refusal> {
    Refusal::from_outcome(Outcome::Unknown).map_or(Ok(()), Err)
}

impl Client {
    /// Whether the broker has accepted the connection; while it may still do so, waits for it.
    async fn is_up(&mut self, setup: &Setup) -> bool {
        loop {
            match *self.stage.borrow_and_update() {
                Stage::Up => return true,
                Stage::Down | Stage::Ended => return false,
                Stage::Opening if setup.reach.standing() != Standing::Up => return false,
                Stage::Opening => {}
            }
            if self.stage.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Waits until nobody is there to answer.
    async fn ended(&mut self) {
        // An error says that the task is gone.
        let _ = self.stage.wait_for(|stage| *stage == Stage::Ended).await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, or a new one.
    fn client(self: &Arc<Self>) -> Client {
        let mut client = self.lock();
        let is_there = |client: &Client| client.stage.has_changed().is_ok() && *client.stage.borrow() != Stage::Ended;
        let client = match &mut *client {
            Some(running) if is_there(running) => running,
            ended => ended.insert(self.start()),
        };
        client.used = Instant::now();
        client.clone()
    }

    fn start(self: &Arc<Self>) -> Client {
        let opening = Opening {
            client_id: format!("tidegate-api-{:016x}", rand::rng().random::<u64>()),
            clean: true,
            session_expiry: 0,
            will: None,
            subscriptions: Vec::new(),
            ack: Ack::Auto,
            max_inflight: MAX_PUBLISHES as u16,
            owner: Owner::Gateway,
            is_named: false,
            rights: None,
            credentials: None,
        };
        let downlink = Downlink::new(delivery::Config::default(), self.budget.clone(), Raise::default());
        let (orders, receiver) = orders::channel(MAX_PUBLISHES);
        self.tasks.spawn(dedicated::run(self.setup.clone(), opening, downlink.clone(), receiver, None));
        let (tell, stage) = watch::channel(Stage::Opening);
        let link = Link { commands: Commands::Own(orders.clone()), downlink };
        self.tasks.spawn(self.clone().tend(link, tell));
        Client { orders, stage, used: Instant::now() }
    }

    /// Follows what becomes of the connection, and gives it up in the end.
    async fn tend(self: Arc<Self>, link: Link, stage: watch::Sender<Stage>) {
        let close = loop {
            select! {
                () = link.downlink.to_session.raised() => {
                    for next in link.downlink.take_events().iter().filter_map(next) {
                        stage.send_replace(next);
                    }
                    if *stage.borrow() == Stage::Ended {
                        break Close::ByClient;
                    }
                }
                () = self.idle() => break Close::ByClient,
                () = self.closing.cancelled() => {
                    let _ = timeout(LAST, self.room.acquire_many(MAX_PUBLISHES as u32)).await;
                    break Close::Drain;
                }
            }
        };
        let handle = link.handle();
        handle.end(close);
        if timeout(LAST * 2, handle.ended()).await.is_err() {
            handle.abandon();
        }
        stage.send_replace(Stage::Ended);
    }

    /// Resolves when nobody has published for a while; whoever comes from then on gets another connection. Safe to drop half-way.
    async fn idle(&self) {
        loop {
            let until = {
                let mut client = self.lock();
                let now = Instant::now();
                let due = client.as_ref().map_or(now, |client| client.used + IDLE);
                let is_busy = self.room.available_permits() < MAX_PUBLISHES;
                if due <= now && !is_busy {
                    *client = None;
                    return;
                }
                due.max(now + SLACK)
            };
            sleep_until(until).await;
        }
    }
}

/// Where an event takes the connection.
fn next(event: &Event) -> Option<Stage> {
    match event {
        Event::Ready(_) | Event::Up { .. } => Some(Stage::Up),
        Event::Down => Some(Stage::Down),
        Event::Ended(..) => Some(Stage::Ended),
        Event::Answered(..)
        | Event::Overdue(..)
        | Event::Subscribed(..)
        | Event::SessionLost
        | Event::SubscriptionLost(..)
        | Event::Judged(_)
        | Event::Moved(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::transport::Target;
    use crate::broker::{Config, Place, Reach};
    use crate::mqtt::{Qos, Topic};

    fn publisher() -> Publisher {
        let place = Place::Elsewhere(Target::plain("127.0.0.1".to_owned(), 1));
        let setup = Arc::new(Setup { config: Config::default(), place, reach: Reach::default() });
        Publisher::new(setup, Arc::default(), TaskTracker::new(), CancellationToken::new())
    }

    #[tokio::test]
    async fn so_many_publishes_may_be_under_way_and_one_more_is_refused() {
        let publisher = publisher();
        let places: Vec<_> = (0..MAX_PUBLISHES).map(|_| publisher.enter().expect("there is room")).collect();
        let refusal = publisher.enter().err().expect("there is none left");
        assert_eq!((refusal.code, refusal.retryable), (Code::RateLimited, true));
        drop(places);
        assert!(publisher.enter().is_ok());
        publisher.0.closing.cancel();
        assert_eq!(publisher.enter().err().map(|refusal| refusal.code), Some(Code::BrokerUnavailable));
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_broker_is_away_a_publish_is_refused_at_once_and_the_connection_is_given_up_when_nobody_comes() {
        let publisher = publisher();
        let message = Message {
            topic: Topic::parse("a").expect("a topic"),
            payload: Default::default(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: None,
        };
        let begun = Instant::now();
        let result = publisher.enter().expect("there is room").publish(message).await;
        assert_eq!(result, Err(Refusal::broker_unavailable()));
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
        let mut stage = publisher.0.lock().clone().expect("it tries to connect").stage;
        let _ = stage.wait_for(|stage| *stage == Stage::Ended).await;
        let waited = begun.elapsed();
        assert!((IDLE..IDLE + 5 * LAST).contains(&waited), "{waited:?}");
        assert!(publisher.0.lock().is_none());
    }
}
