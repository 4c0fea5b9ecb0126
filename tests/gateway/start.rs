//! The program from its command line to its end.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{Gateway, Mosquitto, PATIENCE, eventually};

/// Nothing listens there, and no test here needs anything that would.
const NO_BROKER: &str = "mqtt://127.0.0.1:1";

#[tokio::test]
async fn the_version_and_the_help_are_told() {
    assert_eq!(told(&["--version"]).await, format!("tidegate {}\n", env!("CARGO_PKG_VERSION")));
    let help = told(&["--help"]).await;
    for word in ["--config", "--listen", "--admin-listen", "--broker", "check-config", "default-config", "TIDEGATE_"] {
        assert!(help.contains(word), "{word} in\n{help}");
    }
}

#[tokio::test]
async fn the_default_configuration_is_the_one_without_a_file() {
    let file = File::holding(&told(&["default-config"]).await);
    assert_eq!(told(&["check-config", "--config", file.path()]).await, told(&["check-config"]).await);
}

#[tokio::test]
async fn the_shipped_configuration_is_sound() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/tidegate.toml");
    assert!(told(&["check-config", "--config", shipped]).await.contains("mqtt://mosquitto"));
}

#[tokio::test]
async fn flags_go_before_the_environment_before_the_file_before_the_defaults() {
    let file = File::holding("[http]\nlisten = \"127.0.0.1:1\"\n[session]\nheartbeat = 1");
    let variables = [("TIDEGATE_HTTP__LISTEN", "127.0.0.1:2"), ("TIDEGATE_SESSION__WRITE_TIMEOUT", "2")];
    let flags = ["--listen", "127.0.0.1:3"];
    let (none, check) = ([].as_slice(), ["check-config"].as_slice());
    let from_file = ["check-config", "--config", file.path()];
    for (arguments, variables, listen) in [
        (check.to_vec(), none, "127.0.0.1:8080"),
        (from_file.to_vec(), none, "127.0.0.1:1"),
        (from_file.to_vec(), &variables, "127.0.0.1:2"),
        ([&from_file[..], &flags].concat(), &variables, "127.0.0.1:3"),
    ] {
        let output = tidegate(&arguments, variables).await;
        let config: toml::Table = text(&output.stdout).trim_end_matches("\nok\n").parse().expect("TOML");
        assert_eq!(config["http"]["listen"].as_str(), Some(listen), "{arguments:?} {variables:?}");
        let heartbeat = if arguments.contains(&"--config") { 1 } else { 25 };
        assert_eq!(config["session"]["heartbeat"].as_integer(), Some(heartbeat), "{arguments:?}");
        let write_timeout = if variables.is_empty() { 30 } else { 2 };
        assert_eq!(config["session"]["write_timeout"].as_integer(), Some(write_timeout), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_status_2_before_a_port_is_bound() {
    // Whoever bound the port first would complain of that, with status 1.
    let (_taken, address) = taken_port();
    for (settings, place, advice) in [
        ("[broker]\nhots = 1", "line 2, column 1", "expected one of `url`"),
        ("[session]\nheartbeat = \"soon\"", "line 2, column 13", "a number of seconds"),
        ("[broker]\nurl = \"http://mosquitto\"", "line 2, column 7", "mqtt://HOST"),
        ("[broker", "line 1, column 8", "expected"),
    ] {
        let file = File::holding(settings);
        let output = tidegate(&["--listen", &address, "--config", file.path()], &[]).await;
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{settings}: {complaint}");
        for word in ["tidegate: ", file.path(), place, advice] {
            assert!(complaint.contains(word), "{settings}: {word} in\n{complaint}");
        }
        assert_eq!(text(&output.stdout), "");
    }
}

#[tokio::test]
async fn a_wrong_flag_or_variable_ends_with_status_2_and_is_named() {
    for (arguments, variables, name) in [
        (["--listen", "attic"].as_slice(), [].as_slice(), "--listen"),
        (&["--broker", "ws://mosquitto"], &[], "--broker"),
        (&["--config", "/nowhere/tidegate.toml"], &[], "/nowhere/tidegate.toml"),
        (&["--brokr", "mqtt://mosquitto"], &[], "--broker"),
        (&[], &[("TIDEGATE_BROKER__HOTS", "1")], "TIDEGATE_BROKER__HOTS"),
        (&[], &[("TIDEGATE_SESSION__HEARTBEAT", "soon")], "TIDEGATE_SESSION__HEARTBEAT"),
    ] {
        let output = tidegate(arguments, variables).await;
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {complaint}");
        assert!(complaint.contains(name), "{name} in\n{complaint}");
    }
}

#[tokio::test]
async fn a_secret_file_that_is_missing_is_told_with_its_setting() {
    let file = File::holding("[broker]\nurl = \"mqtt://mosquitto\"\nusername = \"ann\"\npassword_file = \"absent\"");
    let output = tidegate(&["--config", file.path()], &[]).await;
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("broker.password_file") && complaint.contains("absent"), "{complaint}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_with_its_setting() {
    let (_taken, address) = taken_port();
    for (setting, flag, other) in
        [("http.listen", "--listen", "--admin-listen"), ("http.admin_listen", "--admin-listen", "--listen")]
    {
        let output = tidegate(&[flag, &address, other, "127.0.0.1:0", "--broker", NO_BROKER], &[]).await;
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        for word in [setting, &address, "choose another"] {
            assert!(complaint.contains(word), "{word} in\n{complaint}");
        }
    }
}

#[cfg(feature = "embedded-broker")]
#[tokio::test]
async fn an_embedded_broker_with_an_address_of_its_own_takes_no_other() {
    let (_taken, address) = taken_port();
    let url = format!("embedded://{address}");
    let output = tidegate(&["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--broker", &url], &[]).await;
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("embedded broker") && complaint.contains(&address), "{complaint}");
}

#[tokio::test]
async fn the_start_up_lines_lead_to_what_they_name() {
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::before(&mosquitto).await;
    assert_eq!(gateway.broker, mosquitto.url());
    let (status, page) = gateway.get(&gateway.address, "/").await;
    assert!(status == 200 && page.contains("<html"), "{status} {page}");
    let (status, page) = gateway.get(&gateway.admin, "/metrics").await;
    assert!(status == 200 && page.contains("tidegate_build_info{"), "{status} {page}");
    gateway.browser().await.leave().await;
}

#[tokio::test]
async fn a_broker_that_is_away_keeps_the_gateway_unready_and_no_more() {
    let gateway = Gateway::start_unready(NO_BROKER, "").await;
    assert_eq!(gateway.get(&gateway.address, "/healthz").await.0, 200);
    for address in [&gateway.address, &gateway.admin] {
        assert_eq!(gateway.get(address, "/readyz").await.0, 503);
    }
}

#[tokio::test]
async fn a_gateway_that_is_told_to_stop_says_bye_and_ends_with_status_0() {
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::before(&mosquitto).await;
    let mut browser = gateway.browser().await;
    gateway.terminate().await;
    browser.expect("bye").await;
    assert_eq!(browser.closed().await, 1001);
    drop(browser);
    assert_eq!(gateway.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_gateway_at_once() {
    let mut gateway = Gateway::start_unready(NO_BROKER, "[shutdown]\ndeadline = 3600").await;
    let mut slow = TcpStream::connect(&gateway.address).await.expect("it listens");
    slow.write_all(b"GET / HTTP/1.1\r\n").await.expect("written");
    // Answered after the half request was accepted, so that one is being waited for.
    gateway.get(&gateway.address, "/healthz").await;
    gateway.terminate().await;
    eventually("new connections are refused", async || TcpStream::connect(&gateway.address).await.is_err()).await;
    gateway.terminate().await;
    assert_eq!(gateway.end().await.code(), Some(1));
}

#[tokio::test]
async fn a_hash_is_printed_as_the_configuration_takes_it() {
    let hash = async |of: &str, input: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["hash", of]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = command.kill_on_drop(true).spawn().expect("the program was built");
        let mut stdin = program.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).await.expect("written");
        drop(stdin);
        let output = timeout(PATIENCE, program.wait_with_output()).await.expect("it ends").expect("an output");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // `printf a-token-made-by-chance | sha256sum`
    let token = "sha256:e5b1d4d8185f36cc183bca68ca6b7fb63ed931631a25f9d39c65fa99e29734dc\n";
    for input in ["a-token-made-by-chance", "a-token-made-by-chance\n", "a-token-made-by-chance\r\n"] {
        assert_eq!(hash("token", input).await, (Some(0), token.to_owned(), String::new()));
    }
    let (status, printed, _) = hash("password", "correct horse\n").await;
    assert!(status == Some(0) && printed.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{printed}");
    let longest = "t".repeat(64 << 10);
    assert_eq!(hash("token", &longest).await.0, Some(0));
    for (of, input, excerpt) in [
        ("token", "hunter2", "can be guessed"),
        ("token", &format!("{longest}t"), "more than 65536 bytes"),
        ("password", "\n", "the password is empty"),
    ] {
        let (status, printed, told) = hash(of, input).await;
        assert_eq!((status, printed.as_str()), (Some(1), ""), "{of}");
        assert!(told.contains(excerpt) && !told.contains("hunter"), "{told}");
    }
}

/// What the program prints when all is well.
async fn told(arguments: &[&str]) -> String {
    let output = tidegate(arguments, &[]).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The program with these arguments and no environment but these variables, until it ends by itself.
async fn tidegate(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).kill_on_drop(true);
    timeout(PATIENCE, command.output()).await.expect("it ends").expect("the program was built")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A loopback address that is taken as long as the listener is there.
fn taken_port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

/// A configuration file.
struct File {
    path: PathBuf,
    _folder: TempDir,
}

impl File {
    fn holding(settings: &str) -> File {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("tidegate.toml");
        std::fs::write(&path, settings).expect("written");
        File { path, _folder: folder }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }
}
