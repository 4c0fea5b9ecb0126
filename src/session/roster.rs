//! Who holds which client identifier in this process, so that a newcomer is let in after its predecessor has let go.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::broker::{Broker, Handle, Link, Opening};
use crate::delivery;

/// The links of this process by client identifier, until they have ended.
#[derive(Debug, Default)]
pub struct Roster {
    links: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    by_client: HashMap<String, (u64, Handle)>,
    next: u64,
}

/// A place in the roster.
#[derive(Debug)]
pub struct Place {
    client_id: String,
    number: u64,
}

impl Roster {
    /// Opens a link; one with the same client identifier gives way to it.
    pub fn open(&self, broker: &Broker, opening: Opening, delivery: delivery::Config) -> (Link, Place) {
        let client_id = opening.client_id.clone();
        let mut links = self.lock();
        let number = links.next;
        links.next += 1;
        let predecessor = links.by_client.remove(&client_id).map(|(_, handle)| handle);
        let link = broker.open(opening, delivery, predecessor);
        links.by_client.insert(client_id.clone(), (number, link.handle()));
        (link, Place { client_id, number })
    }

    /// The session goes on over another link; a successor keeps its place.
    pub fn moved(&self, place: &Place, handle: Handle) {
        let mut links = self.lock();
        if let Some((number, old)) = links.by_client.get_mut(&place.client_id)
            && *number == place.number
        {
            *old = handle;
        }
    }

    /// The link has ended; a successor keeps its place.
    pub fn leave(&self, place: &Place) {
        let mut links = self.lock();
        if links.by_client.get(&place.client_id).is_some_and(|(number, _)| *number == place.number) {
            links.by_client.remove(&place.client_id);
        }
    }

    /// A panic of one session must not be felt by others.
    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
