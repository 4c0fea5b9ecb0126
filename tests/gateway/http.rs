//! What the two listeners serve besides WebSockets.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::{Device, Gateway, Mosquitto, eventually, free_port};

#[tokio::test]
async fn the_page_and_its_parts_come_with_their_types_and_a_policy() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let parts = [
        ("/", "text/html; charset=utf-8"),
        ("/console.css", "text/css; charset=utf-8"),
        ("/console.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ];
    for (path, kind) in parts {
        let (status, head, body) = house.fetch(&house.address, path).await;
        assert_eq!(status, 200, "{path}");
        assert!(!body.is_empty(), "{path}");
        for line in [
            &format!("content-type: {kind}"),
            "content-security-policy: default-src 'self';",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cross-origin-opener-policy: same-origin",
            "cross-origin-resource-policy: same-origin",
            "permissions-policy: accelerometer=(), ",
        ] {
            assert!(head.contains(line), "{path}: {line} in\n{head}");
        }
        assert!(!head.contains("unsafe-inline") && !head.contains("strict-transport-security"), "{path}: {head}");
        let is_inline = ["<style", " style=", "<script>", "javascript:", " onclick=", " onload=", " onerror="];
        assert!(!is_inline.iter().any(|sign| body.contains(sign)), "{path} needs nothing that the policy forbids");
        let loads_from_elsewhere = ["src=\"http", "href=\"http", "url(http", "@import"];
        assert!(!loads_from_elsewhere.iter().any(|sign| body.contains(sign)), "{path} needs nobody else");
    }
}

#[tokio::test]
async fn a_handshake_that_breaks_the_rules_is_refused() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = |version: u8| format!("Sec-WebSocket-Version: {version}\r\n");
    for (method, head, status) in [
        ("POST", format!("{upgrade}{key}{}", version(13)), 405),
        ("GET", format!("{key}{}", version(13)), 400),
        ("GET", format!("Connection: Upgrade\r\nUpgrade: h2c\r\n{key}{}", version(13)), 400),
        ("GET", format!("{upgrade}{}", version(13)), 400),
        ("GET", format!("{upgrade}{key}"), 426),
        ("GET", format!("{upgrade}{key}{}", version(8)), 426),
    ] {
        let (answered, told, _) = house.request(&house.address, method, "/ws", &head).await;
        assert_eq!(answered, status, "{method} {head}");
        assert!(told.contains("sec-websocket-version: 13"), "{told}");
    }
}

#[tokio::test]
async fn each_listener_serves_what_is_its_own() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let cases = [
        (&house.address, "/metrics", 404),
        (&house.address, "/mqtt", 404),
        (&house.address, "/echo", 404),
        (&house.address, "/nothing", 404),
        (&house.address, "/healthz", 200),
        (&house.address, "/readyz", 200),
        (&house.admin, "/metrics", 200),
        (&house.admin, "/healthz", 200),
        (&house.admin, "/readyz", 200),
        (&house.admin, "/", 404),
        (&house.admin, "/ws", 404),
    ];
    for (address, path, status) in cases {
        assert_eq!(house.get(address, path).await.0, status, "{path} of {address}");
    }
    let (status, _) = house.get(&house.address, "/ws").await;
    assert!((400..500).contains(&status), "a plain GET is no WebSocket: {status}");
}

#[tokio::test]
async fn readiness_follows_the_broker_and_health_does_not() {
    let mut mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let ready = async |address| {
        let (status, head, body) = house.fetch(address, "/readyz").await;
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        (status, body["broker"].as_str().expect("a word").to_owned())
    };
    for address in [&house.address, &house.admin] {
        assert_eq!(ready(address).await, (200, "up".to_owned()));
    }
    mosquitto.kill().await;
    for address in [&house.address, &house.admin] {
        eventually("it is not ready", async || ready(address).await == (503, "down".to_owned())).await;
        assert_eq!(house.get(address, "/healthz").await.0, 200, "it is alive");
    }
    mosquitto.restart().await;
    eventually("it is ready again", async || ready(&house.address).await.0 == 200).await;
}

#[tokio::test]
async fn a_gateway_whose_broker_never_came_is_alive_and_not_ready() {
    let house = Gateway::start_unready(&format!("mqtt://127.0.0.1:{}", free_port()), "").await;
    assert_eq!(house.get(&house.address, "/healthz").await.0, 200);
    assert_eq!(house.get(&house.address, "/readyz").await.0, 503);
    assert_eq!(house.get(&house.address, "/").await.0, 200, "the page tells people more than no page");
}

#[tokio::test]
async fn promtool_finds_nothing_to_mend_in_the_metrics() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    browser.subscribe("#").await;
    for qos in 0..3 {
        browser.send_text(&format!(r#"{{"type":"publish","topic":"a","payload":1,"qos":{qos}}}"#)).await;
        browser.expect("mqtt").await;
    }
    browser.send_text("no JSON").await;
    browser.expect("error").await;
    house.browser().await.leave().await;
    Device::publish(mosquitto.port, &["-t", "a", "-m", "1"]).await;
    browser.expect("mqtt").await;

    let (_, head, page) = house.fetch(&house.admin, "/metrics").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: scripts/test does it");
    promtool.stdin.take().expect("piped").write_all(page.as_bytes()).await.expect("written");
    let output = promtool.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
