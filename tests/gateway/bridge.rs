//! A browser on a real broker: the first scenes.

use serde_json::json;

use crate::support::{Browser, Device, Gateway, Mosquitto};

#[tokio::test]
async fn a_reading_reaches_the_browser_that_subscribed() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = house.browser().await;
    browser.subscribe("attic/#").await;
    Device::publish(mosquitto.port, &["-t", "attic/temp", "-m", "21.5"]).await;
    assert_eq!(browser.next_delivery().await, ("attic/temp".to_owned(), "21.5".to_owned()));
}

#[tokio::test]
async fn what_a_browser_publishes_reaches_the_devices() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut lamp = Device::subscribe(mosquitto.port, &["-t", "lamp/#"]).await;
    let mut browser = house.browser().await;
    for (qos, payload) in [(0, "on"), (1, "off"), (2, "dim")] {
        browser.publish("lamp/1", payload, qos).await;
        assert_eq!(lamp.next().await, format!("lamp/1 {payload}"));
    }
}

#[tokio::test]
async fn the_textbook_client_of_three_lines_works() {
    let mosquitto = Mosquitto::start().await;
    let house = Gateway::before(&mosquitto).await;
    let mut browser = Browser::connect(&house.address, &[]).await;
    assert_eq!(browser.subprotocol, None);
    browser.send(json!({"type": "subscribe", "topic": "attic/+"})).await;
    browser.expect("welcome").await;
    browser.expect("subscribed").await;
    Device::publish(mosquitto.port, &["-t", "attic/temp", "-m", "21.5"]).await;
    let frame = browser.expect("mqtt").await;
    assert_eq!((&frame["topic"], &frame["payload"]), (&json!("attic/temp"), &json!("21.5")));
}
