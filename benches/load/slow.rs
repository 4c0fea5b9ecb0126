//! Slow readers: what those who read notice of those who don't. The same messages go to the fast readers in turns, without
//! and with sessions beside them that read nothing.

use crate::client::Session;
use crate::house::House;
use crate::ledger::{Entry, Ledger, Stamp, Totals};
use crate::options::{Options, name};
use crate::page::total;
use crate::process::check_descriptors;
use crate::publisher::Publisher;
use crate::{Result, fail};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until};

/// Sessions that open at once.
const OPENING: usize = 64;
/// Messages a second that fill the connections and queues of the slow readers, and bytes of each.
const FLOOD: (f64, usize) = (40.0, 32_000);
/// How long the slow readers may take to fill; with a turn it must stay within `session.write_timeout`, which ends them.
const FILLING: Duration = Duration::from_secs(15);
/// How long nothing may arrive before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

const LIMIT: &str = "tidegate_outbox_limit_bytes";
const HELD: &str = "tidegate_outbox_bytes";
const DROPPED: &str = "tidegate_deliveries_dropped_total";

/// Runs the turns and gives the line.
pub async fn run(options: &Options) -> Result<Value> {
    let Some(rate) = options.rate() else { return fail("slow has a --rate") };
    let (fast, slow, each) = (options.sessions(), options.slow, options.messages());
    check_descriptors(2 * u64::from(fast + slow) + 100)?;
    let house = House::gateway(options).await?;
    let Some(broker) = house.broker_address else { return fail("slow starts its own broker") };
    eprintln!("opening {fast} sessions");
    let readers = Readers::open(&house, options).await?;
    let mut publisher = Publisher::mqtt(broker, options.qos).await?;
    let (idle, _) = house.held()?;
    let metric = async |name| Ok::<_, crate::Error>(total(&house.metrics().await?, name).unwrap_or(0.0));

    let (mut alone, mut beside, mut peak) = (Vec::new(), Vec::new(), idle);
    for turn in 0..2 * options.pairs {
        let crowd = if turn % 2 == 0 { Vec::new() } else { stall(&house, slow).await? };
        eprintln!("turn {turn}: {} beside", crowd.len());
        let started = Instant::now();
        for index in 0..each {
            sleep_until(started + Duration::from_secs_f64(f64::from(index) / rate)).await;
            let stamp = Stamp { lane: 0, seq: turn * each + index, sent: readers.started.elapsed() };
            publisher.publish("load/0", &stamp.payload(options.size as usize)).await?;
            peak = peak.max(house.held()?.0);
        }
        readers.settled(u64::from(turn + 1) * u64::from(each) * u64::from(fast)).await;
        let [p99] = readers.take_latencies().percentiles([0.99]);
        if crowd.is_empty() {
            alone.push(p99)
        } else {
            beside.push(p99)
        }
        drop(crowd);
        while metric(HELD).await? > 0.0 {
            sleep(Duration::from_millis(100)).await;
        }
    }
    let (limit, dropped) = (metric(LIMIT).await? as u64, metric(DROPPED).await?);
    Ok(report(options, readers.close(), (&alone, &beside), (idle, peak, limit), dropped))
}

/// Opens sessions that read nothing from here on, and fills them until the gateway drops what comes for them.
async fn stall(house: &House, count: u32) -> Result<Vec<Session>> {
    let sessions = (0..count).map(async |_| {
        let mut session = Session::open(house.server.address).await?;
        session.subscribe("load/flood", 0).await?;
        session.subscribe("load/0", 0).await?;
        Ok::<_, crate::Error>(session)
    });
    let crowd = stream::iter(sessions).buffered(OPENING).try_collect().await?;
    let Some(broker) = house.broker_address else { return fail("slow starts its own broker") };
    let mut publisher = Publisher::mqtt(broker, 0).await?;
    let (payload, until) = (".".repeat(FLOOD.1), Instant::now() + FILLING);
    let dropped = async || Ok::<_, crate::Error>(total(&house.metrics().await?, DROPPED).unwrap_or(0.0));
    let (before, mut ticks) = (dropped().await?, interval(Duration::from_secs_f64(FLOOD.0.recip())));
    while dropped().await? < before + f64::from(10 * count) {
        if Instant::now() > until {
            return fail("the slow readers did not fill");
        }
        for _ in 0..FLOOD.0 as u32 {
            ticks.tick().await;
            publisher.publish("load/flood", &payload).await?;
        }
    }
    Ok(crowd)
}

/// The fast readers and their books.
struct Readers {
    started: Instant,
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    arrived: Arc<AtomicU64>,
    tasks: JoinSet<String>,
}

impl Readers {
    async fn open(house: &House, options: &Options) -> Result<Readers> {
        let sessions = (0..options.sessions()).map(async |_| {
            let mut session = Session::open(house.server.address).await?;
            session.subscribe("load/0", options.qos).await?;
            Ok::<_, crate::Error>(session)
        });
        let mut sessions = stream::iter(sessions).buffered(OPENING);
        let mut readers =
            Readers { started: Instant::now(), ledgers: Vec::new(), arrived: Arc::default(), tasks: JoinSet::new() };
        let all = 2 * options.pairs * options.messages();
        while let Some(session) = sessions.try_next().await? {
            let ledger = Arc::new(Mutex::new(Ledger::new(0..1, all)));
            readers.ledgers.push(ledger.clone());
            readers.tasks.spawn(read(session, ledger, readers.arrived.clone(), readers.started));
        }
        Ok(readers)
    }

    /// Waits until so many deliveries have arrived, or until some must be taken for lost.
    async fn settled(&self, count: u64) {
        let mut last = (self.arrived.load(Relaxed), Instant::now());
        while last.0 < count && last.1.elapsed() < PATIENCE {
            sleep(Duration::from_millis(20)).await;
            let now = self.arrived.load(Relaxed);
            if now > last.0 {
                last = (now, Instant::now());
            }
        }
    }

    /// Those of the turn that is over.
    fn take_latencies(&self) -> Totals {
        let latencies =
            self.ledgers.iter().flat_map(|ledger| ledger.lock().expect("no reader panics").take_latencies());
        Totals { latencies: latencies.collect(), ..Totals::default() }
    }

    /// Closes the books; and why sessions ended that should have lived.
    fn close(mut self) -> (Totals, Vec<String>) {
        let mut ended = Vec::new();
        while let Some(Ok(reason)) = self.tasks.try_join_next() {
            ended.push(reason);
        }
        let mut totals = Totals::default();
        for ledger in &self.ledgers {
            let mut ledger = ledger.lock().expect("no reader panics");
            totals.add(std::mem::replace(&mut *ledger, Ledger::new(0..0, 0)).totals());
        }
        (totals, ended)
    }
}

/// Enters what arrives in the ledger, until the session ends; gives the reason.
async fn read(mut session: Session, ledger: Arc<Mutex<Ledger>>, arrived: Arc<AtomicU64>, started: Instant) -> String {
    loop {
        match session.next().await {
            Err(reason) => return reason.to_string(),
            Ok(frame) => match Stamp::find(frame) {
                Some(stamp) => {
                    if ledger.lock().expect("no reader panics").enter(stamp, started.elapsed()) == Entry::New {
                        arrived.fetch_add(1, Relaxed);
                    }
                }
                None => eprintln!("a fast reader was told: {}", String::from_utf8_lossy(frame)),
            },
        }
    }
}

fn report(
    options: &Options,
    (totals, ended): (Totals, Vec<String>),
    (alone, beside): (&[u32], &[u32]),
    (idle, peak, limit): (u64, u64, u64),
    dropped: f64,
) -> Value {
    let mut ratios: Vec<_> =
        alone.iter().zip(beside).map(|(alone, beside)| f64::from(*beside) / f64::from((*alone).max(1))).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    let Totals { duplicated, reordered, stray, .. } = totals;
    let mut failures: Vec<_> =
        [(totals.lost(), "lost"), (duplicated, "duplicated"), (reordered, "reordered"), (stray, "misdirected")]
            .into_iter()
            .filter(|&(count, _)| count > 0)
            .map(|(count, fault)| format!("{count} {fault}"))
            .collect();
    if let [first, ..] = ended.as_slice() {
        failures.push(format!("{} fast sessions ended, one because {first}", ended.len()));
    }
    if ratio > options.max_delay {
        failures
            .push(format!("{ratio:.2} times as late beside slow readers, at most {} were allowed", options.max_delay));
    }
    if peak - idle > limit {
        failures.push(format!("the gateway grew by {} bytes, at most {limit} were allowed", peak - idle));
    }
    if dropped == 0.0 {
        failures.push("nothing was dropped, so nobody was slow".into());
    }
    json!({
        "scenario": name(options.scenario),
        "options": {
            "sessions": options.sessions(), "slow": options.slow, "pairs": options.pairs,
            "messages": options.messages(), "rate": options.rate(), "size": options.size, "qos": options.qos,
        },
        "expected": totals.expected,
        "received": totals.received,
        "lost": totals.lost(),
        "duplicated": totals.duplicated,
        "reordered": totals.reordered,
        "stray": totals.stray,
        "dropped": dropped,
        "p99_us": {"alone": alone, "beside": beside},
        "ratio": (ratio * 1000.0).round() / 1000.0,
        "rss": {"idle": idle, "peak": peak, "limit": limit},
        "failures": failures,
    })
}
