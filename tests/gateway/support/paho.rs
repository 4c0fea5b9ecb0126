//! Paho for Python: the MQTT client that most others are measured by (tests/paho/client.py).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::PATIENCE;

pub struct Paho {
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// What has arrived and was not taken.
    pub arrived: Vec<Value>,
    _child: Child,
}

impl Paho {
    /// A client with an open session.
    pub async fn connect(port: u16, client_id: &str) -> Paho {
        let mut child = tokio::process::Command::new(python())
            .arg(root().join("tests/paho/client.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python runs");
        let orders = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut paho = Paho { orders, lines, arrived: Vec::new(), _child: child };
        paho.ask(json!({"do": "connect", "port": port, "clientId": client_id})).await;
        paho
    }

    /// Subscribes, and returns the granted QoS.
    pub async fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        self.ask(json!({"do": "subscribe", "filter": filter, "qos": qos})).await["qos"].as_u64().expect("a number")
            as u8
    }

    pub async fn unsubscribe(&mut self, filter: &str) {
        self.ask(json!({"do": "unsubscribe", "filter": filter})).await;
    }

    /// Publishes, and waits for nothing.
    pub async fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        self.order(json!({"do": "publish", "topic": topic, "payload": payload, "qos": qos, "retain": retain})).await;
    }

    /// Waits until the broker has acknowledged all that was published.
    pub async fn flush(&mut self) {
        self.ask(json!({"do": "flush"})).await;
    }

    /// Waits until this payload has arrived.
    pub async fn await_payload(&mut self, payload: &str) {
        while !self.arrived.iter().any(|message| message["payload"] == payload) {
            let line = self.next().await;
            self.arrived.push(line);
        }
    }

    async fn order(&mut self, order: Value) {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.expect("Python runs");
    }

    /// Gives an order and waits until it is carried out.
    async fn ask(&mut self, order: Value) -> Value {
        let done = order["do"].clone();
        self.order(order).await;
        loop {
            let line = self.next().await;
            if line["done"] == done {
                return line;
            }
            self.arrived.push(line);
        }
    }

    async fn next(&mut self) -> Value {
        let line =
            timeout(PATIENCE, self.lines.next_line()).await.expect("in time").expect("text").expect("Python runs");
        serde_json::from_str(&line).expect("JSON")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python with what tests/paho/requirements.txt lists, made when it is needed for the first time.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let requirements = root().join("tests/paho/requirements.txt");
        let wanted = std::fs::read(&requirements).expect("readable");
        // Beside the folder for temporary files, which Cargo keeps in the target directory.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools").join("paho");
        let python = folder.join("bin/python");
        let made = folder.join("requirements.txt");
        if std::fs::read(&made).is_ok_and(|made| made == wanted) {
            return python;
        }
        let run = |command: &mut Command| {
            let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            assert!(status.success(), "{command:?}");
        };
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&requirements));
        std::fs::write(made, wanted).expect("written");
        python
    })
}
