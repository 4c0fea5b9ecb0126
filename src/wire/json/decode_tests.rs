//! What a text means and what it is refused for, and that the examples of the protocol are what this program takes and says.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::*;
use crate::mqtt::{Outcome, Reason};
use crate::wire::frame::{Head, Limits, Reply, TopicResult};
use crate::wire::json::{BatchText, HEAD_AT, delivery, head, patched, reply};

const CLIENT: [&str; 7] = ["any", "auth", "subscribe", "unsubscribe", "publish", "ack", "ping"];
const MAX_STRING: usize = 65_535;

/// A file of `protocol/v1`.
fn file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("protocol/v1/{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    serde_json::from_str(&text).expect("the files are JSON")
}

/// The entries of a list in such a file, by name.
fn entries_of(name: &str, list: &str) -> Vec<(String, Value)> {
    let entries = file(name)[list].as_array().cloned().unwrap_or_default();
    entries.into_iter().map(|entry| (format!("{name}: {}", entry["name"].as_str().expect("a name")), entry)).collect()
}

/// All examples of what clients send, as text.
fn client_examples() -> Vec<(String, String)> {
    let all = CLIENT.iter().flat_map(|kind| entries_of(&format!("client.{kind}"), "examples"));
    all.map(|(name, entry)| (name, entry["frame"].to_string())).collect()
}

fn taken(text: &str) -> (ClientFrame, Option<MsgId>) {
    decode(text).unwrap_or_else(|undecoded| panic!("{}: {undecoded:?}", short(text)))
}

fn refused(text: &str) -> Undecoded {
    match decode(text) {
        Err(undecoded) => undecoded,
        Ok(frame) => panic!("{} was taken as {frame:?}", short(text)),
    }
}

/// The code that a text is refused with; nothing if it is taken.
fn code(text: &str) -> Option<Code> {
    decode(text).err().map(|undecoded| undecoded.refusal.code)
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The frame with these fields put in their places.
fn with(frame: &Value, fields: &[(&str, Value)]) -> String {
    let mut frame = frame.clone();
    for (pointer, value) in fields {
        *frame.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value.clone();
    }
    frame.to_string()
}

fn published(text: &str) -> Message {
    let (ClientFrame::Publish(message), _) = taken(text) else { panic!("{text} is no publish") };
    message
}

fn subscribed(text: &str) -> Vec<Asked<Subscription>> {
    let (ClientFrame::Subscribe(entries), _) = taken(text) else { panic!("{text} is no subscribe") };
    entries
}

fn one_subscription(text: &str) -> Subscription {
    match subscribed(text).as_slice() {
        [Asked::Valid(subscription)] => subscription.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

mod the_files {
    use super::*;

    #[test]
    fn every_example_of_a_client_is_taken() {
        let examples = client_examples();
        assert!(examples.len() > 50, "the files were found");
        for (name, text) in examples {
            let frame = decode(&text).unwrap_or_else(|undecoded| panic!("{name}: {undecoded:?}"));
            let asked: Value = serde_json::from_str(&text).expect("JSON");
            let is_confirmation = asked["type"] == "ack";
            assert!(is_confirmation || json!(frame.1) == asked["msgid"], "{name}: the msgid comes back");
        }
    }

    #[test]
    fn every_refused_text_is_refused_with_its_code() {
        for kind in CLIENT {
            for (name, entry) in entries_of(&format!("client.{kind}"), "refused") {
                let undecoded = refused(entry["text"].as_str().expect("a text"));
                assert_eq!(entry["code"], undecoded.refusal.code.name(), "{name}: {undecoded:?}");
                assert!(!undecoded.refusal.retryable, "{name}: the same frame never works");
            }
        }
    }

    /// What the program says in the situations of the examples.
    fn said() -> Vec<(&'static str, &'static str, String)> {
        let mut said = Vec::new();
        let mut replies = |kind, replies: Vec<(&'static str, Reply)>| {
            said.extend(replies.iter().map(|(name, value)| (kind, *name, reply(value))));
        };
        let text = |id: &str| Some(MsgId::Text(id.into()));
        let number = |id| Some(MsgId::Number(id));
        let granted =
            |topics: &[(&str, Qos)]| topics.iter().map(|(topic, qos)| TopicResult::granted(topic, *qos)).collect();
        let ended = |topics: &[&str]| topics.iter().map(|topic| TopicResult::ended(topic)).collect();
        let (qos_0, qos_1) = (Qos::AtMostOnce, Qos::AtLeastOnce);
        let not_allowed = || Refusal::from_reason(Reason::NOT_AUTHORIZED);
        let secret = || vec![TopicResult::refused("secret/#", not_allowed())];
        let entry_refused =
            |entry: &str| match subscribed(&format!(r#"{{"type":"subscribe","topics":[{entry}]}}"#)).remove(0) {
                Asked::Invalid { topic, refusal } => TopicResult::refused(&topic, refusal),
                Asked::Valid(_) => panic!("{entry} is valid"),
            };
        let no_more = Refusal::new(Code::NotAuthorized, "Your rights have changed: this is not allowed any more.");
        let timestamp = 1_767_225_600_000;

        replies(
            "ack",
            vec![
                ("a msgid that is an integer", Reply::Ack { msgid: MsgId::Number(1) }),
                ("a msgid that is a string", Reply::Ack { msgid: MsgId::Text("p1".into()) }),
            ],
        );
        let answered = |expires_in, msgid| Reply::AuthResponse { status: "success", timestamp, expires_in, msgid };
        let auth_response = |msgid| answered(None, msgid);
        replies(
            "auth_response",
            vec![
                ("accepted", auth_response(None)),
                ("accepted, with the msgid of the question", auth_response(text("hello"))),
                ("a token that ends", answered(Some(3600), None)),
            ],
        );
        let broker = |status, session_present| Reply::Broker { status, session_present };
        replies(
            "broker",
            vec![
                ("lost", broker("down", None)),
                ("back, with the session it had", broker("up", Some(true))),
                ("back, with a new session", broker("up", Some(false))),
            ],
        );
        replies("queued", vec![("third in line", Reply::Queued { position: 3 })]);
        replies("expiring", vec![("a minute left", Reply::Expiring { seconds: 60 })]);
        replies("bye", vec![("a drain", Reply::Bye { reason: "drain", reconnect_after: 1840 })]);
        replies(
            "pong",
            vec![
                ("plain", Reply::Pong { msgid: None }),
                ("with the msgid of the question", Reply::Pong { msgid: number(1) }),
                ("with a msgid that is a string", Reply::Pong { msgid: text("1") }),
            ],
        );

        let undecoded = |text: &str| {
            let undecoded = refused(text);
            Reply::refused(undecoded.refusal, undecoded.msgid)
        };
        let no_token =
            "This gateway has no access control configured, so a token can't be checked; connect without one.";
        let dropped = Reply::Error {
            code: Code::Dropped,
            message: "42 deliveries of QoS 0 were dropped because they were not read in time.".to_owned(),
            msgid: None,
            retryable: false,
            count: Some(42),
        };
        let unknown = Refusal::from_outcome(Outcome::Unknown).expect("no success");
        replies(
            "error",
            vec![
                (
                    "a publish to a filter",
                    undecoded(r#"{"type":"publish","topic":"attic/#","payload":"on","msgid":1}"#),
                ),
                ("not JSON", undecoded(r#"{"type":"ping" "msgid":1}"#)),
                ("a type that nobody knows", undecoded(r#"{"type":"teleport","msgid":1}"#)),
                ("the broker is away", Reply::refused(Refusal::broker_unavailable(), text("p1"))),
                (
                    "too large for the broker",
                    Reply::refused(Refusal::from_reason(Reason::PACKET_TOO_LARGE), text("p2")),
                ),
                ("nobody knows how it ended", Reply::refused(unknown, text("p2"))),
                ("a token that nobody can check", Reply::refused(Refusal::new(Code::NotAuthenticated, no_token), None)),
                ("deliveries were dropped", dropped),
            ],
        );

        let attic = || TopicResult::granted("attic/#", qos_0);
        let subscribed = |topics, msgid| Reply::Subscribed { topics, msgid };
        let both = [("attic/#", qos_1), ("cellar/+/temp", qos_1)];
        let shared = r#"{"topic":"$share/desk/orders/#","noLocal":true}"#;
        replies(
            "subscribed",
            vec![
                ("granted", subscribed(vec![attic()], None)),
                ("granted, with the msgid of the question", subscribed(granted(&both), number(1))),
                (
                    "an invalid filter beside a good one",
                    subscribed(vec![attic(), entry_refused(r#""attic/#/temp""#)], number(3)),
                ),
                ("a shared subscription with noLocal", subscribed(vec![entry_refused(shared), attic()], number(4))),
                ("the broker refuses", subscribed(secret(), None)),
            ],
        );
        let unsubscribed = |topics, msgid| Reply::Unsubscribed { topics, msgid };
        let invalid = vec![TopicResult::ended("attic/#"), entry_refused(r#""attic/#/temp""#)];
        replies(
            "unsubscribed",
            vec![
                ("ended", unsubscribed(ended(&["attic/#"]), None)),
                (
                    "ended, with the msgid of the question",
                    unsubscribed(ended(&["attic/#", "cellar/+/temp"]), number(5)),
                ),
                ("an invalid filter beside a good one", unsubscribed(invalid, number(6))),
                (
                    "unasked, after a change of rights",
                    unsubscribed(vec![TopicResult::refused("attic/#", no_more)], None),
                ),
            ],
        );

        let limits = Limits {
            max_frame: 1_048_576,
            max_payload: 1_048_576,
            max_subscriptions: 1000,
            max_inflight: 64,
            max_qos: 2,
            retain: true,
            shared: true,
        };
        let few = Limits {
            max_payload: 65_536,
            max_subscriptions: 100,
            max_inflight: 16,
            max_qos: 1,
            retain: false,
            shared: false,
            ..limits
        };
        let welcome = |session_present, subscriptions, limits| Reply::Welcome {
            session_id: "0199f2b4-5c1e-7d60-a1f3-4b8e27c90d15".to_owned(),
            client_id: "kiosk-7".to_owned(),
            protocol: 1,
            session_present,
            heartbeat: 25.into(),
            expires_in: None,
            subscriptions,
            limits,
            msgid: None,
        };
        let mut ending = welcome(false, None, limits);
        if let Reply::Welcome { expires_in, .. } = &mut ending {
            *expires_in = Some(3600);
        }
        let resumed = granted(&[("attic/#", qos_1), ("cellar/+/json", qos_0)]);
        replies(
            "welcome",
            vec![
                ("a new session", welcome(false, None, limits)),
                ("a session taken up again", welcome(true, Some(resumed), limits)),
                ("a subscription that the broker refused", welcome(false, Some(secret()), limits)),
                ("a broker of few talents", welcome(false, None, few)),
                ("a token that ends", ending),
            ],
        );

        let message = |topic, payload: &'static [u8]| Message {
            topic: Topic::parse(topic).expect("a topic"),
            payload: Bytes::from_static(payload),
            qos: qos_0,
            retain: false,
            properties: None,
        };
        let temp = || message("attic/temp", b"21.5");
        let nothing = Head::default;
        let known_as = |msgid: &str| Head { msgid: Some(msgid.into()), ..nothing() };
        let again = Head { dup: true, ..known_as("2f-9c1e44d07b52") };
        let lamp: &[u8] = br#"{"on": true, "level": 0.5}"#;
        let order = Message {
            qos: qos_1,
            properties: Some(Box::new(every_property())),
            ..message("orders/new", br#"{"table": 4}"#)
        };
        let deliveries = [
            ("text", nothing(), temp(), Format::Text),
            ("an empty payload", nothing(), message("attic/lamp", b""), Format::Text),
            ("JSON text, in the default format", nothing(), message("attic/lamp", br#"{"on": true}"#), Format::Text),
            ("bytes", nothing(), message("attic/raw", &[0, 1, 2, 3, 4, 5, 255]), Format::Text),
            ("JSON, with format json", nothing(), message("attic/lamp", lamp), Format::Json),
            ("a JSON string, with format json", nothing(), message("attic/label", br#""north wall""#), Format::Json),
            ("JSON null, with format json", nothing(), message("attic/label", b"null"), Format::Json),
            ("a stored message", nothing(), Message { retain: true, ..message("attic/lamp", b"on") }, Format::Text),
            ("qos 1", known_as("2f-9c1e44d07b52"), Message { qos: qos_1, ..temp() }, Format::Text),
            ("delivered again", again, Message { qos: qos_1, ..temp() }, Format::Text),
            (
                "qos 2 for two subscriptions",
                Head { sids: vec![1, 7], ..known_as("30-01b7aa35f9e8") },
                Message { qos: Qos::ExactlyOnce, ..temp() },
                Format::Text,
            ),
            (
                "with maxRate, after others that were conflated away",
                Head { sids: vec![3], skipped: 12, ..nothing() },
                temp(),
                Format::Text,
            ),
            ("every property", known_as("31-77d0c2e9b610"), order, Format::Text),
        ];
        said.extend(deliveries.iter().map(|(name, own, message, format)| {
            let received = if own.dup { timestamp + 60_000 } else { timestamp };
            let mut text = delivery(message, *format, received);
            text.splice(HEAD_AT..HEAD_AT, head(own));
            ("mqtt", *name, as_text(text))
        }));
        let changed = patched(&message("attic/lamp", b""), r#"{"level":0.75,"fault":null}"#, timestamp);
        said.push(("mqtt", "with delta, what has changed", as_text(changed)));
        let temp = delivery(&temp(), Format::Text, timestamp);
        let lamp = delivery(&Message { qos: qos_1, ..message("attic/lamp", b"on") }, Format::Text, timestamp);
        let of_one = Head { sids: vec![1], ..known_as("2f-9c1e44d07b52") };
        for (name, entries) in
            [("two deliveries", vec![(nothing(), &temp), (of_one, &lamp)]), ("one delivery", vec![(nothing(), &temp)])]
        {
            let mut batch = BatchText::default();
            entries.iter().for_each(|(own, text)| batch.add(&head(own), text));
            said.push(("batch", name, as_text(batch.finish())));
        }
        said
    }

    #[test]
    fn every_example_of_the_gateway_is_what_the_program_says() {
        let said = said();
        let mut met = 0;
        for kind in [
            "welcome",
            "auth_response",
            "subscribed",
            "unsubscribed",
            "ack",
            "mqtt",
            "batch",
            "error",
            "broker",
            "queued",
            "expiring",
            "pong",
            "bye",
        ] {
            for (name, entry) in entries_of(&format!("gateway.{kind}"), "examples") {
                let of_this = |(of, example, _): &&(&str, &str, String)| *of == kind && entry["name"] == *example;
                let (.., text) = said.iter().find(of_this).unwrap_or_else(|| panic!("{name}: nobody says it"));
                assert_eq!(serde_json::from_str::<Value>(text).expect("JSON"), entry["frame"], "{name}");
                met += 1;
            }
        }
        assert_eq!(met, said.len(), "all that is said is in the files");
    }

    fn as_text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("text")
    }

    fn every_property() -> Properties {
        Properties {
            content_type: Some("application/json".to_owned()),
            response_topic: Some("orders/answers/kiosk-7".to_owned()),
            correlation_data: Some(Bytes::from_static(&[0, 1])),
            message_expiry_interval: Some(60),
            payload_format_indicator: Some(1),
            user_properties: vec![("room".to_owned(), "hall".to_owned()), ("room".to_owned(), "garden".to_owned())],
        }
    }

    #[test]
    fn properties_are_read_as_they_are_written() {
        let (_, example) = entries_of("client.publish", "examples")
            .into_iter()
            .find(|(name, _)| name.ends_with(": every property"))
            .expect("there");
        assert_eq!(published(&example["frame"].to_string()).properties, Some(Box::new(every_property())));
        let none =
            published(r#"{"type":"publish","topic":"a","payload":"on","properties":{"colour":1,"userProperties":[]}}"#);
        assert_eq!(none.properties, None, "what says nothing is nothing");
    }
}

#[test]
fn a_payload_becomes_bytes_as_its_encoding_says() {
    let object = "{ \"b\" : 1,\n\t\"a\":[ 1 , 2.50 ],\"a\":\"\\u00e9\" }";
    let cases: [(&str, &str, &[u8]); 29] = [
        // A string is its text.
        (r#""on""#, "", b"on"),
        (r#""""#, "", b""),
        (r#""é\u00e9\u00E9""#, "", "ééé".as_bytes()),
        (r#""\ud83d\ude00😀""#, "", "😀😀".as_bytes()),
        (r#""\"\\\/\b\f\n\r\t""#, "", b"\"\\/\x08\x0c\n\r\t"),
        (r#""\u0000\u001f\u007f""#, "", b"\0\x1f\x7f"),
        (r#""\ufdd0\uffff""#, "", "\u{FDD0}\u{FFFF}".as_bytes()),
        (r#""21.50""#, r#","encoding":"text""#, b"21.50"),
        // All else is its JSON text, as it was written.
        ("21.50", "", b"21.50"),
        ("1.000", "", b"1.000"),
        ("-0", "", b"-0"),
        ("1.0e400", "", b"1.0e400"),
        ("1E+2", "", b"1E+2"),
        ("-123456789012345678901234567890.0", "", b"-123456789012345678901234567890.0"),
        ("true", "", b"true"),
        ("null", "", b"null"),
        ("  [ ]  ", "", b"[ ]"),
        (object, "", object.as_bytes()),
        (object, r#","encoding":"text""#, object.as_bytes()),
        (object, r#","encoding":"json""#, object.as_bytes()),
        ("1.0e400", r#","encoding":"json""#, b"1.0e400"),
        (r#""\u00e9""#, r#","encoding":"json""#, br#""\u00e9""#),
        (r#""""#, r#","encoding":"json""#, br#""""#),
        // Base64 is bytes.
        (r#""""#, r#","encoding":"base64""#, b""),
        (r#""QQ==""#, r#","encoding":"base64""#, b"A"),
        (r#""AAECAwQF/w==""#, r#","encoding":"base64""#, &[0, 1, 2, 3, 4, 5, 255]),
        (r#""\/w\u003d\u003D""#, r#","encoding":"base64""#, &[255]),
        (r#""+/+/""#, r#","encoding":"base64""#, &[0xFB, 0xFF, 0xBF]),
        (r#""QQ==""#, r#","encoding":"\u0062ase64""#, b"A"),
    ];
    for (payload, encoding, bytes) in cases {
        let before = format!(r#"{{"type":"publish","topic":"a","payload":{payload}{encoding}}}"#);
        assert_eq!(published(&before).payload, bytes, "{before}");
        let after = format!(r#"{{"type":"publish","topic":"a"{encoding},"payload":{payload}}}"#);
        assert_eq!(published(&after).payload, bytes, "{after}");
        let will = format!(r#"{{"type":"auth","will":{{"topic":"a","payload":{payload}{encoding}}}}}"#);
        let (ClientFrame::Auth(auth), _) = taken(&will) else { panic!("{will}") };
        assert_eq!(auth.will.expect("a will").message.payload, bytes, "{will}");
    }
}

#[test]
fn a_msgid_is_a_string_of_64_characters_or_an_integer_that_javascript_holds() {
    let number = |number| Some(MsgId::Number(number));
    let text = |text: &str| Some(MsgId::Text(text.into()));
    let (longest, accents) = ("x".repeat(64), "é".repeat(64));
    let cases = [
        ("0", number(0)),
        ("-1", number(-1)),
        ("9007199254740991", number(9_007_199_254_740_991)),
        ("-9007199254740991", number(-9_007_199_254_740_991)),
        (r#""""#, text("")),
        (r#""1""#, text("1")),
        (r#""\u0061\n""#, text("a\n")),
        (&format!("\"{longest}\""), text(&longest)),
        (&format!("\"{accents}\""), text(&accents)),
        ("9007199254740992", None),
        ("-9007199254740992", None),
        ("9223372036854775807", None),
        ("-9223372036854775808", None),
        ("18446744073709551616", None),
        ("1.5", None),
        ("1e400", None),
        ("null", None),
        ("true", None),
        ("[1]", None),
        ("{}", None),
        (&format!("\"{longest}x\""), None),
        (&format!("\"{accents}x\""), None),
    ];
    for (written, expected) in cases {
        let ping = format!(r#"{{"type":"ping","msgid":{written}}}"#);
        match &expected {
            Some(_) => assert_eq!(taken(&ping), (ClientFrame::Ping, expected.clone()), "{ping}"),
            None => {
                assert_eq!((refused(&ping).refusal.code, refused(&ping).msgid), (Code::InvalidFrame, None), "{ping}")
            }
        }
        let ack = format!(r#"{{"type":"ack","msgids":["a",{written}]}}"#);
        let acked = expected.map(|msgid| ClientFrame::Ack(vec![MsgId::Text("a".into()), msgid]));
        assert_eq!(decode(&ack).ok().map(|(frame, _)| frame), acked, "{ack}");
    }
}

#[test]
fn a_refusal_bears_the_msgid_that_could_be_read() {
    let seven = Some(MsgId::Number(7));
    let cases = [
        (r#"{"msgid":7}"#, seven.clone()),
        (r#"{"type":"teleport","msgid":7}"#, seven.clone()),
        (r#"{"msgid":7,"type":1}"#, seven.clone()),
        (r#"{"type":"publish","msgid":7}"#, seven.clone()),
        (r#"{"type":"publish","topic":"a/#","payload":1,"msgid":7}"#, seven.clone()),
        (r#"{"type":"subscribe","topics":[],"msgid":"7"}"#, Some(MsgId::Text("7".into()))),
        (r#"{"type":"ack","msgid":7,"msgids":[1]}"#, seven.clone()),
        (r#"{"type":"ping","note":1,"note":1,"msgid":7}"#, seven.clone()),
        (r#"{"type":"ping","type":"ping","msgid":7}"#, seven),
        (r#"{"type":"ping","msgid":7,"msgid":7}"#, None),
        (r#"{"type":"ping","msgid":7"#, None),
    ];
    for (text, msgid) in cases {
        assert_eq!(refused(text).msgid, msgid, "{text}");
    }
}

#[test]
fn a_malformed_auth_is_known_as_one() {
    let cases = [
        (r#"{"type":"auth","clean":1}"#, true),
        (r#"{"type":"\u0061uth","clean":1}"#, true),
        (r#"{"type":"auth","msgid":null}"#, true),
        (r#"{"type":"auth","msgid":1,"msgid":1}"#, true),
        (r#"{"type":"Auth"}"#, false),
        (r#"{"type":"publish"}"#, false),
        (r#"{"type":["auth"]}"#, false),
        (r#"{"type":"auth""#, false),
    ];
    for (text, is_auth) in cases {
        assert_eq!(refused(text).is_auth, is_auth, "{text}");
    }
}

#[test]
fn what_is_cut_off_is_no_json() {
    for (name, text) in client_examples() {
        for (end, _) in text.char_indices() {
            assert_eq!(code(&text[..end]), Some(Code::InvalidJson), "{name}: {}", &text[..end]);
        }
    }
    for text in ["[", "[1,", "[1}", "\"ping", "[] []", "1 2", "tru", "nul", "-", "1e", "[\"\\x\"]"] {
        assert_eq!(code(text), Some(Code::InvalidJson), "{text}");
    }
}

#[test]
fn nesting_ends_at_64_levels_and_never_the_stack() {
    let lists =
        |levels: usize| format!(r#"{{"type":"ping","note":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
    let objects = |levels: usize| {
        format!(r#"{{"type":"ping","note":{}1{}}}"#, r#"{"a":"#.repeat(levels - 1), "}".repeat(levels - 1))
    };
    assert_eq!(code(&lists(64)), None);
    assert_eq!(code(&objects(64)), None);
    for deep in
        [lists(65), objects(65), lists(300_000), objects(100_000), "[".repeat(1 << 20), r#"{"a":"#.repeat(200_000)]
    {
        assert_eq!(code(&deep), Some(Code::InvalidJson), "{}", short(&deep));
    }
}

#[test]
fn options_of_a_subscription_are_read() {
    let plain = one_subscription(r#"{"type":"subscribe","topic":"attic/#"}"#);
    assert_eq!((plain.options, plain.sid, plain.contract), (SubscribeOptions::default(), None, Contract::default()));
    let full = r#"{"type":"subscribe","topic":"a/+","qos":2,"sid":-7,"format":"json","ack":"manual","priority":"low","retainHandling":2,"noLocal":true,"retainAsPublished":true}"#;
    let options =
        SubscribeOptions { qos: Qos::ExactlyOnce, no_local: true, retain_as_published: true, retain_handling: 2 };
    let contract = Contract { ack: Ack::Manual, format: Format::Json, priority: Priority::Low, ..Contract::default() };
    let expected =
        Subscription { filter: TopicFilter::parse("a/+").expect("a filter"), options, sid: Some(-7), contract };
    assert_eq!(one_subscription(full), expected);
    let defaults = r#"{"type":"subscribe","topic":"a","delta":false,"priority":"normal"}"#;
    assert_eq!(
        one_subscription(defaults).options,
        SubscribeOptions::default(),
        "what asks for nothing new is no option"
    );
}

#[test]
fn what_a_contract_may_ask_for_is_read() {
    let contract =
        |options: &str| one_subscription(&format!(r#"{{"type":"subscribe","topic":"a",{options}}}"#)).contract;
    for (written, micros) in [
        ("1", 1_000_000),
        ("0.5", 2_000_000),
        ("3", 333_334),
        ("1e3", 1_000),
        ("0.00001", 100_000_000_000),
        ("1000000", 1),
        ("999999.5", 2),
    ] {
        let interval = contract(&format!(r#""maxRate":{written}"#)).max_rate.map(|rate| rate.interval().as_micros());
        assert_eq!(interval, Some(micros), "{written}: never more often than was asked");
    }
    let batch = contract(r#""batch":{"maxMessages":10000,"maxDelay":3600000,"other":1}"#).batch.expect("there");
    assert_eq!((batch.max_messages.get(), batch.delay().as_secs()), (10_000, 3600));
    assert!(contract(r#""delta":true"#).delta);
    let texts =
        r#"{"type":"subscribe","maxRate":1,"delta":true,"topics":["a",{"topic":"b","maxRate":2,"delta":false}]}"#;
    let seen: Vec<_> = subscribed(texts)
        .into_iter()
        .map(|asked| match asked {
            Asked::Valid(Subscription { contract, .. }) => (contract.max_rate, contract.delta),
            Asked::Invalid { .. } => panic!("all are valid"),
        })
        .collect();
    assert_eq!(seen, [(Rate::per_second(1.0), true), (Rate::per_second(2.0), false)]);
}

#[test]
fn what_is_acked_by_hand_is_neither_conflated_nor_left_out() {
    let with =
        |options: &str| code(&format!(r#"{{"type":"subscribe","topics":[{{"topic":"a",{options}}}],"ack":"manual"}}"#));
    for (options, expected) in [
        (r#""maxRate":1"#, Some(Code::InvalidFrame)),
        (r#""delta":true"#, Some(Code::InvalidFrame)),
        (r#""maxRate":1,"ack":"auto""#, None),
        (r#""delta":false"#, None),
        (r#""batch":{"maxMessages":2,"maxDelay":5}"#, None),
    ] {
        assert_eq!(with(options), expected, "{options}");
    }
}

#[test]
fn options_beside_topics_hold_for_entries_that_have_none_of_their_own() {
    let text = r#"{"type":"subscribe","qos":1,"ack":"manual","sid":5,
        "priority":"high","topics":["a",{"topic":"b"},{"topic":"c","qos":0,"ack":"auto","sid":6,"format":"json","priority":"normal"}]}"#;
    let seen: Vec<_> = subscribed(text)
        .into_iter()
        .map(|asked| match asked {
            Asked::Valid(Subscription { options, sid, contract, .. }) => (options.qos.number(), sid, contract),
            Asked::Invalid { .. } => panic!("all are valid"),
        })
        .collect();
    let manual = Contract { ack: Ack::Manual, priority: Priority::High, ..Contract::default() };
    let own = Contract { format: Format::Json, ..Contract::default() };
    assert_eq!(seen, [(1, Some(5), manual), (1, Some(5), manual), (0, Some(6), own)]);
}

#[test]
fn an_invalid_filter_is_refused_alone_and_an_invalid_option_with_its_frame() {
    let results: Vec<_> = subscribed(
        r#"{"type":"subscribe","topics":["a",{"topic":"a/#/b","qos":1},"","$share/g","a\u0001",{"topic":"$share/g/a","noLocal":true},"b"]}"#,
    )
    .into_iter()
    .map(|asked| match asked {
        Asked::Valid(subscription) => (subscription.filter.as_str().to_owned(), None),
        Asked::Invalid { topic, refusal } => (topic, Some(refusal.code)),
    })
    .collect();
    let expected = [
        ("a", None),
        ("a/#/b", Some(Code::InvalidTopic)),
        ("", Some(Code::InvalidTopic)),
        ("$share/g", Some(Code::InvalidTopic)),
        ("a\u{1}", Some(Code::InvalidTopic)),
        ("$share/g/a", Some(Code::InvalidFrame)),
        ("b", None),
    ];
    assert_eq!(results, expected.map(|(topic, code)| (topic.to_owned(), code)));
    for whole in [
        r#"{"type":"subscribe","topics":["a",{"topic":"b","qos":3}]}"#,
        r#"{"type":"subscribe","topics":["a",{"topic":"a/#/b","qos":3}]}"#,
        r#"{"type":"subscribe","topics":["a"],"qos":3}"#,
        r#"{"type":"subscribe","topics":["a"],"maxRate":0}"#,
        r#"{"type":"subscribe","topics":["a"],"priority":"urgent"}"#,
        r#"{"type":"subscribe","topics":["a"],"priority":1}"#,
        r#"{"type":"subscribe","topic":"a/#/b","format":"xml"}"#,
    ] {
        assert_eq!(code(whole), Some(Code::InvalidFrame), "{whole}");
    }
}

#[test]
fn a_session_is_kept_as_its_auth_says() {
    let kept = |text: &str| {
        let (ClientFrame::Auth(auth), _) = taken(text) else { panic!("{text}") };
        (auth.clean, auth.session_expiry)
    };
    assert_eq!(kept(r#"{"type":"auth"}"#), (true, 0));
    assert_eq!(kept(r#"{"type":"auth","clean":false}"#), (false, 3600));
    assert_eq!(kept(r#"{"type":"auth","clean":false,"sessionExpiry":0}"#), (false, 0));
    assert_eq!(kept(r#"{"type":"auth","clean":false,"sessionExpiry":4294967295}"#), (false, u32::MAX));
}

#[test]
fn strings_end_where_a_packet_has_no_room_for_more() {
    let publish = json!({
        "type": "publish", "topic": "a", "payload": "",
        "properties": {"contentType": "", "responseTopic": "a", "correlationData": "", "userProperties": [["", ""]]},
    });
    let auth = json!({"type": "auth", "clientId": "a", "will": {"topic": "a", "payload": ""}});
    let text = |bytes: usize| json!("x".repeat(bytes));
    let accents = |bytes: usize| json!("é".repeat(bytes / 2) + &"x".repeat(bytes % 2));
    let base64 = |bytes: usize| json!(base64_simd::STANDARD.encode_to_string(vec![7; bytes]));
    type Sized<'a> = &'a dyn Fn(usize) -> Value;
    let cases: [(&Value, &str, Sized, usize, Code); 10] = [
        (&publish, "/topic", &text, MAX_STRING, Code::InvalidTopic),
        (&publish, "/topic", &accents, MAX_STRING, Code::InvalidTopic),
        (&publish, "/properties/contentType", &text, MAX_STRING, Code::InvalidFrame),
        (&publish, "/properties/correlationData", &base64, MAX_STRING, Code::InvalidFrame),
        (&publish, "/properties/userProperties/0/0", &text, MAX_STRING, Code::InvalidFrame),
        (&publish, "/properties/userProperties/0/1", &accents, MAX_STRING, Code::InvalidFrame),
        (&auth, "/clientId", &text, 256, Code::InvalidFrame),
        (&auth, "/clientId", &accents, 256, Code::InvalidFrame),
        (&auth, "/will/topic", &text, MAX_STRING, Code::InvalidTopic),
        (&auth, "/will/payload", &text, MAX_STRING, Code::PayloadTooLarge),
    ];
    for (frame, pointer, of, most, expected) in cases {
        assert_eq!(code(&with(frame, &[(pointer, of(most))])), None, "{pointer} of {most} bytes");
        assert_eq!(code(&with(frame, &[(pointer, of(most + 1))])), Some(expected), "{pointer} of {} bytes", most + 1);
    }
    let filter =
        |bytes: usize| subscribed(&json!({"type": "subscribe", "topic": "x".repeat(bytes)}).to_string()).remove(0);
    assert!(matches!(filter(MAX_STRING), Asked::Valid(_)));
    assert!(matches!(filter(MAX_STRING + 1), Asked::Invalid { refusal, .. } if refusal.code == Code::InvalidTopic));
}

#[test]
fn characters_that_brokers_hang_up_on_never_reach_them() {
    let publish = json!({
        "type": "publish", "topic": "a", "payload": "",
        "properties": {"contentType": "a", "responseTopic": "a", "userProperties": [["a", "a"]]},
    });
    let auth = json!({"type": "auth", "clientId": "a", "will": {"topic": "a", "payload": ""}});
    for char in
        ['\0', '\u{1}', '\n', '\u{1F}', '\u{7F}', '\u{80}', '\u{9F}', '\u{FDD0}', '\u{FFFE}', '\u{FFFF}', '\u{10FFFF}']
    {
        let bad = json!(format!("a{char}b"));
        let places = [
            (&publish, "/topic", Code::InvalidTopic),
            (&publish, "/properties/contentType", Code::InvalidFrame),
            (&publish, "/properties/userProperties/0/0", Code::InvalidFrame),
            (&publish, "/properties/userProperties/0/1", Code::InvalidFrame),
            (&auth, "/clientId", Code::InvalidFrame),
            (&auth, "/will/topic", Code::InvalidTopic),
        ];
        for (frame, pointer, expected) in places {
            assert_eq!(code(&with(frame, &[(pointer, bad.clone())])), Some(expected), "{char:?} in {pointer}");
        }
        assert!(
            code(&with(&publish, &[("/properties/responseTopic", bad.clone())])).is_some(),
            "{char:?} in a responseTopic"
        );
        let subscribe = json!({"type": "subscribe", "topic": bad}).to_string();
        assert!(matches!(subscribed(&subscribe)[..], [Asked::Invalid { .. }]), "{char:?} in a filter");
    }
    let fine = json!("north wall/größe/😀\u{A0}\u{FEFF}");
    assert_eq!(code(&with(&publish, &[("/topic", fine)])), None, "what only looks odd is a topic");
}

#[test]
fn a_key_that_stands_twice_is_refused_wherever_it_would_be_read() {
    for twice in [
        r#"{"type":"ping","type":"ping"}"#,
        r#"{"type":"ping","colour":1,"colour":1}"#,
        r#"{"type":"ping","colour":1,"col\u006fur":1}"#,
        r#"{"type":"ping","😀":1,"\ud83d\ude00":1}"#,
        r#"{"type":"ping","":1,"":1}"#,
        r#"{"type":"auth","will":{"topic":"a","payload":1,"payload":1}}"#,
        r#"{"type":"publish","topic":"a","payload":1,"properties":{"contentType":"a","contentType":"a"}}"#,
        r#"{"type":"subscribe","topics":[{"topic":"a","topic":"a"}]}"#,
    ] {
        assert_eq!(code(twice), Some(Code::InvalidFrame), "{twice}");
    }
    for once in [
        r#"{"type":"ping","colour":1,"Colour":1}"#,
        r#"{"type":"ping","note":{"a":1,"a":1}}"#,
        r#"{"type":"publish","topic":"a","payload":{"a":1,"a":1}}"#,
    ] {
        assert_eq!(code(once), None, "{once}");
    }
}

#[test]
fn huge_numbers_are_values_like_others() {
    let digits = "9".repeat(10_000);
    for huge in ["1e400", "-1e400", "1e-400", "1e999999999999", &digits] {
        assert_eq!(code(&format!(r#"{{"type":"ping","note":{huge}}}"#)), None, "ignored: {}", short(huge));
        for field in [r#""qos""#, r#""retain""#, r#""properties""#, r#""encoding""#, r#""msgid""#] {
            let text = format!(r#"{{"type":"publish","topic":"a","payload":1,{field}:{huge}}}"#);
            assert_eq!(code(&text), Some(Code::InvalidFrame), "{field}: {}", short(huge));
        }
        let sid = format!(r#"{{"type":"subscribe","topic":"a","sid":{huge}}}"#);
        assert_eq!(code(&sid), Some(Code::InvalidFrame), "sid: {}", short(huge));
    }
    for sid in ["9007199254740992", "9223372036854775807", "-9223372036854775808", "18446744073709551616"] {
        assert_eq!(
            code(&format!(r#"{{"type":"subscribe","topic":"a","sid":{sid}}}"#)),
            Some(Code::InvalidFrame),
            "sid: {sid}"
        );
    }
}

#[test]
fn a_refusal_quotes_little_and_nothing_that_disturbs_a_terminal() {
    let long = "\u{1b}[2J".repeat(1000);
    let texts = [
        json!({"type": long}).to_string(),
        format!(r#"{{"type":"ping",{0}:1,{0}:1}}"#, json!(long)),
        json!({"type": "publish", "topic": "\u{1b}[2J".repeat(20_000), "payload": ""}).to_string(),
    ];
    for text in texts {
        let message = refused(&text).refusal.message;
        assert!(message.len() < 400 && !message.contains(char::is_control), "{message}");
    }
}

/// Parts of frames, put together without a plan.
fn soup() -> impl Strategy<Value = String> {
    let parts = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u",
        "d83d",
        "\\ude00",
        "null",
        "true",
        "1",
        "-",
        ".",
        "e400",
        " ",
        "\0",
        "é",
        "😀",
        r#""type""#,
        r#""ping""#,
        r#""publish""#,
        r#""auth""#,
        r#""subscribe""#,
        r#""topics""#,
        r#""topic""#,
        r#""payload""#,
        r#""msgid""#,
        r#"{"type":"publish","topic":"a","payload":"#,
        r#"{"type":"auth","will":"#,
        r#"{"type":"subscribe","topics":["#,
    ];
    prop::collection::vec(select(parts.to_vec()), 0..40).prop_map(|parts| parts.concat())
}

/// A valid frame of which one character was left out, doubled or replaced.
fn mutated() -> impl Strategy<Value = String> {
    (select(client_examples()), any::<Index>(), 0..3, any::<char>()).prop_map(|((_, text), at, how, char)| {
        let mut chars: Vec<_> = text.chars().collect();
        let at = at.index(chars.len());
        match how {
            0 => drop(chars.remove(at)),
            1 => chars.insert(at, chars[at]),
            _ => chars[at] = char,
        }
        chars.into_iter().collect()
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        select(vec!["a/#", "auth", "base64", "json", "manual", "$share/g/a"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(select(vec!["topic", "payload", "qos", "msgid"]), inner, 0..4)
                .prop_map(|fields| fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Value>()),
        ]
    })
}

/// Gives a frame, or a refusal that can be answered.
fn has_an_answer(text: &str) {
    if let Err(Undecoded { refusal, .. }) = decode(text) {
        assert!(!refusal.message.is_empty() && refusal.message.ends_with('.'), "{text}: {refusal:?}");
        assert!(!refusal.retryable, "{text}: {refusal:?}");
        // By its grammar alone: a number that nothing can hold, 9e9999 say, is JSON too.
        let is_json = serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok();
        assert!(is_json || refusal.code == Code::InvalidJson, "{text}: {refusal:?}");
    }
}

#[test]
fn a_number_that_nothing_can_hold_is_json_and_no_msgid() {
    let text = r#"{"type":"ping","msgid":9e07199254740991}"#;
    has_an_answer(text);
    assert!(matches!(decode(text), Err(Undecoded { refusal: Refusal { code: Code::InvalidFrame, .. }, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_text_has_an_answer(text in prop_oneof![any::<String>(), ".{0,60}", soup()]) {
        has_an_answer(&text);
    }

    #[test]
    fn a_frame_with_a_slip_has_an_answer(text in mutated()) {
        has_an_answer(&text);
    }

    #[test]
    fn a_frame_with_an_odd_field_is_answered_by_its_msgid((_, text) in select(client_examples()), at: Index, value in any_value()) {
        let mut frame: Value = serde_json::from_str(&text).expect("JSON");
        let fields = frame.as_object_mut().expect("an object");
        fields.insert("msgid".to_owned(), json!(7));
        let names: Vec<_> = fields.keys().filter(|name| *name != "msgid").cloned().collect();
        fields.insert(at.get(&names).clone(), value);
        let text = frame.to_string();
        has_an_answer(&text);
        let msgid = match decode(&text) {
            Ok((_, msgid)) => msgid,
            Err(undecoded) => undecoded.msgid,
        };
        prop_assert_eq!(msgid, Some(MsgId::Number(7)), "{}", text);
    }
}

#[test]
fn a_message_by_itself_has_the_fields_of_a_publish_and_no_others() {
    let frame = r#"{"type":"publish","topic":"a/b","payload":"AAE=","encoding":"base64","qos":1,"retain":true,"properties":{"contentType":"x"}}"#;
    let bare = frame.replace(r#""type":"publish","#, "");
    let Ok((ClientFrame::Publish(published), None)) = decode(frame) else { panic!("{frame}") };
    assert_eq!(decode_message(&bare), Ok(published));
    for (text, code, said) in [
        (frame, Code::InvalidFrame, "A message has no `type`; it has topic, payload, encoding"),
        (r#"{"topic":"a","payload":1,"msgid":1}"#, Code::InvalidFrame, "no `msgid`"),
        (r#"{"topic":"a","topic":"b","payload":1}"#, Code::InvalidFrame, "stands twice"),
        (r#"{"topic":"a/#","payload":1}"#, Code::InvalidTopic, "wildcard"),
        (r#"{"topic":"a"}"#, Code::InvalidFrame, "`payload` must be there"),
        (r#"[1]"#, Code::InvalidFrame, "A message is one JSON object."),
        (r#"{"topic":"#, Code::InvalidJson, "The message is no JSON"),
    ] {
        let refusal = decode_message(text).expect_err(text);
        assert!(refusal.code == code && refusal.message.contains(said), "{text}: {refusal:?}");
    }
}
