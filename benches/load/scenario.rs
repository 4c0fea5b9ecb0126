//! A run: opens the sessions, sends the messages, measures meanwhile.

use crate::client::Session;
use crate::house::House;
use crate::ledger::Stamp;
use crate::options::{Options, Scenario, Served};
use crate::page::Histogram;
use crate::plan::{Plan, topic};
use crate::process::check_descriptors;
use crate::progress::{PATIENCE, Progress};
use crate::publisher::Publisher;
use crate::readers::{Clock, Readers};
use crate::report::{Outcome, Report};
use crate::{Result, fail};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Messages that are on their way to readers at once in a saturated run.
const WINDOW: u32 = 64;
/// The ledgers keep a byte and a latency for each.
const MAX_DELIVERIES: u64 = 100_000_000;
/// Time for memory to settle, and for a duplicate to show.
const CALM: Duration = Duration::from_secs(1);

pub async fn run(options: &Options) -> Result<Report> {
    check(options)?;
    let plan = Arc::new(Plan::new(options));
    let (mut house, model) = match options.server {
        Served::Bare | Served::Coalescing => {
            let mut gateway = House::gateway(&options.on_its_own()).await?;
            let model = probe(&mut gateway, &options.on_its_own()).await?;
            (House::bare(options, options.server).await?, model)
        }
        Served::Gateway | Served::MosquittoWs | Served::Node | Served::Nchan => {
            let mut house = House::start(options).await?;
            let model = probe(&mut house, options).await?;
            (house, model)
        }
    };
    sleep(CALM).await;
    let before = house.usage()?;

    eprintln!("opening {} sessions", options.sessions());
    let mut side = Side::open(options, &plan, &mut house).await?;
    let opened = house.usage()?;
    side.begin(options, &mut house, &model).await?;
    sleep(CALM).await;
    let settled = house.usage()?;

    let mut bare = None;
    if options.floor {
        let mut house = House::bare(options, Served::Bare).await?;
        let mut side = Side::open(options, &plan, &mut house).await?;
        side.begin(options, &mut house, &model).await?;
        bare = Some((house, side));
    }

    let total = plan.total();
    eprintln!("sending {total} messages");
    let histogram = delivery_times(&house).await?;
    let rounds = if options.floor { options.rounds.min(total) } else { 1 };
    for round in 0..rounds {
        let place = |round| (u64::from(total) * u64::from(round) / u64::from(rounds)) as u32;
        let part = place(round)..place(round + 1);
        side.carry(part.clone(), &house).await?;
        if let Some((house, side)) = &mut bare {
            side.carry(part, house).await?;
        }
    }
    sleep(CALM).await;
    let delivery = delivery_times(&house).await?.since(&histogram);
    Ok(Report {
        opening: side.opening,
        names: house.names(),
        usage: [before, opened, settled, house.usage()?],
        delivery_seconds: [0.5, 0.99].map(|share| delivery.percentile(share)),
        server: side.close().await?,
        bare: match bare {
            Some((_, side)) => Some(side.close().await?),
            None => None,
        },
    })
}

/// What does not go together.
fn check(options: &Options) -> Result<()> {
    let is_fan_out = options.scenario == Scenario::FanOut;
    let is_gateway = options.server == Served::Gateway;
    let deliveries = u64::from(options.sessions()) * u64::from(options.messages());
    match options.server {
        Served::Nchan | Served::Bare | Served::Coalescing if !is_fan_out || options.qos > 0 => {
            return fail("this server does fan-out at qos 0 only");
        }
        _ if options.floor && !(is_fan_out && is_gateway) => {
            return fail("--floor goes with fan-out of a gateway only");
        }
        _ if options.max_ratio.is_some() && !options.floor => return fail("--max-ratio goes with --floor"),
        _ if options.upstream.is_some() && (!is_gateway || options.at.is_some()) => {
            return fail("--upstream is for a gateway that the tool starts");
        }
        _ if options.max_rate.is_some() && (!is_gateway || options.floor || options.rate().is_none()) => {
            return fail("--max-rate goes with a gateway and a --rate, and without --floor");
        }
        _ if deliveries > MAX_DELIVERIES => {
            return fail(format!("{deliveries} deliveries are more than {MAX_DELIVERIES}"));
        }
        _ => {}
    }
    check_descriptors(2 * u64::from(options.sessions()) + 100)
}

/// Sends one message through the whole house and gives the frame that arrives, and the payload in it: a sign that all
/// is connected, and the bare program's model.
async fn probe(house: &mut House, options: &Options) -> Result<(Vec<u8>, String)> {
    let stamp = Stamp { lane: u32::MAX, seq: 0, sent: Duration::ZERO };
    let payload = stamp.payload(options.size as usize);
    let mut session = Session::enter(house.server, &topic(0)).await?;
    session.subscribe(&topic(0), options.qos).await?;
    let mut publisher = house.publisher(options, &(Vec::new(), String::new())).await?;
    publisher.publish(&topic(0), &payload).await?;
    let arrival = async {
        loop {
            let frame = session.next().await?;
            if Stamp::find(frame) == Some(stamp) {
                return Ok::<_, crate::Error>(frame.to_vec());
            }
        }
    };
    match timeout(PATIENCE, arrival).await {
        Ok(frame) => Ok((frame?, payload)),
        Err(_) => fail("a first message did not arrive"),
    }
}

/// What the gateway says of its deliveries so far.
async fn delivery_times(house: &House) -> Result<Histogram> {
    if !house.has_metrics() {
        return Ok(Histogram::default());
    }
    Ok(Histogram::read(&house.metrics().await?, "tidegate_delivery_seconds"))
}

/// One of the servers that are compared, with its readers and publishers.
struct Side {
    plan: Arc<Plan>,
    clock: Clock,
    progress: Arc<Progress>,
    readers: Readers,
    publishers: Vec<Publisher>,
    opening: Duration,
    cpu: Vec<Option<f64>>,
    time: Duration,
}

impl Side {
    /// Opens the readers' sessions, which do not read yet.
    async fn open(options: &Options, plan: &Arc<Plan>, house: &mut House) -> Result<Self> {
        let clock = Clock::start();
        let mut readers = Readers::start(options, plan, house.server, clock).await?;
        let started = Instant::now();
        readers.open().await?;
        Ok(Self {
            plan: plan.clone(),
            clock,
            progress: Arc::default(),
            readers,
            publishers: Vec::new(),
            opening: started.elapsed(),
            cpu: Vec::new(),
            time: Duration::ZERO,
        })
    }

    /// Lets the readers subscribe, and opens the publishers.
    async fn begin(&mut self, options: &Options, house: &mut House, model: &(Vec<u8>, String)) -> Result<()> {
        self.readers.begin(&self.progress).await?;
        let count = if options.scenario == Scenario::Ingest { options.sessions() } else { 1 };
        for _ in 0..count {
            self.publishers.push(house.publisher(options, model).await?);
        }
        Ok(())
    }

    /// Sends a part of the messages, waits until they have arrived, and adds up what it cost.
    async fn carry(&mut self, part: Range<u32>, house: &House) -> Result<()> {
        let before = house.usage()?;
        let started = Instant::now();
        let step = self.publishers.len();
        let mut publishing = JoinSet::new();
        for (first, publisher) in self.publishers.drain(..).enumerate() {
            let (plan, progress, part) = (self.plan.clone(), self.progress.clone(), part.clone());
            let clock = self.clock;
            publishing.spawn(async move { publish(publisher, &plan, &progress, clock, part, first, step).await });
        }
        for publisher in publishing.join_all().await {
            self.publishers.push(publisher?);
        }
        let copies = u64::from(self.plan.copies);
        let arrival = async {
            match self.plan.max_rate {
                Some(_) => self.progress.until_lasts(u64::from(self.plan.lanes) * copies).await,
                None => self.progress.until(u64::from(part.end) * copies).await,
            }
        };
        // What comes later counts as lost.
        let _ = timeout(self.plan.grace, arrival).await;
        self.time += started.elapsed();
        let after = house.usage()?;
        self.cpu.resize(after.len(), Some(0.0));
        for ((sum, before), after) in self.cpu.iter_mut().zip(before).zip(after) {
            *sum = (*sum).and_then(|sum| Some(sum + after?.cpu_seconds - before?.cpu_seconds));
        }
        Ok(())
    }

    /// Ends the sessions and closes the books.
    async fn close(self) -> Result<Outcome> {
        Ok(Outcome {
            published: u64::from(self.plan.total()),
            are_answered: self.publishers.iter().all(Publisher::is_answered),
            acks: self.publishers.iter().map(Publisher::acks).sum(),
            account: self.readers.close().await?,
            cpu: self.cpu,
            time: self.time,
        })
    }
}

/// Sends each `step`th message of a part, from the `first` on, when it is due.
async fn publish(
    mut publisher: Publisher,
    plan: &Plan,
    progress: &Progress,
    clock: Clock,
    part: Range<u32>,
    first: usize,
    step: usize,
) -> Result<Publisher> {
    let started = Instant::now();
    for index in part.clone().skip(first).step_by(step) {
        match plan.interval {
            Some(interval) => sleep_until(started + interval * (index - part.start)).await,
            None if step == 1 && index >= WINDOW => {
                progress.until(u64::from(index + 1 - WINDOW) * u64::from(plan.copies)).await;
            }
            None => {}
        }
        let (lane, seq) = (index % plan.lanes, index / plan.lanes);
        let stamp = Stamp { lane, seq, sent: clock.elapsed() };
        publisher.publish(&topic(lane), &stamp.payload(plan.size)).await?;
    }
    Ok(publisher)
}
