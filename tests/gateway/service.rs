//! As a service of systemd: what the manager is told, and the unit that is shipped.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{Gateway, Mosquitto, PATIENCE, eventually};

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let folder = TempDir::new().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("bound");
        Manager { socket, folder }
    }

    /// A gateway that it has started, with a watchdog if this many microseconds are given.
    async fn starts(&self, broker: &str, watchdog: &str) -> Gateway {
        let socket = self.folder.path().join("notify");
        let socket = socket.to_str().expect("UTF-8");
        let variables = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", watchdog)];
        Gateway::start_unready_with(broker, "", &variables).await
    }

    /// What it is told next, signs of life aside.
    async fn is_told(&self) -> String {
        loop {
            let said = timeout(PATIENCE, self.hears()).await.expect("in time");
            if said != "WATCHDOG=1\n" {
                return said;
            }
        }
    }

    async fn hears(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).await.expect("a datagram");
        String::from_utf8(buffer[..length].to_vec()).expect("UTF-8")
    }
}

#[tokio::test]
async fn a_service_manager_is_told_when_the_gateway_is_ready_reloads_and_stops() {
    let mosquitto = Mosquitto::start().await;
    let manager = Manager::new();
    let mut gateway = manager.starts(&mosquitto.url(), "").await;
    let said = manager.is_told().await;
    assert!(said.starts_with("READY=1\nSTATUS=Serving browsers on ") && said.contains("is reached"), "{said}");
    assert_eq!(gateway.get(&gateway.address, "/readyz").await.0, 200);
    for settings in ["[log]\nlevel = \"debug\"", "broken"] {
        gateway.reload(settings).await;
        let said = manager.is_told().await;
        let since = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&said).trim();
        assert!(since.parse::<u64>().is_ok_and(|since| since > 0), "{said}");
        assert!(manager.is_told().await.starts_with("READY=1\n"), "{settings}");
    }
    gateway.terminate().await;
    assert!(manager.is_told().await.starts_with("STOPPING=1\nSTATUS=Draining"));
    assert_eq!(gateway.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_broker_that_is_away_keeps_a_service_from_being_ready_for_a_moment_only() {
    let manager = Manager::new();
    let _gateway = manager.starts("mqtt://127.0.0.1:1", "").await;
    let said = manager.is_told().await;
    assert!(said.starts_with("READY=1\n") && said.contains("cannot be reached"), "{said}");
}

#[tokio::test]
async fn signs_of_life_come_while_the_gateway_runs_and_stop_when_it_does() {
    let mosquitto = Mosquitto::start().await;
    let manager = Manager::new();
    let gateway = manager.starts(&mosquitto.url(), "200000").await;
    let sign_of_life = async || while manager.hears().await != "WATCHDOG=1\n" {};
    for _ in 0..5 {
        timeout(PATIENCE, sign_of_life()).await.expect("it comes");
    }
    gateway.signal("STOP").await;
    let is_stopped = async || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).expect("it is there");
        status.lines().any(|line| line.starts_with("State:\tT"))
    };
    eventually("it is stopped", is_stopped).await;
    // What was sent before.
    let mut buffer = [0; 4096];
    while manager.socket.try_recv(&mut buffer).is_ok() {}
    assert!(timeout(Duration::from_secs(1), manager.hears()).await.is_err(), "five signs would have come");
    gateway.signal("CONT").await;
    timeout(PATIENCE, sign_of_life()).await.expect("it comes again");
}

#[tokio::test]
async fn the_shipped_unit_is_sound_and_names_what_the_program_takes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/tidegate.service");
    let unit = std::fs::read_to_string(&path).expect("readable");
    let values = |key: &str| -> Vec<String> {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(&format!("{key}=")));
        lines.map(str::to_owned).collect()
    };
    // The command line, with a program and a file that are here.
    let program = env!("CARGO_BIN_EXE_tidegate");
    let [start] = &values("ExecStart")[..] else { panic!("one command") };
    let mut words = start.split(' ');
    assert_eq!(words.next(), Some("/usr/local/bin/tidegate"));
    let defaults = Command::new(program).arg("default-config").output().await.expect("it was built").stdout;
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, defaults).expect("written");
    let arguments = words.map(|word| word.replace("/etc/tidegate/tidegate.toml", file.to_str().expect("UTF-8")));
    let check = Command::new(program).args(arguments).arg("check-config").env_clear().output().await;
    assert!(check.expect("it was built").status.success(), "{start}");
    // The time to stop is longer than a drain by default, and the manager hears from this process alone.
    let seconds = |key: &str| values(key)[0].parse::<f64>().expect("seconds");
    assert!(seconds("TimeoutStopSec") > 2.0 * tidegate::shutdown::Config::default().deadline.as_secs_f64());
    assert!(seconds("WatchdogSec") > 1.0);
    assert_eq!(values("Type"), ["notify", "notify-reload"]);
    // And systemd's own opinion, where there is one.
    let copy = folder.path().join("tidegate.service");
    std::fs::write(&copy, unit.replace("/usr/local/bin/tidegate", program)).expect("written");
    if let Ok(verify) = Command::new("systemd-analyze").arg("verify").arg(&copy).output().await {
        let said = String::from_utf8_lossy(&verify.stderr).into_owned();
        let complaints: Vec<_> =
            said.lines().filter(|line| line.contains("tidegate.service") && !line.contains("notify-reload")).collect();
        assert!(complaints.is_empty(), "{said}");
    }
}
