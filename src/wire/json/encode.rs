//! From replies and deliveries to the text that a client gets.

use std::fmt::Write;

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
pub fn head(head: &Head) -> String {
    let mut out = String::new();
    if !head.sids.is_empty() {
        out.push_str(r#","sids":"#);
        json(&mut out, &head.sids);
    }
    if let Some(msgid) = &head.msgid {
        out.push_str(r#","msgid":"#);
        string(&mut out, msgid);
    }
    if head.dup {
        out.push_str(r#","dup":true"#);
    }
    if head.skipped > 0 {
        write!(out, r#","skipped":{}"#, head.skipped).expect("a string takes all");
    }
    out
}

/// The text of a delivery, as it is where its head says nothing: alike for every reader of the message.
pub fn delivery(message: &Message, format: Format, timestamp: u64) -> String {
    let mut out = String::with_capacity(160 + message.topic.as_ref().len() + message.payload.len() * 9 / 8);
    out.push_str(BEGINNING);
    out.push_str(r#","topic":"#);
    string(&mut out, message.topic.as_ref());
    payload(&mut out, &message.payload, format);
    end_delivery(&mut out, message, timestamp);
    out
}

/// The same with a merge patch, which is JSON, in the place of the payload.
pub fn patched(message: &Message, patch: &str, timestamp: u64) -> String {
    let mut out = String::with_capacity(160 + message.topic.as_ref().len() + patch.len());
    out.push_str(BEGINNING);
    out.push_str(r#","topic":"#);
    string(&mut out, message.topic.as_ref());
    out.push_str(r#","patch":"#);
    out.push_str(patch);
    end_delivery(&mut out, message, timestamp);
    out
}

fn end_delivery(out: &mut String, message: &Message, timestamp: u64) {
    let qos = message.qos.number();
    write!(out, r#","qos":{qos},"retain":{},"timestamp":{timestamp}"#, message.retain).expect("a string takes all");
    if let Some(given) = &message.properties {
        properties(out, given);
    }
    out.push('}');
}

const BATCH_BEGINNING: &[u8] = br#"{"type":"batch","data":["#;

/// The text of a frame that holds several deliveries.
#[derive(Debug, Default)]
pub struct BatchText(Vec<u8>);

impl BatchText {
    /// One more: its head, and the rest of its text.
    pub fn add(&mut self, head: &str, text: &[u8]) {
        self.0.extend_from_slice(if self.0.is_empty() { BATCH_BEGINNING } else { b"," });
        let (beginning, rest) = text.split_at(HEAD_AT);
        for part in [beginning, head.as_bytes(), rest] {
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

fn payload(out: &mut String, payload: &[u8], format: Format) {
    let Ok(text) = simdutf8::basic::from_utf8(payload) else {
        out.push_str(r#","payload":""#);
        STANDARD.encode_append(payload, out);
        return out.push_str(r#"","encoding":"base64""#);
    };
    if let (Format::Json, Some(value)) = (format, as_json(text)) {
        out.push_str(r#","payload":"#);
        out.push_str(value);
        return out.push_str(r#","encoding":"json""#);
    }
    out.push_str(r#","payload":"#);
    string(out, text);
}

/// Whether a text is JSON that our own decoder would take.
pub fn is_json(text: &str) -> bool {
    as_json(text).is_some()
}

/// The text without the space around it, if it is JSON that our own decoder would take.
fn as_json(text: &str) -> Option<&str> {
    if flaw(text.as_bytes()).is_some() {
        return None;
    }
    serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get)
}

fn properties(out: &mut String, properties: &Properties) {
    let mut separator = r#","properties":{"#;
    let mut field = |name: &str, value: &dyn Fn(&mut String)| {
        out.push_str(separator);
        separator = ",";
        write!(out, r#""{name}":"#).expect("a string takes all");
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
        out.push('}');
    }
}

/// Most strings need no escapes, and are copied as they are.
fn string(out: &mut String, text: &str) {
    if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        return json(out, text);
    }
    out.push('"');
    out.push_str(text);
    out.push('"');
}

fn json<T: serde::Serialize + ?Sized>(out: &mut String, value: &T) {
    out.push_str(&serde_json::to_string(value).expect("strings and numbers are JSON"));
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

    fn shown(payload: &[u8], format: Format) -> (Value, Value) {
        let text = delivery(&message(payload), format, 0);
        let frame: Value = serde_json::from_str(&text).expect("JSON");
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
        let text = delivery(&message(b"1.000e400"), Format::Json, 0);
        assert!(text.contains(r#""payload":1.000e400,"encoding":"json""#), "{text}");
    }

    #[test]
    fn a_delivery_says_only_what_there_is_to_say() {
        assert_eq!(head(&Head::default()), "");
        let text = delivery(&message(b"x"), Format::Text, 7);
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
        text.insert_str(HEAD_AT, &head);
        let frame: Value = serde_json::from_str(&text).expect("JSON");
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
