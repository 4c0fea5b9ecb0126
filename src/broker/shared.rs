//! A few connections to the broker for all sessions, where `broker.upstream` is `"shared"`. Each serves its part of the sessions.
//!
//! [`hub`] is the task that owns one of them; [`readers`] says who reads what; [`stored`] asks for stored messages on connections of
//! its own, so that they come to those alone who have just subscribed.

mod hub;
mod moving;
mod readers;
mod stored;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::hub::{Asked, Hub, Newcomer};
use super::budget::Budget;
use super::connection::Connection;
use super::downlink::{Downlink, Handle};
use super::link::{self, Command, Event, Link, Opening, Order, Owner, Queue};
use super::signal::{Bell, Raise};
use super::{Setup, dedicated, orders, rules};
use crate::delivery;
use crate::mqtt::packet::{self, Connect};
use crate::wire::{Ack, Close, Refusal};

/// Subscribes and unsubscribes of all sessions that may wait for the hub.
const ASKED: usize = 256;
/// Between two tries to make the broker forget a client, at most.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(15);

/// What the sessions share.
pub(super) struct Shared {
    setup: Arc<Setup>,
    budget: Arc<Budget>,
    tasks: TaskTracker,
    closing: CancellationToken,
    next: AtomicU64,
    /// As many as there are connections, each from its first session on.
    hubs: Box<[Mutex<Option<Running>>]>,
}

/// The ends of a hub that sessions talk to.
struct Running {
    newcomers: mpsc::UnboundedSender<Newcomer>,
    bell: Arc<Bell>,
    lines: Lines,
}

/// Where commands go, by their kind.
#[derive(Clone, Debug)]
struct Lines {
    hub: mpsc::Sender<Asked>,
    /// The connection itself takes what is published.
    link: orders::Sender,
}

impl Shared {
    /// Connects when the first sessions come.
    pub fn new(setup: Arc<Setup>, budget: Arc<Budget>, tasks: TaskTracker, closing: CancellationToken) -> Shared {
        let hubs = (0..setup.config.connections()).map(|_| Mutex::new(None)).collect();
        Shared { setup, budget, tasks, closing, next: AtomicU64::new(0), hubs }
    }

    /// A place among those who share; a link of the same client identifier gives way.
    pub fn open(&self, opening: Opening, delivery: delivery::Config, predecessor: Option<Handle>) -> Link {
        if let Some(predecessor) = predecessor {
            predecessor.take_over();
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut hub = self.hubs[number as usize % self.hubs.len()].lock().unwrap_or_else(PoisonError::into_inner);
        let running = match &mut *hub {
            Some(running) if !running.newcomers.is_closed() => running,
            // The broker had refused it for good, as far as could be known.
            ended => ended.insert(self.start()),
        };
        let downlink = Downlink::new(delivery, self.budget.clone(), Raise::among(running.bell.clone(), number));
        let commands = Commands { number, lines: running.lines.clone(), downlink: downlink.clone() };
        let (newcomers, setup) = (running.newcomers.clone(), self.setup.clone());
        let newcomer = Newcomer { number, opening, downlink: downlink.clone() };
        if newcomer.opening.is_named {
            self.tasks.spawn(async move {
                forget(&setup, &newcomer.opening.client_id, &newcomer.downlink).await;
                enter(&newcomers, newcomer);
            });
        } else {
            enter(&newcomers, newcomer);
        }
        Link { commands: link::Commands::Shared(commands), downlink }
    }

    fn start(&self) -> Running {
        let opening = Opening {
            client_id: format!("tidegate-shared-{:016x}", rand::rng().random::<u64>()),
            clean: true,
            session_expiry: 0,
            will: None,
            subscriptions: Vec::new(),
            ack: Ack::Manual,
            max_inflight: u16::MAX,
            owner: Owner::Gateway,
            is_named: false,
            rights: None,
            credentials: None,
        };
        let downlink = Downlink::new(delivery::Config::default(), self.budget.clone(), Raise::default());
        let (link, receiver) = orders::channel(super::COMMANDS);
        self.tasks.spawn(dedicated::run(self.setup.clone(), opening, downlink.clone(), receiver, None));
        let upstream = Link { commands: link::Commands::Own(link.clone()), downlink };
        let (newcomers, coming) = mpsc::unbounded_channel();
        let (hub, asked) = mpsc::channel(ASKED);
        let bell = Arc::<Bell>::default();
        let ends = hub::Ends { newcomers: coming, asked, bell: bell.clone(), upstream };
        self.tasks.spawn(Hub::new(self.setup.clone(), self.tasks.clone(), self.closing.clone(), ends).run());
        Running { newcomers, bell, lines: Lines { hub, link } }
    }
}

/// Makes the broker forget what it keeps of a client, as one that starts clean wants it, and others of that name give way.
async fn forget(setup: &Setup, client_id: &str, downlink: &Downlink) {
    let escaped = if setup.is_embedded() { rules::client_id(client_id) } else { client_id.to_owned() };
    let mut attempts = 0;
    while downlink.ended_by().is_none() {
        let (target, connect) = (setup.target(), Connect { client_id: &escaped, ..setup.connect() });
        match timeout(setup.config.connect_timeout, Connection::open(&target, &connect)).await {
            Ok(Ok((mut connection, _))) => {
                if !setup.is_embedded() {
                    packet::write_disconnect(&mut connection.outbound, 0);
                }
                let _ = timeout(setup.config.connect_timeout, async {
                    while !connection.outbound.is_empty() && connection.turn(false).await.is_ok() {}
                    connection.finish().await;
                })
                .await;
                return;
            }
            Ok(Err(lost)) if lost.is_final() => return,
            Ok(Err(_)) | Err(_) => {
                attempts += 1;
                let part = rand::rng().random();
                sleep(dedicated::back_off(attempts, LONGEST_BACK_OFF, part)).await;
            }
        }
    }
}

fn enter(newcomers: &mpsc::UnboundedSender<Newcomer>, newcomer: Newcomer) {
    if let Err(SendError(Newcomer { downlink, .. })) = newcomers.send(newcomer) {
        downlink.tell(Event::Ended(Close::NoBroker, Some(Refusal::broker_unavailable())));
        downlink.let_go();
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
                let from = || Some(self.downlink.clone());
                let next = || queue.pop_front().map(|(made, command)| Order { made, command, from: from() });
                self.lines.link.send_with(next).await?;
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
