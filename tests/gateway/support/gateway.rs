//! The program itself, started as a user would, on free ports.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::certificates::TlsClient;
use super::mosquitto::signal;
use super::{Browser, Duplex, Mosquitto, PATIENCE, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

pub struct Gateway {
    /// Where browsers connect.
    pub address: String,
    /// Where operators look.
    pub admin: String,
    /// The line about the broker.
    pub broker: String,
    /// The line about the page.
    pub console: String,
    /// How its browsers come by TLS.
    pub tls: Option<TlsClient>,
    child: Child,
    folder: TempDir,
}

impl Gateway {
    /// Before this Mosquitto, with the defaults.
    pub async fn before(mosquitto: &Mosquitto) -> Gateway {
        Gateway::start(&mosquitto.url(), "").await
    }

    /// Before the broker at this URL, with a configuration file.
    pub async fn start(broker: &str, configuration: &str) -> Gateway {
        let gateway = Gateway::start_unready(broker, configuration).await;
        gateway.ready().await;
        gateway
    }

    /// As `start`, with an allocator that gives back at once what is freed: what is resident then is what is held.
    pub async fn start_thrifty(broker: &str, configuration: &str) -> Gateway {
        let thrift = [("MIMALLOC_PURGE_DELAY", "0")];
        let gateway = Gateway::start_unready_with(broker, configuration, &thrift).await;
        gateway.ready().await;
        gateway
    }

    /// As `start`, with browsers that come by TLS.
    pub async fn start_secure(broker: &str, configuration: &str, tls: TlsClient) -> Gateway {
        let mut gateway = Gateway::start(broker, configuration).await;
        gateway.tls = Some(tls);
        gateway
    }

    /// As `start`, but it may not reach its broker.
    pub async fn start_unready(broker: &str, configuration: &str) -> Gateway {
        Gateway::start_unready_with(broker, configuration, &[]).await
    }

    /// The same, with these variables in its environment.
    pub async fn start_unready_with(broker: &str, configuration: &str, variables: &[(&str, &str)]) -> Gateway {
        Gateway::become_of(Command::new(PROGRAM), broker, configuration, variables).await
    }

    /// As `start`, in a shell's place: it has the limits and the processors that these commands leave it.
    pub async fn start_after(commands: &str, broker: &str, configuration: &str) -> Gateway {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("set -e; {commands}; exec \"$0\" \"$@\""), PROGRAM]);
        let gateway = Gateway::become_of(shell, broker, configuration, &[]).await;
        gateway.ready().await;
        gateway
    }

    async fn become_of(mut program: Command, broker: &str, configuration: &str, variables: &[(&str, &str)]) -> Gateway {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, configuration).expect("written");
        let mut child = program
            .args(["--listen", "127.0.0.1:0", "--broker", broker, "--config"])
            .arg(&file)
            .args(if configuration.contains("admin_listen") { &[][..] } else { &["--admin-listen", "127.0.0.1:0"] })
            .env_clear()
            // Most scenes hold whatever the upstream: `TIDEGATE_UPSTREAM=shared` plays them with the other one.
            .envs(std::env::var("TIDEGATE_UPSTREAM").map(|upstream| ("TIDEGATE_UPSTREAM", upstream)))
            // Scenes run side by side, and a machine that is late for them is no concern of theirs; a file may say otherwise.
            .envs((!configuration.contains("max_stall")).then_some(("TIDEGATE_CONNECTIONS__MAX_STALL", "60")))
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.path().join("log")).expect("created"))
            .kill_on_drop(true)
            .spawn()
            .expect("the program was built");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (address, admin, broker, console) = Default::default();
        let mut gateway = Gateway { address, admin, broker, console, tls: None, child, folder };
        while gateway.admin.is_empty() {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("readable");
            let line = line.expect("the gateway says where it is before it ends");
            let (name, value) = line.trim().split_once(' ').expect("a name and a value");
            let value = value.trim();
            match name {
                "console" => {
                    gateway.console = value.to_owned();
                    gateway.address = host(value);
                }
                "broker" => gateway.broker = value.to_owned(),
                "metrics" => gateway.admin = host(value),
                _ => {}
            }
        }
        gateway
    }

    async fn ready(&self) {
        eventually("the gateway is ready", async || self.get(&self.admin, "/readyz").await.0 == 200).await;
    }

    /// Runs the program with a command, gives it this to read, and takes what it prints.
    pub async fn run(arguments: &[&str], input: &str) -> String {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).await.expect("it reads");
        drop(stdin);
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("it ran");
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// The port where browsers connect.
    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("an address has a port")
    }

    /// A browser with an open session.
    pub async fn browser(&self) -> Browser {
        let mut browser = self.connect().await;
        browser.send(serde_json::json!({"type": "auth"})).await;
        browser.expect("auth_response").await;
        browser.expect("welcome").await;
        browser
    }

    /// A browser that opens its session with this `auth`, and the `welcome` it gets.
    pub async fn open(&self, mut auth: serde_json::Value) -> (Browser, serde_json::Value) {
        let mut browser = self.connect().await;
        auth["type"] = serde_json::json!("auth");
        browser.send(auth).await;
        browser.expect("auth_response").await;
        let welcome = browser.expect("welcome").await;
        (browser, welcome)
    }

    /// A browser with a WebSocket on which nothing was said.
    pub async fn connect(&self) -> Browser {
        match &self.tls {
            None => Browser::connect(&self.address, &["tidegate.v1.json"]).await,
            Some(tls) => {
                let stream = Box::new(tls.connect(&self.address).await.expect("a handshake"));
                let headers = [("sec-websocket-protocol", "tidegate.v1.json")];
                Browser::over(stream, &self.address, "/ws", &headers).await.expect("the upgrade is made")
            }
        }
    }

    /// An HTTP GET: the status and the body.
    pub async fn get(&self, address: &str, path: &str) -> (u16, String) {
        let (status, _, body) = self.fetch(address, path).await;
        (status, body)
    }

    /// An HTTP GET: the status, the head in lower case, and the body.
    pub async fn fetch(&self, address: &str, path: &str) -> (u16, String, String) {
        self.request(address, "GET", path, "").await
    }

    /// Any request without a body, with these lines in its head: what `fetch` gives.
    pub async fn request(&self, address: &str, method: &str, path: &str, head: &str) -> (u16, String, String) {
        let stream = TcpStream::connect(address).await.expect("it listens");
        self.request_over(stream, address, method, path, head).await
    }

    /// The same over this connection.
    pub async fn request_over(
        &self,
        mut stream: impl Duplex,
        address: &str,
        method: &str,
        path: &str,
        head: &str,
    ) -> (u16, String, String) {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{head}\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut response = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut response)).await.expect("in time").expect("text");
        let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        (status, head.to_lowercase(), body.to_owned())
    }

    /// The value of a metric, labels written as on the page.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get(&self.admin, "/metrics").await;
        let line = page.lines().find(|line| line.rsplit_once(' ').is_some_and(|(metric, _)| metric == name));
        let value = line.and_then(|line| line.rsplit_once(' ')).unwrap_or_else(|| panic!("no {name} on\n{page}")).1;
        value.parse().expect("a number")
    }

    /// What the process has taken of processors: however busy the machine is, it is the same for the same work.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("readable");
        // User and system time, in ticks of 10 ms; the name of the program before them may hold anything.
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// The resident memory of the process, in bytes.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("readable");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// The most resident memory that the process ever had, in bytes.
    pub fn peak(&self) -> f64 {
        let id = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("readable");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has a peak");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("readable")
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and the end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.terminate().await;
        self.end().await
    }

    /// SIGTERM.
    pub async fn terminate(&self) {
        self.signal("TERM").await;
    }

    /// Any signal, by its name.
    pub async fn signal(&self, name: &str) {
        signal(&self.child, name).await;
    }

    /// Writes another configuration file, and asks for it to be read.
    pub async fn reload(&self, configuration: &str) {
        std::fs::write(self.file(), configuration).expect("written");
        self.signal("HUP").await;
    }

    /// The configuration file.
    pub fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("tidegate.toml")
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// How the process ends.
    pub async fn end(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("in time").expect("waited for")
    }
}

/// The address in a line about where something is.
fn host(url: &str) -> String {
    let (_, rest) = url.split_once("://").expect("a URL");
    rest.split('/').next().expect("a split has a first part").to_owned()
}

impl Drop for Gateway {
    /// A scene that fails shows what the gateway had to say.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
