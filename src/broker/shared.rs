//! A few connections to the broker for all sessions, where `broker.upstream` is `"shared"`: one brings the messages, others take
//! what is published.
//!
//! [`hub`] is the task that owns the first; [`readers`] says who reads what; [`stored`] asks for stored messages on connections of
//! its own, so that they come to those alone who have just subscribed.

mod hub;
mod readers;
mod stored;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::hub::{Asked, Hub, Newcomer};
use super::budget::Budget;
use super::link::{self, Command, Downlink, Event, Handle, Link, Opening, Order, Owner, Queue};
use super::signal::{Bell, Raise};
use super::{Setup, dedicated};
use crate::delivery;
use crate::wire::{Ack, Close, Refusal};

/// Subscribes and unsubscribes of all sessions that may wait for the hub.
const ASKED: usize = 256;

/// What the sessions share.
pub(super) struct Shared {
    setup: Arc<Setup>,
    budget: Arc<Budget>,
    tasks: TaskTracker,
    closing: CancellationToken,
    next: AtomicU64,
    running: Mutex<Option<Running>>,
}

/// The ends of the tasks that sessions talk to.
struct Running {
    newcomers: mpsc::UnboundedSender<Newcomer>,
    bell: Arc<Bell>,
    commands: Lines,
}

/// Where commands go, by their kind.
#[derive(Clone, Debug)]
struct Lines {
    hub: mpsc::Sender<Asked>,
    publishers: Arc<[mpsc::Sender<Order>]>,
}

impl Shared {
    /// Connects when the first session comes.
    pub fn new(setup: Arc<Setup>, budget: Arc<Budget>, tasks: TaskTracker, closing: CancellationToken) -> Shared {
        Shared { setup, budget, tasks, closing, next: AtomicU64::new(0), running: Mutex::new(None) }
    }

    /// A place among those who share; a link of the same client identifier gives way.
    pub fn open(&self, opening: Opening, delivery: delivery::Config, predecessor: Option<Handle>) -> Link {
        if let Some(predecessor) = predecessor {
            predecessor.take_over();
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match &mut *running {
            Some(running) if !running.newcomers.is_closed() => running,
            // The broker had refused them for good, as far as could be known.
            ended => ended.insert(self.start()),
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let downlink = Downlink::new(delivery, self.budget.clone(), Raise::among(running.bell.clone(), number));
        let commands = Commands { number, lines: running.commands.clone(), downlink: downlink.clone() };
        let newcomer = Newcomer { number, opening, downlink: downlink.clone() };
        if running.newcomers.send(newcomer).is_err() {
            downlink.tell(Event::Ended(Close::NoBroker, Some(Refusal::broker_unavailable())));
            downlink.let_go();
        }
        Link { commands: link::Commands::Shared(commands), downlink }
    }

    fn start(&self) -> Running {
        let name = format!("tidegate-{:016x}", rand::rng().random::<u64>());
        let (newcomers, coming) = mpsc::unbounded_channel();
        let (hub, asked) = mpsc::channel(ASKED);
        let bell = Arc::<Bell>::default();
        let failed = Failed::default();
        let links: Vec<_> = (1..=self.setup.config.publish_connections.get())
            .map(|number| self.link(format!("{name}-publish-{number}")))
            .collect();
        let publishers: Arc<[_]> = links.iter().map(|(orders, _)| orders.clone()).collect();
        let handles = links.iter().map(|(_, downlink)| Handle::of(downlink.clone())).collect();
        for (_, downlink) in links {
            self.tasks.spawn(watch(downlink, failed.clone()));
        }
        let (orders, downlink) = self.link(format!("{name}-read"));
        let upstream = Link { commands: link::Commands::Own(orders), downlink };
        let ends = hub::Ends { newcomers: coming, asked, bell: bell.clone(), upstream, publishers: handles, failed };
        self.tasks.spawn(Hub::new(self.setup.clone(), self.tasks.clone(), self.closing.clone(), ends).run());
        Running { newcomers, bell, commands: Lines { hub, publishers } }
    }

    /// A connection of the gateway's own, restored like a session's.
    fn link(&self, client_id: String) -> (mpsc::Sender<Order>, Arc<Downlink>) {
        let opening = Opening {
            client_id,
            clean: true,
            session_expiry: 0,
            will: None,
            subscriptions: Vec::new(),
            ack: Ack::Manual,
            max_inflight: u16::MAX,
            owner: Owner::Gateway,
        };
        let downlink = Downlink::new(delivery::Config::default(), self.budget.clone(), Raise::default());
        let (orders, receiver) = mpsc::channel(super::COMMANDS);
        self.tasks.spawn(dedicated::run(self.setup.clone(), opening, downlink.clone(), receiver, None));
        (orders, downlink)
    }
}

/// Why a connection for publishing has ended for good, once one has.
#[derive(Clone, Default)]
struct Failed {
    token: CancellationToken,
    why: Arc<Mutex<Option<(Close, Option<Refusal>)>>>,
}

/// Sees a connection for publishing to its end; who published hears of the rest by itself.
async fn watch(downlink: Arc<Downlink>, failed: Failed) {
    loop {
        downlink.to_session.raised().await;
        for event in downlink.take_events() {
            if let Event::Ended(close, refusal) = event {
                *failed.why.lock().unwrap_or_else(PoisonError::into_inner) = Some((close, refusal));
                failed.token.cancel();
                return;
            }
        }
        if downlink.ended_by().is_some() {
            return;
        }
    }
}

/// A session's way to what is shared.
#[derive(Clone, Debug)]
pub struct Commands {
    number: u64,
    lines: Lines,
    downlink: Arc<Downlink>,
}

impl Commands {
    /// Hands over the next command when there is room; the error says that there is nobody any more. Safe to drop half-way.
    pub async fn hand_over(&self, queue: &mut Queue) -> Result<(), ()> {
        match queue.front() {
            None => {}
            Some((_, next)) if matches!(**next, Command::Publish(..)) => {
                // Always the same one: what one session publishes keeps its order.
                let publishers = &self.lines.publishers;
                let permit = publishers[self.number as usize % publishers.len()].reserve().await.map_err(drop)?;
                if let Some((made, command)) = queue.pop_front() {
                    permit.send(Order { made, command, from: Some(self.downlink.clone()) });
                }
            }
            Some(_) => {
                let permit = self.lines.hub.reserve().await.map_err(drop)?;
                if let Some((made, command)) = queue.pop_front() {
                    permit.send(Asked { number: self.number, made, command });
                }
            }
        }
        Ok(())
    }
}
