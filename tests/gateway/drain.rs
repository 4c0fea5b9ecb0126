//! The end of a gateway: who is told what, what is written before, and how long it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::support::raw::Raw;
use crate::support::{Device, Gateway, Kind, Mosquitto, Proxy, Way, eventually};

async fn is_draining(gateway: &Gateway, address: &str) -> bool {
    let (status, body) = gateway.get(address, "/readyz").await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    (status, &body["draining"]) == (503, &json!(true))
}

/// The end has begun: nobody is let in any more.
async fn has_begun(gateway: &Gateway) {
    eventually("new connections are refused", async || TcpStream::connect(&gateway.address).await.is_err()).await;
}

#[tokio::test]
async fn readiness_falls_first_and_browsers_are_served_and_let_in_during_the_notice() {
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::start(&mosquitto.url(), "[shutdown]\nnotice = 3600").await;
    let mut old = gateway.browser().await;
    old.subscribe("post").await;
    gateway.terminate().await;
    for address in [&gateway.address, &gateway.admin] {
        eventually("it is not ready", async || is_draining(&gateway, address).await).await;
    }
    let mut new = gateway.browser().await;
    new.publish("post", "still here", 1).await;
    assert_eq!(old.next_delivery().await.1, "still here");
    gateway.signal("INT").await;
    assert_eq!(gateway.end().await.code(), Some(1), "a second signal ends it at once");
}

#[tokio::test]
async fn after_the_notice_every_session_is_told_whatever_it_was_at() {
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::start(&mosquitto.url(), "[shutdown]\nnotice = 0.2").await;
    let mut silent = gateway.connect().await;
    let mut open = gateway.browser().await;
    gateway.signal("INT").await;
    for browser in [&mut silent, &mut open] {
        assert_eq!(browser.expect("bye").await["reason"], "drain");
        assert_eq!(browser.closed().await, 1001);
    }
    assert_eq!(gateway.end().await.code(), Some(0));
    assert!(!gateway.log().contains("deadline has passed"));
}

#[tokio::test]
async fn sessions_are_asked_to_come_back_spread_evenly_over_the_deadline() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "[shutdown]\ndeadline = 20").await;
    let mut browsers = Vec::new();
    for _ in 0..20 {
        browsers.push(gateway.connect().await);
    }
    eventually("all are there", async || gateway.metric("tidegate_sessions_open").await == 20.0).await;
    gateway.terminate().await;
    let mut quarters = [0; 4];
    for browser in &mut browsers {
        let after = browser.expect("bye").await["reconnectAfter"].as_u64().expect("milliseconds");
        assert!((1000..20_000).contains(&after), "{after}");
        quarters[(after as usize - 1000) / 4750] += 1;
    }
    assert!(quarters.iter().all(|quarter| (4..=6).contains(quarter)), "{quarters:?}");
}

#[tokio::test]
async fn an_operator_may_ask_for_the_end_and_a_page_may_not() {
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::start(&mosquitto.url(), "[shutdown]\nnotice = 0.5").await;
    let mut browser = gateway.browser().await;
    let admin = gateway.admin.clone();
    for (address, method, head, status) in [
        (&admin, "GET", "", 405),
        (&admin, "POST", "Origin: http://attic.example\r\n", 403),
        (&admin, "POST", "Origin: null\r\n", 403),
        (&admin, "POST", "Sec-Fetch-Site: same-origin\r\n", 403),
        (&gateway.address, "POST", "", 404),
    ] {
        assert_eq!(gateway.request(address, method, "/drain", head).await.0, status, "{method} {head:?}");
        assert_eq!(gateway.get(address, "/readyz").await.0, 200, "{method} {head:?}");
    }
    for _ in 0..2 {
        let (status, head, body) = gateway.request(&admin, "POST", "/drain", "").await;
        assert_eq!((status, body.as_str()), (202, r#"{"status":"draining"}"#));
        assert!(head.contains("content-type: application/json"), "{head}");
    }
    // As systemd or Kubernetes do after their hook: the first signal is no second one.
    gateway.terminate().await;
    browser.expect("bye").await;
    assert_eq!(browser.closed().await, 1001);
    assert_eq!(gateway.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_publish_that_is_being_carried_out_is_answered_before_the_bye() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let mut gateway = Gateway::start(&proxy.url(), "").await;
    let mut browser = gateway.browser().await;
    proxy.hold();
    let publish = json!({"type": "publish", "topic": "post", "payload": "1", "qos": 1, "msgid": 1});
    browser.send(publish).await;
    let sent = r#"tidegate_messages_total{direction="uplink",qos="1"}"#;
    eventually("it is on its way", async || gateway.metric(sent).await == 1.0).await;
    gateway.terminate().await;
    has_begun(&gateway).await;
    proxy.resume();
    assert_eq!(browser.next().await, json!({"type": "ack", "msgid": 1}));
    browser.expect("bye").await;
    assert_eq!(browser.closed().await, 1001);
    assert_eq!(gateway.end().await.code(), Some(0));
}

#[tokio::test]
async fn what_waits_is_written_and_confirmed_and_the_rest_comes_at_the_next_gateway() {
    const COUNT: usize = 400;
    let mosquitto = Mosquitto::start().await;
    let (mut first, second) = (Gateway::before(&mosquitto).await, Gateway::before(&mosquitto).await);
    let auth =
        json!({"type": "auth", "clientId": "anna", "clean": false, "subscriptions": [{"topic": "post", "qos": 1}]});
    let mut slow = Raw::connect(&first.address).await;
    slow.text(&auth.to_string()).await;
    assert_eq!(slow.next().await["type"], "auth_response");
    assert_eq!(slow.next().await["type"], "welcome");
    let read = Arc::new(AtomicUsize::new(0));
    let hurry = Arc::new(AtomicUsize::new(0));
    let reading = tokio::spawn({
        let (read, hurry) = (read.clone(), hurry.clone());
        async move {
            let mut payloads = Vec::new();
            loop {
                let frame = slow.next().await;
                if frame["type"] == "bye" {
                    return (payloads, slow.closed().await);
                }
                payloads.push(number(&frame));
                read.fetch_add(1, Ordering::Relaxed);
                if hurry.load(Ordering::Relaxed) == 0 {
                    sleep(Duration::from_millis(30)).await;
                }
            }
        }
    });
    let mut source = second.browser().await;
    let padding = "x".repeat(16 * 1024);
    for number in 0..COUNT {
        let payload = format!("{number} {padding}");
        source.send(json!({"type": "publish", "topic": "post", "payload": payload, "qos": 1, "msgid": number})).await;
    }
    for _ in 0..COUNT {
        source.expect("ack").await;
    }
    eventually("much waits", async || first.metric("tidegate_outbox_deliveries").await > 100.0).await;
    first.terminate().await;
    has_begun(&first).await;
    let read_before = read.load(Ordering::Relaxed);
    hurry.store(1, Ordering::Relaxed);
    let (mut payloads, code) = reading.await.expect("it reads");
    assert_eq!(code, 1001);
    assert!(payloads.len() > read_before + 100, "{} of {read_before} and what waited", payloads.len());
    assert_eq!(first.end().await.code(), Some(0));
    let written = payloads.len();
    let (mut browser, welcome) = second.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    for frame in browser.deliveries(COUNT - written).await {
        payloads.push(number(&frame));
    }
    assert_eq!(payloads, Vec::from_iter(0..COUNT), "each once, in order");
    source.publish("post", "1000 end", 1).await;
    assert_eq!(number(&browser.expect("mqtt").await), 1000);
}

fn number(frame: &Value) -> usize {
    let payload = frame["payload"].as_str().unwrap_or_else(|| panic!("{frame}"));
    payload.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

#[tokio::test]
async fn a_browser_that_reads_nothing_holds_no_drain_up() {
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::start(&mosquitto.url(), "").await;
    let mut stuck = Raw::connect(&gateway.address).await;
    stuck.text(r##"{"type":"subscribe","topic":"post","qos":1}"##).await;
    let mut source = gateway.browser().await;
    let padding = "x".repeat(100_000);
    for number in 0..100 {
        source.send(json!({"type": "publish", "topic": "post", "payload": padding, "msgid": number})).await;
        source.expect("ack").await;
    }
    eventually("much waits", async || gateway.metric("tidegate_outbox_bytes").await > 1e6).await;
    gateway.terminate().await;
    source.expect("bye").await;
    assert_eq!(gateway.end().await.code(), Some(0));
    assert!(!gateway.log().contains("deadline has passed"));
    drop(stuck);
}

#[tokio::test]
async fn a_drain_ends_in_time_when_the_broker_is_gone_or_says_nothing() {
    for is_gone in [true, false] {
        let mut mosquitto = Mosquitto::start().await;
        let proxy = Proxy::before(mosquitto.port).await;
        let mut gateway = Gateway::start(&proxy.url(), "[shutdown]\ndeadline = 2").await;
        let will = json!({"topic": "last", "payload": "words"});
        let (mut browser, _) = gateway.open(json!({"clientId": "anna", "clean": false, "will": will})).await;
        if is_gone {
            mosquitto.kill().await;
            browser.expect("broker").await;
        } else {
            proxy.hold();
        }
        let sent = r#"tidegate_messages_total{direction="uplink",qos="1"}"#;
        browser.send(json!({"type": "publish", "topic": "post", "payload": "1", "qos": 1})).await;
        eventually("it is on its way", async || gateway.metric(sent).await == 1.0).await;
        gateway.terminate().await;
        browser.expect("bye").await;
        assert_eq!(browser.closed().await, 1001);
        assert_eq!(gateway.end().await.code(), Some(0), "gone: {is_gone}");
        assert!(!gateway.log().contains("deadline has passed"), "gone: {is_gone}");
    }
}

#[tokio::test]
async fn a_subscribe_that_is_being_carried_out_is_answered_before_the_bye() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let mut gateway = Gateway::start(&proxy.url(), "").await;
    Device::publish(mosquitto.port, &["-r", "-q", "1", "-t", "post/1", "-m", "stored"]).await;
    let mut browser = gateway.browser().await;
    proxy.hold();
    browser.send(json!({"type": "subscribe", "topics": ["post/#", "news"]})).await;
    browser.send(json!({"type": "ping"})).await;
    browser.expect("pong").await;
    gateway.terminate().await;
    has_begun(&gateway).await;
    proxy.resume();
    browser.expect("subscribed").await;
    browser.expect("bye").await;
    assert_eq!(gateway.end().await.code(), Some(0));
    assert_eq!(proxy.forwarded(Way::To, Kind::Subscribe), 2);
}
