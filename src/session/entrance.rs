//! The way in: the rules of [`access`](crate::access), shared by all connections, and those who wait woken.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tracing::warn;

use crate::access::{Address, Admission, Config, Newcomers, Reason, Visit};
use crate::log::Seldom;
use crate::metrics;

/// Counts a connection that is turned away, and says so in the log, at most once a second for each reason.
pub fn turned_away(reason: Reason, address: Option<IpAddr>) {
    static LINES: [Seldom; Reason::ALL.len()] = [const { Seldom::new() }; Reason::ALL.len()];
    metrics::connection_refused(reason);
    let line = Reason::ALL.iter().zip(&LINES).find(|(other, _)| **other == reason).map(|(_, line)| line);
    if let Some(unsaid) = line.and_then(|line| line.pass(Instant::now())) {
        let (reason, why) = (reason.label(), reason.sentence());
        match address {
            Some(address) => warn!(reason, why, %address, unsaid, "connection turned away"),
            None => warn!(reason, why, unsaid, "connection turned away"),
        }
    }
}

/// Where connections are that have said nothing yet. Each listener has its own: a crowd at one leaves the other free.
pub struct Lobby(Mutex<Newcomers<(IpAddr, Arc<Notify>)>>);

/// A connection that has said nothing yet: it counts as one until the drop.
pub struct Newcomer {
    lobby: Arc<Lobby>,
    number: u64,
    let_go: Arc<Notify>,
}

impl Lobby {
    /// An empty one.
    pub fn new(config: &Config) -> Arc<Lobby> {
        Arc::new(Lobby(Mutex::new(Newcomers::new(config.max_unauthenticated.get()))))
    }

    /// One more; if there are too many now, the oldest has to go.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Newcomer {
        let let_go = Arc::new(Notify::new());
        let (number, oldest) = self.lock().add((address, let_go.clone()));
        metrics::unauthenticated(1.0);
        oldest.into_iter().for_each(turn_out);
        Newcomer { lobby: self.clone(), number, let_go }
    }

    /// From now on these limits hold.
    pub fn set_limits(&self, config: &Config) {
        let gone = self.lock().set_max(config.max_unauthenticated.get());
        gone.into_iter().for_each(turn_out);
    }

    fn lock(&self) -> MutexGuard<'_, Newcomers<(IpAddr, Arc<Notify>)>> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

fn turn_out((address, let_go): (IpAddr, Arc<Notify>)) {
    metrics::unauthenticated(-1.0);
    turned_away(Reason::MaxUnauthenticated, Some(address));
    let_go.notify_one();
}

impl Newcomer {
    /// Resolves when it has to go. One may wait at a time; who comes later learns what an earlier one has not.
    pub async fn let_go(&self) {
        self.let_go.notified().await;
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if self.lobby.lock().remove(self.number) {
            metrics::unauthenticated(-1.0);
        }
    }
}

/// Gives places to WebSockets.
pub struct Entrance(Mutex<Inner>);

struct Inner {
    admission: Admission,
    queue_timeout: Duration,
    /// Those who wait, by number.
    waiting: HashMap<u64, oneshot::Sender<()>>,
}

/// A WebSocket's right to be there, at its place or in the queue, until the drop.
pub struct Pass {
    entrance: Arc<Entrance>,
    visit: Visit,
    turn: Option<oneshot::Receiver<()>>,
}

impl Entrance {
    /// All places are free.
    pub fn new(config: &Config) -> Arc<Entrance> {
        Arc::new(Entrance(Mutex::new(Inner {
            admission: Admission::new(config),
            queue_timeout: config.queue_timeout,
            waiting: HashMap::new(),
        })))
    }

    /// Asks for a place; a pass may have to wait for [its turn](Pass::turn).
    pub fn arrive(self: &Arc<Self>, address: IpAddr) -> Result<Pass, Reason> {
        let mut inner = self.lock();
        let visit = inner.admission.arrive(Address::of(address), Instant::now())?;
        let turn = inner.admission.position(visit).map(|_| {
            let (admit, turn) = oneshot::channel();
            inner.waiting.insert(visit.number, admit);
            turn
        });
        metrics::queued(inner.admission.queued());
        Ok(Pass { entrance: self.clone(), visit, turn })
    }

    /// From now on these limits hold; nobody who is in has to leave.
    pub fn set_limits(&self, config: &Config) {
        let mut inner = self.lock();
        inner.queue_timeout = config.queue_timeout;
        let admitted = inner.admission.set_limits(config);
        inner.admit(admitted);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

impl Inner {
    fn admit(&mut self, admitted: impl IntoIterator<Item = u64>) {
        for number in admitted {
            if let Some(admit) = self.waiting.remove(&number) {
                let _ = admit.send(());
            }
        }
        metrics::queued(self.admission.queued());
    }
}

impl Pass {
    /// Its place in the queue, counted from 1; nothing once it has come in.
    pub fn position(&self) -> Option<usize> {
        self.turn.as_ref().and_then(|_| self.entrance.lock().admission.position(self.visit))
    }

    /// How long it may wait in the queue.
    pub fn patience(&self) -> Duration {
        self.entrance.lock().queue_timeout
    }

    /// Resolves when it is in. Safe to drop half-way.
    pub async fn turn(&mut self) {
        if let Some(turn) = &mut self.turn {
            let _ = turn.await;
            self.turn = None;
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inner = self.entrance.lock();
        inner.waiting.remove(&self.visit.number);
        let admitted = inner.admission.leave(self.visit, Instant::now());
        inner.admit(admitted);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_comes_in_when_a_place_is_free_or_limits_allow() {
        let mut config = Config { max: NonZeroUsize::MIN, ..Config::default() };
        let entrance = Entrance::new(&config);
        let address = IpAddr::from([127, 0, 0, 1]);
        let mut passes: Vec<Pass> = (0..4).map(|_| entrance.arrive(address).expect("in or waits")).collect();
        let positions = |passes: &[Pass]| passes.iter().map(Pass::position).collect::<Vec<_>>();
        assert_eq!(positions(&passes), [None, Some(1), Some(2), Some(3)]);
        drop(passes.remove(0));
        passes[0].turn().await;
        drop(passes.remove(1));
        assert_eq!(positions(&passes), [None, Some(1)], "who leaves the queue lets the others move up");
        config.max = NonZeroUsize::new(2).expect("not 0");
        entrance.set_limits(&config);
        passes[1].turn().await;
        assert_eq!(positions(&passes), [None, None]);
        drop(passes);
        let inner = entrance.lock();
        assert_eq!((inner.admission.inside(), inner.waiting.len()), (0, 0));
    }
}
