//! The newest message of a topic, for all the sessions in whose slots an older one waits: each looks here when its time has come, and
//! need not be told of those between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::outbox::Delivery;
use super::rendition::Rendition;

/// Of one topic and in one form. Whoever puts messages here first gives them to each reader that does not follow.
#[derive(Debug)]
pub struct Latest {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    newest: Newest,
    /// How many came before it.
    number: u64,
    followers: Followers,
    /// What each of those is charged for at least: the size of what waits in its slot.
    charged: usize,
}

/// By so many bytes a message may be larger than what its readers are charged for.
const UNCHARGED: usize = 256;

/// What is the same for all who get a message in one form.
#[derive(Clone, Debug)]
pub struct Newest {
    /// The message.
    pub rendition: Arc<Rendition>,
    /// How it is known to clients, exactly when its QoS is above 0.
    pub msgid: Option<Arc<str>>,
    /// The broker delivered it before.
    pub dup: bool,
}

impl Latest {
    /// Nobody follows yet.
    pub fn new(newest: Newest) -> Arc<Latest> {
        Arc::new(Latest { state: Mutex::new(State { newest, number: 0, followers: Followers::default(), charged: 0 }) })
    }

    /// A newer one. Says who gets it without being told; nothing if it was not taken up, as it is so large that each reader has to be
    /// charged anew.
    pub fn put(&self, newest: Newest) -> Option<Followers> {
        let mut state = self.lock();
        if newest.rendition.message.size() > state.charged + UNCHARGED && !state.followers.is_empty() {
            return None;
        }
        state.newest = newest;
        state.number += 1;
        Some(state.followers.clone())
    }

    /// Nobody would get what is put here.
    pub fn is_unfollowed(&self) -> bool {
        self.lock().followers.is_empty()
    }

    /// The reader at that place, who has been given the newest, hears no more of newer ones until it has caught up.
    pub fn follow(self: &Arc<Latest>, place: usize) -> Following {
        let mut state = self.lock();
        let size = state.newest.rendition.message.size();
        state.charged = if state.followers.is_empty() { size } else { size.min(state.charged) };
        state.followers.insert(place);
        Following { latest: self.clone(), place, given: state.number, is_over: false }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where newer ones than a delivery are to be found when it is taken, and the place of whoever takes it.
pub type Source<'a> = (&'a Arc<Latest>, usize);

/// One reader's hold on a [`Latest`].
#[derive(Debug)]
pub struct Following {
    latest: Arc<Latest>,
    place: usize,
    /// The number of the one that waits.
    given: u64,
    is_over: bool,
}

impl Following {
    /// How many have come since.
    pub fn missed(&self) -> u32 {
        u32::try_from(self.latest.lock().number - self.given).unwrap_or(u32::MAX)
    }

    /// Puts the newest in the place of what waits. In the same moment the following ends: of what comes from now on the reader hears.
    pub fn catch_up(mut self, waiting: &mut Delivery) {
        self.is_over = true;
        let mut state = self.latest.lock();
        state.followers.remove(self.place);
        let missed = state.number - self.given;
        if missed > 0 {
            let Newest { rendition, msgid, dup } = state.newest.clone();
            (waiting.rendition, waiting.msgid, waiting.dup) = (rendition, msgid, dup);
            waiting.skipped = waiting.skipped.saturating_add(u32::try_from(missed).unwrap_or(u32::MAX));
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if !self.is_over {
            self.latest.lock().followers.remove(self.place);
        }
    }
}

/// Places of readers.
#[derive(Clone, Debug, Default)]
pub struct Followers {
    words: Vec<u64>,
}

impl Followers {
    fn insert(&mut self, place: usize) {
        let word = place / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (place % 64);
    }

    fn remove(&mut self, place: usize) {
        if let Some(word) = self.words.get_mut(place / 64) {
            *word &= !(1 << (place % 64));
        }
    }

    /// All of both.
    pub fn join(&mut self, other: &Followers) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(ours, theirs)| *ours |= theirs);
    }

    fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The first place from this on that is none of them.
    pub fn gap(&self, from: usize) -> usize {
        let mut place = from;
        while let Some(word) = self.words.get(place / 64) {
            let free = !word >> (place % 64);
            if free != 0 {
                return place + free.trailing_zeros() as usize;
            }
            place = (place / 64 + 1) * 64;
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Instant;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::{Message, Qos, Topic};
    use crate::wire::Format;

    fn newest(payload: &'static str) -> Newest {
        let topic = Topic::parse("t").expect("a topic");
        let bytes = Bytes::from_static(payload.as_bytes());
        let message = Message { topic, payload: bytes, qos: Qos::AtLeastOnce, retain: false, properties: None };
        let rendition = Arc::new(Rendition::new(message, Format::Text, 0, Instant::now()));
        Newest { rendition, msgid: Some(payload.into()), dup: false }
    }

    fn delivery(Newest { rendition, msgid, dup }: Newest) -> Delivery {
        Delivery { msgid, dup, skipped: 3, ..Delivery::plain(rendition.message.clone()) }
    }

    #[test]
    fn who_follows_gets_the_newest_and_hears_of_the_next() {
        let latest = Latest::new(newest("1"));
        let mut waiting = delivery(newest("1"));
        let (early, gone) = (latest.follow(70), latest.follow(2));
        let put = |payload| latest.put(newest(payload)).expect("it is as small as the others");
        assert_eq!(put("2").count(), 2);
        drop(gone);
        let followers = put("3");
        assert_eq!((followers.count(), followers.gap(70), early.missed()), (1, 71, 2));
        early.catch_up(&mut waiting);
        assert_eq!((waiting.msgid.as_deref(), waiting.skipped), (Some("3"), 5));
        assert_eq!(waiting.rendition.message.payload, "3");
        assert!(latest.is_unfollowed());
        let mut again = delivery(newest("3"));
        latest.follow(70).catch_up(&mut again);
        assert_eq!((again.msgid.as_deref(), again.skipped), (Some("3"), 3), "nothing came");
        assert_eq!(put("4").count(), 0);
    }

    #[test]
    fn what_is_larger_than_its_readers_are_charged_for_is_not_taken_up() {
        let large = || newest("x".repeat(UNCHARGED + 2).leak());
        let latest = Latest::new(newest("1"));
        assert!(latest.put(large()).is_some(), "nobody follows");
        let wide = latest.follow(0);
        assert!(latest.put(newest("2")).is_some());
        assert!(latest.put(large()).is_some());
        latest.put(newest("3"));
        let narrow = latest.follow(1);
        assert!(latest.put(large()).is_none());
        assert!(latest.put(newest("a little more")).is_some());
        drop((wide, narrow));
        assert!(latest.put(large()).is_some());
    }

    proptest! {
        #[test]
        fn gaps_are_the_places_between(places in prop::collection::btree_set(0..300_usize, 0..300)) {
            let mut followers = Followers::default();
            places.iter().for_each(|place| followers.insert(*place));
            prop_assert_eq!(followers.count(), places.len());
            let gaps: BTreeSet<_> =
                std::iter::successors(Some(followers.gap(0)), |gap| Some(followers.gap(gap + 1))).take_while(|gap| *gap < 300).collect();
            prop_assert_eq!(gaps, (0..300).filter(|place| !places.contains(place)).collect());
            places.iter().for_each(|place| followers.remove(*place));
            prop_assert_eq!(followers.count(), 0);
        }
    }
}
