//! Who reads what of that which all sessions share, and the deliveries that a message makes for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::task::yield_now;

use crate::broker::downlink::{Downlink, Kept};
use crate::delivery::latest::{Followers, Latest, Newest};
use crate::delivery::{self, Delivery, Rendition, subscription_id};
use crate::metrics;
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Message, Qos, Topic, TopicFilter};
use crate::wire::{Contract, Format, Priority, Subscription};

/// A place in [`Readers`], given again when it is free.
pub type Index = usize;

/// Sessions, the filters they read, and which reads which.
#[derive(Default)]
pub struct Readers {
    members: Places<Member>,
    filters: Places<Filter>,
    by_filter: HashMap<TopicFilter, Index>,
    by_id: HashMap<u32, SmallVec<[Index; 1]>>,
}

/// A session.
pub struct Member {
    /// Its name, given once.
    number: u64,
    /// Where its deliveries go.
    pub downlink: Arc<Downlink>,
    subscriptions: SmallVec<[Own; 1]>,
}

/// One of a session's subscriptions.
struct Own {
    filter: Index,
    /// Where in the filter's readers.
    at: usize,
    retain_handling: u8,
}

/// A filter and its readers.
pub struct Filter {
    /// What is asked of the broker.
    pub filter: TopicFilter,
    readers: Vec<Reader>,
    /// How many of them have a rate.
    rated: usize,
    streams: Streams,
}

/// By topic, the newest message in each form in which it waits for readers that have a rate. These are known by their places in the
/// filter, so all is forgotten when a place comes to another: who waits for what is here keeps it.
#[derive(Default)]
struct Streams {
    by_topic: HashMap<Topic, InForms>,
    /// With so many topics, those that nobody waits for are looked for.
    look_at: usize,
}

type InForms = SmallVec<[(Form, Arc<Latest>); 1]>;

/// One session's reading of a filter.
struct Reader {
    member: Index,
    downlink: Arc<Downlink>,
    contract: Contract,
    reader: delivery::subscriptions::Reader,
    granted: Qos,
    retain_as_published: bool,
    /// Its frames may be written as soon as they come.
    goes_at_once: bool,
}

/// Who has to hear what came of a message.
#[derive(Debug, Default)]
pub struct Offered {
    /// Sessions that have something new waiting.
    waking: Vec<Arc<Downlink>>,
    /// Sessions whose queues are over their bound with what can't be dropped.
    pub slow: Vec<Index>,
}

/// Frames that are written before the other tasks have their turn.
const WRITES_A_TURN: usize = 1024;
/// Topics of a filter that are remembered without looking whether somebody waits for them.
const FEW_TOPICS: usize = 64;
/// Frames that are written between two looks at the clock.
const WRITES_A_LOOK: usize = 16;

impl Readers {
    /// Gives what one read of the broker brought to all who read it: what can be written at once is, the rest waits. Nobody is woken yet.
    pub async fn offer(&mut self, deliveries: &[Delivery]) -> Offered {
        let mut offered = Offered::default();
        // Of a stream one message follows the other: each reader's queue is looked at once for all of them.
        for run in deliveries.chunk_by(|one, next| one.readers == next.readers) {
            match self.filters_of(&run[0]).as_slice() {
                [] => {}
                [only] => self.offer_to(*only, run, &mut offered).await,
                several => run.iter().for_each(|delivery| self.offer_to_each(several, delivery, &mut offered)),
            }
        }
        offered
    }

    /// The filters that a delivery of the broker is for.
    pub fn filters_of(&self, delivery: &Delivery) -> SmallVec<[Index; 2]> {
        let topic = &delivery.rendition.message.topic;
        let of_id =
            |reader: &delivery::subscriptions::Reader| self.by_id.get(&reader.id).into_iter().flatten().copied();
        let matches = |index: &Index| self.filters.get(*index).is_some_and(|filter| filter.filter.matches(topic));
        delivery.readers.iter().flat_map(of_id).filter(matches).collect()
    }

    /// Most filters stand alone: then whoever reads it gets one frame.
    async fn offer_to(&mut self, index: Index, run: &[Delivery], offered: &mut Offered) {
        let Some(filter) = self.filters.get_mut(index) else { return };
        if filter.rated < filter.readers.len() {
            filter.offer(run, offered).await;
        }
        if filter.rated > 0 {
            for delivery in run {
                filter.offer_to_rated(delivery, offered).await;
            }
        }
    }

    /// A session that reads several of the filters gets a frame for each contract.
    fn offer_to_each(&self, indexes: &[Index], delivery: &Delivery, offered: &mut Offered) {
        let mut readers: Vec<&Reader> =
            indexes.iter().filter_map(|index| self.filters.get(*index)).flat_map(|filter| &filter.readers).collect();
        readers.sort_by_key(|reader| reader.member);
        let mut forms = Vec::new();
        for own in readers.chunk_by(|one, other| one.member == other.member) {
            let [first, ..] = own else { continue };
            let deliveries = targets(own).into_iter().enumerate().map(|(number, (contract, carrier, readers))| {
                let rendition = form(&mut forms, carrier.form(), std::slice::from_ref(delivery)).renditions[0].clone();
                let msgid = delivery.msgid.as_ref().filter(|_| rendition.message.qos > Qos::AtMostOnce);
                Delivery {
                    rendition,
                    contract,
                    readers,
                    msgid: msgid
                        .map(|msgid| if number == 0 { msgid.clone() } else { format!("{msgid}-{number}").into() }),
                    dup: delivery.dup,
                    receipt: None,
                    skipped: 0,
                }
            });
            offered.keep(first, first.downlink.offer_or_drop(deliveries));
        }
    }

    /// Gives a stored message to one session that has just subscribed, for that subscription alone.
    pub fn offer_stored(&self, member: Index, filter: &TopicFilter, found: &Delivery) {
        let Some(reader) = self.reader(member, filter) else { return };
        let mut forms = Vec::new();
        let as_stored = Form { retain_as_published: true, ..reader.form() };
        let rendition = &form(&mut forms, as_stored, std::slice::from_ref(found)).renditions[0];
        let delivery = reader.delivery(Newest { dup: false, ..newest(found, rendition) });
        reader.downlink.offer_or_drop([delivery].into_iter());
        reader.downlink.to_session.raise();
    }

    /// A new session.
    pub fn enter(&mut self, number: u64, downlink: Arc<Downlink>) -> Index {
        self.members.add(Member { number, downlink, subscriptions: SmallVec::new() })
    }

    /// The session leaves; gives back the filters that nobody reads any more.
    pub fn leave(&mut self, member: Index) -> Vec<TopicFilter> {
        let Some(gone) = self.members.get(member) else { return Vec::new() };
        let filters: Vec<_> = gone.subscriptions.iter().map(|own| own.filter).collect();
        let unread = filters.into_iter().filter_map(|filter| self.end(member, filter)).collect();
        self.members.remove(member);
        unread
    }

    /// Someone reads a filter from now on, in the place of an earlier reading of it. Says whether it is new to the session.
    pub fn read(&mut self, member: Index, subscription: &Subscription, granted: Qos) -> bool {
        let index = self.filter(&subscription.filter);
        let Some(session) = self.members.get_mut(member) else { return false };
        let filter = self.filters.get_mut(index).expect("it was found, or made");
        let reader = Reader {
            member,
            downlink: session.downlink.clone(),
            contract: subscription.contract,
            reader: delivery::subscriptions::Reader {
                id: subscription_id(&subscription.filter),
                sid: subscription.sid,
                is_shared: false,
            },
            granted,
            retain_as_published: subscription.options.retain_as_published,
            goes_at_once: subscription.contract.goes_at_once(),
        };
        let retain_handling = subscription.options.retain_handling;
        match session.subscriptions.iter_mut().find(|own| own.filter == index) {
            Some(own) => {
                own.retain_handling = retain_handling;
                filter.replace(own.at, reader);
                false
            }
            None => {
                session.subscriptions.push(Own { filter: index, at: filter.readers.len(), retain_handling });
                filter.add(reader);
                true
            }
        }
    }

    /// The session reads the filter no more. Gives back the filter if it was the last.
    pub fn unread(&mut self, member: Index, filter: &TopicFilter) -> Option<TopicFilter> {
        let index = *self.by_filter.get(filter)?;
        self.end(member, index)
    }

    fn end(&mut self, member: Index, index: Index) -> Option<TopicFilter> {
        let session = self.members.get_mut(member)?;
        let place = session.subscriptions.iter().position(|own| own.filter == index)?;
        let Own { at, .. } = session.subscriptions.swap_remove(place);
        let filter = self.filters.get_mut(index)?;
        filter.remove(at);
        if let Some(moved) = filter.readers.get(at).map(|reader| reader.member)
            && let Some(session) = self.members.get_mut(moved)
            && let Some(own) = session.subscriptions.iter_mut().find(|own| own.filter == index)
        {
            own.at = at;
        }
        let filter = self.filters.get_mut(index)?;
        if !filter.readers.is_empty() {
            return None;
        }
        let filter = self.filters.remove(index)?.filter;
        self.by_filter.remove(&filter);
        let id = subscription_id(&filter);
        if let Some(same) = self.by_id.get_mut(&id) {
            same.retain(|other| *other != index);
            if same.is_empty() {
                self.by_id.remove(&id);
            }
        }
        Some(filter)
    }

    /// The place of a filter, which is made if there is none.
    fn filter(&mut self, filter: &TopicFilter) -> Index {
        if let Some(index) = self.by_filter.get(filter) {
            return *index;
        }
        let index = self.filters.add(Filter::new(filter.clone()));
        self.by_filter.insert(filter.clone(), index);
        self.by_id.entry(subscription_id(filter)).or_default().push(index);
        index
    }

    fn reader(&self, member: Index, filter: &TopicFilter) -> Option<&Reader> {
        let index = *self.by_filter.get(filter)?;
        let own = self.members.get(member)?.subscriptions.iter().find(|own| own.filter == index)?;
        self.filters.get(index)?.readers.get(own.at)
    }

    /// The session at a place.
    pub fn member(&self, member: Index) -> Option<&Member> {
        self.members.get(member)
    }

    /// Who reads a filter.
    pub fn members_of(&self, filter: &TopicFilter) -> Vec<Index> {
        let index = self.by_filter.get(filter);
        let filter = index.and_then(|index| self.filters.get(*index));
        filter.map_or_else(Vec::new, |filter| filter.readers.iter().map(|reader| reader.member).collect())
    }

    /// Who reads what and wants stored messages whenever the broker has been asked for it.
    pub fn wanting_stored(&self) -> Vec<(u64, TopicFilter)> {
        let of_member = |session: &Member| {
            let wanting = session.subscriptions.iter().filter(|own| own.retain_handling == 0);
            let filters = wanting.filter_map(|own| self.filters.get(own.filter));
            filters.map(|filter| (session.number, filter.filter.clone())).collect::<Vec<_>>()
        };
        self.members.iter().flat_map(of_member).collect()
    }

    /// What a session was granted for a filter, if it reads it.
    pub fn granted(&self, member: Index, filter: &TopicFilter) -> Option<Qos> {
        self.reader(member, filter).map(|reader| reader.granted)
    }

    /// What a session reads, as it would ask for it again: but for what is stored, which it has.
    pub fn subscriptions_of(&self, member: Index) -> Vec<Subscription> {
        let Some(session) = self.members.get(member) else { return Vec::new() };
        let subscription = |own: &Own| {
            let filter = self.filters.get(own.filter)?;
            let reader = filter.readers.get(own.at)?;
            let options = SubscribeOptions {
                qos: reader.granted,
                no_local: false,
                retain_as_published: reader.retain_as_published,
                retain_handling: 2,
            };
            let (sid, contract) = (reader.reader.sid, reader.contract);
            Some(Subscription { filter: filter.filter.clone(), options, sid, contract })
        };
        session.subscriptions.iter().filter_map(subscription).collect()
    }

    /// Whether the session reads the filter at that place.
    pub fn reads(&self, member: Index, filter: Index) -> bool {
        self.members.get(member).is_some_and(|session| session.subscriptions.iter().any(|own| own.filter == filter))
    }

    /// The filter at a place.
    pub fn name(&self, filter: Index) -> Option<&TopicFilter> {
        self.filters.get(filter).map(|filter| &filter.filter)
    }

    /// How many subscriptions a session has.
    pub fn subscriptions(&self, member: Index) -> usize {
        self.members.get(member).map_or(0, |session| session.subscriptions.len())
    }
}

impl Filter {
    fn new(filter: TopicFilter) -> Filter {
        Filter { filter, readers: Vec::new(), rated: 0, streams: Streams::default() }
    }

    fn add(&mut self, reader: Reader) {
        self.rated += usize::from(reader.is_rated());
        self.readers.push(reader);
    }

    fn replace(&mut self, at: usize, reader: Reader) {
        self.streams = Streams::default();
        self.rated = self.rated + usize::from(reader.is_rated()) - usize::from(self.readers[at].is_rated());
        self.readers[at] = reader;
    }

    /// The last takes its place.
    fn remove(&mut self, at: usize) {
        self.streams = Streams::default();
        self.rated -= usize::from(self.readers.swap_remove(at).is_rated());
    }

    /// Gives messages to all readers without a rate.
    async fn offer(&self, run: &[Delivery], offered: &mut Offered) {
        let mut forms = Vec::new();
        for turn in self.readers.chunks(WRITES_A_TURN) {
            for readers in turn.chunks(WRITES_A_LOOK) {
                readers.iter().for_each(|reader| reader.downlink.touch());
                let unrated = readers.iter().filter(|reader| !reader.is_rated());
                unrated.for_each(|reader| offer_run(reader, run, &mut forms, offered));
                let now = Instant::now();
                for form in &mut forms {
                    form.count(now);
                }
            }
            if self.readers.len() > WRITES_A_TURN {
                yield_now().await;
            }
        }
    }

    /// Gives a message to all readers with a rate. Those for whom an older one waits already get this one when they take that.
    async fn offer_to_rated(&mut self, delivery: &Delivery, offered: &mut Offered) {
        let message = std::slice::from_ref(delivery);
        let mut forms = Vec::new();
        let streams = self.streams.of(&delivery.rendition.message.topic);
        let mut followers = Followers::default();
        streams.retain(|(as_form, latest)| {
            let rendition = &form(&mut forms, *as_form, message).renditions[0];
            let put = latest.put(newest(delivery, rendition));
            put.inspect(|all| followers.join(all)).is_some()
        });
        metrics::deliveries_conflated(followers.count());
        let (mut place, mut offers) = (followers.gap(0), 0);
        while let Some(reader) = self.readers.get(place) {
            if reader.is_rated() {
                let newest = newest(delivery, &form(&mut forms, reader.form(), message).renditions[0]);
                let known = streams.iter().position(|(form, _)| *form == reader.form());
                let at = known.unwrap_or_else(|| {
                    streams.push((reader.form(), Latest::new(newest.clone())));
                    streams.len() - 1
                });
                offered.keep(reader, reader.downlink.follow(reader.delivery(newest), (&streams[at].1, place)));
                offers += 1;
                if offers % WRITES_A_TURN == 0 {
                    yield_now().await;
                }
            }
            place = followers.gap(place + 1);
        }
    }
}

impl Streams {
    /// Those of a topic, with room for more.
    fn of(&mut self, topic: &Topic) -> &mut InForms {
        if self.by_topic.len() >= self.look_at && !self.by_topic.contains_key(topic) {
            self.by_topic.retain(|_, streams| !streams.iter().all(|(_, latest)| latest.is_unfollowed()));
            self.look_at = FEW_TOPICS.max(2 * self.by_topic.len());
        }
        self.by_topic.entry(topic.clone()).or_default()
    }
}

fn offer_run(reader: &Reader, run: &[Delivery], forms: &mut Vec<Made>, offered: &mut Offered) {
    let made = form(forms, reader.form(), run);
    let deliveries = |renditions: &[Arc<Rendition>]| {
        let pairs = run.iter().zip(renditions);
        pairs.map(|(delivery, rendition)| reader.delivery(newest(delivery, rendition))).collect::<SmallVec<[_; 1]>>()
    };
    if reader.goes_at_once {
        let encode = |renditions| reader.downlink.frames(deliveries(renditions).iter());
        // Frames that say nothing of a session's own are the same for all.
        let own;
        let frames = if reader.reader.sid.is_some() {
            own = encode(&made.renditions);
            &own
        } else {
            if made.frames.is_none() {
                made.frames = encode(&made.renditions);
            }
            &made.frames
        };
        if frames.as_ref().is_some_and(|frames| reader.downlink.send(frames)) {
            made.sent += 1;
            return;
        }
    }
    offered.keep(reader, reader.downlink.offer_or_drop(deliveries(&made.renditions).into_iter()));
}

impl Offered {
    fn keep(&mut self, reader: &Reader, kept: Kept) {
        if !kept.fits {
            self.slow.push(reader.member);
        }
        if kept.wakes {
            self.waking.push(reader.downlink.clone());
        }
    }

    /// Wakes who has something new.
    pub fn wake(&self) {
        self.waking.iter().for_each(|downlink| downlink.to_session.raise());
    }
}

/// What of a reading decides how a message is encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Form {
    format: Format,
    granted: Qos,
    retain_as_published: bool,
}

impl Reader {
    fn form(&self) -> Form {
        Form { format: self.contract.format, granted: self.granted, retain_as_published: self.retain_as_published }
    }

    fn is_rated(&self) -> bool {
        self.contract.max_rate.is_some()
    }

    fn delivery(&self, Newest { rendition, msgid, dup }: Newest) -> Delivery {
        Delivery {
            rendition,
            contract: self.contract,
            readers: SmallVec::from_buf([self.reader]),
            msgid,
            dup,
            receipt: None,
            skipped: 0,
        }
    }
}

/// A message of the broker in one of its forms.
fn newest(delivery: &Delivery, rendition: &Arc<Rendition>) -> Newest {
    let msgid = delivery.msgid.clone().filter(|_| rendition.message.qos > Qos::AtMostOnce);
    Newest { rendition: rendition.clone(), msgid, dup: delivery.dup }
}

/// Messages in one form.
struct Made {
    form: Form,
    renditions: Vec<Arc<Rendition>>,
    /// The same as they go over the wire, where they say nothing of a session's own.
    frames: Option<Bytes>,
    /// Sessions that they were written to and are not counted.
    sent: usize,
}

impl Made {
    fn count(&mut self, now: Instant) {
        let sent = std::mem::take(&mut self.sent);
        if sent > 0 {
            for rendition in &self.renditions {
                metrics::delivered_to(sent, &rendition.message, now.saturating_duration_since(rendition.received));
            }
        }
    }
}

/// The messages in this form, made once for all who want it.
fn form<'a>(forms: &'a mut Vec<Made>, form: Form, of: &[Delivery]) -> &'a mut Made {
    let known = forms.iter().position(|made| made.form == form);
    let at = known.unwrap_or_else(|| {
        let renditions = of.iter().map(|delivery| {
            let Rendition { message, timestamp, received, .. } = &*delivery.rendition;
            let message = Message {
                qos: message.qos.min(form.granted),
                retain: message.retain && form.retain_as_published,
                ..message.clone()
            };
            Arc::new(Rendition::new(message, form.format, *timestamp, *received))
        });
        forms.push(Made { form, renditions: renditions.collect(), frames: None, sent: 0 });
        forms.len() - 1
    });
    &mut forms[at]
}

type Target<'a> = (Contract, &'a Reader, SmallVec<[delivery::subscriptions::Reader; 1]>);

/// One target for each distinct contract of a session's readings, and of these the one with the highest QoS.
fn targets<'a>(readers: &[&'a Reader]) -> SmallVec<[Target<'a>; 2]> {
    let mut targets: SmallVec<[Target; 2]> = SmallVec::new();
    for reader in readers {
        match targets.iter_mut().find(|(contract, ..)| *contract == reader.contract) {
            Some((_, carrier, readers)) => {
                if reader.granted > carrier.granted {
                    *carrier = reader;
                }
                readers.push(reader.reader);
            }
            None => targets.push((reader.contract, reader, SmallVec::from_buf([reader.reader]))),
        }
    }
    targets.sort_by_key(|(contract, ..)| (contract.priority != Priority::Normal, *contract));
    targets
}

/// Values at places that are given again.
struct Places<T> {
    places: Vec<Option<T>>,
    free: Vec<Index>,
}

impl<T> Default for Places<T> {
    fn default() -> Places<T> {
        Places { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Places<T> {
    fn add(&mut self, value: T) -> Index {
        match self.free.pop() {
            Some(index) => {
                self.places[index] = Some(value);
                index
            }
            None => {
                self.places.push(Some(value));
                self.places.len() - 1
            }
        }
    }

    fn remove(&mut self, index: Index) -> Option<T> {
        let value = self.places.get_mut(index)?.take()?;
        self.free.push(index);
        Some(value)
    }

    fn get(&self, index: Index) -> Option<&T> {
        self.places.get(index)?.as_ref()
    }

    fn get_mut(&mut self, index: Index) -> Option<&mut T> {
        self.places.get_mut(index)?.as_mut()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::link::{Abilities, Event, Ready};
    use crate::broker::signal::Raise;
    use crate::wire::Rate;

    /// Readers of "t" with a rate, and how one comes among them.
    #[derive(Default)]
    struct Room(Readers);

    impl Room {
        fn enter(&mut self) -> (Index, Arc<Downlink>) {
            let downlink = Downlink::new(Default::default(), Arc::default(), Raise::default());
            let abilities = Abilities {
                receive_maximum: 1,
                maximum_qos: Qos::ExactlyOnce,
                maximum_packet_size: 1000,
                retain: true,
                shared: true,
                wildcards: true,
                subscription_ids: true,
            };
            let client_id = "anna".to_owned();
            downlink.tell(Event::Ready(Ready { client_id, session_present: false, subscriptions: vec![], abilities }));
            let member = self.0.enter(0, downlink.clone());
            self.read(member, 1.0);
            (member, downlink)
        }

        fn read(&mut self, member: Index, rate: f64) {
            let contract = Contract { max_rate: Rate::per_second(rate), ..Contract::default() };
            let filter = TopicFilter::parse("t").expect("a filter");
            let options = SubscribeOptions {
                qos: Qos::AtMostOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: 0,
            };
            self.0.read(member, &Subscription { filter, options, sid: None, contract }, Qos::AtMostOnce);
        }

        async fn offer(&mut self, payload: &'static str) {
            let topic = Topic::parse("t").expect("a topic");
            let payload = Bytes::from_static(payload.as_bytes());
            let mut delivery =
                Delivery::plain(Message { topic, payload, qos: Qos::AtMostOnce, retain: false, properties: None });
            let id = subscription_id(&TopicFilter::parse("t").expect("a filter"));
            delivery.readers.push(delivery::subscriptions::Reader { id, sid: None, is_shared: false });
            self.0.offer(&[delivery]).await;
        }
    }

    /// What waits and may go so many seconds from now.
    fn taken(downlink: &Downlink, seconds: u64) -> Vec<(Bytes, Contract)> {
        let taken = downlink.take(Some(usize::MAX), Instant::now() + Duration::from_secs(seconds)).deliveries;
        taken.into_iter().map(|delivery| (delivery.rendition.message.payload.clone(), delivery.contract)).collect()
    }

    fn payloads(downlink: &Downlink, seconds: u64) -> Vec<Bytes> {
        taken(downlink, seconds).into_iter().map(|(payload, _)| payload).collect()
    }

    #[tokio::test]
    async fn who_comes_to_the_place_of_a_reader_that_follows_is_offered_what_comes() {
        let mut room = Room::default();
        let (anna, hers) = room.enter();
        let (_, his) = room.enter();
        room.offer("1").await;
        room.offer("2").await;
        // She has left and has not let go of what waits for her; he has her place from now on.
        room.0.leave(anna);
        assert_eq!(payloads(&his, 0), ["2"]);
        room.offer("3").await;
        assert_eq!(payloads(&his, 5), ["3"]);
        assert_eq!(payloads(&hers, 0), ["2"], "what came before she left");
    }

    #[tokio::test]
    async fn who_comes_while_others_follow_is_offered_what_comes() {
        let mut room = Room::default();
        let (_, his) = room.enter();
        room.offer("1").await;
        let (_, hers) = room.enter();
        let (_, theirs) = room.enter();
        room.offer("2").await;
        for downlink in [his, hers, theirs] {
            assert_eq!(payloads(&downlink, 0), ["2"]);
        }
    }

    #[tokio::test]
    async fn a_reader_with_another_rate_is_offered_what_comes_by_that() {
        let mut room = Room::default();
        let (anna, hers) = room.enter();
        room.offer("1").await;
        room.read(anna, 2.0);
        room.offer("2").await;
        let of_two = Contract { max_rate: Rate::per_second(2.0), ..Contract::default() };
        assert_eq!(taken(&hers, 0), [("2".into(), of_two)]);
    }
}
