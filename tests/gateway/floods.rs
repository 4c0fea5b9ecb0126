//! Clients that send more than anybody should: they are held to their rates, and hurt neither a neighbour nor the process.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::time::{sleep, timeout};

use crate::support::raw::{PING, Raw, TEXT, head, masked};
use crate::support::{Browser, Gateway, Mosquitto, eventually};

mod rates {
    use super::*;

    fn publish(msgid: usize, qos: u8) -> Value {
        json!({"type": "publish", "topic": "a", "payload": "x", "qos": qos, "msgid": msgid})
    }

    /// Sends these frames at once; gives back what answers each, in that order.
    async fn burst(browser: &mut Browser, frames: impl IntoIterator<Item = Value>) -> Vec<Value> {
        let mut answers = Vec::new();
        for frame in frames {
            browser.send(frame).await;
            answers.push(Value::Null);
        }
        for answer in &mut answers {
            *answer = browser.next().await;
        }
        answers
    }

    fn count(answers: &[Value], kind: &str) -> usize {
        answers.iter().filter(|answer| answer["type"] == kind).count()
    }

    #[tokio::test]
    async fn frames_over_the_rate_are_refused_and_a_client_that_goes_on_is_let_go() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nmax_frames_per_second = 30").await;
        let mut browser = house.browser().await;
        let pings = |numbers: std::ops::Range<u32>| numbers.map(|number| json!({"type": "ping", "msgid": number}));
        let answers = burst(&mut browser, pings(0..30)).await;
        assert_eq!(count(&answers, "pong"), 30, "{answers:?}");
        let mut goes_on = house.browser().await;
        for number in 0.. {
            let answer = goes_on.ask(json!({"type": "ping", "msgid": number})).await;
            assert_eq!(answer["msgid"], number, "each is answered: {answer}");
            if answer["type"] == "error" {
                assert_eq!((&answer["code"], &answer["retryable"]), (&json!("rate_limited"), &json!(true)));
                let message = answer["message"].as_str().expect("a sentence");
                assert!(message.contains("30 frames a second (session.max_frames_per_second)"), "{message}");
                break;
            }
            assert!(number < 1000, "thirty a second are a bound");
        }
        for _ in 0..200 {
            let _ = goes_on.send(json!({"type": "ping"})).await;
        }
        assert_eq!(goes_on.closed().await, 4429);
        // The client knows before the session has ended.
        eventually("it is counted", async || {
            house.metric(r#"tidegate_sessions_closed_total{code="4429"}"#).await == 1.0
        })
        .await;
        assert!(house.metric(r#"tidegate_refusals_total{code="rate_limited"}"#).await > 30.0);
    }

    #[tokio::test]
    async fn a_publish_over_the_rate_was_not_sent_and_goes_when_it_comes_again() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nmax_publishes_per_second = 5").await;
        let mut reader = house.browser().await;
        reader.subscribe("a").await;
        let mut browser = house.browser().await;
        let mut sent = 0;
        let refused = loop {
            let answer = browser.ask(publish(sent, 1)).await;
            if answer["type"] == "error" {
                break answer;
            }
            sent += 1;
            assert!(sent < 1000, "five a second are a bound");
        };
        assert_eq!((&refused["code"], &refused["msgid"]), (&json!("rate_limited"), &json!(sent)));
        eventually("it is taken", async || {
            browser.ask(publish(sent, 1)).await == json!({"type": "ack", "msgid": sent})
        })
        .await;
        sent += 1;
        assert_eq!(reader.deliveries(sent).await.len(), sent, "each once");
        browser.send(json!({"type": "ping"})).await;
        browser.expect("pong").await;
    }

    #[tokio::test]
    async fn publishes_over_max_inflight_wait_and_are_not_refused() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[session]\nmax_inflight = 2").await;
        let mut browser = house.browser().await;
        let answers = burst(&mut browser, (0..300).map(|msgid| publish(msgid, 1 + (msgid % 2) as u8))).await;
        assert_eq!(count(&answers, "ack"), 300, "{:?}", answers.iter().find(|answer| answer["type"] != "ack"));
    }
}

mod unread {
    use super::*;

    /// A client asks this without end and reads no answer: it is read no further. Gives back the house and the client.
    async fn asked_without_end(question: &[u8]) -> (Mosquitto, Gateway, Raw) {
        let mosquitto = Mosquitto::start().await;
        let configuration = "[session]\nwrite_timeout = 0.5\nmax_subscriptions = 1";
        let house = Gateway::start_thrifty(&mosquitto.url(), configuration).await;
        let mut client = opened(&house).await;
        let before = house.resident();
        let taken = beside(&house, pour(&mut client.stream, question, 64 << 20)).await;
        assert!(taken < 48 << 20, "{taken} bytes were taken from a client that reads no answer");
        let grown = house.resident().saturating_sub(before) >> 20;
        assert!(grown < 20, "{grown} MiB");
        (mosquitto, house, client)
    }

    async fn is_let_go_after(question: &[u8]) {
        let (_mosquitto, house, _client) = asked_without_end(question).await;
        let closed = r#"tidegate_sessions_closed_total{code="4008"}"#;
        eventually("it is let go", async || house.metric(closed).await == 1.0).await;
    }

    #[tokio::test]
    async fn websocket_pings() {
        is_let_go_after(&masked(PING, &[0; 125])).await;
    }

    #[tokio::test]
    async fn pings() {
        is_let_go_after(&frame(&json!({"type": "ping", "msgid": "x".repeat(64)}))).await;
    }

    #[tokio::test]
    async fn subscribes_to_a_thousand_filters_each() {
        let filters: Vec<String> = (0..1000).map(|number| format!("nothing/{number}")).collect();
        is_let_go_after(&frame(&json!({"type": "subscribe", "topics": filters}))).await;
    }

    #[tokio::test]
    async fn what_is_no_frame() {
        let ping = frame(&json!({"type": "ping"}));
        is_let_go_after(&[frame(&json!({"type": "what", "msgid": "x".repeat(64)})), ping].concat()).await;
    }

    #[tokio::test]
    async fn publishes() {
        let numbered =
            |msgid: usize| frame(&json!({"type": "publish", "topic": "a", "payload": "", "qos": 1, "msgid": msgid}));
        let block: Vec<u8> = (0..2000).flat_map(numbered).collect();
        // As fast as the broker takes them: its answers may fit what the network holds.
        asked_without_end(&block).await;
    }
}

mod unfinished {
    use super::*;

    #[tokio::test]
    async fn a_message_in_a_hundred_thousand_fragments_is_one_message() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let before = house.resident();
        let mut raw = opened(&house).await;
        let (mut reading, mut writing) = raw.stream.split();
        let fragments = [masked(0, b"").repeat(200), masked(0, b" "), masked(PING, b"")].concat();
        let flood = async {
            writing.write_all(&masked(0x01, b"{\"type\":")).await.expect("written");
            for _ in 0..500 {
                writing.write_all(&fragments).await.expect("written");
            }
            writing.write_all(&masked(0x80, b"\"ping\",\"msgid\":\"whole\"}")).await.expect("written");
        };
        let answers = async {
            let mut heard = Vec::new();
            while !String::from_utf8_lossy(&heard).contains("whole") {
                heard.drain(..heard.len().saturating_sub(100));
                assert!(reading.read_buf(&mut heard).await.expect("readable") > 0, "it is open");
            }
        };
        beside(&house, async { tokio::join!(flood, answers) }).await;
        let grown = house.resident().saturating_sub(before) >> 20;
        assert!(grown < 16, "{grown} MiB");
    }

    #[tokio::test]
    async fn messages_that_many_begin_and_nobody_finishes_have_a_budget() {
        const CLIENTS: usize = 200;
        const BEGUN: usize = 900_000;
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[wire]\nmax_unfinished_bytes = 4000000").await;
        let before = house.resident();
        let (head, body) = (head(TEXT, 1_000_000), vec![b' '; BEGUN]);
        let mut clients = Vec::new();
        let flood = async {
            for number in 0..CLIENTS {
                let mut raw = opened(&house).await;
                // In one frame, or in fragments.
                match number % 2 {
                    0 => raw.write(&[&head[..], &body].concat()).await,
                    _ => raw.write(&[masked(0x01, &body[..BEGUN / 2]), masked(0, &body[..BEGUN / 2])].concat()).await,
                }
                clients.push(raw);
            }
        };
        beside(&house, flood).await;
        let closed = r#"tidegate_sessions_closed_total{code="4429"}"#;
        let over = (CLIENTS - 4_000_000 / BEGUN) as f64;
        eventually("all but four are let go", async || house.metric(closed).await == over).await;
        // A third of what they sent; the allocator gives back what it kept for a moment.
        eventually("the memory is bounded", async || {
            house.metric(closed).await;
            house.resident().saturating_sub(before) < 64 << 20
        })
        .await;
        assert_eq!(clients[0].closed().await, 4429, "who holds longest goes first");
        let last = clients.last_mut().expect("there are some");
        last.write(&masked(0x80, b"{\"type\":\"ping\"}")).await;
        assert_eq!(last.next().await["type"], "pong", "what is finished is served");
        assert_eq!(house.metric(closed).await, over);
    }

    #[tokio::test]
    async fn a_large_message_that_is_finished_gives_its_share_back() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start(&mosquitto.url(), "[wire]\nmax_unfinished_bytes = 1048576").await;
        let mut browser = house.browser().await;
        let ping = json!({"type": "ping", "note": " ".repeat(1_000_000)});
        for _ in 0..10 {
            assert_eq!(browser.ask(ping.clone()).await["type"], "pong");
        }
        assert_eq!(house.metric("tidegate_unfinished_bytes").await, 0.0);
    }
}

mod subscriptions {
    use super::*;

    #[tokio::test]
    async fn a_hundred_thousand_subscriptions_to_nothing_hurt_nobody() {
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::before(&mosquitto).await;
        let before = house.resident();
        let mut browser = house.browser().await;
        let filters = |round: usize, count: usize| -> Vec<String> {
            (0..count).map(|number| format!("nothing/{round}/{number}/+/#")).collect()
        };
        let flood = async {
            // In large frames, all but the first over the limit of a session.
            for round in 0..85 {
                let answer = browser.ask(json!({"type": "subscribe", "topics": filters(round, 1000)})).await;
                let refused = answer["topics"].as_array().expect("a list").iter();
                let refused = refused.filter(|entry| entry["error"] == "quota_exceeded").count();
                assert_eq!(refused, if round == 0 { 0 } else { 1000 });
            }
            browser.ask(json!({"type": "unsubscribe", "topics": filters(0, 1000)})).await;
            for round in 0..5 {
                for kind in ["subscribe", "unsubscribe"] {
                    let answer = browser.ask(json!({"type": kind, "topics": filters(round, 1000)})).await;
                    assert_eq!(answer["topics"][999].get("error"), None, "{kind}");
                }
            }
            // One by one, with none of them answered before the next is sent.
            for filter in filters(0, 10_000).chunks(500) {
                for filter in filter {
                    browser.send(json!({"type": "subscribe", "topic": filter})).await;
                    browser.send(json!({"type": "unsubscribe", "topic": filter})).await;
                }
                for _ in filter {
                    browser.next().await;
                    browser.next().await;
                }
            }
        };
        beside(&house, flood).await;
        assert_eq!(house.metric("tidegate_subscriptions").await, 0.0);
        let grown = house.resident().saturating_sub(before) >> 20;
        assert!(grown < 32, "{grown} MiB");
    }
}

/// A frame as a client writes it.
fn frame(frame: &Value) -> Vec<u8> {
    masked(TEXT, frame.to_string().as_bytes())
}

/// A client with an open session that reads what it likes.
async fn opened(house: &Gateway) -> Raw {
    let mut raw = Raw::connect(&house.address).await;
    raw.text(r#"{"type":"auth"}"#).await;
    assert_eq!(raw.next().await["type"], "auth_response");
    assert_eq!(raw.next().await["type"], "welcome");
    raw
}

/// Writes these bytes again and again until there were so many, nobody takes them for a while, or the connection ends.
async fn pour(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], total: usize) -> usize {
    let bytes = bytes.repeat(1 + 100_000 / bytes.len());
    let mut taken = 0;
    while taken < total
        && let Ok(Ok(written)) = timeout(Duration::from_millis(700), stream.write(&bytes[taken % bytes.len()..])).await
    {
        taken += written;
    }
    taken
}

/// Lets the flood come while a neighbour talks to the same gateway, and is served promptly.
async fn beside<T>(house: &Gateway, flood: impl Future<Output = T>) -> T {
    let mut neighbour = house.browser().await;
    let mut waits = Vec::new();
    tokio::pin!(flood);
    let result = loop {
        let asking = async {
            let asked = Instant::now();
            neighbour.publish("neighbour", "x", 1).await;
            waits.push(asked.elapsed());
            sleep(Duration::from_millis(10)).await;
        };
        tokio::pin!(asking);
        select! {
            result = &mut flood => {
                asking.await;
                break result;
            }
            () = &mut asking => {}
        }
    };
    waits.sort();
    let (median, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!("{} answers to a neighbour: half of them within {median:?}, all within {worst:?}", waits.len());
    assert!(median < Duration::from_millis(500), "half of its answers took longer than {median:?}");
    result
}
