//! The admin API, publishing over HTTP, and `tidegate explain`.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::access::{PLANT, in_seconds, token};
use crate::support::api::{Answer, Api, description, fits};
use crate::support::{Browser, Device, Gateway, Mosquitto, Proxy, eventually, free_port};

const TOKEN: &str = "an-admin-token-that-nobody-guesses";
const FAR: i64 = 4_000_000_000;

fn operator(user: &str) -> String {
    token(user, json!({"roles": "operator", "site": "north"}))
}

fn viewer(user: &str) -> String {
    token(user, json!({"roles": ["viewer"], "site": "north"}))
}

async fn plant() -> (Mosquitto, Gateway, Api) {
    plant_with("").await
}

async fn plant_with(more: &str) -> (Mosquitto, Gateway, Api) {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), &format!("{PLANT}{more}")).await;
    let api = Api::at(&gateway.admin);
    (mosquitto, gateway, api)
}

/// A session of this user's, and its identifier.
async fn session(gateway: &Gateway, token: String, client_id: &str) -> (Browser, String) {
    let (browser, welcome) = gateway.open(json!({"token": token, "clientId": client_id})).await;
    (browser, welcome["sessionId"].as_str().expect("an identifier").to_owned())
}

/// The field of each session of a list.
fn each(answer: &Answer, field: &str) -> Vec<String> {
    let sessions = answer.body["sessions"].as_array().unwrap_or_else(|| panic!("{answer:?}"));
    sessions.iter().map(|session| session[field].as_str().expect("text").to_owned()).collect()
}

fn detail(answer: &Answer) -> &str {
    answer.body["detail"].as_str().unwrap_or_else(|| panic!("{answer:?}"))
}

#[tokio::test]
async fn everything_that_is_described_is_there_and_every_answer_is_as_described() {
    let (_mosquitto, mut gateway, api) = plant().await;
    let (mut browser, id) = session(&gateway, operator("olga"), "c1").await;
    let description = description();
    assert_eq!(api.get("/api/v1/openapi.json").await.body, description);
    let paths = description["paths"].as_object().expect("paths");
    let (drain, others): (Vec<_>, Vec<_>) = paths.iter().partition(|(path, _)| path.ends_with("/drain"));
    for (path, operations) in others.into_iter().chain(drain) {
        // What is taken away is taken away last.
        for method in ["get", "post", "put", "delete"] {
            let operation = &operations[method];
            if operation.is_null() {
                let answer = api.send(&method.to_uppercase(), &path.replace("{id}", &id), None).await;
                assert!(answer.status == 405 && answer.head.contains("allow: "), "{method} {path}: {answer:?}");
                continue;
            }
            let content = &operation["requestBody"]["content"]["application/json"];
            let examples = content["examples"].as_object().cloned().unwrap_or_default();
            let mut bodies: Vec<_> = examples.values().map(|example| Some(example["value"].clone())).collect();
            for body in bodies.iter().flatten() {
                assert_eq!(fits(&description, &content["schema"], body), Ok(()), "{method} {path}");
            }
            if bodies.is_empty() {
                bodies.push(None);
            }
            for body in bodies {
                let query = if method == "delete" && path.ends_with("revocations") { "?user=anna" } else { "" };
                let path = path.replace("{id}", &id) + query;
                let answer = api.send(&method.to_uppercase(), &path, body).await;
                assert!(answer.status < 300, "{method} {path}: {answer:?}");
            }
        }
    }
    browser.expect("bye").await;
    assert_eq!(gateway.end().await.code(), Some(0), "the last of them was the drain");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_in_a_sentence() {
    let (_mosquitto, _gateway, api) = plant().await;
    let until = json!(FAR);
    for (method, path, body, status, said) in [
        ("GET", "/api/v1/sessions?usr=anna", None, 400, "unknown field `usr`"),
        ("GET", "/api/v1/sessions?limit=0", None, 400, "limit"),
        ("GET", "/api/v1/sessions?limit=1001", None, 400, "1000 or less"),
        ("GET", "/api/v1/sessions?after=x", None, 400, "16 hexadecimal digits"),
        ("GET", "/api/v1/sessions?address=attic", None, 400, "no IP address and no network"),
        ("GET", "/api/v1/sessions/x", None, 400, "16 hexadecimal digits"),
        ("DELETE", "/api/v1/sessions/+123456789abcdef", None, 400, "16 hexadecimal digits"),
        ("GET", "/api/v1/sessions/0000000000000000", None, 404, "no such session"),
        ("DELETE", "/api/v1/sessions/0000000000000000", None, 404, "no such session"),
        ("POST", "/api/v1/revocations", Some(json!({"until": until})), 400, "Name one of"),
        ("POST", "/api/v1/revocations", Some(json!({"user": "a", "device": "b", "until": until})), 400, "Name one of"),
        ("POST", "/api/v1/revocations", Some(json!({"user": "a"})), 400, "Say `until` when"),
        ("POST", "/api/v1/revocations", Some(json!({"user": "a", "until": 5})), 400, "ends in the future"),
        ("POST", "/api/v1/revocations", Some(json!({"user": "", "until": until})), 400, "1 to 256 bytes"),
        ("POST", "/api/v1/revocations", Some(json!({"usr": "a", "until": until})), 400, "unknown field `usr`"),
        ("POST", "/api/v1/revocations", Some(json!({"user": 7, "until": until})), 400, "at `user`: invalid type"),
        ("DELETE", "/api/v1/revocations?user=nobody", None, 404, "no such revocation"),
        ("DELETE", "/api/v1/revocations", None, 400, "Name one of"),
        ("PUT", "/api/v1/log-level", Some(json!({"level": "loud"})), 400, "`loud` is not a level"),
        ("PUT", "/api/v1/log-level", Some(json!({})), 400, "missing field `level`"),
        ("POST", "/api/v1/explain", Some(json!({"action": "publish", "topic": "a/#"})), 400, "wildcards"),
        ("POST", "/api/v1/explain", Some(json!({"action": "dance", "topic": "a"})), 400, "unknown variant `dance`"),
        ("POST", "/api/v1/explain", Some(json!({"action": "publish", "topic": "a", "qos": 3})), 400, "0, 1 or 2"),
        (
            "POST",
            "/api/v1/explain",
            Some(json!({"action": "publish", "topic": "a", "roles": ["x"]})),
            400,
            "of a `user`",
        ),
        (
            "POST",
            "/api/v1/explain",
            Some(json!({"action": "subscribe", "topic": "a", "retain": true})),
            400,
            "for publishes",
        ),
        ("POST", "/api/v1/publish", Some(json!({"topic": "a", "payload": 1, "msgid": 1})), 400, "no `msgid`"),
        ("POST", "/api/v1/publish", Some(json!({"topic": "a"})), 400, "`payload` must be there"),
        ("POST", "/api/v1/publish", Some(json!({"topic": "a/+", "payload": 1})), 400, "wildcards"),
        ("GET", "/api/v1/nothing", None, 404, "openapi.json says what there is"),
    ] {
        let answer = api.send(method, path, body.clone()).await;
        assert!(answer.status == status && detail(&answer).contains(said), "{method} {path} {body:?}: {answer:?}");
    }
    let host = format!("Host: {}\r\n", api.address);
    let json = format!("{host}Content-Type: application/json\r\n");
    let large = format!("{{\"level\":\"{}\"}}", "x".repeat(65_536));
    for (head, body, status, said) in [
        (&host, "{\"level\":\"info\"}", 415, "Content-Type: application/json"),
        (&json, "{\"level\":", 400, "EOF"),
        (&json, "", 400, "EOF"),
        (&json, &large, 413, "65536 bytes"),
    ] {
        let answer = api.raw("PUT", "/api/v1/log-level", head, body).await;
        assert!(answer.status == status && detail(&answer).contains(said), "{answer:?}");
    }
}

#[tokio::test]
async fn sessions_are_listed_by_what_is_known_of_them_and_page_by_page() {
    let (_mosquitto, gateway, api) = plant().await;
    let mut browsers = Vec::new();
    for number in 0..25 {
        let token = if number % 5 == 0 { operator("olga") } else { viewer("vera") };
        browsers.push(session(&gateway, token, &format!("c{number}")).await);
    }
    let all = api.get("/api/v1/sessions").await;
    assert_eq!(each(&all, "sessionId").len(), 25);
    for (query, count) in [
        ("user=olga", 5),
        ("user=vera", 20),
        ("user=nobody", 0),
        ("role=operator", 5),
        ("clientId=c7", 1),
        ("user=olga&clientId=c7", 0),
        ("address=127.0.0.1", 25),
        ("address=127.0.0.0/8&role=viewer", 20),
        ("address=10.0.0.0/8", 0),
        ("limit=25", 25),
        ("limit=24", 24),
    ] {
        assert_eq!(each(&api.get(&format!("/api/v1/sessions?{query}")).await, "user").len(), count, "{query}");
    }
    let (mut pages, mut next) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/v1/sessions?limit=10{next}")).await;
        pages.extend(each(&page, "sessionId"));
        let Some(after) = page.body["next"].as_str() else { break };
        next = format!("&after={after}");
    }
    assert_eq!(pages, each(&all, "sessionId"), "each once, in their order");
    let (_, id) = &browsers[5];
    let shown = api.get(&format!("/api/v1/sessions/{id}")).await;
    assert!(shown.body["since"].as_i64().is_some_and(|since| (in_seconds(-60)..=in_seconds(1)).contains(&since)));
    for (field, value) in [
        ("sessionId", json!(id)),
        ("clientId", json!("c5")),
        ("address", json!("127.0.0.1")),
        ("user", json!("olga")),
        ("source", json!("jwt")),
        ("roles", json!(["operator"])),
    ] {
        assert_eq!(shown.body[field], value, "{field}");
    }
    let (browser, id) = browsers.pop().expect("there are some");
    browser.leave().await;
    let path = format!("/api/v1/sessions/{id}");
    eventually("it is not there any more", async || api.get(&path).await.status == 404).await;
}

#[tokio::test]
async fn without_access_control_sessions_have_no_identity() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::before(&mosquitto).await;
    let api = Api::at(&gateway.admin);
    let (_browser, welcome) = gateway.open(json!({"clientId": "c1"})).await;
    let list = api.get("/api/v1/sessions").await;
    assert_eq!(each(&list, "sessionId"), [welcome["sessionId"].as_str().expect("an identifier")]);
    assert_eq!(list.body["sessions"][0].get("user"), None, "{list:?}");
    let why = api.post("/api/v1/explain", json!({"action": "publish", "topic": "a"})).await;
    assert_eq!(why.body["allowed"], true, "{why:?}");
    let publish = Api::at(&gateway.address).post("/api/v1/publish", json!({"topic": "a", "payload": 1})).await;
    assert!(publish.status == 404 && detail(&publish).contains("[auth]"), "{publish:?}");
    // A device can be shut out all the same.
    let revoked = api.post("/api/v1/revocations", json!({"device": "c1", "until": FAR})).await;
    assert_eq!((revoked.status, &revoked.body["sessions"]), (201, &json!(1)));
    let mut again = gateway.connect().await;
    again.send(json!({"type": "auth", "clientId": "c1"})).await;
    assert_eq!(again.closed().await, 4403);
    gateway.open(json!({"clientId": "c2"})).await.0.leave().await;
}

#[tokio::test]
async fn whoever_is_kicked_is_told_to_come_again_and_may() {
    let (mosquitto, gateway, api) = plant().await;
    let mut device = Device::subscribe(mosquitto.port, &["-t", "plant/#"]).await;
    let will = json!({"topic": "plant/north/will", "payload": "gone"});
    let auth = json!({"token": operator("olga"), "clientId": "c1", "clean": false, "will": will});
    let (mut browser, welcome) = gateway.open(auth.clone()).await;
    let (mut other, _) = session(&gateway, operator("olga"), "c2").await;
    browser.ask(json!({"type": "subscribe", "topic": "plant/north/#", "qos": 1})).await;
    let path = format!("/api/v1/sessions/{}", welcome["sessionId"].as_str().expect("an identifier"));
    assert_eq!(api.delete(&path).await.status, 202);
    let bye = browser.expect("bye").await;
    assert_eq!((&bye["reason"], &bye["reconnectAfter"]), (&json!("kick"), &json!(1000)));
    assert_eq!(browser.closed().await, 1012);
    eventually("it is gone", async || api.get(&path).await.status == 404).await;
    let (mut again, welcome) = gateway.open(auth).await;
    assert_eq!(welcome["sessionPresent"], true, "the broker has kept it");
    again.ask(json!({"type": "ping"})).await;
    other.publish("plant/north/end", "end", 1).await;
    assert_eq!(device.next().await, "plant/north/end end", "no will was published");
}

/// That the session ends, and why.
async fn is_revoked(browser: &mut Browser) {
    let error = browser.expect("error").await;
    assert_eq!(error["code"], "not_authenticated");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("revoked until 4000000000")), "{error}");
    assert_eq!(browser.closed().await, 4403);
}

#[tokio::test]
async fn a_revoked_user_token_or_device_is_out_at_once_until_the_revocation_is_lifted() {
    let (_mosquitto, gateway, api) = plant().await;
    let tokens = |user: &str, id: &str| token(user, json!({"roles": "operator", "site": "north", "jti": id}));
    let header = |token: &str| format!("Bearer {token}");
    for (subject, name, other) in [
        ("user", "olga", ("bob", "t2", "c2")),
        ("tokenId", "t1", ("olga", "t2", "c2")),
        ("device", "c1", ("olga", "t1", "c2")),
    ] {
        let (mut meant, _) = session(&gateway, tokens("olga", "t1"), "c1").await;
        let (user, id, client) = other;
        let (mut other, _) = session(&gateway, tokens(user, id), client).await;
        let revoked = api.post("/api/v1/revocations", json!({subject: name, "until": FAR})).await;
        assert_eq!((revoked.status, &revoked.body["sessions"]), (201, &json!(1)), "{subject}: {revoked:?}");
        is_revoked(&mut meant).await;
        other.ask(json!({"type": "ping"})).await;
        let mut late = gateway.connect().await;
        late.send(json!({"type": "auth", "token": tokens("olga", "t1"), "clientId": "c1"})).await;
        is_revoked(&mut late).await;
        // The token is judged before it is known what the client calls itself.
        let authorization = header(&tokens("olga", "t1"));
        let headers = [("authorization", authorization.as_str())];
        let mut late = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
        late.send(json!({"type": "auth", "clientId": "c1"})).await;
        is_revoked(&mut late).await;
        let list = api.get("/api/v1/revocations").await;
        assert_eq!(list.body, json!({"revocations": [{subject: name, "until": FAR}]}));
        assert_eq!(api.delete(&format!("/api/v1/revocations?{subject}={name}")).await.status, 204);
        session(&gateway, tokens("olga", "t1"), "c1").await.0.leave().await;
    }
    assert_eq!(api.get("/api/v1/revocations").await.body, json!({"revocations": []}));
}

#[tokio::test]
async fn whoever_is_revoked_while_the_session_opens_is_told_at_once() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let gateway = Gateway::start(&proxy.url(), PLANT).await;
    let api = Api::at(&gateway.admin);
    proxy.hold();
    let mut browser = gateway.connect().await;
    browser.send(json!({"type": "auth", "token": operator("olga")})).await;
    eventually("it opens", async || gateway.metric("tidegate_broker_links{state=\"down\"}").await == 1.0).await;
    let revoked = api.post("/api/v1/revocations", json!({"user": "olga", "until": FAR})).await;
    assert_eq!(revoked.body["sessions"], 1);
    // Not `broker_unavailable` and 4503, when the broker's time is up.
    is_revoked(&mut browser).await;
}

#[tokio::test]
async fn a_new_token_that_was_revoked_renews_nothing() {
    let (_mosquitto, gateway, api) = plant().await;
    let with = |id: &str| token("olga", json!({"roles": "operator", "site": "north", "jti": id}));
    let (mut browser, _) = session(&gateway, with("t1"), "c1").await;
    assert_eq!(api.post("/api/v1/revocations", json!({"tokenId": "t2", "until": FAR})).await.status, 201);
    let error = browser.ask(json!({"type": "auth", "token": with("t2"), "msgid": 1})).await;
    assert_eq!((&error["code"], &error["msgid"]), (&json!("not_authenticated"), &json!(1)));
    browser.ask(json!({"type": "auth", "token": with("t3")})).await;
    let revoked = api.post("/api/v1/revocations", json!({"tokenId": "t1", "until": FAR})).await;
    assert_eq!(revoked.body["sessions"], 0, "it goes by another token now");
    let revoked = api.post("/api/v1/revocations", json!({"tokenId": "t3", "until": FAR})).await;
    assert_eq!(revoked.body["sessions"], 1);
    is_revoked(&mut browser).await;
}

#[tokio::test]
async fn the_broker_forgets_the_session_of_whoever_is_revoked() {
    let (mosquitto, gateway, api) = plant().await;
    let auth = json!({"token": operator("olga"), "clientId": "c1", "clean": false});
    let (mut browser, _) = gateway.open(auth.clone()).await;
    browser.ask(json!({"type": "subscribe", "topic": "plant/north/#", "qos": 1})).await;
    api.post("/api/v1/revocations", json!({"user": "olga", "until": FAR})).await;
    is_revoked(&mut browser).await;
    Device::publish(mosquitto.port, &["-t", "plant/north/secret", "-m", "no", "-q", "1"]).await;
    api.delete("/api/v1/revocations?user=olga").await;
    let (mut again, welcome) = gateway.open(auth).await;
    assert_eq!(welcome["sessionPresent"], false);
    again.hears_nothing_for(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn revocations_hold_over_a_restart_where_they_are_kept() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("revocations.json");
    let configuration = PLANT.replace("anonymous = false", &format!("anonymous = false\nrevocations = {path:?}"));
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::start(&mosquitto.url(), &configuration).await;
    let api = Api::at(&gateway.admin);
    assert_eq!(api.post("/api/v1/revocations", json!({"user": "olga", "until": FAR})).await.status, 201);
    // What only looks changes nothing of it.
    let (status, told) = explain(&configuration, &["--user", "olga", "publish", "plant/north/x"]).await;
    assert!(status == 1 && told.contains("denied: not authenticated: revoked"), "{told}");
    assert!(gateway.stop().await.success());
    let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
    let mut late = gateway.connect().await;
    late.send(json!({"type": "auth", "token": operator("olga")})).await;
    is_revoked(&mut late).await;
}

#[tokio::test]
async fn with_a_token_operators_show_it_and_metrics_and_health_need_none() {
    let mosquitto = Mosquitto::start().await;
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let configuration = format!("[http]\nadmin_listen = \"{listen}\"\n[admin]\ntoken = \"{TOKEN}\"");
        let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        let address = gateway.admin.replace("0.0.0.0", "127.0.0.1");
        let sessions = async |api: Api| api.get("/api/v1/sessions").await;
        assert_eq!(sessions(Api::with_token(&address, TOKEN)).await.status, 200);
        for bad in [Api::at(&address), Api::with_token(&address, "another"), Api::with_token(&address, "")] {
            let answer = sessions(bad).await;
            assert!(answer.status == 401 && answer.head.contains("www-authenticate: bearer"), "{answer:?}");
        }
        for (method, path) in [("POST", "/drain"), ("POST", "/api/v1/drain"), ("GET", "/api/v1/nothing")] {
            assert_eq!(gateway.request(&address, method, path, "").await.0, 401, "{method} {path}");
        }
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert_eq!(gateway.get(&address, path).await.0, 200, "{path}");
        }
        let refused = r#"tidegate_admin_requests_total{route="sessions",status="401"}"#;
        assert_eq!(gateway.metric(refused).await, 3.0);
        assert_eq!(gateway.metric(r#"tidegate_admin_requests_total{route="drain",status="401"}"#).await, 2.0);
        let log = gateway.log();
        assert!(log.contains("an operator's request was turned away") && !log.contains(TOKEN), "{log}");
        // A new one holds when the configuration is read again.
        gateway.reload(&configuration.replace(TOKEN, "another-token-of-many-letters")).await;
        eventually("the old one is none", async || sessions(Api::with_token(&address, TOKEN)).await.status == 401)
            .await;
        assert_eq!(sessions(Api::with_token(&address, "another-token-of-many-letters")).await.status, 200);
        assert!(!gateway.log().contains("another-token"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn without_a_token_the_api_is_off_where_others_can_reach_it() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "[http]\nadmin_listen = \"0.0.0.0:0\"").await;
    let address = gateway.admin.replace("0.0.0.0", "127.0.0.1");
    for api in [Api::at(&address), Api::with_token(&address, TOKEN)] {
        let answer = api.get("/api/v1/sessions").await;
        assert!(answer.status == 403 && detail(&answer).contains("set admin.token_file"), "{answer:?}");
    }
    for path in ["/drain", "/api/v1/drain"] {
        assert_eq!(gateway.request(&address, "POST", path, "").await.0, 403, "{path}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(gateway.get(&address, path).await.0, 200, "{path}");
    }
    assert!(gateway.log().contains("the admin API is off"), "{}", gateway.log());
}

#[tokio::test]
async fn pages_in_a_browser_can_do_nothing_without_the_token() {
    let (_mosquitto, gateway, api) = plant().await;
    let port = gateway.admin.rsplit_once(':').expect("a port").1;
    for (head, status) in [
        (format!("Host: {}\r\n", gateway.admin), 200),
        (format!("Host: localhost:{port}\r\n"), 200),
        ("Host: localhost\r\n".to_owned(), 200),
        (format!("Host: {}\r\nOrigin: http://attic.example\r\n", gateway.admin), 403),
        (format!("Host: {}\r\nSec-Fetch-Site: none\r\n", gateway.admin), 403),
        (format!("Host: attic.example:{port}\r\n"), 403),
        ("X-Host: localhost\r\n".to_owned(), 403),
    ] {
        let answer = api.raw("GET", "/api/v1/sessions", &head, "").await;
        assert_eq!(answer.status, status, "{head}: {answer:?}");
    }
}

#[tokio::test]
async fn a_program_publishes_what_its_grants_allow() {
    let (mosquitto, gateway, _) = plant().await;
    let mut device = Device::subscribe(mosquitto.port, &["-t", "plant/#", "-q", "1"]).await;
    let publish = async |token: &str, topic: &str, qos: u8| {
        let body = json!({"topic": topic, "payload": format!("qos {qos}"), "qos": qos});
        Api::with_token(&gateway.address, token).post("/api/v1/publish", body).await
    };
    for qos in 0..3 {
        let answer = publish(&operator("olga"), "plant/north/x", qos).await;
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("published")), "{answer:?}");
        assert_eq!(device.next().await, format!("plant/north/x qos {qos}"));
    }
    let expired = token("olga", json!({"roles": "operator", "exp": in_seconds(-60)}));
    for (token, topic, status, code, said) in [
        (operator("olga"), "plant/south/x", 403, json!("not_authorized"), "no grant of the role operator allows it"),
        (operator("olga"), "plant/north/safety/x", 403, json!("not_authorized"), "grant 2 of the role operator denies"),
        (operator("olga"), &"a/".repeat(300), 400, json!("invalid_topic"), "wire.max_topic_levels"),
        (viewer("vera"), "user/vera/x", 403, json!("not_authorized"), "no grant of the role viewer allows it"),
        (expired, "plant/north/x", 401, Value::Null, "expired"),
        ("what".to_owned(), "plant/north/x", 401, Value::Null, "Not authenticated"),
        (String::new(), "plant/north/x", 401, Value::Null, "Not authenticated"),
    ] {
        let answer = publish(&token, topic, 1).await;
        assert!(answer.status == status && detail(&answer).contains(said), "{topic}: {answer:?}");
        assert_eq!(answer.body["code"], code, "{topic}: {answer:?}");
    }
    let anonymous = Api::at(&gateway.address).post("/api/v1/publish", json!({"topic": "a", "payload": 1})).await;
    assert!(anonymous.status == 401 && anonymous.head.contains("www-authenticate: bearer"), "{anonymous:?}");
    assert_eq!(Api::at(&gateway.address).get("/api/v1/publish").await.status, 405);
    for path in ["/api/v1/sessions", "/api/v1/drain", "/drain"] {
        assert_eq!(gateway.request(&gateway.address, "POST", path, "").await.0, 404, "{path}");
    }
    assert_eq!(gateway.metric(r#"tidegate_http_publishes_total{status="200"}"#).await, 3.0);
    assert_eq!(gateway.metric(r#"tidegate_http_publishes_total{status="403"}"#).await, 3.0);
    assert!(!gateway.log().contains("eyJ"), "no token is logged");
}

#[tokio::test]
async fn what_a_browser_shows_by_itself_publishes_for_no_foreign_page() {
    let mosquitto = Mosquitto::start().await;
    let cookie = PLANT.replace("anonymous = false", "anonymous = false\ncookie = \"sid\"");
    let listing = format!("[http]\nallowed_origins = [\"https://app.example\"]\n{cookie}");
    for (configuration, cases) in [
        (cookie, [("", 401), ("Origin: http://GATEWAY\r\n", 200), ("Origin: https://app.example\r\n", 401)]),
        (listing, [("Origin: https://app.example\r\n", 200), ("Origin: https://a.example\r\n", 403), ("", 401)]),
    ] {
        let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        let api = Api::at(&gateway.address);
        let host = format!("Host: {}\r\nContent-Type: application/json\r\n", gateway.address);
        let body = r#"{"topic":"plant/north/x","payload":1}"#;
        for (origin, status) in cases {
            let head =
                format!("{host}Cookie: sid={}\r\n{}", operator("olga"), origin.replace("GATEWAY", &gateway.address));
            let answer = api.raw("POST", "/api/v1/publish", &head, body).await;
            assert_eq!(answer.status, status, "{origin}: {answer:?}");
        }
        // In the URL it would be in logs.
        let path = format!("/api/v1/publish?token={}", operator("olga"));
        assert_eq!(api.raw("POST", &path, &host, body).await.status, 401);
    }
}

#[tokio::test]
async fn an_operator_publishes_everything_and_large_payloads_have_a_bound() {
    let (mosquitto, _gateway, api) = plant_with("[wire]\nmax_payload = 1000\n").await;
    let mut device = Device::subscribe(mosquitto.port, &["-t", "#"]).await;
    assert_eq!(api.post("/api/v1/publish", json!({"topic": "anything", "payload": {"a": 1.50}})).await.status, 200);
    assert_eq!(device.next().await, r#"anything {"a":1.5}"#);
    for (length, status) in [(1000, 200), (1001, 413), (100_000, 413)] {
        let answer = api.post("/api/v1/publish", json!({"topic": "a", "payload": "x".repeat(length)})).await;
        assert_eq!(answer.status, status, "{length}");
    }
}

#[tokio::test]
async fn what_a_user_may_publish_counts_over_http_too() {
    let (_mosquitto, gateway, _) = plant_with(
        "[roles.slow]\ngrants = [{ allow = [\"publish\"], topics = [\"#\"] }]\nmax_publishes_per_second = 1\n",
    )
    .await;
    let api = Api::with_token(&gateway.address, &token("sam", json!({"roles": "slow"})));
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(api.post("/api/v1/publish", json!({"topic": "a", "payload": 1})).await.status);
    }
    assert!(statuses[0] == 200 && statuses.contains(&429), "{statuses:?}");
}

#[tokio::test]
async fn a_publish_is_answered_when_the_broker_has_it() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let gateway = Gateway::start(&proxy.url(), "[broker]\nrequest_timeout = 2").await;
    let publish = async |qos: u8| {
        let body = json!({"topic": "a", "payload": 1, "qos": qos});
        Api::at(&gateway.admin).post("/api/v1/publish", body).await
    };
    assert_eq!(publish(1).await.status, 200);
    proxy.hold();
    let (answer, ()) = tokio::join!(publish(1), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.resume();
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    proxy.hold();
    let begun = tokio::time::Instant::now();
    let answer = publish(1).await;
    assert!(answer.status == 504 && answer.body["code"] == "timeout", "{answer:?}");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_publish_that_is_under_way_is_answered_before_the_gateway_ends() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let mut gateway = Gateway::start(&proxy.url(), "").await;
    let api = Api::at(&gateway.admin);
    let publish = || api.post("/api/v1/publish", json!({"topic": "a", "payload": 1, "qos": 1}));
    assert_eq!(publish().await.status, 200);
    proxy.hold();
    let sent = r#"tidegate_messages_total{direction="uplink",qos="1"}"#;
    let (answer, late) = tokio::join!(publish(), async {
        eventually("it is on its way", async || gateway.metric(sent).await == 2.0).await;
        gateway.terminate().await;
        eventually("the end has begun", async || TcpStream::connect(&gateway.address).await.is_err()).await;
        let late = publish().await;
        proxy.resume();
        late
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(late.status == 503 && detail(&late).contains("going away"), "{late:?}");
    assert_eq!(gateway.end().await.code(), Some(0));
    assert!(!gateway.log().contains("deadline has passed"));
}

#[cfg(feature = "embedded-broker")]
#[tokio::test]
async fn the_embedded_broker_is_sent_nothing_that_stops_it() {
    let gateway = Gateway::start("embedded", "").await;
    let api = Api::at(&gateway.admin);
    let mut browser = gateway.browser().await;
    browser.subscribe("#").await;
    for qos in 0..3 {
        let body = json!({"topic": "a", "payload": qos.to_string(), "qos": qos});
        assert_eq!(api.post("/api/v1/publish", body).await.status, 200, "{qos}");
        assert_eq!(browser.next_delivery().await, ("a".to_owned(), qos.to_string()));
    }
    let refused = api.post("/api/v1/publish", json!({"topic": "é", "payload": 1})).await;
    assert!(refused.status == 400 && detail(&refused).contains("embedded broker"), "{refused:?}");
}

#[tokio::test]
async fn without_a_broker_a_publish_is_refused_at_once_and_works_when_it_is_back() {
    let mut mosquitto = Mosquitto::start().await;
    let gateway = Gateway::before(&mosquitto).await;
    let api = Api::at(&gateway.admin);
    let publish = async |qos: u8| api.post("/api/v1/publish", json!({"topic": "a", "payload": 1, "qos": qos})).await;
    assert_eq!(publish(0).await.status, 200);
    mosquitto.kill().await;
    eventually("it is noticed", async || publish(0).await.status == 503).await;
    let refused = publish(2).await;
    assert!(refused.body["code"] == "broker_unavailable" && refused.head.contains("retry-after"), "{refused:?}");
    mosquitto.restart().await;
    eventually("it works again", async || publish(2).await.status == 200).await;

    let nowhere = Gateway::start_unready(&format!("mqtt://127.0.0.1:{}", free_port()), "").await;
    let answer = Api::at(&nowhere.admin).post("/api/v1/publish", json!({"topic": "a", "payload": 1})).await;
    assert_eq!(answer.status, 503, "{answer:?}");
}

#[tokio::test]
async fn where_the_broker_has_rules_for_each_user_a_program_publishes_in_a_session() {
    if std::env::var("TIDEGATE_UPSTREAM").is_ok() {
        // Sessions that share a connection are one to the broker.
        return;
    }
    let (_mosquitto, gateway, _) = plant_with("[broker]\nsession_username = \"{user}\"\n").await;
    let api = Api::with_token(&gateway.address, &operator("olga"));
    let answer = api.post("/api/v1/publish", json!({"topic": "plant/north/x", "payload": 1})).await;
    assert!(answer.status == 403 && detail(&answer).contains("broker.session_username"), "{answer:?}");
}

#[tokio::test]
async fn an_operator_has_the_configuration_read_again_and_hears_what_became_of_it() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), "[session]\nmax_subscriptions = 3").await;
    let api = Api::at(&gateway.admin);
    let reload = async |configuration: &str| {
        fs::write(gateway.file(), configuration).expect("written");
        api.send("POST", "/api/v1/reload", None).await
    };
    let answer = reload("[session]\nmax_subscriptions = 2\n[broker]\npassword = \"hunter-31415\"").await;
    assert_eq!(answer.body, json!({"status": "applied", "changed": 2, "needingRestart": 1}));
    assert_eq!(gateway.open(json!({})).await.1["limits"]["maxSubscriptions"], 2, "it is in force by then");
    let answer = reload("[session]\nmax_subscriptions = \"hunter\"").await;
    assert!(answer.status == 422 && detail(&answer).contains("line 2, column 21"), "{answer:?}");
    let answer = reload("[broker]\npassword = 31415").await;
    assert!(answer.status == 422 && !detail(&answer).contains("31415"), "{answer:?}");
    assert_eq!(gateway.metric(r#"tidegate_configuration_reloads_total{result="refused"}"#).await, 2.0);
    assert_eq!(gateway.open(json!({})).await.1["limits"]["maxSubscriptions"], 2);
}

#[tokio::test]
async fn the_level_of_the_log_is_shown_and_changed_until_the_configuration_is_read_again() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::before(&mosquitto).await;
    let api = Api::at(&gateway.admin);
    let debugged = || gateway.log().matches("session opened").count();
    assert_eq!(api.get("/api/v1/log-level").await.body, json!({"level": "info"}));
    gateway.browser().await.leave().await;
    let answer = api.send("PUT", "/api/v1/log-level", Some(json!({"level": "debug"}))).await;
    assert_eq!((answer.status, &answer.body), (200, &json!({"level": "debug"})));
    gateway.browser().await.leave().await;
    eventually("it tells more", async || debugged() == 1).await;
    assert_eq!(api.send("POST", "/api/v1/reload", None).await.status, 200);
    assert_eq!(api.get("/api/v1/log-level").await.body, json!({"level": "info"}));
}

#[tokio::test]
async fn what_operators_and_programs_do_is_recorded() {
    let (_mosquitto, gateway, api) = plant_with("[audit]\nlog = \"audit.jsonl\"\ntopics = [\"plant/#\"]\n").await;
    let (_browser, id) = session(&gateway, operator("olga"), "c1").await;
    api.delete(&format!("/api/v1/sessions/{id}")).await;
    api.post("/api/v1/revocations", json!({"user": "bob", "until": FAR})).await;
    api.delete("/api/v1/revocations?user=bob").await;
    api.send("PUT", "/api/v1/log-level", Some(json!({"level": "debug"}))).await;
    api.post("/api/v1/publish", json!({"topic": "plant/a", "payload": 1})).await;
    api.raw("GET", "/api/v1/sessions", "Host: attic.example\r\n", "").await;
    let client = Api::with_token(&gateway.address, &operator("olga"));
    client.post("/api/v1/publish", json!({"topic": "plant/north/a", "payload": 1})).await;
    client.post("/api/v1/publish", json!({"topic": "other", "payload": 1})).await;
    Api::with_token(&gateway.address, "what").post("/api/v1/publish", json!({"topic": "a", "payload": 1})).await;
    let path = gateway.file().with_file_name("audit.jsonl");
    let recorded = || {
        let text = fs::read_to_string(&path).expect("readable");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let told = lines.map(|line| {
            let said: Vec<_> = ["event", "by", "what", "setting", "user", "topic", "request", "sessions"]
                .iter()
                .filter_map(|name| line.get(*name))
                .map(|value| value.to_string().replace('"', ""))
                .collect();
            said.join(" ")
        });
        told.collect::<Vec<_>>()
    };
    let expected = [
        &format!("administered admin API ended the session {id}"),
        "revoked admin API the user bob 0",
        "administered admin API lifted the revocation of the user bob",
        "configuration_changed admin API log.level",
        "published plant/a",
        "administered admin API published to plant/a",
        "refused administer",
        "published olga plant/north/a",
        "refused olga other publish",
        "authentication_failed",
    ];
    eventually("all of it is there", async || {
        let recorded = recorded();
        expected.iter().all(|line| recorded.iter().any(|told| told == line))
    })
    .await;
    assert!(!fs::read_to_string(&path).expect("readable").contains("eyJ"), "no token");
}

/// The status and the words of `tidegate explain`.
async fn explain(configuration: &str, arguments: &[&str]) -> (i32, String) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("tidegate.toml");
    fs::write(&file, configuration).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_clear().args(["explain", "--config"]).arg(&file).args(arguments);
    let output = command.output().await.expect("it was built");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
    (output.status.code().expect("it ends by itself"), text)
}

#[tokio::test]
async fn an_explanation_says_what_a_session_hears() {
    let (_mosquitto, gateway, api) = plant().await;
    let tokens = [operator("olga"), viewer("vera"), token("nora", json!({"site": "north"}))];
    let topics = [
        "plant/north/x",
        "plant/north/safety/x",
        "plant/north/a/status",
        "plant/south/x",
        "user/vera/x",
        "other",
        "plant/north/#",
        "plant/+/+/status",
        "user/vera/#",
        "$share/g/plant/north/#",
        "#",
    ];
    for token in &tokens {
        let (mut browser, _) = gateway.open(json!({"token": token})).await;
        for topic in topics {
            let why = async |action: &str| {
                let body = json!({"token": token, "action": action, "topic": topic, "qos": 1});
                api.post("/api/v1/explain", body).await
            };
            let explained = why("subscribe").await.body;
            let heard = browser.ask(json!({"type": "subscribe", "topic": topic, "qos": 1})).await;
            let heard = &heard["topics"][0];
            assert_eq!(explained["allowed"], heard.get("error").is_none(), "{topic}: {explained} {heard}");
            assert_eq!(explained.get("qos"), heard.get("qos"), "{topic}: {explained} {heard}");
            assert!(is_told(heard, &explained), "{topic}: {explained} {heard}");
            browser.ask(json!({"type": "unsubscribe", "topic": topic})).await;
            if topic.contains('#') || topic.contains('+') {
                assert_eq!(why("publish").await.status, 400, "{topic}");
                continue;
            }
            let explained = why("publish").await.body;
            let heard =
                browser.ask(json!({"type": "publish", "topic": topic, "payload": 1, "qos": 1, "msgid": topic})).await;
            assert_eq!(explained["allowed"], heard["type"] == "ack", "{topic}: {explained} {heard}");
            assert!(is_told(&heard, &explained), "{topic}: {explained} {heard}");
            assert_eq!(explained["identity"]["source"], "jwt");
        }
    }
    let expired = token("olga", json!({"roles": "operator", "exp": in_seconds(-60)}));
    let bad = api.post("/api/v1/explain", json!({"token": expired, "action": "publish", "topic": "a"})).await.body;
    assert_eq!(bad, json!({"allowed": false, "message": "not authenticated: the token has expired; get a new one"}));
    assert!(!gateway.log().contains("eyJ"));
}

/// The refusal has the sentence of the explanation.
fn is_told(heard: &Value, explained: &Value) -> bool {
    let why = explained["message"].as_str().expect("a sentence");
    heard.get("message").and_then(Value::as_str).is_none_or(|message| message.contains(why))
}

#[tokio::test]
async fn the_command_line_explains_by_a_configuration_alone() {
    let olga = operator("olga");
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("token");
    fs::write(&file, format!("{olga}\n")).expect("written");
    let file = file.to_str().expect("Unicode");
    let vera = ["--user", "vera", "--role", "viewer", "--claim", "site=north", "--claim", "site=south"];
    let with = |who: &[&'static str], rest: &[&'static str]| [who, rest].concat();
    for (arguments, status, said) in [
        (vec!["--token", &olga, "publish", "plant/north/x"], 0, "allowed, with qos 0: grant 1 of the role operator"),
        (vec!["--token-file", file, "publish", "plant/north/x", "--qos", "1"], 0, "known by: jwt"),
        (vec!["--token", &olga, "publish", "plant/a/safety/b"], 1, "denied: grant 2 of the role operator denies"),
        (vec!["--token", "what", "publish", "a"], 1, "denied: not authenticated"),
        (with(&vera, &["subscribe", "plant/south/+/status"]), 0, "user: vera"),
        (with(&vera, &["subscribe", "plant/east/+/status"]), 1, "denied: no grant of the role viewer allows it"),
        (vec!["--anonymous", "subscribe", "#"], 1, "denied: nobody comes in without a credential"),
        (vec!["--token-file", "/none", "publish", "a"], 2, "--token-file: cannot read /none"),
        (vec!["--anonymous", "publish", "a/#"], 2, "wildcards"),
        (vec!["--anonymous", "subscribe", "a", "--retain"], 2, "--retain is for publishes"),
        (vec!["--anonymous", "subscribe", "a", "--qos", "3"], 2, "0..=2"),
        (vec!["subscribe", "a"], 2, "required"),
        (vec!["--anonymous", "--user", "vera", "subscribe", "a"], 2, "cannot be used with"),
        (vec!["--anonymous", "--role", "viewer", "subscribe", "a"], 2, "are those of a --user"),
    ] {
        let (ended, told) = explain(PLANT, &arguments).await;
        assert!(ended == status && told.contains(said), "{arguments:?}: {ended}: {told}");
        assert!(!told.contains(&olga), "{told}");
    }
    let (status, told) = explain("", &["--anonymous", "publish", "a"]).await;
    assert!(status == 0 && told.contains("there is no access control"), "{told}");
    let (status, told) = explain("[wire]\nmax_frame = 0", &["--anonymous", "publish", "a"]).await;
    assert!(status == 2 && told.contains("wire.max_frame"), "{told}");
}
