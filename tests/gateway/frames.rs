//! The frames, as a client of any origin meets them: the opening, the answers, payloads and properties.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::raw::{Raw, TEXT};
use crate::support::{Browser, Device, Gateway, Mosquitto};

/// Longer than anything takes on one machine.
const A_WHILE: Duration = Duration::from_millis(300);

/// A broker and a gateway with these settings.
async fn house(configuration: &str) -> (Mosquitto, Gateway) {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), configuration).await;
    (mosquitto, gateway)
}

#[tokio::test]
async fn nothing_is_said_before_the_first_frame_and_silence_opens_the_session() {
    let (_mosquitto, house) = house("[session]\nauth_timeout = 1").await;
    let mut browser = house.connect().await;
    browser.hears_nothing_for(A_WHILE).await;
    let welcome = browser.expect("welcome").await;
    assert!(welcome["clientId"].as_str().is_some_and(|id| !id.is_empty()), "{welcome}");
    browser.subscribe("a").await;
    browser.send(json!({"type": "publish", "topic": "a", "payload": "x"})).await;
    assert_eq!(browser.next_delivery().await, ("a".to_owned(), "x".to_owned()));
}

#[tokio::test]
async fn any_first_frame_opens_a_session_and_is_answered_after_the_welcome() {
    let (_mosquitto, house) = house("").await;
    let cases = [
        (r#"{"type":"subscribe","topic":"a","msgid":1}"#, "subscribed"),
        (r#"{"type":"unsubscribe","topic":"a","msgid":1}"#, "unsubscribed"),
        (r#"{"type":"publish","topic":"b","payload":"","qos":1,"msgid":1}"#, "ack"),
        (r#"{"type":"publish","topic":"b","payload":"","msgid":1}"#, "ack"),
        (r#"{"type":"ping","msgid":1}"#, "pong"),
        (r#"{"type":"ack","msgid":"nobody's"}"#, ""),
        (r#"{"type":"publish","topic":"b/#","payload":"","msgid":1}"#, "error"),
        (r#"{"type":"teleport","msgid":1}"#, "error"),
        ("no JSON", "error"),
    ];
    for (first, answer) in cases {
        let mut browser = house.connect().await;
        browser.send_text(first).await;
        browser.expect("welcome").await;
        if !answer.is_empty() {
            browser.expect(answer).await;
        }
        browser.send(json!({"type": "ping", "msgid": "alive"})).await;
        assert_eq!(browser.expect("pong").await["msgid"], "alive", "after {first}");
    }
}

#[tokio::test]
async fn an_auth_is_answered_and_then_welcomed_with_all_that_the_session_may_do() {
    let settings = "[session]\nheartbeat = 7\nmax_subscriptions = 12\nmax_inflight = 5\n[wire]\nmax_frame = 70000\nmax_payload = 60000";
    let (_mosquitto, house) = house(settings).await;
    let mut browser = house.connect().await;
    let subscriptions = json!([{"topic": "a", "qos": 1}, {"topic": "$share/g/b/#", "qos": 2}]);
    browser
        .send(json!({"type": "auth", "clientId": "kiosk-7", "subscriptions": subscriptions, "msgid": "hello"}))
        .await;

    let accepted = browser.expect("auth_response").await;
    assert_eq!((&accepted["status"], &accepted["msgid"]), (&json!("success"), &json!("hello")));
    assert!(accepted["timestamp"].as_u64().is_some_and(|time| time > 1_700_000_000_000), "{accepted}");

    let mut welcome = browser.expect("welcome").await;
    let session_id = welcome["sessionId"].take();
    assert!(session_id.as_str().is_some_and(|id| id.len() >= 16), "{session_id}");
    let expected = json!({
        "type": "welcome", "sessionId": null, "clientId": "kiosk-7", "protocol": 1, "sessionPresent": false, "heartbeat": 7,
        "subscriptions": [{"topic": "a", "qos": 1}, {"topic": "$share/g/b/#", "qos": 2}], "msgid": "hello",
        "limits": {
            "maxFrame": 70000, "maxPayload": 60000, "maxSubscriptions": 12, "maxInflight": 5, "maxQos": 2,
            "retain": true, "shared": true,
        },
    });
    assert_eq!(welcome, expected);
}

#[tokio::test]
async fn the_welcome_tells_what_the_broker_cannot() {
    let mosquitto = Mosquitto::start_with("retain_available false\nmax_packet_size 2000").await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.connect().await;
    browser.send(json!({"type": "ping"})).await;
    let limits = browser.expect("welcome").await["limits"].take();
    assert_eq!((&limits["retain"], &limits["maxPayload"]), (&json!(false), &json!(2000)), "{limits}");
}

#[tokio::test]
async fn a_malformed_auth_is_refused_as_often_as_it_comes_and_may_be_mended() {
    let (_mosquitto, house) = house("").await;
    let mut browser = house.connect().await;
    let malformed = [
        (r#"{"type":"auth","clean":"no","msgid":1}"#, "invalid_frame"),
        (r#"{"type":"auth","clientId":"","msgid":1}"#, "invalid_frame"),
        (r#"{"type":"auth","deviceId":"pump-3","msgid":1}"#, "invalid_frame"),
        (r#"{"type":"auth","will":{"topic":"a/#","payload":""},"msgid":1}"#, "invalid_topic"),
        (r#"{"type":"auth","will":{"topic":"a","payload":"%","encoding":"base64"},"msgid":1}"#, "invalid_payload"),
        (r#"{"type":"auth","subscriptions":[{"topic":"a"},{"topic":"a/#/b"}],"msgid":1}"#, "invalid_topic"),
        (r#"{"type":"auth","subscriptions":[{"topic":"a","batch":{}}],"msgid":1}"#, "invalid_frame"),
    ];
    for (text, code) in malformed {
        browser.send_text(text).await;
        let error = browser.expect("error").await;
        assert_eq!((&error["code"], &error["msgid"]), (&json!(code), &json!(1)), "{text}: {error}");
    }
    browser.send(json!({"type": "auth", "clientId": "mended"})).await;
    browser.expect("auth_response").await;
    assert_eq!(browser.expect("welcome").await["clientId"], "mended");
}

#[tokio::test]
async fn a_msgid_comes_back_as_it_was_whatever_the_frame() {
    let (_mosquitto, house) = house("").await;
    let mut browser = house.browser().await;
    let frames = [
        (json!({"type": "subscribe", "topic": "a"}), "subscribed"),
        (json!({"type": "subscribe", "topics": []}), "error"),
        (json!({"type": "unsubscribe", "topic": "a"}), "unsubscribed"),
        (json!({"type": "unsubscribe"}), "error"),
        (json!({"type": "publish", "topic": "b", "payload": 1}), "ack"),
        (json!({"type": "publish", "topic": "b", "payload": 1, "qos": 1}), "ack"),
        (json!({"type": "publish", "topic": "b", "payload": 1, "qos": 2}), "ack"),
        (json!({"type": "publish", "topic": "b"}), "error"),
        (json!({"type": "ack", "msgids": []}), "error"),
        (json!({"type": "ping"}), "pong"),
        (json!({"type": "auth"}), "auth_response"),
        (json!({"type": "auth", "clean": 1}), "error"),
        (json!({"type": "status"}), "error"),
    ];
    for (number, (mut frame, answer)) in frames.into_iter().enumerate() {
        for msgid in [
            json!(number),
            json!(-9_007_199_254_740_991_i64 + number as i64),
            json!(format!("{number}")),
            json!(format!("é{number}")),
        ] {
            frame["msgid"] = msgid.clone();
            browser.send(frame.clone()).await;
            assert_eq!(browser.expect(answer).await["msgid"], msgid, "{frame}");
        }
    }
}

#[tokio::test]
async fn a_publish_that_is_sent_again_is_answered_again_and_arrives_once() {
    let (mosquitto, house) = house("").await;
    let mut device = Device::subscribe(mosquitto.port, &["-t", "a/#"]).await;
    let mut browser = house.browser().await;
    for qos in 0..3 {
        let frame =
            json!({"type": "publish", "topic": format!("a/{qos}"), "payload": "once", "qos": qos, "msgid": qos});
        for _ in 0..3 {
            browser.send(frame.clone()).await;
        }
        for _ in 0..3 {
            assert_eq!(browser.expect("ack").await["msgid"], qos);
        }
        browser.publish(&format!("a/{qos}"), "next", 1).await;
        assert_eq!(device.next().await, format!("a/{qos} once"));
        assert_eq!(device.next().await, format!("a/{qos} next"));
    }
}

#[tokio::test]
async fn an_offer_of_subprotocols_is_taken_or_refused_with_what_is_spoken() {
    let (_mosquitto, house) = house("").await;
    let taken = [
        (vec![], None),
        (vec!["tidegate.v1.json"], Some("tidegate.v1.json")),
        (vec!["mqtt", "tidegate.v1.json"], Some("tidegate.v1.json")),
        (vec!["tidegate.v1.protobuf", "tidegate.v1.json"], Some("tidegate.v1.json")),
    ];
    for (offer, chosen) in taken {
        let mut browser = Browser::connect(&house.address, &offer).await;
        assert_eq!(browser.subprotocol.as_deref(), chosen, "{offer:?}");
        browser.send(json!({"type": "ping"})).await;
        browser.expect("welcome").await;
        browser.expect("pong").await;
    }
    let offers = [
        "mqtt",
        "mqtt, mqttv3.1",
        "tidegate.v2.json",
        "tidegate.v1.protobuf",
        "tidegate.iotdata.protobuf",
        "bearer.c2VjcmV0",
    ];
    for offer in offers {
        let Err((status, text)) =
            Browser::connect_with(&house.address, "/ws", &[("sec-websocket-protocol", offer)]).await
        else {
            panic!("{offer} was taken")
        };
        assert_eq!(status, 400, "{offer}");
        assert!(text.contains("tidegate.v1.json") && !text.contains("c2VjcmV0"), "{offer}: {text}");
    }
}

#[tokio::test]
async fn a_payload_reaches_devices_byte_for_byte() {
    let (mosquitto, house) = house("").await;
    let mut device = Device::subscribe(mosquitto.port, &["-t", "a", "-F", "%t %x"]).await;
    let mut browser = house.browser().await;
    let cases: [(&str, &[u8]); 12] = [
        (r#""payload":"on""#, b"on"),
        (r#""payload":"\u00e9\ud83d\ude00\"\n""#, "é😀\"\n".as_bytes()),
        (r#""payload":"a\u0000b""#, b"a\0b"),
        (r#""payload":21.50"#, b"21.50"),
        (r#""payload":1.0e400"#, b"1.0e400"),
        (r#""payload":-0"#, b"-0"),
        (r#""payload":null"#, b"null"),
        (r#""payload":{ "b" : [1, 2.0],"a":"\u00e9" }"#, br#"{ "b" : [1, 2.0],"a":"\u00e9" }"#),
        (r#""payload":"on","encoding":"json""#, br#""on""#),
        (r#""payload":"\u00e9","encoding":"json""#, br#""\u00e9""#),
        (r#""payload":"AP8=","encoding":"base64""#, &[0, 255]),
        (r#""payload":"","encoding":"base64""#, b""),
    ];
    for (payload, bytes) in cases {
        browser.send_text(&format!(r#"{{"type":"publish","topic":"a",{payload}}}"#)).await;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(device.next().await, format!("a {hex}"), "{payload}");
    }
}

#[tokio::test]
async fn a_payload_is_shown_as_its_subscription_asks() {
    let (_mosquitto, house) = house("").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "text/+"})).await;
    browser.subscribe_with(json!({"topic": "json/+", "format": "json"})).await;
    // What is published, and how it is shown as text and as JSON; encodings are left out for text.
    let cases = [
        (json!({"payload": "21.5"}), json!({"payload": "21.5"}), json!({"payload": 21.5, "encoding": "json"})),
        (json!({"payload": "né😀\u{1}"}), json!({"payload": "né😀\u{1}"}), json!({"payload": "né😀\u{1}"})),
        (json!({"payload": ""}), json!({"payload": ""}), json!({"payload": ""})),
        (json!({"payload": null}), json!({"payload": "null"}), json!({"payload": null, "encoding": "json"})),
        (
            json!({"payload": {"a": [1]}}),
            json!({"payload": r#"{"a":[1]}"#}),
            json!({"payload": {"a": [1]}, "encoding": "json"}),
        ),
        (
            json!({"payload": "on", "encoding": "json"}),
            json!({"payload": "\"on\""}),
            json!({"payload": "on", "encoding": "json"}),
        ),
        (
            json!({"payload": "AP8=", "encoding": "base64"}),
            json!({"payload": "AP8=", "encoding": "base64"}),
            json!({"payload": "AP8=", "encoding": "base64"}),
        ),
        (json!({"payload": "b24=", "encoding": "base64"}), json!({"payload": "on"}), json!({"payload": "on"})),
    ];
    for (published, as_text, as_json) in cases {
        for (topic, shown) in [("text/1", as_text), ("json/1", as_json)] {
            let mut frame = published.clone();
            (frame["type"], frame["topic"]) = (json!("publish"), json!(topic));
            browser.send(frame).await;
            let delivery = browser.expect("mqtt").await;
            let seen: Value = ["payload", "encoding"]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), delivery.get(name)?.clone())))
                .collect();
            assert_eq!(seen, shown, "{published} on {topic}");
        }
    }
}

#[tokio::test]
async fn properties_travel_both_ways() {
    let (mosquitto, house) = house("").await;
    let mut browser = house.browser().await;
    let mut device = Device::subscribe(mosquitto.port, &["-t", "up", "-F", "%t %p|%C|%R|%D|%F|%P"]).await;
    let properties = json!({
        "contentType": "text/plain", "responseTopic": "answers/1", "correlationData": "YWJj", "messageExpiryInterval": 600,
        "payloadFormatIndicator": 1, "userProperties": [["room", "hall"], ["room", "größe"]],
    });
    browser.send(json!({"type": "publish", "topic": "up", "payload": "x", "properties": properties})).await;
    assert_eq!(device.next().await, "up x|text/plain|answers/1|abc|1|room:hall room:größe");

    browser.subscribe("#").await;
    let arguments = "-t down -m y -D publish content-type a/b -D publish response-topic r -D publish correlation-data abc \
                     -D publish message-expiry-interval 60 -D publish user-property n v -D publish user-property n w";
    Device::publish(mosquitto.port, &arguments.split_whitespace().collect::<Vec<_>>()).await;
    let expected = json!({
        "contentType": "a/b", "responseTopic": "r", "correlationData": "YWJj", "messageExpiryInterval": 60,
        "userProperties": [["n", "v"], ["n", "w"]],
    });
    assert_eq!(browser.expect("mqtt").await["properties"], expected);
    Device::publish(mosquitto.port, &["-t", "down", "-m", "y"]).await;
    assert_eq!(browser.expect("mqtt").await.get("properties"), None, "what says nothing says nothing");
}

#[tokio::test]
async fn a_delivery_says_what_the_protocol_says_and_no_more() {
    let (_mosquitto, house) = house("").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "a/#", "sid": 7})).await;
    browser.subscribe_with(json!({"topic": "b/#", "qos": 2})).await;
    browser.send(json!({"type": "publish", "topic": "a/1", "payload": "x", "qos": 2})).await;
    let mut delivery = browser.expect("mqtt").await;
    assert!(delivery["timestamp"].take().is_u64());
    let expected = json!({"type": "mqtt", "sids": [7], "topic": "a/1", "payload": "x", "qos": 0, "retain": false, "timestamp": null});
    assert_eq!(delivery, expected);
    browser.send(json!({"type": "publish", "topic": "b/1", "payload": "x", "qos": 1})).await;
    let mut delivery = browser.expect("mqtt").await;
    assert!(delivery["timestamp"].take().is_u64() && delivery["msgid"].take().is_string());
    let expected = json!({"type": "mqtt", "topic": "b/1", "payload": "x", "qos": 1, "retain": false, "timestamp": null, "msgid": null});
    assert_eq!(delivery, expected);
}

#[tokio::test]
async fn large_payloads_and_topics_travel_both_ways() {
    let (mosquitto, house) = house("[wire]\nmax_frame = 8000000").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "#", "qos": 1})).await;
    let payload = "é".repeat(1 << 19);
    browser.send(json!({"type": "publish", "topic": "large", "payload": payload})).await;
    assert_eq!(browser.next_delivery().await, ("large".to_owned(), payload));
    // Six bytes of JSON for one of the payload.
    let escaped = "\u{1}".repeat(1 << 20);
    browser.send(json!({"type": "publish", "topic": "escaped", "payload": escaped})).await;
    assert_eq!(browser.next_delivery().await, ("escaped".to_owned(), escaped));

    let longest = "x".repeat(65_535);
    browser.send(json!({"type": "publish", "topic": longest, "payload": "1"})).await;
    assert_eq!(browser.next_delivery().await, (longest.clone(), "1".to_owned()));
    let answer = browser.subscribe_with(json!({"topic": longest, "msgid": 1})).await;
    assert_eq!(answer["topics"][0]["topic"], json!(longest));
    let mut device = Device::subscribe(mosquitto.port, &["-t", "done"]).await;
    browser.send(json!({"type": "publish", "topic": "done", "payload": "1"})).await;
    assert_eq!(device.next().await, "done 1");
}

#[tokio::test]
async fn a_frame_may_come_in_fragments_with_pings_between_them() {
    let (_mosquitto, house) = house("").await;
    let mut raw = Raw::connect(&house.address).await;
    raw.send(TEXT & 0x7F, br#"{"type":"ping","ms"#).await;
    raw.send(0x89, b"are you there?").await;
    raw.send(0x00, "gid\":\"\u{E9}".as_bytes().split_last().expect("bytes").1).await;
    raw.send(0x80, b"\xA9\"}").await;
    assert_eq!(raw.frame().await, (0x8A, b"are you there?".to_vec()));
    assert_eq!(raw.next().await["type"], "welcome");
    assert_eq!(raw.next().await, json!({"type": "pong", "msgid": "é"}));
}
