//! A program under load, measured through `/proc` and ended with the run.

use crate::{Result, fail};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep};

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
    /// One that runs already; its figures are known if its process is.
    pub fn found(pid: Option<u32>) -> Self {
        Self { child: None, pid }
    }

    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let output = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Self::spawn(command)
    }

    /// Starts this tool once more, with other arguments.
    pub fn child(arguments: Vec<String>) -> Result<(Self, ChildStdin, ChildStdout)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = Self::spawn(command)?;
        let child = program.child.as_mut().expect("it was started here");
        let input = child.stdin.take().expect("its input is a pipe");
        let output = child.stdout.take().expect("its output is a pipe");
        Ok((program, input, output))
    }

    /// Starts the yardstick: where it listens, and where it takes its frames.
    pub async fn bare(sessions: u32, kind: &str) -> Result<(Self, SocketAddr, ChildStdin)> {
        let arguments = ["bare", "--sessions", &sessions.to_string(), "--server", kind];
        let (bare, input, output) = Self::child(arguments.map(str::to_owned).into())?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address).await?;
        Ok((bare, address.trim().parse()?, input))
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        match command.kill_on_drop(true).spawn() {
            Ok(child) => Ok(Self { pid: child.id(), child: Some(child) }),
            Err(error) => fail(format!("{name} does not start: {error}")),
        }
    }

    /// `None` where the process is not known.
    pub fn usage(&self) -> Result<Option<Usage>> {
        let Some(pid) = self.pid else { return Ok(None) };
        match usage(pid) {
            Ok(usage) => Ok(Some(usage)),
            Err(error) => fail(format!("process {pid} cannot be measured: {error}")),
        }
    }

    /// How many descriptors it has open; `None` where the process is not known.
    pub fn descriptors(&self) -> Result<Option<u64>> {
        let Some(pid) = self.pid else { return Ok(None) };
        Ok(Some(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64))
    }

    /// Waits until `is_up`, for 20 seconds at most. A failure shows the end of the program's log.
    pub async fn until<F: Future<Output = bool>>(&mut self, log: &Path, is_up: impl Fn() -> F) -> Result<()> {
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
