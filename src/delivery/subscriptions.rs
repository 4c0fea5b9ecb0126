//! Which of a session's subscriptions a message from the broker is for.
//!
//! A broker sends a copy of a message for each subscription that it matches, each with the identifier of its subscription, or one
//! copy that names several or none (MQTT 5 section 3.3.4). A browser gets one frame for each distinct contract among them.

use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::mqtt::packet::MAX_VARIABLE_INTEGER;
use crate::mqtt::{Message, Qos, TopicFilter, Trie};
use crate::wire::{Ack, Contract, Priority, Subscription};

/// The subscription identifier of a filter: the same in every gateway process, so that a resumed session can be served by any.
pub fn subscription_id(filter: &TopicFilter) -> u32 {
    (xxh3_64(filter.as_str().as_bytes()) % MAX_VARIABLE_INTEGER as u64) as u32 + 1
}

/// One session's subscriptions.
#[derive(Debug, Default)]
pub struct Subscriptions {
    by_id: BTreeMap<u32, Box<SmallVec<[Entry; 1]>>>,
    /// The subscriptions by pattern, where they are not [`FEW`]; shared ones are found by identifier alone.
    patterns: Option<Box<Trie<TopicFilter>>>,
    /// Subscriptions that were ended on this connection: what the broker still had queued for them is not wanted.
    ended: VecDeque<u32>,
    /// How many of them were allowed in part.
    narrowed: usize,
    /// How deliveries are confirmed that match nothing here, where the broker remembered subscriptions from an earlier connection.
    resumed: Option<Ack>,
}

#[derive(Debug)]
struct Entry {
    subscription: Subscription,
    granted: Qos,
    /// Only part of its messages may be delivered, so each is judged.
    is_narrowed: bool,
}

/// Where a message from the broker goes.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// To the browser, as one frame for each target.
    Deliver(SmallVec<[Target; 1]>),
    /// Nowhere: another copy carries it, or its subscription has ended. It is confirmed.
    Drop,
    /// Nowhere: the session may not have it. It is confirmed.
    Refuse,
    /// It belongs to a subscription that this session never made: somebody else who uses the same client identifier will want it.
    /// It is not confirmed.
    Withhold,
}

/// One frame of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// How it comes.
    pub contract: Contract,
    /// The lower of the message's QoS and the highest granted in this contract.
    pub qos: Qos,
    /// The subscriptions it comes for.
    pub readers: SmallVec<[Reader; 1]>,
}

/// A subscription as a queued delivery knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// The identifier at the broker.
    pub id: u32,
    /// The client's number.
    pub sid: Option<i64>,
    /// It is shared with other sessions, so that its messages are its own.
    pub is_shared: bool,
}

/// So many subscriptions are looked through one by one: most sessions have no more, and need no trie.
const FEW: usize = 8;
/// Ended subscriptions that are remembered.
const MAX_ENDED: usize = 4096;

impl Subscriptions {
    /// Where a message goes that the broker sent with these subscription identifiers. `may_receive` judges it by its topic, where no
    /// subscription that was allowed as a whole speaks for it.
    pub fn route(&self, message: &Message, ids: &[u32], may_receive: impl Fn(&Message) -> bool) -> Route {
        let route = self.route_all(message, ids);
        let is_judged = match &route {
            // Of a subscription that the broker remembered nothing is known here.
            Route::Deliver(targets) => self.narrowed > 0 || targets.iter().any(|target| target.readers.is_empty()),
            Route::Drop | Route::Refuse | Route::Withhold => false,
        };
        if is_judged && !may_receive(message) { Route::Refuse } else { route }
    }

    fn route_all(&self, message: &Message, ids: &[u32]) -> Route {
        let known: SmallVec<[&Entry; 2]> = ids
            .iter()
            .flat_map(|id| self.by_id.get(id).into_iter().flat_map(|entries| entries.iter()))
            .filter(|entry| entry.subscription.filter.matches(&message.topic))
            .collect();
        match known.as_slice() {
            [] if !ids.is_empty() => self.route_unknown(message.qos, ids),
            [] => match self.matching(message) {
                all if all.is_empty() => self.route_unknown(message.qos, ids),
                all => Route::Deliver(targets(message, &all)),
            },
            [only] => self.route_copy(message, only),
            several => Route::Deliver(targets(message, several)),
        }
    }

    /// A copy for one subscription. Of the live copies for one contract, that of the highest granted subscription is delivered, in
    /// the name of all; stored messages come because of one subscribe and are for that subscription alone.
    fn route_copy(&self, message: &Message, entry: &Entry) -> Route {
        let subscription = &entry.subscription;
        let alone = subscription.filter.is_shared() || (message.retain && !subscription.options.retain_as_published);
        if alone || self.by_id.len() == 1 {
            return Route::Deliver(targets(message, &[entry]));
        }
        let mut sharing = self.matching(message);
        sharing.retain(|other| other.subscription.contract == subscription.contract);
        let carrier = sharing.iter().max_by_key(|other| precedence(other));
        if carrier.is_some_and(|carrier| carrier.subscription.filter != subscription.filter) {
            return Route::Drop;
        }
        Route::Deliver(targets(message, &sharing))
    }

    fn route_unknown(&self, qos: Qos, ids: &[u32]) -> Route {
        if ids.iter().any(|id| self.ended.contains(id)) {
            return Route::Drop;
        }
        let Some(ack) = self.resumed else {
            // Of a broker that names no subscriptions, it is taken for what one that has ended had queued.
            return if ids.is_empty() && !self.ended.is_empty() { Route::Drop } else { Route::Withhold };
        };
        let contract = Contract { ack, ..Contract::default() };
        Route::Deliver(SmallVec::from_iter([Target { contract, qos, readers: SmallVec::new() }]))
    }

    fn matching(&self, message: &Message) -> SmallVec<[&Entry; 2]> {
        let Some(patterns) = &self.patterns else {
            let matches = |entry: &&Entry| {
                let filter = &entry.subscription.filter;
                !filter.is_shared() && filter.matches(&message.topic)
            };
            return self.entries().filter(matches).collect();
        };
        let mut matching = SmallVec::new();
        patterns.for_each_match(message.topic.as_ref(), |filter| matching.extend(self.entry(filter)));
        matching
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.by_id.values().flat_map(|entries| entries.iter())
    }

    fn entry(&self, filter: &TopicFilter) -> Option<&Entry> {
        self.by_id.get(&subscription_id(filter))?.iter().find(|entry| entry.subscription.filter == *filter)
    }

    /// The broker resumed a session: deliveries that match nothing here come all the same.
    pub fn resume(&mut self, ack: Ack) {
        self.resumed = Some(ack);
    }

    /// The subscription is in force, in the place of an earlier one for the same filter.
    pub fn insert(&mut self, subscription: Subscription, granted: Qos, is_narrowed: bool) {
        let filter = subscription.filter.clone();
        let id = subscription_id(&filter);
        self.ended.retain(|ended| *ended != id);
        let entries = self.by_id.entry(id).or_default();
        match entries.iter_mut().find(|entry| entry.subscription.filter == filter) {
            Some(entry) => {
                self.narrowed -= usize::from(entry.is_narrowed);
                *entry = Entry { subscription, granted, is_narrowed };
            }
            None => {
                entries.push(Entry { subscription, granted, is_narrowed });
                match &mut self.patterns {
                    Some(patterns) if !filter.is_shared() => drop(patterns.insert(filter.pattern(), filter.clone())),
                    Some(_) => {}
                    None if self.by_id.len() > FEW => self.patterns = Some(Box::new(self.all_patterns())),
                    None => {}
                }
            }
        }
        self.narrowed += usize::from(is_narrowed);
    }

    /// Whether a subscription is allowed in part has changed.
    pub fn set_narrowed(&mut self, filter: &TopicFilter, is_narrowed: bool) {
        let entries = self.by_id.get_mut(&subscription_id(filter));
        let entry = entries.and_then(|entries| entries.iter_mut().find(|entry| entry.subscription.filter == *filter));
        if let Some(entry) = entry {
            self.narrowed = self.narrowed - usize::from(entry.is_narrowed) + usize::from(is_narrowed);
            entry.is_narrowed = is_narrowed;
        }
    }

    /// Whether some were allowed in part.
    pub fn has_narrowed(&self) -> bool {
        self.narrowed > 0
    }

    fn all_patterns(&self) -> Trie<TopicFilter> {
        let mut patterns = Trie::default();
        for filter in self.iter().map(|subscription| &subscription.filter).filter(|filter| !filter.is_shared()) {
            patterns.insert(filter.pattern(), filter.clone());
        }
        patterns
    }

    /// The subscription has ended; what the broker still has queued for it will not be delivered.
    pub fn remove(&mut self, filter: &TopicFilter) {
        let id = subscription_id(filter);
        if let Some(entries) = self.by_id.get_mut(&id) {
            let is_gone = |entry: &Entry| entry.subscription.filter == *filter;
            self.narrowed -= entries.iter().filter(|entry| is_gone(entry) && entry.is_narrowed).count();
            entries.retain(|entry| !is_gone(entry));
            if entries.is_empty() {
                self.by_id.remove(&id);
            }
        }
        if let Some(patterns) = self.patterns.as_mut().filter(|_| !filter.is_shared()) {
            patterns.remove(filter.pattern(), filter);
        }
        if !self.ended.contains(&id) {
            self.ended.truncate(MAX_ENDED - 1);
            self.ended.push_front(id);
        }
    }

    /// Whether this filter is subscribed.
    pub fn contains(&self, filter: &TopicFilter) -> bool {
        self.entry(filter).is_some()
    }

    /// All that must be asked of a broker that has lost the session.
    pub fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.entries().map(|entry| &entry.subscription)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.values().map(|entries| entries.len()).sum()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

/// Who carries a message for a contract: one that also gets the session's own messages, then the highest QoS, then any fixed order.
fn precedence(entry: &Entry) -> (bool, Qos, &TopicFilter) {
    (!entry.subscription.options.no_local, entry.granted, &entry.subscription.filter)
}

/// One target for each distinct contract, manual confirmation first, then normal priority: the first one's msgid is the message's own.
fn targets(message: &Message, entries: &[&Entry]) -> SmallVec<[Target; 1]> {
    let mut targets: SmallVec<[Target; 1]> = SmallVec::new();
    for entry in entries {
        let contract = entry.subscription.contract;
        let qos = message.qos.min(entry.granted);
        let filter = &entry.subscription.filter;
        let reader = Reader { id: subscription_id(filter), sid: entry.subscription.sid, is_shared: filter.is_shared() };
        match targets.iter_mut().find(|target| target.contract == contract) {
            Some(target) => {
                target.qos = target.qos.max(qos);
                target.readers.push(reader);
            }
            None => targets.push(Target { contract, qos, readers: SmallVec::from_iter([reader]) }),
        }
    }
    targets.sort_by_key(|Target { contract, .. }| (contract.ack, contract.priority != Priority::Normal, *contract));
    targets
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mqtt::Topic;
    use crate::mqtt::packet::SubscribeOptions;
    use crate::wire::Format;

    fn subscription(filter: &str, sid: i64) -> Subscription {
        let options =
            SubscribeOptions { qos: Qos::ExactlyOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
        let filter = TopicFilter::parse(filter).expect("a filter");
        Subscription { filter, options, sid: Some(sid), contract: Contract::default() }
    }

    impl Subscriptions {
        /// The route of a message in a session that may have everything.
        fn routed(&self, message: &Message, ids: &[u32]) -> Route {
            self.route(message, ids, |_| true)
        }
    }

    fn message(topic: &str, qos: Qos) -> Message {
        Message {
            topic: Topic::parse(topic).expect("a topic"),
            payload: Bytes::new(),
            qos,
            retain: false,
            properties: None,
        }
    }

    fn id(filter: &str) -> u32 {
        subscription_id(&TopicFilter::parse(filter).expect("a filter"))
    }

    fn sids(route: &Route) -> Vec<(u8, Vec<i64>)> {
        let Route::Deliver(targets) = route else { panic!("{route:?}") };
        let sids = |target: &Target| {
            let mut sids: Vec<_> = target.readers.iter().filter_map(|reader| reader.sid).collect();
            sids.sort();
            (target.qos.number(), sids)
        };
        targets.iter().map(sids).collect()
    }

    #[test]
    fn an_identifier_is_fixed_and_within_the_range_of_the_standard() {
        assert_eq!(id("attic/#"), id("attic/#"));
        assert_ne!(id("attic/#"), id("attic/+"));
        for filter in ["a", "b/#", "$share/g/a", "+"] {
            assert!((1..=MAX_VARIABLE_INTEGER as u32).contains(&id(filter)));
        }
    }

    #[test]
    fn of_the_copies_for_one_contract_that_of_the_highest_qos_is_delivered_for_all() {
        let mut table = Subscriptions::default();
        table.insert(subscription("a/#", 1), Qos::AtMostOnce, false);
        table.insert(subscription("a/b", 2), Qos::AtLeastOnce, false);
        table.insert(subscription("x", 3), Qos::ExactlyOnce, false);
        assert_eq!(table.routed(&message("a/b", Qos::AtMostOnce), &[id("a/#")]), Route::Drop);
        assert_eq!(sids(&table.routed(&message("a/b", Qos::AtLeastOnce), &[id("a/b")])), [(1, vec![1, 2])]);
        assert_eq!(sids(&table.routed(&message("a/c", Qos::AtMostOnce), &[id("a/#")])), [(0, vec![1])]);
    }

    #[test]
    fn distinct_contracts_get_a_frame_each() {
        let mut table = Subscriptions::default();
        table.insert(subscription("a/#", 1), Qos::AtLeastOnce, false);
        let json = Contract { format: Format::Json, ..Contract::default() };
        table.insert(Subscription { contract: json, ..subscription("a/b", 2) }, Qos::AtMostOnce, false);
        assert_eq!(sids(&table.routed(&message("a/b", Qos::AtLeastOnce), &[id("a/#")])), [(1, vec![1])]);
        assert_eq!(sids(&table.routed(&message("a/b", Qos::AtMostOnce), &[id("a/b")])), [(0, vec![2])]);
        let both = table.routed(&message("a/b", Qos::AtLeastOnce), &[id("a/b"), id("a/#")]);
        assert_eq!(sids(&both), [(1, vec![1]), (0, vec![2])], "one copy that names both");
        let none = table.routed(&message("a/b", Qos::AtLeastOnce), &[]);
        assert_eq!(sids(&none), [(1, vec![1]), (0, vec![2])], "one copy that names none");
    }

    #[test]
    fn many_subscriptions_are_found_as_few_are() {
        let mut table = Subscriptions::default();
        table.insert(subscription("x/#", 100), Qos::AtMostOnce, false);
        table.insert(subscription("$share/g/x/#", 200), Qos::AtMostOnce, false);
        let found = |table: &Subscriptions, number: i64| {
            sids(&table.routed(&message(&format!("x/{number}"), Qos::AtMostOnce), &[]))
        };
        for number in 0..2 * FEW as i64 {
            table.insert(subscription(&format!("x/{number}"), number), Qos::AtMostOnce, false);
            assert_eq!(table.patterns.is_some(), table.len() > FEW);
            assert_eq!(found(&table, number), [(0, vec![number, 100])]);
            assert_eq!(found(&table, -1), [(0, vec![100])]);
        }
        for number in 0..2 * FEW as i64 {
            table.remove(&TopicFilter::parse(&format!("x/{number}")).expect("a filter"));
            assert_eq!(found(&table, number), [(0, vec![100])]);
        }
    }

    #[test]
    fn stored_messages_are_for_the_subscription_that_asked() {
        let mut table = Subscriptions::default();
        table.insert(subscription("a/#", 1), Qos::AtLeastOnce, false);
        table.insert(subscription("a/b", 2), Qos::AtMostOnce, false);
        let stored = Message { retain: true, ..message("a/b", Qos::AtMostOnce) };
        assert_eq!(sids(&table.routed(&stored, &[id("a/b")])), [(0, vec![2])]);
    }

    #[test]
    fn shared_subscriptions_are_never_merged() {
        let mut table = Subscriptions::default();
        table.insert(subscription("a/#", 1), Qos::AtLeastOnce, false);
        table.insert(subscription("$share/g/a/#", 2), Qos::AtLeastOnce, false);
        assert_eq!(sids(&table.routed(&message("a/b", Qos::AtLeastOnce), &[id("$share/g/a/#")])), [(1, vec![2])]);
        assert_eq!(sids(&table.routed(&message("a/b", Qos::AtLeastOnce), &[id("a/#")])), [(1, vec![1])]);
    }

    #[test]
    fn a_subscription_without_the_sessions_own_messages_never_stands_for_one_with_them() {
        let mut table = Subscriptions::default();
        let mut quiet = subscription("a/#", 1);
        quiet.options.no_local = true;
        table.insert(quiet, Qos::ExactlyOnce, false);
        table.insert(subscription("a/b", 2), Qos::AtMostOnce, false);
        assert_eq!(table.routed(&message("a/b", Qos::ExactlyOnce), &[id("a/#")]), Route::Drop);
        assert_eq!(sids(&table.routed(&message("a/b", Qos::AtMostOnce), &[id("a/b")])), [(0, vec![1, 2])]);
    }

    #[test]
    fn what_was_queued_for_an_ended_subscription_is_dropped() {
        let mut table = Subscriptions::default();
        table.insert(subscription("a/#", 1), Qos::AtLeastOnce, false);
        table.remove(&TopicFilter::parse("a/#").expect("a filter"));
        assert_eq!(table.routed(&message("a/b", Qos::AtLeastOnce), &[id("a/#")]), Route::Drop);
        assert!(table.is_empty());
        table.insert(subscription("a/#", 1), Qos::AtLeastOnce, false);
        assert_eq!(sids(&table.routed(&message("a/b", Qos::AtLeastOnce), &[id("a/#")])), [(1, vec![1])]);
    }

    #[test]
    fn a_resumed_session_gets_what_it_subscribed_before() {
        let mut table = Subscriptions::default();
        assert_eq!(table.routed(&message("a", Qos::AtLeastOnce), &[7]), Route::Withhold);
        table.resume(Ack::Manual);
        let Route::Deliver(targets) = table.routed(&message("a", Qos::AtLeastOnce), &[7]) else { panic!() };
        assert_eq!(targets[0].contract, Contract { ack: Ack::Manual, ..Contract::default() });
        assert!(targets[0].readers.is_empty());
    }

    #[test]
    fn subscribing_again_replaces_the_options() {
        let mut table = Subscriptions::default();
        table.insert(subscription("a", 1), Qos::AtMostOnce, false);
        table.insert(subscription("a", 9), Qos::AtLeastOnce, false);
        assert_eq!(table.len(), 1);
        assert_eq!(sids(&table.routed(&message("a", Qos::AtLeastOnce), &[id("a")])), [(1, vec![9])]);
    }

    #[test]
    fn a_message_is_judged_where_no_subscription_that_was_allowed_as_a_whole_speaks_for_it() {
        let mut table = Subscriptions::default();
        let refuse = |_: &Message| false;
        let message = message("a/b", Qos::AtLeastOnce);
        table.insert(subscription("a/b", 1), Qos::AtLeastOnce, false);
        assert_eq!(sids(&table.route(&message, &[id("a/b")], refuse)), [(1, vec![1])], "it was judged as a whole");
        assert_eq!(table.route(&message, &[7], refuse), Route::Withhold);
        table.resume(Ack::Auto);
        assert_eq!(table.route(&message, &[7], refuse), Route::Refuse);
        assert!(matches!(table.routed(&message, &[7]), Route::Deliver(_)));
        table.insert(subscription("#", 2), Qos::AtLeastOnce, true);
        assert!(table.has_narrowed());
        let elsewhere = self::message("c", Qos::AtLeastOnce);
        assert_eq!(table.route(&elsewhere, &[id("#")], refuse), Route::Refuse);
        assert_eq!(sids(&table.routed(&elsewhere, &[id("#")])), [(1, vec![2])]);
        table.set_narrowed(&TopicFilter::parse("#").expect("a filter"), false);
        assert_eq!(sids(&table.route(&message, &[id("a/b")], refuse)), [(1, vec![1, 2])]);
        table.insert(subscription("#", 2), Qos::AtLeastOnce, true);
        table.remove(&TopicFilter::parse("#").expect("a filter"));
        assert!(!table.has_narrowed());
    }
}
