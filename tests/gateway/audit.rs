//! The audit log of the real program, and what finds out whether somebody touched it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{Browser, Gateway, Mosquitto, eventually};

/// Nothing listens there, and not all tests here need anything that would.
const NO_BROKER: &str = "mqtt://127.0.0.1:1";
const APPLIED: &str = r#"tidegate_configuration_reloads_total{result="applied"}"#;
const WRITE_ERRORS: &str = "tidegate_audit_write_errors_total";
const DROPPED: &str = "tidegate_audit_dropped_total";

/// Where a log is that outlives its gateways.
struct Archive(TempDir);

impl Archive {
    fn new() -> Archive {
        Archive(TempDir::new().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("audit.jsonl")
    }

    /// The settings that lead there, and more.
    fn settings(&self, more: &str) -> String {
        format!("[audit]\nlog = \"{}\"\n{more}", self.path().display())
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).expect("readable")
    }

    fn events(&self) -> Vec<Value> {
        events(&self.path())
    }
}

/// What the lines of a log say.
fn events(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("readable");
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The status and the words of `tidegate audit verify`.
async fn verify(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.args(["audit", "verify"]).args(arguments).output().await.expect("it was built");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
    (output.status.code().expect("it ends by itself"), text)
}

async fn verify_file(path: &Path) -> (i32, String) {
    verify(&[path.to_str().expect("Unicode")]).await
}

#[tokio::test]
async fn a_start_a_reload_and_a_stop_are_lines_of_a_log_that_verifies() {
    let mut gateway = Gateway::start_unready(NO_BROKER, "[audit]\nlog = \"audit.jsonl\"").await;
    let folder = gateway.file().parent().expect("a folder").to_owned();
    gateway
        .reload("[audit]\nlog = \"audit.jsonl\"\n[broker]\npassword = \"hunter-31415\"\n[wire]\nmax_frame = 2000000")
        .await;
    eventually("it was read", async || gateway.metric(APPLIED).await == 1.0).await;
    gateway.reload("[wire]\nmax_frame = \"much\"").await;
    let path = folder.join("audit.jsonl");
    // What is written is counted a moment later.
    let is_counted = async || gateway.metric("tidegate_audit_queued").await == 0.0;
    eventually("it is recorded", async || events(&path).len() == 4 && is_counted().await).await;
    assert_eq!(gateway.metric(r#"tidegate_audit_events_total{event="configuration_changed"}"#).await, 2.0);
    assert_eq!(gateway.stop().await.code(), Some(0));

    let said: Vec<_> = events(&path)
        .iter()
        .map(|line| {
            let fields =
                ["event", "by", "setting", "from", "to", "needs_restart", "version"].map(|name| match &line[name] {
                    Value::Null => String::new(),
                    value => value.to_string().replace(['"', '\\'], ""),
                });
            fields.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
        })
        .collect();
    assert_eq!(
        said,
        [
            &format!("started {}", env!("CARGO_PKG_VERSION")),
            "configuration_changed SIGHUP broker.password *** true",
            "configuration_changed SIGHUP wire.max_frame 1048576 2000000 false",
            "configuration_refused SIGHUP",
            "stopped",
        ]
    );
    let text = fs::read_to_string(&path).expect("readable");
    assert!(!text.contains("hunter"), "{text}");
    assert!(events(&path)[3]["why"].as_str().is_some_and(|why| why.contains("wire.max_frame")), "{text}");

    let (status, told) = verify_file(&path).await;
    assert!(status == 0 && told.starts_with("ok: lines 5, seq 1 to 5, last hash "), "{status}: {told}");
    let hash = told.trim().rsplit(' ').next().expect("a hash");
    // The log of the process tells it too: with that in another place, nobody can cut the end off unseen.
    assert!(gateway.log().contains(hash), "{hash}");
    let noted = |path: &Path| verify_noted(path.to_owned(), hash.to_owned());
    assert_eq!(noted(&path).await, (0, told.clone()));

    for (name, tampered, said) in [
        ("changed", text.replace("2000000", "2000001"), "line 3: changed"),
        ("missing", without_line(&text, 2), "line 3: a line is missing before it: seq 3"),
        ("cut", without_line(&text, 4), "no line has the hash"),
        ("torn", text[..text.len() - 20].to_owned(), "line 5: cut off"),
    ] {
        let path = folder.join(name);
        fs::write(&path, tampered).expect("written");
        let (status, told) = noted(&path).await;
        assert!(status == 1 && told.contains(said) && told.contains(" fault"), "{name}: {status}: {told}");
    }
    let (status, told) = verify(&["/none/audit.jsonl"]).await;
    assert!(status == 2 && told.contains("/none/audit.jsonl"), "{status}: {told}");
}

async fn verify_noted(path: PathBuf, hash: String) -> (i32, String) {
    verify(&["--expect-hash", &hash, path.to_str().expect("Unicode")]).await
}

fn without_line(text: &str, index: usize) -> String {
    text.lines().enumerate().filter(|(other, _)| *other != index).map(|(_, line)| format!("{line}\n")).collect()
}

/// The script that the documentation gives, so that nobody has to believe the gateway about its own log.
#[tokio::test]
async fn the_script_in_the_documentation_verifies_a_log_and_finds_what_was_touched() {
    let archive = Archive::new();
    let mut gateway = Gateway::start_unready(NO_BROKER, &archive.settings("")).await;
    gateway
        .reload(&archive.settings("[wire]\nmax_frame = 2000000\nmax_payload = 1000\n[session]\nheartbeat = 7"))
        .await;
    eventually("it is recorded", async || archive.events().len() == 4).await;
    assert!(gateway.stop().await.success());
    let documentation = include_str!("../../src/audit.rs").lines().map(|line| line.trim_start_matches("//! "));
    let script: Vec<_> =
        documentation.skip_while(|line| *line != "```python").skip(1).take_while(|line| *line != "```").collect();
    let script = script.join("\n");
    assert!(script.contains("sha256"), "{script}");
    let text = archive.text();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let halves = [lines[..2].concat(), lines[2..].concat()];
    for (files, said) in [
        (vec![&text], None),
        (halves.iter().collect(), None),
        (vec![&text.replace("2000000", "2000001")], Some("changed")),
        (vec![&without_line(&text, 2)], Some("missing or moved")),
        (halves.iter().rev().collect(), Some("missing or moved")),
    ] {
        let paths: Vec<PathBuf> = (0..files.len()).map(|number| archive.0.path().join(number.to_string())).collect();
        for (path, text) in paths.iter().zip(files) {
            fs::write(path, text).expect("written");
        }
        let output =
            Command::new("python3").args(["-c", &script]).args(&paths).output().await.expect("Python is there");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), said.is_none(), "{said:?}: {told}");
        assert!(said.is_none_or(|said| told.contains(said)), "{said:?}: {told}");
    }
}

#[tokio::test]
async fn a_gateway_that_was_killed_goes_on_with_its_chain_and_tells_what_was_torn() {
    let archive = Archive::new();
    let settings = archive.settings("max_size = 65536\n");
    for round in 1..=3 {
        let mut gateway = Gateway::start_unready(NO_BROKER, &settings).await;
        // Killed while it writes: nobody waits for the lines of the last configurations.
        for frame in 0..10 {
            let seen = archive.events().len();
            gateway.reload(&format!("{settings}[wire]\nmax_frame = {}", 2_000_000 + frame)).await;
            if frame < 8 {
                eventually("it is recorded", async || archive.events().len() > seen).await;
            }
        }
        gateway.kill().await;
        let (status, told) = verify_file(&archive.path()).await;
        assert!(status == 0 || told.contains("cut off"), "round {round}: {told}");
    }
    let torn = "{\"seq\":1000,\"time\":\"20";
    fs::write(archive.path(), archive.text() + torn).expect("written");
    let (status, told) = verify_file(&archive.path()).await;
    assert!(status == 1 && told.contains("cut off"), "{status}: {told}");

    let mut gateway = Gateway::start_unready(NO_BROKER, &settings).await;
    assert!(gateway.stop().await.success());
    assert!(gateway.log().contains("was cut off"));
    let last: Vec<_> = archive.events().iter().rev().take(3).map(|line| line["event"].clone()).collect();
    assert_eq!(last, ["stopped", "started", "recovered"]);
    let (status, told) = verify_file(&archive.path()).await;
    assert!(status == 0 && told.contains("torn: ") && told.contains("ok: "), "{status}: {told}");
    fs::write(archive.path(), archive.text().replace(torn, "{\"seq\":1001,\"time\":\"20")).expect("written");
    let (status, told) = verify_file(&archive.path()).await;
    assert!(status == 1 && told.contains("no line of an audit log"), "{status}: {told}");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_keeps_the_gateway_from_starting_and_is_named() {
    let archive = Archive::new();
    let _gateway = Gateway::start_unready(NO_BROKER, &archive.settings("")).await;
    let foreign = archive.0.path().join("notes");
    fs::write(&foreign, "my notes\n").expect("written");
    for (path, said) in [
        (archive.path(), "another process writes to"),
        (foreign.clone(), "holds something else than an audit log"),
        (archive.0.path().join("none/audit.jsonl"), "No such file"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--broker", NO_BROKER]);
        let output = command.env("TIDEGATE_AUDIT__LOG", &path).kill_on_drop(true).output().await.expect("it was built");
        let complaint = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains("tidegate: audit.log: ") && complaint.contains(said), "{complaint}");
    }
    assert_eq!(fs::read_to_string(foreign).expect("readable"), "my notes\n");
}

/// No file of the process may be larger than this: as good as a full disk, but for the number of the error.
const DISK: usize = 8192;

/// A gateway on a disk that is soon full. Its own log is on it too, so it says little.
async fn start_on_a_small_disk(mosquitto: &Mosquitto, settings: &str) -> Gateway {
    let commands = format!("trap '' XFSZ; ulimit -S -f {}", DISK / 512);
    Gateway::start_after(&commands, &mosquitto.url(), settings).await
}

/// Records some lines: so many settings change with each turn.
async fn change_settings(gateway: &Gateway, settings: &str, turn: usize) {
    let applied = gateway.metric(APPLIED).await;
    let number = 100 + turn;
    let changes = format!(
        "{settings}[session]\nheartbeat = {number}\nmax_subscriptions = {number}\nwrite_timeout = {number}\nmax_inflight = {number}\n\
         [delivery]\nmax_queued = {number}\nmax_topics = {number}\n[connections]\nmax_queued = {number}\nqueue_timeout = {number}\n"
    );
    gateway.reload(&changes).await;
    eventually("it was read", async || gateway.metric(APPLIED).await == applied + 1.0).await;
}

async fn fill_disk(gateway: &Gateway, settings: &str) {
    for turn in 0.. {
        change_settings(gateway, settings, turn).await;
        if gateway.metric(WRITE_ERRORS).await > 0.0 {
            break;
        }
        assert!(turn < 50, "the disk is never full");
    }
}

async fn free_disk(gateway: &Gateway) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &gateway.id().to_string(), "--fsize=unlimited:unlimited"]);
    assert!(command.status().await.expect("util-linux is there").success());
}

#[tokio::test]
async fn a_full_disk_holds_nobody_up_and_what_was_dropped_is_told_when_there_is_room() {
    let (archive, mosquitto) = (Archive::new(), Mosquitto::start().await);
    let settings = archive.settings("queue = 20\n[log]\nlevel = \"error\"\n");
    let mut gateway = start_on_a_small_disk(&mosquitto, &settings).await;
    let (mut reader, mut writer) = (gateway.browser().await, gateway.browser().await);
    reader.subscribe("attic/#").await;
    fill_disk(&gateway, &settings).await;
    for turn in 50..60 {
        change_settings(&gateway, &settings, turn).await;
        there_and_back(&mut writer, &mut reader, turn).await;
    }
    assert!(gateway.metric(DROPPED).await > 0.0);
    assert_eq!(gateway.metric("tidegate_audit_queued").await.min(20.0), 20.0);
    // New ones come in too, and no half line is left in the file while it can't be written.
    gateway.browser().await.leave().await;
    let (status, told) = verify_file(&archive.path()).await;
    assert!(status == 0 && fs::metadata(archive.path()).expect("there").len() <= DISK as u64, "{told}");

    free_disk(&gateway).await;
    eventually("all is written", async || gateway.metric("tidegate_audit_queued").await == 0.0).await;
    let missing = |archive: &Archive| {
        let events = archive.events();
        let counts = events.iter().filter(|line| line["event"] == "dropped").filter_map(|line| line["count"].as_f64());
        counts.sum::<f64>()
    };
    let dropped = gateway.metric(DROPPED).await;
    assert_eq!(missing(&archive), dropped);
    assert!(gateway.stop().await.success());
    let (status, told) = verify_file(&archive.path()).await;
    assert!(status == 0 && told.contains("dropped"), "{status}: {told}");
    assert_eq!(archive.events().last().expect("a line")["event"], "stopped");
}

/// A message comes as fast as ever.
async fn there_and_back(writer: &mut Browser, reader: &mut Browser, turn: usize) {
    let start = Instant::now();
    writer.publish("attic/temp", &turn.to_string(), 1).await;
    assert_eq!(reader.next_delivery().await, ("attic/temp".to_owned(), turn.to_string()));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn whoever_wants_nobody_unrecorded_has_new_sessions_turned_away_while_the_disk_is_full() {
    let (archive, mosquitto) = (Archive::new(), Mosquitto::start().await);
    let settings = archive.settings("when_full = \"refuse\"\n[log]\nlevel = \"error\"\n");
    let gateway = start_on_a_small_disk(&mosquitto, &settings).await;
    let mut old = gateway.browser().await;
    fill_disk(&gateway, &settings).await;
    let refused = Browser::connect_with(&gateway.address, "/ws", &[]).await.err().expect("turned away");
    assert!(refused.0 == 503 && refused.1.contains("audit.when_full"), "{refused:?}");
    assert_eq!(gateway.metric(r#"tidegate_connections_refused_total{reason="when_full"}"#).await, 1.0);
    assert_eq!(old.ask(json!({"type": "subscribe", "topics": ["a"]})).await["type"], "subscribed");
    free_disk(&gateway).await;
    eventually("newcomers are let in again", async || {
        Browser::connect_with(&gateway.address, "/ws", &[]).await.is_ok()
    })
    .await;
}
