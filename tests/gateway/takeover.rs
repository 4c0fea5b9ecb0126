//! Two connections with one client identifier: the newer one has it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Browser, Device, Gateway, Mosquitto};

/// The payloads that a browser hears, and the code with which it is closed.
async fn heard(mut browser: Browser) -> (Vec<String>, Option<u16>) {
    let mut payloads = Vec::new();
    while let Some(Ok(message)) = browser.socket.next().await {
        match message {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).expect("frames are JSON");
                payloads.extend(frame["payload"].as_str().map(str::to_owned));
            }
            Message::Close(close) => return (payloads, close.map(|close| close.code.into())),
            _ => {}
        }
    }
    (payloads, None)
}

#[tokio::test]
async fn on_one_gateway_the_newer_connection_has_the_session() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut watch = Device::subscribe(mosquitto.port, &["-t", "will/#"]).await;
    for clean in [true, false] {
        let auth = json!({"clientId": "anna", "clean": clean, "will": {"topic": "will/anna", "payload": "gone"}});
        let (mut older, _) = house.open(auth.clone()).await;
        older.subscribe_with(json!({"topic": "post/#", "qos": 1})).await;
        let (mut newer, welcome) = house.open(auth).await;
        assert_eq!(older.closed().await, 4009);
        assert_eq!(welcome["sessionPresent"], !clean);
        if clean {
            newer.subscribe_with(json!({"topic": "post/#", "qos": 1})).await;
        }
        Device::publish(mosquitto.port, &["-q", "1", "-t", "post/1", "-m", "hello"]).await;
        assert_eq!(newer.next_delivery().await.1, "hello");
        newer.leave().await;
    }
    Device::publish(mosquitto.port, &["-t", "will/none", "-m", "fired"]).await;
    assert_eq!(watch.next().await, "will/none fired");
}

#[tokio::test]
async fn a_takeover_loses_and_repeats_nothing_that_was_confirmed() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let auth =
        json!({"clientId": "anna", "clean": false, "subscriptions": [{"topic": "post/#", "qos": 1, "ack": "manual"}]});
    let (mut browser, _) = house.open(auth.clone()).await;
    let mut friend = house.browser().await;
    for round in 0..5 {
        friend.publish("post/1", &format!("{round} a"), 1).await;
        friend.publish("post/1", &format!("{round} b"), 1).await;
        let frames = browser.deliveries(2).await;
        browser.send(json!({"type": "ack", "msgid": frames[0]["msgid"]})).await;
        assert_eq!(browser.ask(json!({"type": "ping"})).await["type"], "pong");
        let (mut newer, _) = house.open(auth.clone()).await;
        let frame = newer.expect("mqtt").await;
        assert_eq!(
            (&frame["payload"], &frame["dup"], &frame["msgid"]),
            (&json!(format!("{round} b")), &json!(true), &frames[1]["msgid"])
        );
        newer.send(json!({"type": "ack", "msgid": frame["msgid"]})).await;
        assert_eq!(browser.closed().await, 4009);
        browser = newer;
    }
}

#[tokio::test]
async fn between_gateways_the_older_gives_way_and_the_newer_loses_nothing() {
    let mosquitto = Mosquitto::start().await;
    let (first, second) = (Gateway::before(&mosquitto).await, Gateway::before(&mosquitto).await);
    let mut watch = Device::subscribe(mosquitto.port, &["-t", "will/#"]).await;
    let auth = json!({
        "clientId": "anna", "clean": false, "will": {"topic": "will/anna", "payload": "gone"},
        "subscriptions": [{"topic": "post/#", "qos": 1}],
    });
    let (older, _) = first.open(auth.clone()).await;
    let (mut newer, welcome) = second.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    let began = Instant::now();
    let mut friend = first.browser().await;
    let older = tokio::spawn(heard(older));
    let mut count = 0;
    while !older.is_finished() {
        friend.publish("post/1", &count.to_string(), 1).await;
        count += 1;
    }
    let (older, code) = older.await.expect("it heard");
    assert_eq!(code, Some(4009));
    assert!(began.elapsed() < Duration::from_secs(15));
    friend.publish("post/1", "last", 1).await;
    let mut all: HashSet<_> = older.into_iter().collect();
    while !all.contains("last") {
        let frame = newer.next().await;
        if frame["type"] != "broker" {
            assert_eq!(frame["type"], "mqtt", "{frame}");
            all.insert(frame["payload"].as_str().expect("text").to_owned());
        }
    }
    for number in 0..count {
        assert!(all.contains(&number.to_string()), "{number} of {count}");
    }
    friend.publish("post/1", "live", 0).await;
    assert_eq!(newer.next_delivery().await.1, "live");
    Device::publish(mosquitto.port, &["-t", "will/none", "-m", "fired"]).await;
    assert_eq!(watch.next().await, "will/none fired");
}
