//! Brokers that refuse, stall, flap and forget, and what becomes of sessions and of what they asked.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::scripted_broker::{
    PUBACK, QOS_1, SUBACK, cut, expect_ack, expect_error, expect_up, publish, subscribe, works,
};
use crate::support::scripted::{Link, Packet, ScriptedBroker};
use crate::support::{Browser, Device, Gateway, Mosquitto, PATIENCE, Proxy, Way, eventually};

async fn expect_down(browser: &mut Browser) {
    assert_eq!(browser.expect("broker").await, json!({"type": "broker", "status": "down"}));
}

/// CONNACK reasons (MQTT 5, table 3-1), and whether trying again may help.
const REFUSALS: [(u8, bool); 21] = [
    (0x80, true),
    (0x81, false),
    (0x82, false),
    (0x83, true),
    (0x84, false),
    (0x85, false),
    (0x86, false),
    (0x87, false),
    (0x88, true),
    (0x89, true),
    (0x8A, false),
    (0x8C, false),
    (0x90, false),
    (0x95, false),
    (0x97, true),
    (0x99, false),
    (0x9A, false),
    (0x9B, false),
    (0x9C, true),
    (0x9D, false),
    (0x9F, true),
];

// Refused, also when the session is open.

#[tokio::test]
async fn of_the_refusals_at_a_reconnect_those_that_may_pass_are_outlived_and_the_others_end_the_session() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    for (reason, may_pass) in REFUSALS {
        let (mut browser, link, _) = broker.open(&house, &[]).await;
        cut(&mut browser, link).await;
        publish(&mut browser, "waits", 1).await;
        broker.next_link().await.turn_away(reason).await;
        if may_pass {
            let mut link = broker.resumed().await;
            expect_up(&mut browser, true).await;
            let id = link.next_publish().await.pkid;
            link.ack(PUBACK, id, 0).await;
            expect_ack(&mut browser, "waits").await;
            works(&mut browser, &mut link).await;
        } else {
            let error = browser.expect("error").await;
            assert_eq!(error["code"], "broker_rejected", "{error}");
            assert!(error["message"].as_str().is_some_and(|text| text.contains(&format!("0x{reason:02X}"))), "{error}");
            assert_eq!(browser.closed().await, 4503, "{reason:#x}");
        }
    }
}

#[tokio::test]
async fn a_broker_that_comes_back_as_one_of_mqtt_3_1_1_ends_the_session() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, link, _) = broker.open(&house, &[]).await;
    cut(&mut browser, link).await;
    broker.next_link().await.send(0x20, &[0, 1]).await;
    let error = browser.expect("error").await;
    assert_eq!(error["code"], "broker_rejected");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("MQTT 3.1.1")), "{error}");
    assert_eq!(browser.closed().await, 4503);
}

#[tokio::test]
async fn garbage_or_nothing_in_place_of_a_connack_is_outlived() {
    let garbage: [&[u8]; 5] =
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0x15, 3, 3, 0, 2, 2, 70], &[0x20, 2, 0], &[0xD0, 0], b""];
    let (mut broker, house) = ScriptedBroker::with_gateway("connect_timeout = 0.5").await;
    for bytes in garbage {
        let mut browser = house.connect().await;
        browser.send(json!({"type": "auth"})).await;
        for open in [false, true] {
            let mut silent = broker.next_link().await;
            silent.send_bytes(bytes).await;
            silent.closed().await;
            let mut link = broker.next_link().await;
            link.let_in(open, &[]).await;
            if open {
                expect_up(&mut browser, true).await;
                works(&mut browser, &mut link).await;
            } else {
                browser.expect("auth_response").await;
                browser.expect("welcome").await;
                cut(&mut browser, link).await;
            }
        }
    }
}

#[tokio::test]
async fn a_broker_that_takes_connect_and_says_nothing_ends_a_session_that_opens() {
    let (mut broker, house) = ScriptedBroker::with_gateway("request_timeout = 0.5").await;
    let mut browser = house.connect().await;
    browser.send(json!({"type": "auth"})).await;
    let _silent = broker.next_link().await;
    assert_eq!(browser.expect("error").await["code"], "broker_unavailable");
    assert_eq!(browser.closed().await, 4503);
}

#[tokio::test]
async fn a_broker_that_is_full_lets_sessions_in_when_it_has_room() {
    // One place is the watch's.
    let mosquitto = Mosquitto::start_with("max_connections 2").await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\nrequest_timeout = 10").await;
    let hasty = Gateway::start_unready(&mosquitto.url(), "[broker]\nrequest_timeout = 0.5").await;
    let (mut first, _) = house.open(json!({"clientId": "anna"})).await;
    first.subscribe("post").await;
    let mut turned_away = hasty.connect().await;
    turned_away.send(json!({"type": "auth"})).await;
    assert_eq!(turned_away.expect("error").await["code"], "broker_unavailable");
    assert_eq!(turned_away.closed().await, 4503);
    let mut second = house.connect().await;
    second.send(json!({"type": "auth"})).await;
    first.send(json!({"type": "publish", "topic": "post", "payload": "unhurt"})).await;
    assert_eq!(first.next_delivery().await.1, "unhurt");
    first.leave().await;
    drop(hasty);
    second.expect("auth_response").await;
    second.expect("welcome").await;
}

// Unreachable.

#[tokio::test]
async fn an_address_that_refuses_or_drops_connections_is_outlived() {
    let mut mosquitto = Mosquitto::start().await;
    let settings = "[broker]\nconnect_timeout = 0.5\nrequest_timeout = 0.5\ngrace = 60";
    let house = Gateway::start(&mosquitto.url(), settings).await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    browser.subscribe_with(json!({"topic": "post", "qos": 1})).await;
    mosquitto.stop().await;
    expect_down(&mut browser).await;
    publish(&mut browser, "refused", 1).await;
    assert_eq!(expect_error(&mut browser, "refused", "timeout").await["retryable"], true);
    let backlog = full_backlog(mosquitto.port).await;
    publish(&mut browser, "dropped", 2).await;
    assert_eq!(expect_error(&mut browser, "dropped", "timeout").await["retryable"], true);
    let mut hasty = house.connect().await;
    hasty.send(json!({"type": "auth"})).await;
    assert_eq!(hasty.expect("error").await["code"], "broker_unavailable");
    assert_eq!(hasty.closed().await, 4503);
    assert_eq!(house.get(&house.address, "/readyz").await.0, 503);
    drop(backlog);
    mosquitto.restart().await;
    expect_up(&mut browser, true).await;
    Device::publish(mosquitto.port, &["-t", "post", "-m", "back", "-q", "1"]).await;
    assert_eq!(browser.next_delivery().await.1, "back");
}

/// A listener that takes no connections, and whose queue is full: further SYNs are dropped.
async fn full_backlog(port: u16) -> (TcpListener, Vec<TcpStream>) {
    let address = ([127, 0, 0, 1], port).into();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("set");
    socket.bind(address).expect("the broker has left it");
    let listener = socket.listen(1).expect("it listens");
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queued.push(stream.expect("queued"));
        assert!(queued.len() < 100, "the queue is never full");
    }
    (listener, queued)
}

#[tokio::test]
async fn connections_that_fall_into_a_black_hole_are_given_up_for_new_ones() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "[broker]\nkeep_alive = 1\nconnect_timeout = 1").await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    browser.subscribe_with(json!({"topic": "post", "qos": 1})).await;
    proxy.swallow();
    publish(&mut browser, "swallowed", 1).await;
    expect_down(&mut browser).await;
    expect_up(&mut browser, true).await;
    expect_ack(&mut browser, "swallowed").await;
    Device::publish(mosquitto.port, &["-t", "post", "-m", "back", "-q", "1"]).await;
    assert_eq!(browser.next_delivery().await.1, "back");
}

// Silent, and full.

#[tokio::test]
async fn behind_a_window_that_is_full_and_silent_all_publishes_time_out_in_their_time() {
    let (mut broker, house) = ScriptedBroker::with_gateway("request_timeout = 1").await;
    let (mut browser, mut link, _) = broker.open(&house, &[0x21, 0, 1]).await;
    for number in 0..30 {
        publish(&mut browser, &number.to_string(), 1).await;
    }
    browser.send(json!({"type": "subscribe", "topic": "a", "msgid": "s"})).await;
    let answers = async {
        let mut answers = HashMap::new();
        while answers.len() < 31 {
            let frame = browser.next().await;
            let msgid = frame["msgid"].as_str().expect("a msgid").to_owned();
            match frame["type"].as_str() {
                Some("error") => assert_eq!(frame["code"], "timeout", "{frame}"),
                _ => assert_eq!(frame["topics"][0]["error"], "timeout", "{frame}"),
            }
            assert_eq!(answers.insert(msgid, ()), None, "once: {frame}");
        }
    };
    // One after the other, each waiting for its turn, would take half a minute.
    timeout(PATIENCE, answers).await.expect("all together");
    let late = link.next_publish().await.pkid;
    link.ack(PUBACK, late, 0).await;
    loop {
        // The subscribe may have been written, and is taken back.
        match link.next().await {
            Packet::Publish(publish) => break link.ack(PUBACK, publish.pkid, 0).await,
            Packet::Subscribe(subscribe) => link.answer(SUBACK, subscribe.pkid, 0x97).await,
            Packet::PingReq(_) => {}
            other => panic!("{other:?}"),
        }
        if timeout(Duration::from_millis(100), async {}).await.is_ok() {
            publish(&mut browser, "after", 1).await;
        }
    }
    expect_ack(&mut browser, "after").await;
}

#[tokio::test]
async fn what_is_published_to_a_broker_that_stops_reading_times_out_once_each() {
    let (mut broker, house) = ScriptedBroker::with_gateway("request_timeout = 1\nconnect_timeout = 2").await;
    let (mut browser, link, _) = broker.open(&house, &[]).await;
    let payload = "x".repeat(900_000);
    for number in 0..12 {
        browser
            .send(json!({"type": "publish", "topic": "a", "payload": payload, "qos": 1 + number % 2, "msgid": number}))
            .await;
    }
    let mut answers = HashMap::<u64, Value>::new();
    let mut is_down = false;
    while answers.len() < 12 || !is_down {
        let frame = browser.next().await;
        if frame["type"] == "broker" {
            is_down = true;
            continue;
        }
        let number = frame["msgid"].as_u64().expect("a msgid");
        assert_eq!(frame["code"], "timeout", "{frame}");
        assert_eq!(answers.insert(number, frame), None);
    }
    drop(link);
}

#[tokio::test]
async fn whatever_the_outages_each_publish_is_answered_once() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let settings = "[broker]\nkeep_alive = 1\nconnect_timeout = 0.5\nrequest_timeout = 3\nmax_waiting = 20";
    let house = Gateway::start(&proxy.url(), settings).await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    let mut answers = HashMap::new();
    let mut expected = 0;
    for round in 0..8 {
        // For all connections: one that is cut alone, and again, is taken over.
        match chance.random_range(0..7) {
            0 => proxy.cut(),
            1 => proxy.reset(),
            2 => proxy.hold(),
            3 => proxy.hold_way(Way::Back),
            4 => proxy.swallow(),
            5 => proxy.cut_way(Way::To),
            _ => proxy.cut_way(Way::Back),
        }
        for number in 0..chance.random_range(1..15) {
            let msgid = format!("{round}.{number}");
            let qos = chance.random_range(0..3);
            browser
                .send(json!({"type": "publish", "topic": "post", "payload": msgid, "qos": qos, "msgid": msgid}))
                .await;
            expected += 1;
            if chance.random_bool(0.3) {
                sleep(Duration::from_millis(chance.random_range(1..40))).await;
            }
        }
        sleep(Duration::from_millis(chance.random_range(1..300))).await;
        proxy.resume();
        sleep(Duration::from_millis(chance.random_range(1..200))).await;
        while let Ok(Some(message)) = timeout(Duration::from_millis(1), browser.socket.next()).await {
            note(&mut answers, message.expect("the session stays open").to_text().expect("text"));
        }
    }
    while answers.len() < expected {
        note(&mut answers, &browser.next().await.to_string());
    }
    // Behind all answers: none comes twice.
    browser.send(json!({"type": "ping"})).await;
    loop {
        let frame = browser.next().await;
        if frame["type"] == "pong" {
            break;
        }
        note(&mut answers, &frame.to_string());
    }
    assert_eq!(answers.len(), expected, "seed {seed}");
}

/// Counts the answer to a publish.
fn note(answers: &mut HashMap<String, String>, text: &str) {
    let Ok(frame) = serde_json::from_str::<Value>(text) else { return };
    let kind = frame["type"].as_str().expect("a type");
    if let Some(msgid) = frame["msgid"].as_str() {
        assert!(matches!(kind, "ack" | "error"), "{frame}");
        if kind == "error" {
            assert!(["timeout", "broker_unavailable"].map(Some).contains(&frame["code"].as_str()), "{frame}");
        }
        let before = answers.insert(msgid.to_owned(), text.to_owned());
        assert_eq!(before, None, "answered twice: {frame}");
    }
}

// Flapping.

#[tokio::test]
async fn a_link_that_is_lost_while_it_is_restored_is_told_once() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    for filter in ["a", "b"] {
        subscribe(&mut browser, &mut link, json!({"topic": filter})).await;
    }
    cut(&mut browser, link).await;
    let mut link = broker.next_link().await;
    link.let_in(false, &[]).await;
    link.grant().await;
    drop(link);
    let mut link = broker.resumed().await;
    for _ in ["a", "b"] {
        link.grant().await;
    }
    expect_up(&mut browser, false).await;
    works(&mut browser, &mut link).await;
}

#[tokio::test]
async fn what_arrives_before_the_last_subscription_is_restored_can_be_acked() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[]).await;
    for filter in ["a", "b"] {
        subscribe(&mut browser, &mut link, json!({"topic": filter, "qos": 1, "ack": "manual"})).await;
    }
    cut(&mut browser, link).await;
    let mut link = broker.next_link().await;
    link.let_in(false, &[]).await;
    let (first, second) = (link.next_subscribe().await, link.next_subscribe().await);
    link.answer(SUBACK, first.pkid, 1).await;
    let id = first.properties.and_then(|properties| properties.id).expect("an identifier");
    link.publish(QOS_1, 9, &first.filters[0].path, "early", &[id]).await;
    let early = browser.expect("mqtt").await;
    link.answer(SUBACK, second.pkid, 1).await;
    expect_up(&mut browser, false).await;
    browser.send(json!({"type": "ack", "msgid": early["msgid"]})).await;
    assert!(matches!(link.next().await, Packet::PubAck(puback) if puback.pkid == 9));
}

#[tokio::test]
async fn a_session_that_is_lost_while_it_opens_is_not_told_as_present() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let mut browser = house.connect().await;
    browser
        .send(json!({"type": "auth", "clientId": "anna", "clean": false, "subscriptions": [{"topic": "a", "qos": 1}]}))
        .await;
    let mut link = broker.resumed().await;
    link.next_subscribe().await;
    drop(link);
    let mut link = broker.next_link().await;
    link.let_in(false, &[]).await;
    link.grant().await;
    browser.expect("auth_response").await;
    assert_eq!(browser.expect("welcome").await["sessionPresent"], false);
}

#[tokio::test]
async fn a_broker_that_restarts_again_and_again_is_no_takeover() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    browser.subscribe("post").await;
    for _ in 0..5 {
        mosquitto.stop().await;
        expect_down(&mut browser).await;
        mosquitto.restart().await;
        expect_up(&mut browser, true).await;
    }
    Device::publish(mosquitto.port, &["-t", "post", "-m", "here"]).await;
    assert_eq!(browser.next_delivery().await.1, "here");
}

#[tokio::test]
async fn two_links_that_are_cut_right_after_connack_while_others_live_are_a_takeover() {
    let (mut broker, house) = ScriptedBroker::with_gateway("connect_timeout = 0.3").await;
    let (mut browser, link, _) = broker.open(&house, &[]).await;
    cut(&mut browser, link).await;
    for round in 0..2 {
        // An attempt that is turned away or not answered is no reconnect.
        let mut link = broker.next_link().await;
        if round == 0 {
            link.turn_away(0x88).await;
        }
        link.closed().await;
        let mut link = broker.resumed().await;
        expect_up(&mut browser, true).await;
        publish(&mut browser, &round.to_string(), 1).await;
        let id = link.next_publish().await.pkid;
        link.ack(PUBACK, id, 0).await;
        expect_ack(&mut browser, &round.to_string()).await;
        drop(link);
        expect_down(&mut browser).await;
    }
    assert_eq!(browser.closed().await, 4009);
    assert_eq!(broker.count_links(), 0, "the other connection is not fought");
}

// The end.

async fn auth_with_will(broker: &mut ScriptedBroker, house: &Gateway, name: &str) -> (Browser, Link) {
    let mut browser = house.connect().await;
    browser.send(json!({"type": "auth", "clientId": name, "will": {"topic": "will", "payload": "gone"}})).await;
    (browser, broker.next_link().await)
}

fn is_goodbye(packet: Packet) -> bool {
    matches!(packet, Packet::Disconnect(disconnect) if disconnect.reason_code as u8 == 0)
}

#[tokio::test]
async fn a_session_that_ends_before_the_broker_has_answered_takes_leave() {
    let (mut broker, mut house) = ScriptedBroker::with_gateway("request_timeout = 2\nconnect_timeout = 10").await;
    let (mut late, mut link) = auth_with_will(&mut broker, &house, "late").await;
    assert_eq!(late.closed().await, 4503);
    link.hears_nothing().await;
    link.let_in(false, &[]).await;
    assert!(is_goodbye(link.next().await), "or the broker would publish the will of a session that never was");
    link.closed().await;

    let (mut older, mut link) = auth_with_will(&mut broker, &house, "anna").await;
    let mut newer = house.connect().await;
    newer.send(json!({"type": "auth", "clientId": "anna"})).await;
    assert_eq!(older.closed().await, 4009);
    link.let_in(false, &[]).await;
    assert!(is_goodbye(link.next().await));
    let mut kept = broker.next_link().await;
    kept.let_in(false, &[]).await;
    newer.expect("auth_response").await;

    let (mut drained, mut link) = auth_with_will(&mut broker, &house, "ben").await;
    house.terminate().await;
    assert_eq!(drained.closed().await, 1001);
    link.let_in(false, &[]).await;
    assert!(is_goodbye(link.next().await));
    link.closed().await;
    assert!(house.end().await.success());
}

#[tokio::test]
async fn a_session_that_has_ended_waits_for_a_silent_broker_no_longer_than_to_connect() {
    let (mut broker, house) = ScriptedBroker::with_gateway("request_timeout = 0.3\nconnect_timeout = 1").await;
    let (mut browser, mut link) = auth_with_will(&mut broker, &house, "anna").await;
    assert_eq!(browser.closed().await, 4503);
    link.closed().await;
    let links = async || house.metric("tidegate_broker_links{state=\"down\"}").await;
    eventually("the link has ended", async || links().await == 0.0).await;
    assert_eq!(broker.count_links(), 0, "nobody knocks again");
}

#[tokio::test]
async fn a_goodbye_does_not_wait_for_publishes_behind_a_full_window() {
    let (mut broker, mut house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link) = auth_with_will(&mut broker, &house, "anna").await;
    link.let_in(false, &[0x21, 0, 1]).await;
    browser.expect("auth_response").await;
    browser.expect("welcome").await;
    for number in 0..100 {
        publish(&mut browser, &number.to_string(), 1).await;
    }
    link.next_publish().await;
    drop(link);
    expect_down(&mut browser).await;
    let mut link = broker.next_link().await;
    link.let_in(false, &[0x21, 0, 1]).await;
    expect_up(&mut browser, false).await;
    link.next_publish().await;
    house.terminate().await;
    browser.expect("bye").await;
    assert_eq!(browser.closed().await, 1001);
    assert!(is_goodbye(link.next().await), "or the broker would publish the will, after a drain");
    link.closed().await;
    assert!(house.end().await.success());
}

#[tokio::test]
async fn what_was_asked_before_the_end_is_finished_before_the_goodbye() {
    let (mut broker, house) = ScriptedBroker::with_gateway("").await;
    let (mut browser, mut link, _) = broker.open(&house, &[0x21, 0, 1]).await;
    for number in 0..20 {
        publish(&mut browser, &number.to_string(), 1).await;
    }
    let first = link.next_publish().await;
    // Read by the gateway, as what comes behind them is answered.
    browser.send(json!({"type": "ping"})).await;
    browser.expect("pong").await;
    browser.leave().await;
    link.ack(PUBACK, first.pkid, 0).await;
    for number in 1..20 {
        let packet = link.next_publish().await;
        assert_eq!(packet.payload, number.to_string());
        link.ack(PUBACK, packet.pkid, 0).await;
    }
    assert!(is_goodbye(link.next().await));
}
