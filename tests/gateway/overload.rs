//! An event loop that does not keep up: who is in comes through, and who comes now is sent away.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::{Browser, Gateway, Mosquitto, PATIENCE, eventually};

/// A request that waits for its answer.
struct Request(TcpStream);

impl Request {
    async fn send(address: &str, path: &str, headers: &str) -> Request {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.expect("written");
        Request(stream)
    }

    async fn upgrade(house: &Gateway) -> Request {
        let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        Request::send(&house.address, "/ws", headers).await
    }

    async fn get(address: &str, path: &str) -> Request {
        Request::send(address, path, "Connection: close\r\n").await
    }

    /// All that comes until the other side has no more to say, in lower case.
    async fn answer(mut self) -> String {
        let mut answer = String::new();
        timeout(PATIENCE, self.0.read_to_string(&mut answer)).await.expect("in time").expect("text");
        answer.to_lowercase()
    }
}

/// The gateway gets no processor for so long, while this happens around it.
async fn frozen<T>(house: &Gateway, time: Duration, meanwhile: impl Future<Output = T>) -> T {
    house.signal("STOP").await;
    let result = meanwhile.await;
    sleep(time).await;
    house.signal("CONT").await;
    result
}

#[tokio::test]
async fn after_a_stall_newcomers_are_turned_away_for_a_moment_and_the_open_session_loses_nothing() {
    const SENT: usize = 100;
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[connections]\nmax_stall = 0.5").await;
    let mut open = house.browser().await;
    open.subscribe_with(json!({"topic": "through", "qos": 1})).await;
    let (newcomer, is_ready, is_ready_too, is_alive) = frozen(&house, Duration::from_secs(1), async {
        for number in 0..SENT {
            open.send(json!({"type": "publish", "topic": "through", "payload": number, "qos": 1})).await;
        }
        (
            Request::upgrade(&house).await,
            Request::get(&house.address, "/readyz").await,
            Request::get(&house.admin, "/readyz").await,
            Request::get(&house.admin, "/healthz").await,
        )
    })
    .await;
    let turned_away = newcomer.answer().await;
    assert!(turned_away.starts_with("http/1.1 503 "), "{turned_away}");
    for header in ["\r\nretry-after: ", "\r\nconnection: close\r\n"] {
        assert!(turned_away.contains(header), "{turned_away}");
    }
    for answer in [is_ready.answer().await, is_ready_too.answer().await] {
        assert!(answer.starts_with("http/1.1 503 ") && answer.contains(r#""overloaded":true"#), "{answer}");
    }
    assert!(is_alive.answer().await.starts_with("http/1.1 200 "), "alive all the same");
    let numbers: Vec<_> = (0..SENT).map(|number| json!(number.to_string())).collect();
    assert_eq!(open.payloads(SENT).await, numbers);

    eventually("it recovers", async || house.get(&house.address, "/readyz").await.0 == 200).await;
    eventually("newcomers are taken again", async || Browser::connect_with(&house.address, "/ws", &[]).await.is_ok())
        .await;
    assert!(house.metric(r#"tidegate_connections_refused_total{reason="max_stall"}"#).await >= 1.0);
    let within = house.metric(r#"tidegate_event_loop_stall_seconds_bucket{le="0.5"}"#).await;
    let all = house.metric("tidegate_event_loop_stall_seconds_count").await;
    assert!(all > within, "the stall stays on the page: {within} of {all}");
    assert_eq!(house.metric("tidegate_overloaded").await, 0.0);
    open.publish("elsewhere", "x", 1).await;
}

#[tokio::test]
async fn a_stall_within_the_bound_turns_nobody_away() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[connections]\nmax_stall = 15").await;
    let is_ready = frozen(&house, Duration::from_secs(1), Request::get(&house.address, "/readyz")).await.answer().await;
    assert!(is_ready.starts_with("http/1.1 200 ") && is_ready.contains(r#""overloaded":false"#), "{is_ready}");
    house.browser().await;
    assert_eq!(house.metric(r#"tidegate_connections_refused_total{reason="max_stall"}"#).await, 0.0);
}

#[tokio::test]
async fn how_the_event_loop_is_stands_on_the_page() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::start(&mosquitto.url(), "[connections]\nmax_stall = 0.5").await;
    eventually("it is measured", async || house.metric("tidegate_runtime_tasks").await > 3.0).await;
    eventually("its workers do something", async || house.metric("tidegate_runtime_busy_ratio").await > 0.0).await;
    assert!(house.metric("tidegate_runtime_busy_ratio").await <= 1.0);
    assert!(house.metric("tidegate_runtime_queued_tasks").await >= 0.0);
    assert!(house.metric("tidegate_event_loop_stall_seconds_count").await > 0.0);
}
