//! Who may come in and what each may do: scenes with real tokens before a real broker.

use std::time::{Duration, SystemTime};

use base64_simd::STANDARD;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::support::{Browser, Device, Gateway, Mosquitto, Proxy, Way, eventually};

pub const SECRET: &str = "a secret of at least thirty-two bytes";

/// The configuration that the documentation shows, the secret in place.
pub const PLANT: &str = r#"
    [auth]
    anonymous = false

    [auth.jwt]
    algorithms = ["HS256"]
    secret = "a secret of at least thirty-two bytes"
    audience = "tidegate"
    role_claim = "roles"

    [roles.operator]
    grants = [
      { allow = ["subscribe", "publish"], topics = ["plant/{claim.site}/#"] },
      { deny = ["publish"], topics = ["plant/+/safety/#"] },
    ]

    [roles.viewer]
    grants = [{ allow = ["subscribe"], topics = ["plant/{claim.site}/+/status", "user/{user}/#"] }]
"#;

/// Seconds since 1970, and so many more.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    now.as_secs() as i64 + seconds
}

/// A token of this user for an hour, with more claims, or others in their place.
pub fn token(user: &str, claims: Value) -> String {
    let mut all = json!({"sub": user, "aud": "tidegate", "exp": in_seconds(3600)});
    let fields = all.as_object_mut().expect("an object");
    fields.extend(claims.as_object().expect("an object").clone());
    encode(&Header::default(), &all, &EncodingKey::from_secret(SECRET.as_bytes())).expect("signed")
}

pub fn operator(user: &str) -> String {
    token(user, json!({"roles": "operator", "site": "north"}))
}

pub fn viewer(user: &str) -> String {
    token(user, json!({"roles": ["viewer"], "site": "north"}))
}

async fn plant() -> (Mosquitto, Gateway) {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), PLANT).await;
    (mosquitto, gateway)
}

pub async fn opened(gateway: &Gateway, token: &str) -> Browser {
    gateway.open(json!({"token": token})).await.0
}

/// What becomes of a subscription.
pub async fn subscribing(browser: &mut Browser, topic: &str) -> Value {
    let answer = browser.ask(json!({"type": "subscribe", "topic": topic, "qos": 1})).await;
    assert_eq!(answer["type"], "subscribed", "{answer}");
    answer["topics"][0].clone()
}

/// What becomes of a publish: nothing, or the code and the message of the error.
pub async fn publishing(browser: &mut Browser, topic: &str) -> Result<(), (String, String)> {
    let answer = browser.ask(json!({"type": "publish", "topic": topic, "payload": 1, "msgid": topic})).await;
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    if text("type") == "ack" { Ok(()) } else { Err((text("code"), text("message"))) }
}

fn not_authorized(message: &str) -> Result<(), (String, String)> {
    Err(("not_authorized".to_owned(), message.to_owned()))
}

/// The code of the `error` and of the close that end what this browser began.
pub async fn turned_away(mut browser: Browser) -> (String, u16) {
    let error = browser.expect("error").await;
    (error["code"].as_str().expect("a code").to_owned(), browser.closed().await)
}

#[tokio::test]
async fn the_configuration_of_the_documentation_does_what_it_says() {
    let documentation = include_str!("../../docs/access.md");
    let shown = documentation.split("```").find_map(|text| text.strip_prefix("toml\n")).expect("an example");
    let mut shown: toml::Table = shown.parse().expect("TOML");
    let jwt = shown["auth"]["jwt"].as_table_mut().expect("a section");
    jwt.remove("secret_file").expect("the secret has a file there");
    jwt.insert("secret".to_owned(), SECRET.into());
    assert_eq!(shown, PLANT.parse().expect("TOML"));

    let (_mosquitto, gateway) = plant().await;
    let mut operator = opened(&gateway, &operator("olga")).await;
    let mut viewer = opened(&gateway, &viewer("vera")).await;
    assert_eq!(subscribing(&mut viewer, "plant/north/+/status").await["qos"], 1);
    for closed in ["plant/north/#", "plant/+/+/status", "#", "plant/south/pump/status", "$share/g/plant/#", "$SYS/#"] {
        assert_eq!(subscribing(&mut viewer, closed).await["error"], "not_authorized", "{closed}");
    }
    assert_eq!(subscribing(&mut viewer, "user/vera/#").await["qos"], 1);
    assert_eq!(subscribing(&mut viewer, "user/olga/#").await["error"], "not_authorized");
    assert_eq!(publishing(&mut operator, "plant/north/pump/status").await, Ok(()));
    assert_eq!(viewer.next_delivery().await, ("plant/north/pump/status".to_owned(), "1".to_owned()));
    assert_eq!(
        publishing(&mut operator, "plant/north/safety/stop").await,
        not_authorized(
            "You may not publish to plant/north/safety/stop: grant 2 of the role operator denies `publish` on plant/+/safety/#."
        )
    );
    assert_eq!(
        publishing(&mut viewer, "user/vera/x").await,
        not_authorized("You may not publish to user/vera/x: no grant of the role viewer allows it.")
    );
    assert_eq!(subscribing(&mut operator, "plant/north/safety/#").await["qos"], 1);
    viewer.hears_nothing_for(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_token_may_come_in_a_header_a_subprotocol_or_the_first_frame() {
    let (_mosquitto, gateway) = plant().await;
    let token = viewer("vera");
    let header = format!("Bearer {token}");
    let offer = format!("tidegate.v1.json, bearer.{token}");
    for headers in [[("authorization", header.as_str())], [("sec-websocket-protocol", offer.as_str())]] {
        let mut browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
        assert!(browser.subprotocol.as_deref().is_none_or(|chosen| chosen == "tidegate.v1.json"), "never echoed");
        browser.send(json!({"type": "subscribe", "topic": "user/vera/#"})).await;
        let welcome = browser.expect("welcome").await;
        assert!(welcome["expiresIn"].as_u64().is_some_and(|left| (3590..=3600).contains(&left)), "{welcome}");
        assert_eq!(browser.expect("subscribed").await["topics"][0]["qos"], 0);
    }
    let mut browser = gateway.connect().await;
    browser.send(json!({"type": "auth", "token": token, "clientId": "c1", "msgid": 7})).await;
    let response = browser.expect("auth_response").await;
    assert_eq!((&response["status"], &response["msgid"]), (&json!("success"), &json!(7)));
    assert!(response["expiresIn"].as_u64().is_some_and(|left| (3590..=3600).contains(&left)), "{response}");
    assert_eq!(browser.expect("welcome").await["clientId"], "c1");
    // An `auth` of the same user beside the header is welcome; one of another is not.
    for (user, expected) in [("vera", None), ("olga", Some(("not_authenticated".to_owned(), 4403)))] {
        let headers = [("authorization", header.as_str())];
        let mut browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
        browser.send(json!({"type": "auth", "token": viewer(user)})).await;
        match expected {
            None => drop(browser.expect("auth_response").await),
            Some(expected) => assert_eq!(turned_away(browser).await, expected),
        }
    }
}

#[tokio::test]
async fn without_a_credential_nobody_comes_in() {
    let mosquitto = Mosquitto::start().await;
    let configuration = format!("{PLANT}\n[session]\nauth_timeout = 0.3\n");
    let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
    let expected = ("not_authenticated".to_owned(), 4401);
    for frame in [
        json!({"type": "ping"}),
        json!({"type": "subscribe", "topic": "plant/north/#"}),
        json!({"type": "publish", "topic": "plant/north/x", "payload": 1}),
        json!({"type": "auth"}),
        json!({"type": "auth", "clientId": "vera"}),
        json!({"type": "what"}),
    ] {
        let mut browser = gateway.connect().await;
        browser.send(frame.clone()).await;
        assert_eq!(turned_away(browser).await, expected, "{frame}");
    }
    let mut browser = gateway.connect().await;
    browser.send_text("no JSON").await;
    assert_eq!(turned_away(browser).await, expected);
    assert_eq!(turned_away(gateway.connect().await).await, expected, "silence");
}

#[tokio::test]
async fn a_bad_token_ends_the_session_and_says_how() {
    let (_mosquitto, gateway) = plant().await;
    let with = |claims| token("vera", claims);
    let other_key = encode(
        &Header::default(),
        &json!({"sub": "vera", "aud": "tidegate", "exp": in_seconds(60)}),
        &EncodingKey::from_secret(b"another secret, of thirty-two bytes or more"),
    );
    for (bad, close) in [
        (with(json!({"exp": in_seconds(-60)})), 4401),
        (with(json!({"nbf": in_seconds(60)})), 4401),
        (with(json!({"aud": "others"})), 4403),
        (with(json!({"sub": ""})), 4403),
        (with(json!({"sub": 7})), 4403),
        (other_key.expect("signed"), 4403),
        ("what".to_owned(), 4403),
        ("a.b.c".to_owned(), 4403),
        (String::new(), 4403),
        ("x".repeat(9000), 4403),
    ] {
        let shown: String = bad.chars().take(60).collect();
        let expected = ("not_authenticated".to_owned(), close);
        let mut browser = gateway.connect().await;
        browser.send(json!({"type": "auth", "token": bad})).await;
        assert_eq!(turned_away(browser).await, expected, "auth {shown}");
        let header = format!("Bearer {bad}");
        let headers = [("authorization", header.as_str())];
        let browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
        assert_eq!(turned_away(browser).await, expected, "header {shown}");
    }
    assert!(!gateway.log().contains("eyJ"), "no token is logged");
}

#[tokio::test]
async fn a_session_is_asked_for_a_new_token_and_ends_with_the_old_one() {
    let (_mosquitto, gateway) = plant().await;
    let short = token("vera", json!({"roles": "viewer", "site": "north", "exp": in_seconds(3)}));
    let mut renewing = opened(&gateway, &short).await;
    let mut idle = opened(&gateway, &short).await;
    for browser in [&mut renewing, &mut idle] {
        let left = browser.expect("expiring").await["in"].as_u64().expect("a number");
        assert!((1..=3).contains(&left), "{left}");
    }
    renewing.send(json!({"type": "auth", "token": viewer("vera"), "msgid": "new"})).await;
    let response = renewing.expect("auth_response").await;
    assert_eq!(response["msgid"], "new");
    assert!(response["expiresIn"].as_u64().is_some_and(|left| left > 3500), "{response}");
    assert_eq!(idle.closed().await, 4401);
    assert_eq!(subscribing(&mut renewing, "user/vera/#").await["qos"], 1, "it lives on");
}

#[tokio::test]
async fn a_renewal_that_fails_changes_nothing() {
    let (_mosquitto, gateway) = plant().await;
    let mut browser = opened(&gateway, &operator("olga")).await;
    for bad in [viewer("vera"), "what".to_owned(), token("olga", json!({"exp": in_seconds(-60)}))] {
        let error = browser.ask(json!({"type": "auth", "token": bad, "msgid": 1})).await;
        assert_eq!((&error["code"], &error["msgid"]), (&json!("not_authenticated"), &json!(1)), "{error}");
    }
    let error = browser.ask(json!({"type": "auth", "msgid": 2})).await;
    assert_eq!((&error["code"], &error["msgid"]), (&json!("not_authenticated"), &json!(2)), "{error}");
    assert_eq!(publishing(&mut browser, "plant/north/x").await, Ok(()));
}

#[tokio::test]
async fn a_renewal_with_fewer_rights_ends_what_is_not_allowed_any_more() {
    let (mosquitto, gateway) = plant().await;
    let mut browser =
        opened(&gateway, &token("vera", json!({"roles": ["operator", "viewer"], "site": ["north", "south"]}))).await;
    browser
        .ask(json!({"type": "subscribe", "topics": ["plant/north/#", "plant/south/#", "plant/north/+/status", "user/vera/#"]}))
        .await;
    browser.send(json!({"type": "auth", "token": viewer("vera")})).await;
    browser.expect("auth_response").await;
    let ended = browser.expect("unsubscribed").await;
    let mut topics: Vec<_> =
        ended["topics"].as_array().expect("a list").iter().map(|topic| topic["topic"].as_str()).collect();
    topics.sort();
    assert_eq!(topics, [Some("plant/north/#"), Some("plant/south/#")], "{ended}");
    assert!(ended["topics"].as_array().expect("a list").iter().all(|topic| topic["error"] == "not_authorized"));
    Device::publish(mosquitto.port, &["-t", "plant/north/a/b", "-m", "no"]).await;
    Device::publish(mosquitto.port, &["-t", "plant/north/a/status", "-m", "yes"]).await;
    assert_eq!(browser.next_delivery().await, ("plant/north/a/status".to_owned(), "yes".to_owned()));
    assert_eq!(publishing(&mut browser, "plant/north/x").await.unwrap_err().0, "not_authorized");
    // What has ended can be had again with a token that allows it.
    browser.send(json!({"type": "auth", "token": operator("vera")})).await;
    browser.expect("auth_response").await;
    assert_eq!(browser.expect("unsubscribed").await["topics"][0]["topic"], "user/vera/#");
    assert_eq!(subscribing(&mut browser, "plant/north/#").await["qos"], 1);
}

#[tokio::test]
async fn nothing_that_a_broker_still_sends_follows_the_end_of_the_right_to_it() {
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::before(mosquitto.port).await;
    let gateway = Gateway::start(&proxy.url(), PLANT).await;
    let mut browser = opened(&gateway, &token("vera", json!({"roles": ["operator", "viewer"], "site": "north"}))).await;
    browser.ask(json!({"type": "subscribe", "topics": ["plant/north/#", "user/vera/#"]})).await;
    // The broker does not hear of the end.
    proxy.hold_way(Way::To);
    browser.send(json!({"type": "auth", "token": viewer("vera")})).await;
    browser.expect("auth_response").await;
    assert_eq!(browser.expect("unsubscribed").await["topics"][0]["topic"], "plant/north/#");
    Device::publish(mosquitto.port, &["-t", "plant/north/a/b", "-m", "no"]).await;
    Device::publish(mosquitto.port, &["-t", "user/vera/a", "-m", "yes"]).await;
    assert_eq!(browser.next_delivery().await, ("user/vera/a".to_owned(), "yes".to_owned()));
}

#[tokio::test]
async fn a_configuration_read_again_reaches_open_sessions_at_once() {
    let hash = |token: &str| {
        use aws_lc_rs::digest;
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let configuration = |anonymous: bool, token: &str, topics: &str| {
        format!(
            "[auth]\nanonymous = {anonymous}\nanonymous_roles = [\"guest\"]\n\
             [auth.tokens.backend]\nhash = \"sha256:{}\"\nroles = [\"guest\"]\n\
             [roles.guest]\ngrants = [{{ allow = [\"subscribe\"], topics = {topics} }}]\n",
            hash(token)
        )
    };
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), &configuration(true, "first token", r#"["a/#", "b/#"]"#)).await;
    let mut guest = gateway.browser().await;
    let mut backend = opened(&gateway, "first token").await;
    for browser in [&mut guest, &mut backend] {
        browser.ask(json!({"type": "subscribe", "topics": ["a/#", "b/#"]})).await;
    }
    gateway.reload(&configuration(true, "first token", r#"["b/#"]"#)).await;
    for browser in [&mut guest, &mut backend] {
        let ended = browser.expect("unsubscribed").await;
        assert_eq!(ended["topics"].as_array().map(Vec::len), Some(1), "{ended}");
        assert_eq!(ended["topics"][0]["topic"], "a/#");
    }
    Device::publish(mosquitto.port, &["-t", "a/x", "-m", "no"]).await;
    Device::publish(mosquitto.port, &["-t", "b/x", "-m", "yes"]).await;
    assert_eq!(guest.next_delivery().await, ("b/x".to_owned(), "yes".to_owned()));
    assert_eq!(backend.next_delivery().await, ("b/x".to_owned(), "yes".to_owned()));
    // Nobody comes in any more as these did.
    gateway.reload(&configuration(false, "second token", r#"["b/#"]"#)).await;
    assert_eq!(turned_away(guest).await, ("not_authenticated".to_owned(), 4403));
    assert_eq!(turned_away(backend).await, ("not_authenticated".to_owned(), 4403));
    opened(&gateway, "second token").await;
}

#[tokio::test]
async fn what_a_resumed_session_gets_without_a_subscription_is_judged_by_its_topic() {
    let (mosquitto, gateway) = plant().await;
    let auth = |token: String| json!({"token": token, "clientId": "c1", "clean": false});
    let (mut before, _) =
        gateway.open(auth(token("vera", json!({"roles": "operator", "site": ["north", "south"]})))).await;
    before.ask(json!({"type": "subscribe", "topics": ["plant/north/#", "plant/south/#"], "qos": 1})).await;
    before.leave().await;
    for (topic, payload) in [("plant/south/x", "no"), ("plant/north/x", "yes"), ("plant/south/y", "no")] {
        Device::publish(mosquitto.port, &["-t", topic, "-m", payload, "-q", "1"]).await;
    }
    let (mut after, welcome) = gateway.open(auth(operator("vera"))).await;
    assert_eq!(welcome["sessionPresent"], true);
    assert_eq!(after.next_delivery().await, ("plant/north/x".to_owned(), "yes".to_owned()));
    eventually("two were refused", async || gateway.metric("tidegate_deliveries_refused_total").await == 2.0).await;
    after.leave().await;
    // They were confirmed: nobody gets them any more.
    let (mut again, _) =
        gateway.open(auth(token("vera", json!({"roles": "operator", "site": ["north", "south"]})))).await;
    again.hears_nothing_for(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn nobody_takes_over_the_session_of_another_user() {
    let (_mosquitto, gateway) = plant().await;
    let auth = |token: String| json!({"token": token, "clientId": "c1"});
    let (mut olga, welcome) = gateway.open(auth(operator("olga"))).await;
    assert_eq!(welcome["clientId"], "c1");
    let (mut vera, _) = gateway.open(auth(operator("vera"))).await;
    for browser in [&mut olga, &mut vera] {
        assert_eq!(publishing(browser, "plant/north/x").await, Ok(()));
    }
    let (mut newer, _) = gateway.open(auth(operator("olga"))).await;
    assert_eq!(olga.closed().await, 4009);
    assert_eq!(publishing(&mut newer, "plant/north/x").await, Ok(()));
    assert_eq!(publishing(&mut vera, "plant/north/x").await, Ok(()));
}

#[tokio::test]
async fn subscriptions_may_be_narrowed_to_what_is_allowed() {
    let mosquitto = Mosquitto::start().await;
    let narrow = PLANT.replace("anonymous = false", "anonymous = false\nnarrow = true");
    let gateway = Gateway::start(&mosquitto.url(), &narrow).await;
    let mut browser = opened(&gateway, &viewer("vera")).await;
    assert_eq!(subscribing(&mut browser, "#").await["qos"], 1);
    assert_eq!(subscribing(&mut browser, "other/#").await["error"], "not_authorized");
    assert_eq!(subscribing(&mut browser, "$share/g/#").await["error"], "not_authorized");
    for topic in ["plant/north/a/secret", "plant/south/a/status", "other", "user/olga/x"] {
        Device::publish(mosquitto.port, &["-t", topic, "-m", "no"]).await;
    }
    Device::publish(mosquitto.port, &["-t", "plant/north/a/status", "-m", "yes", "-q", "1"]).await;
    assert_eq!(browser.next_delivery().await, ("plant/north/a/status".to_owned(), "yes".to_owned()));
    browser.hears_nothing_for(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_will_is_judged_with_the_auth_and_withdrawn_with_the_right_to_it() {
    let (mosquitto, gateway) = plant().await;
    let will = |topic: &str| json!({"topic": topic, "payload": "gone"});
    let mut browser = gateway.connect().await;
    browser.send(json!({"type": "auth", "token": viewer("vera"), "will": will("user/vera/will"), "msgid": 1})).await;
    let error = browser.expect("error").await;
    assert_eq!((&error["code"], &error["msgid"]), (&json!("not_authorized"), &json!(1)), "{error}");
    browser.send(json!({"type": "auth", "token": viewer("vera")})).await;
    browser.expect("auth_response").await;

    let mut device = Device::subscribe(mosquitto.port, &["-t", "plant/#"]).await;
    let auth = |client: &str| json!({"token": operator("olga"), "clientId": client, "will": will("plant/north/will")});
    let (mut losing, _) = gateway.open(auth("losing")).await;
    let (keeping, _) = gateway.open(auth("keeping")).await;
    losing.send(json!({"type": "auth", "token": viewer("olga")})).await;
    losing.expect("auth_response").await;
    losing.ask(json!({"type": "ping"})).await;
    losing.vanish();
    keeping.vanish();
    assert_eq!(device.next().await, "plant/north/will gone");
    Device::publish(mosquitto.port, &["-t", "plant/end", "-m", "end"]).await;
    assert_eq!(device.next().await, "plant/end end", "the other's will is not published");
}

#[tokio::test]
async fn a_withdrawn_will_is_published_again_where_access_control_is_turned_off() {
    let (mosquitto, gateway) = plant().await;
    let mut device = Device::subscribe(mosquitto.port, &["-t", "plant/#"]).await;
    let will = json!({"topic": "plant/north/will", "payload": "gone"});
    let (mut browser, _) = gateway.open(json!({"token": operator("olga"), "will": will})).await;
    browser.send(json!({"type": "auth", "token": viewer("olga")})).await;
    browser.expect("auth_response").await;
    assert!(publishing(&mut browser, "plant/open").await.is_err());
    gateway.reload("").await;
    eventually("everything is allowed", async || publishing(&mut browser, "plant/open").await.is_ok()).await;
    assert_eq!(device.next().await, "plant/open 1");
    browser.vanish();
    assert_eq!(device.next().await, "plant/north/will gone");
}

#[tokio::test]
async fn users_may_have_passwords() {
    let mosquitto = Mosquitto::start().await;
    let hash = Gateway::run(&["hash", "password"], "correct horse").await;
    let configuration = format!(
        "[auth.users.anna]\nhash = \"{}\"\nroles = [\"all\"]\n[roles.all]\ngrants = [{{ allow = [\"publish\"], topics = [\"#\"] }}]",
        hash.trim()
    );
    let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
    let (mut browser, _) = gateway.open(json!({"username": "anna", "password": "correct horse"})).await;
    assert_eq!(publishing(&mut browser, "a").await, Ok(()));
    let basic = |text: &str| format!("Basic {}", STANDARD.encode_to_string(text));
    let header = basic("anna:correct horse");
    let headers = [("authorization", header.as_str())];
    let mut browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
    browser.send(json!({"type": "ping"})).await;
    browser.expect("welcome").await;
    for (user, password) in [("anna", "wrong"), ("bob", "correct horse"), ("", ""), ("anna", "")] {
        let mut browser = gateway.connect().await;
        browser.send(json!({"type": "auth", "username": user, "password": password})).await;
        assert_eq!(turned_away(browser).await, ("not_authenticated".to_owned(), 4403), "{user}:{password}");
    }
}

#[tokio::test]
async fn the_broker_may_know_each_user_by_a_name_of_its_own() {
    if std::env::var("TIDEGATE_UPSTREAM").is_ok() {
        // Sessions that share a connection are one to the broker.
        return;
    }
    let folder = tempfile::TempDir::new().expect("a folder");
    let acl = folder.path().join("acl");
    std::fs::write(&acl, "user gateway\ntopic readwrite #\nuser olga\ntopic readwrite plant/north/olga/#\n")
        .expect("written");
    let mosquitto = Mosquitto::start_with(&format!("acl_file {}", acl.display())).await;
    let configuration = format!("[broker]\nusername = \"gateway\"\nsession_username = \"{{user}}\"\n{PLANT}");
    let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
    let mut olga = opened(&gateway, &operator("olga")).await;
    let denied =
        olga.ask(json!({"type": "publish", "topic": "plant/north/x", "payload": 1, "qos": 1, "msgid": 1})).await;
    assert_eq!(denied["code"], "not_authorized", "the broker's own list: {denied}");
    olga.publish("plant/north/olga/x", "1", 1).await;
}

#[tokio::test]
async fn a_user_may_do_as_much_as_its_roles_say_with_all_of_its_sessions() {
    let mosquitto = Mosquitto::start().await;
    let configuration = r##"
        [auth.jwt]
        algorithms = ["HS256"]
        secret = "a secret of at least thirty-two bytes"
        audience = "tidegate"
        [roles.small]
        grants = [{ allow = ["publish", "subscribe"], topics = ["#"] }]
        max_publishes_per_second = 3
        max_subscriptions = 1
        max_connections = 2
        [roles.large]
        grants = [{ allow = ["publish", "subscribe"], topics = ["#"] }]
        max_publishes_per_second = 1000
        max_bytes_per_second = 1000
        max_subscriptions = 5
        max_connections = 100
    "##;
    let gateway = Gateway::start(&mosquitto.url(), configuration).await;
    let small = |user: &str| token(user, json!({"roles": "small"}));
    let (mut one, welcome) = gateway.open(json!({"token": small("anna")})).await;
    assert_eq!(welcome["limits"]["maxSubscriptions"], 1);
    let (mut other, _) = gateway.open(json!({"token": small("anna")})).await;
    let mut refused = 0;
    for round in 0..4 {
        for browser in [&mut one, &mut other] {
            let answer = browser.ask(json!({"type": "publish", "topic": "a", "payload": round, "msgid": round})).await;
            if answer["type"] == "error" {
                assert_eq!((&answer["code"], &answer["retryable"]), (&json!("rate_limited"), &json!(true)), "{answer}");
                refused += 1;
            }
        }
    }
    assert!((3..=5).contains(&refused), "{refused} of eight, as three may go at once");
    assert_eq!(subscribing(&mut one, "a").await["qos"], 1);
    assert_eq!(subscribing(&mut one, "b").await["error"], "quota_exceeded");
    // A third session is one too many, until another ends; a session of somebody else is not.
    let mut third = gateway.connect().await;
    third.send(json!({"type": "auth", "token": small("anna")})).await;
    assert_eq!(turned_away(third).await, ("rate_limited".to_owned(), 4429));
    gateway.open(json!({"token": small("bob")})).await;
    other.leave().await;
    eventually("its place is free", async || {
        let mut third = gateway.connect().await;
        third.send(json!({"type": "auth", "token": small("anna")})).await;
        third.next().await["type"] == "auth_response"
    })
    .await;
    // A token with another role is heard at once.
    one.send(json!({"type": "auth", "token": token("anna", json!({"roles": ["small", "large"]}))})).await;
    one.expect("auth_response").await;
    assert_eq!(subscribing(&mut one, "b").await["qos"], 1);
    let large = |msgid: &str| json!({"type": "publish", "topic": "x", "payload": "x".repeat(2000), "msgid": msgid});
    assert_eq!(one.ask(large("first")).await["type"], "ack");
    assert_eq!(one.ask(large("second")).await["code"], "rate_limited");
}

#[tokio::test]
async fn the_audit_log_tells_who_came_and_what_was_refused() {
    let mosquitto = Mosquitto::start().await;
    let folder = tempfile::TempDir::new().expect("a folder");
    let log = folder.path().join("audit.jsonl");
    let configuration = format!("{PLANT}\n[audit]\nlog = \"{}\"\ntopics = [\"plant/+/valve\"]\n", log.display());
    let mut gateway = Gateway::start(&mosquitto.url(), &configuration).await;
    let mut browser = opened(&gateway, &operator("olga")).await;
    publishing(&mut browser, "plant/north/valve").await.expect("allowed");
    publishing(&mut browser, "plant/north/other").await.expect("allowed, and not audited");
    publishing(&mut browser, "plant/north/safety/stop").await.expect_err("denied");
    subscribing(&mut browser, "user/vera\r\n{\"forged\":1}/#").await;
    subscribing(&mut browser, "user/vera/#").await;
    browser.ask(json!({"type": "auth", "token": operator("olga")})).await;
    browser.ask(json!({"type": "auth", "token": viewer("vera")})).await;
    browser.leave().await;
    let mut bad = gateway.connect().await;
    bad.send(json!({"type": "auth", "token": token("olga", json!({"exp": 1}))})).await;
    turned_away(bad).await;
    let mut silent = gateway.connect().await;
    silent.send(json!({"type": "ping"})).await;
    turned_away(silent).await;
    gateway.stop().await;
    let text = std::fs::read_to_string(&log).expect("written");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<String> = events
        .iter()
        .map(|event| {
            let of = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
            format!("{} {} {} {}", of("event"), of("user"), of("request"), of("topic"))
        })
        .collect();
    assert_eq!(
        told,
        [
            "started - - -",
            "connected olga - -",
            "published olga - plant/north/valve",
            "refused olga publish plant/north/safety/stop",
            "refused olga subscribe user/vera/#",
            "renewed olga - -",
            "disconnected olga - -",
            "authentication_failed - - -",
            "refused - open -",
            "stopped - - -",
        ],
        "{text}"
    );
    let refused = events.iter().find(|event| event["event"] == "refused").expect("one");
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("grant 2 of the role operator")), "{refused}");
    assert!(!text.contains("eyJ"), "no token is in it");
    let verified = Gateway::run(&["audit", "verify", &log.display().to_string()], "").await;
    assert!(verified.contains("ok"), "{verified}");
}
