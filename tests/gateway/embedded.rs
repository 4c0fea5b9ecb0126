//! The gateway alone, with the broker inside: it works, and no session can stop it.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use crate::support::{Browser, Device, Gateway, eventually};

/// On a port of its own, and the port.
async fn alone() -> (Gateway, u16) {
    let gateway = Gateway::start("embedded://127.0.0.1:0", "").await;
    let port = gateway.broker.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    (gateway, port)
}

/// A fresh message makes the whole way through the broker.
async fn lives(gateway: &Gateway) {
    let mut browser = gateway.browser().await;
    browser.subscribe("alive").await;
    browser.send(json!({"type": "publish", "topic": "alive", "payload": "yes"})).await;
    assert_eq!(browser.next_delivery().await, ("alive".to_owned(), "yes".to_owned()));
    let (status, body) = gateway.get(&gateway.address, "/readyz").await;
    assert_eq!(status, 200, "{body}");
    browser.leave().await;
}

async fn named(gateway: &Gateway, auth: serde_json::Value) -> Browser {
    let mut browser = gateway.connect().await;
    let mut frame = json!({"type": "auth"});
    frame.as_object_mut().expect("an object").extend(auth.as_object().expect("an object").clone());
    browser.send(frame).await;
    browser.expect("auth_response").await;
    browser.expect("welcome").await;
    browser
}

#[tokio::test]
async fn browsers_and_devices_of_both_protocol_versions_meet() {
    let (gateway, port) = alone().await;
    let mut browser = gateway.browser().await;
    browser.subscribe_with(json!({"topic": "attic/#", "qos": 2})).await;
    for (version, qos) in [("5", "0"), ("5", "1"), ("5", "2"), ("311", "0"), ("311", "1"), ("311", "2")] {
        Device::publish(port, &["-V", version, "-t", "attic/temp", "-m", version, "-q", qos]).await;
        assert_eq!(browser.next_delivery().await, ("attic/temp".to_owned(), version.to_owned()), "qos {qos}");
    }
    let mut lamp = Device::subscribe(port, &["-t", "lamp", "-q", "2"]).await;
    for qos in 0..3 {
        browser.publish("lamp", &format!("on {qos}"), qos).await;
        assert_eq!(lamp.next().await, format!("lamp on {qos}"));
    }
}

#[tokio::test]
async fn stored_messages_and_kept_sessions_work() {
    let (gateway, port) = alone().await;
    Device::publish(port, &["-t", "attic/temp", "-m", "21.5", "-r"]).await;
    let mut browser = named(&gateway, json!({"clientId": "anna", "clean": false})).await;
    browser.subscribe_with(json!({"topic": "attic/#", "qos": 1})).await;
    let stored = browser.expect("mqtt").await;
    assert_eq!((&stored["payload"], &stored["retain"]), (&json!("21.5"), &json!(true)));
    browser.leave().await;
    Device::publish(port, &["-t", "attic/temp", "-m", "22.0", "-q", "1"]).await;
    let mut browser = gateway.connect().await;
    browser.send(json!({"type": "auth", "clientId": "anna", "clean": false})).await;
    browser.expect("auth_response").await;
    assert_eq!(browser.expect("welcome").await["sessionPresent"], true);
    eventually("the waiting message comes", async || browser.next_delivery().await.1 == "22.0").await;
}

#[tokio::test]
async fn a_will_is_published_when_its_browser_vanishes_and_not_when_it_leaves() {
    let (gateway, _) = alone().await;
    let mut watcher = gateway.browser().await;
    watcher.subscribe("gone/#").await;
    let will = |name: &str| json!({"clientId": name, "will": {"topic": format!("gone/{name}"), "payload": "bye"}});
    named(&gateway, will("leaver")).await.leave().await;
    named(&gateway, will("vanisher")).await.vanish();
    assert_eq!(watcher.next_delivery().await.0, "gone/vanisher");
}

#[tokio::test]
async fn topics_that_stop_rumqttd_are_refused_for_good() {
    let (gateway, _) = alone().await;
    let mut browser = gateway.browser().await;
    browser.subscribe("#").await;
    for retain in [false, true] {
        browser.send(json!({"type": "publish", "topic": "éttic/temp", "payload": 1, "retain": retain})).await;
        let error = browser.expect("error").await;
        assert_eq!((&error["code"], &error["retryable"]), (&json!("invalid_topic"), &json!(false)));
        assert!(error["message"].as_str().expect("text").contains("embedded broker"), "{error}");
    }
    let mut other = gateway.connect().await;
    other.send(json!({"type": "auth", "will": {"topic": "é", "payload": 1}})).await;
    assert_eq!(other.expect("error").await["code"], "invalid_topic");
    // Filters and later levels do no harm.
    browser.subscribe("éttic/#").await;
    browser.publish("attic/é", "fine", 0).await;
    lives(&gateway).await;
}

#[tokio::test]
async fn a_session_may_leave_with_hundreds_of_deliveries_queued() {
    let (gateway, _) = alone().await;
    for _ in 0..5 {
        let subscriptions = json!([{"topic": "flood", "qos": 1, "ack": "manual"}]);
        let auth = json!({"clientId": "anna", "clean": false, "subscriptions": subscriptions});
        let reader = named(&gateway, auth).await;
        let mut writer = gateway.browser().await;
        for number in 0..400 {
            writer.send(json!({"type": "publish", "topic": "flood", "payload": number, "qos": 1})).await;
        }
        writer.publish("flood", "last", 1).await;
        reader.leave().await;
    }
    lives(&gateway).await;
}

#[tokio::test]
async fn shared_subscriptions_are_refused() {
    let (gateway, _) = alone().await;
    for clean in [true, false] {
        let mut browser = gateway.connect().await;
        browser.send(json!({"type": "auth", "clientId": format!("anna-{clean}"), "clean": clean})).await;
        browser.expect("auth_response").await;
        assert_eq!(browser.expect("welcome").await["limits"]["shared"], false);
        browser.send(json!({"type": "subscribe", "topics": ["$share/g/a", "a", "$SYS/#"]})).await;
        let answer = browser.expect("subscribed").await;
        assert_eq!(answer["topics"][0]["error"], "broker_rejected");
        assert_eq!(answer["topics"][1]["qos"], 0);
        assert_eq!(answer["topics"][2]["error"], "broker_rejected");
        browser.leave().await;
    }
    lives(&gateway).await;
}

#[tokio::test]
async fn client_identifiers_with_slashes_may_come_again() {
    let (gateway, _) = alone().await;
    for id in ["house/attic", "a+b", "$c", "d#", "100%"] {
        for _ in 0..3 {
            let mut browser = gateway.connect().await;
            browser.send(json!({"type": "auth", "clientId": id})).await;
            browser.expect("auth_response").await;
            assert_eq!(browser.expect("welcome").await["clientId"], id);
            browser.leave().await;
        }
    }
    lives(&gateway).await;
}

#[tokio::test]
async fn a_client_may_take_itself_over_again_and_again() {
    let (gateway, _) = alone().await;
    let mut last = named(&gateway, json!({"clientId": "anna"})).await;
    for _ in 0..20 {
        let next = named(&gateway, json!({"clientId": "anna"})).await;
        assert_eq!(last.closed().await, 4009);
        last = next;
    }
    last.subscribe("still/here").await;
    lives(&gateway).await;
}

#[tokio::test]
async fn unsubscribing_what_is_not_there_succeeds() {
    let (gateway, _) = alone().await;
    let mut browser = gateway.browser().await;
    browser.send(json!({"type": "unsubscribe", "topics": ["a", "$SYS/#"]})).await;
    assert_eq!(browser.expect("unsubscribed").await["topics"], json!([{"topic": "a"}, {"topic": "$SYS/#"}]));
}

#[tokio::test]
async fn a_port_that_is_taken_is_replaced_and_told() {
    // Another scene, or a Mosquitto of the system, may hold it already.
    let _taken = TcpListener::bind("127.0.0.1:1883");
    let gateway = Gateway::start("embedded", "").await;
    let port: u16 = gateway.broker.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    assert_ne!(port, 1883, "{}", gateway.broker);
    let mut browser = gateway.browser().await;
    browser.subscribe("a").await;
    Device::publish(port, &["-t", "a", "-m", "found"]).await;
    assert_eq!(browser.next_delivery().await.1, "found");
}

#[tokio::test]
async fn a_router_that_died_shows_in_readyz() {
    let (gateway, port) = alone().await;
    let mut browser = gateway.browser().await;
    browser.subscribe("#").await;
    // A plain MQTT client on this machine is not held back.
    let stab = tokio::process::Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", "é", "-m", "K1"])
        .output();
    let _ = tokio::time::timeout(Duration::from_secs(5), stab).await;
    eventually("readyz tells", async || gateway.get(&gateway.admin, "/readyz").await.0 == 503).await;
    assert_eq!(gateway.metric("tidegate_broker_reachable").await, 0.0);
}

#[tokio::test]
async fn it_stops_with_the_process() {
    let (mut gateway, port) = alone().await;
    let mut browser = gateway.browser().await;
    assert!(gateway.stop().await.success());
    browser.expect("bye").await;
    assert_eq!(browser.closed().await, 1001);
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "the port is free again");
}
