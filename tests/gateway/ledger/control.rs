//! The measure of what a killed broker loses: rumqttc, a plain MQTT client with a session that the broker keeps.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::time::sleep;

use super::client::Ground;
use super::history::{Client, Key, Lane, Seen};

/// Subscribes to everything, and enters what comes until it is aborted.
pub async fn listen(ground: Arc<Ground>, port: u16) {
    ground.history.lock().expect("nobody panics").control = Some(Client {
        name: "control".to_owned(),
        subscriptions: vec![("#".to_owned(), 2)],
        is_kept: true,
        ..Client::default()
    });
    let mut options = MqttOptions::new("control", "127.0.0.1", port);
    options.set_clean_session(false).set_keep_alive(Duration::from_secs(5)).set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut events) = AsyncClient::new(options, 100);
    loop {
        let seen = match events.poll().await {
            // Also where the broker says that it has the session: what it has may be older than the subscription.
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                client.subscribe("#", QoS::ExactlyOnce).await.expect("the loop runs");
                continue;
            }
            Ok(Event::Incoming(Packet::SubAck(_))) => Seen::Opened { session_present: true },
            Ok(Event::Incoming(Packet::Publish(publish))) => match key_of(&publish.payload) {
                Some(key) => Seen::Handled(key),
                None => continue,
            },
            Ok(_) => continue,
            Err(_) => {
                sleep(Duration::from_millis(100)).await;
                Seen::Ended(None)
            }
        };
        let at = ground.began.elapsed();
        let mut history = ground.history.lock().expect("nobody panics");
        history.control.as_mut().expect("it is there").seen.push((at, seen));
    }
}

fn key_of(payload: &[u8]) -> Option<Key> {
    let mut words = std::str::from_utf8(payload).ok()?.split(' ').map(|word| word.parse::<u32>().ok());
    let [publisher, topic, qos, number] = std::array::from_fn(|_| words.next().flatten());
    let lane = Lane { publisher: publisher? as u8, topic: topic? as u8, qos: qos? as u8 };
    Some(Key { lane, number: number? })
}
