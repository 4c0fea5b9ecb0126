//! Secrets stay secret: they are planted wherever the gateway takes one, and looked for in all that it says.

use std::fmt::Write as _;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64_simd::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use futures_util::StreamExt;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::access::in_seconds;
use crate::support::{Browser, Gateway, Mosquitto, PATIENCE, eventually};

const JWT_SECRET: &str = "planted/jwt+secret, of thirty-two bytes";
const NEXT_JWT_SECRET: &str = "planted/next+jwt secret, of more than it";
const SHORT_JWT_SECRET: &str = "planted/short+secret";
const HOOK_SECRET: &str = "planted/hook+secret~1";
const BROKER_PASSWORD: &str = "planted/broker+password: 1";
const ADMIN_TOKEN: &str = "planted/admin+token~1";
const SHORT_ADMIN_TOKEN: &str = "planted/short+1";
const CLIENT_KEY: &str = "planted/client+key";
const STATIC_TOKEN: &str = "planted/static+token~1";
const COOKIE_TOKEN: &str = "planted+cookie+token~1";
const QUERY_TOKEN: &str = "planted/query+token~1";
const HOOK_TOKEN: &str = "planted/hook+token~1";
const PASSWORD: &str = "planted/user+password: é";
/// What nobody takes for good.
const BAD_TOKEN: &str = "planted/bad+token~1";
const BAD_PASSWORD: &str = "planted/bad+password: é";
/// Of these the hook makes a fault.
const BROKEN_TOKEN: &str = "planted/broken+token~1";
const FAULTY_TOKEN: &str = "planted/faulty+token~1";

#[tokio::test]
async fn no_secret_is_in_a_log_for_people_or_anywhere_else() {
    nothing_is_told("text").await;
}

#[tokio::test]
async fn no_secret_is_in_a_log_for_programs_or_anywhere_else() {
    nothing_is_told("json").await;
}

/// Plays all ways in and all mistakes, and looks through everything that the gateway said meanwhile.
async fn nothing_is_told(format: &str) {
    let hash = |of: &'static str, secret: &'static str| async move {
        Gateway::run(&["hash", of], secret).await.trim().to_owned()
    };
    let hashes = [
        hash("token", STATIC_TOKEN).await,
        hash("token", COOKIE_TOKEN).await,
        hash("token", QUERY_TOKEN).await,
        hash("password", PASSWORD).await,
    ];
    let hook = Hook::start().await;
    let folder = TempDir::new().expect("a folder");
    let audit = folder.path().join("audit.jsonl");
    let of = |jwt_secret: &str| {
        let [token, cookie, query, password] = &hashes;
        format!(
            r##"
            [log]
            level = "trace"
            format = "{format}"
            [admin]
            token = "{ADMIN_TOKEN}"
            [audit]
            log = "{audit}"
            [broker]
            username = "gateway"
            session_username = "{{user}}"
            session_password = "{{token}}"
            [auth]
            cookie = "tidegate_token"
            query_token = true
            [auth.jwt]
            algorithms = ["HS256"]
            secret = "{jwt_secret}"
            leeway = 0
            [auth.hook]
            url = "http://{hook}/"
            secret = "{HOOK_SECRET}"
            [auth.tokens.backend]
            hash = "{token}"
            roles = ["all"]
            [auth.tokens.cookie]
            hash = "{cookie}"
            roles = ["all"]
            [auth.tokens.query]
            hash = "{query}"
            roles = ["all"]
            [auth.users.anna]
            hash = "{password}"
            roles = ["all"]
            [roles.all]
            grants = [{{ allow = ["publish", "subscribe"], topics = ["#"] }}, {{ deny = ["publish"], topics = ["closed/#"] }}]
            "##,
            audit = audit.display(),
            hook = hook.address,
        )
    };
    let configuration = of(JWT_SECRET);
    let mosquitto = Mosquitto::start().await;
    let from_environment = [("TIDEGATE_BROKER__PASSWORD", BROKER_PASSWORD)];
    let mut gateway = Gateway::start_unready_with(&mosquitto.url(), &configuration, &from_environment).await;
    let mut tokens = Tokens::default();
    let mut told = vec![format!("{} {} {}", gateway.console, gateway.broker, gateway.admin)];
    eventually("the gateway is ready", async || gateway.get(&gateway.admin, "/readyz").await.0 == 200).await;

    told.extend(all_ways_in(&gateway, &mut tokens).await);
    assert!(hook.heard().contains(HOOK_SECRET), "the hook was asked: {}", hook.heard());
    told.extend(all_bad_ways_in(&gateway, &mut tokens).await);
    told.extend(renewals(&gateway, &mut tokens).await);
    told.extend(odd_requests(&gateway).await);
    told.extend(mistakes(&gateway, &configuration).await);
    // A secret that is too short is warned of.
    for secret in [SHORT_JWT_SECRET, NEXT_JWT_SECRET] {
        let applied = r#"tidegate_configuration_reloads_total{result="applied"}"#;
        let before = gateway.metric(applied).await;
        gateway.reload(&of(secret)).await;
        eventually("it was read", async || gateway.metric(applied).await > before).await;
        told.push(checked(&of(secret)).await);
    }
    for (address, path) in [
        (&gateway.admin, "/metrics"),
        (&gateway.admin, "/readyz"),
        (&gateway.admin, "/healthz"),
        (&gateway.address, "/"),
        (&gateway.address, "/healthz"),
    ] {
        let (_, head, body) = gateway.fetch(address, path).await;
        told.push(format!("{head}\n{body}"));
    }
    gateway.stop().await;

    let log = gateway.log();
    assert!(log.contains("TRACE"), "the log tells all that it can");
    told.push(log);
    told.push(std::fs::read_to_string(&audit).expect("it was written"));
    let mut secrets: Vec<&str> = vec![
        JWT_SECRET,
        NEXT_JWT_SECRET,
        SHORT_JWT_SECRET,
        HOOK_SECRET,
        BROKER_PASSWORD,
        ADMIN_TOKEN,
        SHORT_ADMIN_TOKEN,
        CLIENT_KEY,
        STATIC_TOKEN,
        COOKIE_TOKEN,
        QUERY_TOKEN,
        HOOK_TOKEN,
        PASSWORD,
        BAD_TOKEN,
        BAD_PASSWORD,
        BROKEN_TOKEN,
        FAULTY_TOKEN,
    ];
    secrets.extend(hashes.iter().map(|hash| hash.trim_start_matches("sha256:")));
    secrets.extend(tokens.signatures.iter().map(String::as_str));
    for secret in secrets {
        for form in forms(secret) {
            if let Some(text) = told.iter().find(|text| text.contains(&form)) {
                let line = text.lines().find(|line| line.contains(&form));
                panic!("{secret:?} is told as {form:?}: {line:?}");
            }
        }
    }
}

/// The tokens that were made, of which the signatures are as good as the whole.
#[derive(Default)]
struct Tokens {
    signatures: Vec<String>,
}

impl Tokens {
    /// A token of anna's that is good for so many seconds.
    fn issue(&mut self, secret: &str, good_for: i64) -> String {
        let number = self.signatures.len();
        let claims = json!({"sub": "anna", "exp": in_seconds(good_for), "jti": format!("t{number}"), "roles": "all"});
        let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes())).expect("signed");
        self.signatures.push(token.rsplit('.').next().expect("three parts").to_owned());
        token
    }
}

/// Everybody gets in, and does what is allowed and what is not.
async fn all_ways_in(gateway: &Gateway, tokens: &mut Tokens) -> Vec<String> {
    let bearer = |token: &str| format!("Bearer {token}");
    let mut told = Vec::new();
    let origin = format!("http://{}", gateway.address);
    for (path, name, value) in [
        ("/ws".to_owned(), "authorization", bearer(STATIC_TOKEN)),
        ("/ws".to_owned(), "authorization", bearer(&tokens.issue(JWT_SECRET, 3600))),
        ("/ws".to_owned(), "authorization", bearer(HOOK_TOKEN)),
        ("/ws".to_owned(), "authorization", basic("anna", PASSWORD)),
        ("/ws".to_owned(), "sec-websocket-protocol", offer(&tokens.issue(JWT_SECRET, 3600))),
        ("/ws".to_owned(), "cookie", format!("a=b; tidegate_token={COOKIE_TOKEN}")),
        (format!("/ws?token={}", percent_encoded(QUERY_TOKEN)), "user-agent", "a scene".to_owned()),
    ] {
        let headers = [(name, value.as_str()), ("origin", &origin)];
        let mut browser = Browser::connect_with(&gateway.address, &path, &headers).await.expect("upgraded");
        let heard = conversation(&mut browser, 5).await;
        assert!(heard.contains(r#""type":"mqtt""#), "{path} {name}: {heard}");
        told.push(heard);
    }
    for auth in [
        json!({"token": STATIC_TOKEN}),
        json!({"token": tokens.issue(JWT_SECRET, 3600)}),
        json!({"token": HOOK_TOKEN}),
        json!({"username": "anna", "password": PASSWORD}),
    ] {
        let (mut browser, welcome) = gateway.open(auth).await;
        let heard = conversation(&mut browser, 4).await;
        assert!(heard.contains(r#""type":"mqtt""#), "{heard}");
        told.extend([welcome.to_string(), heard]);
    }
    let (mut ending, welcome) = gateway.open(json!({"token": tokens.issue(JWT_SECRET, 2)})).await;
    told.extend([welcome.to_string(), heard(&mut ending, usize::MAX).await]);
    told
}

/// Nobody gets in.
async fn all_bad_ways_in(gateway: &Gateway, tokens: &mut Tokens) -> Vec<String> {
    let [forged, expired, early_end] = [(NEXT_JWT_SECRET, 3600), (JWT_SECRET, -3600), (JWT_SECRET, 3600)]
        .map(|(secret, good_for)| tokens.issue(secret, good_for));
    let cut_off = &early_end[..early_end.len() - 20];
    let long = BAD_TOKEN.repeat(1000);
    let origin = format!("http://{}", gateway.address);
    let mut told = Vec::new();
    for (path, name, value) in [
        ("/ws", "authorization", format!("Bearer {BAD_TOKEN}")),
        ("/ws", "authorization", format!("Bearer {forged}")),
        ("/ws", "authorization", format!("Bearer {expired}")),
        ("/ws", "authorization", format!("Bearer {cut_off}")),
        ("/ws", "authorization", format!("Bearer {BROKEN_TOKEN}")),
        ("/ws", "authorization", format!("Bearer {FAULTY_TOKEN}")),
        ("/ws", "authorization", format!("Digest {BAD_TOKEN}")),
        ("/ws", "authorization", format!("Basic {BAD_TOKEN}")),
        ("/ws", "authorization", basic("anna", BAD_PASSWORD)),
        ("/ws", "authorization", basic("bob", BAD_PASSWORD)),
        ("/ws", "sec-websocket-protocol", offer(&forged)),
        ("/ws", "sec-websocket-protocol", offer(&expired)),
        ("/ws", "cookie", format!("tidegate_token={BAD_TOKEN}")),
        ("/ws", "cookie", format!("tidegate_token=\"{BAD_TOKEN}")),
        ("/ws?token=planted%2Fbad%2Btoken~1", "user-agent", "a scene".to_owned()),
        ("/ws?token=planted%2Fbad%2Btoken~1%ff%", "user-agent", "a scene".to_owned()),
        // These two are no handshakes that can be agreed on.
        ("/ws", "sec-websocket-protocol", format!("bearer.{forged}")),
        ("/ws", "sec-websocket-protocol", format!("tidegate.v1.json, bearer.{forged}, bearer.{expired}")),
    ] {
        let headers = [(name, value.as_str()), ("origin", &origin)];
        told.push(match Browser::connect_with(&gateway.address, path, &headers).await {
            Ok(mut browser) => {
                browser.send(json!({"type": "ping"})).await;
                heard(&mut browser, usize::MAX).await
            }
            Err((status, body)) => format!("{status} {body}"),
        });
    }
    for auth in [
        json!({"type": "auth", "token": BAD_TOKEN}).to_string(),
        json!({"type": "auth", "token": forged}).to_string(),
        json!({"type": "auth", "token": expired}).to_string(),
        json!({"type": "auth", "token": cut_off}).to_string(),
        json!({"type": "auth", "token": long}).to_string(),
        json!({"type": "auth", "token": BROKEN_TOKEN}).to_string(),
        json!({"type": "auth", "token": FAULTY_TOKEN}).to_string(),
        json!({"type": "auth", "username": "anna", "password": BAD_PASSWORD}).to_string(),
        json!({"type": "auth", "username": "bob", "password": BAD_PASSWORD}).to_string(),
        json!({"type": "auth", "username": "bob", "password": [PASSWORD]}).to_string(),
        json!({"type": "auth", "token": {"is": STATIC_TOKEN}}).to_string(),
        json!({"type": "auth", "token": STATIC_TOKEN, "username": "anna", "password": PASSWORD}).to_string(),
        json!({"type": "auth", "token": STATIC_TOKEN, "will": {"topic": "#", "payload": ""}}).to_string(),
        json!({"type": "auht", "token": STATIC_TOKEN}).to_string(),
        json!({"type": 17, "token": STATIC_TOKEN}).to_string(),
        format!("{{\"type\":\"auth\",\"token\":\"{STATIC_TOKEN}"),
        format!("{{\"type\":\"auth\",\"token\":\"{STATIC_TOKEN}\\q\"}}"),
        format!("{{\"type\":\"auth\",\"token\":{STATIC_TOKEN}}}"),
        STATIC_TOKEN.to_owned(),
    ] {
        let mut browser = gateway.connect().await;
        browser.send_text(&auth).await;
        browser.send(json!({"type": "ping"})).await;
        told.push(heard(&mut browser, 2).await);
    }
    told
}

/// A session that shows other tokens while it is open, good ones and bad ones.
async fn renewals(gateway: &Gateway, tokens: &mut Tokens) -> Vec<String> {
    let (mut browser, welcome) = gateway.open(json!({"token": tokens.issue(JWT_SECRET, 50)})).await;
    let mut told = vec![welcome.to_string(), browser.expect("expiring").await.to_string()];
    let (good, forged) = (tokens.issue(JWT_SECRET, 3600), tokens.issue(NEXT_JWT_SECRET, 3600));
    for (auth, answer) in [
        (json!({"token": good}), "auth_response"),
        (json!({"token": forged}), "error"),
        (json!({"token": BAD_TOKEN}), "error"),
        (json!({"token": STATIC_TOKEN}), "error"),
        (json!({"token": FAULTY_TOKEN}), "error"),
        (json!({"token": [STATIC_TOKEN]}), "error"),
        (json!({"username": "anna", "password": BAD_PASSWORD}), "error"),
        (json!({"username": "anna", "password": PASSWORD}), "auth_response"),
    ] {
        let mut frame = auth.clone();
        frame["type"] = json!("auth");
        browser.send(frame).await;
        told.push(browser.expect(answer).await.to_string());
    }
    browser.leave().await;
    told
}

/// Requests that are no WebSockets and have a secret where one may stand.
async fn odd_requests(gateway: &Gateway) -> Vec<String> {
    let path = format!("/ws?token={}", percent_encoded(QUERY_TOKEN));
    let referer = format!("Referer: http://{}{path}\r\n", gateway.address);
    let mut told = Vec::new();
    for address in [&gateway.address, &gateway.admin] {
        for (method, path, head) in [
            ("GET", path.as_str(), format!("Authorization: Bearer {STATIC_TOKEN}\r\n")),
            ("POST", path.as_str(), format!("Cookie: tidegate_token={COOKIE_TOKEN}\r\n")),
            ("GET", "/", referer.clone()),
            ("GET", "/nowhere", format!("Authorization: {}\r\n", basic("anna", PASSWORD))),
            ("GET", "/?token=planted%2Fquery%2Btoken~1", String::new()),
            ("GET", &path[1..], String::new()),
            ("GET", "/api/v1/sessions", format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")),
            ("POST", "/api/nothing", format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")),
            ("GET", "/api/v1/sessions", format!("Authorization: Bearer {BAD_TOKEN}\r\n")),
            ("GET", "/api/v1/explain?user=anna&topic=a", format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")),
            ("GET", "/", format!("Authorization Bearer {STATIC_TOKEN}\r\n")),
        ] {
            let (status, head, body) = gateway.request(address, method, path, &head).await;
            told.push(format!("{status} {head}\n{body}"));
        }
    }
    told
}

/// Configurations that are wrong near a secret: what the check says of each, and an open gateway that is to read them.
async fn mistakes(gateway: &Gateway, sound: &str) -> Vec<String> {
    let refused = r#"tidegate_configuration_reloads_total{result="refused"}"#;
    let password = format!("[broker]\npassword = \"{BROKER_PASSWORD}\"\n");
    let jwt = |lines: &str| format!("[auth.jwt]\nalgorithms = [\"HS256\"]\n{lines}\n");
    let mut told = vec![checked(sound).await, checked(&password).await];
    for mistake in [
        jwt(&format!("secret = [\"{JWT_SECRET}\"]")),
        jwt(&format!("secret = {JWT_SECRET}")),
        jwt(&format!("secret = \"{JWT_SECRET}")),
        jwt(&format!("secrte = \"{JWT_SECRET}\"")),
        jwt(&format!("secret = \"{JWT_SECRET}\"\nsecret_file = \"/nowhere\"")),
        jwt(&format!("secret = \"{JWT_SECRET}\"\naudience = 17")),
        format!("[auth.jwt]\nalgorithms = [\"ES256\"]\nsecret = \"{JWT_SECRET}\"\n"),
        format!("[auth]\njwt = {{ secret = \"{JWT_SECRET}\", secret = \"{NEXT_JWT_SECRET}\" }}\n"),
        format!("[auth.hook]\nsecret = {{ is = \"{HOOK_SECRET}\" }}\n"),
        format!("[auth.hook]\nurl = \"http://gateway:{HOOK_SECRET}@127.0.0.1/\"\n"),
        format!("[http]\nallowed_origins = [\"https://gateway:{HOOK_SECRET}@app.example\"]\n"),
        format!("[admin]\ntoken = [\"{ADMIN_TOKEN}\"]\n"),
        format!("[admin]\ntoken = \"{SHORT_ADMIN_TOKEN}\"\n"),
        format!("[auth.tokens.backend]\nhash = \"{STATIC_TOKEN}\"\n"),
        format!("[auth.tokens.backend]\ntoken = \"{STATIC_TOKEN}\"\n"),
        format!("[auth.users.anna]\nhash = \"{PASSWORD}\"\n"),
        format!("[auth.users.anna]\npassword = \"{PASSWORD}\"\n"),
        format!("[auth.users]\nanna = \"{PASSWORD}\"\n"),
        format!("[broker]\nurl = \"mqtt://gateway:{}@127.0.0.1\"\n", percent_encoded(BROKER_PASSWORD)),
        format!("[broker]\nclient_key = \"\"\"\n{CLIENT_KEY}\n\"\"\"\n"),
        format!("{password}password = \"{BROKER_PASSWORD}\"\n"),
        format!("{password}[brokr]\npassword = \"{BROKER_PASSWORD}\"\n"),
    ] {
        let output = check(&mistake).await;
        assert_eq!(output.status.code(), Some(2), "{mistake}: {output:?}");
        told.push(said(&output));
        let before = gateway.metric(refused).await;
        gateway.reload(&mistake).await;
        eventually("it was refused", async || gateway.metric(refused).await > before).await;
        let head = format!("Authorization: Bearer {ADMIN_TOKEN}\r\n");
        let (status, head, body) = gateway.request(&gateway.admin, "POST", "/api/v1/reload", &head).await;
        assert!(status >= 400 && !matches!(status, 401 | 403 | 404), "{status} {body}");
        told.push(format!("{head}\n{body}"));
    }
    told
}

/// What the program says of a configuration that is sound.
async fn checked(configuration: &str) -> String {
    let output = check(configuration).await;
    assert!(output.status.success(), "{output:?}");
    said(&output)
}

async fn check(configuration: &str) -> Output {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, configuration).expect("written");
    let mut program = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    program.arg("check-config").arg("--config").arg(&file).env_clear().kill_on_drop(true);
    timeout(PATIENCE, program.output()).await.expect("it ends").expect("the program was built")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Subscribes, and publishes where that is allowed and where it is not: so many frames that come back.
async fn conversation(browser: &mut Browser, frames: usize) -> String {
    browser.send(json!({"type": "subscribe", "topic": "open/#", "msgid": 1})).await;
    browser.send(json!({"type": "publish", "topic": "open/x", "payload": 1, "qos": 1, "msgid": 2})).await;
    browser.send(json!({"type": "publish", "topic": "closed/x", "payload": 1, "msgid": 3})).await;
    heard(browser, frames).await
}

/// The next text frames, so many if the session does not end before, and how it ends.
async fn heard(browser: &mut Browser, most: usize) -> String {
    let mut told = String::new();
    for _ in 0..most {
        match timeout(PATIENCE, browser.socket.next()).await.expect("something comes in time") {
            Some(Ok(Message::Close(frame))) => {
                write!(told, "{frame:?}").expect("a string takes all");
                return told;
            }
            Some(Ok(message)) => writeln!(told, "{message}").expect("a string takes all"),
            Some(Err(_)) | None => return told,
        }
    }
    told
}

fn offer(token: &str) -> String {
    format!("tidegate.v1.json, bearer.{token}")
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode_to_string(format!("{user}:{password}")))
}

/// All but letters and digits, as some do.
fn percent_encoded(text: &str) -> String {
    let encoded =
        |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encoded).collect()
}

/// How a secret may look where it was not kept: as it is, and in the ways in which programs write bytes.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{bytes:?}");
    let debugged = format!("{secret:?}");
    let mut forms = vec![
        secret.to_owned(),
        secret.to_lowercase(),
        hex.to_uppercase(),
        hex,
        list.trim_matches(['[', ']']).to_owned(),
        debugged.trim_matches('"').to_owned(),
        bytes.escape_ascii().to_string(),
        percent_encoded(secret),
        percent_encoded(secret).to_lowercase(),
        percent_encoded(secret).replace("%7E", "~").replace("%2E", ".").replace("%2D", "-"),
    ];
    // In the midst of something longer its base64 has one of three forms, of which the ends depend on what stands around.
    for before in 0..3 {
        let shifted = [&b"___"[..before], bytes].concat();
        let whole = &shifted[..shifted.len() / 3 * 3];
        let start = (before * 8).div_ceil(6);
        forms.push(STANDARD_NO_PAD.encode_to_string(whole)[start..].to_owned());
        forms.push(URL_SAFE_NO_PAD.encode_to_string(whole)[start..].to_owned());
    }
    forms
}

#[test]
fn a_secret_is_found_in_whatever_form_it_is_told() {
    let secret = "planted/secret+of~it: é";
    for text in [
        secret.to_owned(),
        format!("{:?}", format!("a {secret} b")),
        format!("{:?}", secret.as_bytes()),
        format!("b\"{}\"", secret.as_bytes().escape_ascii()),
        json!({ "token": secret }).to_string(),
        STANDARD.encode_to_string(secret),
        STANDARD.encode_to_string(format!("a:{secret}")),
        URL_SAFE_NO_PAD.encode_to_string(format!("ab:{secret} and more")),
        STANDARD.encode_to_string(format!("abc:{secret} and more")),
        secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
        percent_encoded(secret),
    ] {
        assert!(forms(secret).iter().any(|form| text.contains(form)), "{text}");
    }
}

/// An endpoint that is asked who somebody is.
struct Hook {
    address: String,
    heard: Arc<Mutex<String>>,
}

impl Hook {
    async fn start() -> Hook {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let heard = Arc::<Mutex<String>>::default();
        let notes = heard.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, notes.clone()));
            }
        });
        Hook { address, heard }
    }

    /// All that it was told.
    fn heard(&self) -> String {
        self.heard.lock().expect("nobody panics while holding it").clone()
    }
}

/// Judges one token: one is good, one makes an answer that can't be read, one none at all, and all others are bad.
async fn answer(mut stream: TcpStream, notes: Arc<Mutex<String>>) {
    let mut request = Vec::new();
    while serde_json::from_slice::<Value>(body(&request)).is_err() {
        if stream.read_buf(&mut request).await.is_ok_and(|read| read == 0) {
            return;
        }
    }
    notes.lock().expect("nobody panics while holding it").push_str(&String::from_utf8_lossy(&request));
    let asked: Value = serde_json::from_slice(body(&request)).expect("it was read");
    let (status, body) = match asked["token"].as_str() {
        Some(HOOK_TOKEN) => ("200 OK", json!({"user": "vera", "roles": ["all"]}).to_string()),
        Some(BROKEN_TOKEN) => ("200 OK", format!("{{\"user\": {BROKEN_TOKEN}}}")),
        Some(FAULTY_TOKEN) => return,
        _ => ("401 Unauthorized", json!({"error": asked}).to_string()),
    };
    let length = body.len();
    let response = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(response.as_bytes()).await.expect("written");
    // The gateway closes, once it has read.
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
}

/// What follows the head, if that is whole.
fn body(request: &[u8]) -> &[u8] {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n");
    end.map_or(&[], |end| &request[end + 4..])
}
