//! From replies and deliveries to the text that a client gets.

use base64_simd::STANDARD;
use serde_json::value::RawValue;

use super::flaw;
use crate::mqtt::{Message, Properties};
use crate::wire::frame::{Format, Head, Reply};

/// The text of a reply.
pub fn reply(reply: &Reply) -> String {
    serde_json::to_string(reply).expect("replies are JSON")
}

const BEGINNING: &str = r#"{"type":"mqtt""#;

/// Where in the text of a delivery its head belongs.
pub const HEAD_AT: usize = BEGINNING.len();

/// What a session's own delivery says beyond [`delivery`], to be put in at [`HEAD_AT`]; often nothing.
pub fn head(head: &Head) -> Vec<u8> {
    let mut out = Vec::new();
    if !head.sids.is_empty() {
        out.extend_from_slice(br#","sids":"#);
        json(&mut out, &head.sids);
    }
    if let Some(msgid) = &head.msgid {
        out.extend_from_slice(br#","msgid":"#);
        string(&mut out, msgid);
    }
    if head.dup {
        out.extend_from_slice(br#","dup":true"#);
    }
    if head.skipped > 0 {
        out.extend_from_slice(br#","skipped":"#);
        json(&mut out, &head.skipped);
    }
    out
}

/// The text of a delivery, as it is where its head says nothing: alike for every reader of the message.
pub fn delivery(message: &Message, format: Format, timestamp: u64) -> Vec<u8> {
    let mut out = begin_delivery(message, message.payload.len() * 9 / 8);
    payload(&mut out, &message.payload, format);
    end_delivery(&mut out, message, timestamp);
    out
}

/// The same with a merge patch, which is JSON, in the place of the payload.
pub fn patched(message: &Message, patch: &str, timestamp: u64) -> Vec<u8> {
    let mut out = begin_delivery(message, patch.len());
    out.extend_from_slice(br#","patch":"#);
    out.extend_from_slice(patch.as_bytes());
    end_delivery(&mut out, message, timestamp);
    out
}

fn begin_delivery(message: &Message, size: usize) -> Vec<u8> {
    let topic = message.topic.as_ref();
    let mut out = Vec::with_capacity(160 + topic.len() + size);
    out.extend_from_slice(BEGINNING.as_bytes());
    out.extend_from_slice(br#","topic":"#);
    string(&mut out, topic);
    out
}

fn end_delivery(out: &mut Vec<u8>, message: &Message, timestamp: u64) {
    out.extend_from_slice(br#","qos":"#);
    json(out, &message.qos.number());
    out.extend_from_slice(br#","retain":"#);
    json(out, &message.retain);
    out.extend_from_slice(br#","timestamp":"#);
    json(out, &timestamp);
    if let Some(given) = &message.properties {
        properties(out, given);
    }
    out.push(b'}');
}

const BATCH_BEGINNING: &[u8] = br#"{"type":"batch","data":["#;

/// The text of a frame that holds several deliveries.
#[derive(Debug, Default)]
pub struct BatchText(Vec<u8>);

impl BatchText {
    /// One more: its head, and the rest of its text.
    pub fn add(&mut self, head: &[u8], text: &[u8]) {
        self.0.extend_from_slice(if self.0.is_empty() { BATCH_BEGINNING } else { b"," });
        let (beginning, rest) = text.split_at(HEAD_AT);
        for part in [beginning, head, rest] {
            self.0.extend_from_slice(part);
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole text.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"]}");
        self.0
    }
}

fn payload(out: &mut Vec<u8>, payload: &[u8], format: Format) {
    let Ok(text) = simdutf8::basic::from_utf8(payload) else {
        out.extend_from_slice(br#","payload":""#);
        STANDARD.encode_append(payload, out);
        return out.extend_from_slice(br#"","encoding":"base64""#);
    };
    out.extend_from_slice(br#","payload":"#);
    if format == Format::Json
        && let Some(value) = as_json(text)
    {
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(br#","encoding":"json""#);
    } else {
        string(out, text);
    }
}

/// Whether a text is JSON that our own decoder would take.
pub fn is_json(text: &str) -> bool {
    as_json(text).is_some()
}

/// The text without the space around it, if it is JSON that our own decoder would take.
fn as_json(text: &str) -> Option<&str> {
    // Most of what is not JSON differs from it in the first bytes.
    let value = serde_json::from_str::<&RawValue>(text).ok()?.get();
    flaw(value.as_bytes()).is_none().then_some(value)
}

fn properties(out: &mut Vec<u8>, properties: &Properties) {
    let mut separator = r#","properties":{"#;
    let mut field = |name: &str, value: &dyn Fn(&mut Vec<u8>)| {
        for part in [separator, "\"", name, "\":"] {
            out.extend_from_slice(part.as_bytes());
        }
        separator = ",";
        value(out);
    };
    if let Some(content_type) = &properties.content_type {
        field("contentType", &|out| json(out, content_type));
    }
    if let Some(topic) = &properties.response_topic {
        field("responseTopic", &|out| json(out, topic));
    }
    if let Some(data) = &properties.correlation_data {
        field("correlationData", &|out| json(out, &STANDARD.encode_to_string(data)));
    }
    if let Some(seconds) = properties.message_expiry_interval {
        field("messageExpiryInterval", &|out| json(out, &seconds));
    }
    if let Some(indicator) = properties.payload_format_indicator {
        field("payloadFormatIndicator", &|out| json(out, &indicator));
    }
    if !properties.user_properties.is_empty() {
        field("userProperties", &|out| json(out, &properties.user_properties));
    }
    if separator == "," {
        out.push(b'}');
    }
}

/// Most strings need no escapes, and are copied as they are.
fn string(out: &mut Vec<u8>, text: &str) {
    // To the end, whatever is found: so many bytes are looked at with each instruction.
    let is_escaped = |byte| byte < 0x20 || byte == b'"' || byte == b'\\';
    if text.bytes().fold(false, |found, byte| found | is_escaped(byte)) {
        return json(out, text);
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("strings and numbers are JSON");
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::mqtt::{Qos, Topic};

    fn message(payload: &[u8]) -> Message {
        Message {
            topic: Topic::parse("attic/témp").expect("a topic"),
            payload: Bytes::copy_from_slice(payload),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: None,
        }
    }

    fn as_text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("text")
    }

    fn shown(payload: &[u8], format: Format) -> (Value, Value) {
        let text = delivery(&message(payload), format, 0);
        let frame: Value = serde_json::from_slice(&text).expect("JSON");
        (frame["payload"].clone(), frame["encoding"].clone())
    }

    #[test]
    fn payloads_are_shown_as_their_subscription_asks() {
        let text = Value::Null;
        let cases: [(&[u8], Format, Value, Value); 12] = [
            (b"21.5", Format::Text, json!("21.5"), text.clone()),
            (b"", Format::Text, json!(""), text.clone()),
            (b"", Format::Json, json!(""), text.clone()),
            ("né\u{1F600}\"\\\n".as_bytes(), Format::Text, json!("né\u{1F600}\"\\\n"), text.clone()),
            (&[0xFF, 0], Format::Text, json!("/wA="), json!("base64")),
            (&[0xFF, 0], Format::Json, json!("/wA="), json!("base64")),
            (b"21.5", Format::Json, json!(21.5), json!("json")),
            (b" {\"a\": [1, null]} ", Format::Json, json!({"a": [1, null]}), json!("json")),
            (b"\"text\"", Format::Json, json!("text"), json!("json")),
            (b"{\"a\":", Format::Json, json!("{\"a\":"), text.clone()),
            (b"\"\\ud83d\"", Format::Json, json!("\"\\ud83d\""), text.clone()),
            (b"NaN", Format::Json, json!("NaN"), text.clone()),
        ];
        for (payload, format, value, encoding) in cases {
            assert_eq!(shown(payload, format), (value, encoding), "{payload:?} {format:?}");
        }
    }

    #[test]
    fn json_is_embedded_up_to_64_levels_and_as_it_was_written() {
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert_eq!(shown(deep(64).as_bytes(), Format::Json).1, "json");
        assert_eq!(shown(deep(65).as_bytes(), Format::Json).1, Value::Null);
        let text = as_text(delivery(&message(b"1.000e400"), Format::Json, 0));
        assert!(text.contains(r#""payload":1.000e400,"encoding":"json""#), "{text}");
    }

    #[test]
    fn a_delivery_says_only_what_there_is_to_say() {
        assert_eq!(head(&Head::default()), b"");
        let text = as_text(delivery(&message(b"x"), Format::Text, 7));
        assert_eq!(text, r#"{"type":"mqtt","topic":"attic/témp","payload":"x","qos":0,"retain":false,"timestamp":7}"#);
        let head = head(&Head { sids: vec![3, -1], msgid: Some("9-ab".into()), dup: true, skipped: 12 });
        let properties = Properties {
            content_type: Some("a".to_owned()),
            response_topic: Some("b".to_owned()),
            correlation_data: Some(Bytes::from_static(&[0xFF])),
            message_expiry_interval: Some(5),
            payload_format_indicator: Some(1),
            user_properties: vec![("n".to_owned(), "v".to_owned()), ("n".to_owned(), "w".to_owned())],
        };
        let message =
            Message { qos: Qos::AtLeastOnce, retain: true, properties: Some(Box::new(properties)), ..message(b"x") };
        let mut text = delivery(&message, Format::Text, 8);
        text.splice(HEAD_AT..HEAD_AT, head);
        let frame: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(
            frame,
            json!({
                "type": "mqtt", "sids": [3, -1], "msgid": "9-ab", "dup": true, "skipped": 12, "topic": "attic/témp", "payload": "x", "qos": 1,
                "retain": true, "timestamp": 8,
                "properties": {
                    "contentType": "a", "responseTopic": "b", "correlationData": "/w==", "messageExpiryInterval": 5,
                    "payloadFormatIndicator": 1, "userProperties": [["n", "v"], ["n", "w"]],
                },
            })
        );
    }

    proptest! {
        #[test]
        fn every_payload_comes_through_whole(payload: Vec<u8>, json: bool) {
            let (value, encoding) = shown(&payload, if json { Format::Json } else { Format::Text });
            let back = match encoding.as_str() {
                Some("base64") => STANDARD.decode_to_vec(value.as_str().expect("a string")).expect("base64"),
                Some(_) => return Ok(()),
                None => value.as_str().expect("a string").as_bytes().to_vec(),
            };
            prop_assert_eq!(back, payload);
        }
    }
}
