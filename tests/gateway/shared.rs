//! Many sessions over few connections: what `broker.upstream = "shared"` keeps, and what it saves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Browser, Device, Gateway, Mosquitto, Proxy, eventually};

const SHARED: &str = "[broker]\nupstream = \"shared\"\nconnections = 1\n";

async fn house(mosquitto: &Mosquitto) -> Gateway {
    Gateway::start(&mosquitto.url(), SHARED).await
}

/// The numbers that come, until this one has.
async fn numbers_until(browser: &mut Browser, last: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let frame = browser.expect("mqtt").await;
        numbers.push(frame["payload"].as_str().and_then(|text| text.parse().ok()).expect("a number"));
    }
    numbers
}

/// Clients that the gateway is at the broker for its sessions.
async fn links(house: &Gateway) -> f64 {
    house.metric("tidegate_broker_links{state=\"up\"}").await
}

/// Publishes what is large or to be stored, and waits for the ack.
async fn publish(browser: &mut Browser, topic: &str, payload: &str, retain: bool) {
    let msgid: String = payload.chars().take(8).collect();
    let frame =
        json!({"type": "publish", "topic": topic, "payload": payload, "qos": 1, "retain": retain, "msgid": msgid});
    let answer = browser.ask(frame).await;
    assert_eq!(answer["type"], "ack", "{answer}");
}

#[tokio::test]
async fn many_sessions_share_one_connection_and_each_gets_every_message() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let mut browsers = Vec::new();
    for number in 0..50 {
        let mut browser = house.browser().await;
        browser.subscribe_with(json!({"topic": "attic/+", "qos": number % 3, "sid": number})).await;
        browsers.push(browser);
    }
    assert_eq!(links(&house).await, 1.0);
    assert_eq!(house.metric("tidegate_subscriptions").await, 50.0);
    let mut publisher = house.browser().await;
    for round in 0..20 {
        publisher.publish("attic/temp", &round.to_string(), round % 3).await;
    }
    for (number, browser) in browsers.iter_mut().enumerate() {
        // Those of one qos are in order.
        for round in 0..20_u8 {
            let frame = browser.expect("mqtt").await;
            let qos = (round % 3).min(number as u8 % 3);
            assert_eq!((&frame["payload"], &frame["qos"]), (&json!(round.to_string()), &json!(qos)), "{frame}");
            assert_eq!((&frame["sids"], frame.get("msgid").is_some()), (&json!([number]), qos > 0), "{frame}");
        }
    }
}

#[tokio::test]
async fn a_filter_is_left_when_its_last_reader_has_left_and_no_sooner() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let (mut anna, mut ben) = (house.browser().await, house.browser().await);
    for round in 0..30 {
        anna.subscribe("attic/#").await;
        ben.subscribe("attic/#").await;
        anna.ask(json!({"type": "unsubscribe", "topic": "attic/#"})).await;
        anna.publish("attic/temp", &round.to_string(), 1).await;
        assert_eq!(ben.next_delivery().await.1, round.to_string());
        // The other way round, with nothing awaited: the late goodbye of one must not cut off the other.
        anna.send(json!({"type": "subscribe", "topic": "attic/#", "msgid": "s"})).await;
        ben.ask(json!({"type": "unsubscribe", "topic": "attic/#"})).await;
        anna.expect("subscribed").await;
        ben.publish("attic/temp", &format!("again {round}"), 1).await;
        assert_eq!(anna.next_delivery().await.1, format!("again {round}"));
        anna.ask(json!({"type": "unsubscribe", "topic": "attic/#"})).await;
    }
    assert_eq!(house.metric("tidegate_subscriptions").await, 0.0);
    anna.publish("attic/temp", "nobody", 1).await;
    anna.hears_nothing_for(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn stored_messages_come_to_each_new_reader_and_to_nobody_else() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    for (topic, text) in [("attic/temp", "21"), ("attic/lamp", "on"), ("hall/lamp", "off")] {
        Device::publish(mosquitto.port, &["-r", "-q", "1", "-t", topic, "-m", text]).await;
    }
    let mut first = house.browser().await;
    first.subscribe_with(json!({"topic": "attic/#", "qos": 1})).await;
    let stored = |frame: &Value| (frame["payload"].clone(), frame["retain"].clone(), frame["qos"].clone());
    let mut seen: Vec<_> = first.deliveries(2).await.iter().map(stored).collect();
    seen.sort_by_key(|(payload, ..)| payload.to_string());
    assert_eq!(seen, [(json!("21"), json!(true), json!(1)), (json!("on"), json!(true), json!(1))]);
    // Overlapping filters, each with its own stored messages.
    let mut second = house.browser().await;
    second.subscribe_with(json!({"topics": [{"topic": "+/lamp", "sid": 1}, {"topic": "attic/lamp", "sid": 2}]})).await;
    let mut sids: Vec<_> = second
        .deliveries(3)
        .await
        .iter()
        .map(|frame| format!("{} {} {}", frame["payload"], frame["sids"], frame["qos"]))
        .collect();
    sids.sort();
    assert_eq!(sids, ["\"off\" [1] 0", "\"on\" [1] 0", "\"on\" [2] 0"]);
    first.hears_nothing_for(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn no_stored_message_comes_behind_a_newer_one() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let mut publisher = house.browser().await;
    publish(&mut publisher, "clock", "0", true).await;
    let ticking = tokio::spawn(async move {
        for tick in 1..=1500 {
            publish(&mut publisher, "clock", &tick.to_string(), true).await;
        }
    });
    let mut readers = Vec::new();
    while !ticking.is_finished() {
        let mut reader = house.browser().await;
        reader.subscribe("clock").await;
        readers.push(reader);
    }
    ticking.await.expect("it went on to the end");
    assert!(readers.len() > 5, "{} came while it ticked", readers.len());
    for mut reader in readers {
        let mut last = -1;
        while last < 1500 {
            let frame = reader.expect("mqtt").await;
            let tick: i64 = frame["payload"].as_str().and_then(|text| text.parse().ok()).expect("a number");
            assert!(tick > last || (frame["retain"] == false && tick == last), "{tick} came behind {last}");
            assert!(last == -1 || frame["retain"] == false, "{frame} came behind {last}");
            last = tick;
        }
    }
}

#[tokio::test]
async fn a_session_that_comes_to_need_a_client_of_its_own_misses_nothing_and_hears_nothing_twice() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let mut publisher = house.browser().await;
    let mut browsers = Vec::new();
    for _ in 0..6 {
        let mut browser = house.browser().await;
        browser.subscribe_with(json!({"topic": "count", "qos": 1})).await;
        browsers.push(browser);
    }
    let counting = tokio::spawn(async move {
        for number in 1..=2000 {
            publisher.publish("count", &number.to_string(), 1).await;
        }
    });
    let needs = [
        json!({"topic": "x", "ack": "manual"}),
        json!({"topic": "x", "noLocal": true}),
        json!({"topic": "$share/group/x"}),
    ];
    let mut reading = Vec::new();
    for (number, mut browser) in browsers.into_iter().enumerate() {
        if let Some(need) = needs.get(number % 6) {
            let mut frame = need.clone();
            (frame["type"], frame["msgid"]) = (json!("subscribe"), json!("moves"));
            browser.send(frame).await;
        }
        reading.push(tokio::spawn(async move {
            let (mut numbers, mut subscribed) = (Vec::new(), false);
            while numbers.last() != Some(&2000) {
                let frame = browser.next().await;
                match frame["type"].as_str() {
                    Some("subscribed") => subscribed = frame["topics"][0].get("error").is_none(),
                    _ => numbers.push(frame["payload"].as_str().and_then(|text| text.parse().ok()).expect("a number")),
                }
            }
            (numbers, subscribed, browser)
        }));
    }
    counting.await.expect("it went on to the end");
    let mut open = Vec::new();
    for (number, reading) in reading.into_iter().enumerate() {
        let (numbers, subscribed, mut browser) = reading.await.expect("it read to the end");
        assert_eq!(numbers, (1..=2000).collect::<Vec<u64>>(), "session {number}");
        assert_eq!(subscribed, number < 3);
        // It goes on as before: asks, publishes, is answered.
        browser.publish("x/other", "y", 1).await;
        browser.subscribe("y").await;
        // Without a msgid, as its ack and its delivery may come in either order.
        browser.send(json!({"type": "publish", "topic": "y", "payload": "heard", "qos": 1})).await;
        assert_eq!(browser.next_delivery().await, ("y".to_owned(), "heard".to_owned()));
        browser.ask(json!({"type": "unsubscribe", "topic": "y"})).await;
        open.push(browser);
    }
    assert_eq!(links(&house).await, 4.0, "one that is shared, and three");
}

/// Whenever it asks: before the move, in the midst of it, or behind it.
#[tokio::test]
async fn a_session_that_asks_on_while_it_moves_is_answered_and_does_not_hear_itself() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), SHARED).await;
    // Each step of a move takes as long as several frames.
    proxy.delay(Duration::from_millis(5));
    for session in 0..5 {
        let mut browser = house.browser().await;
        let asks = |topics: Value, msgid: u64| json!({"type": "subscribe", "topics": topics, "msgid": msgid});
        browser.send(asks(json!([{"topic": "x", "noLocal": true}]), 0)).await;
        for number in 1..=20 {
            browser.send(asks(json!([format!("other/{number}")]), number)).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for number in 0..=20 {
            assert_eq!(browser.expect("subscribed").await["msgid"], number, "session {session}");
            if number == 0 {
                browser.send(json!({"type": "publish", "topic": "x", "payload": "its own"})).await;
            }
        }
        Device::publish(mosquitto.port, &["-t", "x", "-m", "another's"]).await;
        assert_eq!(browser.next_delivery().await.1, "another's", "session {session}");
    }
}

#[tokio::test]
async fn what_needs_a_client_of_its_own_from_the_start_has_one() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let mut open = Vec::new();
    for (number, auth) in [
        json!({"clientId": "kept", "clean": false}),
        json!({"will": {"topic": "gone", "payload": "x"}}),
        json!({"subscriptions": [{"topic": "a", "ack": "manual"}]}),
    ]
    .into_iter()
    .enumerate()
    {
        open.push(house.open(auth).await);
        assert_eq!(links(&house).await, 1.0 + number as f64);
    }
    open.push(house.open(json!({"subscriptions": [{"topic": "a", "qos": 1}]})).await);
    assert_eq!(links(&house).await, 4.0, "and one for all who share");
}

#[tokio::test]
async fn a_manual_ack_holds_the_broker_back_also_after_a_move() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "orders", "qos": 1, "ack": "manual"})).await;
    let mut shop = house.browser().await;
    shop.publish("orders", "one", 1).await;
    let frame = browser.expect("mqtt").await;
    browser.send(json!({"type": "ack", "msgid": frame["msgid"]})).await;
    shop.publish("orders", "two", 1).await;
    assert_eq!(browser.next_delivery().await.1, "two");
}

#[tokio::test]
async fn an_outage_is_told_to_all_and_what_is_stored_comes_again() {
    let mut mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let mut browsers = Vec::new();
    for _ in 0..3 {
        let mut browser = house.browser().await;
        browser.subscribe("attic/#").await;
        browsers.push(browser);
    }
    mosquitto.kill().await;
    for browser in &mut browsers {
        assert_eq!(browser.expect("broker").await["status"], "down");
    }
    mosquitto.restart().await;
    Device::publish(mosquitto.port, &["-r", "-t", "attic/temp", "-m", "while away"]).await;
    for browser in &mut browsers {
        // What the first subscribe sought may be found only now, and is told without waiting.
        let (mut is_up, mut stored) = (false, 0);
        while !is_up || stored == 0 {
            let frame = browser.next().await;
            if frame["type"] == "broker" {
                assert_eq!((&frame["status"], &frame["sessionPresent"]), (&json!("up"), &json!(false)));
                is_up = true;
            } else {
                assert_eq!(frame["payload"], "while away");
                stored += 1;
            }
        }
    }
}

#[tokio::test]
async fn one_that_reads_nothing_costs_nobody_else_anything() {
    let mosquitto = Mosquitto::start().await;
    let configuration = format!("{SHARED}[delivery]\nmax_queued = 100\n");
    let house = Gateway::start(&mosquitto.url(), &configuration).await;
    let (mut fast, mut slow) = (house.browser().await, house.browser().await);
    fast.subscribe_with(json!({"topic": "count", "qos": 0})).await;
    slow.subscribe_with(json!({"topic": "count", "qos": 0})).await;
    let mut publisher = house.browser().await;
    let text = "x".repeat(50_000);
    for number in 1..=400 {
        publish(&mut publisher, "count", &format!("{number:03} {text}"), false).await;
        let frame = fast.expect("mqtt").await;
        assert_eq!(frame["payload"].as_str().map(|text| &text[..3]), Some(format!("{number:03}").as_str()));
    }
    eventually("it has taken nothing for a second", async || {
        house.metric("tidegate_deliveries_dropped_total").await > 0.0
    })
    .await;
    let mut dropped = 0;
    loop {
        let frame = slow.next().await;
        if frame["type"] == "error" {
            assert_eq!(frame["code"], "dropped");
            dropped += frame["count"].as_u64().expect("a count");
        } else if frame["payload"].as_str().is_some_and(|text| text.starts_with("400")) {
            break;
        }
    }
    eventually("all that was dropped is told", async || {
        house.metric("tidegate_deliveries_dropped_total").await >= dropped as f64
    })
    .await;
    assert!(dropped > 0);
}

#[tokio::test]
async fn one_whose_queue_is_full_of_what_can_not_be_dropped_is_closed() {
    let mosquitto = Mosquitto::start().await;
    let configuration = format!("{SHARED}[delivery]\nmax_queued = 50\n");
    let house = Gateway::start(&mosquitto.url(), &configuration).await;
    let (mut fast, mut slow) = (house.browser().await, house.browser().await);
    fast.subscribe_with(json!({"topic": "count", "qos": 1})).await;
    slow.subscribe_with(json!({"topic": "count", "qos": 1})).await;
    let mut publisher = house.browser().await;
    let text = "x".repeat(50_000);
    let mut number = 0;
    // From the close on it has two seconds to read what was sent before.
    while !house.log().contains("close=4008") {
        number += 1;
        assert!(number <= 300, "its queue is full long since");
        publish(&mut publisher, "count", &format!("{number:03} {text}"), false).await;
        fast.expect("mqtt").await;
    }
    assert_eq!(slow.closed().await, 4008);
    publisher.publish("count", "the last", 1).await;
    assert_eq!(fast.next_delivery().await.1, "the last");
}

#[tokio::test]
async fn of_two_sessions_of_one_client_identifier_the_newer_goes_on() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let (mut older, _) = house.open(json!({"clientId": "anna"})).await;
    older.subscribe("attic/#").await;
    let (mut newer, _) = house.open(json!({"clientId": "anna"})).await;
    assert_eq!(older.closed().await, 4009);
    newer.subscribe("attic/#").await;
    newer.send(json!({"type": "publish", "topic": "attic/temp", "payload": "21", "qos": 1})).await;
    assert_eq!(newer.next_delivery().await.1, "21");
}

#[tokio::test]
async fn readers_with_a_rate_follow_one_stream_and_each_gets_the_last_value_and_what_it_skipped() {
    const SENT: u64 = 400;
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    let mut publisher = house.browser().await;
    let mut leaving = Vec::new();
    for _ in 0..10 {
        let mut browser = house.browser().await;
        browser.subscribe_with(json!({"topic": "level/+", "maxRate": 2})).await;
        leaving.push(browser);
    }
    let mut readers = Vec::new();
    for number in 0..70_u64 {
        let mut browser = house.browser().await;
        // Whole batches of them, in two forms; and one among them that wants every message.
        let rate = [json!(4), json!(9), json!(4), json!(1000)][number as usize % 4].clone();
        let mut frame = json!({"topic": "level/+", "qos": number % 2, "maxRate": rate});
        if number == 35 {
            frame = json!({"topic": "level/+"});
        }
        browser.subscribe_with(frame).await;
        readers.push(tokio::spawn(async move {
            let mut next = [0, 0];
            let mut frames = 0;
            while next != [SENT, SENT] {
                let frame = browser.expect("mqtt").await;
                if frame["topic"] == "level/2" {
                    continue;
                }
                let which = usize::from(frame["topic"] == "level/1");
                let seen: u64 = frame["payload"].as_str().and_then(|text| text.parse().ok()).expect("a number");
                let skipped = frame["skipped"].as_u64().unwrap_or(0);
                assert_eq!(seen, next[which] + skipped, "reader {number}: {frame}");
                assert_eq!(frame["msgid"].is_string(), number % 2 == 1 && number != 35, "{frame}");
                next[which] = seen + 1;
                frames += 1;
            }
            // Who leaves changes nothing for the others.
            (number, frames)
        }));
    }
    let mut passing = house.browser().await;
    for sent in 0..SENT {
        for topic in ["level/0", "level/1"] {
            publisher.publish(topic, &sent.to_string(), 1).await;
        }
        if sent % 40 != 39 || sent == SENT - 1 {
            continue;
        }
        // While values wait, the last of the readers takes the place of one that leaves, and another comes behind it, or changes its rate.
        drop(leaving.pop());
        let is_new = sent % 80 == 39;
        let left = (70 + leaving.len() + usize::from(!is_new)) as f64;
        eventually("it has left", async || house.metric("tidegate_subscriptions").await == left).await;
        passing.send(json!({"type": "subscribe", "topic": "level/+", "maxRate": if is_new { 3 } else { 5 }})).await;
        while passing.next().await["type"] != "subscribed" {}
        if is_new {
            publisher.publish("level/2", &sent.to_string(), 1).await;
            assert_eq!(
                passing.next_delivery().await,
                ("level/2".to_owned(), sent.to_string()),
                "the next is its first"
            );
        } else {
            passing.send(json!({"type": "unsubscribe", "topic": "level/+"})).await;
            while passing.next().await["type"] != "unsubscribed" {}
        }
    }
    for reader in readers {
        let (number, frames) = reader.await.expect("it ended well");
        if number == 35 {
            assert_eq!(frames, 2 * SENT);
        } else if number % 4 != 3 {
            assert!(frames < SENT, "{frames} came to reader {number}");
        }
    }
}

#[tokio::test]
async fn thousands_who_subscribe_at_one_time_ask_the_broker_once_for_each_filter() {
    let mosquitto = Mosquitto::start().await;
    let house = house(&mosquitto).await;
    Device::publish(mosquitto.port, &["-r", "-t", "attic/temp", "-m", "21"]).await;
    let mut watch = Device::subscribe(mosquitto.port, &["-t", "$SYS/broker/subscriptions/count"]).await;
    watch.next().await;
    let opening = (0..300).map(|_| async {
        let mut browser = house.browser().await;
        browser.subscribe("attic/#").await;
        assert_eq!(browser.next_delivery().await.1, "21");
        browser
    });
    let browsers = futures_util::future::join_all(opening).await;
    assert_eq!(links(&house).await, 1.0);
    let mut publisher = house.browser().await;
    publisher.publish("attic/temp", "22", 0).await;
    for mut browser in browsers {
        assert_eq!(numbers_until(&mut browser, 22).await, [22]);
    }
}

#[tokio::test]
async fn while_the_broker_is_away_subscribes_and_unsubscribes_wait_for_it() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), &format!("{SHARED}request_timeout = 3\n")).await;
    let (mut one, mut other) = (house.browser().await, house.browser().await);
    one.subscribe("attic/#").await;
    mosquitto.stop().await;
    for browser in [&mut one, &mut other] {
        assert_eq!(browser.expect("broker").await["status"], "down");
    }
    // What the broker has granted to one is no answer to the other now.
    other.send(json!({"type": "subscribe", "topic": "attic/#", "msgid": "late"})).await;
    one.send(json!({"type": "unsubscribe", "topic": "attic/#", "msgid": "late"})).await;
    for browser in [&mut one, &mut other] {
        browser.hears_nothing_for(Duration::from_millis(300)).await;
    }
    for (browser, kind) in [(&mut one, "unsubscribed"), (&mut other, "subscribed")] {
        let answer = browser.expect(kind).await;
        assert_eq!((&answer["topics"][0]["error"], &answer["msgid"]), (&json!("timeout"), &json!("late")), "{answer}");
    }
    other.send(json!({"type": "subscribe", "topic": "attic/#", "msgid": "in time"})).await;
    one.send(json!({"type": "unsubscribe", "topic": "attic/#", "msgid": "in time"})).await;
    mosquitto.restart().await;
    for (browser, kind) in [(&mut one, "unsubscribed"), (&mut other, "subscribed")] {
        assert_eq!(browser.expect("broker").await["status"], "up");
        let answer = browser.expect(kind).await;
        assert_eq!((answer["topics"][0].get("error"), &answer["msgid"]), (None, &json!("in time")), "{answer}");
    }
    Device::publish(mosquitto.port, &["-t", "attic/temp", "-m", "21"]).await;
    assert_eq!(other.next_delivery().await, ("attic/temp".to_owned(), "21".to_owned()));
    one.hears_nothing_for(Duration::from_millis(100)).await;
}
