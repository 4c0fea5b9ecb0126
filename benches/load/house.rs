//! What is measured: a server of WebSockets and all that it needs, on loopback.

use crate::client::{Server, Speech};
use crate::options::{Broker, Door, Options, Served, name};
use crate::process::{Program, Usage};
use crate::publisher::Publisher;
use crate::{Result, fail, guarded};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{ChildStdin, Command};

/// A server and what stands behind it. Fields are dropped in this order.
pub struct House {
    /// The server itself comes first. A broker that runs inside it, or is not ours to measure, is not here.
    parts: Vec<(&'static str, Program)>,
    pub server: Server,
    /// Where the metrics are; `None`: it is no gateway, or not ours.
    admin_address: Option<SocketAddr>,
    pub broker_address: Option<SocketAddr>,
    /// Where a bare program takes its frames.
    frames: Option<ChildStdin>,
    _directory: TempDir,
}

impl House {
    /// Starts what the options ask for and waits until it is ready.
    pub async fn start(options: &Options) -> Result<Self> {
        match options.server {
            Served::Gateway => Self::gateway(options).await,
            Served::MosquittoWs => Self::mosquitto_ws().await,
            Served::Node => Self::node(options).await,
            Served::Nchan => Self::nchan().await,
            Served::Bare | Served::Coalescing => Self::bare(options, options.server).await,
        }
    }

    pub async fn gateway(options: &Options) -> Result<Self> {
        let directory = TempDir::new()?;
        let mut broker = options.broker_pid.map(|pid| Program::found(Some(pid)));
        let (broker_address, url) = match options.broker {
            Broker::Mosquitto if options.at.is_some() => (None, String::new()),
            Broker::Mosquitto => {
                let address = free_address()?;
                broker = Some(mosquitto(&[address], directory.path()).await?);
                (Some(address), way_to_mosquitto(options, "unix", address, directory.path()))
            }
            Broker::Embedded => {
                let address = free_address()?;
                (Some(address), format!("embedded://{address}"))
            }
            Broker::At(address) => (Some(address), format!("mqtt://{address}")),
        };
        let (gateway, address, admin_address) = match options.at {
            Some(address) => (Program::found(options.gateway_pid), address, None),
            None => {
                let (address, admin_address) = (free_address()?, free_address()?);
                let mut command = Command::new(&options.gateway);
                command.args(["--listen", &address.to_string()]);
                command.args(["--admin-listen", &admin_address.to_string()]);
                command.args(["--broker", &url]);
                if let Some(upstream) = options.upstream {
                    command.args(["--upstream", &name(upstream)]);
                }
                if options.guarded {
                    let file = directory.path().join("tidegate.toml");
                    std::fs::write(&file, guarded::configuration())?;
                    command.arg("--config").arg(file);
                }
                let log = directory.path().join("gateway.log");
                let mut gateway = Program::start(command, &log)?;
                gateway.until(&log, || is_ready(address)).await?;
                (gateway, address, Some(admin_address))
            }
        };
        let mut parts = vec![("gateway", gateway)];
        parts.extend(broker.map(|broker| ("broker", broker)));
        let server = Server { address, speech: Speech::Frames };
        Ok(Self { parts, server, admin_address, broker_address, frames: None, _directory: directory })
    }

    /// Mosquitto alone, with a listener for WebSockets beside the one for MQTT.
    async fn mosquitto_ws() -> Result<Self> {
        let directory = TempDir::new()?;
        let (plain, web) = (free_address()?, free_address()?);
        let broker = mosquitto(&[plain, web], directory.path()).await?;
        let server = Server { address: web, speech: Speech::Packets };
        Ok(Self::of(vec![("broker", broker)], server, Some(plain), directory))
    }

    /// The bridge of `benches/peers/node-bridge`, before a Mosquitto.
    async fn node(options: &Options) -> Result<Self> {
        let directory = TempDir::new()?;
        let (broker_address, address) = (free_address()?, free_address()?);
        let broker = mosquitto(&[broker_address], directory.path()).await?;
        let home = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/peers/node-bridge");
        if !home.join("node_modules").exists() {
            let mut install = Command::new("npm");
            install.args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(&home);
            if !install.status().await?.success() {
                return fail("npm ci did not install what the bridge needs");
            }
        }
        let mut command = Command::new("node");
        command.arg(home.join("bridge.mjs"));
        let url = way_to_mosquitto(options, "mqtt+unix", broker_address, directory.path());
        command.args(["--port", &address.port().to_string(), "--broker", &url]);
        let log = directory.path().join("bridge.log");
        let mut bridge = Program::start(command, &log)?;
        bridge.until(&log, || takes_connections(address)).await?;
        let server = Server { address, speech: Speech::Frames };
        Ok(Self::of(vec![("bridge", bridge), ("broker", broker)], server, Some(broker_address), directory))
    }

    /// nginx with nchan, as one process: nothing goes from worker to worker, which spares it work.
    async fn nchan() -> Result<Self> {
        let directory = TempDir::new()?;
        let address = free_address()?;
        let file = directory.path().join("nginx.conf");
        let user = if is_root()? { "user root;" } else { "" };
        fs::write(&file, format!("{user}\n{}", NCHAN.replace("ADDRESS", &address.to_string())))?;
        let mut command = Command::new(debian("/usr/sbin/nginx", "nginx"));
        command.arg("-p").arg(directory.path()).arg("-c").arg(&file);
        let log = directory.path().join("nginx.log");
        let mut nginx = Program::start(command, &log)?;
        nginx.until(&log, || takes_connections(address)).await?;
        let server = Server { address, speech: Speech::Path };
        Ok(Self::of(vec![("nginx", nginx)], server, None, directory))
    }

    /// A bare program, for as many sessions as will read.
    pub async fn bare(options: &Options, kind: Served) -> Result<Self> {
        let (program, address, input) = Program::bare(options.sessions(), &name(kind)).await?;
        let server = Server { address, speech: Speech::Silence };
        let house = Self::of(vec![("bare", program)], server, None, TempDir::new()?);
        Ok(Self { frames: Some(input), ..house })
    }

    fn of(
        parts: Vec<(&'static str, Program)>,
        server: Server,
        broker_address: Option<SocketAddr>,
        directory: TempDir,
    ) -> Self {
        Self { parts, server, admin_address: None, broker_address, frames: None, _directory: directory }
    }

    /// Someone who publishes; at a bare program, what `model` is a frame of with that payload.
    pub async fn publisher(&mut self, options: &Options, model: &(Vec<u8>, String)) -> Result<Publisher> {
        if let Some(frames) = self.frames.take() {
            return Publisher::bare(frames, &model.0, &model.1);
        }
        match (options.publisher(), self.server.speech, self.broker_address) {
            (Door::Session, ..) | (_, Speech::Path, _) => Publisher::session(self.server, options.qos).await,
            (Door::Mqtt, _, Some(broker)) => Publisher::mqtt(broker, options.qos).await,
            (Door::Mqtt, _, None) => fail("where is the broker? --broker mqtt://ADDRESS, or --publish session"),
        }
    }

    /// What the parts are called.
    pub fn names(&self) -> Vec<&'static str> {
        self.parts.iter().map(|(name, _)| *name).collect()
    }

    /// The gateway's page of metrics.
    pub async fn metrics(&self) -> Result<String> {
        match self.admin_address {
            Some(address) => Ok(get(address, "/metrics").await?),
            None => fail("there is no page of metrics that the tool knows of"),
        }
    }

    pub fn has_metrics(&self) -> bool {
        self.admin_address.is_some()
    }

    /// Resident bytes and open descriptors of the server.
    pub fn held(&self) -> Result<(u64, u64)> {
        let (_, server) = &self.parts[0];
        match (server.usage()?, server.descriptors()?) {
            (Some(usage), Some(descriptors)) => Ok((usage.rss, descriptors)),
            _ => fail("the gateway's process is not known"),
        }
    }

    /// Of each part, where known.
    pub fn usage(&self) -> Result<Vec<Option<Usage>>> {
        self.parts.iter().map(|(_, program)| program.usage()).collect()
    }
}

/// Every message stays long enough for all readers to get it; a request in the middle of a run ends no connection.
const NCHAN: &str = "\
load_module /usr/lib/nginx/modules/ngx_nchan_module.so;
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 65536;
events { worker_connections 32768; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 100000000;
    keepalive_timeout 3600;
    nchan_max_reserved_memory 512m;
    server {
        listen ADDRESS backlog=4096;
        location ~ ^/pub/(.+)$ {
            nchan_publisher http;
            nchan_channel_id $1;
            nchan_message_buffer_length 4096;
        }
        location ~ ^/sub/(.+)$ {
            nchan_subscriber websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }
    }
}
";

/// The URL of a Mosquitto, by the scheme that this client has for Unix sockets where it is to use that.
fn way_to_mosquitto(options: &Options, scheme: &str, address: SocketAddr, directory: &Path) -> String {
    if options.unix { format!("{scheme}://{}", socket(directory).display()) } else { format!("mqtt://{address}") }
}

/// Where Mosquitto listens beside its ports.
fn socket(directory: &Path) -> PathBuf {
    directory.join("mqtt.sock")
}

/// The first address is for MQTT, the second, if there is one, for MQTT over WebSockets.
async fn mosquitto(addresses: &[SocketAddr], directory: &Path) -> Result<Program> {
    let mut configuration = String::new();
    if is_root()? {
        configuration += "user root\n";
    }
    configuration += "allow_anonymous true\npersistence false\nset_tcp_nodelay true\n";
    for (address, protocol) in addresses.iter().zip(["mqtt", "websockets"]) {
        configuration +=
            &format!("listener {} {}\nprotocol {protocol}\nmax_connections -1\n", address.port(), address.ip());
    }
    configuration += &format!("listener 0 {}\nmax_connections -1\n", socket(directory).display());
    let file = directory.join("mosquitto.conf");
    fs::write(&file, configuration)?;
    let log = directory.join("mosquitto.log");
    let mut command = Command::new(debian("/usr/sbin/mosquitto", "mosquitto"));
    command.arg("-c").arg(&file);
    let mut mosquitto = Program::start(command, &log)?;
    for &address in addresses {
        mosquitto.until(&log, || takes_connections(address)).await?;
    }
    Ok(mosquitto)
}

/// Debian keeps some programs where the path of an ordinary user does not lead.
fn debian<'a>(there: &'a str, elsewhere: &'a str) -> &'a Path {
    let there = Path::new(there);
    if there.exists() { there } else { Path::new(elsewhere) }
}

fn is_root() -> io::Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

async fn takes_connections(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_ok()
}

async fn is_ready(gateway: SocketAddr) -> bool {
    let answer = tokio::time::timeout(Duration::from_secs(2), get(gateway, "/readyz")).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")))
}

/// The answer to a GET, its head included.
async fn get(server: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(server).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
