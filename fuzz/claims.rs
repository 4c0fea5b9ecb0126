//! What must hold of every parser, whatever bytes it is given. Fuzzers look for bytes of which it does not (fuzz_targets/claim.rs);
//! tests/fuzz_targets.rs holds it against the seeds and what a moment of chance makes of them.
//!
//! None may panic. What one accepts is judged again in another way, and comes back whole from whatever writes it.

use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tidegate::access::Credential;
use tidegate::auth::config::Jwt;
use tidegate::auth::jwt::Algorithm;
use tidegate::auth::{self, Judge, Visitor};
use tidegate::broker::BrokerUrl;
use tidegate::config::{Config, Flags};
use tidegate::delivery::merge_patch::{diff, object};
use tidegate::http::websocket::frame::{self as websocket_frame, Decoder, Event, Opcode};
use tidegate::mqtt::packet::{self, Malformed, Packet};
use tidegate::mqtt::trie::Trie;
use tidegate::mqtt::{Message, Qos, Topic, TopicFilter, topic};
use tidegate::wire::frame::{Asked, ClientFrame, Format, MsgId, Subscription};
use tidegate::wire::json::{decode, delivery};
use tidegate::wire::negotiate::{JSON, negotiate};
use tidegate::wire::{Close, Code};

/// Panics if it does not hold of these bytes.
pub type Claim = fn(&[u8]);

/// One for each parser, by the name of its fuzz target.
pub const CLAIMS: [(&str, Claim); 9] = [
    ("frame", |data| on_text(data, frame)),
    ("merge_patch", merge_patch),
    ("packets", packets),
    ("websocket", websocket),
    ("topics", |data| on_text(data, topics)),
    ("broker_url", |data| on_text(data, broker_url)),
    ("subprotocols", |data| on_text(data, subprotocols)),
    ("token", |data| on_text(data, token)),
    ("settings", |data| on_text(data, settings)),
];

/// Panics if the claim of this name does not hold of these bytes.
pub fn hold(name: &str, data: &[u8]) {
    let (_, claim) = CLAIMS.iter().find(|(known, _)| *known == name).expect("a claim of this name");
    claim(data);
}

/// Those that read text are never given anything else.
fn on_text(data: &[u8], claim: fn(&str)) {
    if let Ok(text) = std::str::from_utf8(data) {
        claim(text);
    }
}

/// `wire::json::decode`, and `delivery`, which brings a message to its readers.
fn frame(text: &str) {
    let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
    let (frame, msgid) = match decode(text) {
        Ok(decoded) => decoded,
        Err(undecoded) => {
            let refusal = undecoded.refusal;
            assert!(refusal.message.ends_with('.') && !refusal.retryable, "{refusal:?}");
            assert!(is_json || refusal.code == Code::InvalidJson, "{refusal:?}");
            return;
        }
    };
    assert!(is_json);
    // Numbers that are JSON, and too large for this reader of it, have no value.
    let Ok(value) = serde_json::from_str::<Value>(text) else { return };
    match &msgid {
        None => assert!(value.get("msgid").is_none()),
        Some(MsgId::Text(text)) => assert!(value["msgid"] == **text && text.chars().count() <= 64),
        Some(MsgId::Number(number)) => {
            assert!(value["msgid"].as_i64() == Some(*number) && number.unsigned_abs() < 1 << 53);
        }
    }
    match frame {
        ClientFrame::Auth(auth) => {
            assert_eq!(value["type"], "auth");
            assert!(auth.client_id.is_none_or(|id| !id.is_empty() && id.len() <= 256));
            auth.subscriptions.iter().for_each(subscription);
            if let Some(will) = auth.will {
                message_of(&will.message, &value["will"]);
            }
        }
        ClientFrame::Subscribe(asked) => {
            assert_eq!(asked.len(), value["topics"].as_array().map_or(1, Vec::len));
            for asked in &asked {
                if let Asked::Valid(valid) = asked {
                    subscription(valid);
                }
            }
        }
        ClientFrame::Unsubscribe(asked) => assert_eq!(asked.len(), value["topics"].as_array().map_or(1, Vec::len)),
        ClientFrame::Publish(message) => message_of(&message, &value),
        ClientFrame::Ack(msgids) => assert_eq!(msgids.len(), value["msgids"].as_array().map_or(1, Vec::len)),
        ClientFrame::Ping => assert_eq!(value["type"], "ping"),
    }
}

fn subscription(subscription: &Subscription) {
    assert!(is_filter(subscription.filter.as_str()), "{subscription:?}");
    assert!(subscription.options.retain_handling <= 2);
    assert!(!(subscription.options.no_local && subscription.filter.is_shared()));
}

/// `delivery::merge_patch`, given two payloads with a line's end between them: a patch makes exactly the second of the first.
fn merge_patch(data: &[u8]) {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return };
    let (Some(base), Some(new)) = (object(&data[..end]), object(&data[end + 1..])) else { return };
    let Some(patch) = diff(base, new) else { return };
    let value = |text: &str| serde_json::from_str::<Value>(text);
    // Numbers that are JSON, and too large for this reader of it, have no value.
    let (Ok(before), Ok(after)) = (value(base), value(new)) else { return };
    let mut made = before;
    patched(&mut made, value(&patch).expect("a patch is JSON"));
    assert_eq!(made, after, "{patch}");
}

/// MergePatch as RFC 7396 section 2 has it.
fn patched(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else { return *target = patch };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        let members = target.as_object_mut().expect("it is one now");
        if value.is_null() {
            members.remove(&name);
        } else {
            patched(members.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// A message that a client wrote as `value`.
fn message_of(message: &Message, value: &Value) {
    assert!(is_topic(message.topic.as_str()) && !message.topic.as_str().contains(char::is_control), "{message:?}");
    let (payload, encoding) = (&value["payload"], value["encoding"].as_str());
    match (payload, encoding) {
        (Value::String(text), Some("base64")) => {
            assert_eq!(base64_simd::STANDARD.encode_to_string(&message.payload), *text);
        }
        (Value::String(text), None | Some("text")) => assert_eq!(message.payload, text.as_bytes()),
        _ => assert_eq!(serde_json::from_slice::<Value>(&message.payload).ok().as_ref(), Some(payload)),
    }
    assert_eq!(u64::from(message.qos.number()), value["qos"].as_u64().unwrap_or(0));
    assert_eq!(message.retain, value["retain"].as_bool().unwrap_or(false));
    comes_through(message);
}

/// What the gateway writes of a message, a client may publish, and it is the same message.
fn comes_through(message: &Message) {
    let text = delivery(message, Format::Text, 0);
    let mut frame: Value = serde_json::from_slice(&text).expect("a delivery is JSON");
    frame["type"] = json!("publish");
    let Ok((ClientFrame::Publish(back), None)) = decode(&frame.to_string()) else { panic!("{frame}") };
    assert_eq!(back, *message);
    is_readable(message);
}

/// Whatever the payload is, a reader gets JSON, and where it is a value, that value.
fn is_readable(message: &Message) {
    let text = delivery(message, Format::Json, 0);
    let text = str::from_utf8(&text).expect("JSON is UTF-8");
    assert!(serde_json::from_str::<&RawValue>(text).is_ok(), "{text}");
    if let Ok(frame) = serde_json::from_str::<Value>(text)
        && frame["encoding"] == "json"
    {
        assert_eq!(serde_json::from_slice::<Value>(&message.payload).ok().as_ref(), Some(&frame["payload"]));
    }
}

/// `mqtt::packet::read`, over a stream that arrives in pieces of any size.
fn packets(data: &[u8]) {
    let whole = read_in_pieces(data, data.len().max(1));
    for size in [1, 2, 7, 64] {
        assert_eq!(read_in_pieces(data, size), whole, "in pieces of {size}");
    }
    for packet in whole.0 {
        let Packet::Publish(publish) = packet else { continue };
        assert!(is_topic(publish.message.topic.as_str()), "{publish:?}");
        assert_eq!(publish.id.is_some(), publish.message.qos != Qos::AtMostOnce);
        assert!(publish.message.payload.len() <= data.len() && publish.subscription_ids.len() <= data.len());
        is_readable(&publish.message);
        let mut bytes = BytesMut::new();
        packet::write_publish(&mut bytes, &publish.message, publish.id, publish.dup);
        assert_eq!(bytes.len(), packet::publish_size(&publish.message));
        let back = packet::read(&mut bytes, usize::MAX);
        let expected = packet::Publish { subscription_ids: Default::default(), ..publish };
        assert_eq!(back, Ok(Some(Packet::Publish(expected))));
    }
}

/// The packets, and what ended the stream before its end.
fn read_in_pieces(data: &[u8], size: usize) -> (Vec<Packet>, Option<Malformed>) {
    let (mut buffer, mut packets) = (BytesMut::new(), Vec::new());
    for piece in data.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            match packet::read(&mut buffer, 1 << 16) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(malformed) => return (packets, Some(malformed)),
            }
        }
    }
    (packets, None)
}

/// `http::websocket::frame`, over a stream that arrives in pieces of any size.
fn websocket(data: &[u8]) {
    let whole = events_in_pieces(data, data.len().max(1));
    for size in [1, 2, 7, 64] {
        assert_eq!(events_in_pieces(data, size), whole, "in pieces of {size}");
    }
    for event in whole.0 {
        let (opcode, payload) = match &event {
            Event::Text(text) => (Opcode::Text, text.as_ref().as_bytes()),
            Event::Binary(bytes) => (Opcode::Binary, &bytes[..]),
            Event::Ping(bytes) => (Opcode::Ping, &bytes[..]),
            Event::Pong => (Opcode::Pong, &b""[..]),
            Event::Close(_) => continue,
        };
        assert!(payload.len() <= MAX_FRAME);
        let mut written = BytesMut::new();
        websocket_frame::write(&mut written, opcode, &[payload]);
        // As a client writes it, with a mask that changes nothing.
        let (head, payload) = written.split_at(written.len() - payload.len());
        let mut masked = [head, &[0; 4], payload].concat();
        masked[1] |= 0x80;
        assert_eq!(events_in_pieces(&masked, masked.len()), (vec![event], None));
    }
}

const MAX_FRAME: usize = 1 << 16;

/// What was said, and what ended the stream before its end.
fn events_in_pieces(data: &[u8], size: usize) -> (Vec<Event>, Option<Close>) {
    let (mut decoder, mut buffer, mut events) = (Decoder::new(MAX_FRAME), BytesMut::new(), Vec::new());
    for piece in data.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(close) => return (events, Some(close)),
            }
        }
        assert!(buffer.len() + decoder.held() <= MAX_FRAME + 14);
    }
    (events, None)
}

/// `Topic::parse`, `TopicFilter::parse`, and all that finds out which belong together. Each line is either or both.
fn topics(text: &str) {
    let (mut topics, mut filters, mut trie) = (Vec::new(), Vec::new(), Trie::new());
    for line in text.split('\n') {
        let (topic, filter) = (Topic::parse(line), TopicFilter::parse(line));
        assert_eq!((topic.is_ok(), filter.is_ok()), (is_topic(line), is_filter(line)), "{line:?}");
        // Enough to compare, and few and short enough to compare them all.
        if line.len() > 200 || topics.len() + filters.len() > 40 {
            continue;
        }
        topics.extend(topic);
        if let Ok(filter) = filter {
            let group = filter.shared_group().map_or(String::new(), |group| format!("$share/{group}/"));
            assert_eq!(group + filter.pattern(), line);
            trie.insert(filter.pattern(), filters.len());
            filters.push(filter);
        }
    }
    for name in &topics {
        let matching = |filter: &TopicFilter| is_match(filter.pattern(), name.as_str());
        let expected: Vec<_> = (0..filters.len()).filter(|&index| matching(&filters[index])).collect();
        let mut found = Vec::new();
        trie.for_each_match(name.as_str(), |&index| found.push(index));
        found.sort();
        assert_eq!(found, expected, "{name}");
        for one in &filters {
            assert_eq!(
                (one.matches(name), topic::matches(one.pattern(), name.as_str())),
                (matching(one), matching(one))
            );
            for other in filters.iter().filter(|other| matching(other)) {
                assert!(matching(one) || !one.covers(other), "{one} covers {other}, and not {name}");
                assert!(!matching(one) || one.intersects(other), "{one} and {other} meet in {name}");
            }
        }
    }
    for (index, filter) in filters.iter().enumerate() {
        assert!(trie.remove(filter.pattern(), &index));
    }
    assert!(trie.is_empty());
}

/// MQTT 5 sections 4.7.1 and 4.7.3.
fn is_topic(text: &str) -> bool {
    (1..=65_535).contains(&text.len()) && !text.bytes().any(|byte| matches!(byte, b'+' | b'#' | 0))
}

/// MQTT 5 sections 4.7.1, 4.7.3 and 4.8.2.
fn is_filter(text: &str) -> bool {
    if !(1..=65_535).contains(&text.len()) || text.bytes().any(|byte| byte == 0) {
        return false;
    }
    let levels: Vec<_> = text.split('/').collect();
    let pattern = match levels[..] {
        ["$share", group, ref pattern @ ..] => {
            let is_empty = matches!(pattern, [] | [""]);
            if group.is_empty() || group.contains(['+', '#']) || is_empty || pattern[0] == "$share" {
                return false;
            }
            pattern
        }
        ["$share"] => return false,
        ref pattern => pattern,
    };
    let (last, others) = pattern.split_last().expect("a text has a level");
    let is_plain = |level: &&str| *level == "+" || !level.contains(['+', '#']);
    others.iter().all(is_plain) && (*last == "#" || is_plain(last))
}

/// MQTT 5 sections 4.7.1 and 4.7.2, level by level.
fn is_match(pattern: &str, topic: &str) -> bool {
    fn rest(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            (["#"], _) | ([], []) => true,
            ([first, pattern @ ..], [level, topic @ ..]) => (*first == "+" || first == level) && rest(pattern, topic),
            _ => false,
        }
    }
    let (patterns, topics): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), topic.split('/').collect());
    rest(&patterns, &topics) && !(topic.starts_with('$') && matches!(patterns[0], "+" | "#"))
}

/// `BrokerUrl::from_str`.
fn broker_url(text: &str) {
    match text.parse::<BrokerUrl>() {
        Ok(url) => {
            assert!(!text.contains('@') || matches!(url, BrokerUrl::Unix { .. }));
            assert_eq!(url.to_string().parse::<BrokerUrl>().as_ref(), Ok(&url), "{text:?}");
            match url {
                BrokerUrl::Embedded { address, .. } => assert!(address.ip().is_loopback()),
                BrokerUrl::Mqtt { host, port, .. } => assert!(!host.is_empty() && port > 0),
                BrokerUrl::Unix { path } => assert!(path.is_absolute() && path.as_os_str().len() <= 107),
            }
        }
        Err(error) => {
            let password = text.rsplit_once('@').and_then(|(before, _)| before.rsplit_once(':'));
            // Part of the advice that stands in the error whatever was written is no secret told.
            let advice =
                ["?", "unix://"].map(|text| text.parse::<BrokerUrl>().expect_err("no URL").to_string()).concat();
            let is_secret = |password: &str| password.len() > 8 && !advice.contains(password);
            if let Some((_, password)) = password.filter(|(_, password)| is_secret(password)) {
                assert!(!error.to_string().contains(password), "{error}");
            }
        }
    }
}

/// `wire::negotiate`, each line a header.
fn subprotocols(text: &str) {
    let offered: Vec<_> = text.split(['\n', ',']).map(str::trim).filter(|name| !name.is_empty()).collect();
    let has_json = offered.contains(&JSON);
    match negotiate(text.split('\n')) {
        Ok(agreed) => {
            assert_eq!(agreed.subprotocol, has_json.then_some(JSON));
            assert!(has_json || offered.is_empty());
            assert_eq!(agreed.bearer.is_some(), offered.iter().any(|name| name.starts_with("bearer.")));
        }
        Err(told) => {
            assert!(!has_json && !offered.is_empty() && told.contains(JSON));
            let secrets = offered.iter().filter_map(|name| name.strip_prefix("bearer."));
            assert!(secrets.filter(|secret| secret.len() > 20).all(|secret| !told.contains(secret)));
        }
    }
}

/// `Judge::check` of a JSON Web Token: nobody comes in but by the one that was signed, whatever is made of it.
fn token(text: &str) {
    let jwt = Jwt {
        algorithms: vec![Algorithm::Hs256],
        secret: Some("thirty-two bytes, known to nobody".into()),
        audience: vec!["tidegate".to_owned()],
        ..Jwt::default()
    };
    let config = auth::Config { jwt: Some(jwt), ..auth::Config::default() };
    let judge = Judge::new(&config, Arc::default()).expect("a judge");
    let (credential, visitor) =
        (Credential::Token(text.into()), Visitor { address: Ipv4Addr::LOCALHOST.into(), client_id: None });
    let checking = pin!(judge.check(&credential, &visitor));
    let Poll::Ready(judged) = checking.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("nobody is asked where the secret is there");
    };
    assert_eq!(judged.is_ok(), text == include_str!("seeds/token/signed"));
    if let Err(failure) = judged {
        let (told, longest) = (failure.to_string(), text.split('.').max_by_key(|part| part.len()).unwrap_or_default());
        assert!(longest.len() < 20 || !told.contains(longest), "{told}");
    }
}

/// `Config::load`, of a file, and of an environment with a variable a line.
fn settings(text: &str) {
    // What is named there is read, and it may be anything.
    if text.to_ascii_lowercase().contains("_file") || text.contains("\\u") || text.contains("\\U") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tidegate.toml");
    let load = |text: &str| {
        std::fs::write(&file, text).expect("written");
        Config::load(&Flags { config: Some(file.clone()), ..Flags::default() }, [])
    };
    let variables = || text.lines().filter_map(|line| line.split_once('='));
    let environment = variables().map(|(name, value)| (name.to_owned(), value.to_owned()));
    for loaded in [load(text), Config::load(&Flags::default(), environment)] {
        match loaded {
            Ok(config) => {
                let written = config.to_string();
                assert_eq!(load(&written).expect("what is shown is a configuration").to_string(), written);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
