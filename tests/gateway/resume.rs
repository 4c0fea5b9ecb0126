//! Sessions that outlive their connections, and the gateways that they were on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Gateway, Mosquitto, eventually};

fn kept(client_id: &str) -> Value {
    json!({"clientId": client_id, "clean": false})
}

fn payloads(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["payload"].as_str().expect("text")).collect()
}

#[tokio::test]
async fn a_kept_session_gets_what_came_while_it_was_away() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let (mut browser, welcome) = house.open(kept("anna")).await;
    assert_eq!((&welcome["clientId"], &welcome["sessionPresent"]), (&json!("anna"), &json!(false)));
    browser.subscribe_with(json!({"topics": [{"topic": "post/#", "qos": 2}]})).await;
    let mut friend = house.browser().await;
    for (round, vanish) in [true, false, true].into_iter().enumerate() {
        if vanish {
            browser.vanish();
        } else {
            browser.leave().await;
        }
        // What is written to the socket of somebody who has gone is gone too.
        eventually("the session has ended", async || house.metric("tidegate_sessions_open").await == 1.0).await;
        for number in 0..4 {
            friend.publish("post/1", &format!("{round}.{number}"), 1 + number % 2).await;
        }
        let (next, welcome) = house.open(kept("anna")).await;
        browser = next;
        assert_eq!(welcome["sessionPresent"], true, "round {round}");
        let frames = browser.deliveries(4).await;
        assert_eq!(payloads(&frames), [0, 1, 2, 3].map(|number| format!("{round}.{number}")));
        assert!(frames.iter().all(|frame| frame["msgid"].is_string() && frame.get("sids").is_none()), "{frames:?}");
    }
}

#[tokio::test]
async fn another_gateway_takes_up_the_session_of_one_that_was_killed() {
    let mosquitto = Mosquitto::start().await;
    let mut first = Gateway::before(&mosquitto).await;
    let second = Gateway::before(&mosquitto).await;
    let (mut browser, _) = first.open(kept("anna")).await;
    browser.subscribe_with(json!({"topic": "post/#", "qos": 1})).await;
    let mut friend = second.browser().await;
    first.kill().await;
    for number in 0..10 {
        friend.publish("post/1", &number.to_string(), 1).await;
    }
    let auth = json!({"clientId": "anna", "clean": false, "subscriptions": [{"topic": "post/#", "qos": 1, "sid": 9, "retainHandling": 2}]});
    let (mut browser, welcome) = second.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    let frames = browser.deliveries(10).await;
    assert_eq!(payloads(&frames), Vec::from_iter((0..10).map(|number| number.to_string())));
    assert!(frames.iter().all(|frame| frame["sids"] == json!([9])), "{frames:?}");
    friend.publish("post/2", "live", 1).await;
    assert_eq!(browser.next_delivery().await.1, "live");
}

#[tokio::test]
async fn subscriptions_in_auth_are_in_force_before_the_first_delivery() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let subscriptions = json!([
        {"topic": "post/#", "qos": 1, "sid": 3, "format": "json", "ack": "manual"},
        {"topic": "news", "sid": 4},
        {"topic": "$share/crew/jobs", "qos": 2},
    ]);
    let auth = json!({"clientId": "anna", "clean": false, "subscriptions": subscriptions, "msgid": "hello"});
    let answer =
        json!([{"topic": "post/#", "qos": 1}, {"topic": "news", "qos": 0}, {"topic": "$share/crew/jobs", "qos": 2}]);
    let (browser, welcome) = house.open(auth.clone()).await;
    assert_eq!((&welcome["sessionPresent"], &welcome["subscriptions"]), (&json!(false), &answer));
    browser.leave().await;
    let mut friend = house.browser().await;
    friend.publish("post/1", "[1]", 1).await;
    let (mut browser, welcome) = house.open(auth).await;
    assert_eq!((&welcome["sessionPresent"], &welcome["subscriptions"]), (&json!(true), &answer));
    let frame = browser.expect("mqtt").await;
    assert_eq!((&frame["sids"], &frame["payload"], &frame["encoding"]), (&json!([3]), &json!([1]), &json!("json")));
    friend.publish("news", "live", 0).await;
    assert_eq!(browser.expect("mqtt").await["sids"], json!([4]));
}

#[tokio::test]
async fn what_was_not_acked_comes_again_with_the_msgid_it_had() {
    let mosquitto = Mosquitto::start().await;
    let mut first = Gateway::before(&mosquitto).await;
    let second = Gateway::before(&mosquitto).await;
    let mut auth = kept("anna");
    auth["subscriptions"] = json!([
        {"topic": "job/#", "qos": 2, "ack": "manual", "sid": 1},
        {"topic": "job/+", "qos": 1, "ack": "manual", "sid": 2, "format": "json"},
    ]);
    let (mut browser, _) = first.open(auth.clone()).await;
    let mut boss = second.browser().await;
    for number in 0..6 {
        boss.publish("job/1", &number.to_string(), 1 + number % 2).await;
    }
    let key = |frame: &Value| (frame["payload"].to_string(), frame["sids"].to_string(), frame["msgid"].to_string());
    let mut before = browser.deliveries(12).await;
    assert!(before.iter().all(|frame| frame.get("dup").is_none()), "{before:?}");
    // The frames of the first two messages are dealt with.
    let done = |frame: &Value| matches!(frame["payload"].to_string().trim_matches('"'), "0" | "1");
    let acks: Vec<_> = before.iter().filter(|frame| done(frame)).map(|frame| &frame["msgid"]).collect();
    assert_eq!(acks.len(), 4);
    browser.send(json!({"type": "ack", "msgids": acks})).await;
    assert_eq!(browser.ask(json!({"type": "ping"})).await["type"], "pong");
    before.retain(|frame| !done(frame));
    let mut expected: Vec<_> = before.iter().map(key).collect();
    expected.sort();
    for round in ["the connection was lost", "the gateway was killed"] {
        browser.vanish();
        let gateway = if round == "the gateway was killed" {
            first.kill().await;
            &second
        } else {
            &first
        };
        let (next, welcome) = gateway.open(auth.clone()).await;
        browser = next;
        assert_eq!(welcome["sessionPresent"], true, "{round}");
        let again = browser.deliveries(8).await;
        assert!(again.iter().all(|frame| frame["dup"] == true), "{round}: {again:?}");
        let mut seen: Vec<_> = again.iter().map(key).collect();
        seen.sort();
        assert_eq!(seen, expected, "{round}");
    }
    let msgids: Vec<_> = before.iter().map(|frame| &frame["msgid"]).collect();
    browser.send(json!({"type": "ack", "msgids": msgids})).await;
    browser.leave().await;
    let (mut browser, _) = second.open(auth).await;
    boss.publish("job/1", "7", 2).await;
    assert!(browser.deliveries(2).await.iter().all(|frame| frame.get("dup").is_none() && frame["payload"] != "2"));
}

#[tokio::test]
async fn unknown_subscriptions_come_in_the_default_contract_and_are_acked_as_auth_says() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let (mut browser, _) = house.open(kept("anna")).await;
    browser.subscribe_with(json!({"topic": "post/#", "qos": 1, "format": "json", "sid": 1})).await;
    browser.leave().await;
    let mut friend = house.browser().await;
    friend.publish("post/1", "[1]", 1).await;
    let mut manual = kept("anna");
    manual["ack"] = json!("manual");
    let mut msgids = Vec::new();
    for round in 0..2 {
        let (mut browser, _) = house.open(manual.clone()).await;
        let frame = browser.expect("mqtt").await;
        assert_eq!((&frame["payload"], frame.get("sids"), frame.get("encoding")), (&json!("[1]"), None, None));
        assert_eq!(frame.get("dup"), (round == 1).then_some(&json!(true)));
        msgids.push(frame["msgid"].clone());
        browser.leave().await;
    }
    assert_eq!(msgids[0], msgids[1]);
    let (mut browser, _) = house.open(kept("anna")).await;
    assert_eq!(browser.expect("mqtt").await["dup"], true);
    browser.leave().await;
    let (mut browser, _) = house.open(manual).await;
    friend.publish("post/1", "new", 1).await;
    assert_eq!(browser.next_delivery().await.1, "new", "auto confirmed it");
}

#[tokio::test]
async fn a_session_is_kept_as_long_as_it_asked_for() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let auth = |client_id| json!({"clientId": client_id, "clean": false, "sessionExpiry": 1});
    for client_id in ["anna", "ben"] {
        house.open(auth(client_id)).await.0.leave().await;
        let (browser, welcome) = house.open(auth(client_id)).await;
        assert_eq!(welcome["sessionPresent"], true, "{client_id}, within its time");
        if client_id == "anna" {
            browser.vanish();
        } else {
            browser.leave().await;
        }
    }
    // Coming back to look would begin the time anew.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for client_id in ["anna", "ben"] {
        assert_eq!(house.open(auth(client_id)).await.1["sessionPresent"], false, "{client_id}, after its time");
    }
}

#[tokio::test]
async fn a_clean_session_leaves_nothing_and_finds_nothing() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let clean = json!({"clientId": "anna"});
    for vanish in [false, true] {
        let (mut browser, welcome) = house.open(clean.clone()).await;
        assert_eq!(welcome["sessionPresent"], false);
        browser.subscribe_with(json!({"topic": "post/#", "qos": 1})).await;
        if vanish {
            browser.vanish();
        } else {
            browser.leave().await;
        }
        let (browser, welcome) = house.open(kept("anna")).await;
        assert_eq!(welcome["sessionPresent"], false, "vanished: {vanish}");
        browser.leave().await;
    }
    let (mut browser, welcome) = house.open(kept("anna")).await;
    assert_eq!(welcome["sessionPresent"], true);
    browser.subscribe_with(json!({"topic": "post/#", "qos": 1})).await;
    browser.leave().await;
    let (mut browser, welcome) = house.open(clean).await;
    assert_eq!(welcome["sessionPresent"], false);
    browser.publish("post/1", "nobody subscribed", 1).await;
}

#[tokio::test]
async fn a_gateway_that_is_stopped_leaves_its_sessions_to_the_next() {
    let mosquitto = Mosquitto::start().await;
    let (mut first, second) = (Gateway::before(&mosquitto).await, Gateway::before(&mosquitto).await);
    let mut auth = kept("anna");
    auth["subscriptions"] = json!([{"topic": "job/#", "qos": 1, "ack": "manual", "sid": 1}]);
    let (mut browser, _) = first.open(auth.clone()).await;
    let mut boss = second.browser().await;
    boss.publish("job/1", "before", 1).await;
    let before = browser.expect("mqtt").await;
    assert!(first.stop().await.success());
    browser.expect("bye").await;
    assert_eq!(browser.closed().await, 1001);
    boss.publish("job/1", "meanwhile", 1).await;
    let (mut browser, welcome) = second.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    let frames = browser.deliveries(2).await;
    assert_eq!(payloads(&frames), ["before", "meanwhile"]);
    assert_eq!((&frames[0]["dup"], &frames[0]["msgid"]), (&json!(true), &before["msgid"]));
    assert_eq!(frames[1].get("dup"), None);
}
