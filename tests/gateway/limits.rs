//! The doors: how many may come in, how fast, and how long they may take over it. Other clients are other addresses of this machine.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{Browser, Gateway, Mosquitto, PATIENCE, dial, eventually};

const ANNA: [u8; 4] = [127, 0, 0, 2];
const BEN: [u8; 4] = [127, 0, 0, 3];

/// A browser that is served: what it asks is answered.
async fn served(house: &Gateway, from: [u8; 4], headers: &[(&str, &str)]) -> Browser {
    let mut browser = Browser::connect_from(from, &house.address, headers).await;
    browser.send(json!({"type": "ping"})).await;
    browser.expect("welcome").await;
    browser.expect("pong").await;
    browser
}

/// A WebSocket that is told which limit it is over, by the name of the setting, and closed.
async fn turned_away(house: &Gateway, from: [u8; 4], headers: &[(&str, &str)], setting: &str) {
    let mut browser = Browser::connect_from(from, &house.address, headers).await;
    is_told(&mut browser, setting).await;
}

async fn is_told(browser: &mut Browser, setting: &str) {
    let error = browser.expect("error").await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("rate_limited"), &json!(true)));
    assert!(error["message"].as_str().expect("text").contains(setting), "{error}");
    assert_eq!(browser.closed().await, 4429);
}

async fn refused(house: &Gateway, reason: &str) -> f64 {
    house.metric(&format!("tidegate_connections_refused_total{{reason=\"{reason}\"}}")).await
}

/// What the gateway sends until it ends the connection.
async fn all_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

mod addresses {
    use super::*;

    #[tokio::test]
    async fn an_address_has_its_connections_and_another_its_own() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[connections]\nmax_per_address = 2").await;
        let first = served(&house, ANNA, &[]).await;
        let _second = served(&house, ANNA, &[]).await;
        turned_away(&house, ANNA, &[], "connections.max_per_address").await;
        served(&house, BEN, &[]).await;
        assert_eq!(refused(&house, "max_per_address").await, 1.0);
        assert_eq!(house.metric("tidegate_sessions_closed_total{code=\"4429\"}").await, 1.0);
        assert!(house.log().contains("max_per_address"), "{}", house.log());

        first.leave().await;
        eventually("the place is free", async || {
            let mut browser = Browser::connect_from(ANNA, &house.address, &[]).await;
            browser.ask(json!({"type": "ping"})).await["type"] == "welcome"
        })
        .await;
    }

    #[tokio::test]
    async fn ten_seconds_worth_of_new_connections_may_come_at_once() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[connections]\nmax_new_per_second = 1").await;
        let started = tokio::time::Instant::now();
        let mut count = 0;
        let mut last = loop {
            let mut browser = Browser::connect_from(ANNA, &house.address, &[]).await;
            browser.send(json!({"type": "ping"})).await;
            let answer = browser.next().await;
            if answer["type"] != "welcome" {
                assert!(
                    answer["message"].as_str().expect("text").contains("connections.max_new_per_second"),
                    "{answer}"
                );
                break browser;
            }
            count += 1;
        };
        assert_eq!(last.closed().await, 4429);
        let earned = 10 + started.elapsed().as_secs() as usize + 1;
        assert!((10..=earned).contains(&count), "{count} came at once");
        served(&house, BEN, &[]).await;
        assert_eq!(refused(&house, "max_new_per_second").await, 1.0);
    }

    #[tokio::test]
    async fn behind_a_trusted_proxy_the_client_is_whom_it_forwards() {
        let mosquitto = Mosquitto::start().await;
        let settings = "[http]\ntrusted_proxies = [\"127.0.0.0/8\"]\n[connections]\nmax_per_address = 1";
        let house = Gateway::start(&mosquitto.url(), settings).await;
        let from = |client: &'static str| [("x-forwarded-for", client)];
        let _first = served(&house, ANNA, &from("203.0.113.5")).await;
        turned_away(&house, ANNA, &from("203.0.113.5"), "max_per_address").await;
        turned_away(&house, BEN, &from("198.51.100.1, 203.0.113.5, 127.0.0.9"), "max_per_address").await;
        let both = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.5")];
        turned_away(&house, BEN, &both, "max_per_address").await;
        let _second = served(&house, ANNA, &from("203.0.113.6")).await;
        let _third = served(&house, ANNA, &from("2001:db8::1")).await;
        turned_away(&house, ANNA, &from("2001:db8::2"), "max_per_address").await;
        let _fourth = served(&house, ANNA, &from("2001:db8:0:1::2")).await;
        let _fifth = served(&house, ANNA, &from("203.0.113.7, unknown")).await;
        turned_away(&house, ANNA, &from("nonsense"), "max_per_address").await;
    }

    #[tokio::test]
    async fn whoever_is_no_trusted_proxy_forwards_nobody() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[connections]\nmax_per_address = 1").await;
        let _first = served(&house, ANNA, &[("x-forwarded-for", "203.0.113.5")]).await;
        turned_away(&house, ANNA, &[("x-forwarded-for", "203.0.113.6")], "max_per_address").await;
        let _second = served(&house, BEN, &[("x-forwarded-for", "203.0.113.5")]).await;
    }
}

mod queue {
    use super::*;

    const ONE_PLACE: &str = "[connections]\nmax = 1\nmax_queued = 3\n";

    async fn waits(house: &Gateway, position: u64) -> Browser {
        let mut browser = house.connect().await;
        assert_eq!(browser.expect("queued").await["position"], position);
        browser
    }

    #[tokio::test]
    async fn places_are_given_in_the_order_of_arrival() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), ONE_PLACE).await;
        let inside = house.browser().await;
        let (mut first, second, mut third) = (waits(&house, 1).await, waits(&house, 2).await, waits(&house, 3).await);
        assert_eq!(house.metric("tidegate_sessions_queued").await, 3.0);
        assert_eq!(house.metric("tidegate_sessions_open").await, 1.0);
        turned_away(&house, ANNA, &[], "connections.max_queued").await;
        assert_eq!(refused(&house, "max_queued").await, 1.0);

        second.vanish();
        assert_eq!(third.expect("queued").await["position"], 2, "it moves up");
        first.send(json!({"type": "auth", "clientId": "first", "msgid": 1})).await;
        first.send(json!({"type": "ping", "msgid": 2})).await;
        first.send(json!({"type": "subscribe", "topic": "a", "msgid": 3})).await;
        first.hears_nothing_for(Duration::from_millis(300)).await;
        inside.leave().await;
        assert_eq!(first.expect("auth_response").await["msgid"], 1);
        assert_eq!(first.expect("welcome").await["clientId"], "first", "what it said while it waited is served");
        assert_eq!(first.expect("pong").await["msgid"], 2);
        assert_eq!(first.expect("subscribed").await["msgid"], 3);
        assert_eq!(third.expect("queued").await["position"], 1);
        third.hears_nothing_for(Duration::from_millis(300)).await;
        first.vanish();
        third.send(json!({"type": "ping"})).await;
        third.expect("welcome").await;
        third.expect("pong").await;
        assert_eq!(house.metric("tidegate_sessions_queued").await, 0.0);
    }

    #[tokio::test]
    async fn who_waits_too_long_is_let_go() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), &format!("{ONE_PLACE}queue_timeout = 0.5")).await;
        let mut inside = house.browser().await;
        let mut waiting = waits(&house, 1).await;
        is_told(&mut waiting, "connections.queue_timeout").await;
        assert_eq!(refused(&house, "queue_timeout").await, 1.0);
        inside.publish("a", "x", 1).await;
    }

    #[tokio::test]
    async fn more_places_that_come_with_a_new_configuration_are_given_to_those_who_wait() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), ONE_PLACE).await;
        let _inside = house.browser().await;
        let (mut first, mut second) = (waits(&house, 1).await, waits(&house, 2).await);
        house.reload("[connections]\nmax = 2").await;
        first.send(json!({"type": "ping"})).await;
        first.expect("welcome").await;
        assert_eq!(second.expect("queued").await["position"], 1);
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_gateway_drains() {
        let mosquitto = Mosquitto::start().await;
        let mut house = Gateway::start(&mosquitto.url(), ONE_PLACE).await;
        let mut inside = house.browser().await;
        let mut waiting = waits(&house, 1).await;
        assert!(house.stop().await.success());
        for browser in [&mut inside, &mut waiting] {
            browser.expect("bye").await;
            assert_eq!(browser.closed().await, 1001);
        }
    }

    #[tokio::test]
    async fn a_client_that_talks_while_it_waits_is_heard_only_so_far_and_loses_nothing() {
        const FRAMES: usize = 2000;
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), ONE_PLACE).await;
        let inside = house.browser().await;
        let mut waiting = waits(&house, 1).await;
        for number in 0..FRAMES {
            waiting.send(json!({"type": "ping", "msgid": number})).await;
        }
        inside.leave().await;
        waiting.expect("welcome").await;
        for number in 0..FRAMES {
            assert_eq!(waiting.expect("pong").await["msgid"], number);
        }
    }
}

mod frames {
    use super::*;

    /// The code of the answer to a frame that is refused, and nothing for one that is served.
    async fn refusal(browser: &mut Browser, frame: serde_json::Value) -> Option<String> {
        let answer = browser.ask(frame).await;
        let code = answer.get("code").or_else(|| answer["topics"][0].get("error"));
        code.map(|code| code.as_str().expect("a word").to_owned())
    }

    #[tokio::test]
    async fn topics_and_filters_have_so_many_levels() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[wire]\nmax_topic_levels = 3").await;
        let mut browser = house.browser().await;
        let invalid = Some("invalid_topic".to_owned());
        for (topic, expected) in [("a/b/c", None), ("a/b/c/d", invalid.clone()), ("//", None), ("///", invalid.clone())]
        {
            let publish = json!({"type": "publish", "topic": topic, "payload": 1, "msgid": topic});
            assert_eq!(refusal(&mut browser, publish).await, expected, "publish to {topic}");
        }
        for (filter, expected) in
            [("+/+/#", None), ("+/+/+/#", invalid.clone()), ("$share/g/#", None), ("$share/g/a/#", invalid.clone())]
        {
            let subscribe = json!({"type": "subscribe", "topic": filter});
            assert_eq!(refusal(&mut browser, subscribe).await, expected, "subscribe to {filter}");
        }
        let counted = house.metric("tidegate_refusals_total{code=\"invalid_topic\"}").await;
        assert_eq!(counted, 4.0, "two publishes and two entries");
    }

    #[tokio::test]
    async fn a_payload_of_the_largest_size_is_served_and_one_byte_more_is_not() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[wire]\nmax_payload = 1000").await;
        let mut browser = house.browser().await;
        let publish = |bytes| json!({"type": "publish", "topic": "a", "payload": "x".repeat(bytes), "msgid": bytes});
        assert_eq!(refusal(&mut browser, publish(1000)).await, None);
        assert_eq!(refusal(&mut browser, publish(1001)).await.as_deref(), Some("payload_too_large"));
        assert_eq!(house.metric("tidegate_refusals_total{code=\"payload_too_large\"}").await, 1.0);
    }

    #[tokio::test]
    async fn whatever_may_be_counted_is_on_the_page_from_the_start() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        for code in ["invalid_json", "payload_too_large", "quota_exceeded", "rate_limited", "internal"] {
            assert_eq!(house.metric(&format!("tidegate_refusals_total{{code=\"{code}\"}}")).await, 0.0);
        }
        for code in ["1002", "1009", "4001", "4401", "4429"] {
            assert_eq!(house.metric(&format!("tidegate_sessions_closed_total{{code=\"{code}\"}}")).await, 0.0);
        }
        assert_eq!((refused(&house, "max_queued").await, house.metric("tidegate_sessions_queued").await), (0.0, 0.0));
    }
}

mod newcomers {
    use super::*;

    #[tokio::test]
    async fn connections_that_say_nothing_hold_no_door_shut() {
        const ATTACKERS: u8 = 120;
        let mosquitto = Mosquitto::start().await;
        let settings =
            "[connections]\nmax_unauthenticated = 20\n[session]\nauth_timeout = 60\n[http]\nheader_timeout = 60";
        let house = Gateway::start(&mosquitto.url(), settings).await;
        let mut open = house.browser().await;
        let mut silent = Vec::new();
        let mut held = Vec::new();
        for number in 10..10 + ATTACKERS {
            let from = [127, 0, 0, number];
            match number % 4 {
                0 => silent.push(Browser::connect_from(from, &house.address, &[]).await),
                kind => {
                    let begun: &[u8] = match kind {
                        1 => b"",
                        2 => b"GET / HTTP/1.1\r\nHost: slow\r\nX-",
                        _ => b"POST / HTTP/1.1\r\nHost: slow\r\nContent-Length: 1000\r\n\r\n{",
                    };
                    let mut stream = dial(from, &house.address).await;
                    let _ = stream.write_all(begun).await;
                    held.push(stream);
                }
            }
        }
        eventually("all of them are seen", async || refused(&house, "max_unauthenticated").await >= 60.0).await;
        let held_open = house.metric("tidegate_connections_unauthenticated").await;
        assert!(held_open <= 25.0, "{held_open}: 20 of the browsers' listener, and those that ask for metrics");
        served(&house, BEN, &[]).await;
        assert_eq!(house.get(&house.address, "/").await.0, 200);
        open.publish("a", "x", 1).await;
        is_told(&mut silent[0], "connections.max_unauthenticated").await;
        let lines = house.log().matches("max_unauthenticated").count();
        assert!(lines < 60, "the log is not flooded: {lines} lines");
    }

    #[tokio::test]
    async fn a_websocket_that_has_spoken_is_no_newcomer() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[connections]\nmax_unauthenticated = 2").await;
        let mut silent = house.connect().await;
        let mut open = [house.browser().await, house.browser().await, house.browser().await];
        let mut second = house.connect().await;
        silent.hears_nothing_for(Duration::from_millis(200)).await;
        let third = house.connect().await;
        is_told(&mut silent, "connections.max_unauthenticated").await;
        for browser in &mut open {
            assert_eq!(browser.ask(json!({"type": "ping"})).await["type"], "pong");
        }
        assert_eq!(second.ask(json!({"type": "ping"})).await["type"], "welcome");
        third.vanish();
    }
}

mod requests {
    use super::*;

    #[tokio::test]
    async fn a_head_that_does_not_come_in_time_ends_the_connection() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[http]\nheader_timeout = 0.5").await;
        for (case, begun) in [("nothing", ""), ("a part", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")] {
            let mut stream = TcpStream::connect(&house.address).await.expect("it listens");
            stream.write_all(begun.as_bytes()).await.expect("written");
            let answer = all_of(&mut stream).await;
            assert!(!answer.starts_with("HTTP/1.1 2"), "{case}: {answer}");
        }
        assert_eq!(refused(&house, "header_timeout").await, 2.0);

        let mut dripping = TcpStream::connect(&house.address).await.expect("it listens");
        dripping.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.expect("written");
        let ended = timeout(PATIENCE, async {
            while dripping.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        ended.await.expect("a byte now and then buys no time");
    }

    #[tokio::test]
    async fn an_idle_connection_ends_after_its_answers() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[http]\nheader_timeout = 0.5").await;
        let mut stream = TcpStream::connect(&house.address).await.expect("it listens");
        for _ in 0..2 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
            let mut answer = Vec::new();
            while !answer.ends_with(b"{\"status\":\"ok\"}") {
                answer.push(timeout(PATIENCE, stream.read_u8()).await.expect("in time").expect("a byte"));
            }
        }
        assert_eq!(all_of(&mut stream).await, "");
        assert_eq!(refused(&house, "header_timeout").await, 0.0, "nobody was turned away");
    }

    #[tokio::test]
    async fn a_head_of_the_largest_size_is_served_and_one_byte_more_is_not() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[http]\nmax_header = 2000").await;
        for (size, status) in [(2000, "HTTP/1.1 200"), (2001, "HTTP/1.1 431")] {
            let start = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Filler: ";
            let head = format!("{start}{}\r\n\r\n", "x".repeat(size - start.len() - 4));
            let mut stream = TcpStream::connect(&house.address).await.expect("it listens");
            stream.write_all(head.as_bytes()).await.expect("written");
            let answer = all_of(&mut stream).await;
            assert!(answer.starts_with(status), "{size} bytes: {answer}");
        }
        assert_eq!(refused(&house, "max_header").await, 1.0);
    }

    #[tokio::test]
    async fn a_body_that_never_comes_is_not_waited_for() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        for (method, status) in [("POST", "HTTP/1.1 405"), ("GET", "HTTP/1.1 200")] {
            let mut stream = TcpStream::connect(&house.address).await.expect("it listens");
            let head = format!("{method} /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("written");
            let answer = all_of(&mut stream).await;
            assert!(answer.starts_with(status), "{method}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_response_that_nobody_reads_ends_the_connection() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nwrite_timeout = 0.5").await;
        for address in [&house.address, &house.admin] {
            let path = if address == &house.admin { "/metrics" } else { "/console.js" };
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(200);
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            let writing = timeout(PATIENCE, async { while stream.write_all(request.as_bytes()).await.is_ok() {} });
            writing.await.expect("the gateway ends the connection");
        }
        assert_eq!(refused(&house, "write_timeout").await, 2.0);
        assert_eq!(house.get(&house.address, "/").await.0, 200);
    }

    #[tokio::test]
    async fn a_gateway_that_stops_waits_for_no_request_that_does_not_come() {
        let mosquitto = Mosquitto::start().await;
        let mut house = Gateway::before(&mosquitto).await;
        let mut begun = TcpStream::connect(&house.address).await.expect("it listens");
        begun.write_all(b"GET / HTTP/1.1\r\nHost: ").await.expect("written");
        let mut idle = TcpStream::connect(&house.address).await.expect("it listens");
        eventually("both are seen", async || house.metric("tidegate_connections_unauthenticated").await >= 3.0).await;
        assert!(house.stop().await.success());
        assert!(!house.log().contains("the deadline has passed"), "{}", house.log());
        assert_eq!((all_of(&mut begun).await, all_of(&mut idle).await), (String::new(), String::new()));
    }

    #[tokio::test]
    async fn without_descriptors_the_gateway_waits_quietly_and_then_serves_again() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "").await;
        let mut open = house.browser().await;
        let limit = |files: &str| {
            let (id, files) = (house.id().to_string(), format!("--nofile={files}"));
            async move {
                let status = Command::new("prlimit").args(["--pid", &id, &files]).status().await;
                assert!(status.expect("prlimit is part of util-linux").success());
            }
        };
        let files = house.metric("process_open_fds").await as u64;
        limit(&format!("{}:", files + 5)).await;
        let mut crowd = Vec::new();
        for _ in 0..30 {
            crowd.push(TcpStream::connect(&house.address).await.expect("the kernel takes it"));
        }
        eventually("it is told", async || house.log().contains("reason=\"accept\"")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        open.publish("a", "x", 1).await;
        let lines = house.log().matches("reason=\"accept\"").count();
        assert!(lines <= 10, "the log is not flooded: {lines} lines");
        drop(crowd);
        limit("1024:").await;
        served(&house, ANNA, &[]).await;
        let tries = refused(&house, "accept").await;
        assert!((1.0..100.0).contains(&tries), "it does not spin: {tries} tries");
    }
}
