//! The broker goes away and comes back; the browser stays.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Browser, Device, Gateway, Kind, Mosquitto, Proxy, Way};

async fn is_down(browser: &mut Browser) {
    assert_eq!(browser.expect("broker").await, json!({"type": "broker", "status": "down"}));
}

async fn is_up(browser: &mut Browser, session_present: bool) {
    assert_eq!(
        browser.expect("broker").await,
        json!({"type": "broker", "status": "up", "sessionPresent": session_present})
    );
}

fn publish(topic: &str, payload: &str, qos: u8) -> Value {
    json!({"type": "publish", "topic": topic, "payload": payload, "qos": qos, "msgid": payload})
}

#[tokio::test]
async fn after_a_broker_that_forgot_all_the_subscriptions_are_restored_once() {
    let mut mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "").await;
    let auth = json!({"clientId": "anna", "clean": false, "subscriptions": [{"topic": "post/#", "qos": 1, "sid": 1}]});
    let (mut browser, _) = house.open(auth).await;
    browser
        .subscribe_with(json!({"topics": [{"topic": "post/1", "qos": 2, "sid": 2, "format": "json"}, "news", "gone"]}))
        .await;
    assert_eq!(browser.ask(json!({"type": "unsubscribe", "topic": "gone"})).await["type"], "unsubscribed");
    mosquitto.kill().await;
    is_down(&mut browser).await;
    let before = proxy.forwarded(Way::To, Kind::Subscribe);
    mosquitto.restart().await;
    is_up(&mut browser, false).await;
    assert_eq!(proxy.forwarded(Way::To, Kind::Subscribe) - before, 3);
    browser.publish("gone", "1", 1).await;
    Device::publish(mosquitto.port, &["-q", "1", "-t", "post/1", "-m", "1"]).await;
    let mut sids = Vec::from_iter(browser.deliveries(2).await.into_iter().map(|frame| frame["sids"][0].as_u64()));
    sids.sort_unstable();
    assert_eq!(sids, [Some(1), Some(2)]);
    Device::publish(mosquitto.port, &["-t", "news", "-m", "end"]).await;
    assert_eq!(browser.next_delivery().await.1, "end");
}

#[tokio::test]
async fn after_a_broker_that_remembers_all_the_session_goes_on() {
    let mut mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "").await;
    for clean in [false, true] {
        let (mut browser, _) = house.open(json!({"clientId": format!("anna {clean}"), "clean": clean})).await;
        browser
            .subscribe_with(
                json!({"topics": [{"topic": "post/#", "qos": 1, "sid": 1}, {"topic": "#", "qos": 2, "sid": 2}]}),
            )
            .await;
        mosquitto.stop().await;
        is_down(&mut browser).await;
        let before = proxy.forwarded(Way::To, Kind::Subscribe);
        mosquitto.restart().await;
        // Mosquitto writes no session to disk that began clean.
        is_up(&mut browser, !clean).await;
        assert_eq!(proxy.forwarded(Way::To, Kind::Subscribe) - before, 2);
        for number in 0..3 {
            Device::publish(mosquitto.port, &["-q", "2", "-t", "post/1", "-m", &number.to_string()]).await;
            let frame = browser.expect("mqtt").await;
            let mut sids: Vec<_> = frame["sids"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
            sids.sort_unstable();
            assert_eq!((&frame["payload"], &frame["qos"], sids), (&json!(number.to_string()), &json!(2), vec![1, 2]));
        }
        browser.leave().await;
    }
}

/// It has the session, and nothing of what came after it was last written to disk.
#[tokio::test]
async fn after_a_broker_that_was_killed_and_remembers_an_older_session_the_subscriptions_are_there() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    mosquitto.stop().await;
    is_down(&mut browser).await;
    mosquitto.restart().await;
    is_up(&mut browser, true).await;
    browser.subscribe_with(json!({"topic": "post/#", "qos": 1})).await;
    Device::publish(mosquitto.port, &["-q", "1", "-r", "-t", "post/1", "-m", "0"]).await;
    assert_eq!(browser.next_delivery().await.1, "0");
    mosquitto.kill().await;
    is_down(&mut browser).await;
    mosquitto.restart().await;
    is_up(&mut browser, true).await;
    Device::publish(mosquitto.port, &["-q", "1", "-t", "post/1", "-m", "1"]).await;
    assert_eq!(browser.next_delivery().await.1, "1");
}

#[tokio::test]
async fn while_the_broker_is_away_qos_0_fails_at_once_and_the_rest_waits() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    browser.subscribe_with(json!({"topic": "old/#", "qos": 1})).await;
    mosquitto.stop().await;
    is_down(&mut browser).await;
    let refused = browser.ask(publish("lost", "0", 0)).await;
    assert_eq!(
        (&refused["code"], &refused["msgid"], &refused["retryable"]),
        (&json!("broker_unavailable"), &json!("0"), &json!(true))
    );
    browser.send(publish("new/1", "one", 1)).await;
    browser.send(json!({"type": "subscribe", "topic": "new/#", "qos": 2, "msgid": "s"})).await;
    browser.send(json!({"type": "unsubscribe", "topic": "old/#", "msgid": "u"})).await;
    browser.send(publish("old/1", "unheard", 1)).await;
    browser.send(publish("new/2", "two", 2)).await;
    assert_eq!(browser.ask(json!({"type": "ping"})).await["type"], "pong", "all of that waits");
    mosquitto.restart().await;
    let mut frames = Vec::new();
    for _ in 0..8 {
        frames.push(browser.next().await);
    }
    let mut answers: Vec<_> = frames
        .iter()
        .filter(|frame| frame["type"] != "mqtt")
        .map(|frame| (frame["type"].as_str().expect("a type"), frame["msgid"].as_str()))
        .collect();
    answers.sort_unstable();
    let all = [
        ("ack", Some("one")),
        ("ack", Some("two")),
        ("ack", Some("unheard")),
        ("broker", None),
        ("subscribed", Some("s")),
        ("unsubscribed", Some("u")),
    ];
    assert_eq!(answers, all, "{frames:?}");
    let mut heard: Vec<_> = frames.iter().filter_map(|frame| frame["payload"].as_str()).collect();
    heard.sort_unstable();
    assert_eq!(heard, ["one", "two"], "subscriptions go first");
}

#[tokio::test]
async fn only_so_many_publishes_wait_for_a_broker_that_is_away() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\nmax_waiting = 2").await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    mosquitto.stop().await;
    is_down(&mut browser).await;
    for payload in ["1", "2"] {
        browser.send(publish("post", payload, 1)).await;
    }
    let refused = browser.ask(publish("post", "3", 2)).await;
    assert_eq!((&refused["code"], &refused["msgid"]), (&json!("broker_unavailable"), &json!("3")));
    mosquitto.restart().await;
    is_up(&mut browser, true).await;
    for payload in ["1", "2"] {
        assert_eq!(browser.expect("ack").await["msgid"], payload);
    }
    browser.send(publish("post", "3", 2)).await;
    assert_eq!(browser.expect("ack").await["msgid"], "3", "a refused publish may be sent again with its msgid");
}

#[tokio::test]
async fn what_waits_too_long_for_the_broker_times_out() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\nrequest_timeout = 0.5").await;
    let (mut browser, _) = house.open(json!({"clientId": "anna", "clean": false})).await;
    mosquitto.stop().await;
    is_down(&mut browser).await;
    let began = Instant::now();
    browser.send(publish("post", "1", 1)).await;
    browser.send(publish("post", "2", 2)).await;
    browser.send(json!({"type": "subscribe", "topic": "post", "msgid": "s"})).await;
    browser.send(json!({"type": "unsubscribe", "topic": "post", "msgid": "u"})).await;
    for _ in 0..4 {
        let frame = browser.next().await;
        match frame["msgid"].as_str() {
            Some("1" | "2") => {
                assert_eq!((&frame["code"], &frame["retryable"]), (&json!("timeout"), &json!(true)), "never sent")
            }
            Some("s" | "u") => assert_eq!(frame["topics"][0]["error"], "timeout", "{frame}"),
            _ => panic!("{frame}"),
        }
    }
    assert!((Duration::from_millis(450)..Duration::from_secs(3)).contains(&began.elapsed()));
    mosquitto.restart().await;
    is_up(&mut browser, true).await;
    browser.publish("post", "nobody subscribed", 1).await;
    browser.subscribe("post").await;
    browser.send(publish("post", "1", 1)).await;
    let mut next = [browser.next().await, browser.next().await];
    next.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!((&next[0]["msgid"], &next[1]["payload"]), (&json!("1"), &json!("1")));
}

#[tokio::test]
async fn a_publish_of_unknown_outcome_says_so_and_is_not_sent_again() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "[broker]\nrequest_timeout = 0.5").await;
    let mut lamp = Device::subscribe(mosquitto.port, &["-q", "2", "-t", "lamp"]).await;
    let mut browser = house.browser().await;
    proxy.hold();
    browser.send(publish("lamp", "1", 2)).await;
    for _ in 0..2 {
        let refused = browser.expect("error").await;
        assert_eq!(
            (&refused["code"], &refused["retryable"], &refused["msgid"]),
            (&json!("timeout"), &json!(false), &json!("1"))
        );
        browser.send(publish("lamp", "1", 2)).await;
    }
    browser.expect("error").await;
    proxy.resume();
    assert_eq!(lamp.next().await, "lamp 1");
    browser.publish("lamp", "2", 2).await;
    assert_eq!(lamp.next().await, "lamp 2");
}

#[tokio::test]
async fn a_link_that_is_only_half_open_is_noticed_and_restored() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "[broker]\nkeep_alive = 1\nconnect_timeout = 1").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "post", "qos": 1})).await;
    proxy.hold();
    is_down(&mut browser).await;
    proxy.resume();
    is_up(&mut browser, true).await;
    browser.send(publish("post", "1", 1)).await;
    let mut next = [browser.next().await, browser.next().await];
    next.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!((&next[0]["msgid"], &next[1]["payload"]), (&json!("1"), &json!("1")));
}

#[tokio::test]
async fn deliveries_in_hand_are_not_sent_again_and_their_acks_cross_to_the_new_link() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "").await;
    let auth =
        json!({"clientId": "anna", "clean": false, "subscriptions": [{"topic": "job/#", "qos": 2, "ack": "manual"}]});
    let (mut browser, _) = house.open(auth.clone()).await;
    for qos in ["1", "2", "1", "2"] {
        Device::publish(mosquitto.port, &["-q", qos, "-t", "job/1", "-m", "before"]).await;
    }
    let frames = browser.deliveries(4).await;
    browser.send(json!({"type": "ack", "msgid": frames[0]["msgid"]})).await;
    assert_eq!(browser.ask(json!({"type": "ping"})).await["type"], "pong");
    proxy.cut();
    is_down(&mut browser).await;
    browser.send(json!({"type": "ack", "msgid": frames[1]["msgid"]})).await;
    proxy.resume();
    is_up(&mut browser, true).await;
    browser.send(json!({"type": "ack", "msgids": [frames[3]["msgid"], frames[2]["msgid"]]})).await;
    Device::publish(mosquitto.port, &["-q", "1", "-t", "job/1", "-m", "after"]).await;
    let frame = browser.expect("mqtt").await;
    assert_eq!(frame["payload"], "after");
    browser.send(json!({"type": "ack", "msgid": frame["msgid"]})).await;
    browser.leave().await;
    let (mut browser, welcome) = house.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    Device::publish(mosquitto.port, &["-q", "1", "-t", "job/1", "-m", "end"]).await;
    assert_eq!(browser.next_delivery().await.1, "end", "nothing comes again");
}

#[tokio::test]
async fn when_the_broker_forgot_the_session_acks_of_what_it_sent_are_void() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "job/#", "qos": 2, "ack": "manual"})).await;
    Device::publish(mosquitto.port, &["-q", "2", "-t", "job/1", "-m", "before"]).await;
    let before = browser.expect("mqtt").await;
    mosquitto.kill().await;
    is_down(&mut browser).await;
    mosquitto.restart().await;
    is_up(&mut browser, false).await;
    browser.send(json!({"type": "ack", "msgid": before["msgid"]})).await;
    for qos in ["1", "2", "0"] {
        Device::publish(mosquitto.port, &["-q", qos, "-t", "job/1", "-m", qos]).await;
        let frame = browser.expect("mqtt").await;
        assert_eq!(frame["payload"], qos);
        browser.send(json!({"type": "ack", "msgids": [frame["msgid"].as_str().unwrap_or("none")]})).await;
    }
}

#[tokio::test]
async fn a_publish_is_answered_once_wherever_the_link_was_cut() {
    let cuts = [
        (1, Way::To, Kind::Publish),
        (1, Way::Back, Kind::Puback),
        (2, Way::To, Kind::Publish),
        (2, Way::Back, Kind::Pubrec),
        (2, Way::To, Kind::Pubrel),
        (2, Way::Back, Kind::Pubcomp),
    ];
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "").await;
    for (qos, way, kind) in cuts {
        let case = format!("{qos} {way:?} {kind:?}");
        let mut lamp = Device::subscribe(mosquitto.port, &["-q", "2", "-t", &format!("lamp {case}")]).await;
        let mut browser = house.browser().await;
        let frame = publish(&format!("lamp {case}"), "1", qos);
        proxy.cut_at(way, kind);
        browser.send(frame.clone()).await;
        is_down(&mut browser).await;
        is_up(&mut browser, true).await;
        assert_eq!(browser.expect("ack").await["msgid"], "1", "{case}");
        assert_eq!(browser.ask(frame).await["type"], "ack", "{case}: answered again, not published again");
        browser.publish(&format!("lamp {case}"), "2", qos).await;
        assert_eq!(lamp.next().await, format!("lamp {case} 1"));
        let mut next = lamp.next().await;
        if qos == 1 && next.ends_with('1') {
            // At least once is what was promised.
            next = lamp.next().await;
        }
        assert_eq!(next, format!("lamp {case} 2"));
        browser.leave().await;
    }
}

#[tokio::test]
async fn a_delivery_comes_once_wherever_the_link_was_cut() {
    let cuts = [
        (1, Way::Back, Kind::Publish),
        (1, Way::To, Kind::Puback),
        (2, Way::Back, Kind::Publish),
        (2, Way::To, Kind::Pubrec),
        (2, Way::Back, Kind::Pubrel),
        (2, Way::To, Kind::Pubcomp),
    ];
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "").await;
    for (qos, way, kind) in cuts {
        let case = format!("{qos} {way:?} {kind:?}");
        let mut browser = house.browser().await;
        browser.subscribe_with(json!({"topic": "post", "qos": 2})).await;
        proxy.cut_at(way, kind);
        Device::publish(mosquitto.port, &["-q", &qos.to_string(), "-t", "post", "-m", "once"]).await;
        let mut heard = Vec::new();
        let mut is_up = false;
        while !is_up || heard.is_empty() {
            let frame = browser.next().await;
            is_up |= frame["status"] == "up";
            heard.extend((frame["type"] == "mqtt").then_some(frame));
        }
        Device::publish(mosquitto.port, &["-q", "2", "-t", "post", "-m", "end"]).await;
        while heard.last().is_none_or(|last| last["payload"] != "end") {
            heard.push(browser.expect("mqtt").await);
        }
        if heard.len() == 3 {
            // Nobody knows whether the broker got the PUBACK, so this may be another message with the same words.
            assert_eq!(
                (qos, kind, &heard[1]["dup"], &heard[1]["msgid"]),
                (1, Kind::Puback, &json!(true), &heard[0]["msgid"])
            );
            heard.remove(1);
        }
        assert_eq!(heard.iter().map(|frame| &frame["payload"]).collect::<Vec<_>>(), ["once", "end"], "{case}");
        browser.leave().await;
    }
}

#[tokio::test]
async fn what_was_asked_while_the_broker_was_away_outlives_what_is_restored() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topics": [{"topic": "changed", "sid": 1}, {"topic": "ended", "sid": 2}, {"topic": "kept", "sid": 3}]})).await;
    mosquitto.kill().await;
    is_down(&mut browser).await;
    browser.send(json!({"type": "subscribe", "topic": "changed", "sid": 4, "qos": 1, "format": "json"})).await;
    browser.send(json!({"type": "unsubscribe", "topic": "ended"})).await;
    assert_eq!(browser.ask(json!({"type": "ping"})).await["type"], "pong");
    mosquitto.restart().await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(browser.next().await["type"].to_string());
    }
    answers.sort_unstable();
    assert_eq!(answers, [r#""broker""#, r#""subscribed""#, r#""unsubscribed""#]);
    for topic in ["ended", "changed", "kept"] {
        Device::publish(mosquitto.port, &["-q", "1", "-t", topic, "-m", "1"]).await;
    }
    let frames = browser.deliveries(2).await;
    let seen: Vec<_> = frames.iter().map(|frame| (&frame["sids"], &frame["qos"], &frame["payload"])).collect();
    assert_eq!(seen, [(&json!([4]), &json!(1), &json!(1)), (&json!([3]), &json!(0), &json!("1"))]);
}

#[tokio::test]
async fn a_subscribe_that_took_too_long_leaves_the_earlier_one_in_force() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let house = Gateway::start(&proxy.url(), "[broker]\nrequest_timeout = 0.5").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "post", "sid": 1, "qos": 1})).await;
    proxy.hold();
    let answer = browser.ask(json!({"type": "subscribe", "topics": [{"topic": "post", "sid": 2}, "new"]})).await;
    assert_eq!((&answer["topics"][0]["error"], &answer["topics"][1]["error"]), (&json!("timeout"), &json!("timeout")));
    proxy.resume();
    // The first is answered behind the late answers, the second behind what takes them back.
    for payload in ["1", "2"] {
        browser.publish("done", payload, 1).await;
    }
    for topic in ["new", "post"] {
        Device::publish(mosquitto.port, &["-q", "1", "-t", topic, "-m", topic]).await;
    }
    let frame = browser.expect("mqtt").await;
    assert_eq!((&frame["payload"], &frame["sids"], &frame["qos"]), (&json!("post"), &json!([1]), &json!(1)));
}
