//! How messages come and how they are confirmed.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::support::{Device, Gateway, Mosquitto};

fn numbered(from: usize, to: usize) -> Vec<Value> {
    (from..to).map(|number| json!(number.to_string())).collect()
}

#[tokio::test]
async fn a_delivery_has_the_lower_qos_and_a_msgid_exactly_above_0() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    for granted in [0u8, 1, 2] {
        let mut browser = house.browser().await;
        let answer = browser.subscribe_with(json!({"topic": "attic/temp", "qos": granted})).await;
        assert_eq!(answer["topics"][0]["qos"], granted);
        for published in [0u8, 1, 2] {
            Device::publish(mosquitto.port, &["-q", &published.to_string(), "-t", "attic/temp", "-m", "x"]).await;
            let frame = browser.expect("mqtt").await;
            assert_eq!(frame["qos"], granted.min(published), "{published} to {granted}");
            assert_eq!(frame["msgid"].is_string(), granted.min(published) > 0, "{frame}");
            assert!(frame.get("dup").is_none_or(|dup| *dup == false), "{frame}");
        }
    }
}

#[tokio::test]
async fn unacked_deliveries_stop_the_flow_and_acks_release_it_in_order() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\nreceive_maximum = 3").await;
    let auth = json!({"clientId": "anna", "clean": false});
    let (mut browser, _) = house.open(auth.clone()).await;
    browser.subscribe_with(json!({"topic": "job/#", "qos": 2, "ack": "manual"})).await;
    let mut boss = house.browser().await;
    for number in 0..8 {
        boss.publish("job/1", &number.to_string(), 1 + number % 2).await;
    }
    let first = browser.deliveries(3).await;
    assert_eq!(first.iter().map(|frame| frame["payload"].clone()).collect::<Vec<_>>(), numbered(0, 3));
    boss.publish("job/2", "now", 0).await;
    assert_eq!(browser.next_delivery().await.1, "now", "qos 0 is not held up");
    browser.send(json!({"type": "ack", "msgid": "nobody knows"})).await;
    browser.send(json!({"type": "ack", "msgids": [3, "nor this"]})).await;
    browser.send(json!({"type": "ack", "msgids": [first[2]["msgid"], first[1]["msgid"], first[1]["msgid"]]})).await;
    boss.publish("job/2", "still", 0).await;
    assert_eq!(browser.next_delivery().await.1, "still", "the first holds up the rest");
    browser.send(json!({"type": "ack", "msgid": first[0]["msgid"]})).await;
    let second = browser.deliveries(3).await;
    assert_eq!(second.iter().map(|frame| frame["payload"].clone()).collect::<Vec<_>>(), numbered(3, 6));
    let msgids: Vec<_> = second.iter().map(|frame| &frame["msgid"]).collect();
    browser.send(json!({"type": "ack", "msgids": msgids})).await;
    let third = browser.deliveries(2).await;
    browser.send(json!({"type": "ack", "msgid": third[0]["msgid"]})).await;
    browser.send(json!({"type": "ack", "msgid": third[1]["msgid"]})).await;
    browser.leave().await;
    let (mut browser, welcome) = house.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    boss.publish("job/3", "new", 1).await;
    assert_eq!(browser.next_delivery().await.1, "new", "nothing comes again");
}

#[tokio::test]
async fn a_delivery_with_auto_ack_is_confirmed_once_it_is_written() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\nreceive_maximum = 2").await;
    let auth = json!({"clientId": "anna", "clean": false});
    let (mut browser, _) = house.open(auth.clone()).await;
    browser.subscribe_with(json!({"topic": "attic/#", "qos": 2})).await;
    let mut device = house.browser().await;
    for number in 0..20 {
        device.publish("attic/temp", &number.to_string(), 1 + number % 2).await;
    }
    assert_eq!(browser.payloads(20).await, numbered(0, 20));
    browser.leave().await;
    let (mut browser, welcome) = house.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true);
    device.publish("attic/temp", "new", 2).await;
    let frame = browser.expect("mqtt").await;
    assert_eq!((&frame["payload"], frame.get("dup")), (&json!("new"), None), "nothing comes again");
}

#[tokio::test]
async fn qos_2_goes_both_ways_once() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut lamp = Device::subscribe(mosquitto.port, &["-q", "2", "-t", "lamp/#"]).await;
    let (mut anna, mut ben) = (house.browser().await, house.browser().await);
    ben.subscribe_with(json!({"topic": "lamp/#", "qos": 2})).await;
    for number in 0..100 {
        anna.publish("lamp/1", &number.to_string(), 2).await;
    }
    for number in 0..100 {
        assert_eq!(lamp.next().await, format!("lamp/1 {number}"));
        let frame = ben.expect("mqtt").await;
        assert_eq!((&frame["payload"], &frame["qos"]), (&json!(number.to_string()), &json!(2)));
    }
}

#[tokio::test]
async fn a_thousand_messages_of_mixed_qos_come_complete_and_in_order() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "stream/#", "qos": 2})).await;
    let mut source = house.browser().await;
    for number in 0..1000 {
        let topic = format!("stream/{}", number % 7);
        source
            .send(json!({"type": "publish", "topic": topic, "payload": number, "qos": number % 3, "msgid": number}))
            .await;
    }
    for _ in 0..1000 {
        source.expect("ack").await;
    }
    let mut last = HashMap::new();
    for frame in browser.deliveries(1000).await {
        let number: u64 = frame["payload"].as_str().expect("text").parse().expect("a number");
        let stream = (frame["topic"].to_string(), frame["qos"].as_u64());
        assert_eq!(stream, (format!("\"stream/{}\"", number % 7), Some(number % 3)));
        let before = last.insert(stream, number);
        assert_eq!(before.unwrap_or(number % 21), if before.is_some() { number - 21 } else { number }, "{frame}");
    }
    assert_eq!(last.len(), 21);
}

#[tokio::test]
async fn a_publish_that_is_sent_again_is_answered_again_and_published_once() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut lamp = Device::subscribe(mosquitto.port, &["-q", "2", "-t", "lamp/#"]).await;
    let mut browser = house.browser().await;
    for qos in [0, 1, 2] {
        for msgid in [json!(qos), json!(qos.to_string())] {
            let frame = json!({"type": "publish", "topic": "lamp/1", "payload": format!("{qos} {msgid}"), "qos": qos, "msgid": msgid});
            for _ in 0..3 {
                browser.send(frame.clone()).await;
            }
            for _ in 0..3 {
                assert_eq!(browser.next().await, json!({"type": "ack", "msgid": msgid}));
            }
            assert_eq!(browser.ask(frame).await, json!({"type": "ack", "msgid": msgid}));
            assert_eq!(lamp.next().await, format!("lamp/1 {qos} {msgid}"));
        }
    }
    browser.publish("lamp/1", "end", 2).await;
    assert_eq!(lamp.next().await, "lamp/1 end");
}
