//! Browsers that read slowly, or not at all: what they get, and what the others notice.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::raw::Raw;
use crate::support::{Browser, Gateway, Mosquitto, eventually};

const WAITING: &str = "tidegate_outbox_deliveries";
const DROPPED: &str = "tidegate_deliveries_dropped_total";

/// A browser that subscribes like this, and reads only what it is made to read.
async fn subscriber(house: &Gateway, mut subscribe: Value) -> Raw {
    let mut raw = Raw::connect(&house.address).await;
    subscribe["type"] = json!("subscribe");
    raw.text(&subscribe.to_string()).await;
    assert_eq!(raw.next().await["type"], "welcome");
    assert_eq!(raw.next().await["type"], "subscribed");
    raw
}

/// Publishes, and waits until the broker's connection has it.
async fn publish(from: &mut Browser, topic: &str, payload: String, qos: u8) {
    static MSGID: AtomicU32 = AtomicU32::new(0);
    let msgid = MSGID.fetch_add(1, Ordering::Relaxed);
    from.send(json!({"type": "publish", "topic": topic, "payload": payload, "qos": qos, "msgid": msgid})).await;
    from.expect("ack").await;
}

/// A number, and so many bytes in all.
fn numbered(number: usize, bytes: usize) -> String {
    let number = number.to_string();
    format!("{number}{}", ".".repeat(bytes - number.len()))
}

fn number(frame: &Value) -> usize {
    let payload = frame["payload"].as_str().unwrap_or_else(|| panic!("no delivery: {frame}"));
    payload.trim_end_matches('.').parse().expect("a number")
}

#[tokio::test]
async fn what_has_a_higher_priority_goes_first_to_a_slow_browser() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[delivery]\nmax_queued_bytes = 100_000_000").await;
    let priorities = ["low", "normal", "high"];
    let topics = priorities.map(|priority| json!({"topic": priority, "priority": priority, "qos": 1}));
    let mut slow = subscriber(&house, json!({"topics": topics})).await;
    let mut source = house.browser().await;
    let mut sent = 0;
    while house.metric(WAITING).await < 10.0 {
        publish(&mut source, "normal", numbered(sent, 100_000), 0).await;
        sent += 1;
        assert!(sent < 500, "it reads nothing");
    }
    let before = house.metric(WAITING).await;
    for round in 0..12 {
        publish(&mut source, priorities[round % 3], numbered(sent, 10), (round % 2) as u8).await;
        sent += 1;
    }
    eventually("all of them wait", async || house.metric(WAITING).await >= before + 12.0).await;
    let mut frames = Vec::new();
    while frames.len() < sent {
        frames.push(slow.next().await);
    }
    let of = |topic: &str| frames.iter().filter(|frame| frame["topic"] == topic).map(number).collect::<Vec<_>>();
    let place = |frame: &dyn Fn(&Value) -> bool| frames.iter().rposition(frame).expect("it is there");
    let waited = |topic: &'static str| move |frame: &Value| frame["topic"] == topic && number(frame) >= sent - 12;
    assert!(place(&waited("high")) < place(&|frame| frame["topic"] == "normal" && number(frame) < sent - 12));
    assert!(place(&waited("normal")) < frames.len() - 4);
    assert!(frames[sent - 4..].iter().all(waited("low")), "low goes last");
    for topic in priorities {
        assert!(of(topic).is_sorted(), "{topic} keeps its order");
    }
    assert_eq!(house.metric(DROPPED).await, 0.0);
}

#[tokio::test]
async fn where_it_is_so_configured_a_browser_that_reads_nothing_is_closed() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[delivery]\nmax_queued = 10\noverflow = \"close\"").await;
    let _slow = subscriber(&house, json!({"topic": "flood"})).await;
    let closed = "tidegate_sessions_closed_total{code=\"4008\"}";
    let mut source = house.browser().await;
    let mut sent = 0;
    while house.metric(closed).await == 0.0 {
        publish(&mut source, "flood", numbered(sent, 100_000), 0).await;
        sent += 1;
        assert!(sent < 1000, "it reads nothing");
    }
    assert_eq!((house.metric(closed).await, house.metric(DROPPED).await), (1.0, 0.0));
    source.subscribe("flood").await;
    publish(&mut source, "others", "live on".into(), 1).await;
}

#[tokio::test]
async fn a_burst_of_5000_stored_messages_reaches_every_page_that_reads() {
    const STORED: usize = 5000;
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut source = house.browser().await;
    for number in 0..STORED {
        let (topic, payload) = (format!("page/{number}"), numbered(number, 1500));
        source.send(json!({"type": "publish", "topic": topic, "payload": payload, "qos": 1, "retain": true, "msgid": number})).await;
    }
    for _ in 0..STORED {
        source.expect("ack").await;
    }
    let everything = json!({"topic": "page/#"});
    let (mut quick, mut paused, mut slow) = (
        house.browser().await,
        subscriber(&house, everything.clone()).await,
        subscriber(&house, everything.clone()).await,
    );
    let reading_quickly = async {
        quick.subscribe_with(everything.clone()).await;
        quick.deliveries(STORED).await
    };
    let after_a_pause = async {
        // Longer than what makes a stall, shorter than the write time-out.
        sleep(Duration::from_secs(2)).await;
        let mut frames = Vec::new();
        while frames.len() < STORED {
            frames.push(paused.next().await);
        }
        frames
    };
    let slowly = async {
        let mut frames = Vec::new();
        while frames.len() < STORED {
            if frames.len() % 25 == 0 {
                sleep(Duration::from_millis(10)).await;
            }
            frames.push(slow.next().await);
        }
        frames
    };
    let read = tokio::join!(reading_quickly, after_a_pause, slowly);
    for (how, frames) in [("at once", read.0), ("after a pause", read.1), ("slowly", read.2)] {
        let mut numbers: Vec<_> = frames.iter().map(number).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..STORED), "whole, read {how}");
    }
    assert_eq!(house.metric(DROPPED).await, 0.0);
}

#[tokio::test]
async fn a_link_that_is_not_read_for_a_slow_browser_is_not_taken_for_dead() {
    const SENT: usize = 100;
    let mosquitto = Mosquitto::start().await;
    let house =
        Gateway::start(&mosquitto.url(), "[broker]\nkeep_alive = 2\nconnect_timeout = 2\n[delivery]\nmax_queued = 10")
            .await;
    let mut slow = subscriber(&house, json!({"topic": "sure", "qos": 1})).await;
    let mut source = house.browser().await;
    for number in 0..SENT {
        publish(&mut source, "sure", numbered(number, 100_000), 1).await;
    }
    eventually("the queue is full", async || house.metric(WAITING).await >= 10.0).await;
    // Mosquitto gives a client up after one and a half keep alives; the gateway a silent broker after one and its patience.
    sleep(Duration::from_secs(5)).await;
    for expected in 0..SENT {
        assert_eq!(number(&slow.next().await), expected);
    }
    assert_eq!(house.metric("tidegate_broker_reconnects_total").await, 0.0);
    assert_eq!(house.metric(DROPPED).await, 0.0);
}

#[tokio::test]
async fn sessions_that_read_nothing_share_what_memory_there_is_and_delay_nobody() {
    const SLOW: usize = 60;
    const SENT: usize = 500;
    const TOTAL: f64 = 16.0 * 1024.0 * 1024.0;
    /// What a session may hold beyond: a batch that its socket is writing, in frames and in the WebSocket's buffer, and two reads of
    /// its link.
    const MARGIN: f64 = 256.0 * 1024.0;
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), &format!("[delivery]\nmax_total_bytes = {TOTAL}")).await;
    assert_eq!(house.metric("tidegate_outbox_limit_bytes").await, TOTAL);
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(subscriber(&house, json!({"topic": "flood"})).await);
    }
    let (mut source, mut quick) = (house.browser().await, house.browser().await);
    quick.subscribe("flood").await;
    publish(&mut source, "flood", numbered(0, 10_000), 0).await;
    assert_eq!(number(&quick.next().await), 0);
    let before = house.resident() as f64;
    for sent in 1..SENT {
        publish(&mut source, "flood", numbered(sent, 10_000), 0).await;
        assert_eq!(number(&quick.next().await), sent, "whoever reads gets everything");
    }
    eventually("what does not fit is dropped", async || house.metric(DROPPED).await > 0.0).await;
    let used = house.metric("tidegate_outbox_bytes").await;
    assert!(used > TOTAL / 2.0 && used < TOTAL + MARGIN * SLOW as f64, "{used} bytes are charged");
    let grown = house.peak() - before;
    // No allocator is without loss.
    let allowed = TOTAL * 1.125 + MARGIN * SLOW as f64;
    assert!(grown < allowed, "the process has grown by {grown} bytes, not {allowed}");
    drop(slow);
    eventually("all is given back", async || house.metric("tidegate_outbox_bytes").await == 0.0).await;
}
