//! Debian's Mosquitto with the configuration that docker-compose uses, on a free port and a folder of its own.

use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{eventually, free_port};

pub struct Mosquitto {
    pub port: u16,
    child: Child,
    configuration: PathBuf,
    _folder: TempDir,
}

impl Mosquitto {
    /// As docker-compose runs it.
    pub async fn start() -> Mosquitto {
        Mosquitto::start_with("").await
    }

    /// With more settings, one a line.
    pub async fn start_with(settings: &str) -> Mosquitto {
        let folder = TempDir::new().expect("a folder");
        let port = free_port();
        let configuration = folder.path().join("mosquitto.conf");
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("a folder");
        let shipped = include_str!("../../../mosquitto/mosquitto.conf");
        let lines = shipped.lines().map(|line| match line.split(' ').next() {
            Some("listener") => format!("listener {port} 127.0.0.1"),
            Some("persistence_location") => format!("persistence_location {}/", data.display()),
            _ => line.to_owned(),
        });
        let text: Vec<String> = lines.chain(["user root".to_owned(), settings.to_owned()]).collect();
        std::fs::write(&configuration, text.join("\n")).expect("written");
        let child = run(&configuration);
        let mosquitto = Mosquitto { port, child, configuration, _folder: folder };
        mosquitto.is_up().await;
        mosquitto
    }

    /// The setting that leads a gateway here.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// SIGKILL: what it has not written is lost.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM: it writes what it has.
    pub async fn stop(&mut self) {
        signal(&self.child, "TERM").await;
        self.child.wait().await.expect("waited for");
    }

    /// Starts it again, with what it had written.
    pub async fn restart(&mut self) {
        self.child = run(&self.configuration);
        self.is_up().await;
    }

    async fn is_up(&self) {
        eventually("Mosquitto listens", async || TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()).await;
    }
}

fn run(configuration: &PathBuf) -> Child {
    let program = if cfg!(target_os = "linux") { "mosquitto" } else { "/usr/local/sbin/mosquitto" };
    let mut command = Command::new(program);
    command.arg("-c").arg(configuration).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("mosquitto is installed: scripts/test does it")
}

/// Sends a signal, and waits for nothing.
pub async fn signal(child: &Child, name: &str) {
    let id = child.id().expect("it runs").to_string();
    let status = Command::new("kill").args(["-s", name, &id]).status().await.expect("kill is there");
    assert!(status.success(), "SIG{name} was sent");
}
