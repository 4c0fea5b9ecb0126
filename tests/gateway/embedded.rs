//! The gateway alone, with the broker inside: it works, and no session can stop it.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{Browser, Device, Gateway, PATIENCE, eventually};

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

/// What stops rumqttd for good (`tests/embedded_limits.rs`), from a plain client on this machine, which nobody holds back.
#[derive(Clone, Copy)]
enum Killer {
    /// A topic that starts with a non-ASCII character.
    Topic,
    /// The same as a will.
    Will,
    /// The last lasting member of a group leaves with a delivery unconfirmed.
    Group,
    /// A client identifier with a slash comes twice: the listener of that version of MQTT is gone, and the router lives.
    Slash(&'static str),
    /// A client says what only brokers say, and comes again.
    Connack,
}

impl Killer {
    async fn strike(self, port: u16) {
        match self {
            Killer::Topic => try_publish(port, &["-t", "é", "-m", "K1"]).await,
            Killer::Will => {
                let connect = b"\x10\x1a\0\x04MQTT\x05\x06\0\x3c\0\0\x04anna\0\0\x03\xc3\xa9x\0\x01x";
                Plain::connect(port, connect).await.leave().await;
            }
            Killer::Group => {
                let connect = b"\x10\x15\0\x04MQTT\x05\0\0\x3c\x05\x11\0\0\x0e\x10\0\x03bob";
                let mut bob = Plain::connect(port, connect).await;
                bob.ask(b"\x82\x16\0\x01\0\0\x10$share/crew/jobs\x01").await;
                try_publish(port, &["-t", "jobs", "-m", "K3", "-q", "1"]).await;
                bob.hear().await;
                bob.leave().await;
            }
            Killer::Slash(version) => {
                for _ in 0..2 {
                    try_publish(port, &["-V", version, "-i", "a/b", "-t", "a", "-m", "K4"]).await;
                }
            }
            Killer::Connack => {
                let connect = b"\x10\x14\0\x04MQTT\x05\x02\0\x3c\0\0\x07odd one";
                let mut odd = Plain::connect(port, connect).await;
                odd.stream.write_all(b"\x20\x03\0\0\0").await.expect("written");
                odd.leave().await;
                let _ = Plain::dial(port, connect).await;
            }
        }
    }
}

/// `mosquitto_pub`, which may find nobody.
async fn try_publish(port: u16, arguments: &[&str]) {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-V", "5", "-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments).kill_on_drop(true);
    let _ = timeout(Duration::from_secs(2), command.output()).await;
}

/// A client that sends bytes as they are.
struct Plain {
    stream: TcpStream,
}

impl Plain {
    async fn dial(port: u16, connect: &[u8]) -> Plain {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the front listens");
        stream.write_all(connect).await.expect("written");
        Plain { stream }
    }

    /// With CONNACK.
    async fn connect(port: u16, connect: &[u8]) -> Plain {
        let mut plain = Plain::dial(port, connect).await;
        plain.hear().await;
        plain
    }

    async fn ask(&mut self, packet: &[u8]) {
        self.stream.write_all(packet).await.expect("written");
        self.hear().await;
    }

    async fn hear(&mut self) {
        let mut packet = [0; 256];
        let length = timeout(PATIENCE, self.stream.read(&mut packet)).await.expect("in time").expect("readable");
        assert!(length > 0, "the connection is open");
    }

    /// Closes without DISCONNECT, and waits until the broker has seen it.
    async fn leave(mut self) {
        let _ = self.stream.shutdown().await;
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut Vec::new())).await;
    }
}

async fn is_back(browser: &mut Browser) {
    assert_eq!(browser.expect("broker").await, json!({"type": "broker", "status": "down"}));
    let up = browser.expect("broker").await;
    assert_eq!(up, json!({"type": "broker", "status": "up", "sessionPresent": false}));
}

/// The broker dies and is started anew; sessions and devices go on.
async fn is_survived(killer: Killer) {
    let (gateway, port) = alone().await;
    assert_eq!(gateway.metric("tidegate_embedded_broker_restarts_total").await, 0.0);
    let mut anna = gateway.browser().await;
    anna.subscribe("attic/#").await;
    let mut ben = named(&gateway, json!({"clientId": "ben", "clean": false})).await;
    ben.subscribe_with(json!({"topic": "attic/#", "qos": 1})).await;
    let will = json!({"topic": "attic/clara", "payload": "gone", "qos": 2});
    let mut clara = named(&gateway, json!({"clientId": "clara", "will": will})).await;
    clara.subscribe_with(json!({"topic": "attic/#", "qos": 2})).await;
    killer.strike(port).await;
    for browser in [&mut anna, &mut ben, &mut clara] {
        is_back(browser).await;
    }
    assert_eq!(gateway.metric("tidegate_embedded_broker_restarts_total").await, 1.0);
    eventually("it is ready", async || gateway.get(&gateway.admin, "/readyz").await.0 == 200).await;
    assert!(gateway.log().contains("the embedded broker has died"));
    for version in ["5", "311"] {
        Device::publish(port, &["-V", version, "-t", "attic/temp", "-m", version, "-q", "2"]).await;
        for browser in [&mut anna, &mut ben, &mut clara] {
            assert_eq!(browser.next_delivery().await, ("attic/temp".to_owned(), version.to_owned()));
        }
    }
    clara.vanish();
    assert_eq!(anna.next_delivery().await, ("attic/clara".to_owned(), "gone".to_owned()));
    ben.expect("mqtt").await;
    ben.publish("cellar", "on", 2).await;
    ben.leave().await;
    lives(&gateway).await;
}

#[tokio::test]
async fn a_topic_that_kills_the_router_is_survived() {
    is_survived(Killer::Topic).await;
}

#[tokio::test]
async fn a_will_that_kills_the_router_is_survived() {
    is_survived(Killer::Will).await;
}

#[tokio::test]
async fn a_group_that_kills_the_router_is_survived() {
    is_survived(Killer::Group).await;
}

#[tokio::test]
async fn a_client_identifier_that_kills_a_listener_is_survived() {
    for version in ["5", "311"] {
        is_survived(Killer::Slash(version)).await;
    }
}

#[tokio::test]
async fn a_packet_that_kills_a_listener_is_survived() {
    is_survived(Killer::Connack).await;
}

#[tokio::test]
async fn what_waits_while_the_broker_is_started_anew_is_answered_and_all_of_that_is_told() {
    let (gateway, port) = alone().await;
    let mut browser = gateway.browser().await;
    browser.subscribe_with(json!({"topic": "attic/#", "qos": 2})).await;
    Device::publish(port, &["-t", "attic/stored", "-m", "old", "-r"]).await;
    assert_eq!(browser.next_delivery().await.1, "old");
    for death in 1..=2 {
        Killer::Topic.strike(port).await;
        assert_eq!(browser.expect("broker").await["status"], "down");
        for qos in [1, 2] {
            let msgid = format!("{death} {qos}");
            browser
                .send(json!({"type": "publish", "topic": "attic/1", "payload": "x", "qos": qos, "msgid": msgid}))
                .await;
        }
        if death == 2 {
            // The first restart came at once; this one waits for a second.
            let told = async || gateway.get(&gateway.address, "/readyz").await;
            eventually("readyz tells", async || told().await.1.contains(r#""broker":"restarting""#)).await;
            assert_eq!(gateway.metric("tidegate_broker_reachable").await, 0.0);
        }
        let mut frames = Vec::new();
        for _ in 0..5 {
            frames.push(browser.next().await);
        }
        let count = |kind: &str| frames.iter().filter(|frame| frame["type"] == kind).count();
        assert_eq!((count("ack"), count("mqtt")), (2, 2), "{frames:?}");
        assert!(frames.contains(&json!({"type": "broker", "status": "up", "sessionPresent": false})), "{frames:?}");
        assert_eq!(gateway.metric("tidegate_embedded_broker_restarts_total").await, f64::from(death));
    }
    eventually("it is reachable", async || gateway.metric("tidegate_broker_reachable").await == 1.0).await;
    let mut late = gateway.browser().await;
    late.subscribe("attic/stored").await;
    late.send(json!({"type": "publish", "topic": "attic/stored", "payload": "new"})).await;
    assert_eq!(late.next_delivery().await.1, "new", "what was stored is lost");
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
