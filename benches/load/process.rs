//! The programs under load: started on loopback, measured through `/proc`, ended with the run.

use crate::options::{Broker, Options};
use crate::{Result, fail};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep};

/// A gateway and the broker behind it. Fields are dropped in this order.
pub struct House {
    gateway: Program,
    /// `None`: the broker runs inside the gateway, or is not ours to measure.
    broker: Option<Program>,
    pub gateway_address: SocketAddr,
    /// Where its metrics are; `None`: the gateway is not ours.
    admin_address: Option<SocketAddr>,
    pub broker_address: Option<SocketAddr>,
    _directory: TempDir,
}

impl House {
    /// Starts what the options ask for and waits until the gateway says that it is ready.
    pub async fn start(options: &Options) -> Result<Self> {
        let directory = TempDir::new()?;
        let mut broker = options.broker_pid.map(Program::found);
        let (broker_address, url) = match options.broker {
            Broker::Mosquitto if options.at.is_some() => (None, String::new()),
            Broker::Mosquitto => {
                let address = free_address()?;
                broker = Some(mosquitto(address, directory.path()).await?);
                (Some(address), format!("mqtt://{address}"))
            }
            Broker::Embedded => {
                let address = free_address()?;
                (Some(address), format!("embedded://{address}"))
            }
            Broker::At(address) => (Some(address), format!("mqtt://{address}")),
        };
        let (gateway, gateway_address, admin_address) = match options.at {
            Some(address) => (Program { child: None, pid: options.gateway_pid }, address, None),
            None => {
                let (address, admin_address) = (free_address()?, free_address()?);
                let mut command = Command::new(&options.gateway);
                command.args(["--listen", &address.to_string()]);
                command.args(["--admin-listen", &admin_address.to_string()]);
                command.args(["--broker", &url]);
                let log = directory.path().join("gateway.log");
                let mut gateway = Program::start(command, &log)?;
                gateway.until(&log, || is_ready(address)).await?;
                (gateway, address, Some(admin_address))
            }
        };
        Ok(Self { gateway, broker, gateway_address, admin_address, broker_address, _directory: directory })
    }

    pub fn programs(&self) -> [Option<&Program>; 2] {
        [Some(&self.gateway), self.broker.as_ref()]
    }

    /// The gateway's page of metrics.
    pub async fn metrics(&self) -> Result<String> {
        match self.admin_address {
            Some(address) => Ok(get(address, "/metrics").await?),
            None => fail("the metrics of a gateway that runs already are not known"),
        }
    }

    /// Resident bytes and open descriptors of the gateway.
    pub fn held(&self) -> Result<(u64, u64)> {
        let (Some(pid), Some(usage)) = (self.gateway.pid, self.gateway.usage()?) else {
            return fail("the gateway's process is not known");
        };
        Ok((usage.rss, fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64))
    }

    /// Of the gateway and of the broker, where known.
    pub fn usage(&self) -> Result<[Option<Usage>; 2]> {
        let broker = self.broker.as_ref().map_or(Ok(None), Program::usage)?;
        Ok([self.gateway.usage()?, broker])
    }
}

/// A running program. One that we started is dead and gone once this is dropped.
pub struct Program {
    child: Option<Child>,
    pid: Option<u32>,
}

/// What a program has used so far.
#[derive(Clone, Copy)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub rss: u64,
    pub anonymous: u64,
}

impl Program {
    fn found(pid: u32) -> Self {
        Self { child: None, pid: Some(pid) }
    }

    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let output = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        match command.kill_on_drop(true).spawn() {
            Ok(child) => Ok(Self { pid: child.id(), child: Some(child) }),
            Err(error) => fail(format!("{name} does not start: {error}")),
        }
    }

    /// Starts the yardstick: where it listens, and where it takes its frames.
    pub async fn bare(sessions: u32) -> Result<(Self, SocketAddr, ChildStdin)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bare", "--sessions", &sessions.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut bare = Self::spawn(command)?;
        let child = bare.child.as_mut().expect("it was started here");
        let input = child.stdin.take().expect("its input is a pipe");
        let mut address = String::new();
        BufReader::new(child.stdout.take().expect("its output is a pipe")).read_line(&mut address).await?;
        Ok((bare, address.trim().parse()?, input))
    }

    /// `None` where the process is not known.
    pub fn usage(&self) -> Result<Option<Usage>> {
        let Some(pid) = self.pid else { return Ok(None) };
        match usage(pid) {
            Ok(usage) => Ok(Some(usage)),
            Err(error) => fail(format!("process {pid} cannot be measured: {error}")),
        }
    }

    /// Waits until `is_up`, for 20 seconds at most. A failure shows the end of the program's log.
    async fn until<F: Future<Output = bool>>(&mut self, log: &Path, is_up: impl Fn() -> F) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_up().await {
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?,
                None => None,
            };
            let why = match ended {
                Some(status) => format!("ended ({status})"),
                None if Instant::now() > deadline => "is not ready after 20 seconds".into(),
                None => {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let text = fs::read_to_string(log)?;
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            return fail(format!("the {} {why} {tail}", log.file_stem().unwrap_or_default().display()));
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let _ = child.start_kill();
        for _ in 0..200 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The sum of a metric's samples; `None` where the page has none.
pub fn total(page: &str, metric: &str) -> Option<f64> {
    let samples = page.lines().filter_map(|line| {
        let labels = line.strip_prefix(metric)?;
        labels.starts_with([' ', '{']).then(|| labels.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    samples.fold(None, |sum, sample| Some(sum.unwrap_or(0.0) + sample))
}

/// Fails, with the command that mends it, if this many descriptors are more than a process may open.
pub fn check_descriptors(needed: u64) -> Result<()> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    match limit.and_then(|limit| limit.parse::<u64>().ok()) {
        Some(limit) if limit < needed => fail(format!(
            "a process may open {limit} files here, and this run needs {needed}: \
             `ulimit -n {needed}` first"
        )),
        _ => Ok(()),
    }
}

async fn mosquitto(address: SocketAddr, directory: &Path) -> Result<Program> {
    let mut configuration = format!(
        "listener {} {}\nallow_anonymous true\nmax_connections -1\npersistence false\nset_tcp_nodelay true\n",
        address.port(),
        address.ip()
    );
    if fs::metadata("/proc/self")?.uid() == 0 {
        configuration += "user root\n";
    }
    let file = directory.join("mosquitto.conf");
    fs::write(&file, configuration)?;
    let log = directory.join("mosquitto.log");
    // Debian keeps it where the path of an ordinary user does not lead.
    let debian = Path::new("/usr/sbin/mosquitto");
    let mut command = Command::new(if debian.exists() { debian } else { Path::new("mosquitto") });
    command.arg("-c").arg(&file);
    let mut mosquitto = Program::start(command, &log)?;
    mosquitto.until(&log, async || TcpStream::connect(address).await.is_ok()).await?;
    Ok(mosquitto)
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

fn usage(pid: u32) -> Result<Usage> {
    /// What a tick of `/proc/PID/stat` is on Linux, whatever the kernel's own clock.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything: fields are counted behind it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let bytes = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or(0) * 1024
    };
    Ok(Usage { cpu_seconds: ticks / TICKS_A_SECOND, rss: bytes("Rss:"), anonymous: bytes("Anonymous:") })
}
