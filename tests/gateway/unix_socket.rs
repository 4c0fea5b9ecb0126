//! A broker on the same machine, by the path of its socket.

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Device, Gateway, Mosquitto, eventually};

#[tokio::test]
async fn a_broker_behind_a_unix_socket_serves_a_page_and_is_found_again_when_it_comes_back() {
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("mqtt.sock");
    let mut mosquitto = Mosquitto::start_with(&format!("listener 0 {}", socket.display())).await;
    for upstream in ["per-session", "shared"] {
        let house =
            Gateway::start(&format!("unix://{}", socket.display()), &format!("[broker]\nupstream = \"{upstream}\""))
                .await;
        let (mut browser, _) = house.open(json!({"clientId": upstream, "clean": false})).await;
        browser.subscribe_with(json!({"topic": "attic/#", "qos": 2})).await;
        let large = "x".repeat(100_000);
        for payload in ["21.5", &large] {
            Device::publish(mosquitto.port, &["-q", "2", "-t", "attic/temp", "-m", payload]).await;
            assert_eq!(browser.next_delivery().await.1, payload);
        }
        mosquitto.stop().await;
        assert_eq!(browser.expect("broker").await["status"], "down");
        mosquitto.restart().await;
        let up = json!({"type": "broker", "status": "up", "sessionPresent": true});
        assert_eq!(browser.expect("broker").await, up);
        browser
            .send(json!({"type": "publish", "topic": "attic/lamp", "payload": "on", "qos": 1, "msgid": upstream}))
            .await;
        let mut frames = [browser.next().await, browser.next().await];
        frames.sort_by_key(|frame| frame["type"].to_string());
        assert_eq!((&frames[0]["type"], &frames[1]["payload"]), (&json!("ack"), &json!("on")));
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_told_by_its_path_until_it_is() {
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("mqtt.sock");
    let house = Gateway::start_unready(&format!("unix://{}", socket.display()), "").await;
    eventually("the log says what is missing", async || {
        house.log().contains(&socket.display().to_string()) && house.log().contains("No such file")
    })
    .await;
    assert_eq!(house.get(&house.address, "/readyz").await.0, 503);
    let _mosquitto = Mosquitto::start_with(&format!("listener 0 {}", socket.display())).await;
    eventually("the gateway is ready", async || house.get(&house.address, "/readyz").await.0 == 200).await;
}
