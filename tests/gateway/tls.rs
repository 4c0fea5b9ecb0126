//! Brokers that want to know who asks, and that show who they are: TLS, certificates, passwords.

use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::support::certificates::{Certificates, line};
use crate::support::{Gateway, Mosquitto, eventually};

/// A gateway before a broker at `host` with TLS, and these lines in its `[broker]` section.
async fn gateway(host: &str, mosquitto: &Mosquitto, settings: &str) -> Gateway {
    let configuration = format!("[broker]\nrequest_timeout = 1\n{settings}");
    Gateway::start_unready(&format!("mqtts://{host}:{}", mosquitto.port), &configuration).await
}

async fn works(house: &Gateway) {
    eventually("the gateway is ready", async || house.get(&house.address, "/readyz").await.0 == 200).await;
    let mut browser = house.browser().await;
    browser.subscribe_with(json!({"topic": "attic/#", "qos": 2})).await;
    let large = "x".repeat(300_000);
    for payload in ["21.5", &large] {
        browser
            .send(
                json!({"type": "publish", "topic": "attic/temp", "payload": payload, "qos": 2, "msgid": payload.len()}),
            )
            .await;
        let mut frames = [browser.next().await, browser.next().await];
        frames.sort_by_key(|frame| frame["type"].to_string());
        assert_eq!((&frames[0]["type"], &frames[1]["payload"]), (&json!("ack"), &json!(payload)));
    }
}

/// The gateway is up, says that it is not ready, tells the operator why and the browser that there is no broker.
async fn is_refused(house: &Gateway, why: &str, code: &str) {
    eventually(why, async || house.log().contains("the broker cannot be reached")).await;
    assert!(house.log().contains(why), "{}", house.log());
    assert_eq!(house.get(&house.address, "/readyz").await.0, 503);
    assert_eq!(house.get(&house.address, "/healthz").await.0, 200);
    let mut browser = house.connect().await;
    browser.send(json!({"type": "auth"})).await;
    assert_eq!(browser.expect("error").await["code"], code);
    assert_eq!(browser.closed().await, 4503);
}

#[tokio::test]
async fn a_broker_is_believed_by_the_configured_authority_alone() {
    let certificates = Certificates::new();
    let mosquitto = Mosquitto::start_with(&certificates.listener()).await;
    works(&gateway("127.0.0.1", &mosquitto, &certificates.setting("ca_file", "ca.pem")).await).await;
    is_refused(
        &gateway("127.0.0.1", &mosquitto, "").await,
        "invalid peer certificate: UnknownIssuer",
        "broker_unavailable",
    )
    .await;
    let other = Certificates::new();
    let house = gateway("127.0.0.1", &mosquitto, &other.setting("ca_file", "ca.pem")).await;
    is_refused(&house, "invalid peer certificate", "broker_unavailable").await;
}

#[tokio::test]
async fn a_broker_by_another_name_is_refused() {
    let certificates = Certificates::new();
    let mosquitto = Mosquitto::start_with(&certificates.listener()).await;
    let house = gateway("localhost", &mosquitto, &certificates.setting("ca_file", "ca.pem")).await;
    is_refused(&house, "certificate not valid for name \"localhost\"", "broker_unavailable").await;
}

#[tokio::test]
async fn a_broker_that_speaks_no_tls_is_refused() {
    let certificates = Certificates::new();
    let mosquitto = Mosquitto::start().await;
    let house = gateway("127.0.0.1", &mosquitto, &certificates.setting("ca_file", "ca.pem")).await;
    is_refused(&house, "lost=", "broker_unavailable").await;
}

#[tokio::test]
async fn a_broker_that_wants_a_certificate_gets_the_configured_one() {
    let certificates = Certificates::new();
    let mosquitto = Mosquitto::start_with(&format!("{}require_certificate true\n", certificates.listener())).await;
    let ca = certificates.setting("ca_file", "ca.pem");
    let certificate = certificates.setting("client_certificate_file", "client.pem");
    let key = certificates.setting("client_key_file", "client.key");
    works(&gateway("127.0.0.1", &mosquitto, &format!("{ca}{certificate}{key}")).await).await;
    is_refused(&gateway("127.0.0.1", &mosquitto, &ca).await, "CertificateRequired", "broker_unavailable").await;
}

#[tokio::test]
async fn a_broker_that_wants_a_password_gets_the_configured_one() {
    let folder = TempDir::new().expect("a folder");
    let (passwords, secret, wrong) =
        (folder.path().join("passwords"), folder.path().join("secret"), folder.path().join("wrong"));
    let made =
        Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&passwords).args(["gateway", "hunter2"]).status();
    assert!(made.expect("mosquitto_passwd comes with mosquitto").success());
    std::fs::write(&secret, "hunter2\n").expect("written");
    std::fs::write(&wrong, "hunter3\n").expect("written");
    let mosquitto =
        Mosquitto::start_with(&format!("allow_anonymous false\npassword_file {}\n", passwords.display())).await;
    let house = async |settings: String| {
        Gateway::start_unready(&mosquitto.url(), &format!("[broker]\nrequest_timeout = 1\n{settings}")).await
    };
    works(&house("username = \"gateway\"\npassword = \"hunter2\"\n".to_owned()).await).await;
    works(&house(format!("username = \"gateway\"\n{}", line("password_file", &secret))).await).await;
    for settings in [format!("username = \"gateway\"\n{}", line("password_file", &wrong)), String::new()] {
        let house = house(settings).await;
        is_refused(&house, "not authorized (0x87)", "broker_rejected").await;
        assert!(!house.log().contains("hunter"), "no secret in {}", house.log());
    }
}
