//! Delivery contracts: how often messages come, what of them, and how many in one frame.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::support::raw::Raw;
use crate::support::{Browser, Device, Gateway, Mosquitto, eventually};

const CONFLATED: &str = "tidegate_deliveries_conflated_total";
const UNCHANGED: &str = "tidegate_deliveries_unchanged_total";
const SAVED: &str = "tidegate_delta_saved_bytes_total";

/// A house before a Mosquitto of its own, and a browser that publishes.
async fn house(configuration: &str) -> (Mosquitto, Gateway, Browser) {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), configuration).await;
    let source = house.browser().await;
    (mosquitto, house, source)
}

/// Publishes, and waits until the broker's connection has it, or the broker at QoS 1.
async fn publish(from: &mut Browser, topic: &str, payload: Value, qos: u8) {
    static MSGID: AtomicU32 = AtomicU32::new(0);
    let msgid = MSGID.fetch_add(1, Ordering::Relaxed);
    from.send(json!({"type": "publish", "topic": topic, "payload": payload, "qos": qos, "msgid": msgid})).await;
    from.expect("ack").await;
}

/// Publishes the numbers from 0 on for so long, some hundred a second, and gives back how many.
async fn stream(from: &mut Browser, topics: &[&str], time: Duration, qos: u8) -> usize {
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < time {
        for topic in topics {
            publish_numbered(from, topic, sent, qos).await;
        }
        sent += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    sent
}

async fn publish_numbered(from: &mut Browser, topic: &str, number: usize, qos: u8) {
    let msgid = format!("{topic} {number}");
    from.send(json!({"type": "publish", "topic": topic, "payload": number, "qos": qos, "msgid": msgid})).await;
    from.expect("ack").await;
}

fn number(frame: &Value) -> usize {
    let payload = frame["payload"].as_str().unwrap_or_else(|| panic!("no delivery: {frame}"));
    payload.parse().expect("a number")
}

/// Reads deliveries until each of the topics has brought its last number; gives them back, each with its moment.
async fn until_last(browser: &mut Browser, topics: &[&str], last: usize) -> Vec<(Instant, Value)> {
    let mut open: Vec<_> = topics.to_vec();
    let mut frames = Vec::new();
    while !open.is_empty() {
        let frame = browser.expect("mqtt").await;
        if number(&frame) == last {
            open.retain(|topic| frame["topic"] != *topic);
        }
        frames.push((Instant::now(), frame));
    }
    frames
}

/// A merge patch carried out as RFC 7396 section 2 says.
fn patched(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut target = if let Value::Object(target) = target { target } else { Map::new() };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let before = target.remove(name).unwrap_or(Value::Null);
            target.insert(name.clone(), patched(before, value));
        }
    }
    Value::Object(target)
}

/// The value that a client has after a delivery, of what it had before.
fn value_after(before: &Value, frame: &Value) -> Value {
    match frame.get("patch") {
        Some(patch) => patched(before.clone(), patch),
        None if frame["encoding"] == "json" => frame["payload"].clone(),
        None => serde_json::from_str(frame["payload"].as_str().expect("text")).expect("JSON"),
    }
}

#[tokio::test]
async fn of_each_topic_come_at_most_so_many_a_second_and_the_last_one_arrives() {
    const TOPICS: [&str; 3] = ["room/1", "room/2", "room/3"];
    let (_mosquitto, house, mut source) = house("").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "room/+", "maxRate": 4})).await;
    let reading = tokio::spawn(async move {
        let mut frames = Vec::new();
        while let Ok(frame) = tokio::time::timeout(Duration::from_secs(2), browser.expect("mqtt")).await {
            frames.push((Instant::now(), frame));
        }
        frames
    });
    let sent = stream(&mut source, &TOPICS, Duration::from_secs(2), 0).await;
    let frames = reading.await.expect("it ended");
    for topic in TOPICS {
        let of_topic: Vec<_> = frames.iter().filter(|(_, frame)| frame["topic"] == topic).collect();
        assert_eq!(number(&of_topic[0].1), 0, "the first comes at once");
        assert_eq!(number(&of_topic[of_topic.len() - 1].1), sent - 1, "the last one arrives though nothing follows");
        assert!((4..=10).contains(&of_topic.len()), "{} in about 2.25 seconds", of_topic.len());
        let seen: u64 = of_topic.iter().map(|(_, frame)| frame["skipped"].as_u64().unwrap_or(0) + 1).sum();
        assert_eq!(seen, sent as u64, "what was skipped is told");
        for pair in of_topic.windows(5) {
            let time = pair[4].0 - pair[0].0;
            assert!(time > Duration::from_millis(700), "five within {time:?}");
        }
    }
    assert_eq!(house.metric(CONFLATED).await, (3 * sent - frames.len()) as f64);
}

#[tokio::test]
async fn what_was_conflated_away_is_confirmed_and_fills_no_window() {
    const SENT: usize = 60;
    let (_mosquitto, house, mut source) = house("[broker]\nreceive_maximum = 3").await;
    let auth = json!({"clientId": "anna", "clean": false});
    let (mut browser, _) = house.open(auth.clone()).await;
    browser.subscribe_with(json!({"topic": "level", "qos": 2, "maxRate": 2})).await;
    for sent in 0..SENT {
        publish_numbered(&mut source, "level", sent, 1 + (sent % 2) as u8).await;
    }
    let frames = until_last(&mut browser, &["level"], SENT - 1).await;
    assert!(frames.len() < SENT / 2, "{} came", frames.len());
    assert!(frames.iter().all(|(_, frame)| frame["msgid"].is_string()));
    browser.leave().await;
    let (mut browser, welcome) = house.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    publish(&mut source, "level", json!("new"), 1).await;
    assert_eq!(browser.next_delivery().await.1, "new", "nothing comes again");
}

#[tokio::test]
async fn a_slow_browser_finds_the_newest_of_each_topic() {
    let (_mosquitto, house, mut source) = house("[delivery]\nmax_queued_bytes = 100_000_000").await;
    let mut slow = Raw::connect(&house.address).await;
    let topics = json!([{"topic": "level", "maxRate": 1000}, {"topic": "flood"}]);
    slow.text(&json!({"type": "subscribe", "topics": topics}).to_string()).await;
    assert_eq!(slow.next().await["type"], "welcome");
    assert_eq!(slow.next().await["type"], "subscribed");
    let large = "x".repeat(100_000);
    let mut floods = 0;
    // What waits for the session alone is written in a moment.
    let is_stuck = async || {
        let waits = async || house.metric("tidegate_outbox_deliveries").await >= 10.0;
        waits().await && {
            sleep(Duration::from_millis(300)).await;
            waits().await
        }
    };
    while !is_stuck().await {
        publish(&mut source, "flood", json!(large.clone()), 0).await;
        floods += 1;
        assert!(floods < 500, "it reads nothing");
    }
    for sent in 0..200 {
        publish_numbered(&mut source, "level", sent, 0).await;
    }
    eventually("one waits for all", async || house.metric(CONFLATED).await == 199.0).await;
    let mut levels = Vec::new();
    while levels.is_empty() {
        let frame = slow.next().await;
        if frame["topic"] == "level" {
            levels.push((number(&frame), frame["skipped"].clone()));
        }
    }
    assert_eq!(levels, [(199, json!(199))]);
}

#[tokio::test]
async fn a_delta_comes_whole_then_as_what_has_changed_and_always_gives_what_was_published() {
    for format in ["text", "json"] {
        let (_mosquitto, house, mut source) = house("").await;
        let mut browser = house.browser().await;
        browser.subscribe_with(json!({"topic": "pump/+", "format": format, "delta": true})).await;
        let long = "a place that is far away and has a long name";
        let mut saved = 0;
        let mut values: HashMap<&str, Value> = HashMap::new();
        for (topic, value, form) in [
            ("pump/1", json!({"on": true, "rpm": 900, "place": long}), "payload"),
            ("pump/1", json!({"on": true, "rpm": 910, "place": long}), "patch"),
            ("pump/2", json!({"on": true, "rpm": 910, "place": long}), "payload"),
            ("pump/1", json!({"on": true, "rpm": 910, "place": long}), "nothing"),
            ("pump/1", json!({"rpm": 910.5, "place": long, "limits": {"low": 1, "high": [1, null]}}), "patch"),
            ("pump/1", json!({"rpm": 910.5, "place": long, "limits": {"high": [2]}}), "patch"),
            ("pump/1", json!({"rpm": null, "place": long}), "payload"),
            ("pump/1", json!({"rpm": 3, "place": long}), "patch"),
            ("pump/1", json!([1, 2]), "payload"),
            ("pump/1", json!([1, 2]), "nothing"),
            ("pump/2", json!({"on": false, "rpm": 910, "place": long}), "patch"),
        ] {
            publish(&mut source, topic, value.clone(), 0).await;
            if form == "nothing" {
                saved += value.to_string().len();
                continue;
            }
            let frame = browser.expect("mqtt").await;
            assert!(frame.get(form).is_some(), "{form} of {value}: {frame}");
            let before = values.get(topic).cloned().unwrap_or(Value::Null);
            assert_eq!(value_after(&before, &frame), value, "{frame}");
            if let Some(patch) = frame.get("patch") {
                saved += value.to_string().len() - patch.to_string().len();
                assert_eq!((frame.get("payload"), frame.get("encoding")), (None, None));
            }
            values.insert(topic, value);
        }
        assert_eq!(house.metric(UNCHANGED).await, 2.0);
        assert_eq!(house.metric(SAVED).await, saved as f64);
    }
}

#[tokio::test]
async fn a_delta_comes_whole_again_after_a_subscribe() {
    let (_mosquitto, house, mut source) = house("").await;
    let mut browser = house.browser().await;
    let subscribe = json!({"topic": "pump/#", "delta": true, "format": "json"});
    browser.subscribe_with(subscribe.clone()).await;
    let value = |rpm| json!({"rpm": rpm, "place": "a place that is far away"});
    let mut forms = Vec::new();
    for (rpm, again) in [(1, false), (2, false), (2, true), (3, false)] {
        if again {
            browser.subscribe_with(subscribe.clone()).await;
        }
        publish(&mut source, "pump/1", value(rpm), 0).await;
        forms.push(browser.expect("mqtt").await.get("patch").cloned());
    }
    assert_eq!(forms, [None, Some(json!({"rpm": 2})), None, Some(json!({"rpm": 3}))]);
    browser.send(json!({"type": "unsubscribe", "topic": "pump/#"})).await;
    browser.expect("unsubscribed").await;
    browser.subscribe_with(subscribe).await;
    publish(&mut source, "pump/1", value(3), 0).await;
    assert_eq!(browser.expect("mqtt").await["payload"], value(3));
}

#[tokio::test]
async fn a_delta_comes_whole_again_after_a_drop_and_gives_what_was_published() {
    let (_mosquitto, house, mut source) = house("[delivery]\nmax_queued = 5").await;
    let mut slow = Raw::connect(&house.address).await;
    slow.text(&json!({"type": "subscribe", "topic": "pump", "delta": true, "format": "json"}).to_string()).await;
    assert_eq!(slow.next().await["type"], "welcome");
    assert_eq!(slow.next().await["type"], "subscribed");
    let long = "x".repeat(50_000);
    let value = |number: usize| json!({"number": number, "ballast": [number, long.clone()]});
    let mut sent = 0;
    while house.metric("tidegate_deliveries_dropped_total").await == 0.0 {
        publish(&mut source, "pump", value(sent), 0).await;
        sent += 1;
        assert!(sent < 1000, "it reads nothing");
    }
    let (mut had, mut dropped, mut is_whole_next) = (Value::Null, false, true);
    loop {
        let frame = slow.next().await;
        if frame["type"] == "error" {
            assert_eq!(frame["code"], "dropped");
            (dropped, is_whole_next) = (true, true);
            continue;
        }
        if is_whole_next {
            assert!(frame.get("payload").is_some(), "after a drop all comes");
            is_whole_next = false;
        }
        had = value_after(&had, &frame);
        let number = had["number"].as_u64().expect("a number") as usize;
        assert_eq!(had, value(number));
        if number == sent - 1 {
            break;
        }
    }
    assert!(dropped);
    publish(&mut source, "pump", json!({"number": 7, "ballast": had["ballast"]}), 0).await;
    assert_eq!(slow.next().await["patch"], json!({"number": 7}));
}

#[tokio::test]
async fn a_delta_that_comes_again_comes_whole() {
    let (_mosquitto, house, mut source) = house("").await;
    let auth = json!({"clientId": "anna", "clean": false});
    let (mut browser, _) = house.open(auth.clone()).await;
    browser.subscribe_with(json!({"topic": "pump", "qos": 1, "ack": "manual"})).await;
    let value = |rpm| json!({"rpm": rpm, "place": "a place that is far away"});
    for rpm in 0..3 {
        publish(&mut source, "pump", value(rpm), 1).await;
    }
    let first = browser.deliveries(3).await;
    browser.vanish();
    let mut with_delta = auth;
    with_delta["subscriptions"] = json!([{"topic": "pump", "qos": 1, "delta": true, "format": "json"}]);
    let (mut browser, _) = house.open(with_delta).await;
    for (rpm, before) in first.iter().enumerate() {
        let frame = browser.expect("mqtt").await;
        assert_eq!((&frame["dup"], &frame["msgid"]), (&json!(true), &before["msgid"]));
        assert_eq!(frame["payload"], value(rpm));
    }
    publish(&mut source, "pump", value(9), 1).await;
    assert_eq!(browser.expect("mqtt").await["patch"], json!({"rpm": 9}));
    publish(&mut source, "pump", value(9), 1).await;
    publish(&mut source, "pump", value(10), 1).await;
    assert_eq!(browser.expect("mqtt").await["patch"], json!({"rpm": 10}));
    browser.leave().await;
    let (mut browser, welcome) = house.open(json!({"clientId": "anna", "clean": false})).await;
    assert_eq!(welcome["sessionPresent"], true);
    publish(&mut source, "pump", json!("new"), 1).await;
    assert_eq!(browser.next_delivery().await.1, "new", "what was left out was confirmed");
}

#[tokio::test]
async fn a_batch_comes_when_it_is_full_or_its_time_is_up() {
    let (_mosquitto, house, mut source) = house("").await;
    let mut browser = house.browser().await;
    browser
        .subscribe_with(json!({"topic": "a/#", "sid": 4, "qos": 1, "batch": {"maxMessages": 3, "maxDelay": 400}}))
        .await;
    browser
        .subscribe_with(json!({"topic": "b", "batch": {"maxMessages": 3, "maxDelay": 60_000}, "priority": "high"}))
        .await;
    let began = Instant::now();
    for sent in 0..7 {
        publish_numbered(&mut source, &format!("a/{sent}"), sent, 1).await;
    }
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let batch = browser.expect("batch").await;
        let entries = batch["data"].as_array().expect("a list");
        assert!(entries.iter().all(|entry| entry["type"] == "mqtt" && entry["sids"] == json!([4])));
        assert!(entries.iter().all(|entry| entry["msgid"].is_string() && entry["qos"] == 1));
        numbers.push(entries.iter().map(number).collect::<Vec<_>>());
    }
    assert_eq!(numbers, [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    assert!(began.elapsed() >= Duration::from_millis(400), "the last one has waited");
    publish_numbered(&mut source, "b", 1, 0).await;
    let batch = browser.expect("batch").await;
    assert_eq!(batch["data"].as_array().map(Vec::len), Some(1), "high priority waits for nobody");
}

#[tokio::test]
async fn batches_larger_than_the_queue_hold_nothing_up_and_large_ones_are_split() {
    let (_mosquitto, house, mut source) = house("[delivery]\nmax_queued = 20").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "a", "batch": {"maxMessages": 10_000, "maxDelay": 3_600_000}})).await;
    let payload = |number: usize| format!("{number:05}{}", ".".repeat(10_000));
    for sent in 0..100 {
        publish(&mut source, "a", json!(payload(sent)), 0).await;
    }
    let mut seen = 0;
    while seen < 80 {
        let batch = browser.expect("batch").await;
        assert!(batch.to_string().len() < 80_000);
        for entry in batch["data"].as_array().expect("a list") {
            assert_eq!(entry["payload"], payload(seen));
            seen += 1;
        }
    }
}

#[tokio::test]
async fn equal_contracts_share_a_frame_and_others_get_their_own() {
    let (mosquitto, house, _) = house("").await;
    let mut browser = house.browser().await;
    let batch = json!({"maxMessages": 1, "maxDelay": 0});
    for (sid, topic, options) in [
        (1, "room/1", json!({"maxRate": 5})),
        (2, "room/+", json!({"maxRate": 5.0})),
        (3, "room/#", json!({"maxRate": 6})),
        (4, "#", json!({})),
        (5, "+/1", json!({"delta": true})),
        (6, "+/+", json!({"batch": batch.clone()})),
        (7, "+/#", json!({"batch": batch})),
    ] {
        let mut frame = options;
        (frame["topic"], frame["sid"], frame["qos"]) = (json!(topic), json!(sid), json!(1));
        browser.subscribe_with(frame).await;
    }
    for round in 0..2 {
        Device::publish(mosquitto.port, &["-q", "1", "-t", "room/1", "-m", &round.to_string()]).await;
        let (mut sids, mut msgids) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let mut frame = browser.next().await;
            if frame["type"] == "batch" {
                frame = frame["data"][0].clone();
            }
            assert_eq!(frame["payload"], round.to_string());
            let mut own: Vec<_> = frame["sids"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
            own.sort_unstable();
            sids.push(own);
            msgids.push(frame["msgid"].as_str().expect("a string").to_owned());
        }
        sids.sort_unstable();
        assert_eq!(sids, [vec![1, 2], vec![3], vec![4], vec![5], vec![6, 7]]);
        msgids.sort_unstable();
        msgids.dedup();
        assert_eq!(msgids.len(), 5, "each frame has a msgid of its own");
    }
}

#[tokio::test]
async fn subscribing_again_changes_the_contract() {
    let (_mosquitto, house, mut source) = house("").await;
    let mut browser = house.browser().await;
    browser
        .subscribe_with(json!({"topic": "level", "maxRate": 0.001, "batch": {"maxMessages": 9, "maxDelay": 0}}))
        .await;
    publish_numbered(&mut source, "level", 0, 0).await;
    assert_eq!(number(&browser.expect("batch").await["data"][0]), 0);
    publish_numbered(&mut source, "level", 1, 0).await;
    browser.subscribe_with(json!({"topic": "level"})).await;
    publish_numbered(&mut source, "level", 2, 0).await;
    publish_numbered(&mut source, "level", 3, 0).await;
    for expected in [2, 3] {
        let frame = browser.expect("mqtt").await;
        assert_eq!((number(&frame), frame.get("skipped")), (expected, None), "nothing older comes behind");
    }
    browser.subscribe_with(json!({"topic": "level", "maxRate": 2})).await;
    for sent in 4..50 {
        publish_numbered(&mut source, "level", sent, 0).await;
    }
    let frames = until_last(&mut browser, &["level"], 49).await;
    assert!(frames.len() < 25, "{} came", frames.len());
}

#[tokio::test]
async fn after_unsubscribed_nothing_waits_for_its_time() {
    let (_mosquitto, house, mut source) = house("[broker]\nreceive_maximum = 2").await;
    let mut browser = house.browser().await;
    let subscribe = json!({"topics": [
        {"topic": "slow", "maxRate": 0.5, "qos": 1},
        {"topic": "many", "batch": {"maxMessages": 100, "maxDelay": 1000}, "qos": 1},
    ]});
    browser.subscribe_with(subscribe).await;
    for sent in 0..2 {
        publish_numbered(&mut source, "slow", sent, 1).await;
        publish_numbered(&mut source, "many", sent, 1).await;
    }
    assert_eq!(number(&browser.expect("mqtt").await), 0);
    browser.send(json!({"type": "unsubscribe", "topics": ["slow", "many"]})).await;
    browser.expect("unsubscribed").await;
    browser.hears_nothing_for(Duration::from_millis(2500)).await;
    browser.subscribe_with(json!({"topic": "new", "qos": 1})).await;
    for sent in 0..5 {
        publish_numbered(&mut source, "new", sent, 1).await;
        assert_eq!(number(&browser.expect("mqtt").await), sent, "what left was confirmed");
    }
}

#[tokio::test]
async fn past_the_most_topics_deliveries_come_unconflated_and_in_full() {
    let (_mosquitto, house, mut source) = house("[delivery]\nmax_topics = 2").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "rate/+", "maxRate": 0.01})).await;
    browser.subscribe_with(json!({"topic": "delta/+", "delta": true})).await;
    browser.subscribe("end").await;
    for kind in ["rate", "delta"] {
        for _ in 0..3 {
            for topic in 0..4 {
                publish(&mut source, &format!("{kind}/{topic}"), json!("same"), 0).await;
            }
        }
        publish(&mut source, "end", json!("end"), 0).await;
        let mut count: HashMap<String, usize> = HashMap::new();
        loop {
            let (topic, payload) = browser.next_delivery().await;
            if payload == "end" {
                break;
            }
            *count.entry(topic).or_default() += 1;
        }
        let mut counts: Vec<_> = count.into_values().collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 1, 3, 3], "{kind}");
    }
}

#[tokio::test]
async fn what_waits_for_its_time_when_a_drain_begins_is_written() {
    let (_mosquitto, house, mut source) = house("").await;
    let mut browser = house.browser().await;
    let topics = json!([{"topic": "slow", "maxRate": 0.001}, {"topic": "many", "batch": {"maxMessages": 99, "maxDelay": 600_000}}]);
    browser.subscribe_with(json!({"topics": topics})).await;
    publish_numbered(&mut source, "slow", 0, 0).await;
    assert_eq!(number(&browser.expect("mqtt").await), 0);
    for sent in 1..3 {
        publish_numbered(&mut source, "slow", sent, 0).await;
    }
    publish_numbered(&mut source, "many", 7, 0).await;
    eventually("they wait", async || house.metric(CONFLATED).await == 1.0).await;
    house.terminate().await;
    let (mut slow, mut many) = (None, None);
    loop {
        let frame = browser.next().await;
        match frame["type"].as_str() {
            Some("mqtt") => slow = Some(number(&frame)),
            Some("batch") => many = Some(number(&frame["data"][0])),
            _ => break,
        }
    }
    assert_eq!((slow, many), (Some(2), Some(7)));
}

#[tokio::test]
async fn values_that_fill_the_queue_hold_nothing_up() {
    let (_mosquitto, house, mut source) = house("[delivery]\nmax_queued_bytes = 30_000").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "t/+", "qos": 1, "maxRate": 0.001})).await;
    for round in 0..3 {
        for topic in 0..20 {
            let payload = json!(format!("{round}{}", "x".repeat(5000)));
            publish(&mut source, &format!("t/{topic}"), payload, 1).await;
        }
    }
    browser.send(json!({"type": "subscribe", "topic": "other"})).await;
    let mut came = 0;
    while browser.next().await["type"] == "mqtt" {
        came += 1;
    }
    assert!((20..60).contains(&came), "{came}");
}

#[tokio::test]
async fn what_a_session_remembers_is_counted_and_given_back() {
    const BYTES: &str = "tidegate_outbox_bytes";
    let (_mosquitto, house, mut source) = house("").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "#", "delta": true, "maxRate": 0.001})).await;
    for topic in 0..20 {
        publish(&mut source, &format!("t/{topic}"), json!("x".repeat(10_000)), 0).await;
    }
    browser.deliveries(20).await;
    eventually("bases are counted", async || house.metric(BYTES).await > 200_000.0).await;
    drop(browser);
    eventually("all is given back", async || house.metric(BYTES).await == 0.0).await;
}
