//! What the gateway owes a broker, and makes of what a broker says, where no real broker can be made to say it.

use std::collections::HashSet;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::RetainForwardRule;
use serde_json::{Value, json};

use crate::support::Browser;
use crate::support::scripted::{Link, Packet, ScriptedBroker};

pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;
pub const SUBACK: u8 = 0x90;
const UNSUBACK: u8 = 0xB0;
pub const DISCONNECT: u8 = 0xE0;
const DUP: u8 = 0x08;
pub const QOS_1: u8 = 0x02;
const QOS_2: u8 = 0x04;

/// Asks for a publish; its msgid is its payload.
pub async fn publish(browser: &mut Browser, payload: &str, qos: u8) {
    browser.send(json!({"type": "publish", "topic": "a", "payload": payload, "qos": qos, "msgid": payload})).await;
}

pub async fn expect_ack(browser: &mut Browser, msgid: &str) {
    let ack = browser.expect("ack").await;
    assert_eq!(ack["msgid"], msgid, "{ack}");
}

pub async fn expect_error(browser: &mut Browser, msgid: &str, code: &str) -> Value {
    let error = browser.expect("error").await;
    assert_eq!((&error["msgid"], &error["code"]), (&json!(msgid), &json!(code)), "{error}");
    error
}

pub async fn expect_up(browser: &mut Browser, session_present: bool) {
    let frame = browser.expect("broker").await;
    assert_eq!((&frame["status"], &frame["sessionPresent"]), (&json!("up"), &json!(session_present)), "{frame}");
}

/// Breaks the link; the browser is told.
pub async fn cut(browser: &mut Browser, link: Link) {
    drop(link);
    assert_eq!(browser.expect("broker").await["status"], "down");
}

/// Subscribes with these options, which the broker grants; returns the subscription identifier.
pub async fn subscribe(browser: &mut Browser, link: &mut Link, mut frame: Value) -> Option<usize> {
    frame["type"] = json!("subscribe");
    browser.send(frame).await;
    let id = link.grant().await;
    browser.expect("subscribed").await;
    id
}

/// The session works: what it publishes arrives and is acked.
pub async fn works(browser: &mut Browser, link: &mut Link) {
    publish(browser, "still here", 1).await;
    let packet = link.next_publish().await;
    assert_eq!(packet.payload, "still here");
    link.ack(PUBACK, packet.pkid, 0).await;
    expect_ack(browser, "still here").await;
}

// What the broker says it can take.

#[tokio::test]
async fn publishes_wait_for_the_brokers_receive_maximum() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for maximum in [1, 2] {
        let (mut browser, mut link, welcome) = broker.open(&house, &[0x21, 0, maximum]).await;
        assert_eq!(welcome["limits"]["maxInflight"], maximum);
        for (payload, qos) in [("1", 1), ("2", 2), ("3", 1), ("4", 2)] {
            publish(&mut browser, payload, qos).await;
        }
        let mut unanswered = Vec::new();
        for _ in 0..maximum {
            unanswered.push(link.next_publish().await);
        }
        link.hears_nothing().await;
        for payload in ["1", "2", "3", "4"] {
            let packet = unanswered.remove(0);
            assert_eq!(packet.payload, payload);
            if packet.qos == QoS::AtLeastOnce {
                link.ack(PUBACK, packet.pkid, 0).await;
            } else {
                link.ack(PUBREC, packet.pkid, 0).await;
                assert!(matches!(link.next().await, Packet::PubRel(pubrel) if pubrel.pkid == packet.pkid));
                link.hears_nothing().await;
                link.ack(PUBCOMP, packet.pkid, 0).await;
            }
            expect_ack(&mut browser, payload).await;
            if unanswered.len() < maximum.into() && payload.parse::<u8>().is_ok_and(|number| number + maximum <= 4) {
                unanswered.push(link.next_publish().await);
            }
        }
    }
}

#[tokio::test]
async fn what_the_broker_finds_too_large_is_refused_and_not_sent() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, welcome) = broker.open(&house, &[0x27, 0, 0, 0, 100]).await;
    assert_eq!(welcome["limits"]["maxPayload"], 100);
    for (length, qos) in [(200, 0), (101, 1), (95, 2)] {
        let payload = "x".repeat(length);
        browser.send(json!({"type": "publish", "topic": "a", "payload": payload, "qos": qos, "msgid": "large"})).await;
        expect_error(&mut browser, "large", "payload_too_large").await;
    }
    browser.send(json!({"type": "subscribe", "topics": ["x".repeat(100), "a"]})).await;
    link.grant().await;
    let topics = browser.expect("subscribed").await["topics"].clone();
    assert_eq!((&topics[0]["error"], &topics[1]["qos"]), (&json!("payload_too_large"), &json!(0)), "{topics}");
    browser.send(json!({"type": "unsubscribe", "topic": "x".repeat(100)})).await;
    let topics = browser.expect("unsubscribed").await["topics"].clone();
    assert_eq!(topics[0]["error"], "payload_too_large", "{topics}");
    works(&mut browser, &mut link).await;
}

#[tokio::test]
async fn a_publish_that_waited_for_a_broker_that_finds_it_too_large_does_not_cost_the_link() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    let large =
        |msgid: &str| json!({"type": "publish", "topic": "a", "payload": "x".repeat(500), "qos": 1, "msgid": msgid});
    browser.send(large("sent")).await;
    link.next_publish().await;
    cut(&mut browser, link).await;
    browser.send(large("waiting")).await;
    browser.send(json!({"type": "subscribe", "topic": "x".repeat(500)})).await;
    browser.send(json!({"type": "ping"})).await;
    browser.expect("pong").await;
    let mut link = broker.next_link().await;
    link.let_in(true, &[0x27, 0, 0, 0, 100]).await;
    let mut refused = HashSet::new();
    let mut frames = Vec::new();
    while frames.len() < 4 {
        let frame = browser.next().await;
        match frame["type"].as_str() {
            Some("error") => {
                assert_eq!(frame["code"], "payload_too_large", "{frame}");
                refused.insert(frame["msgid"].to_string());
            }
            Some("subscribed") => assert_eq!(frame["topics"][0]["error"], "payload_too_large", "{frame}"),
            _ => assert_eq!(frame["status"], "up", "{frame}"),
        }
        frames.push(frame);
    }
    assert_eq!(refused.len(), 2, "{frames:?}");
    works(&mut browser, &mut link).await;
}

#[tokio::test]
async fn a_publish_over_the_brokers_maximum_qos_or_retained_where_it_stores_nothing_is_refused() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for maximum in [0, 1] {
        let (mut browser, mut link, welcome) = broker.open(&house, &[0x24, maximum, 0x25, 0]).await;
        assert_eq!((&welcome["limits"]["maxQos"], &welcome["limits"]["retain"]), (&json!(maximum), &json!(false)));
        publish(&mut browser, "too high", maximum + 1).await;
        let error = expect_error(&mut browser, "too high", "broker_rejected").await;
        assert_eq!(error["retryable"], false);
        browser
            .send(json!({"type": "publish", "topic": "a", "payload": "kept", "retain": true, "msgid": "kept"}))
            .await;
        expect_error(&mut browser, "kept", "broker_rejected").await;
        publish(&mut browser, "fine", maximum).await;
        let packet = link.next_publish().await;
        assert_eq!((packet.payload, packet.qos as u8), ("fine".into(), maximum));
    }
}

#[tokio::test]
async fn a_publish_that_waited_for_a_broker_that_takes_less_than_before_is_refused() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, link, _) = broker.open(&house, &[]).await;
    cut(&mut browser, link).await;
    publish(&mut browser, "too high", 2).await;
    browser
        .send(json!({"type": "publish", "topic": "a", "payload": "", "qos": 1, "retain": true, "msgid": "kept"}))
        .await;
    browser.send(json!({"type": "ping"})).await;
    browser.expect("pong").await;
    let mut link = broker.next_link().await;
    link.let_in(true, &[0x24, 1, 0x25, 0]).await;
    expect_error(&mut browser, "too high", "broker_rejected").await;
    expect_error(&mut browser, "kept", "broker_rejected").await;
    expect_up(&mut browser, true).await;
    works(&mut browser, &mut link).await;
}

#[tokio::test]
async fn a_subscription_that_the_broker_has_no_means_for_is_refused_and_not_sent() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, welcome) = broker.open(&house, &[0x28, 0, 0x2A, 0]).await;
    assert_eq!(welcome["limits"]["shared"], false);
    browser.send(json!({"type": "subscribe", "topics": ["a/+", "a/#", "$share/g/a", "a"]})).await;
    let subscribe = link.next_subscribe().await;
    assert_eq!(subscribe.filters[0].path, "a", "the others never reach the broker");
    link.answer(SUBACK, subscribe.pkid, 0).await;
    let topics = browser.expect("subscribed").await["topics"].clone();
    for refused in 0..3 {
        assert_eq!(topics[refused]["error"], "broker_rejected", "{topics}");
    }
    assert_eq!(topics[3]["qos"], 0, "{topics}");
}

#[tokio::test]
async fn a_broker_without_subscription_identifiers_is_not_sent_any_and_its_copies_are_matched() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[0x29, 0]).await;
    for (filter, sid) in [("a/+", 1), ("b/#", 2)] {
        let id = subscribe(&mut browser, &mut link, json!({"topic": filter, "sid": sid})).await;
        assert_eq!(id, None);
    }
    for (topic, sid) in [("b/c/d", 2), ("a/b", 1)] {
        link.publish(0, 0, topic, "x", &[]).await;
        let frame = browser.expect("mqtt").await;
        assert_eq!((&frame["topic"], &frame["sids"]), (&json!(topic), &json!([sid])));
    }
}

#[tokio::test]
async fn the_brokers_keep_alive_goes_over_the_gateways() {
    let (mut broker, house) = ScriptedBroker::with_gateway("keep_alive = 7").await;
    let (_browser, mut link, _) = broker.open(&house, &[0x13, 0, 1]).await;
    assert_eq!(link.connect().keep_alive, 7);
    assert!(matches!(link.next().await, Packet::PingReq(_)), "long before 7 seconds");
    link.send(0xD0, &[]).await;
    assert!(matches!(link.next().await, Packet::PingReq(_)));
}

#[tokio::test]
async fn a_broker_that_answers_no_ping_has_lost_the_link() {
    let (mut broker, house) = ScriptedBroker::with_gateway("connect_timeout = 0.5").await;
    let (mut browser, mut link, _) = broker.open(&house, &[0x13, 0, 1]).await;
    assert!(matches!(link.next().await, Packet::PingReq(_)));
    assert_eq!(browser.expect("broker").await["status"], "down");
    link.closed().await;
    broker.resumed().await;
    expect_up(&mut browser, true).await;
}

#[tokio::test]
async fn the_client_identifier_that_the_broker_assigns_is_told_and_used_from_then_on() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, link, welcome) = broker.open(&house, &[0x12, 0, 5, b'g', b'i', b'v', b'e', b'n']).await;
    assert_eq!(welcome["clientId"], "given");
    assert!(link.connect().clean_start);
    cut(&mut browser, link).await;
    let link = broker.next_link().await;
    assert_eq!((link.connect().client_id.as_str(), link.connect().clean_start), ("given", false));
}

// What the broker answers.

/// Reason codes of a broker, and what becomes of them (docs/protocol.md, "Errors").
const DENIALS: [(u8, &str, bool); 10] = [
    (0x80, "broker_rejected", false),
    (0x83, "broker_rejected", false),
    (0x87, "not_authorized", false),
    (0x8F, "invalid_topic", false),
    (0x90, "invalid_topic", false),
    (0x91, "broker_rejected", false),
    (0x95, "payload_too_large", false),
    (0x97, "quota_exceeded", true),
    (0x99, "broker_rejected", false),
    (0x9E, "broker_rejected", false),
];

#[tokio::test]
async fn a_publish_that_the_broker_denies_is_an_error_and_no_more() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[0x21, 0, 1]).await;
    for (qos, answer) in [(1, PUBACK), (2, PUBREC)] {
        for (reason, code, retryable) in DENIALS {
            let msgid = format!("{qos} {reason:#x}");
            publish(&mut browser, &msgid, qos).await;
            let packet = link.next_publish().await;
            assert_eq!(packet.payload, msgid, "one that was denied leaves room for the next");
            link.ack(answer, packet.pkid, reason).await;
            assert_eq!(expect_error(&mut browser, &msgid, code).await["retryable"], retryable, "{reason:#x}");
        }
    }
    publish(&mut browser, "unread", 1).await;
    let packet = link.next_publish().await;
    link.ack(PUBACK, packet.pkid, 0x10).await;
    expect_ack(&mut browser, "unread").await;
}

#[tokio::test]
async fn a_subscription_that_the_broker_denies_is_an_error_of_its_entry() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    for (reason, code, _) in DENIALS {
        browser.send(json!({"type": "subscribe", "topic": "a", "qos": 1})).await;
        let id = link.next_subscribe().await.pkid;
        link.answer(SUBACK, id, reason).await;
        let entry = browser.expect("subscribed").await["topics"][0].clone();
        assert_eq!(
            (&entry["topic"], &entry["error"], entry.get("qos")),
            (&json!("a"), &json!(code), None),
            "{reason:#x}"
        );
    }
    for granted in [0, 1, 2] {
        browser.send(json!({"type": "subscribe", "topic": "a", "qos": 2})).await;
        let id = link.next_subscribe().await.pkid;
        link.answer(SUBACK, id, granted).await;
        assert_eq!(browser.expect("subscribed").await["topics"][0]["qos"], granted);
    }
    for (reason, error) in [(0x87, Some("not_authorized")), (0x11, None)] {
        browser.send(json!({"type": "unsubscribe", "topic": "a"})).await;
        let Packet::Unsubscribe(unsubscribe) = link.next().await else { panic!("an UNSUBSCRIBE was expected") };
        link.answer(UNSUBACK, unsubscribe.pkid, reason).await;
        let entry = browser.expect("unsubscribed").await["topics"][0].clone();
        assert_eq!(entry.get("error").and_then(Value::as_str), error, "{entry}");
    }
}

#[tokio::test]
async fn a_subscription_that_comes_back_no_more_is_told() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    subscribe(&mut browser, &mut link, json!({"topic": "a"})).await;
    cut(&mut browser, link).await;
    let mut link = broker.next_link().await;
    link.let_in(false, &[]).await;
    let id = link.next_subscribe().await.pkid;
    link.answer(SUBACK, id, 0x87).await;
    let ended = browser.expect("unsubscribed").await["topics"][0].clone();
    assert_eq!((&ended["topic"], &ended["error"]), (&json!("a"), &json!("not_authorized")));
    expect_up(&mut browser, false).await;
}

/// One that was killed may have it as it was before the subscription was made.
#[tokio::test]
async fn a_broker_that_has_the_session_is_asked_for_the_subscription_again() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    subscribe(&mut browser, &mut link, json!({"topic": "a"})).await;
    cut(&mut browser, link).await;
    let mut link = broker.resumed().await;
    let asked = link.next_subscribe().await;
    let filter = &asked.filters[0];
    let if_new = RetainForwardRule::OnNewSubscribe;
    assert_eq!((filter.path.as_str(), &filter.retain_forward_rule), ("a", &if_new), "what is stored came already");
    browser.hears_nothing_for(Duration::from_millis(100)).await;
    link.answer(SUBACK, asked.pkid, 0).await;
    expect_up(&mut browser, true).await;
    works(&mut browser, &mut link).await;
}

#[tokio::test]
async fn a_subscription_that_the_broker_of_the_next_link_has_no_room_for_is_told_and_not_sent() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let filter = "x".repeat(200);
    for session_present in [false, true] {
        let (mut browser, mut link, _) = broker.open(&house, &[]).await;
        subscribe(&mut browser, &mut link, json!({"topic": filter})).await;
        cut(&mut browser, link).await;
        if session_present {
            // It is being asked for again when the link breaks once more.
            let mut link = broker.next_link().await;
            link.let_in(false, &[]).await;
            link.next_subscribe().await;
            drop(link);
        }
        let mut link = broker.next_link().await;
        link.let_in(session_present, &[0x27, 0, 0, 0, 100]).await;
        let ended = browser.expect("unsubscribed").await["topics"][0].clone();
        assert_eq!((&ended["topic"], &ended["error"]), (&json!(filter), &json!("payload_too_large")));
        expect_up(&mut browser, false).await;
        works(&mut browser, &mut link).await;
    }
}

#[tokio::test]
async fn a_broker_that_turns_the_session_away_for_good_ends_it() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for reason in [0x81, 0x82, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x95, 0x99, 0x9A, 0x9B, 0x9D] {
        let mut browser = house.connect().await;
        browser.send(json!({"type": "auth"})).await;
        broker.next_link().await.turn_away(reason).await;
        let error = browser.expect("error").await;
        assert_eq!(error["code"], "broker_rejected", "{error}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(&format!("0x{reason:02X}"))), "{error}");
        assert_eq!(browser.closed().await, 4503, "{reason:#x}");
    }
    assert_eq!(broker.count_links(), 0, "nobody knocks again");
}

#[tokio::test]
async fn a_broker_that_turns_the_session_away_for_now_is_asked_again() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for reason in [0x80, 0x83, 0x88, 0x89, 0x97, 0x9C, 0x9F] {
        let mut browser = house.connect().await;
        browser.send(json!({"type": "auth"})).await;
        broker.next_link().await.turn_away(reason).await;
        let mut link = broker.next_link().await;
        link.let_in(false, &[]).await;
        browser.expect("auth_response").await;
        browser.expect("welcome").await;
        // Before its link is dropped, or it would knock again.
        browser.leave().await;
    }
}

#[tokio::test]
async fn a_broker_that_has_no_room_within_the_time_out_ends_the_session() {
    let (mut broker, house) = ScriptedBroker::with_gateway("request_timeout = 0.5").await;
    let mut browser = house.connect().await;
    browser.send(json!({"type": "auth"})).await;
    broker.next_link().await.turn_away(0x89).await;
    assert_eq!(browser.expect("error").await["code"], "broker_unavailable");
    assert_eq!(browser.closed().await, 4503);
}

#[tokio::test]
async fn a_link_that_is_turned_away_for_good_later_ends_the_session_too() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, link, _) = broker.open(&house, &[]).await;
    cut(&mut browser, link).await;
    broker.next_link().await.turn_away(0x8A).await;
    assert_eq!(browser.expect("error").await["code"], "broker_rejected");
    assert_eq!(browser.closed().await, 4503);
}

#[tokio::test]
async fn a_broker_of_mqtt_3_1_1_is_named_as_what_it_is() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let mut browser = house.connect().await;
    browser.send(json!({"type": "auth"})).await;
    broker.next_link().await.send(0x20, &[0, 1]).await;
    let error = browser.expect("error").await;
    assert_eq!(error["code"], "broker_rejected");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("MQTT 3.1.1")), "{error}");
    assert_eq!(browser.closed().await, 4503);
}

// How the broker ends a link.

#[tokio::test]
async fn a_broker_that_speaks_of_a_takeover_ends_the_session() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    link.send(DISCONNECT, &[0x8E]).await;
    assert_eq!(browser.closed().await, 4009);
    assert_eq!(broker.count_links(), 0, "the other connection is not fought");
}

#[tokio::test]
async fn a_broker_that_ends_a_link_for_another_reason_gets_the_next_one() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for reason in [0x00, 0x81, 0x8B, 0x98] {
        let (mut browser, mut link, _) = broker.open(&house, &[]).await;
        link.send(DISCONNECT, &[reason]).await;
        assert_eq!(browser.expect("broker").await["status"], "down", "{reason:#x}");
        let mut link = broker.resumed().await;
        expect_up(&mut browser, true).await;
        works(&mut browser, &mut link).await;
    }
}

#[tokio::test]
async fn a_link_on_which_the_broker_talks_garbage_is_restored() {
    let (mut broker, house) = ScriptedBroker::with_gateway("max_packet = 1000").await;
    let garbage: [(&str, &[u8]); 9] = [
        ("a TLS alert", &[0x15, 3, 3, 0, 2, 2, 70]),
        ("a second CONNACK", &[0x20, 3, 0, 0, 0]),
        ("a SUBSCRIBE", &[0x82, 2, 0, 1]),
        ("an endless length", &[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("a packet over the limit", &[0x30, 0xE8, 0x07]),
        ("a topic with a wildcard", &[0x30, 4, 0, 1, b'#', 0]),
        ("a topic that is no UTF-8", &[0x30, 4, 0, 1, 0xFF, 0]),
        ("a packet that ends early", &[0x40, 1, 0]),
        ("QoS 3", &[0x36, 6, 0, 1, b'a', 0, 1, 0]),
    ];
    for (name, bytes) in garbage {
        let (mut browser, mut link, _) = broker.open(&house, &[]).await;
        link.send_bytes(bytes).await;
        assert_eq!(browser.expect("broker").await["status"], "down", "{name}");
        let mut link = broker.resumed().await;
        expect_up(&mut browser, true).await;
        works(&mut browser, &mut link).await;
    }
}

#[tokio::test]
async fn a_broker_that_only_talks_garbage_is_not_hammered() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (_browser, mut link, _) = broker.open(&house, &[]).await;
    let mut links = 0;
    let hammering = async {
        loop {
            link.send_bytes(&[0x00, 0x00]).await;
            link = broker.resumed().await;
            links += 1;
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(1500), hammering).await;
    assert!((1..12).contains(&links), "{links} connections");
}

#[tokio::test]
async fn answers_to_questions_that_nobody_asked_change_nothing() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    link.ack(PUBACK, 7, 0).await;
    link.ack(PUBCOMP, 7, 0).await;
    link.answer(SUBACK, 7, 0).await;
    link.answer(UNSUBACK, 7, 0).await;
    link.send(0xD0, &[]).await;
    link.ack(PUBREC, 7, 0).await;
    assert!(
        matches!(link.next().await, Packet::PubRel(pubrel) if pubrel.pkid == 7),
        "or the broker would ask for ever"
    );
    link.ack(PUBREL, 7, 0).await;
    assert!(matches!(link.next().await, Packet::PubComp(pubcomp) if pubcomp.pkid == 7));
    works(&mut browser, &mut link).await;
}

#[tokio::test]
async fn a_broker_that_stops_reading_has_lost_the_link() {
    let (mut broker, house) = ScriptedBroker::with_gateway("connect_timeout = 1").await;
    let (mut browser, link, _) = broker.open(&house, &[]).await;
    let payload = "x".repeat(1_000_000);
    for _ in 0..16 {
        browser.send(json!({"type": "publish", "topic": "a", "payload": payload})).await;
    }
    assert_eq!(browser.expect("broker").await["status"], "down");
    drop(link);
    let mut link = broker.resumed().await;
    // What is left of the flood is refused or arrives; the session goes on.
    loop {
        let frame = browser.next().await;
        match frame["type"].as_str() {
            Some("error") => assert_eq!(frame["code"], "broker_unavailable"),
            _ => break assert_eq!(frame["status"], "up", "{frame}"),
        }
    }
    publish(&mut browser, "after", 1).await;
    let packet = loop {
        let packet = link.next_publish().await;
        if packet.qos == QoS::AtLeastOnce {
            break packet;
        }
    };
    link.ack(PUBACK, packet.pkid, 0).await;
    expect_ack(&mut browser, "after").await;
}

// Deliveries and the subscriptions they are for.

#[tokio::test]
async fn one_delivery_for_several_subscriptions_is_one_frame_for_each_contract() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    let mut ids = Vec::new();
    let filters = ["a/b", "a/+", "+/b", "+/+", "a/#", "+/#", "#"];
    for (sid, filter) in filters.into_iter().enumerate() {
        ids.extend(subscribe(&mut browser, &mut link, json!({"topic": filter, "sid": sid, "qos": 1})).await);
    }
    assert_eq!(HashSet::<_>::from_iter(&ids).len(), 7, "each has its own identifier");
    link.publish(QOS_1, 9, "a/b", "to all", &ids).await;
    let frame = browser.expect("mqtt").await;
    assert_eq!((&frame["payload"], &frame["qos"]), (&json!("to all"), &json!(1)), "{frame}");
    let mut sids: Vec<_> = frame["sids"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
    sids.sort_unstable();
    assert_eq!(sids, [0, 1, 2, 3, 4, 5, 6]);
    assert!(matches!(link.next().await, Packet::PubAck(puback) if puback.pkid == 9));

    let json = subscribe(&mut browser, &mut link, json!({"topic": "a/b", "sid": 7, "qos": 1, "format": "json"})).await;
    assert_eq!(json, ids.first().copied(), "an identifier stays with its filter");
    link.publish(QOS_1, 10, "a/b", "1", &[ids[0], ids[1]]).await;
    let mut frames = [browser.expect("mqtt").await, browser.expect("mqtt").await];
    frames.sort_by_key(|frame| frame["sids"][0].as_u64());
    assert_eq!((&frames[0]["sids"], &frames[0]["payload"]), (&json!([1]), &json!("1")));
    assert_eq!((&frames[1]["sids"], &frames[1]["payload"]), (&json!([7]), &json!(1)));
    assert_ne!(frames[0]["msgid"], frames[1]["msgid"]);
    assert!(matches!(link.next().await, Packet::PubAck(puback) if puback.pkid == 10), "both frames are written");
    link.hears_nothing().await;
}

// In flight when the link breaks.

#[tokio::test]
async fn deliveries_that_come_in_one_piece_with_the_connack_are_not_held_back() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let mut browser = house.connect().await;
    browser.send(json!({"type": "auth", "clientId": "anna", "clean": false})).await;
    let mut link = broker.next_link().await;
    link.send_bytes(&[0x20, 3, 1, 0, 0, 0x30, 5, 0, 1, b'a', 0, b'x']).await;
    browser.expect("auth_response").await;
    assert_eq!(browser.expect("welcome").await["sessionPresent"], true);
    assert_eq!(browser.next_delivery().await, ("a".to_owned(), "x".to_owned()));
}

#[tokio::test]
async fn a_publish_between_pubrec_and_pubcomp_is_completed_on_the_next_link() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for reason in [0x00, 0x92] {
        let (mut browser, mut link, _) = broker.open(&house, &[]).await;
        publish(&mut browser, "once", 2).await;
        let id = link.next_publish().await.pkid;
        link.ack(PUBREC, id, 0).await;
        assert!(matches!(link.next().await, Packet::PubRel(pubrel) if pubrel.pkid == id));
        cut(&mut browser, link).await;
        let mut link = broker.resumed().await;
        expect_up(&mut browser, true).await;
        assert!(matches!(link.next().await, Packet::PubRel(pubrel) if pubrel.pkid == id), "and no PUBLISH");
        link.ack(PUBCOMP, id, reason).await;
        expect_ack(&mut browser, "once").await;
        works(&mut browser, &mut link).await;
    }
}

#[tokio::test]
async fn a_publish_without_an_answer_is_sent_again_as_it_was() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    publish(&mut browser, "one", 1).await;
    publish(&mut browser, "two", 2).await;
    let sent = [link.next_publish().await, link.next_publish().await];
    cut(&mut browser, link).await;
    let mut link = broker.resumed().await;
    expect_up(&mut browser, true).await;
    for before in sent {
        let again = link.next_publish().await;
        assert_eq!((again.pkid, &again.payload, again.dup, before.dup), (before.pkid, &before.payload, true, false));
    }
}

#[tokio::test]
async fn a_delivery_between_pubrec_and_pubcomp_is_completed_on_the_next_link_and_not_repeated() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for (name, is_sent_again) in [("PUBREC was seen", false), ("PUBREC was lost", true)] {
        let (mut browser, mut link, _) = broker.open(&house, &[]).await;
        let subscription =
            subscribe(&mut browser, &mut link, json!({"topic": "a", "qos": 2})).await.expect("an identifier");
        link.publish(QOS_2, 9, "a", name, &[subscription]).await;
        assert_eq!(browser.next_delivery().await.1, name);
        assert!(matches!(link.next().await, Packet::PubRec(pubrec) if pubrec.pkid == 9));
        cut(&mut browser, link).await;
        let mut link = broker.resumed().await;
        link.grant().await;
        expect_up(&mut browser, true).await;
        if is_sent_again {
            link.publish(QOS_2 | DUP, 9, "a", name, &[subscription]).await;
            assert!(matches!(link.next().await, Packet::PubRec(pubrec) if pubrec.pkid == 9));
        }
        link.ack(PUBREL, 9, 0).await;
        assert!(
            matches!(link.next().await, Packet::PubComp(pubcomp) if pubcomp.pkid == 9 && pubcomp.reason as u8 == 0)
        );
        link.publish(QOS_2, 9, "a", name, &[subscription]).await;
        assert_eq!(browser.next_delivery().await.1, name, "the identifier is free, so this is another message");
    }
}

#[tokio::test]
async fn a_qos_2_delivery_that_comes_again_before_pubrel_is_not_repeated() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    let subscription =
        subscribe(&mut browser, &mut link, json!({"topic": "#", "qos": 2})).await.expect("an identifier");
    link.publish(QOS_2, 9, "a", "once", &[subscription]).await;
    assert_eq!(browser.next_delivery().await.1, "once");
    assert!(matches!(link.next().await, Packet::PubRec(_)));
    link.publish(QOS_2 | DUP, 9, "a", "once", &[subscription]).await;
    assert!(matches!(link.next().await, Packet::PubRec(pubrec) if pubrec.pkid == 9));
    link.publish(0, 0, "a", "next", &[subscription]).await;
    assert_eq!(browser.next_delivery().await.1, "next");
}

#[tokio::test]
async fn acks_of_the_client_are_released_on_the_next_link_if_the_broker_still_has_the_session() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for session_present in [true, false] {
        let (mut browser, mut link, _) = broker.open(&house, &[]).await;
        let options = json!({"topic": "a", "qos": 1, "ack": "manual"});
        let subscription = subscribe(&mut browser, &mut link, options).await.expect("an identifier");
        link.publish(QOS_1, 9, "a", "x", &[subscription]).await;
        let msgid = browser.expect("mqtt").await["msgid"].clone();
        link.hears_nothing().await;
        cut(&mut browser, link).await;
        browser.send(json!({"type": "ack", "msgid": msgid})).await;
        let mut link = broker.next_link().await;
        link.let_in(session_present, &[]).await;
        link.grant().await;
        expect_up(&mut browser, session_present).await;
        if session_present {
            link.publish(QOS_1 | DUP, 9, "a", "x", &[subscription]).await;
            assert!(matches!(link.next().await, Packet::PubAck(puback) if puback.pkid == 9));
        } else {
            link.publish(QOS_1, 9, "a", "x", &[subscription]).await;
            let again = browser.expect("mqtt").await;
            assert_eq!(again["msgid"], msgid, "derived from what the broker sent");
            link.hears_nothing().await;
            browser.send(json!({"type": "ack", "msgid": msgid})).await;
            assert!(matches!(link.next().await, Packet::PubAck(puback) if puback.pkid == 9));
        }
        link.hears_nothing().await;
    }
}

#[tokio::test]
async fn a_broker_that_has_lost_the_session_gets_each_publish_once() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    publish(&mut browser, "taken", 2).await;
    let taken = link.next_publish().await.pkid;
    link.ack(PUBREC, taken, 0).await;
    assert!(matches!(link.next().await, Packet::PubRel(_)));
    publish(&mut browser, "unknown", 2).await;
    publish(&mut browser, "again", 1).await;
    link.next_publish().await;
    link.next_publish().await;
    cut(&mut browser, link).await;
    publish(&mut browser, "new", 2).await;

    let mut link = broker.next_link().await;
    link.let_in(false, &[]).await;
    expect_ack(&mut browser, "taken").await;
    let error = expect_error(&mut browser, "unknown", "timeout").await;
    assert_eq!(error["retryable"], false);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("outcome unknown")), "{error}");
    expect_up(&mut browser, false).await;
    for payload in ["again", "new"] {
        let packet = link.next_publish().await;
        assert_eq!((&packet.payload[..], packet.dup), (payload.as_bytes(), false));
    }
    link.hears_nothing().await;
}

#[tokio::test]
async fn packet_identifiers_start_at_random() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let mut first = HashSet::new();
    for _ in 0..3 {
        let (mut browser, mut link, _) = broker.open(&house, &[]).await;
        publish(&mut browser, "x", 1).await;
        first.insert(link.next_publish().await.pkid);
    }
    assert!(first.len() > 1, "{first:?}");
}

// Late answers, and what the end of something overtakes.

#[tokio::test]
async fn a_subscribe_that_is_repeated_outlives_the_late_answer_to_the_first() {
    let (mut broker, house) = ScriptedBroker::with_gateway("request_timeout = 0.3").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    browser.send(json!({"type": "subscribe", "topic": "a"})).await;
    let first = link.next_subscribe().await;
    assert_eq!(browser.expect("subscribed").await["topics"][0]["error"], "timeout");
    browser.send(json!({"type": "subscribe", "topic": "a"})).await;
    let second = link.next_subscribe().await;
    link.answer(SUBACK, first.pkid, 0).await;
    link.answer(SUBACK, second.pkid, 0).await;
    assert_eq!(browser.expect("subscribed").await["topics"], json!([{"topic": "a", "qos": 0}]));
    link.hears_nothing().await;
}

#[tokio::test]
async fn what_a_subscription_brings_that_is_taken_back_is_confirmed() {
    let (mut broker, house) = ScriptedBroker::with_gateway("request_timeout = 0.3").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    browser.send(json!({"type": "subscribe", "topic": "a", "qos": 1})).await;
    let subscribe = link.next_subscribe().await;
    let id = subscribe.properties.and_then(|properties| properties.id).expect("an identifier");
    assert_eq!(browser.expect("subscribed").await["topics"][0]["error"], "timeout");
    link.answer(SUBACK, subscribe.pkid, 1).await;
    assert!(matches!(link.next().await, Packet::Unsubscribe(_)));
    link.publish(QOS_1, 9, "a", "x", &[id]).await;
    assert!(matches!(link.next().await, Packet::PubAck(puback) if puback.pkid == 9));
}

#[tokio::test]
async fn what_comes_behind_an_unsubscribe_is_confirmed_where_the_broker_has_no_identifiers() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[0x29, 0]).await;
    subscribe(&mut browser, &mut link, json!({"topic": "a", "qos": 1})).await;
    browser.send(json!({"type": "unsubscribe", "topic": "a"})).await;
    let Packet::Unsubscribe(unsubscribe) = link.next().await else { panic!("an UNSUBSCRIBE was expected") };
    link.answer(UNSUBACK, unsubscribe.pkid, 0).await;
    browser.expect("unsubscribed").await;
    link.publish(QOS_1, 9, "a", "x", &[]).await;
    assert!(matches!(link.next().await, Packet::PubAck(puback) if puback.pkid == 9));
}

#[tokio::test]
async fn what_came_before_a_malformed_packet_is_delivered() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    subscribe(&mut browser, &mut link, json!({"topic": "a", "qos": 1})).await;
    link.send_bytes(b"\x32\x07\0\x01a\0\x09\0x\xF0\0").await;
    let mut told = [browser.next().await, browser.next().await];
    told.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!((&told[0]["status"], &told[1]["payload"]), (&json!("down"), &json!("x")), "{told:?}");
}
