//! What a subscription brings, and what its options change.

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Browser, Device, Gateway, Mosquitto};

/// A browser that publishes numbers at QoS 1 until it is told to stop.
fn flood(mut browser: Browser, topic: &'static str, stop: CancellationToken) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut count = 0;
        while !stop.is_cancelled() {
            browser.publish(topic, &count.to_string(), 1).await;
            count += 1;
        }
        count
    })
}

#[tokio::test]
async fn stored_messages_come_as_retain_handling_says() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    Device::publish(mosquitto.port, &["-r", "-t", "attic/temp", "-m", "stored"]).await;
    let mut browser = house.browser().await;
    for (filter, handling, comes) in [
        ("attic/temp", 0, true),
        ("attic/temp", 0, true),
        ("attic/temp", 1, false),
        ("attic/+", 1, true),
        ("attic/+", 2, false),
        ("attic/#", 2, false),
        ("attic/#", 0, true),
    ] {
        browser.subscribe_with(json!({"topic": filter, "retainHandling": handling})).await;
        if comes {
            let frame = browser.expect("mqtt").await;
            assert_eq!((&frame["payload"], &frame["retain"]), (&json!("stored"), &json!(true)), "{filter} {handling}");
        }
        Device::publish(mosquitto.port, &["-t", "attic/temp", "-m", "live"]).await;
        let frame = browser.expect("mqtt").await;
        assert_eq!((&frame["payload"], &frame["retain"]), (&json!("live"), &json!(false)), "{filter} {handling}");
    }
}

#[tokio::test]
async fn retain_as_published_keeps_the_flag_of_live_messages() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    for (kept, expected) in [(false, false), (true, true)] {
        let mut browser = house.browser().await;
        browser.subscribe_with(json!({"topic": "attic/temp", "retainHandling": 2, "retainAsPublished": kept})).await;
        Device::publish(mosquitto.port, &["-r", "-t", "attic/temp", "-m", "21.5"]).await;
        assert_eq!(browser.expect("mqtt").await["retain"], expected);
        Device::publish(mosquitto.port, &["-t", "attic/temp", "-m", "22"]).await;
        assert_eq!(browser.expect("mqtt").await["retain"], false);
    }
}

#[tokio::test]
async fn with_no_local_a_session_does_not_hear_itself() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "chat", "noLocal": true, "qos": 1})).await;
    for qos in [0, 1, 2] {
        browser.publish("chat", "mine", qos).await;
    }
    Device::publish(mosquitto.port, &["-t", "chat", "-m", "yours"]).await;
    assert_eq!(browser.next_delivery().await.1, "yours");
}

#[tokio::test]
async fn a_shared_subscription_gives_each_message_to_one_of_its_members() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    Device::publish(mosquitto.port, &["-r", "-t", "jobs/stored", "-m", "stored"]).await;
    let (mut anna, mut ben) = (house.browser().await, house.browser().await);
    for browser in [&mut anna, &mut ben] {
        browser.subscribe("end").await;
        browser.subscribe_with(json!({"topic": "$share/crew/jobs/#", "qos": 1, "sid": 7})).await;
    }
    let mut boss = house.browser().await;
    for number in 0..20 {
        boss.publish("jobs/1", &number.to_string(), 1).await;
    }
    boss.publish("end", "end", 0).await;
    let mut all = Vec::new();
    for browser in [&mut anna, &mut ben] {
        loop {
            let frame = browser.expect("mqtt").await;
            if frame["topic"] == "end" {
                break;
            }
            assert_eq!((&frame["sids"], &frame["retain"]), (&json!([7]), &json!(false)));
            all.push(frame["payload"].as_str().expect("text").parse::<u32>().expect("a number"));
        }
        assert!(!all.is_empty() && all.len() < 21, "each member has a share: {all:?}");
    }
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..20));
}

#[tokio::test]
async fn a_shared_subscription_with_no_local_is_that_entrys_error() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    let shared = json!({"topic": "$share/crew/jobs", "noLocal": true});
    let answer = browser.ask(json!({"type": "subscribe", "topics": [shared, "news"], "msgid": 5})).await;
    assert_eq!((&answer["type"], &answer["msgid"]), (&json!("subscribed"), &json!(5)));
    assert_eq!(answer["topics"][0]["error"], "invalid_frame");
    assert_eq!(answer["topics"][1], json!({"topic": "news", "qos": 0}));
}

#[tokio::test]
async fn the_brokers_own_topics_come_to_those_who_name_them() {
    let mosquitto = Mosquitto::start_with("sys_interval 1").await;
    let house = Gateway::before(&mosquitto).await;
    let mut everything = house.browser().await;
    everything.subscribe("#").await;
    everything.subscribe("+/broker/version").await;
    let mut curious = house.browser().await;
    curious.subscribe("$SYS/#").await;
    let mut uptimes = 0;
    while uptimes < 3 {
        let frame = curious.expect("mqtt").await;
        assert!(frame["topic"].as_str().expect("text").starts_with("$SYS/broker/"), "{frame}");
        if frame["topic"] == "$SYS/broker/uptime" {
            uptimes += 1;
        }
    }
    Device::publish(mosquitto.port, &["-t", "plain", "-m", "1"]).await;
    assert_eq!(everything.next_delivery().await.0, "plain");
}

#[tokio::test]
async fn a_delivery_names_the_subscriptions_that_have_a_number() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    browser
        .subscribe_with(
            json!({"topics": ["plain", {"topic": "zero", "sid": 0}, {"topic": "minus", "sid": -9007199254740991i64}]}),
        )
        .await;
    for (topic, sids) in [("plain", Value::Null), ("zero", json!([0])), ("minus", json!([-9007199254740991i64]))] {
        Device::publish(mosquitto.port, &["-t", topic, "-m", "x"]).await;
        assert_eq!(browser.expect("mqtt").await["sids"], sids, "{topic}");
    }
}

#[tokio::test]
async fn overlapping_subscriptions_of_one_contract_share_a_frame() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    let topics = json!([
        {"topic": "a/#", "sid": 1},
        {"topic": "a/+", "sid": 2, "qos": 2},
        {"topic": "a/b", "qos": 1},
        {"topic": "+/b", "sid": 4, "qos": 1},
    ]);
    browser.subscribe_with(json!({"topics": topics})).await;
    let mut other = house.browser().await;
    for qos in [0, 1, 2] {
        other.publish("a/b", &format!("at {qos}"), qos).await;
    }
    for qos in [0, 1, 2] {
        let frame = browser.expect("mqtt").await;
        assert_eq!((&frame["payload"], &frame["qos"]), (&json!(format!("at {qos}")), &json!(qos)));
        let mut sids: Vec<_> = frame["sids"].as_array().expect("a list").iter().filter_map(Value::as_i64).collect();
        sids.sort_unstable();
        assert_eq!(sids, [1, 2, 4]);
    }
    other.publish("a/c/d", "deep", 2).await;
    let frame = browser.expect("mqtt").await;
    assert_eq!((&frame["payload"], &frame["qos"], &frame["sids"]), (&json!("deep"), &json!(0), &json!([1])));
}

#[tokio::test]
async fn each_distinct_contract_gets_a_frame_of_its_own() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    let topics = json!([
        {"topic": "a/b", "sid": 1, "qos": 1},
        {"topic": "a/+", "sid": 2, "qos": 1, "format": "json"},
        {"topic": "a/#", "sid": 3, "qos": 2, "ack": "manual"},
        {"topic": "#", "sid": 4, "qos": 0, "format": "json", "ack": "manual"},
    ]);
    browser.subscribe_with(json!({"topics": topics})).await;
    house.browser().await.publish("a/b", r#"{"t":1}"#, 2).await;
    let mut frames = browser.deliveries(4).await;
    frames.sort_by_key(|frame| frame["sids"][0].as_i64());
    let (text, value) = (json!(r#"{"t":1}"#), json!({"t": 1}));
    let seen: Vec<_> = frames.iter().map(|frame| (&frame["sids"][0], &frame["payload"], &frame["qos"])).collect();
    let all = [(1, &text, 1), (2, &value, 1), (3, &text, 2), (4, &value, 0)]
        .map(|(sid, payload, qos)| (json!(sid), payload, json!(qos)));
    assert_eq!(seen, all.each_ref().map(|(sid, payload, qos)| (sid, *payload, qos)));
    let mut msgids: Vec<_> = frames.iter().filter_map(|frame| frame["msgid"].as_str()).collect();
    assert_eq!(msgids.len(), 3, "none at qos 0");
    msgids.sort_unstable();
    msgids.dedup();
    assert_eq!(msgids.len(), 3, "{frames:?}");
}

#[tokio::test]
async fn subscribing_again_replaces_the_options_and_brings_stored_messages_again() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    Device::publish(mosquitto.port, &["-r", "-q", "1", "-t", "attic/temp", "-m", "21.5"]).await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "attic/temp", "sid": 1})).await;
    let first = browser.expect("mqtt").await;
    assert_eq!((&first["sids"], &first["qos"], &first["payload"]), (&json!([1]), &json!(0), &json!("21.5")));
    browser.subscribe_with(json!({"topic": "attic/temp", "sid": 2, "qos": 1, "format": "json"})).await;
    let again = browser.expect("mqtt").await;
    assert_eq!((&again["sids"], &again["qos"], &again["payload"]), (&json!([2]), &json!(1), &json!(21.5)));
    assert_eq!(again["retain"], true);
    Device::publish(mosquitto.port, &["-q", "1", "-t", "attic/temp", "-m", "22"]).await;
    let live = browser.expect("mqtt").await;
    assert_eq!((&live["sids"], &live["payload"], &live["retain"]), (&json!([2]), &json!(22), &json!(false)));
    Device::publish(mosquitto.port, &["-t", "attic/temp", "-m", "end"]).await;
    assert_eq!(browser.expect("mqtt").await["payload"], "end");
}

#[tokio::test]
async fn an_invalid_filter_is_its_entrys_error_and_the_others_are_served() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    let topics = ["a/#/b", "good", "", "a+", "$share/x", "$share/a+/b", "also/+", "nul\0"];
    let answer = browser.ask(json!({"type": "subscribe", "topics": topics})).await;
    for (index, topic) in topics.iter().enumerate() {
        let entry = &answer["topics"][index];
        assert_eq!(entry["topic"], *topic);
        match *topic {
            "good" | "also/+" => assert_eq!(entry, &json!({"topic": topic, "qos": 0})),
            _ => {
                assert_eq!(entry["error"], "invalid_topic", "{entry}");
                assert!(entry["message"].as_str().expect("a sentence").ends_with('.'), "{entry}");
            }
        }
    }
    for topic in ["good", "also/good"] {
        Device::publish(mosquitto.port, &["-t", topic, "-m", "x"]).await;
        assert_eq!(browser.next_delivery().await.0, topic);
    }
    let answer = browser.ask(json!({"type": "unsubscribe", "topics": ["a/#/b", "good"]})).await;
    assert_eq!(answer["topics"][0]["error"], "invalid_topic");
    assert_eq!(answer["topics"][1], json!({"topic": "good"}));
}

#[tokio::test]
async fn unsubscribing_what_is_not_there_succeeds() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    let answer =
        browser.ask(json!({"type": "unsubscribe", "topics": ["never/#", "$share/crew/never"], "msgid": "x"})).await;
    assert_eq!(
        answer,
        json!({"type": "unsubscribed", "topics": [{"topic": "never/#"}, {"topic": "$share/crew/never"}], "msgid": "x"})
    );
}

#[tokio::test]
async fn after_unsubscribed_none_follows() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\nreceive_maximum = 10").await;
    let stop = CancellationToken::new();
    let mut floods = Vec::new();
    for _ in 0..3 {
        floods.push(flood(house.browser().await, "flood", stop.clone()));
    }
    let mut browser = house.browser().await;
    for ack in ["auto", "manual", "auto"] {
        browser.subscribe_with(json!({"topic": "flood", "qos": 1, "ack": ack})).await;
        let mut taken = browser.deliveries(10).await;
        browser.send(json!({"type": "unsubscribe", "topic": "flood"})).await;
        loop {
            let frame = browser.next().await;
            if frame["type"] == "unsubscribed" {
                break;
            }
            taken.push(frame);
        }
        // What came now would come before the answer to this.
        browser.publish("nobody", "hears", 1).await;
        let msgids: Vec<_> = taken.iter().map(|frame| &frame["msgid"]).collect();
        browser.send(json!({"type": "ack", "msgids": msgids})).await;
    }
    stop.cancel();
    for flood in floods {
        assert!(flood.await.expect("it published") > 0);
    }
    browser.subscribe_with(json!({"topic": "calm", "qos": 1})).await;
    let mut device = house.browser().await;
    for number in 0..30 {
        device.publish("calm", &number.to_string(), 1).await;
    }
    assert_eq!(browser.payloads(30).await, (0..30).map(|number| json!(number.to_string())).collect::<Vec<_>>());
}

#[tokio::test]
async fn subscribed_precedes_every_delivery_of_its_subscriptions() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut keeper = house.browser().await;
    for number in 0..100 {
        let frame = json!({"type": "publish", "topic": format!("stored/{number}"), "payload": number, "retain": true, "qos": 1, "msgid": number});
        assert_eq!(keeper.ask(frame).await["type"], "ack");
    }
    let stop = CancellationToken::new();
    let flood = flood(house.browser().await, "stored/live", stop.clone());
    let mut browser = house.browser().await;
    for _ in 0..5 {
        let topics = json!(["stored/+", {"topic": "stored/#", "qos": 1, "format": "json"}]);
        browser.send(json!({"type": "subscribe", "topics": topics})).await;
        browser.expect("subscribed").await;
        let mut stored = 0;
        while stored < 200 {
            if browser.expect("mqtt").await["retain"] == true {
                stored += 1;
            }
        }
        browser.send(json!({"type": "unsubscribe", "topics": ["stored/+", "stored/#"]})).await;
        while browser.next().await["type"] != "unsubscribed" {}
    }
    stop.cancel();
    flood.await.expect("it published");
}

#[tokio::test]
async fn more_stored_messages_than_may_be_held_come_all_the_same() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[delivery]\nmax_queued = 10").await;
    let mut keeper = house.browser().await;
    for number in 0..200 {
        let topic = format!("stored/{number}");
        let frame =
            json!({"type": "publish", "topic": topic, "payload": number, "retain": true, "qos": 1, "msgid": number});
        assert_eq!(keeper.ask(frame).await["type"], "ack");
    }
    let mut browser = house.browser().await;
    browser.send(json!({"type": "subscribe", "topics": [{"topic": "stored/+", "qos": 1}, "stored/#"]})).await;
    let (mut stored, mut answered) = (0, false);
    while stored < 400 || !answered {
        let frame = browser.next().await;
        answered |= frame["type"] == "subscribed";
        if frame["retain"] == true {
            stored += 1;
        }
    }
}
