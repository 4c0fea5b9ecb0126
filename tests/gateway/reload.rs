//! SIGHUP: a configuration that is read again, and what of it comes in force.

use serde_json::json;

use crate::support::{Browser, Gateway, Mosquitto, eventually};

const APPLIED: &str = r#"tidegate_configuration_reloads_total{result="applied"}"#;
const REFUSED: &str = r#"tidegate_configuration_reloads_total{result="refused"}"#;

/// How many of these topics the session may subscribe to.
async fn granted(browser: &mut Browser, topics: &[&str]) -> usize {
    let answer = browser.ask(json!({"type": "subscribe", "topics": topics})).await;
    let topics = answer["topics"].as_array().expect("a list").clone();
    topics.iter().filter(|topic| topic.get("error").is_none()).count()
}

/// The line of the log about a setting.
fn line(gateway: &Gateway, setting: &str) -> String {
    let log = gateway.log();
    let line = log.lines().rfind(|line| line.contains(setting));
    line.unwrap_or_else(|| panic!("no line about {setting}")).to_owned()
}

#[tokio::test]
async fn new_sessions_get_new_settings_and_open_ones_keep_theirs() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "[session]\nmax_subscriptions = 3").await;
    assert_eq!((gateway.metric(APPLIED).await, gateway.metric(REFUSED).await), (0.0, 0.0));
    let mut old = gateway.browser().await;
    gateway.reload("[session]\nmax_subscriptions = 2\n[wire]\nmax_payload = 4\n[shutdown]\ndeadline = 5").await;
    eventually("it was read", async || gateway.metric(APPLIED).await == 1.0).await;
    let (mut new, welcome) = gateway.open(json!({})).await;
    assert_eq!((&welcome["limits"]["maxSubscriptions"], &welcome["limits"]["maxPayload"]), (&json!(2), &json!(4)));
    assert_eq!(granted(&mut new, &["a", "b", "c", "d"]).await, 2);
    assert_eq!(granted(&mut old, &["a", "b", "c", "d"]).await, 3);
    for (setting, from, to) in [
        ("session.max_subscriptions", "3", "2"),
        ("wire.max_payload", "1048576", "4"),
        ("shutdown.deadline", "10", "5"),
    ] {
        let line = line(&gateway, setting);
        let said = format!("from=\"{from}\" to=\"{to}\"");
        assert!(line.contains("in force") && line.contains(&said) && line.contains("INFO"), "{line}");
    }
    // Nothing has changed: that is said too, and of no setting.
    let before = gateway.log().matches("in force").count();
    gateway.signal("HUP").await;
    eventually("it was read again", async || gateway.metric(APPLIED).await == 2.0).await;
    assert!(line(&gateway, "was read again").contains("changed=0"));
    assert_eq!(gateway.log().matches("in force").count(), before);
}

#[tokio::test]
async fn the_level_of_the_log_changes_at_once() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "").await;
    let debugged = || gateway.log().matches("session opened").count();
    gateway.browser().await.leave().await;
    assert_eq!(debugged(), 0);
    gateway.reload("[log]\nlevel = \"debug\"").await;
    eventually("it was read", async || gateway.metric(APPLIED).await == 1.0).await;
    assert!(line(&gateway, "log.level").contains("in force"));
    gateway.browser().await.leave().await;
    eventually("it tells more", async || debugged() == 1).await;
    gateway.reload("[log]\nlevel = \"error\"").await;
    eventually("it was read again", async || gateway.metric(APPLIED).await == 2.0).await;
    assert!(line(&gateway, "log.level").contains("error"), "the last words of the old level");
    gateway.browser().await.leave().await;
    eventually("all is over", async || gateway.metric("tidegate_sessions_open").await == 0.0).await;
    assert_eq!(debugged(), 1);
}

#[tokio::test]
async fn a_broken_file_is_told_as_at_the_start_and_changes_nothing() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "[session]\nmax_subscriptions = 3").await;
    gateway.reload("[session]\nmax_subscriptions = 2\n[wire]\nmax_frame = \"much\"").await;
    eventually("it was refused", async || gateway.metric(REFUSED).await == 1.0).await;
    let check = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["check-config", "--config"])
        .arg(gateway.file())
        .output()
        .await
        .expect("it was built");
    let complaint = String::from_utf8(check.stderr).expect("UTF-8");
    let complaint = complaint.trim().trim_start_matches("tidegate: ");
    assert!(complaint.contains("line 4, column 13"), "{complaint}");
    let log = gateway.log();
    assert!(log.contains("ERROR") && log.contains(complaint), "{complaint}\nin\n{log}");
    assert_eq!(gateway.open(json!({})).await.1["limits"]["maxSubscriptions"], 3);
    gateway.reload("[session]\nmax_subscriptions = 4").await;
    eventually("the next is taken", async || gateway.metric(APPLIED).await == 1.0).await;
    assert_eq!(gateway.open(json!({})).await.1["limits"]["maxSubscriptions"], 4);
}

#[tokio::test]
async fn what_needs_a_restart_is_said_each_time_and_no_secret_is_shown() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "[broker]\npassword = \"hunter-31415\"").await;
    let settings = "[broker]\npassword = \"hunter-27182\"\nkeep_alive = 7\n[log]\nformat = \"json\"";
    for round in 1..=2 {
        gateway.reload(settings).await;
        eventually("it was read", async || gateway.metric(APPLIED).await == f64::from(round)).await;
        let log = gateway.log();
        for setting in ["broker.password", "broker.keep_alive", "log.format"] {
            let line = line(&gateway, &format!("{setting}\""));
            assert!(line.contains("needs a restart") && line.contains("WARN"), "{line}");
            assert_eq!(log.matches(&format!("{setting}\"")).count(), round as usize, "{setting} in\n{log}");
        }
        assert!(line(&gateway, "was read again").contains("needing_restart=3"));
        assert!(!log.contains("hunter"), "{log}");
    }
    gateway.browser().await.publish("still", "here", 1).await;
}
