//! TLS on the gateway's own listeners: what browsers and strangers get, who has to show what, and files that change meanwhile.

use std::io;
use std::time::Duration;

use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::support::certificates::{Certificates, TlsClient};
use crate::support::raw::{Raw, narrow};
use crate::support::{Browser, Device, Gateway, Mosquitto, PATIENCE, eventually};

/// A broker, an authority, and a gateway with TLS whose `[tls]` section has these lines, and others below.
struct House {
    mosquitto: Mosquitto,
    certificates: Certificates,
    gateway: Gateway,
}

impl House {
    async fn start(settings: &str) -> House {
        House::start_with(Certificates::new(), settings).await
    }

    async fn start_with(certificates: Certificates, settings: &str) -> House {
        let mosquitto = Mosquitto::start().await;
        let configuration = certificates.tls(settings);
        let gateway = Gateway::start_secure(&mosquitto.url(), &configuration, certificates.anyone()).await;
        House { mosquitto, certificates, gateway }
    }

    /// Whether a client gets an answer; the error is what it hears instead.
    async fn serves(&self, client: &TlsClient) -> Result<(), String> {
        let answer = async {
            let mut stream = client.connect(&self.gateway.address).await?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            io::Result::Ok(answer)
        };
        match timeout(PATIENCE, answer).await.expect("in time") {
            Ok(answer) => {
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether three connections, one after the other, resume what was before.
    async fn resumes(&self, client: &TlsClient) -> [bool; 3] {
        let mut resumed = [false; 3];
        for resumed in &mut resumed {
            let mut stream = client.connect(&self.gateway.address).await.expect("a handshake");
            *resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            // What it may come back with follows the handshake.
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("written");
            timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("in time").expect("readable");
        }
        resumed
    }

    /// The certificate that a new connection gets.
    async fn shows(&self) -> CertificateDer<'static> {
        let stream = self.certificates.anyone().connect(&self.gateway.address).await.expect("a handshake");
        stream.get_ref().1.peer_certificates().expect("shown")[0].clone()
    }

    async fn handshakes(&self, result: &str) -> f64 {
        self.gateway.metric(&format!("tidegate_tls_handshakes_total{{result=\"{result}\"}}")).await
    }

    async fn reloads(&self, result: &str) -> f64 {
        self.gateway.metric(&format!("tidegate_tls_reloads_total{{result=\"{result}\"}}")).await
    }

    /// An answer to a request without TLS.
    async fn plain(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.gateway.address).await.expect("it listens");
        stream.write_all(request.as_bytes()).await.expect("written");
        all_of(&mut stream).await
    }
}

/// What the gateway sends until it ends the connection.
async fn all_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it ends in time").expect("it ends in good order");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Publishes to itself, and gets it back.
async fn lives(browser: &mut Browser, payload: &str) {
    let msgid = payload.len();
    browser.send(json!({"type": "publish", "topic": "attic/temp", "payload": payload, "qos": 1, "msgid": msgid})).await;
    let mut frames = [browser.next().await, browser.next().await];
    frames.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!((&frames[0]["type"], &frames[1]["payload"]), (&json!("ack"), &json!(payload)));
}

mod service {
    use super::*;

    #[tokio::test]
    async fn the_page_comes_by_https_with_what_makes_browsers_stay_there() {
        let house = House::start("").await;
        let gateway = &house.gateway;
        assert_eq!(gateway.console, format!("https://{}/", gateway.address));
        for (path, status) in [("/", 200), ("/console.js", 200), ("/healthz", 200), ("/readyz", 200), ("/nothing", 404)]
        {
            let stream = house.certificates.anyone().connect(&gateway.address).await.expect("a handshake");
            let (answered, head, _) = gateway.request_over(stream, &gateway.address, "GET", path, "").await;
            assert_eq!(answered, status, "{path}");
            assert!(head.contains("strict-transport-security: max-age=31536000\r\n"), "{path}: {head}");
        }
        assert_eq!(house.handshakes("ok").await, 5.0);
        let (_, head, _) = gateway.fetch(&gateway.admin, "/healthz").await;
        assert!(!head.contains("strict-transport-security"), "operators come without TLS: {head}");
        gateway.reload(&house.certificates.tls("hsts_max_age = 0")).await;
        eventually("it was read", async || house.reloads("applied").await == 1.0).await;
        let stream = house.certificates.anyone().connect(&gateway.address).await.expect("a handshake");
        let (_, head, _) = gateway.request_over(stream, &gateway.address, "GET", "/", "").await;
        assert!(head.contains("strict-transport-security: max-age=0\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_session_over_tls_is_like_any_other() {
        for version in [&TLS12, &TLS13] {
            let mut house = House::start("").await;
            house.gateway.tls = Some(house.certificates.client_with(None, &[version]));
            let mut browser = house.gateway.browser().await;
            browser.subscribe_with(json!({"topic": "attic/#", "qos": 2})).await;
            for payload in ["21.5", &"x".repeat(400_000), "", &"y".repeat(16 * 1024)] {
                lives(&mut browser, payload).await;
            }
            Device::publish(house.mosquitto.port, &["-t", "attic/door", "-m", "open"]).await;
            assert_eq!(browser.next_delivery().await, ("attic/door".to_owned(), "open".to_owned()));
            house.gateway.terminate().await;
            browser.expect("bye").await;
            assert_eq!(browser.closed().await, 1001);
            assert_eq!(house.gateway.end().await.code(), Some(0));
        }
    }

    #[tokio::test]
    async fn the_end_of_a_session_is_told_by_tls_as_well() {
        let house = House::start("").await;
        let stream = house.certificates.anyone().connect(&house.gateway.address).await.expect("a handshake");
        let mut raw = Raw::over(stream, &house.gateway.address).await;
        raw.text(r#"{"type":"ping"}"#).await;
        assert_eq!((&raw.next().await["type"], &raw.next().await["type"]), (&json!("welcome"), &json!("pong")));
        house.gateway.terminate().await;
        assert_eq!(raw.next().await["type"], "bye");
        assert_eq!(raw.closed().await, 1001);
        // Without TLS's own goodbye this is an error, as anybody could have cut the connection there.
        let rest = raw.stream.read_to_end(&mut Vec::new()).await.expect("the end is the gateway's");
        assert_eq!(rest, 0);
    }

    #[tokio::test]
    async fn many_deliveries_arrive_whole_and_in_order() {
        const SENT: usize = 3000;
        let house = House::start("").await;
        let (mut reader, mut source) = (house.gateway.browser().await, house.gateway.browser().await);
        reader.subscribe_with(json!({"topic": "flood", "qos": 1})).await;
        let sending = async {
            for number in 0..SENT {
                let payload = format!("{number} {}", ".".repeat(number));
                source
                    .send(json!({"type": "publish", "topic": "flood", "payload": payload, "qos": 1, "msgid": number}))
                    .await;
            }
            for _ in 0..SENT {
                source.expect("ack").await;
            }
        };
        let reading = async {
            for number in 0..SENT {
                let (_, payload) = reader.next_delivery().await;
                assert_eq!(payload, format!("{number} {}", ".".repeat(number)));
            }
        };
        tokio::join!(sending, reading);
    }

    #[tokio::test]
    async fn operators_come_by_tls_where_it_is_so_configured() {
        let certificates = Certificates::new();
        let mosquitto = Mosquitto::start().await;
        let house = Gateway::start_unready(&mosquitto.url(), &certificates.tls("admin = true")).await;
        let stream = certificates.anyone().connect(&house.admin).await.expect("a handshake");
        let (status, _, page) = house.request_over(stream, &house.admin, "GET", "/metrics", "").await;
        assert_eq!(status, 200);
        assert!(page.contains("tidegate_build_info"), "{page}");
        assert_eq!(house.fetch(&house.admin, "/metrics").await.0, 308);
    }
}

mod versions {
    use super::*;

    #[tokio::test]
    async fn tls_1_2_and_1_3_are_spoken_and_no_other_version() {
        let house = House::start("").await;
        for version in [&TLS12, &TLS13] {
            let client = house.certificates.client_with(None, &[version]);
            assert_eq!(house.serves(&client).await, Ok(()), "{version:?}");
        }
        // 0x0301 is TLS 1.0, 0x0302 is TLS 1.1.
        for minor in [1, 2] {
            let mut stream = TcpStream::connect(&house.gateway.address).await.expect("it listens");
            stream.write_all(&old_client_hello(minor)).await.expect("written");
            let mut answer = Vec::new();
            timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("in good order");
            assert_eq!((answer[0], answer[5], answer.len()), (21, 2, 7), "a fatal alert: {answer:?}");
        }
        assert_eq!(house.handshakes("failed").await, 2.0);
        assert!(house.gateway.log().contains("a TLS handshake failed"), "{}", house.gateway.log());
    }

    /// A ClientHello that offers TLS 1.`minor - 1` at the most, with one of its cipher suites (RFC 4346 section 7.4.1.2).
    fn old_client_hello(minor: u8) -> Vec<u8> {
        let hello = [&[3, minor][..], &[7; 32], &[0, 0, 2, 0xc0, 0x13, 1, 0]].concat();
        let handshake = [&[1, 0, 0, hello.len() as u8][..], &hello].concat();
        [&[0x16, 3, 1, 0, handshake.len() as u8][..], &handshake].concat()
    }

    #[tokio::test]
    async fn http_1_1_is_agreed_on_as_it_is_all_there_is() {
        let house = House::start("").await;
        let openssl = |protocols: &'static str| {
            let mut openssl = Command::new("openssl");
            openssl.args(["s_client", "-connect", &house.gateway.address, "-alpn", protocols]);
            openssl.stdin(std::process::Stdio::null()).output()
        };
        let told = openssl("h2,http/1.1").await.expect("openssl is installed");
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("ALPN protocol: http/1.1"), "{told}");
        let told = openssl("h2").await.expect("openssl is installed");
        assert!(!String::from_utf8_lossy(&told.stdout).contains("ALPN protocol: h2"));
    }

    #[tokio::test]
    async fn a_session_is_resumed_until_the_files_are_read_again() {
        let house = House::start("").await;
        for version in [&TLS12, &TLS13] {
            let client = house.certificates.client_with(None, &[version]);
            assert_eq!(house.resumes(&client).await, [false, true, true], "{version:?}");
            let before = house.reloads("applied").await;
            house.gateway.signal("HUP").await;
            eventually("they are read", async || house.reloads("applied").await > before).await;
            assert_eq!(house.resumes(&client).await, [false, true, true], "{version:?}, with other keys");
        }
    }

    /// Says what there is to say against the TLS of this gateway.
    #[tokio::test]
    async fn sslyze_finds_nothing_weak() {
        let house = House::start("").await;
        let report = house.certificates.path("report.json");
        let output = Command::new("sslyze")
            .arg(format!("--json_out={}", report.display()))
            .arg(format!("--certinfo_ca_file={}", house.certificates.path("ca.pem").display()))
            .args(["--mozilla_config=intermediate", "--early_data", &house.gateway.address])
            .output()
            .await
            .expect("sslyze is installed: scripts/test does it");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_str(&std::fs::read_to_string(report).expect("written")).expect("JSON");
        let results = &report["server_scan_results"][0]["scan_result"];
        let found = |scan: &str, pointer: &str| {
            assert_eq!(results[scan]["status"], "COMPLETED", "{scan}: {}", results[scan]);
            let result = &results[scan]["result"];
            result.pointer(pointer).unwrap_or_else(|| panic!("{scan} has no {pointer}")).clone()
        };
        for (scan, pointer, good) in [
            ("heartbleed", "/is_vulnerable_to_heartbleed", json!(false)),
            ("openssl_ccs_injection", "/is_vulnerable_to_ccs_injection", json!(false)),
            ("robot", "/robot_result", json!("NOT_VULNERABLE_RSA_NOT_SUPPORTED")),
            ("session_renegotiation", "/is_vulnerable_to_client_renegotiation_dos", json!(false)),
            ("session_renegotiation", "/supports_secure_renegotiation", json!(true)),
            ("tls_compression", "/supports_compression", json!(false)),
            ("tls_1_3_early_data", "/supports_early_data", json!(false)),
            ("tls_extended_master_secret", "/supports_ems_extension", json!(true)),
            ("tls_fallback_scsv", "/supports_fallback_scsv", json!(true)),
            ("ssl_2_0_cipher_suites", "/accepted_cipher_suites", json!([])),
            ("ssl_3_0_cipher_suites", "/accepted_cipher_suites", json!([])),
            ("tls_1_0_cipher_suites", "/accepted_cipher_suites", json!([])),
            ("tls_1_1_cipher_suites", "/accepted_cipher_suites", json!([])),
        ] {
            assert_eq!(found(scan, pointer), good, "{scan} {pointer}");
        }
        for (scan, least) in [("tls_1_2_cipher_suites", 3), ("tls_1_3_cipher_suites", 3)] {
            let suites = found(scan, "/accepted_cipher_suites");
            assert!(suites.as_array().is_some_and(|suites| suites.len() >= least), "{scan}: {suites}");
        }
        // It went through all that with a gateway that serves on.
        assert_eq!(house.serves(&house.certificates.anyone()).await, Ok(()));
        assert_eq!(house.gateway.metric("tidegate_panics_total").await, 0.0);
        let log = house.gateway.log();
        assert!(!log.contains("rustls::"), "no client makes the library say anything: {log}");
    }
}

mod without_tls {
    use super::*;

    #[tokio::test]
    async fn whoever_comes_without_tls_is_sent_to_the_same_address_with_it() {
        let house = House::start("").await;
        for (method, path) in [("GET", "/"), ("GET", "/healthz?a=b"), ("POST", "/ws")] {
            let host = &house.gateway.address;
            let answer = house.plain(&format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
            let head = answer.to_lowercase();
            assert!(head.contains(&format!("location: https://{host}{path}\r\n")), "{answer}");
            assert!(head.contains("connection: close\r\n") && !head.contains("strict-transport-security"), "{answer}");
        }
        for head in ["", "Host: a\r\nHost: b\r\n", "Host: ann@elsewhere.example\r\n", "Host: a/b\r\n"] {
            let answer = house.plain(&format!("GET / HTTP/1.1\r\n{head}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{head}: {answer}");
        }
        assert_eq!(house.handshakes("plain").await, 7.0);
    }

    #[tokio::test]
    async fn where_it_is_so_configured_whoever_comes_without_tls_is_refused() {
        let house = House::start("plain_http = \"refuse\"").await;
        for path in ["/", "/healthz", "/ws"] {
            let answer = house.plain(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("use https:// or wss://"), "{answer}");
            assert!(!answer.to_lowercase().contains("location:"), "{answer}");
        }
        let refusal = Browser::connect_with(&house.gateway.address, "/ws", &[]).await.err();
        assert_eq!(refusal.map(|(status, _)| status), Some(400));
        house.gateway.reload(&house.certificates.tls("")).await;
        eventually("it is in force", async || {
            house.plain("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.starts_with("HTTP/1.1 308 ")
        })
        .await;
    }
}

mod handshakes {
    use super::*;

    /// What begins a handshake and promises more than comes.
    const BEGUN: [u8; 5] = [0x16, 3, 1, 0, 200];

    #[tokio::test]
    async fn a_handshake_that_takes_too_long_is_cut_and_keeps_nobody_out() {
        let house = House::start("handshake_timeout = 1").await;
        let began = Instant::now();
        let mut slow = Vec::new();
        for begun in [&BEGUN[..], &[]] {
            for _ in 0..20 {
                let mut stream = TcpStream::connect(&house.gateway.address).await.expect("it listens");
                stream.write_all(begun).await.expect("written");
                slow.push(stream);
            }
        }
        assert_eq!(house.serves(&house.certificates.anyone()).await, Ok(()));
        assert!(began.elapsed() < Duration::from_secs(1), "others need not wait for them");
        for mut stream in slow {
            let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is cut");
        }
        assert!(began.elapsed() >= Duration::from_secs(1), "not before its time");
        assert_eq!(house.handshakes("timeout").await, 40.0);
        let refused = "tidegate_connections_refused_total{reason=\"handshake_timeout\"}";
        assert_eq!(house.gateway.metric(refused).await, 40.0);
        assert_eq!(house.gateway.metric("tidegate_connections_unauthenticated").await, 1.0, "the one that asks");
    }

    #[tokio::test]
    async fn a_handshake_may_come_byte_by_byte_within_its_time() {
        let house = House::start("").await;
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let (mut from_gateway, mut to_gateway) =
            TcpStream::connect(&house.gateway.address).await.map(tokio::io::split).expect("it listens");
        tokio::spawn(async move {
            while let Ok(byte) = from_client.read_u8().await {
                to_gateway.write_u8(byte).await.expect("written");
                to_gateway.flush().await.expect("written");
                tokio::task::yield_now().await;
            }
        });
        tokio::spawn(async move { tokio::io::copy(&mut from_gateway, &mut to_client).await });
        let stream = house.certificates.anyone().secure(near).await.expect("a handshake");
        let (status, ..) = house.gateway.request_over(stream, "127.0.0.1", "GET", "/healthz", "").await;
        assert_eq!(status, 200);
    }

    #[tokio::test]
    async fn of_too_many_that_do_not_come_to_their_handshake_the_oldest_goes() {
        let house = House::start("[connections]\nmax_unauthenticated = 3").await;
        let mut silent = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(&house.gateway.address).await.expect("it listens");
            stream.write_all(&BEGUN).await.expect("written");
            silent.push(stream);
            sleep(Duration::from_millis(50)).await;
        }
        let _ = timeout(PATIENCE, silent[0].read_to_end(&mut Vec::new())).await.expect("the oldest is let go");
        assert!(timeout(Duration::from_millis(200), silent[1].read_u8()).await.is_err(), "the next is not");
        assert_eq!(house.serves(&house.certificates.anyone()).await, Ok(()));
    }

    #[tokio::test]
    async fn a_gateway_that_stops_waits_for_no_handshake() {
        let mut house = House::start("handshake_timeout = 60").await;
        let mut stream = TcpStream::connect(&house.gateway.address).await.expect("it listens");
        stream.write_all(&BEGUN).await.expect("written");
        eventually("it is there", async || house.gateway.metric("tidegate_connections_unauthenticated").await >= 1.0)
            .await;
        let began = Instant::now();
        assert_eq!(house.gateway.stop().await.code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn whoever_only_looks_whether_the_port_is_open_is_no_failure() {
        let house = House::start("").await;
        for _ in 0..3 {
            drop(TcpStream::connect(&house.gateway.address).await.expect("it listens"));
        }
        assert_eq!(house.serves(&house.certificates.anyone()).await, Ok(()));
        assert_eq!((house.handshakes("failed").await, house.handshakes("ok").await), (0.0, 1.0));
    }
}

mod clients {
    use super::*;

    /// The client's lines of a `[tls]` section.
    fn settings(certificates: &Certificates, wanted: &str) -> String {
        format!("client_certificates = \"{wanted}\"\n{}", certificates.setting("client_ca_file", "ca.pem"))
    }

    async fn house(wanted: &str) -> House {
        let certificates = Certificates::new();
        let settings = settings(&certificates, wanted);
        House::start_with(certificates, &settings).await
    }

    #[tokio::test]
    async fn a_certificate_is_asked_for_as_configured() {
        let other = Certificates::new();
        for (wanted, without, with, with_anothers) in
            [("optional", None, None, Some("alert")), ("required", Some("CertificateRequired"), None, Some("alert"))]
        {
            let house = house(wanted).await;
            let own = &house.certificates;
            for (client, expected) in [
                (own.anyone(), without),
                (own.client("client"), with),
                (own.client_with(Some((&other, "client")), &[&TLS13]), with_anothers),
            ] {
                match (house.serves(&client).await, expected) {
                    (Ok(()), None) => {}
                    (Err(error), Some(expected)) if error.contains(expected) => {}
                    (served, _) => panic!("{wanted}: {served:?}, not {expected:?}"),
                }
            }
            for client in [own.client_with(Some((own, "client")), &[&TLS12]), own.client_with(None, &[&TLS12])] {
                assert!(wanted == "required" || house.serves(&client).await.is_ok(), "{wanted}");
            }
        }
        let house = House::start("").await;
        for client in
            [house.certificates.client("client"), house.certificates.client_with(Some((&other, "client")), &[&TLS13])]
        {
            assert_eq!(house.serves(&client).await, Ok(()), "nobody asks");
        }
    }

    #[tokio::test]
    async fn whoever_shows_a_certificate_shows_it_each_time() {
        let house = house("optional").await;
        for version in [&TLS12, &TLS13] {
            let own = &house.certificates;
            for client in [own.client_with(Some((own, "client")), &[version]), own.client_with(None, &[version])] {
                assert_eq!(house.resumes(&client).await, [false; 3], "{version:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_certificate_that_has_expired_is_refused_and_so_is_a_servers() {
        let house = house("optional").await;
        house.certificates.issue_client("old", 2, 2020);
        let refusal = house.serves(&house.certificates.client("old")).await.expect_err("it has expired");
        assert!(refusal.contains("CertificateExpired"), "{refusal}");
        let refusal = house.serves(&house.certificates.client("server")).await.expect_err("it is no client's");
        assert!(refusal.contains("alert"), "{refusal}");
        assert_eq!(house.handshakes("failed").await, 2.0);
        assert!(house.gateway.log().contains("certificate expired"), "{}", house.gateway.log());
    }

    #[tokio::test]
    async fn a_certificate_that_is_revoked_meanwhile_is_refused_from_then_on() {
        let certificates = Certificates::new();
        certificates.issue_client("ann", 11, 2100);
        certificates.issue_client("ben", 12, 2100);
        certificates.revoke(&[], 2100);
        let settings = settings(&certificates, "required") + &certificates.setting("crl_file", "crl.pem");
        let house = House::start_with(certificates, &settings).await;
        let (ann, ben) = (house.certificates.client("ann"), house.certificates.client("ben"));
        for client in [&ann, &ben] {
            assert_eq!(house.serves(client).await, Ok(()));
        }
        house.certificates.revoke(&[12], 2100);
        eventually("the list is in force", async || house.serves(&ben).await.is_err()).await;
        let refusal = house.serves(&ben).await.expect_err("it is revoked");
        assert!(refusal.contains("CertificateRevoked"), "{refusal}");
        assert_eq!(house.serves(&ann).await, Ok(()));
        // 2100-01-01.
        assert_eq!(house.gateway.metric("tidegate_tls_crl_next_update_timestamp_seconds").await, 4_102_444_800.0);

        house.certificates.revoke(&[], 2021);
        house.gateway.signal("HUP").await;
        eventually("nobody knows what is revoked any more", async || house.serves(&ann).await.is_err()).await;
        house.certificates.revoke(&[], 2100);
        house.gateway.signal("HUP").await;
        eventually("all is well again", async || house.serves(&ben).await.is_ok()).await;
    }
}

mod reload {
    use super::*;

    #[tokio::test]
    async fn a_new_certificate_is_shown_to_new_connections_and_open_sessions_live_on() {
        let house = House::start("").await;
        let mut browser = house.gateway.browser().await;
        browser.subscribe("attic/#").await;
        for round in 1..=2 {
            house.certificates.issue_server("server");
            let new = house.certificates.der("server");
            assert_ne!(house.shows().await, new, "not before it is read");
            // Once they are found to have changed, once it is said.
            if round == 2 {
                house.gateway.signal("HUP").await;
            }
            eventually("it is shown", async || house.shows().await == new).await;
            assert_eq!(house.reloads("applied").await, round as f64);
            lives(&mut browser, &"still here ".repeat(round)).await;
        }
        assert_eq!(house.gateway.metric("tidegate_sessions_open").await, 1.0);
        assert!(house.gateway.log().contains("the TLS files were read again"));
    }

    #[tokio::test]
    async fn broken_files_change_nothing_and_are_told_once() {
        let house = House::start("").await;
        let old = house.shows().await;
        house.certificates.write("server.pem", "broken");
        eventually("it is told", async || house.reloads("refused").await == 1.0).await;
        assert_eq!(house.shows().await, old);
        house.gateway.signal("HUP").await;
        eventually("it is told again to who asks again", async || house.reloads("refused").await == 2.0).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(house.reloads("refused").await, 2.0);
        let log = house.gateway.log();
        assert!(log.contains("the old ones stay in force") && log.contains("tls.certificate_file"), "{log}");
        assert!(!log.contains("PRIVATE KEY"), "{log}");
        assert_eq!(house.shows().await, old);
        house.certificates.issue_server("server");
        let new = house.certificates.der("server");
        eventually("the next is taken", async || house.shows().await == new).await;
    }

    #[tokio::test]
    async fn other_files_can_be_named_and_what_cannot_be_used_stays_wanted() {
        let house = House::start("").await;
        let (old, certificates) = (house.shows().await, &house.certificates);
        certificates.issue_server("other");
        let other = |key: &str| {
            let (certificate, key) =
                (certificates.setting("certificate_file", "other.pem"), certificates.setting("key_file", key));
            format!("[tls]\n{certificate}{key}")
        };
        house.gateway.reload(&other("server.key")).await;
        eventually("it is refused", async || house.reloads("refused").await == 1.0).await;
        let log = house.gateway.log();
        assert!(log.contains("don't fit together") && !log.contains("in force, for sessions"), "{log}");
        assert_eq!(house.shows().await, old);
        house.gateway.reload(&other("other.key")).await;
        eventually("it is taken", async || house.reloads("applied").await == 1.0).await;
        assert_eq!(house.shows().await, certificates.der("other"));
        assert!(house.gateway.log().contains("tls.certificate_file"), "{}", house.gateway.log());
        // These are the ones that are looked after now.
        certificates.issue_server("other");
        let new = certificates.der("other");
        eventually("it is shown", async || house.shows().await == new).await;

        house.gateway.reload("").await;
        eventually("it was read", async || house.gateway.log().contains("needs a restart")).await;
        assert_eq!(house.shows().await, new, "TLS is not turned off while it runs");
    }

    #[tokio::test]
    async fn the_end_of_the_certificate_is_a_metric_and_a_warning_when_it_is_near() {
        let house = House::start("").await;
        let der = house.certificates.der("server");
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
        let not_after = certificate.validity().not_after.timestamp();
        let told = house.gateway.metric("tidegate_tls_certificate_not_after_timestamp_seconds").await;
        assert_eq!(told, not_after as f64);
        let expired = Certificates::new();
        expired.issue_client("server", 1, 2020);
        let house = House::start_with(expired, "").await;
        let told = house.gateway.metric("tidegate_tls_certificate_not_after_timestamp_seconds").await;
        // 2020-01-01.
        assert_eq!(told, 1_577_836_800.0);
        let log = house.gateway.log();
        assert!(log.contains("WARN") && log.contains("expires soon or has expired"), "{log}");
    }
}

mod slow {
    use super::*;

    const DROPPED: &str = "tidegate_deliveries_dropped_total";

    /// A browser that subscribes and then reads only what it is made to read.
    async fn subscriber(house: &House) -> Raw<tokio_rustls::client::TlsStream<TcpStream>> {
        let address = &house.gateway.address;
        let stream = house.certificates.anyone().secure(narrow(address).await).await.expect("a handshake");
        let mut raw = Raw::over(stream, address).await;
        raw.text(r#"{"type":"subscribe","topic":"flood"}"#).await;
        assert_eq!((&raw.next().await["type"], &raw.next().await["type"]), (&json!("welcome"), &json!("subscribed")));
        raw
    }

    async fn flood(source: &mut Browser, number: usize) {
        let payload = format!("{number} {}", "x".repeat(100_000));
        source.send(json!({"type": "publish", "topic": "flood", "payload": payload, "msgid": number})).await;
        source.expect("ack").await;
    }

    #[tokio::test]
    async fn a_browser_that_reads_nothing_is_told_how_much_was_dropped() {
        let house = House::start("[delivery]\nmax_queued = 10").await;
        let (mut slow, mut source) = (subscriber(&house).await, house.gateway.browser().await);
        let mut sent = 0;
        while house.gateway.metric(DROPPED).await == 0.0 {
            flood(&mut source, sent).await;
            sent += 1;
            assert!(sent < 1000, "it reads nothing");
        }
        let (mut read, mut dropped) = (0, 0);
        while read + dropped < sent {
            let frame = slow.next().await;
            match frame["type"].as_str() {
                Some("mqtt") => read += 1,
                Some("error") if frame["code"] == "dropped" => {
                    dropped += frame["count"].as_u64().expect("a number") as usize
                }
                _ => panic!("{frame}"),
            }
        }
        assert!(read > 0 && dropped > 0, "{read} read, {dropped} dropped");
        eventually("nothing waits", async || house.gateway.metric("tidegate_outbox_bytes").await == 0.0).await;
    }

    #[tokio::test]
    async fn where_it_is_so_configured_a_browser_that_reads_nothing_is_closed() {
        let house = House::start("[delivery]\nmax_queued = 10\noverflow = \"close\"").await;
        let (_slow, mut source) = (subscriber(&house).await, house.gateway.browser().await);
        let closed = "tidegate_sessions_closed_total{code=\"4008\"}";
        let mut sent = 0;
        while house.gateway.metric(closed).await == 0.0 {
            flood(&mut source, sent).await;
            sent += 1;
            assert!(sent < 1000, "it reads nothing");
        }
        assert_eq!(house.gateway.metric(DROPPED).await, 0.0);
    }

    #[tokio::test]
    async fn a_browser_that_takes_nothing_at_all_is_given_up() {
        let house = House::start("[session]\nwrite_timeout = 1").await;
        let (_slow, mut source) = (subscriber(&house).await, house.gateway.browser().await);
        let mut sent = 0;
        while house.gateway.metric("tidegate_sessions_open").await == 2.0 {
            flood(&mut source, sent).await;
            sent += 1;
            assert!(sent < 1000, "it reads nothing");
        }
    }

    #[tokio::test]
    async fn a_page_that_nobody_reads_ends_the_connection() {
        let house = House::start("[session]\nwrite_timeout = 1").await;
        let address = &house.gateway.address;
        let mut stream = house.certificates.anyone().secure(narrow(address).await).await.expect("a handshake");
        let asking = "GET /console.js HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
        // It reads none of the answers, and is not read any further itself.
        let _ = timeout(Duration::from_secs(1), stream.write_all(asking.as_bytes())).await;
        let refused = "tidegate_connections_refused_total{reason=\"write_timeout\"}";
        eventually("it is given up", async || house.gateway.metric(refused).await == 1.0).await;
    }
}
