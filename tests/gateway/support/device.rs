//! An MQTT client that is not ours: mosquitto_pub and mosquitto_sub.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::PATIENCE;

/// A `mosquitto_sub` that runs.
pub struct Device {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Device {
    /// Publishes with `mosquitto_pub` and these arguments.
    pub async fn publish(port: u16, arguments: &[&str]) {
        let mut command = Command::new("mosquitto_pub");
        command.args(["-V", "5", "-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments);
        let status = command.status().await.expect("mosquitto_pub is installed: scripts/test does it");
        assert!(status.success(), "mosquitto_pub {arguments:?}");
    }

    /// Subscribes with `mosquitto_sub` and these arguments, and waits until it has; it prints a line a message.
    pub async fn subscribe(port: u16, arguments: &[&str]) -> Device {
        let probe = format!("device/{}", super::free_port());
        let mut child = Command::new("mosquitto_sub")
            .args(["-V", "5", "-h", "127.0.0.1", "-p", &port.to_string(), "-F", "%t %p", "-t", &probe])
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto_sub is installed: scripts/test does it");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut device = Device { lines, _child: child };
        // A message that arrives says that the subscriptions are in force.
        while timeout(std::time::Duration::from_millis(100), device.lines.next_line()).await.is_err() {
            Device::publish(port, &["-t", &probe, "-m", "?"]).await;
        }
        device
    }

    /// The next message as "topic payload".
    pub async fn next(&mut self) -> String {
        loop {
            let line =
                timeout(PATIENCE, self.lines.next_line()).await.expect("in time").expect("text").expect("a line");
            if !line.starts_with("device/") {
                return line;
            }
        }
    }
}
