//! Whose page may connect, and what browsers show by themselves: cookies and client certificates.

use serde_json::{Value, json};

use crate::access::{PLANT, token};
use crate::support::certificates::Certificates;
use crate::support::{Browser, Gateway, Mosquitto, eventually};

fn plant(settings: &str) -> String {
    PLANT.replace("anonymous = false", &format!("anonymous = false\n{settings}"))
}

fn viewer(user: &str) -> String {
    token(user, json!({"roles": "viewer", "site": "north"}))
}

/// What the first frame is answered by, and the close if that follows.
async fn first_answer(mut browser: Browser) -> (Value, Option<u16>) {
    browser.send(json!({"type": "subscribe", "topic": "user/vera/#"})).await;
    let answer = browser.next().await;
    let close = if answer["type"] == "error" { Some(browser.closed().await) } else { None };
    (answer["type"].clone(), close)
}

#[tokio::test]
async fn a_cookie_counts_for_pages_of_the_gateway_and_those_that_are_listed() {
    let mosquitto = Mosquitto::start().await;
    let listed = "[http]\nallowed_origins = [\"https://app.example\"]\n".to_owned();
    for list in [String::new(), listed] {
        let gateway = Gateway::start(&mosquitto.url(), &format!("{list}{}", plant("cookie = \"sid\""))).await;
        let own = format!("http://{}", gateway.address);
        let cookie = format!("a=1; sid={}", viewer("vera"));
        for (origin, is_in) in [
            (Some(own.as_str()), Some(true)),
            (Some("https://app.example"), Some(!list.is_empty())),
            (Some("https://evil.example"), if list.is_empty() { Some(false) } else { None }),
            (Some("null"), if list.is_empty() { Some(false) } else { None }),
            (None, Some(false)),
        ] {
            let mut headers = vec![("cookie", cookie.as_str())];
            headers.extend(origin.map(|origin| ("origin", origin)));
            let connected = Browser::connect_with(&gateway.address, "/ws", &headers).await;
            match (connected, is_in) {
                (Ok(browser), Some(true)) => assert_eq!(first_answer(browser).await.0, "welcome", "{origin:?}"),
                // It is nobody.
                (Ok(browser), Some(false)) => {
                    assert_eq!(first_answer(browser).await, (json!("error"), Some(4401)), "{origin:?}");
                }
                (Err((status, text)), None) => {
                    assert!(status == 403 && text.contains("http.allowed_origins"), "{status} {text}");
                }
                (connected, expected) => panic!("{origin:?}: {:?}, not {expected:?}", connected.err()),
            }
        }
        let refused = r#"tidegate_connections_refused_total{reason="allowed_origins"}"#;
        assert_eq!(gateway.metric(refused).await, if list.is_empty() { 0.0 } else { 2.0 });
    }
}

#[tokio::test]
async fn a_token_that_the_page_gives_takes_the_place_of_a_cookie() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), &plant("cookie = \"sid\"")).await;
    let (own, cookie) = (format!("http://{}", gateway.address), format!("sid={}", viewer("vera")));
    let headers = [("cookie", cookie.as_str()), ("origin", own.as_str())];
    let mut browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
    browser.send(json!({"type": "auth", "token": viewer("olga")})).await;
    browser.expect("auth_response").await;
    browser.expect("welcome").await;
    let answer = browser.ask(json!({"type": "subscribe", "topics": ["user/olga/#", "user/vera/#"]})).await;
    assert_eq!(answer["topics"][0].get("error"), None, "{answer}");
    assert_eq!(answer["topics"][1]["error"], "not_authorized", "{answer}");
}

#[tokio::test]
async fn origins_come_in_force_without_a_restart() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "").await;
    let headers = [("origin", "https://app.example")];
    let connect = async || Browser::connect_with(&gateway.address, "/ws", &headers).await;
    assert!(connect().await.is_ok(), "pages of all origins may connect");
    gateway.reload("[http]\nallowed_origins = [\"https://other.example\"]").await;
    eventually("the page is refused", async || connect().await.is_err_and(|(status, _)| status == 403)).await;
    gateway.reload("[http]\nallowed_origins = [\"https://other.example\", \"https://app.example\"]").await;
    eventually("it is allowed again", async || connect().await.is_ok()).await;
    assert!(Browser::connect_with(&gateway.address, "/ws", &[]).await.is_ok(), "a program sends no origin");
}

#[tokio::test]
async fn a_token_in_the_url_counts_where_that_is_wanted_and_is_never_logged() {
    let mosquitto = Mosquitto::start().await;
    let log = "[log]\nlevel = \"debug\"\n";
    let path = format!("/ws?x=1&token={}", viewer("vera"));
    for (settings, expected) in
        [("query_token = true", (json!("welcome"), None)), ("query_token = false", (json!("error"), Some(4401)))]
    {
        let gateway = Gateway::start(&mosquitto.url(), &format!("{log}{}", plant(settings))).await;
        let browser = Browser::connect_with(&gateway.address, &path, &[]).await.expect("upgraded");
        assert_eq!(first_answer(browser).await, expected, "{settings}");
        assert!(!gateway.log().contains("eyJ"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_client_certificate_may_say_who_somebody_is() {
    let mosquitto = Mosquitto::start().await;
    let certificates = Certificates::new();
    certificates.issue_client("ann", 11, 2100);
    certificates.issue_client("ben", 12, 2100);
    certificates.revoke(&[], 2100);
    let tls = "client_certificates = \"optional\"\n".to_owned()
        + &certificates.setting("client_ca_file", "ca.pem")
        + &certificates.setting("crl_file", "crl.pem");
    let access = "[auth]\nanonymous = false\n[auth.certificate]\nuser = \"cn\"\nroles = [\"device\"]\n\
                  [roles.device]\ngrants = [{ allow = [\"publish\", \"subscribe\"], topics = [\"user/{user}/#\"] }]\n";
    let configuration = format!("{}{access}", certificates.tls(&tls));
    let gateway = Gateway::start_secure(&mosquitto.url(), &configuration, certificates.anyone()).await;
    let connect = async |client: Option<&str>, headers: &[(&str, &str)]| {
        let client = client.map_or_else(|| certificates.anyone(), |name| certificates.client(name));
        let stream = client.connect(&gateway.address).await.expect("a handshake");
        Browser::over(Box::new(stream), &gateway.address, "/ws", headers).await.expect("upgraded")
    };
    let mut ann = connect(Some("ann"), &[]).await;
    ann.send(json!({"type": "subscribe", "topics": ["user/ann/#", "user/ben/#"]})).await;
    ann.expect("welcome").await;
    let answer = ann.expect("subscribed").await;
    assert_eq!((answer["topics"][0].get("error"), &answer["topics"][1]["error"]), (None, &json!("not_authorized")));
    let mut ben = connect(Some("ben"), &[]).await;
    ben.send(json!({"type": "ping"})).await;
    ben.expect("welcome").await;
    ben.expect("pong").await;
    // Without one it is nobody; and so it is where a page of somebody else asks.
    assert_eq!(first_answer(connect(None, &[]).await).await, (json!("error"), Some(4401)));
    let foreign = [("origin", "https://evil.example")];
    assert_eq!(first_answer(connect(Some("ann"), &foreign).await).await, (json!("error"), Some(4401)));
    let stripped = format!("http://{}", gateway.address);
    assert_eq!(first_answer(connect(Some("ann"), &[("origin", &stripped)]).await).await, (json!("error"), Some(4401)));
    let own = format!("https://{}", gateway.address);
    assert_eq!(first_answer(connect(Some("ann"), &[("origin", &own)]).await).await, (json!("welcome"), None));
    // A certificate that is revoked ends the session that came with it, and no other.
    certificates.revoke(&[12], 2100);
    assert_eq!(ben.expect("error").await["code"], "not_authenticated");
    assert_eq!(ben.closed().await, 4403);
    assert_eq!(ann.ask(json!({"type": "ping"})).await["type"], "pong");
}
