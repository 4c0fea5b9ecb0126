//! The main job on real input: Mosquitto with its live `$SYS/#` tree, and its own clients on both sides.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::support::{Device, Gateway, Mosquitto};

/// A scene's size: small in an ordinary run, the whole with `TIDEGATE_LONG=1`.
fn size(ordinary: u64, long: u64) -> u64 {
    if std::env::var_os("TIDEGATE_LONG").is_some() { long } else { ordinary }
}

/// Lines that a publisher may be ahead of the browser.
const AHEAD: usize = 200;

#[tokio::test]
async fn a_hundred_thousand_messages_of_mixed_qos_arrive_complete_and_in_order() {
    // Mosquitto 2.0 itself reorders messages of one topic when it has to hold them back for a full receive window, which on a busy
    // machine is full of what is not confirmed yet. Here the gateway's order is looked at, so the window is as wide as can be.
    let mosquitto = Mosquitto::start_with("max_inflight_messages 0").await;
    let house = Gateway::start(&mosquitto.url(), "[broker]\nreceive_maximum = 65535").await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "load/#", "qos": 2})).await;
    let each = 33_334;
    let mut windows = Vec::new();
    let mut publishers = Vec::new();
    for qos in 0..3 {
        let window = Arc::new(Semaphore::new(AHEAD));
        windows.push(window.clone());
        publishers.push(tokio::spawn(publish_numbers(mosquitto.port, qos, each, window)));
    }
    let mut next = [0; 3];
    while next != [each; 3] {
        let frame = browser.expect("mqtt").await;
        let topic = frame["topic"].as_str().and_then(|topic| topic.strip_prefix("load/")).expect("ours");
        let qos: usize = topic.parse().expect("a qos");
        assert_eq!(frame["qos"], qos, "{frame}");
        assert_eq!(frame["payload"], next[qos].to_string(), "{frame}");
        next[qos] += 1;
        windows[qos].add_permits(1);
    }
    for publisher in publishers {
        assert!(publisher.await.expect("it ended"));
    }
}

/// `mosquitto_pub` publishes a number a line to `load/QOS`, each line with a permit.
async fn publish_numbers(port: u16, qos: u8, count: usize, window: Arc<Semaphore>) -> bool {
    // Debian's libmosquitto breaks off under load in version 5.
    let mut child = Command::new("mosquitto_pub")
        .args(["-V", "311", "-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-t", &format!("load/{qos}"), "-q", &qos.to_string(), "-l"])
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("mosquitto_pub is installed: scripts/test does it");
    let mut lines = child.stdin.take().expect("piped");
    for number in 0..count {
        window.acquire().await.expect("never closed").forget();
        lines.write_all(format!("{number}\n").as_bytes()).await.expect("written");
    }
    drop(lines);
    child.wait().await.expect("waited for").success()
}

#[tokio::test]
async fn the_brokers_own_tree_arrives_as_mosquitto_sub_sees_it() {
    let mosquitto = Mosquitto::start_with("sys_interval 1").await;
    let house = Gateway::before(&mosquitto).await;
    let mut control = Device::subscribe(mosquitto.port, &["-t", "$SYS/#", "-q", "0"]).await;
    let mut browser = house.browser().await;
    browser.subscribe("$SYS/#").await;
    let seconds = size(12, 20 * 60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut seen: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
    while Instant::now() < until {
        tokio::select! {
            (topic, payload) = browser.next_delivery() => seen.entry(topic).or_default().0.push(payload),
            line = control.next() => {
                let (topic, payload) = line.split_once(' ').expect("a topic and a payload");
                seen.entry(topic.to_owned()).or_default().1.push(payload.to_owned());
            }
        }
    }
    assert!(seen.len() > 30, "{} topics", seen.len());
    let live: usize = seen.values().map(|(browser, _)| browser.len()).sum();
    assert!(live as u64 > 30 + 5 * seconds, "{live} messages in {seconds} s");
    for (topic, (browser, control)) in seen {
        assert!(aligned(&browser, &control), "{topic}: the browser saw {browser:?}, mosquitto_sub {control:?}");
    }
}

/// The same values in the same order; the two began and ended a moment apart.
fn aligned(one: &[String], other: &[String]) -> bool {
    const MOMENT: usize = 3;
    (0..MOMENT).any(|skip| {
        [(one, other), (other, one)].iter().any(|(longer, shorter)| {
            let Some(longer) = longer.get(skip..) else { return shorter.len() <= MOMENT };
            let common = longer.len().min(shorter.len());
            longer.len().abs_diff(shorter.len()) <= MOMENT && longer[..common] == shorter[..common]
        })
    })
}

#[test]
fn what_is_aligned_misses_nothing_in_between() {
    let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(aligned(&list("1 2 3 4 5 6"), &list("1 2 3 4 5 6")));
    assert!(aligned(&list("2 3 4 5 6"), &list("1 2 3 4 5")));
    assert!(!aligned(&list("1 2 4 5 6"), &list("1 2 3 4 5 6")));
    assert!(!aligned(&list("1 2 3 5 4 6"), &list("1 2 3 4 5 6")));
}
