//! A run: opens the sessions, sends the messages, measures meanwhile.

use crate::client::{Publisher, Session};
use crate::ledger::{Entry, Ledger, Stamp, Totals};
use crate::options::{Door, Options, Scenario};
use crate::process::{House, Program, Usage, check_descriptors};
use crate::report::{Outcome, Report};
use crate::{Result, fail};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Messages that are on their way to readers at once in a saturated run.
const WINDOW: u32 = 64;
/// The ledgers keep a byte and a latency for each.
const MAX_DELIVERIES: u64 = 100_000_000;
/// Sessions that open at once.
const OPENING: usize = 64;
/// How long nothing may arrive before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for memory to settle, and for a duplicate to show.
const CALM: Duration = Duration::from_secs(1);

pub async fn run(options: &Options) -> Result<Report> {
    if options.floor && options.scenario != Scenario::FanOut {
        return fail("--floor goes with fan-out only");
    }
    let plan = Arc::new(Plan::new(options));
    let deliveries = u64::from(options.sessions()) * u64::from(options.messages());
    if deliveries > MAX_DELIVERIES {
        return fail(format!("{deliveries} deliveries are more than {MAX_DELIVERIES}"));
    }
    check_descriptors(2 * u64::from(plan.readers.max(plan.lanes)) + 100)?;

    let house = House::start(options).await?;
    let delivery = probe(&house, options).await?;
    sleep(CALM).await;
    let before = house.usage()?;

    eprintln!("opening {} sessions", options.sessions());
    let started = Instant::now();
    let mut gateway = Side::open(&plan, Server::Gateway, house.gateway_address).await?;
    gateway.publishers = publishers(&house, options).await?;
    let opening = started.elapsed();
    let opened = house.usage()?;
    sleep(CALM).await;
    let settled = house.usage()?;

    let mut bare = None;
    if options.floor {
        let (program, address, input) = Program::bare(plan.readers).await?;
        let mut side = Side::open(&plan, Server::Bare, address).await?;
        let payload = probe_stamp().payload(plan.size);
        side.publishers = vec![Publisher::bare(input, &delivery, &payload)?];
        bare = Some((program, side));
    }

    let total = plan.lanes * plan.each;
    eprintln!("sending {total} messages");
    let rounds = if options.floor { options.rounds.min(total) } else { 1 };
    for round in 0..rounds {
        let place = |round| (u64::from(total) * u64::from(round) / u64::from(rounds)) as u32;
        let part = place(round)..place(round + 1);
        gateway.carry(part.clone(), &house.programs()).await?;
        if let Some((program, side)) = &mut bare {
            side.carry(part, &[Some(program)]).await?;
        }
    }
    sleep(CALM).await;
    Ok(Report {
        opening,
        usage: [before, opened, settled, house.usage()?],
        gateway: gateway.close(),
        bare: bare.map(|(_, side)| side.close()),
    })
}

/// Sends one message through the whole house and gives the frame that arrives: a sign that all is
/// connected, and the bare program's model.
async fn probe(house: &House, options: &Options) -> Result<Vec<u8>> {
    let mut session = Session::open(house.gateway_address).await?;
    session.subscribe(&topic(0), options.qos).await?;
    let payload = probe_stamp().payload(options.size as usize);
    let mut publisher = publisher(house, options).await?;
    publisher.publish(&topic(0), &payload).await?;
    let arrival = async {
        loop {
            let frame = session.next().await?;
            if Stamp::find(frame) == Some(probe_stamp()) {
                return Ok(frame.to_vec());
            }
        }
    };
    match timeout(PATIENCE, arrival).await {
        Ok(frame) => frame,
        Err(_) => fail("a first message did not arrive"),
    }
}

fn probe_stamp() -> Stamp {
    Stamp { lane: u32::MAX, seq: 0, sent: Duration::ZERO }
}

async fn publishers(house: &House, options: &Options) -> Result<Vec<Publisher>> {
    let count = if options.scenario == Scenario::Ingest { options.sessions() } else { 1 };
    stream::iter(0..count).map(|_| publisher(house, options)).buffered(OPENING).try_collect().await
}

async fn publisher(house: &House, options: &Options) -> Result<Publisher> {
    match (options.publisher(), house.broker_address) {
        (Door::Session, _) => Publisher::session(house.gateway_address, options.qos).await,
        (Door::Mqtt, Some(broker)) => Publisher::mqtt(broker, options.qos).await,
        (Door::Mqtt, None) => fail("where is the broker? --broker mqtt://ADDRESS, or --publish session"),
    }
}

fn topic(lane: u32) -> String {
    format!("load/{lane}")
}

/// Who reads and who publishes: `each` messages in every lane, and so many copies of each message.
struct Plan {
    scenario: Scenario,
    readers: u32,
    lanes: u32,
    each: u32,
    copies: u32,
    size: usize,
    qos: u8,
    /// Between messages; `None`: saturated.
    interval: Option<Duration>,
}

impl Plan {
    fn new(options: &Options) -> Self {
        let sessions = options.sessions();
        let (readers, lanes, copies) = match options.scenario {
            Scenario::FanOut | Scenario::Idle | Scenario::Slow | Scenario::Soak | Scenario::Bare => {
                (sessions, 1, sessions)
            }
            Scenario::Unicast => (sessions, sessions, 1),
            Scenario::Ingest => (1, sessions, 1),
        };
        Self {
            scenario: options.scenario,
            readers,
            lanes,
            each: options.messages(),
            copies,
            size: options.size as usize,
            qos: options.qos,
            interval: options.rate().map(|rate| Duration::from_secs_f64(rate.recip())),
        }
    }

    /// What a reader subscribes to, and the lanes that it thereby reads.
    fn reading(&self, reader: u32) -> (String, Range<u32>) {
        match self.scenario {
            Scenario::FanOut | Scenario::Idle | Scenario::Slow | Scenario::Soak | Scenario::Bare => (topic(0), 0..1),
            Scenario::Unicast => (topic(reader), reader..reader + 1),
            Scenario::Ingest => ("load/#".into(), 0..self.lanes),
        }
    }
}

/// One of the servers that are compared, with its readers and publishers.
struct Side {
    plan: Arc<Plan>,
    progress: Arc<Progress>,
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    readers: JoinSet<String>,
    publishers: Vec<Publisher>,
    cpu: Vec<Option<f64>>,
    time: Duration,
}

#[derive(Clone, Copy)]
enum Server {
    Gateway,
    /// Writes to every WebSocket, and understands no frame.
    Bare,
}

impl Side {
    async fn open(plan: &Arc<Plan>, server: Server, address: SocketAddr) -> Result<Self> {
        let progress = Arc::new(Progress::new(plan));
        let mut ledgers = Vec::new();
        let mut readers = JoinSet::new();
        let mut sessions = stream::iter(0..plan.readers)
            .map(|reader| async move {
                let (filter, lanes) = plan.reading(reader);
                let session = match server {
                    Server::Bare => Session::connect(address).await?,
                    Server::Gateway => {
                        let mut session = Session::open(address).await?;
                        session.subscribe(&filter, plan.qos).await?;
                        session
                    }
                };
                Ok::<_, crate::Error>((session, lanes))
            })
            .buffered(OPENING);
        while let Some((session, lanes)) = sessions.try_next().await? {
            let ledger = Arc::new(Mutex::new(Ledger::new(lanes, plan.each)));
            ledgers.push(ledger.clone());
            readers.spawn(read(session, ledger, progress.clone()));
        }
        Ok(Self {
            plan: plan.clone(),
            progress,
            ledgers,
            readers,
            publishers: Vec::new(),
            cpu: Vec::new(),
            time: Duration::ZERO,
        })
    }

    /// Sends a part of the messages, waits until they have arrived, and adds up what it cost.
    async fn carry(&mut self, part: Range<u32>, programs: &[Option<&Program>]) -> Result<()> {
        let before = usages(programs)?;
        let started = Instant::now();
        let step = self.publishers.len();
        let mut publishing = JoinSet::new();
        for (first, publisher) in self.publishers.drain(..).enumerate() {
            let (plan, progress, part) = (self.plan.clone(), self.progress.clone(), part.clone());
            publishing.spawn(async move { publish(publisher, &plan, &progress, part, first, step).await });
        }
        for publisher in publishing.join_all().await {
            self.publishers.push(publisher?);
        }
        self.progress.settled(part.end).await;
        self.time += started.elapsed();
        let after = usages(programs)?;
        self.cpu.resize(programs.len(), Some(0.0));
        for ((sum, before), after) in self.cpu.iter_mut().zip(before).zip(after) {
            *sum = (*sum).and_then(|sum| Some(sum + after?.cpu_seconds - before?.cpu_seconds));
        }
        Ok(())
    }

    /// Ends the sessions and closes the books.
    fn close(mut self) -> Outcome {
        let mut ended = Vec::new();
        while let Some(Ok(reason)) = self.readers.try_join_next() {
            ended.push(reason);
        }
        let mut totals = Totals::default();
        for ledger in &self.ledgers {
            let mut ledger = ledger.lock().expect("no reader panics");
            totals.add(std::mem::replace(&mut *ledger, Ledger::new(0..0, 0)).totals());
        }
        Outcome {
            published: u64::from(self.plan.lanes * self.plan.each),
            acks: self.publishers.iter().map(Publisher::acks).sum(),
            totals,
            ended,
            cpu: self.cpu,
            time: self.time,
        }
    }
}

fn usages(programs: &[Option<&Program>]) -> Result<Vec<Option<Usage>>> {
    programs.iter().map(|program| program.map_or(Ok(None), Program::usage)).collect()
}

/// Enters what arrives in the ledger, until the session ends; gives the reason.
async fn read(mut session: Session, ledger: Arc<Mutex<Ledger>>, progress: Arc<Progress>) -> String {
    loop {
        match session.next().await {
            Err(reason) => return reason.to_string(),
            Ok(frame) => match Stamp::find(frame) {
                Some(stamp) => {
                    let now = progress.started.elapsed();
                    let entry = ledger.lock().expect("no reader panics").enter(stamp, now);
                    if entry == Entry::New {
                        progress.arrived(stamp);
                    }
                }
                None => eprintln!("a reader was told: {}", String::from_utf8_lossy(frame)),
            },
        }
    }
}

/// Sends each `step`th message of a part, from the `first` on, when it is due.
async fn publish(
    mut publisher: Publisher,
    plan: &Plan,
    progress: &Progress,
    part: Range<u32>,
    first: usize,
    step: usize,
) -> Result<Publisher> {
    let started = Instant::now();
    for index in part.clone().skip(first).step_by(step) {
        match plan.interval {
            Some(interval) => sleep_until(started + interval * (index - part.start)).await,
            None if step == 1 && index >= WINDOW => progress.complete(index - WINDOW).await,
            None => {}
        }
        let (lane, seq) = (index % plan.lanes, index / plan.lanes);
        let stamp = Stamp { lane, seq, sent: progress.started.elapsed() };
        publisher.publish(&topic(lane), &stamp.payload(plan.size)).await?;
    }
    Ok(publisher)
}

/// How far the messages have come, as all readers together know it. One task at a time waits for it.
struct Progress {
    started: Instant,
    lanes: u32,
    copies: u32,
    /// First copies that have arrived of each message, in the order of sending.
    arrived: Vec<AtomicU32>,
    all: AtomicU64,
    completed: AtomicU32,
    changed: Notify,
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        Self {
            started: Instant::now(),
            lanes: plan.lanes,
            copies: plan.copies,
            arrived: (0..plan.lanes * plan.each).map(|_| AtomicU32::new(0)).collect(),
            all: AtomicU64::new(0),
            completed: AtomicU32::new(0),
            changed: Notify::new(),
        }
    }

    fn arrived(&self, stamp: Stamp) {
        self.all.fetch_add(1, Relaxed);
        let index = (stamp.seq * self.lanes + stamp.lane) as usize;
        if self.arrived[index].fetch_add(1, Relaxed) + 1 == self.copies {
            self.completed.fetch_add(1, Relaxed);
            self.changed.notify_one();
        }
    }

    /// Waits until all readers have a message, or until it must be taken for lost.
    async fn complete(&self, index: u32) {
        self.until(|| self.arrived[index as usize].load(Relaxed) == self.copies).await;
    }

    /// Waits until all readers have the first `count` messages, or until some must be taken for lost.
    async fn settled(&self, count: u32) {
        self.until(|| self.completed.load(Relaxed) == count).await;
    }

    async fn until(&self, is_done: impl Fn() -> bool) {
        while !is_done() {
            let all = self.all.load(Relaxed);
            let waited = timeout(PATIENCE, self.changed.notified()).await;
            if waited.is_err() && self.all.load(Relaxed) == all {
                return;
            }
        }
    }
}
