//! The last words of sessions: when they are published, and when not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Device, Gateway, Mosquitto, Proxy, eventually};

fn with_will(name: &str) -> Value {
    json!({"clientId": name, "will": {"topic": format!("will/{name}"), "payload": "gone", "qos": 1}})
}

/// Hears wills, and the word that follows those that must not come.
async fn watch(mosquitto: &Mosquitto) -> Device {
    Device::subscribe(mosquitto.port, &["-q", "2", "-t", "will/#"]).await
}

#[tokio::test]
async fn a_will_is_published_when_the_connection_is_lost() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut watch = watch(&mosquitto).await;
    house.open(with_will("anna")).await.0.vanish();
    assert_eq!(watch.next().await, "will/anna gone");
}

#[tokio::test]
async fn a_will_is_published_when_the_gateway_ends_the_session_for_its_frames() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut watch = watch(&mosquitto).await;
    let (mut browser, _) = house.open(with_will("anna")).await;
    for _ in 0..20 {
        browser.send(json!({"type": "nothing"})).await;
        browser.expect("error").await;
    }
    assert_eq!(browser.closed().await, 4400);
    assert_eq!(watch.next().await, "will/anna gone");
    let (mut browser, _) = house.open(with_will("ben")).await;
    futures_util::SinkExt::send(&mut browser.socket, tokio_tungstenite::tungstenite::Message::binary(vec![0]))
        .await
        .expect("sent");
    assert_eq!(browser.closed().await, 1003);
    assert_eq!(watch.next().await, "will/ben gone");
}

#[tokio::test]
async fn a_will_is_published_when_the_client_gives_no_sign_of_life() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[session]\nheartbeat = 0.2").await;
    let mut watch = watch(&mosquitto).await;
    let (mut browser, welcome) = house.open(with_will("anna")).await;
    assert_eq!(welcome["heartbeat"], 0.2);
    // Nobody reads the socket, so nobody answers the pings.
    assert_eq!(watch.next().await, "will/anna gone");
    assert_eq!(browser.closed().await, 4001);
}

#[tokio::test]
async fn a_will_is_not_published_after_a_close_frame_or_a_drain() {
    let mosquitto = Mosquitto::start().await;
    let mut house = Gateway::before(&mosquitto).await;
    let mut watch = watch(&mosquitto).await;
    house.open(with_will("anna")).await.0.leave().await;
    let (mut browser, _) = house.open(with_will("ben")).await;
    let mut kept = with_will("clara");
    kept["clean"] = json!(false);
    let (mut other, _) = house.open(kept).await;
    assert!(house.stop().await.success());
    assert_eq!(browser.expect("bye").await["reason"], "drain");
    assert_eq!((browser.closed().await, other.closed().await), (1001, 1001));
    Device::publish(mosquitto.port, &["-q", "2", "-t", "will/none", "-m", "published"]).await;
    assert_eq!(watch.next().await, "will/none published");
}

#[tokio::test]
async fn a_will_waits_for_its_delay() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut watch = watch(&mosquitto).await;
    let mut auth = with_will("anna");
    auth["will"]["delay"] = json!(1);
    let (browser, _) = house.open(auth).await;
    browser.vanish();
    let began = Instant::now();
    assert_eq!(watch.next().await, "will/anna gone");
    assert!(began.elapsed() > Duration::from_millis(950), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_delay_as_long_as_the_grace_period_is_left_to_the_broker() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\ngrace = 1").await;
    let mut watch = watch(&mosquitto).await;
    let mut auth = with_will("anna");
    auth["will"]["delay"] = json!(2);
    let (browser, _) = house.open(auth).await;
    browser.vanish();
    let began = Instant::now();
    eventually("no link is left", async || house.metric("tidegate_broker_links{state=\"up\"}").await == 0.0).await;
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    assert_eq!(watch.next().await, "will/anna gone");
    assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_will_that_waits_does_not_hold_up_a_drain() {
    let mosquitto = Mosquitto::start().await;
    let mut house = Gateway::start(&mosquitto.url(), "[shutdown]\ndeadline = 60").await;
    let mut auth = with_will("anna");
    auth["will"]["delay"] = json!(59);
    let (browser, _) = house.open(auth).await;
    browser.vanish();
    eventually("the session has ended", async || house.metric("tidegate_sessions_open").await == 0.0).await;
    let began = Instant::now();
    assert!(house.stop().await.success());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_will_is_dropped_when_its_session_is_taken_up_within_the_delay() {
    let mosquitto = Mosquitto::start().await;
    let (house, other) = (Gateway::before(&mosquitto).await, Gateway::before(&mosquitto).await);
    let mut watch = watch(&mosquitto).await;
    let mut auth = with_will("anna");
    auth["clean"] = json!(false);
    auth["will"]["delay"] = json!(1);
    let (browser, _) = house.open(auth.clone()).await;
    browser.vanish();
    let mut again = auth.clone();
    again["will"] = Value::Null;
    again.as_object_mut().expect("an object").remove("will");
    let (browser, welcome) = house.open(again.clone()).await;
    assert_eq!(welcome["sessionPresent"], true);
    let (last, _) =
        house.open(json!({"clientId": "ben", "will": {"topic": "will/ben", "payload": "gone", "delay": 2}})).await;
    last.vanish();
    assert_eq!(watch.next().await, "will/ben gone", "after the time of the first");
    // The same, with another gateway that takes the session up.
    browser.leave().await;
    house.open(auth).await.0.vanish();
    let (_browser, welcome) = other.open(again).await;
    assert_eq!(welcome["sessionPresent"], true);
    let (last, _) =
        house.open(json!({"clientId": "ben", "will": {"topic": "will/ben", "payload": "gone", "delay": 2}})).await;
    last.vanish();
    assert_eq!(watch.next().await, "will/ben gone", "after the time of the second");
}

#[tokio::test]
async fn a_broken_link_to_the_broker_alone_publishes_no_will() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "").await;
    let mut watch = watch(&mosquitto).await;
    let (mut browser, _) = house.open(with_will("anna")).await;
    proxy.cut();
    assert_eq!(browser.expect("broker").await["status"], "down");
    proxy.resume();
    assert_eq!(browser.expect("broker").await, json!({"type": "broker", "status": "up", "sessionPresent": true}));
    browser.publish("will/none", "published", 1).await;
    assert_eq!(watch.next().await, "will/none published");
    browser.vanish();
    assert_eq!(watch.next().await, "will/anna gone", "it is kept for the end");
}

#[tokio::test]
async fn a_session_that_ends_while_the_broker_is_away_has_its_will_published_unless_the_client_left() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "[broker]\ngrace = 2").await;
    let mut watch = watch(&mosquitto).await;
    let (mut anna, _) = house.open(with_will("anna")).await;
    let (mut ben, _) = house.open(with_will("ben")).await;
    proxy.cut();
    for browser in [&mut anna, &mut ben] {
        assert_eq!(browser.expect("broker").await["status"], "down");
    }
    ben.leave().await;
    anna.vanish();
    proxy.resume();
    // Past the grace period, the broker publishes it.
    assert_eq!(watch.next().await, "will/anna gone");
    Device::publish(mosquitto.port, &["-q", "2", "-t", "will/none", "-m", "published"]).await;
    assert_eq!(watch.next().await, "will/none published", "ben had left");
}

#[tokio::test]
async fn the_broker_publishes_the_will_when_no_gateway_comes_back() {
    let mosquitto = Mosquitto::start().await;
    let mut house = Gateway::start(&mosquitto.url(), "[broker]\ngrace = 1").await;
    let mut watch = watch(&mosquitto).await;
    let (browser, _) = house.open(with_will("anna")).await;
    house.kill().await;
    assert_eq!(watch.next().await, "will/anna gone");
    drop(browser);
}

#[tokio::test]
async fn a_will_has_the_qos_and_the_retain_flag_it_was_given() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut observer = house.browser().await;
    observer.subscribe_with(json!({"topic": "will/#", "qos": 2, "format": "json"})).await;
    for qos in [0, 1, 2] {
        let properties = json!({"contentType": "application/json", "userProperties": [["why", "lost"]]});
        let will = json!({"topic": format!("will/{qos}"), "payload": {"online": false}, "qos": qos, "retain": true, "properties": properties});
        house.open(json!({"will": will})).await.0.vanish();
        let frame = observer.expect("mqtt").await;
        assert_eq!(
            (&frame["topic"], &frame["qos"], &frame["retain"]),
            (&json!(format!("will/{qos}")), &json!(qos), &json!(false))
        );
        assert_eq!((&frame["payload"], &frame["properties"]), (&json!({"online": false}), &properties));
    }
    let mut late = house.browser().await;
    late.subscribe("will/#").await;
    assert!(late.deliveries(3).await.iter().all(|frame| frame["retain"] == true));
}
