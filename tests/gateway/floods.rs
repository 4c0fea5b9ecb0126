//! Clients that send more than anybody should: they are held to their rates, and hurt neither a neighbour nor the process.

use serde_json::{Value, json};

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
        assert_eq!(house.metric(r#"tidegate_sessions_closed_total{code="4429"}"#).await, 1.0);
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
