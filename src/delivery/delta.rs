//! What has changed since the last delivery of a topic: a patch comes in the place of the whole.

use std::collections::{HashMap, HashSet};

use smallvec::SmallVec;

use super::config::Bound;
use super::merge_patch::{diff, object};
use super::outbox::Delivery;
use crate::mqtt::{Topic, TopicFilter};
use crate::wire::Contract;

/// The last values that were written to one connection, by topic and contract.
#[derive(Debug, Default)]
pub struct Bases {
    by_topic: HashMap<Topic, SmallVec<[Base; 1]>>,
    count: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Base {
    contract: Contract,
    /// The subscriptions that it was written for: for others it would come out of the blue.
    readers: SmallVec<[u32; 2]>,
    payload: Box<[u8]>,
    /// It is an object, so a patch may rest on it.
    is_object: bool,
    /// The digest of the message's properties.
    properties: u64,
}

/// How a delivery comes.
#[derive(Debug, PartialEq)]
pub enum Form {
    /// Whole.
    Full,
    /// As this patch, and shorter by so many bytes.
    Patch(String, usize),
    /// Not at all, as it changes nothing; so many bytes less.
    Unchanged(usize),
}

/// What a base takes in memory beside its payload and its topic, roughly.
const AROUND: usize = size_of::<Base>() + 96;
/// Topics times filters that are looked through one by one.
const MAX_LOOKED_THROUGH: usize = 50_000;

impl Bases {
    /// How a delivery comes that is about to be written; from then on it is the last one of its topic.
    pub fn advance(&mut self, delivery: &Delivery, bound: &Bound) -> Form {
        let message = &delivery.rendition.message;
        let base = self.find(&message.topic, &delivery.contract);
        let properties = message.properties.as_ref().map_or(0, |properties| properties.digest());
        let base = base.filter(|base| !delivery.dup && base.covers(delivery));
        let is_told = base.is_some_and(|base| base.properties == properties);
        let size = message.payload.len();
        if is_told && base.is_some_and(|base| *base.payload == *message.payload) {
            return Form::Unchanged(size);
        }
        let new = object(&message.payload);
        let patch = match (base.and_then(Base::object), new) {
            (Some(base), Some(new)) => diff(base, new),
            _ => None,
        };
        let form = match patch {
            Some(patch) if is_told && patch == "{}" => return Form::Unchanged(size),
            Some(patch) if patch.len() < size => {
                let saved = size - patch.len();
                Form::Patch(patch, saved)
            }
            Some(_) | None => Form::Full,
        };
        let is_object = new.is_some();
        self.replace(delivery, properties, is_object, bound);
        form
    }

    /// Topics start anew, because their filters were subscribed again or have ended.
    pub fn forget(&mut self, filters: &[TopicFilter]) {
        if filters.len().saturating_mul(self.count) > MAX_LOOKED_THROUGH {
            // Nothing is lost, and looking would take long.
            *self = Bases::default();
        }
        for filter in filters {
            let mut freed = (0, 0);
            self.by_topic.retain(|topic, bases| {
                let matches = filter.matches(topic);
                if matches {
                    let bytes: usize = bases.iter().map(|base| base.size(topic)).sum();
                    freed = (freed.0 + bases.len(), freed.1 + bytes);
                }
                !matches
            });
            self.count -= freed.0;
            self.bytes -= freed.1;
        }
        if self.by_topic.is_empty() {
            *self = Bases::default();
        }
    }

    /// Topics start anew of which something was dropped.
    pub fn forget_gaps(&mut self, gaps: Gaps) {
        if gaps.is_all {
            *self = Bases::default();
        }
        for (topic, contract) in gaps.of {
            self.remove(&topic, &contract);
        }
    }

    /// What they take in memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn find(&self, topic: &Topic, contract: &Contract) -> Option<&Base> {
        self.by_topic.get(topic)?.iter().find(|base| base.contract == *contract)
    }

    /// Past the bound the topic has no base, and comes in full the next time.
    fn replace(&mut self, delivery: &Delivery, properties: u64, is_object: bool, bound: &Bound) {
        let message = &delivery.rendition.message;
        self.remove(&message.topic, &delivery.contract);
        let base = Base {
            contract: delivery.contract,
            readers: delivery.readers.iter().map(|reader| reader.id).collect(),
            // Of its own: what it is part of may be large.
            payload: message.payload.as_ref().into(),
            is_object,
            properties,
        };
        let bytes = self.bytes + base.size(&message.topic);
        if self.count >= bound.topics || bytes > bound.bytes {
            return;
        }
        self.count += 1;
        self.bytes = bytes;
        self.by_topic.entry(message.topic.clone()).or_default().push(base);
    }

    fn remove(&mut self, topic: &Topic, contract: &Contract) {
        let Some(bases) = self.by_topic.get_mut(topic) else { return };
        if let Some(at) = bases.iter().position(|base| base.contract == *contract) {
            self.count -= 1;
            self.bytes -= bases.remove(at).size(topic);
        }
        if bases.is_empty() {
            self.by_topic.remove(topic);
        }
    }
}

impl Base {
    fn object(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok().filter(|_| self.is_object)
    }

    /// Whether all that the delivery is for have this value.
    fn covers(&self, delivery: &Delivery) -> bool {
        delivery.readers.iter().all(|reader| self.readers.contains(&reader.id))
    }

    fn size(&self, topic: &Topic) -> usize {
        AROUND + self.payload.len() + topic.as_str().len()
    }
}

/// Topics of which something was dropped that a later delta would rest on.
#[derive(Debug, Default, PartialEq)]
pub struct Gaps {
    of: HashSet<(Topic, Contract)>,
    /// There were too many to remember.
    is_all: bool,
}

impl Gaps {
    /// One more; past the bound they are all there are.
    pub fn add(&mut self, topic: Topic, contract: Contract, max: usize) {
        if self.is_all || (self.of.len() >= max && !self.of.contains(&(topic.clone(), contract))) {
            *self = Gaps { of: HashSet::new(), is_all: true };
        } else {
            self.of.insert((topic, contract));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use bytes::Bytes;

    use super::*;
    use crate::delivery::Rendition;
    use crate::delivery::subscriptions::Reader;
    use crate::mqtt::{Message, Properties, Qos};
    use crate::wire::Format;

    const DELTA: Contract = Contract { delta: true, ..PLAIN };
    const PLAIN: Contract = Contract {
        ack: crate::wire::Ack::Auto,
        format: Format::Text,
        priority: crate::wire::Priority::Normal,
        max_rate: None,
        delta: false,
        batch: None,
    };
    const BOUND: Bound = Bound { count: 10, bytes: 1 << 20, free: 1 << 20, topics: 3 };

    fn delivery(topic: &str, payload: &str) -> Delivery {
        let topic = Topic::parse(topic).expect("a topic");
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let message = Message { topic, payload, qos: Qos::AtMostOnce, retain: false, properties: None };
        Delivery {
            rendition: Arc::new(Rendition::new(message, Format::Text, 0, Instant::now())),
            contract: DELTA,
            readers: SmallVec::from_iter([Reader { id: 1, sid: None, is_shared: false }]),
            msgid: None,
            dup: false,
            receipt: None,
            skipped: 0,
        }
    }

    /// What the client sees: "=" for the whole, the patch, or nothing.
    fn seen(form: Form) -> String {
        match form {
            Form::Full => "=".to_owned(),
            Form::Patch(patch, _) => patch,
            Form::Unchanged(_) => String::new(),
        }
    }

    #[test]
    fn the_first_comes_whole_then_what_changes_and_what_changes_nothing_not_at_all() {
        let mut bases = Bases::default();
        for (payload, expected) in [
            (r#"{"temp":21.5,"unit":"C"}"#, "="),
            (r#"{"temp":21.5,"unit":"C"}"#, ""),
            (r#"{ "unit":"C", "temp":21.5 }"#, ""),
            (r#"{"temp":22,"unit":"C"}"#, r#"{"temp":22}"#),
            (r#"{"temp":22.0,"unit":"C"}"#, r#"{"temp":22.0}"#),
            (r#"{"temp":null,"unit":"C"}"#, "="),
            (r#"{"unit":"C"}"#, "="),
            ("offline", "="),
            ("offline", ""),
            ("", "="),
            (r#"{"temp":1,"unit":"C"}"#, "="),
        ] {
            assert_eq!(seen(bases.advance(&delivery("t", payload), &BOUND)), expected, "{payload}");
        }
        assert_eq!(
            bases.advance(&delivery("t", r#"{"temp":2,"unit":"C"}"#), &BOUND),
            Form::Patch(r#"{"temp":2}"#.into(), 11)
        );
    }

    #[test]
    fn topics_and_contracts_have_bases_of_their_own() {
        let mut bases = Bases::default();
        let other = |mut delivery: Delivery| {
            delivery.contract.format = Format::Json;
            delivery
        };
        assert_eq!(seen(bases.advance(&delivery("a", "1"), &BOUND)), "=");
        assert_eq!(seen(bases.advance(&delivery("b", "1"), &BOUND)), "=");
        assert_eq!(seen(bases.advance(&other(delivery("a", "1")), &BOUND)), "=");
        assert_eq!(seen(bases.advance(&other(delivery("a", "1")), &BOUND)), "");
    }

    #[test]
    fn what_comes_again_or_for_more_subscriptions_comes_whole_and_other_properties_come() {
        let mut bases = Bases::default();
        let one = || delivery("t", r#"{"a":1,"b":2}"#);
        assert_eq!(seen(bases.advance(&one(), &BOUND)), "=");
        assert_eq!(seen(bases.advance(&Delivery { dup: true, ..one() }, &BOUND)), "=");
        let mut both = one();
        both.readers.push(Reader { id: 2, sid: None, is_shared: false });
        assert_eq!(seen(bases.advance(&both, &BOUND)), "=");
        assert_eq!(seen(bases.advance(&one(), &BOUND)), "", "one of both has it");
        assert_eq!(seen(bases.advance(&both, &BOUND)), "", "and both still have");
        let mut question = one().rendition.message.clone();
        let properties = |seconds, topic: &str| Properties {
            message_expiry_interval: Some(seconds),
            response_topic: Some(topic.to_owned()),
            ..Properties::default()
        };
        let mut with = |properties: Properties| {
            question.properties = Some(Box::new(properties));
            let rendition = Rendition::new(question.clone(), Format::Text, 0, Instant::now());
            seen(bases.advance(&Delivery { rendition: Arc::new(rendition), ..one() }, &BOUND))
        };
        assert_eq!(with(properties(5, "x")), "{}");
        assert_eq!(with(properties(4, "x")), "", "the time that is left is no news");
        assert_eq!(with(properties(4, "y")), "{}");
    }

    #[test]
    fn a_topic_starts_anew_after_a_subscribe_and_after_a_drop() {
        let mut bases = Bases::default();
        let next = |bases: &mut Bases, topic| seen(bases.advance(&delivery(topic, "x"), &BOUND));
        for topic in ["a/1", "a/2", "b"] {
            assert_eq!(next(&mut bases, topic), "=");
        }
        bases.forget(&[TopicFilter::parse("a/+").expect("a filter")]);
        assert_eq!(["a/1", "a/2", "b"].map(|topic| next(&mut bases, topic)), ["=", "=", ""]);
        let mut gaps = Gaps::default();
        gaps.add(Topic::parse("b").expect("a topic"), DELTA, 2);
        gaps.add(Topic::parse("a/1").expect("a topic"), PLAIN, 2);
        bases.forget_gaps(gaps);
        assert_eq!(["a/1", "a/2", "b"].map(|topic| next(&mut bases, topic)), ["", "", "="]);
        let mut gaps = Gaps::default();
        for topic in ["x", "y", "z"] {
            gaps.add(Topic::parse(topic).expect("a topic"), DELTA, 2);
        }
        bases.forget_gaps(gaps);
        assert_eq!(["a/1", "a/2", "b"].map(|topic| next(&mut bases, topic)), ["=", "=", "="]);
        let shared: Vec<_> = (0..MAX_LOOKED_THROUGH).map(|_| TopicFilter::parse("none").expect("a filter")).collect();
        bases.forget(&shared);
        assert_eq!((bases.bytes(), next(&mut bases, "b")), (0, "=".to_owned()), "where it would take long, all do");
    }

    #[test]
    fn past_the_bound_topics_come_in_full_and_no_more_memory_is_taken() {
        let mut bases = Bases::default();
        let next = |bases: &mut Bases, topic, bound| seen(bases.advance(&delivery(topic, "x"), bound));
        for round in ["=", ""] {
            for topic in ["a", "b", "c"] {
                assert_eq!(next(&mut bases, topic, &BOUND), round, "{topic}");
            }
            for topic in ["d", "e"] {
                assert_eq!(next(&mut bases, topic, &BOUND), "=", "{topic}");
            }
        }
        let bytes = bases.bytes();
        assert!((3 * AROUND..4 * AROUND).contains(&bytes), "{bytes}");
        let none_left = Bound { bytes: bytes - 1, ..BOUND };
        assert_eq!(seen(bases.advance(&delivery("a", "y"), &none_left)), "=");
        assert_eq!(
            seen(bases.advance(&delivery("a", "y"), &none_left)),
            "=",
            "where memory has become scarce it is given back"
        );
        bases.forget(&[TopicFilter::parse("#").expect("a filter")]);
        assert_eq!(bases.bytes(), 0);
    }
}
