//! From deliveries to the frames in which they are written: whole or as what has changed, alone or several together.

use bytes::Bytes;

use super::socket::Outbound;
use crate::delivery::{Bases, Bound, Delivery, Form, Gaps};
use crate::mqtt::TopicFilter;
use crate::wire::{Contract, json};

/// Bytes of a batch, roughly: no further delivery joins it.
const MAX_BATCH: usize = 64 * 1024;

/// What a session remembers of what it has written, and the batch that it is writing.
#[derive(Default)]
pub struct Composer {
    bases: Bases,
    batch: Option<OpenBatch>,
}

struct OpenBatch {
    contract: Contract,
    count: u16,
    text: json::BatchText,
}

impl Composer {
    /// Writes a delivery, or begins to; gives back the form in which it comes.
    pub fn add(&mut self, delivery: &Delivery, bound: &Bound, write: &mut impl FnMut(Outbound)) -> Form {
        let rendition = &delivery.rendition;
        let form = if delivery.contract.delta { self.bases.advance(delivery, bound) } else { Form::Full };
        let text = match &form {
            Form::Unchanged(_) => return form,
            Form::Full => rendition.text().clone(),
            Form::Patch(patch, _) => json::patched(&rendition.message, patch, rendition.timestamp).into(),
        };
        let head = json::head(&delivery.head());
        let Some(batch) = delivery.contract.batch else {
            self.finish(write);
            write(Outbound::Delivery { head, text });
            return form;
        };
        let most = batch.max_messages.get();
        let size = head.len() + text.len();
        let joins = self.batch.as_ref().is_some_and(|open| {
            open.contract == delivery.contract && open.count < most && open.text.len() + size <= MAX_BATCH
        });
        if !joins {
            self.finish(write);
        }
        let open = self.batch.get_or_insert_with(|| OpenBatch {
            contract: delivery.contract,
            count: 0,
            text: json::BatchText::default(),
        });
        open.text.add(&head, &text);
        open.count += 1;
        form
    }

    /// No further delivery joins the batch that is being written.
    pub fn finish(&mut self, write: &mut impl FnMut(Outbound)) {
        if let Some(open) = self.batch.take() {
            write(Outbound::Delivery { head: Vec::new(), text: Bytes::from(open.text.finish()) });
        }
    }

    /// Topics start anew, because their filters were subscribed again or have ended.
    pub fn forget(&mut self, filters: &[TopicFilter]) {
        if !filters.is_empty() {
            self.bases.forget(filters);
        }
    }

    /// Topics start anew of which something was dropped.
    pub fn forget_gaps(&mut self, gaps: Gaps) {
        self.bases.forget_gaps(gaps);
    }

    /// What it remembers takes so much memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bases.bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::sync::Arc;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;
    use crate::delivery::{Config, Rendition};
    use crate::mqtt::{Message, Qos, Topic};
    use crate::wire::{Batch, Format};

    fn delivery(payload: &str, contract: Contract) -> Delivery {
        let topic = Topic::parse("t").expect("a topic");
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let message = Message { topic, payload, qos: Qos::AtLeastOnce, retain: false, properties: None };
        Delivery {
            rendition: Arc::new(Rendition::new(message, Format::Text, 7, Instant::now())),
            contract,
            readers: Default::default(),
            msgid: Some("m".into()),
            dup: false,
            receipt: Some(1),
            skipped: 0,
        }
    }

    /// The frames of these deliveries.
    fn frames(composer: &mut Composer, deliveries: &[Delivery]) -> Vec<Value> {
        let mut frames = Vec::new();
        let mut write = |frame| {
            let Outbound::Delivery { head, text } = frame else { panic!("{frame:?}") };
            let mut text = text.to_vec();
            text.splice(json::HEAD_AT..json::HEAD_AT, head);
            frames.push(serde_json::from_slice(&text).expect("JSON"));
        };
        let bound = Config::default().bound(usize::MAX);
        for delivery in deliveries {
            composer.add(delivery, &bound, &mut write);
        }
        composer.finish(&mut write);
        frames
    }

    fn in_batches(most: u16) -> Contract {
        let max_messages = NonZeroU16::new(most).expect("not 0");
        Contract { batch: Some(Batch { max_messages, max_delay: 5 }), ..Contract::default() }
    }

    fn payloads(frame: &Value) -> Value {
        match frame["data"].as_array() {
            Some(entries) => entries.iter().map(|entry| entry["payload"].clone()).collect(),
            None => frame["payload"].clone(),
        }
    }

    #[test]
    fn deliveries_of_one_contract_come_together_and_others_between_them_in_their_order() {
        let mut composer = Composer::default();
        let plain = Contract::default();
        let [two, other] = [in_batches(2), Contract { format: Format::Json, ..in_batches(2) }];
        let of = [("1", two), ("2", two), ("3", two), ("4", plain), ("5", two), ("6", other), ("7", other)];
        let all = frames(&mut composer, &of.map(|(payload, contract)| delivery(payload, contract)));
        assert_eq!(
            all.iter().map(payloads).collect::<Vec<_>>(),
            [json!(["1", "2"]), json!(["3"]), json!("4"), json!(["5"]), json!(["6", "7"])]
        );
        assert_eq!(all[0]["type"], "batch");
        assert_eq!(all[0]["data"][1]["type"], "mqtt");
        assert_eq!(all[0]["data"][1]["msgid"], "m", "entries are whole frames");
    }

    #[test]
    fn a_large_batch_is_split() {
        let mut composer = Composer::default();
        let large = delivery(&"x".repeat(30_000), in_batches(1000));
        let sizes: Vec<_> = frames(&mut composer, &[(); 5].map(|()| large.clone()))
            .iter()
            .map(|frame| frame["data"].as_array().map_or(0, Vec::len))
            .collect();
        assert_eq!(sizes, [2, 2, 1]);
        let huge = delivery(&"x".repeat(100_000), in_batches(1000));
        assert_eq!(frames(&mut composer, &[huge.clone(), huge]).len(), 2);
    }

    #[test]
    fn a_patch_stands_in_the_place_of_the_payload_and_what_changes_nothing_is_left_out() {
        let mut composer = Composer::default();
        let delta = Contract { delta: true, ..in_batches(9) };
        let values = [r#"{"a":1,"b":[2]}"#, r#"{"a":1,"b":[2]}"#, r#"{"a":3,"b":[2]}"#];
        let all = frames(&mut composer, &values.map(|value| delivery(value, delta)));
        let patch = json!({"type": "mqtt", "msgid": "m", "topic": "t", "patch": {"a": 3}, "qos": 1, "retain": false, "timestamp": 7});
        assert_eq!(all.len(), 1);
        assert_eq!(all[0]["data"].as_array().map(Vec::len), Some(2));
        assert_eq!(all[0]["data"][1], patch);
        assert!(frames(&mut composer, &[delivery(values[2], delta)]).is_empty(), "no batch of nothing");
        composer.forget(&[TopicFilter::parse("#").expect("a filter")]);
        assert_eq!(frames(&mut composer, &[delivery(values[2], delta)])[0]["data"][0]["payload"], values[2]);
    }
}
