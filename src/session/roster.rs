//! Who is here: sessions by the client identifier that they hold at the broker, so that a newcomer is let in after its predecessor has
//! let go, and so that each can be reached from outside.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;

use super::guard::Vouching;
use crate::access::Rights;
use crate::broker::{Broker, Handle, Link, Opening};
use crate::delivery;
use crate::wire::{Close, Refusal};

/// The sessions of this process, until their links have ended.
#[derive(Debug, Default)]
pub struct Roster {
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    by_client: HashMap<Arc<str>, Seat>,
    next: u64,
}

#[derive(Debug)]
struct Seat {
    number: u64,
    handle: Handle,
    visitor: Arc<Visitor>,
}

/// A place in the roster.
#[derive(Debug)]
pub struct Place {
    client_id: Arc<str>,
    number: u64,
}

/// What others may know of a session, and where they tell it something.
pub struct Visitor {
    /// Names the connection in logs.
    pub session_id: u64,
    /// Where it comes from.
    pub address: IpAddr,
    /// Since when it is there.
    pub since: SystemTime,
    /// Who it is and what it may do; nothing where there is no access control.
    pub rights: ArcSwapOption<Rights>,
    /// What its client calls itself.
    pub client_id: Box<str>,
    /// Who vouches for its client certificate, where it has shown one.
    pub vouching: Option<Vouching>,
    is_summoned: AtomicBool,
    summons: Mutex<Option<Summons>>,
    has_left: AtomicBool,
}

/// What a session is told from outside.
#[derive(Debug)]
pub enum Summons {
    /// The configuration has changed: what it may do is to be seen anew.
    Judge,
    /// It has to go.
    End(Close, Option<Refusal>),
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitor").field("session", &self.session()).field("client_id", &self.client_id).finish()
    }
}

impl Visitor {
    /// One that comes now.
    pub fn new(
        session_id: u64,
        address: IpAddr,
        client_id: &str,
        rights: Option<Arc<Rights>>,
        vouching: Option<Vouching>,
    ) -> Arc<Visitor> {
        Arc::new(Visitor {
            session_id,
            address,
            since: SystemTime::now(),
            rights: ArcSwapOption::new(rights),
            client_id: client_id.into(),
            vouching,
            is_summoned: AtomicBool::new(false),
            summons: Mutex::default(),
            has_left: AtomicBool::new(false),
        })
    }

    /// The name of the connection, as its client and the logs have it.
    pub fn session(&self) -> String {
        format!("{:016x}", self.session_id)
    }

    /// The session has ended, whatever its link has left to do.
    pub fn leave(&self) {
        self.has_left.store(true, Ordering::Release);
    }

    fn is_here(&self) -> bool {
        !self.has_left.load(Ordering::Acquire)
    }

    /// Tells it something. That it has to go is not taken back by anything that comes later.
    pub fn summon(&self, summons: Summons) {
        let mut waiting = self.summons.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*waiting, Some(Summons::End(..))) {
            *waiting = Some(summons);
        }
        drop(waiting);
        self.is_summoned.store(true, Ordering::Release);
    }

    /// That it has to go, how and why, if that is what it was told; anything else it may be told later.
    pub fn take_end(&self) -> Option<(Close, Option<Refusal>)> {
        let mut waiting = self.summons.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.take_if(|summons| matches!(summons, Summons::End(..))) {
            Some(Summons::End(close, refusal)) => Some((close, refusal)),
            Some(Summons::Judge) | None => None,
        }
    }

    /// Who it is, if it is known.
    pub fn user(&self) -> Option<Box<str>> {
        self.rights.load().as_ref().and_then(|rights| rights.identity().user.clone())
    }

    /// What it was told since it last looked.
    pub fn take_summons(&self) -> Option<Summons> {
        if !self.is_summoned.load(Ordering::Acquire) {
            return None;
        }
        self.is_summoned.store(false, Ordering::Release);
        self.summons.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Roster {
    /// Opens a link; one with the same client identifier gives way to it.
    pub fn open(
        &self,
        broker: &Broker,
        opening: Opening,
        delivery: delivery::Config,
        visitor: Arc<Visitor>,
    ) -> (Link, Place) {
        let client_id: Arc<str> = opening.client_id.as_str().into();
        let mut seats = self.lock();
        let number = seats.next;
        seats.next += 1;
        let predecessor = seats.by_client.remove(&client_id).map(|seat| seat.handle);
        let link = broker.open(opening, delivery, predecessor);
        seats.by_client.insert(client_id.clone(), Seat { number, handle: link.handle(), visitor });
        (link, Place { client_id, number })
    }

    /// The session goes on over another link; a successor keeps its place.
    pub fn moved(&self, place: &Place, handle: Handle) {
        let mut seats = self.lock();
        if let Some(seat) = seats.by_client.get_mut(&place.client_id)
            && seat.number == place.number
        {
            seat.handle = handle;
        }
    }

    /// The link has ended; a successor keeps its place.
    pub fn leave(&self, place: &Place) {
        let mut seats = self.lock();
        if seats.by_client.get(&place.client_id).is_some_and(|seat| seat.number == place.number) {
            seats.by_client.remove(&place.client_id);
        }
    }

    /// All who are here now.
    pub fn visitors(&self) -> Vec<Arc<Visitor>> {
        self.lock().by_client.values().map(|seat| seat.visitor.clone()).filter(|visitor| visitor.is_here()).collect()
    }

    /// Tells something to each session of which this holds, and says how many those are.
    pub fn summon(&self, is_meant: impl Fn(&Visitor) -> bool, summons: impl Fn() -> Summons) -> usize {
        let seats = self.lock();
        let meant = seats.by_client.values().filter(|seat| seat.visitor.is_here() && is_meant(&seat.visitor));
        meant
            .map(|seat| {
                seat.visitor.summon(summons());
                seat.handle.wake();
            })
            .count()
    }

    /// A panic of one session must not be felt by others.
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
