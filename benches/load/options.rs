//! The command line.

use crate::client::Speech;
use crate::ledger::Stamp;
use clap::{Parser, ValueEnum};
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Puts a gateway on loopback under a known load; says what it cost, how late messages came, and
/// whether any was lost, repeated or out of order. One JSON line a run, on standard output.
#[derive(Clone, Debug, Parser)]
#[command(name = "load", after_long_help = FIELDS)]
pub struct Options {
    #[arg(value_enum, default_value_t = Scenario::FanOut)]
    pub scenario: Scenario,

    /// What is measured
    #[arg(long, value_enum, default_value_t = Served::Gateway)]
    pub server: Served,

    /// How the gateway's sessions share connections to the broker; its default if this is not given
    #[arg(long, value_enum)]
    pub upstream: Option<Upstream>,

    /// WebSocket sessions [default: fan-out and unicast 1000, ingest 100, idle 5000, storm, slow and soak
    /// 2000, check 200]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    sessions: Option<u32>,

    /// Messages on each topic [default: fan-out 400, unicast 20, ingest 200, idle and storm 1,
    /// slow 30 a turn, check 100]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    messages: Option<u32>,

    /// Messages a second that are published, over all topics; 0: as fast as 64 unfinished messages
    /// allow, or 16 unacknowledged ones a publisher [default: slow 5, fan-out and soak 20,
    /// check 50, others 1000]
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,

    /// Bytes of payload
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(Stamp::LEN as i64..=1_000_000))]
    pub size: u32,

    /// QoS of publishes and of subscriptions
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub qos: u8,

    /// Subscriptions of the gateway ask for at most so many deliveries a second of each topic
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_rate: Option<u32>,

    /// Sessions that open at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub opening: u32,

    /// Processes among which the readers are spread; with 1 they read in the tool's own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub processes: u32,

    /// Who publishes in fan-out, unicast and idle
    #[arg(long, value_enum, default_value_t = Door::Mqtt)]
    publish: Door,

    /// Fan-out only: runs the bare program in turn with the gateway, and gives the ratio of their costs
    #[arg(long)]
    pub floor: bool,

    /// With --floor: in how many parts the messages go, gateway and bare program in turn
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// The gateway asks for a token, and each session has twenty grants
    #[arg(long)]
    pub guarded: bool,

    /// A gateway or a bridge that is started reaches the Mosquitto that is started by a Unix socket, in place of TCP
    #[arg(long, conflicts_with_all = ["at", "broker"])]
    pub unix: bool,

    /// The gateway to start
    #[arg(long, value_name = "PATH", default_value = option_env!("CARGO_BIN_EXE_tidegate").unwrap_or("target/release/tidegate"))]
    pub gateway: PathBuf,

    /// The gateway that runs already, in place of one to start
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    pub at: Option<SocketAddr>,

    /// With --at: its process, for the figures of processor and memory
    #[arg(long, value_name = "PID", requires = "at")]
    pub gateway_pid: Option<u32>,

    /// `mosquitto` (starts one), `embedded`, or `mqtt://ADDRESS:PORT` of one that runs
    #[arg(long, default_value = "mosquitto")]
    pub broker: Broker,

    /// The process of a broker that runs already
    #[arg(long, value_name = "PID")]
    pub broker_pid: Option<u32>,

    /// Seconds after which the run is given up [default: 300, and as long as a soak takes]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    timeout: Option<u64>,

    /// Seconds after the last publish for which what is missing is waited for; else until nothing has arrived for 5
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub grace: Option<u64>,

    /// Soak only: how long it lasts
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,

    /// Soak only: fails if memory or descriptors grow by more than this share over its last three quarters
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    pub max_rise: f64,

    /// Slow only: sessions that read nothing in every other turn
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub slow: u32,

    /// Slow only: turns without and with the slow sessions
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub pairs: u32,

    /// Slow only: fails if the p99 beside slow sessions is more than this many times that without them, in the median
    #[arg(long, value_name = "TIMES", default_value_t = 1.3)]
    pub max_delay: f64,

    /// Check only: how often it tries before it fails
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub tries: u32,

    /// Fails if a session takes more bytes of the gateway's resident memory than this
    #[arg(long, value_name = "BYTES")]
    pub max_bytes_a_session: Option<u64>,

    /// With --floor or check: fails if the gateway's cost is more than this many times the bare program's
    #[arg(long, value_name = "TIMES")]
    pub max_ratio: Option<f64>,

    /// The readers that are a child's
    #[arg(long, hide = true)]
    pub share: Option<Share>,

    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Scenario {
    /// All sessions read one topic.
    FanOut,
    /// Each session reads a topic of its own, in turn.
    Unicast,
    /// Each session publishes on a topic of its own, and one more session reads them all.
    Ingest,
    /// The sessions stay quiet while memory is measured; then one message shows that all live.
    Idle,
    /// The sessions open as fast as the server lets them; then one message shows that all live.
    Storm,
    /// A short fan-out beside the bare program, repeated before it fails.
    Check,
    /// Most sessions read one topic, others read nothing in every other turn.
    Slow,
    /// Sessions come and go for a long time, while memory and descriptors must not grow.
    Soak,
    /// The yardstick itself; the tool starts it as a child.
    #[value(hide = true)]
    Bare,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Served {
    /// Tidegate, before a broker or with its own.
    Gateway,
    /// Mosquitto's own listener for WebSockets.
    MosquittoWs,
    /// The bridge of benches/peers/node-bridge, before Mosquitto.
    Node,
    /// nginx with nchan: fan-out at qos 0 only.
    Nchan,
    /// A program that writes a ready frame to each WebSocket: fan-out at qos 0 only.
    Bare,
    /// The same, and all frames that wait leave in one write.
    Coalescing,
}

/// How sessions share connections to the broker.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Upstream {
    /// Each session has one of its own.
    PerSession,
    /// All sessions share a few.
    Shared,
}

/// What a child process reads: the readers from `first` to before `end`, of a server there. `origin` is when the clock
/// of the run started, since 1970.
#[derive(Clone, Debug)]
pub struct Share {
    pub first: u32,
    pub end: u32,
    pub origin: Duration,
    pub speech: Speech,
    pub address: SocketAddr,
}

impl Display for Share {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { first, end, origin, speech, address } = self;
        write!(f, "{first},{end},{},{},{address}", origin.as_nanos(), name(*speech))
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let &[first, end, origin, speech, address] = text.split(',').collect::<Vec<_>>().as_slice() else {
            return Err("not five parts".into());
        };
        let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
        Ok(Self {
            first: number(first)? as u32,
            end: number(end)? as u32,
            origin: Duration::from_nanos(number(origin)?),
            speech: Speech::from_str(speech, false)?,
            address: loopback(address)?,
        })
    }
}

/// Through which door messages come in.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Door {
    /// An MQTT 5 client publishes at the broker.
    Mqtt,
    /// A session publishes at the gateway.
    Session,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Broker {
    Mosquitto,
    Embedded,
    At(SocketAddr),
}

impl Display for Broker {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mosquitto => f.write_str("mosquitto"),
            Self::Embedded => f.write_str("embedded"),
            Self::At(address) => write!(f, "mqtt://{address}"),
        }
    }
}

impl FromStr for Broker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mosquitto" => Ok(Self::Mosquitto),
            "embedded" => Ok(Self::Embedded),
            url => loopback(url.strip_prefix("mqtt://").ok_or("not one of the three")?).map(Self::At),
        }
    }
}

impl Options {
    /// The fan-out that a check makes.
    pub fn checking(&self) -> Self {
        Self {
            scenario: Scenario::FanOut,
            sessions: Some(self.sessions()),
            messages: Some(self.messages()),
            rate: Some(self.rate().unwrap_or(0.0)),
            floor: true,
            max_ratio: None,
            ..self.clone()
        }
    }

    /// A gateway with its own broker, for the frame that it makes of a message.
    pub fn on_its_own(&self) -> Self {
        Self { server: Served::Gateway, broker: Broker::Embedded, at: None, ..self.clone() }
    }

    /// Who publishes; in ingest and at nchan that is always the sessions.
    pub fn publisher(&self) -> Door {
        if self.scenario == Scenario::Ingest || self.server == Served::Nchan { Door::Session } else { self.publish }
    }

    pub fn sessions(&self) -> u32 {
        self.sessions.unwrap_or(match self.scenario {
            Scenario::FanOut | Scenario::Unicast | Scenario::Bare => 1000,
            Scenario::Ingest => 100,
            Scenario::Idle => 5000,
            Scenario::Storm | Scenario::Slow | Scenario::Soak => 2000,
            Scenario::Check => 200,
        })
    }

    pub fn messages(&self) -> u32 {
        self.messages.unwrap_or(match self.scenario {
            Scenario::FanOut => 400,
            Scenario::Unicast => 20,
            Scenario::Ingest => 200,
            Scenario::Slow => 30,
            Scenario::Check => 100,
            Scenario::Idle | Scenario::Storm | Scenario::Soak | Scenario::Bare => 1,
        })
    }

    /// Messages a second; `None`: saturated.
    pub fn rate(&self) -> Option<f64> {
        let default = match self.scenario {
            Scenario::Slow => 5.0,
            Scenario::FanOut | Scenario::Soak => 20.0,
            Scenario::Check => 50.0,
            Scenario::Unicast | Scenario::Ingest | Scenario::Idle | Scenario::Storm | Scenario::Bare => 1000.0,
        };
        Some(self.rate.unwrap_or(default)).filter(|&rate| rate > 0.0)
    }

    /// Seconds after which the run is given up.
    pub fn timeout(&self) -> u64 {
        let soaking = if self.scenario == Scenario::Soak { u64::from(self.seconds) } else { 0 };
        self.timeout.unwrap_or(300 + soaking)
    }
}

/// The tool loads nothing but its own machine.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "not of the form 127.0.0.1:8080")?;
    if address.ip().is_loopback() { Ok(address) } else { Err("not a loopback address".into()) }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate @ 0.0..=1e6) => Ok(rate),
        _ => Err("not a number from 0 to 1000000".into()),
    }
}

/// As it is written on the command line.
pub fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is skipped").get_name().into()
}

const FIELDS: &str = "\
The JSON line:
  scenario, options     what was asked for; rate null: saturated
  published             messages
  expected, received    deliveries to the readers; received counts first copies
  lost, duplicated, reordered, stray
                        faults; a stray came to a reader that it was not meant for. With --max-rate
                        what is lost was conflated away
  unfinished            readers and topics whose last message did not come
  acks                  publishes acknowledged (by sessions all, by the broker those of qos 1)
  seconds               of the measured phase, first publish to last delivery
  latency_us            {p50, p90, p99, max} of send to receipt, both in the tool
  opening               {seconds, sessions_a_second, cpu_seconds, cpu_ms_a_session} of opening all
                        sessions, from TCP connect to welcome (MQTT: CONNACK); cpu_seconds of each part
  bytes_a_session, anonymous_bytes_a_session
                        growth of the server's memory by the opening and subscribing, resident and
                        anonymous
  parts                 of each process of the server, by name (gateway, bridge, nginx, bare; broker):
                        {cpu_seconds, cpu_seconds_a_million} of the measured phase (a million
                        deliveries), {rss, anonymous}_{before, after}: bytes before the opening and
                        at the end; null for a process that is not known
  server_cpu_seconds_a_million
                        the sum of the parts'
  server_cpu_seconds_a_million_published
                        the same for a million messages published
  delivery_ms           {p50, p99} of the gateway's own histogram tidegate_delivery_seconds, from
                        reading a message from the broker to writing it to a socket; from within a
                        bucket the figure is interpolated
  bare                  {cpu_seconds, cpu_seconds_a_million, seconds, latency_us}, with --floor
  ratio                 the gateway's cpu_seconds_a_million over the bare program's, with --floor;
                        a check's is the best of its tries
  failures              sentences; empty if the run passed

A soak's line has, beside expected to stray, acks and failures:
  opened, resumed, closed, cut
                        sessions that were opened, those of them that were kept from an earlier
                        connection, and how they were left
  redelivered           deliveries that came once more over a new connection, and said so
  dropped               deliveries that slow readers were told they will not get
  latency_us            {p50, p99, max}
  samples               that the trends are made of
  rss, descriptors      of the gateway: idle, before the first session; trend, {level, rise, noise}:
                        the mean, how much higher the fitted line ends than it begins, and how much
                        of that may be chance; left, descriptors when all sessions have left
  left                  the gauges that must be 0 by then

The line of slow has, beside expected to stray (of the fast readers) and failures:
  dropped               deliveries that were dropped for the slow readers
  p99_us                {alone, beside}: of each turn, send to receipt, both in the tool
  ratio                 the median of what beside is over alone, turn by turn
  rss                   of the gateway: {idle, peak, limit}, with the fast sessions open, at most, and
                        what delivery.max_total_bytes says

Exit status: 0, passed; 1, failed: a fault, a bound that was passed, or a run that could not be made
(the line then has scenario and failures only); 2, wrong usage. A saturated run at qos 0 may lose
messages: that is told, and is no failure.";
