//! What clients and brokers do wrong: each error is provoked and the session lives on, each close code ends one.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::support::raw::{BINARY, Raw, TEXT, head, masked};
use crate::support::{Browser, Gateway, Mosquitto, eventually, free_port};

/// Sends a frame that is refused; gives back the code and whether it may be sent again.
async fn refused(browser: &mut Browser, text: &str) -> (String, bool) {
    browser.send_text(text).await;
    let error = browser.expect("error").await;
    assert!(error["message"].as_str().is_some_and(|message| message.ends_with('.')), "{error}");
    (error["code"].as_str().expect("a code").to_owned(), error["retryable"].as_bool().expect("a claim"))
}

/// The session still serves, and said nothing that was not read.
async fn lives(browser: &mut Browser) {
    browser.send(json!({"type": "ping", "msgid": "alive"})).await;
    assert_eq!(browser.expect("pong").await["msgid"], "alive");
}

/// The code that a subscribe to one filter is refused with.
async fn denied(browser: &mut Browser, filter: &str) -> Value {
    browser.send(json!({"type": "subscribe", "topic": filter})).await;
    browser.expect("subscribed").await["topics"][0]["error"].take()
}

fn publish(topic: &str, qos: u8) -> String {
    json!({"type": "publish", "topic": topic, "payload": "x", "qos": qos, "msgid": topic}).to_string()
}

fn once(code: &str) -> (String, bool) {
    (code.to_owned(), false)
}

fn for_now(code: &str) -> (String, bool) {
    (code.to_owned(), true)
}

mod errors {
    use super::*;

    #[tokio::test]
    async fn what_no_client_should_send_is_refused_by_name() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[wire]\nmax_payload = 1000").await;
        let mut browser = house.browser().await;
        let deep = format!(r#"{{"type":"ping","note":{}{}}}"#, "[".repeat(64), "]".repeat(64));
        let large = json!({"type": "publish", "topic": "a", "payload": "é".repeat(501)}).to_string();
        let long = json!({"type": "publish", "topic": "x".repeat(65_536), "payload": ""}).to_string();
        let levels = json!({"type": "publish", "topic": "/".repeat(300), "payload": ""}).to_string();
        let cases = [
            ("", "invalid_json"),
            ("{", "invalid_json"),
            (&deep, "invalid_json"),
            (r#"{"type":"ping","note":"\ud800"}"#, "invalid_json"),
            ("{\"type\":\"ping\",\"note\":\"a\0b\"}", "invalid_json"),
            ("\u{FEFF}{\"type\":\"ping\"}", "invalid_json"),
            ("[]", "invalid_frame"),
            (r#"{"type":"ping","msgid":1e400}"#, "invalid_frame"),
            (r#"{"type":"ping","msgid":-9223372036854775808}"#, "invalid_frame"),
            (r#"{"type":"ping","a":1,"a":1}"#, "invalid_frame"),
            (r#"{"type":"subscribe","topic":"a","maxRate":0}"#, "invalid_frame"),
            (r#"{"type":"status","payload":1}"#, "unknown_type"),
            (r#"{"type":"publish","topic":"a/+","payload":1}"#, "invalid_topic"),
            (r#"{"type":"publish","topic":"a\u0000","payload":1}"#, "invalid_topic"),
            (r#"{"type":"publish","topic":"a\u0007","payload":1}"#, "invalid_topic"),
            (r#"{"type":"publish","topic":"a\uffff","payload":1}"#, "invalid_topic"),
            (&long, "invalid_topic"),
            (&levels, "invalid_topic"),
            (r#"{"type":"publish","topic":"a","payload":"QQ","encoding":"base64"}"#, "invalid_payload"),
            (r#"{"type":"publish","topic":"a","payload":1,"encoding":"base64"}"#, "invalid_payload"),
            (&large, "payload_too_large"),
            (r#"{"type":"auth","token":"c2VjcmV0"}"#, "not_authenticated"),
        ];
        for (text, code) in cases {
            let shown: String = text.chars().take(80).collect();
            assert_eq!(refused(&mut browser, text).await, once(code), "{shown}");
            lives(&mut browser).await;
        }
        for filter in ["a/#/b", "", "a+", "$share/g", "a\0", "a\u{7}"] {
            assert_eq!(denied(&mut browser, filter).await, "invalid_topic", "{filter:?}");
        }
        assert_eq!(denied(&mut browser, &"/".repeat(300)).await, "invalid_topic");
        assert_eq!(denied(&mut browser, &"x".repeat(65_536)).await, "invalid_topic");
        assert_eq!(house.metric(r#"tidegate_refusals_total{code="invalid_payload"}"#).await, 2.0);
        browser.subscribe("a").await;
    }

    #[tokio::test]
    async fn what_is_too_large_for_the_broker_never_reaches_it() {
        let mosquitto = Mosquitto::start_with("max_packet_size 2000").await;
        let house = Gateway::before(&mosquitto).await;
        let mut browser = house.browser().await;
        for qos in 0..3 {
            let large = json!({"type": "publish", "topic": "a", "payload": "x".repeat(2000), "qos": qos}).to_string();
            assert_eq!(refused(&mut browser, &large).await, once("payload_too_large"), "qos {qos}");
            browser
                .send(json!({"type": "publish", "topic": "a", "payload": "x".repeat(1900), "qos": qos, "msgid": qos}))
                .await;
            browser.expect("ack").await;
        }
        assert_eq!(house.metric("tidegate_broker_reconnects_total").await, 0.0, "the broker never hung up");
    }

    #[tokio::test]
    async fn what_the_broker_does_not_allow_is_told() {
        let folder = TempDir::new().expect("a folder");
        let rights = folder.path().join("acl");
        std::fs::write(&rights, "topic readwrite open/#\n").expect("written");
        let mosquitto = Mosquitto::start_with(&format!("acl_file {}", rights.display())).await;
        let house = Gateway::before(&mosquitto).await;
        let mut browser = house.browser().await;
        // Mosquitto's file of rights grants every subscription, and says nothing about qos 0.
        for qos in [1, 2] {
            assert_eq!(refused(&mut browser, &publish("secret/1", qos)).await, once("not_authorized"), "qos {qos}");
        }
        browser.subscribe("open/#").await;
        browser.send_text(&publish("open/1", 0)).await;
        let kinds = [browser.next().await["type"].take(), browser.next().await["type"].take()];
        assert!(kinds.contains(&json!("ack")) && kinds.contains(&json!("mqtt")), "{kinds:?}");
    }

    #[tokio::test]
    async fn what_the_broker_does_not_do_is_told() {
        let mosquitto = Mosquitto::start_with("retain_available false").await;
        let house = Gateway::before(&mosquitto).await;
        let mut browser = house.browser().await;
        for qos in 0..3 {
            let stored =
                json!({"type": "publish", "topic": "a", "payload": "x", "qos": qos, "retain": true}).to_string();
            assert_eq!(refused(&mut browser, &stored).await, once("broker_rejected"), "qos {qos}");
        }
        lives(&mut browser).await;
    }

    #[tokio::test]
    async fn one_subscription_too_many_is_refused_for_now() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nmax_subscriptions = 2").await;
        let mut browser = house.connect().await;
        let three = json!([{"topic": "a"}, {"topic": "b"}, {"topic": "c"}]);
        browser.send(json!({"type": "auth", "subscriptions": three})).await;
        assert_eq!(browser.expect("error").await["code"], "quota_exceeded");
        browser.send(json!({"type": "auth", "subscriptions": [{"topic": "a"}]})).await;
        browser.expect("auth_response").await;
        browser.expect("welcome").await;
        browser.subscribe("b").await;
        assert_eq!(denied(&mut browser, "c").await, "quota_exceeded");
        browser.send(json!({"type": "unsubscribe", "topic": "a"})).await;
        browser.expect("unsubscribed").await;
        browser.subscribe("c").await;
    }

    #[tokio::test]
    async fn while_the_broker_is_away_requests_fail_in_time_and_the_session_stays() {
        let mut mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[broker]\nrequest_timeout = 1").await;
        let mut browser = house.browser().await;
        mosquitto.kill().await;
        assert_eq!(browser.expect("broker").await["status"], "down");
        assert_eq!(refused(&mut browser, &publish("a", 0)).await, for_now("broker_unavailable"));
        for qos in [1, 2] {
            assert_eq!(refused(&mut browser, &publish("a", qos)).await, for_now("timeout"), "qos {qos}");
        }
        assert_eq!(denied(&mut browser, "a").await, "timeout");
        browser.send(json!({"type": "unsubscribe", "topic": "a"})).await;
        assert_eq!(browser.expect("unsubscribed").await["topics"][0]["error"], "timeout");
        lives(&mut browser).await;
        mosquitto.restart().await;
        assert_eq!(browser.expect("broker").await["status"], "up");
        browser.publish("a", "x", 1).await;
    }

    #[tokio::test]
    async fn a_browser_that_reads_nothing_is_told_how_much_was_dropped() {
        const SENT: u64 = 3000;
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[delivery]\nmax_queued = 10").await;
        let mut slow = Raw::connect(&house.address).await;
        slow.text(r#"{"type":"subscribe","topic":"flood"}"#).await;
        assert_eq!(slow.next().await["type"], "welcome");
        assert_eq!(slow.next().await["type"], "subscribed");
        let mut quick = house.browser().await;
        let payload = "x".repeat(10_000);
        for number in 0..SENT {
            quick.send(json!({"type": "publish", "topic": "flood", "payload": payload, "msgid": number})).await;
            quick.expect("ack").await;
        }
        // The queues are full, and nothing moves: the stall is noticed, and what comes from now on is dropped for.
        let dropped = "tidegate_deliveries_dropped_total";
        eventually("deliveries are dropped", async || house.metric(dropped).await > 0.0).await;
        let before = house.metric("process_cpu_seconds_total").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let busy = house.metric("process_cpu_seconds_total").await - before;
        assert!(busy < 0.3, "waiting for a client costs nothing, not {busy} seconds of CPU a second");

        let (mut received, mut told) = (0, 0);
        while received + told < SENT {
            let frame = slow.next().await;
            match frame["code"].as_str() {
                None => received += 1,
                Some(code) => {
                    assert_eq!((code, &frame["retryable"]), ("dropped", &json!(false)));
                    told += frame["count"].as_u64().expect("a count");
                }
            }
        }
        assert_eq!((received + told, house.metric(dropped).await), (SENT, told as f64), "all are received or told");
        slow.text(r#"{"type":"ping"}"#).await;
        assert_eq!(slow.next().await["type"], "pong");
    }

    #[tokio::test]
    async fn arbitrary_texts_get_one_answer_each() {
        const TEXTS: usize = 2000;
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let mut browser = house.browser().await;
        let mut random = StdRng::seed_from_u64(20_260_101);
        for first in (0..TEXTS).step_by(100) {
            let texts: Vec<String> = (0..100).map(|_| garbage(&mut random)).collect();
            for (number, text) in texts.iter().enumerate() {
                browser.send_text(text).await;
                browser.send(json!({"type": "ping", "msgid": number})).await;
            }
            for (number, text) in texts.iter().enumerate() {
                let error = browser.next().await;
                assert_eq!(error["type"], "error", "text {}: {text:?}: {error}", first + number);
                assert_eq!(browser.expect("pong").await["msgid"], number, "text {}: {text:?}", first + number);
            }
        }
    }

    /// A text that is no frame: noise, parts of frames, or a frame with a slip.
    fn garbage(random: &mut StdRng) -> String {
        const PARTS: [&str; 16] = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"",
            "\\u",
            "\\",
            "null",
            "-1e9",
            "\0",
            "😀",
            "\"type\"",
            "\"publish\"",
            "{\"a\":",
        ];
        match random.random_range(0..3) {
            0 => (0..random.random_range(0..40)).map(|_| random.random::<char>()).collect(),
            1 => (0..random.random_range(0..20)).map(|_| PARTS[random.random_range(0..PARTS.len())]).collect(),
            _ => {
                let frame = r#"{"type":"publish","topic":"a","payload":1"#;
                let noise: String = (0..random.random_range(0..9)).map(|_| random.random_range(' '..'}')).collect();
                format!("{frame}{noise}")
            }
        }
    }
}

mod closes {
    use super::*;

    /// Waits until that many sessions have ended with this code.
    async fn closed(house: &Gateway, code: u16, count: usize) {
        let line = format!("tidegate_sessions_closed_total{{code=\"{code}\"}} {count}\n");
        eventually("the sessions are closed", async || house.get(&house.admin, "/metrics").await.1.contains(&line))
            .await;
    }

    #[tokio::test]
    async fn a_broken_websocket_ends_with_the_code_of_what_is_broken() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let unmasked = b"\x81\x02{}".to_vec();
        let cases = [
            ("reserved bits", masked(0xF0 | TEXT, b"{}"), 1002),
            ("a reserved opcode", masked(0x83, b"{}"), 1002),
            ("a frame without its mask", unmasked, 1002),
            ("a ping in fragments", masked(0x09, b""), 1002),
            ("a ping of 126 bytes", masked(0x89, &[0; 126]), 1002),
            ("a continuation of nothing", masked(0x80, b"{}"), 1002),
            ("a message inside a message", [masked(0x01, b"{"), masked(TEXT, b"}")].concat(), 1002),
            ("binary", masked(BINARY, b"{}"), 1003),
            ("broken UTF-8", masked(TEXT, b"{\"type\":\"\xFF\"}"), 1007),
            ("an overlong form", masked(TEXT, b"\xC0\xAF"), 1007),
            ("half a character", masked(TEXT, b"\xC3"), 1007),
            ("a surrogate in UTF-8", masked(TEXT, b"\xED\xA0\x80"), 1007),
        ];
        for (name, bytes, code) in cases {
            for is_open in [false, true] {
                let mut raw = Raw::connect(&house.address).await;
                if is_open {
                    raw.text(r#"{"type":"ping"}"#).await;
                    raw.next().await;
                    raw.next().await;
                }
                raw.write(&bytes).await;
                assert_eq!(raw.closed().await, code, "{name}, the session open: {is_open}");
            }
        }
        let counted = house.metric(r#"tidegate_sessions_closed_total{code="1003"}"#).await;
        assert_eq!(counted, 2.0);
    }

    #[tokio::test]
    async fn a_frame_of_the_largest_size_is_served_and_one_byte_more_ends_the_session() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[wire]\nmax_frame = 100000").await;
        let ping = |bytes: usize| format!("{{\"type\":\"ping\"{}}}", " ".repeat(bytes - 15));
        let mut browser = house.browser().await;
        browser.send_text(&ping(100_000)).await;
        browser.expect("pong").await;
        browser.send_text(&ping(100_001)).await;
        assert_eq!(browser.closed().await, 1009);

        let mut raw = Raw::connect(&house.address).await;
        raw.write(&masked(0x01, &[b' '; 60_000])).await;
        raw.write(&masked(0x80, &[b' '; 60_000])).await;
        assert_eq!(raw.closed().await, 1009, "fragments are counted together");
    }

    #[tokio::test]
    async fn a_client_learns_that_its_frame_is_too_large_while_it_still_sends() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let mut raw = Raw::connect(&house.address).await;
        raw.write(&head(TEXT, 8 << 20)).await;
        for _ in 0..128 {
            raw.write(&[b' '; 64 * 1024]).await;
        }
        assert_eq!(raw.closed().await, 1009);
    }

    #[tokio::test]
    async fn a_frame_whose_size_fits_no_memory_ends_the_session() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        for length in [1 << 40, (1 << 63) - 1, u64::MAX] {
            let mut raw = Raw::connect(&house.address).await;
            raw.write(&head(TEXT, length)).await;
            let code = raw.closed().await;
            assert!([1002, 1009].contains(&code), "{length} bytes: {code}");
        }
        assert_eq!(house.get(&house.address, "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn a_client_that_answers_no_ping_is_given_up_and_one_that_does_is_not() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nheartbeat = 0.3").await;
        let mut browser = house.browser().await;
        let mut silent = Raw::connect(&house.address).await;
        silent.text(r#"{"type":"ping"}"#).await;
        // The browser's own reading answers the pings meanwhile.
        let (code, ()) = tokio::join!(silent.closed(), browser.hears_nothing_for(Duration::from_millis(1500)));
        assert_eq!(code, 4001);
        lives(&mut browser).await;
    }

    #[tokio::test]
    async fn a_client_that_sends_frames_and_no_pongs_is_alive() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nheartbeat = 0.3").await;
        let mut busy = Raw::connect(&house.address).await;
        busy.text(r#"{"type":"ping"}"#).await;
        assert_eq!(busy.next().await["type"], "welcome");
        assert_eq!(busy.next().await["type"], "pong");
        // More than the three pings after which silence ends a session.
        let mut pings = 0;
        while pings < 6 {
            busy.text(r#"{"type":"ack","msgid":"none"}"#).await;
            let (first, payload) = busy.frame().await;
            assert_eq!(first, 0x89, "{}", String::from_utf8_lossy(&payload));
            pings += 1;
        }
        busy.text(r#"{"type":"ping","msgid":1}"#).await;
        assert_eq!(busy.next().await["msgid"], 1);
        assert_eq!(busy.closed().await, 4001, "and when it is silent, it is given up");
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nwrite_timeout = 1").await;
        let mut slow = Raw::connect(&house.address).await;
        slow.text(r#"{"type":"subscribe","topic":"flood","qos":1}"#).await;
        slow.next().await;
        slow.next().await;
        let mut quick = house.browser().await;
        let payload = "x".repeat(1_000_000);
        for number in 0..32 {
            quick
                .send(json!({"type": "publish", "topic": "flood", "payload": payload, "qos": 1, "msgid": number}))
                .await;
            quick.expect("ack").await;
        }
        closed(&house, 4008, 1).await;
        lives(&mut quick).await;
    }

    #[tokio::test]
    async fn twenty_invalid_frames_in_a_row_end_the_session() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let mut browser = house.browser().await;
        for count in [19, 20] {
            for _ in 0..count {
                assert_eq!(refused(&mut browser, "no JSON").await, once("invalid_json"));
            }
            if count < 20 {
                lives(&mut browser).await;
            }
        }
        assert_eq!(browser.closed().await, 4400);
    }

    #[tokio::test]
    async fn malformed_auths_are_invalid_frames_like_others() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let mut browser = house.connect().await;
        for _ in 0..20 {
            assert_eq!(refused(&mut browser, r#"{"type":"auth","clean":"no"}"#).await, once("invalid_frame"));
        }
        assert_eq!(browser.closed().await, 4400);
    }

    #[tokio::test]
    async fn a_credential_that_nobody_can_check_ends_the_session_with_a_reason() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let offers: [&[(&str, &str)]; 4] = [
            &[("authorization", "Bearer c2VjcmV0")],
            &[("authorization", "bearer c2VjcmV0")],
            &[("sec-websocket-protocol", "tidegate.v1.json, bearer.c2VjcmV0")],
            &[("sec-websocket-protocol", "bearer.c2VjcmV0, tidegate.v1.json")],
        ];
        for headers in offers {
            let mut browser = Browser::connect_with(&house.address, "/ws", headers).await.expect("the upgrade is made");
            assert_ne!(browser.subprotocol.as_deref(), Some("bearer.c2VjcmV0"), "a token is never echoed");
            let error = browser.expect("error").await;
            assert_eq!((&error["code"], error.to_string().contains("c2VjcmV0")), (&json!("not_authenticated"), false));
            assert_eq!(browser.closed().await, 4403, "{headers:?}");
        }
        let mut browser = house.connect().await;
        browser.send(json!({"type": "auth", "token": "c2VjcmV0", "msgid": 1})).await;
        let error = browser.expect("error").await;
        assert_eq!((&error["code"], &error["msgid"]), (&json!("not_authenticated"), &json!(1)));
        assert_eq!(browser.closed().await, 4403);
    }

    #[tokio::test]
    async fn without_a_broker_a_session_ends_within_the_time_out() {
        let nowhere = format!("mqtt://127.0.0.1:{}", free_port());
        let house = Gateway::start_unready(&nowhere, "[broker]\nrequest_timeout = 1").await;
        let mut browser = house.connect().await;
        browser.send(json!({"type": "auth"})).await;
        assert_eq!(browser.expect("error").await["code"], "broker_unavailable");
        assert_eq!(browser.closed().await, 4503);
    }

    #[tokio::test]
    async fn a_broker_that_refuses_the_gateway_ends_the_session_with_its_reason() {
        let mosquitto = Mosquitto::start_with("allow_anonymous false").await;
        let house = Gateway::start_unready(&mosquitto.url(), "").await;
        let mut browser = house.connect().await;
        browser.send(json!({"type": "auth"})).await;
        assert_eq!(browser.expect("error").await["code"], "broker_rejected");
        assert_eq!(browser.closed().await, 4503);
    }

    #[tokio::test]
    async fn a_gateway_that_stops_says_goodbye_to_every_session() {
        let mosquitto = Mosquitto::start().await;
        let mut house = Gateway::before(&mosquitto).await;
        let (open, silent) = (house.browser().await, house.connect().await);
        let status = house.stop().await;
        assert!(status.success(), "{status}");
        for mut browser in [open, silent] {
            let bye = browser.expect("bye").await;
            assert_eq!(bye["reason"], "drain");
            assert!(bye["reconnectAfter"].as_u64().is_some_and(|millis| (100..60_000).contains(&millis)), "{bye}");
            assert_eq!(browser.closed().await, 1001);
        }
    }

    #[tokio::test]
    async fn a_client_that_asks_and_never_reads_is_not_listened_to_for_ever() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nauth_timeout = 1\nwrite_timeout = 1").await;
        let mut deaf = Vec::new();
        for question in [r#"{"type":"ping"}"#, r#"{"type":"auth","will":{"topic":"+","payload":""}}"#] {
            let mut raw = Raw::connect(&house.address).await;
            let questions = masked(TEXT, question.as_bytes()).repeat(2000);
            let mut sent = 0;
            while let Ok(Ok(())) = timeout(Duration::from_millis(500), raw.stream.write_all(&questions)).await {
                sent += questions.len();
                assert!(sent < 64 << 20, "{sent} bytes were taken from a client that reads no answer");
            }
            deaf.push(raw);
        }
        closed(&house, 4008, 2).await;
    }
}
