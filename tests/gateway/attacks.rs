//! What somebody might try who means harm: each attack on who comes in, on what each may do, and on what is written of it, and how it fails.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64_simd::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use crate::access::{PLANT, SECRET, in_seconds, opened, operator, publishing, subscribing, token, turned_away, viewer};
use crate::support::scripted::{Packet, ScriptedBroker};
use crate::support::{Browser, Device, Gateway, Mosquitto, PATIENCE, Proxy, Way, eventually};

/// Sessions share their connections to the broker.
fn is_shared() -> bool {
    std::env::var("TIDEGATE_UPSTREAM").is_ok_and(|upstream| upstream == "shared")
}

/// A gateway before a Mosquitto, with a key by which tokens are judged.
async fn plant() -> (Mosquitto, Gateway) {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&mosquitto.url(), PLANT).await;
    (mosquitto, gateway)
}

/// An operator of both sites.
fn of_both_sites(user: &str) -> String {
    token(user, json!({"roles": "operator", "site": ["north", "south"]}))
}

/// Shows this token in an `auth`; gives back what the client is told at its end.
async fn shown(gateway: &Gateway, token: &str) -> (String, u16) {
    let mut browser = gateway.connect().await;
    browser.send(json!({"type": "auth", "token": token})).await;
    turned_away(browser).await
}

fn not_authenticated(close: u16) -> (String, u16) {
    ("not_authenticated".to_owned(), close)
}

/// Shows a new token and waits until it is taken.
async fn renew(browser: &mut Browser, token: &str) {
    browser.send(json!({"type": "auth", "token": token})).await;
    browser.expect("auth_response").await;
}

/// The topics of an `unsubscribed` that nobody asked for, in order.
async fn taken_away(browser: &mut Browser) -> Vec<String> {
    let frame = browser.expect("unsubscribed").await;
    let topics = frame["topics"].as_array().expect("a list");
    assert!(topics.iter().all(|topic| topic["error"] == "not_authorized"), "{frame}");
    let mut topics: Vec<_> = topics.iter().map(|topic| topic["topic"].as_str().expect("text").to_owned()).collect();
    topics.sort();
    topics
}

mod tokens {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    use rcgen::{KeyPair, PublicKeyData};

    use super::*;

    /// The part of a token that is signed.
    fn unsigned(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode_to_string(value.to_string());
        format!("{}.{}", part(header), part(claims))
    }

    fn with_signature(unsigned: &str, signature: &[u8]) -> String {
        format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode_to_string(signature))
    }

    /// Signed with a secret, whatever the header says.
    fn signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
        let unsigned = unsigned(header, claims);
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        with_signature(&unsigned, hmac::sign(&key, unsigned.as_bytes()).as_ref())
    }

    fn vera() -> Value {
        json!({"sub": "vera", "aud": "tidegate", "exp": in_seconds(600), "roles": "viewer", "site": "north"})
    }

    #[tokio::test]
    async fn a_token_signed_with_the_public_key_as_a_secret_is_refused() {
        let mosquitto = Mosquitto::start().await;
        let folder = tempfile::TempDir::new().expect("a folder");
        let (issuer, path) = (KeyPair::generate().expect("a key"), folder.path().join("issuer.pem"));
        std::fs::write(&path, issuer.public_key_pem()).expect("written");
        let configuration = PLANT
            .replace("[\"HS256\"]", "[\"ES256\"]")
            .replace(&format!("secret = \"{SECRET}\""), &format!("public_key_file = \"{}\"", path.display()));
        let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        let key = EncodingKey::from_ec_der(issuer.serialized_der());
        let good = encode(&Header::new(Algorithm::ES256), &vera(), &key).expect("signed");
        opened(&gateway, &good).await;
        let pem = issuer.public_key_pem();
        for secret in
            [pem.as_bytes(), pem.trim_end().as_bytes(), &issuer.subject_public_key_info(), issuer.public_key_raw()]
        {
            for alg in ["HS256", "hs256", "ES256"] {
                let forged = signed(&json!({"alg": alg}), &vera(), secret);
                assert_eq!(shown(&gateway, &forged).await, not_authenticated(4403), "{alg}");
            }
        }
        // The signature of ECDSA that is all zeros, which some have taken for good.
        let forged = with_signature(&unsigned(&json!({"alg": "ES256"}), &vera()), &[0; 64]);
        assert_eq!(shown(&gateway, &forged).await, not_authenticated(4403));
    }

    #[tokio::test]
    async fn a_token_that_nobody_signed_is_refused_whatever_it_calls_that() {
        let (_mosquitto, gateway) = plant().await;
        let good = viewer("vera");
        let signature = good.rsplit_once('.').expect("three parts").1;
        for alg in
            [json!("none"), json!("None"), json!("nOnE"), json!(""), json!(null), json!(["HS256"]), json!({}), json!(0)]
        {
            let unsigned = unsigned(&json!({"alg": alg, "typ": "JWT"}), &vera());
            for forged in [format!("{unsigned}."), format!("{unsigned}.{signature}"), unsigned.clone()] {
                assert_eq!(shown(&gateway, &forged).await, not_authenticated(4403), "{alg}");
            }
        }
        // Good but for a signature that is not there, is another's, or is for other claims.
        let unsigned = unsigned(&json!({"alg": "HS256"}), &vera());
        for forged in [
            format!("{unsigned}."),
            format!("{unsigned}.{signature}"),
            format!("{good}.{signature}"),
            format!("{good}="),
        ] {
            assert_eq!(shown(&gateway, &forged).await, not_authenticated(4403), "{forged}");
        }
    }

    #[tokio::test]
    async fn a_token_of_another_time_or_for_somebody_else_is_refused() {
        let (_mosquitto, gateway) = plant().await;
        for (claims, close) in [
            (json!({"exp": in_seconds(-10)}), 4401),
            (json!({"exp": 0}), 4401),
            (json!({"exp": -1}), 4401),
            (json!({"exp": null}), 4403),
            (json!({"exp": "never"}), 4403),
            (json!({"exp": true}), 4403),
            (json!({"nbf": in_seconds(60)}), 4401),
            (json!({"nbf": 1e300}), 4401),
            (json!({"iat": in_seconds(60)}), 4401),
            (json!({"aud": "tidegate2"}), 4403),
            (json!({"aud": "TIDEGATE"}), 4403),
            (json!({"aud": ""}), 4403),
            (json!({"aud": []}), 4403),
            (json!({"aud": null}), 4403),
            (json!({"aud": {"tidegate": true}}), 4403),
            (json!({"aud": ["tidegate", 7]}), 4403),
            (json!({"sub": ["vera"]}), 4403),
            (json!({"sub": "vera\n"}), 4403),
        ] {
            assert_eq!(shown(&gateway, &token("vera", claims.clone())).await, not_authenticated(close), "{claims}");
        }
        // What no clock reaches ends nothing, and no arithmetic either.
        for exp in [json!(1e300), json!(u64::MAX), json!(9.3e18), json!(i64::MAX)] {
            let mut browser = opened(&gateway, &token("vera", json!({"exp": exp, "nbf": -1e300}))).await;
            browser.send(json!({"type": "ping"})).await;
            browser.expect("pong").await;
        }
    }

    #[tokio::test]
    async fn a_key_that_a_token_names_or_brings_along_is_not_used_and_nobody_is_asked_for_it() {
        let (_mosquitto, gateway) = plant().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/keys.json", listener.local_addr().expect("an address"));
        let own = "a secret of the attacker's own, long enough";
        let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode_to_string(own), "alg": "HS256", "kid": "k"});
        for brought in [
            json!({"kid": "../../../../dev/null"}),
            json!({"kid": "/proc/sys/kernel/randomize_va_space"}),
            json!({"kid": "x' UNION SELECT 'a"}),
            json!({"kid": "| /bin/true"}),
            json!({"kid": url}),
            json!({"kid": "k", "jwk": jwk}),
            json!({"kid": "k", "jku": url}),
            json!({"x5u": url}),
            json!({"x5c": ["MIIB"]}),
            json!({"crit": ["exp"]}),
            json!({"crit": []}),
            json!({"b64": false, "crit": ["b64"]}),
        ] {
            let mut header = brought.clone();
            header["alg"] = json!("HS256");
            for secret in ["", "\0", own] {
                let forged = signed(&header, &vera(), secret.as_bytes());
                assert_eq!(shown(&gateway, &forged).await, not_authenticated(4403), "{brought}");
            }
        }
        assert!(timeout(Duration::from_millis(200), listener.accept()).await.is_err(), "nobody is asked");
        // A name alone does no harm: the one key is tried whatever it is called.
        opened(&gateway, &signed(&json!({"alg": "HS256", "kid": "../x"}), &vera(), SECRET.as_bytes())).await;
        // What must be understood and is not makes also a good one a bad one.
        let critical = signed(&json!({"alg": "HS256", "crit": ["exp"]}), &vera(), SECRET.as_bytes());
        assert_eq!(shown(&gateway, &critical).await, not_authenticated(4403));
    }

    #[tokio::test]
    async fn whoever_was_revoked_comes_in_with_no_token_however_often_it_is_shown() {
        let mosquitto = Mosquitto::start().await;
        let folder = tempfile::TempDir::new().expect("a folder");
        let (path, until) = (folder.path().join("revocations.json"), in_seconds(600));
        let revoked = json!([{"user": "vera", "until": until}, {"tokenId": "t-1", "until": until}, {"device": "press-7", "until": until}]);
        std::fs::write(&path, revoked.to_string()).expect("written");
        let configuration =
            PLANT.replace("anonymous = false", &format!("anonymous = false\nrevocations = \"{}\"", path.display()));
        let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        let of_olga = |id: &str| token("olga", json!({"roles": "operator", "site": "north", "jti": id}));
        for _ in 0..2 {
            assert_eq!(shown(&gateway, &viewer("vera")).await, not_authenticated(4403));
            assert_eq!(shown(&gateway, &of_olga("t-1")).await, not_authenticated(4403));
            for token in [viewer("vera"), of_olga("t-1")] {
                let header = format!("Bearer {token}");
                let headers = [("authorization", header.as_str())];
                let browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
                assert_eq!(turned_away(browser).await, not_authenticated(4403));
            }
            let mut device = gateway.connect().await;
            device.send(json!({"type": "auth", "token": of_olga("t-2"), "clientId": "press-7"})).await;
            assert_eq!(turned_away(device).await, not_authenticated(4403));
        }
        // A device that is called so later than it shows its token, or that shows none, is the same device.
        let header = format!("Bearer {}", of_olga("t-2"));
        let headers = [("authorization", header.as_str())];
        let mut device = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
        device.send(json!({"type": "auth", "clientId": "press-7"})).await;
        assert_eq!(turned_away(device).await, not_authenticated(4403));
        let mut open = opened(&gateway, &of_olga("t-2")).await;
        let error = open.ask(json!({"type": "auth", "token": of_olga("t-1"), "msgid": 1})).await;
        assert_eq!(error["code"], "not_authenticated", "nor is it good for a renewal: {error}");
    }

    #[tokio::test]
    async fn a_bad_credential_is_made_good_by_no_other_beside_it() {
        let (_mosquitto, gateway) = plant().await;
        let (good, bad) = (format!("Bearer {}", viewer("vera")), "Bearer a.b.c");
        let offer = format!("tidegate.v1.json, bearer.{}", viewer("vera"));
        let basic = format!("Basic {}", STANDARD.encode_to_string("vera:x"));
        for headers in [
            [("authorization", bad), ("authorization", &good)],
            [("authorization", bad), ("sec-websocket-protocol", &offer)],
            [("authorization", &basic), ("sec-websocket-protocol", &offer)],
        ] {
            let browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
            assert_eq!(turned_away(browser).await, not_authenticated(4403), "{headers:?}");
        }
        // Nor does a good header make up for a bad `auth`, or an `auth` of somebody else.
        for token in ["a.b.c".to_owned(), operator("olga")] {
            let headers = [("authorization", good.as_str())];
            let mut browser = Browser::connect_with(&gateway.address, "/ws", &headers).await.expect("upgraded");
            browser.send(json!({"type": "auth", "token": token})).await;
            assert_eq!(turned_away(browser).await, not_authenticated(4403));
        }
        // Two in one frame are none.
        let good = viewer("vera");
        for frame in [
            format!(r#"{{"type":"auth","token":"a.b.c","token":"{good}"}}"#),
            format!(r#"{{"type":"auth","token":"{good}","token":"{good}"}}"#),
            format!(r#"{{"type":"auth","token":"{good}","username":"vera","password":"x"}}"#),
        ] {
            let mut browser = gateway.connect().await;
            browser.send_text(&frame).await;
            let error = browser.expect("error").await;
            assert_ne!(error["code"], "not_authenticated", "it is malformed: {error}");
            browser.send(json!({"type": "ping"})).await;
            assert_eq!(turned_away(browser).await, not_authenticated(4401));
        }
    }

    #[tokio::test]
    async fn a_hash_that_was_found_in_the_configuration_is_no_credential() {
        let mosquitto = Mosquitto::start().await;
        let token = Gateway::run(&["hash", "token"], "a token that was made by chance").await;
        let password = Gateway::run(&["hash", "password"], "correct horse").await;
        let (token, password) = (token.trim(), password.trim());
        let configuration =
            format!("[auth.tokens.backend]\nhash = \"{token}\"\n[auth.users.anna]\nhash = \"{password}\"\n");
        let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        for shown_token in [token, token.trim_start_matches("sha256:"), "backend", password] {
            assert_eq!(shown(&gateway, shown_token).await, not_authenticated(4403), "{shown_token}");
        }
        let mut browser = gateway.connect().await;
        browser.send(json!({"type": "auth", "username": "anna", "password": password})).await;
        assert_eq!(turned_away(browser).await, not_authenticated(4403));
    }
}

mod secrets {
    use std::fs;
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    /// Structure, and no clock: what compares a secret with what a client shows must be made for it. That all of them are compared, wherever
    /// one is found, is `a_token_is_compared_with_all_wherever_it_is_found`; that unknown users take as long,
    /// `a_user_that_is_not_there_costs_the_work_of_the_costliest_and_gets_the_same_answer`.
    #[test]
    fn what_a_client_shows_is_compared_with_a_secret_by_nothing_that_stops_at_the_first_difference() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = [vec![root.join("auth.rs")], sources(&root.join("auth")), sources(&root.join("http"))].concat();
        let text = |path: &PathBuf| fs::read_to_string(path).expect("readable");
        let code = |path: &PathBuf| text(path).split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        let (mut looked_at, mut found) = (0, Vec::new());
        for file in files.iter().filter(|file| !file.to_string_lossy().ends_with("tests.rs")) {
            let code = code(file);
            looked_at += code.matches("expose_secret").count();
            let compares = |line: &&str| line.contains("expose_secret") && (line.contains("==") || line.contains("!="));
            found.extend(code.lines().filter(compares).map(|line| line.trim().to_owned()));
        }
        assert!(looked_at > 5, "secrets are looked at in {looked_at} places");
        // What the configuration was and what it is: nothing of a client's.
        assert_eq!(found, ["one.map(SecretString::expose_secret) == other.map(SecretString::expose_secret)"]);
        let tokens = code(&root.join("auth/tokens.rs"));
        assert!(tokens.contains("constant_time::verify_slices_are_equal"), "static tokens");
        assert!(code(&root.join("auth/jwt/key.rs")).contains("hmac::verify"), "HS256 and the like");
        assert!(code(&root.join("auth/passwords.rs")).contains(".verify_password("), "passwords");
    }
}

mod grants {
    use super::*;

    #[tokio::test]
    async fn what_is_no_plain_name_in_a_claim_opens_no_topic() {
        let (_mosquitto, gateway) = plant().await;
        for site in [
            json!("+"),
            json!("#"),
            json!("north/#"),
            json!("+/#"),
            json!("north/../south"),
            json!(""),
            json!("/"),
            json!("$SYS"),
            json!("north\u{0}"),
            json!("{user}"),
            json!(["+", "#"]),
            json!({"a": "north"}),
            json!(true),
            json!(null),
            // These look like `+`, `/`, `#` and `north`, and are other letters.
            json!("\u{ff0b}"),
            json!("north\u{2215}#"),
            json!("\u{ff03}"),
            json!("n\u{43e}rth"),
            json!("north\u{200b}"),
        ] {
            let mut browser = opened(&gateway, &token("olga", json!({"roles": "operator", "site": site}))).await;
            for filter in [
                "plant/north/#",
                "plant/south/x",
                "plant/+/x",
                "plant/#",
                "#",
                "plant",
                "+/+/x",
                "/#",
                "$SYS/#",
                "plant//x",
            ] {
                assert_eq!(subscribing(&mut browser, filter).await["error"], "not_authorized", "{site} {filter}");
            }
            for topic in ["plant/north/x", "plant/south/x", "plant//x", "plant/x"] {
                assert_eq!(publishing(&mut browser, topic).await.unwrap_err().0, "not_authorized", "{site} {topic}");
            }
        }
        // In a list, what is a plain name counts, and nothing beside it.
        let list = json!({"roles": "operator", "site": ["+", "north", "#"]});
        let mut browser = opened(&gateway, &token("olga", list)).await;
        assert_eq!(subscribing(&mut browser, "plant/north/#").await["qos"], 1);
        assert_eq!(subscribing(&mut browser, "plant/south/#").await["error"], "not_authorized");
    }

    #[tokio::test]
    async fn a_placeholder_in_a_name_is_a_name() {
        let mosquitto = Mosquitto::start().await;
        let configuration = PLANT.replace("\"user/{user}/#\"", "\"user/{user}/#\", \"dev/{clientId}/#\"");
        let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        for user in ["{claim.site}", "{user}", "{clientId}", "+", "#", "olga/#", "..", "$share", "$SYS"] {
            let claims = json!({"roles": "viewer", "site": "olga"});
            let auth = json!({"token": token(user, claims), "clientId": "press-7/#"});
            let (mut browser, _) = gateway.open(auth).await;
            for filter in [
                "user/olga/#",
                "user/press-7/#",
                "user/+/x",
                "user/#",
                "dev/press-7/#",
                "dev/#",
                "dev/+/x",
                "dev/press-7/#/x",
            ] {
                assert!(subscribing(&mut browser, filter).await.get("error").is_some(), "{user} {filter}");
            }
        }
    }

    #[tokio::test]
    async fn no_way_of_writing_a_filter_reaches_beyond_the_grants() {
        let (mosquitto, gateway) = plant().await;
        let mut browser = opened(&gateway, &operator("olga")).await;
        for filter in [
            "#",
            "+/#",
            "+/+/#",
            "/#",
            "plant/#",
            "plant/+",
            "plant/+/#",
            "plant",
            "plant/",
            "plant//#",
            "plant/south/#",
            "+/north/#",
            "PLANT/north/#",
            "plant/North/#",
            "plant /north/#",
            "plant/north /#",
            "/plant/north/#",
            "$SYS/#",
            "$SYS/broker/version",
            "$x",
            "$share/g/#",
            "$share/g/plant/#",
            "$share/g/plant/south/x",
            "$share/g/$SYS/#",
            "$queue/#",
            "$SHARE/g/plant/north/#",
        ] {
            assert_eq!(subscribing(&mut browser, filter).await["error"], "not_authorized", "{filter}");
        }
        for filter in [
            "$share/plant/north/x",
            "$share/g/$share/h/plant/north/#",
            "$share//plant/north/#",
            "$share/+/plant/north/#",
            "$share/#/plant/north/#",
            "$share",
            "$share/g",
            "$share/g/",
            "plant/north/#/x",
            "plant/north/x#",
            "plant/north/x+",
            "plant/north/\0",
            "",
        ] {
            assert!(subscribing(&mut browser, filter).await.get("error").is_some(), "{filter:?}");
        }
        for topic in
            ["plant/south/x", "$share/g/plant/north/x", "$SYS/x", "plant/northx", "plant", "plant/north/safety/x"]
        {
            assert!(publishing(&mut browser, topic).await.is_err(), "{topic}");
        }
        for topic in ["plant/north/+", "plant/north/#", "plant/north/\0", ""] {
            let answer = browser.ask(json!({"type": "publish", "topic": topic, "payload": 1, "msgid": 1})).await;
            assert_eq!(answer["type"], "error", "{topic:?}: {answer}");
        }
        // A member of a group gets what is its to have.
        assert_eq!(subscribing(&mut browser, "$share/g/plant/north/#").await["qos"], 1);
        Device::publish(mosquitto.port, &["-t", "plant/south/x", "-m", "no"]).await;
        Device::publish(mosquitto.port, &["-t", "plant/north/x", "-m", "yes"]).await;
        assert_eq!(browser.next_delivery().await, ("plant/north/x".to_owned(), "yes".to_owned()));
    }

    #[tokio::test]
    async fn a_grant_of_everything_is_none_of_the_brokers_own_topics() {
        let mosquitto = Mosquitto::start().await;
        let all = PLANT.replace("plant/{claim.site}/#", "#");
        let gateway = Gateway::start(&mosquitto.url(), &all).await;
        let mut browser = opened(&gateway, &operator("olga")).await;
        for filter in ["$SYS/#", "$SYS/broker/clients/connected", "$share/g/$SYS/#", "$other/#"] {
            assert_eq!(subscribing(&mut browser, filter).await["error"], "not_authorized", "{filter}");
        }
        assert_eq!(subscribing(&mut browser, "#").await["qos"], 1);
        assert_eq!(publishing(&mut browser, "$SYS/x").await.unwrap_err().0, "not_authorized");
    }

    #[tokio::test]
    async fn an_unsubscribe_ends_nobody_elses_subscription() {
        let (mosquitto, gateway) = plant().await;
        let mut reader = opened(&gateway, &operator("olga")).await;
        let mut other = opened(&gateway, &viewer("vera")).await;
        assert_eq!(subscribing(&mut reader, "plant/north/#").await["qos"], 1);
        other.ask(json!({"type": "unsubscribe", "topics": ["plant/north/#", "#", "$share/g/plant/north/#"]})).await;
        Device::publish(mosquitto.port, &["-t", "plant/north/x", "-m", "yes"]).await;
        assert_eq!(reader.next_delivery().await.1, "yes");
    }
}

mod names {
    use super::*;

    /// Users and clients whose names are made to be mistaken for each other, and for those of nobody.
    async fn all_stay(gateway: &Gateway) {
        let everybody = json!({"roles": "all"});
        let mut open = Vec::new();
        for (user, client) in [
            (Some("anna"), "1"),
            (Some("anna"), ":1"),
            (Some("anna"), "1%"),
            (Some("anna"), "%31"),
            (Some("anna:"), "1"),
            (Some("anna"), "25%"),
            (Some("anna%"), "25"),
            (Some("anna%3A"), "1"),
            (Some("anna:1"), "1"),
            (Some("anna"), "1:1"),
            (Some(":"), "anna:1"),
            (Some("Anna"), "1"),
            (Some("ann\u{430}"), "1"),
            (Some("anna "), "1"),
            (None, "anna:1"),
            (None, ":anna:1"),
            (None, "anna%3A1"),
            (None, "1"),
            (None, "%3A"),
            (None, "tidegate.watch"),
            (None, "tidegate%2Ewatch"),
            (None, "a/b+c#d$e"),
            (None, "a%2Fb%2Bc%23d%24e"),
        ] {
            let mut auth = json!({"clientId": client});
            if let Some(user) = user {
                auth["token"] = json!(token(user, everybody.clone()));
            }
            open.push((user, client, gateway.open(auth).await.0));
        }
        for (user, client, browser) in &mut open {
            browser.publish("a", "still here", 1).await;
            browser.send(json!({"type": "ping"})).await;
            assert_eq!(browser.next().await["type"], "pong", "{user:?} {client}");
        }
    }

    fn configuration() -> String {
        let jwt = PLANT.split("[roles.operator]").next().expect("a first part");
        let jwt = jwt.replace("anonymous = false", "anonymous = true\nanonymous_roles = [\"all\"]");
        format!("{jwt}\n[roles.all]\ngrants = [{{ allow = [\"subscribe\", \"publish\"], topics = [\"#\"] }}]\n")
    }

    #[tokio::test]
    async fn no_two_users_come_to_one_client_identifier() {
        let mosquitto = Mosquitto::start().await;
        let gateway = Gateway::start(&mosquitto.url(), &configuration()).await;
        all_stay(&gateway).await;
    }

    #[cfg(feature = "embedded-broker")]
    #[tokio::test]
    async fn no_two_users_come_to_one_client_identifier_of_the_embedded_broker() {
        let gateway = Gateway::start("embedded://127.0.0.1:0", &configuration()).await;
        all_stay(&gateway).await;
    }

    #[tokio::test]
    async fn a_client_that_is_called_as_another_users_gets_nothing_of_its_session() {
        let (mosquitto, gateway) = plant().await;
        let auth = |token: String| json!({"token": token, "clientId": "c1", "clean": false});
        let (mut olga, _) = gateway.open(auth(operator("olga"))).await;
        assert_eq!(subscribing(&mut olga, "plant/north/#").await["qos"], 1);
        olga.leave().await;
        Device::publish(mosquitto.port, &["-t", "plant/north/x", "-m", "for olga", "-q", "1"]).await;
        let (mut vera, welcome) = gateway.open(auth(viewer("vera"))).await;
        assert_eq!(welcome["sessionPresent"], false);
        vera.hears_nothing_for(Duration::from_millis(200)).await;
        let (mut olga, welcome) = gateway.open(auth(operator("olga"))).await;
        assert_eq!(welcome["sessionPresent"], true);
        assert_eq!(olga.next_delivery().await.1, "for olga");
    }
}

mod changes {
    use super::*;

    /// A gateway whose way to the broker can be held.
    async fn plant_behind_a_line() -> (Mosquitto, Proxy, Gateway) {
        let mosquitto = Mosquitto::start().await;
        let line = Proxy::before(mosquitto.port).await;
        let gateway = Gateway::start(&line.url(), PLANT).await;
        (mosquitto, line, gateway)
    }

    /// The one session has ended, and a moment has passed in which a will would have come.
    async fn link_ends(gateway: &Gateway) {
        let links = async |state: &str| gateway.metric(&format!("tidegate_broker_links{{state=\"{state}\"}}")).await;
        eventually("its link has ended", async || links("up").await + links("down").await == 0.0).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    #[tokio::test]
    async fn a_subscription_that_the_broker_grants_after_the_right_to_it_has_gone_is_refused_and_brings_nothing() {
        let (mosquitto, line, gateway) = plant_behind_a_line().await;
        let mut browser = opened(&gateway, &of_both_sites("olga")).await;
        assert_eq!(subscribing(&mut browser, "plant/north/#").await["qos"], 1);
        line.hold_way(Way::Back);
        browser.send(json!({"type": "subscribe", "topic": "plant/south/#", "qos": 1})).await;
        Device::publish(mosquitto.port, &["-t", "plant/south/x", "-m", "secret", "-r"]).await;
        renew(&mut browser, &operator("olga")).await;
        line.resume();
        assert_eq!(browser.expect("subscribed").await["topics"][0]["error"], "not_authorized");
        Device::publish(mosquitto.port, &["-t", "plant/south/x", "-m", "secret"]).await;
        Device::publish(mosquitto.port, &["-t", "plant/north/x", "-m", "yes"]).await;
        assert_eq!(browser.next_delivery().await, ("plant/north/x".to_owned(), "yes".to_owned()));
        browser.hears_nothing_for(Duration::from_millis(200)).await;
    }

    #[tokio::test]
    async fn a_right_that_goes_while_the_broker_is_away_does_not_come_back_with_it() {
        let (mosquitto, line, gateway) = plant_behind_a_line().await;
        let mut browser = opened(&gateway, &of_both_sites("olga")).await;
        browser.ask(json!({"type": "subscribe", "topics": ["plant/north/#", "plant/south/#"], "qos": 1})).await;
        line.cut();
        assert_eq!(browser.expect("broker").await["status"], "down");
        // The broker keeps it for the session.
        Device::publish(mosquitto.port, &["-t", "plant/south/x", "-m", "secret", "-q", "1", "-r"]).await;
        renew(&mut browser, &operator("olga")).await;
        assert_eq!(taken_away(&mut browser).await, ["plant/south/#"]);
        line.resume();
        assert_eq!(browser.expect("broker").await["status"], "up");
        Device::publish(mosquitto.port, &["-t", "plant/south/x", "-m", "secret", "-q", "1"]).await;
        Device::publish(mosquitto.port, &["-t", "plant/north/x", "-m", "yes", "-q", "1"]).await;
        assert_eq!(browser.next_delivery().await, ("plant/north/x".to_owned(), "yes".to_owned()));
        browser.hears_nothing_for(Duration::from_millis(200)).await;
    }

    #[tokio::test]
    async fn what_waits_for_its_time_never_comes_once_the_right_to_it_has_gone() {
        let (mosquitto, gateway) = plant().await;
        let mut browser = opened(&gateway, &of_both_sites("olga")).await;
        for (topic, option, value) in [
            ("plant/south/slow", "maxRate", json!(1)),
            ("plant/south/batched", "batch", json!({"maxMessages": 100, "maxDelay": 1000})),
            ("plant/south/delta", "delta", json!(true)),
        ] {
            browser.subscribe_with(json!({"topic": topic, "format": "json", option: value})).await;
        }
        let say =
            async |topic: &str, payload: &str| Device::publish(mosquitto.port, &["-t", topic, "-m", payload]).await;
        say("plant/south/delta", r#"{"a":1,"b":1,"c":"long enough that a patch of it pays"}"#).await;
        browser.expect("mqtt").await;
        say("plant/south/slow", "1").await;
        browser.expect("mqtt").await;
        say("plant/south/slow", "2").await;
        say("plant/south/batched", "3").await;
        renew(&mut browser, &operator("olga")).await;
        assert_eq!(taken_away(&mut browser).await, ["plant/south/batched", "plant/south/delta", "plant/south/slow"]);
        browser.hears_nothing_for(Duration::from_millis(1500)).await;
        // With the right back, a delta begins anew: a patch would tell what was published meanwhile of nothing that it has.
        renew(&mut browser, &of_both_sites("olga")).await;
        browser.subscribe_with(json!({"topic": "plant/south/delta", "format": "json", "delta": true})).await;
        say("plant/south/delta", r#"{"a":1,"b":2,"c":"long enough that a patch of it pays"}"#).await;
        let frame = browser.expect("mqtt").await;
        assert_eq!((&frame["payload"]["a"], &frame["payload"]["b"]), (&json!(1), &json!(2)), "{frame}");
    }

    #[tokio::test]
    async fn what_is_asked_behind_a_renewal_is_judged_by_the_new_rights() {
        let (_mosquitto, gateway) = plant().await;
        let mut browser = opened(&gateway, &operator("olga")).await;
        for _ in 0..20 {
            renew(&mut browser, &of_both_sites("olga")).await;
            assert_eq!(subscribing(&mut browser, "plant/south/#").await["qos"], 1);
            renew(&mut browser, &operator("olga")).await;
            assert_eq!(taken_away(&mut browser).await, ["plant/south/#"]);
            assert_eq!(subscribing(&mut browser, "plant/south/#").await["error"], "not_authorized");
        }
    }

    #[tokio::test]
    async fn stored_messages_come_to_nobody_who_has_lost_the_right_to_them() {
        let (mosquitto, gateway) = plant().await;
        for topic in ["plant/south/x", "plant/north/x"] {
            Device::publish(mosquitto.port, &["-t", topic, "-m", topic, "-r", "-q", "1"]).await;
        }
        let mut browser = opened(&gateway, &of_both_sites("olga")).await;
        renew(&mut browser, &operator("olga")).await;
        for (filter, error) in
            [("plant/south/#", true), ("plant/+/x", true), ("$share/g/plant/south/#", true), ("plant/north/#", false)]
        {
            assert_eq!(subscribing(&mut browser, filter).await.get("error").is_some(), error, "{filter}");
        }
        assert_eq!(browser.next_delivery().await.0, "plant/north/x");
        browser.hears_nothing_for(Duration::from_millis(200)).await;
    }

    #[tokio::test]
    async fn a_right_that_goes_while_a_session_opens_has_gone_when_it_is_open() {
        let mut broker = ScriptedBroker::start().await;
        if is_shared() {
            // The other way is `a_session_that_moves_takes_no_message_along_that_it_may_not_have_any_more`.
            return;
        }
        let gateway = Gateway::start(&format!("mqtt://{}", broker.address), PLANT).await;
        let mut browser = gateway.connect().await;
        let subscriptions = json!([{"topic": "plant/south/#"}, {"topic": "plant/north/#"}]);
        browser.send(json!({"type": "auth", "token": of_both_sites("olga"), "subscriptions": subscriptions})).await;
        let mut link = broker.next_link().await;
        link.let_in(false, &[]).await;
        let south = link.grant().await.expect("an identifier");
        let asked = link.next_subscribe().await;
        link.publish(0, 0, "plant/south/x", "secret", &[south]).await;
        gateway.reload(&PLANT.replace("plant/{claim.site}/#", "plant/north/#")).await;
        eventually("it is read", async || gateway.log().contains("the rights of open sessions are judged anew")).await;
        link.publish(0, 0, "plant/south/x", "secret", &[south]).await;
        link.answer(0x90, asked.pkid, 0).await;
        browser.expect("auth_response").await;
        browser.expect("welcome").await;
        assert_eq!(taken_away(&mut browser).await, ["plant/south/#"]);
        link.publish(0, 0, "plant/south/x", "secret", &[south]).await;
        let north = asked.properties.and_then(|properties| properties.id).expect("an identifier");
        link.publish(0, 0, "plant/north/x", "yes", &[north]).await;
        assert_eq!(browser.next_delivery().await, ("plant/north/x".to_owned(), "yes".to_owned()));
    }

    #[tokio::test]
    async fn a_session_that_moves_takes_no_message_along_that_it_may_not_have_any_more() {
        let mut broker = ScriptedBroker::start().await;
        let configuration = format!("[broker]\nupstream = \"shared\"\nconnections = 1\n{PLANT}");
        let gateway = Gateway::start(&format!("mqtt://{}", broker.address), &configuration).await;
        let mut browser = gateway.connect().await;
        browser.send(json!({"type": "auth", "token": of_both_sites("olga")})).await;
        let mut shared = broker.next_link().await;
        shared.let_in(false, &[]).await;
        browser.expect("auth_response").await;
        browser.expect("welcome").await;
        for filter in ["plant/south/#", "plant/north/#"] {
            browser.send(json!({"type": "subscribe", "topic": filter})).await;
            shared.grant().await;
            // What is stored there is fetched over a connection of its own.
            browser.expect("subscribed").await;
        }
        browser.send(json!({"type": "subscribe", "topic": "plant/north/x", "ack": "manual", "msgid": "moves"})).await;
        let mut own = loop {
            let link = broker.next_link().await;
            if link.connect().client_id.contains("olga") {
                break link;
            }
        };
        own.let_in(false, &[]).await;
        let mut south = None;
        for _ in 0..3 {
            let subscribe = own.next_subscribe().await;
            if subscribe.filters[0].path == "plant/south/#" {
                south = subscribe.properties.clone().and_then(|properties| properties.id);
            }
            own.answer(0x90, subscribe.pkid, 0).await;
        }
        // Its own connection stands, and the shared one is asked whether all has come; meanwhile the right goes.
        let Packet::PingReq(_) = shared.next().await else { panic!("the hub asks") };
        renew(&mut browser, &operator("olga")).await;
        assert_eq!(taken_away(&mut browser).await, ["plant/south/#"]);
        for _ in 0..50 {
            own.publish(0, 0, "plant/south/x", "secret", &[south.expect("an identifier")]).await;
        }
        shared.send(0xD0, &[]).await;
        loop {
            match own.next().await {
                Packet::PingReq(_) => own.send(0xD0, &[]).await,
                Packet::Unsubscribe(_) => break,
                other => panic!("not {other:?}"),
            }
        }
        assert_eq!(browser.expect("subscribed").await["msgid"], "moves");
        browser.hears_nothing_for(Duration::from_millis(300)).await;
    }

    #[tokio::test]
    async fn the_will_of_a_session_that_is_revoked_is_the_one_that_it_was_allowed() {
        let mosquitto = Mosquitto::start().await;
        let (first, second) = ("a token that was made by chance", "another token, made by chance too");
        let (of_first, of_second) =
            (Gateway::run(&["hash", "token"], first).await, Gateway::run(&["hash", "token"], second).await);
        let configuration = |hash: &str| {
            format!(
                "[auth.tokens.backend]\nhash = \"{}\"\nroles = [\"all\"]\n\
                 [roles.all]\ngrants = [{{ allow = [\"publish\"], topics = [\"#\"] }}]\n",
                hash.trim()
            )
        };
        let gateway = Gateway::start(&mosquitto.url(), &configuration(&of_first)).await;
        let mut device = Device::subscribe(mosquitto.port, &["-t", "gone/#"]).await;
        let will = json!({"topic": "gone/backend", "payload": "a last word"});
        let (browser, _) = gateway.open(json!({"token": first, "will": will})).await;
        gateway.reload(&configuration(&of_second)).await;
        assert_eq!(turned_away(browser).await, not_authenticated(4403));
        assert_eq!(device.next().await, "gone/backend a last word");
    }

    #[tokio::test]
    async fn a_will_that_was_lost_with_its_right_stays_lost_over_a_broken_link() {
        let (mosquitto, line, gateway) = plant_behind_a_line().await;
        let mut device = Device::subscribe(mosquitto.port, &["-t", "plant/#"]).await;
        let will = json!({"topic": "plant/south/will", "payload": "a last word"});
        let (mut browser, _) = gateway.open(json!({"token": of_both_sites("olga"), "will": will})).await;
        line.reset();
        assert_eq!(browser.expect("broker").await["status"], "down");
        renew(&mut browser, &operator("olga")).await;
        line.resume();
        assert_eq!(browser.expect("broker").await["status"], "up");
        browser.vanish();
        link_ends(&gateway).await;
        Device::publish(mosquitto.port, &["-t", "plant/end", "-m", "end"]).await;
        assert_eq!(device.next().await, "plant/end end");
    }

    #[tokio::test]
    async fn a_renewal_by_somebody_whom_the_configuration_does_not_ask_any_more_ends_the_session() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mosquitto = Mosquitto::start().await;
        let endpoint = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/auth", endpoint.local_addr().expect("an address"));
        let roles = "[roles.all]\ngrants = [{ allow = [\"publish\"], topics = [\"#\"] }]\n";
        let configuration = |hook: &str| format!("{hook}{PLANT}{roles}");
        let hook = format!("[auth.hook]\nurl = \"{url}\"\n");
        let gateway = Gateway::start(&mosquitto.url(), &configuration(&hook)).await;
        let mut browser = opened(&gateway, &operator("olga")).await;
        browser.send(json!({"type": "auth", "token": "what only the hook knows", "msgid": "new"})).await;
        let (mut asked, _) = timeout(PATIENCE, endpoint.accept()).await.expect("in time").expect("it asks");
        let mut question = Vec::new();
        while !question.ends_with(b"}") {
            question.push(timeout(PATIENCE, asked.read_u8()).await.expect("in time").expect("a byte"));
        }
        gateway.reload(&configuration("")).await;
        eventually("it is read", async || gateway.log().contains("the rights of open sessions are judged anew")).await;
        let yes = r#"{"user":"olga","roles":["all"]}"#;
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{yes}", yes.len());
        asked.write_all(answer.as_bytes()).await.expect("written");
        assert_eq!(browser.expect("auth_response").await["msgid"], "new");
        assert_eq!(turned_away(browser).await, not_authenticated(4403));
    }
}

mod texts {
    use super::*;
    use crate::support::raw::narrow;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What could begin a line of its own, or steer a terminal.
    const FORGED: &str = "x\r\n2026-01-01T00:00:00Z ERROR tidegate: forged\u{1b}[2J\u{9b}31m\u{2028}";

    /// Says things of which each may be logged.
    async fn provoke(gateway: &Gateway) {
        let claims = json!({"roles": ["operator", "viewer"], "site": FORGED, FORGED: FORGED});
        let (mut browser, _) = gateway.open(json!({"token": token("olga", claims), "clientId": "c 1\u{2028}"})).await;
        for topic in [FORGED.to_owned(), format!("plant/{FORGED}/x"), format!("user/{FORGED}/#")] {
            subscribing(&mut browser, &topic).await;
            let _ = publishing(&mut browser, &topic.replace('#', "y")).await;
            browser.ask(json!({"type": "unsubscribe", "topic": topic})).await;
        }
        browser.ask(json!({"type": FORGED, "msgid": FORGED})).await;
        browser.ask(json!({"type": "auth", "token": FORGED})).await;
        browser.leave().await;
        for frame in [
            json!({"type": "auth", "username": FORGED, "password": FORGED}),
            json!({"type": "auth", "token": FORGED}),
            json!({"type": "auth", "token": token(FORGED, json!({}))}),
            json!({"type": "auth", "token": token("vera", json!({"jti": FORGED}))}),
            json!({"type": "auth", "token": token("vera", json!({"roles": FORGED}))}),
        ] {
            let mut browser = gateway.connect().await;
            browser.send(frame).await;
            turned_away(browser).await;
        }
        let mut browser = gateway.connect().await;
        browser.send(json!({"type": "auth", "token": viewer("vera"), "clientId": FORGED})).await;
        assert_ne!(browser.next().await["type"], "welcome", "a name has no control characters");
        // Headers hold no line ends; what else they may hold is text all the same.
        let odd = "x\u{9b}31m [2J 2026-01-01T00:00:00Z ERROR forged";
        let head =
            format!("X-Forwarded-For: {odd}\r\nOrigin: {odd}\r\nUser-Agent: {odd}\r\nAuthorization: Bearer {odd}\r\n");
        for path in ["/ws", "/%0d%0aforged", "/x?token=%0d%0aforged"] {
            gateway.request(&gateway.address, "GET", path, &head).await;
        }
    }

    fn is_plain(line: &str) -> bool {
        !line.chars().any(char::is_control)
    }

    #[tokio::test]
    async fn nothing_that_a_client_says_forges_a_line_of_the_log() {
        let mosquitto = Mosquitto::start().await;
        for format in ["text", "json"] {
            let configuration =
                format!("[log]\nlevel = \"debug\"\nformat = \"{format}\"\n[session]\nauth_timeout = 1\n{PLANT}");
            let mut gateway = Gateway::start(&mosquitto.url(), &configuration).await;
            provoke(&gateway).await;
            gateway.stop().await;
            let log = gateway.log();
            assert!(log.contains("session opened"), "there is something to look at");
            for line in log.lines() {
                match format {
                    "json" => {
                        drop(serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
                    }
                    _ => assert!(
                        line.starts_with("20") && line.contains(" tidegate") || line.contains(" DEBUG "),
                        "{line:?}"
                    ),
                }
                assert!(is_plain(line), "{line:?}");
                assert!(!line.starts_with("2026-01-01T00:00:00Z"), "{line:?}");
            }
        }
    }

    #[tokio::test]
    async fn nothing_that_a_client_says_forges_a_line_of_the_audit_log() {
        let mosquitto = Mosquitto::start().await;
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let configuration =
            format!("{PLANT}\n[session]\nauth_timeout = 1\n[audit]\nlog = \"{}\"\ntopics = [\"#\"]\n", path.display());
        let mut gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        provoke(&gateway).await;
        gateway.stop().await;
        let text = std::fs::read_to_string(&path).expect("written");
        assert!(text.lines().count() > 5, "{text}");
        for line in text.lines() {
            assert!(is_plain(line) && serde_json::from_str::<Value>(line).is_ok(), "{line:?}");
        }
        assert!(Gateway::run(&["audit", "verify", &path.display().to_string()], "").await.contains("ok"));
    }

    #[tokio::test]
    async fn no_path_leads_out_of_the_console() {
        let (_mosquitto, gateway) = plant().await;
        for path in [
            "/../etc/passwd",
            "/../../../../etc/passwd",
            "/..%2f..%2f..%2fetc%2fpasswd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/%252e%252e/etc/passwd",
            "//etc/passwd",
            "///etc/passwd",
            "/etc/passwd",
            "/console.js/../../etc/passwd",
            "/..\\..\\etc\\passwd",
            "/%5c..%5cetc%5cpasswd",
            "/console.css%00",
            "/console.css/",
            "/./console.css/..",
            "/.git/config",
            "/Cargo.toml",
            "/tidegate.toml",
            "/..;/metrics",
            "/ws/../metrics",
            "http://localhost/etc/passwd",
            "/%c0%ae%c0%ae/etc/passwd",
            "/metrics",
            "/drain",
        ] {
            let (status, _, body) = gateway.request(&gateway.address, "GET", path, "").await;
            assert!(status == 404 || status == 400, "{path}: {status} {body}");
            assert!(!body.contains("root:") && !body.contains("tidegate_"), "{path}: {body}");
        }
        for method in ["PUT", "DELETE", "POST", "PATCH", "OPTIONS", "TRACE", "CONNECT"] {
            let (status, _, _) = gateway.request(&gateway.address, method, "/console.js", "").await;
            assert!((400..500).contains(&status), "{method}: {status}");
        }
    }

    #[tokio::test]
    async fn a_flood_of_headers_is_refused_and_hurts_nobody() {
        let (_mosquitto, gateway) = plant().await;
        let mut browser = opened(&gateway, &operator("olga")).await;
        let before = gateway.resident();
        for head in [
            "a: b\r\n".repeat(2000),
            "authorization: Bearer x\r\n".repeat(500),
            "sec-websocket-protocol: a\r\n".repeat(500),
            format!("x: {}\r\n", "y".repeat(1 << 20)),
            format!("authorization: Bearer {}\r\n", "y".repeat(1 << 20)),
            format!("cookie: {}\r\n", "a=b; ".repeat(1 << 18)),
            format!("{}: x\r\n", "y".repeat(1 << 20)),
        ] {
            let mut stream = narrow(&gateway.address).await;
            let request = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{head}\r\n");
            // It may be ended before all of it is sent.
            let _ = timeout(PATIENCE, stream.write_all(request.as_bytes())).await.expect("in time");
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time");
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
            assert_eq!(publishing(&mut browser, "plant/north/x").await, Ok(()), "others are served");
        }
        let grown = gateway.resident().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes");
    }
}

mod sizes {
    use super::*;

    #[tokio::test]
    async fn whatever_is_too_large_is_refused_and_what_is_as_large_as_may_be_is_not() {
        let (_mosquitto, gateway) = plant().await;
        let padded =
            |filler: usize| token("vera", json!({"roles": "viewer", "site": "north", "x": "y".repeat(filler)}));
        let exact =
            (0..8192).map(|fill| 8192 * 3 / 4 - fill).map(padded).find(|token| token.len() <= 8192).expect("one fits");
        opened(&gateway, &exact).await;
        assert_eq!(shown(&gateway, &padded(8192)).await, not_authenticated(4403), "auth.max_token");
        for (name, close) in [("n".repeat(256), None), ("n".repeat(257), Some(4403))] {
            match close {
                None => drop(opened(&gateway, &viewer(&name)).await),
                Some(close) => assert_eq!(shown(&gateway, &viewer(&name)).await, not_authenticated(close)),
            }
        }
        // A frame that is no token at all.
        assert_eq!(shown(&gateway, &"x".repeat(900_000)).await, not_authenticated(4403));
        let mut browser = gateway.connect().await;
        browser.send(json!({"type": "auth", "token": "x".repeat(1 << 20)})).await;
        assert_eq!(browser.closed().await, 1009);
        for auth in [
            json!({"type": "auth", "username": "u".repeat(9000), "password": "p"}),
            json!({"type": "auth", "username": "u", "password": "p".repeat(9000)}),
        ] {
            let mut browser = gateway.connect().await;
            browser.send(auth).await;
            assert_eq!(turned_away(browser).await, not_authenticated(4403));
        }
        // Topics and filters: as MQTT has them, and no more levels than the settings say.
        let mut browser = opened(&gateway, &operator("olga")).await;
        for topic in [
            "plant/north/".to_owned() + &"x".repeat(65_536),
            "plant/north".to_owned() + &"/x".repeat(30_000),
            "/".repeat(65_000),
        ] {
            assert!(subscribing(&mut browser, &topic).await.get("error").is_some(), "{} bytes", topic.len());
            assert!(publishing(&mut browser, &topic).await.is_err(), "{} bytes", topic.len());
        }
        assert_eq!(publishing(&mut browser, "plant/north/x").await, Ok(()));
    }

    /// A token of the largest size, of which nearly all is roles or values of a claim.
    fn laden(claims: impl Fn(usize) -> Value) -> String {
        let fits = |count: &usize| token("mallory", claims(*count)).len() <= 8192;
        let count = (1..4096).rev().step_by(16).find(fits).expect("some fit");
        token("mallory", claims(count))
    }

    #[tokio::test]
    async fn the_most_laden_token_makes_no_request_dear_and_a_session_large() {
        let mosquitto = Mosquitto::start().await;
        // Each denied request looks through all that these come to.
        let dear = "[roles.dear]\ngrants = [{ allow = [\"publish\", \"subscribe\"], topics = [\"a/{claim.x}/{claim.y}/#\", \"b/{claim.x}/#\"] }]\n";
        let gateway = Gateway::start_thrifty(&mosquitto.url(), &format!("{PLANT}{dear}")).await;
        let before = gateway.resident();
        let mut open = Vec::new();
        for (what, token) in [
            (
                "one role many times",
                laden(|count| json!({"roles": vec!["dear"; count], "x": vec!["1"; 60], "y": vec!["2"; 60]})),
            ),
            (
                "roles that are not there",
                laden(|count| json!({"roles": (0..count).map(|n| n.to_string()).collect::<Vec<_>>()})),
            ),
            (
                "lists that meet",
                laden(|count| json!({"roles": "dear", "x": vec![1; count / 2], "y": vec![1; count / 2]})),
            ),
            (
                "as many as are looked at",
                token("mallory", json!({"roles": "dear", "x": vec![1; 64], "y": vec![1; 64]})),
            ),
            (
                "many claims",
                laden(|count| (0..count).map(|n| (n.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into()),
            ),
        ] {
            let mut browser = opened(&gateway, &token).await;
            let before = gateway.processor_time();
            for _ in 0..20 {
                assert_eq!(publishing(&mut browser, "a/1/none").await.unwrap_err().0, "not_authorized", "{what}");
                assert_eq!(subscribing(&mut browser, "b/+/c").await["error"], "not_authorized", "{what}");
            }
            let each = (gateway.processor_time() - before) / 40;
            eprintln!("{what}: {each:?} of a processor for a request");
            assert!(each < Duration::from_millis(100), "{what}: {each:?}");
            open.push(browser);
        }
        let many = laden(|count| json!({"roles": "viewer", "x": vec![1; count]}));
        for _ in 0..45 {
            open.push(opened(&gateway, &many).await);
        }
        let each = gateway.resident().saturating_sub(before) / open.len();
        eprintln!("{} KiB a session", each / 1024);
        assert!(each < 400 << 10, "{each} bytes a session");
    }
}

mod floods {
    use super::*;

    #[tokio::test]
    async fn a_session_that_shows_bad_tokens_without_end_holds_up_nobody_else() {
        let (_mosquitto, gateway) = plant().await;
        let mut flooding = opened(&gateway, &operator("olga")).await;
        let mut other = opened(&gateway, &viewer("vera")).await;
        let mut bad = operator("olga");
        bad.push('A');
        let flood = tokio::spawn(async move {
            let begun = Instant::now();
            for _ in 0..2000 {
                flooding.send(json!({"type": "auth", "token": bad})).await;
            }
            for _ in 0..2000 {
                assert_eq!(flooding.expect("error").await["code"], "not_authenticated");
            }
            begun.elapsed()
        });
        let mut longest = Duration::ZERO;
        while !flood.is_finished() {
            let begun = Instant::now();
            other.ask(json!({"type": "ping"})).await;
            longest = longest.max(begun.elapsed());
        }
        eprintln!("2000 in {:?}, and nobody waited longer than {longest:?}", flood.await.expect("all were answered"));
        assert!(longest < Duration::from_secs(1), "{longest:?}");
    }

    #[tokio::test]
    async fn passwords_that_many_guess_at_a_time_hold_up_nobody_who_has_a_token() {
        let mosquitto = Mosquitto::start().await;
        let hash = Gateway::run(&["hash", "password"], "correct horse").await;
        let configuration = format!(
            "{}\n[auth.users.anna]\nhash = \"{}\"\n",
            PLANT.replace("anonymous = false", "anonymous = false\nmax_password_checks = 1"),
            hash.trim()
        );
        let gateway = Gateway::start(&mosquitto.url(), &configuration).await;
        let mut guessing = Vec::new();
        for number in 0..60 {
            let mut browser = gateway.connect().await;
            browser.send(json!({"type": "auth", "username": "anna", "password": number.to_string()})).await;
            guessing.push(browser);
        }
        let begun = Instant::now();
        opened(&gateway, &viewer("vera")).await;
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(2), "{waited:?}");
        for browser in guessing {
            let (code, close) = turned_away(browser).await;
            assert_eq!(code, "not_authenticated");
            assert!(close == 4403 || close == 1011, "it was wrong, or there were too many: {close}");
        }
        let peak = gateway.peak() as usize;
        assert!(peak < 256 << 20, "one is checked at a time, so memory is taken once: {peak} bytes");
    }

    #[tokio::test]
    async fn a_user_that_leaves_and_comes_again_may_publish_no_more_by_that() {
        let mosquitto = Mosquitto::start().await;
        let few = PLANT.replace("[roles.viewer]", "max_publishes_per_second = 3\n\n[roles.viewer]");
        let gateway = Gateway::start(&mosquitto.url(), &few).await;
        let begun = Instant::now();
        let mut taken = 0;
        for _ in 0..10 {
            let mut browser = opened(&gateway, &operator("olga")).await;
            for topic in ["plant/north/1", "plant/north/2", "plant/north/3"] {
                taken += usize::from(publishing(&mut browser, topic).await.is_ok());
            }
            browser.leave().await;
        }
        let most = 3 + 3 * (1 + begun.elapsed().as_secs() as usize);
        assert!((3..=most).contains(&taken), "{taken}, and {most} were allowed");
    }

    #[tokio::test]
    async fn whoever_is_turned_away_again_and_again_writes_no_line_of_the_log_each_time() {
        let (_mosquitto, gateway) = plant().await;
        let before = gateway.log().lines().count();
        for number in 0..300 {
            assert_eq!(shown(&gateway, &format!("bad {number}")).await, not_authenticated(4403));
        }
        let lines = gateway.log().lines().count() - before;
        assert!(lines < 10, "{lines} lines");
        let failed = "tidegate_authentications_total";
        let (_, page) = gateway.get(&gateway.admin, "/metrics").await;
        assert!(page.contains(failed), "they are counted: {page}");
    }
}
