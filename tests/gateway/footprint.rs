//! What a session takes in memory.

use serde_json::json;

use crate::support::certificates::Certificates;
use crate::support::{Gateway, Mosquitto, eventually};

#[tokio::test]
async fn an_idle_session_keeps_nothing_of_a_large_frame_each_way() {
    let mosquitto = Mosquitto::start().await;
    nothing_is_kept(&Gateway::before(&mosquitto).await).await;
}

#[tokio::test]
async fn an_idle_session_over_tls_keeps_nothing_of_a_large_frame_each_way() {
    let (mosquitto, certificates) = (Mosquitto::start().await, Certificates::new());
    let house = Gateway::start_secure(&mosquitto.url(), &certificates.tls(""), certificates.anyone()).await;
    nothing_is_kept(&house).await;
}

async fn nothing_is_kept(house: &Gateway) {
    const SESSIONS: usize = 50;
    const LARGE: usize = 1_000_000;
    /// What the allocator keeps for all is about 10 MiB, however many they are.
    const KEPT: usize = 256 * 1024;
    let mut browsers = Vec::new();
    for _ in 0..SESSIONS {
        let mut browser = house.browser().await;
        browser.subscribe("large").await;
        browsers.push(browser);
    }
    let before = house.resident();
    for browser in &mut browsers {
        assert_eq!(browser.ask(json!({"type": "ping", "note": ".".repeat(LARGE)})).await["type"], "pong");
    }
    let mut source = house.browser().await;
    source.send(json!({"type": "publish", "topic": "large", "payload": ".".repeat(LARGE)})).await;
    for browser in &mut browsers {
        assert_eq!(browser.next_delivery().await.1.len(), LARGE);
    }
    eventually("they have given it back", async || {
        // A thread's allocator gives back what other threads have freed when it is asked for something.
        for browser in &mut browsers {
            assert_eq!(browser.ask(json!({"type": "ping"})).await["type"], "pong");
        }
        house.resident().saturating_sub(before) < SESSIONS * KEPT
    })
    .await;
}
