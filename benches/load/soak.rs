//! The soak: sessions come and go for as long as one likes, and what the gateway holds must not grow by it.

use crate::client::Session;
use crate::house::House;
use crate::ledger::{Entry, Ledger, Stamp, Totals};
use crate::options::{Options, name};
use crate::page::total;
use crate::process::check_descriptors;
use crate::publisher::Publisher;
use crate::trend::Trend;
use crate::{Result, fail};
use rand::Rng;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// Topics that the readers read.
const LANES: u32 = 20;
/// Sessions that open at once.
const OPENING: usize = 64;
/// Seconds from coming to leaving.
const STAY: Range<f64> = 2.0..30.0;
/// Seconds for which a slow reader reads nothing; less than `session.write_timeout`, which would end it.
const STALL: Range<f64> = 5.0..15.0;
/// Messages a second for the slow readers, and bytes of each: more than a stalled connection holds.
const FLOOD: (f64, usize) = (60.0, 32_000);
/// How long an answer may take, and the last message.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the gateway may take to forget sessions that have left: a connection lingers, a link says goodbye.
const FORGETTING: Duration = Duration::from_secs(60);
/// The share of the run at its start whose samples are left out.
const WARM_UP: f64 = 0.25;
/// What must be at 0 without sessions.
const GAUGES: [&str; 5] = [
    "tidegate_sessions_open",
    "tidegate_subscriptions",
    "tidegate_broker_links",
    "tidegate_outbox_deliveries",
    "tidegate_outbox_bytes",
];

/// Runs the soak and gives its line.
pub async fn run(options: &Options) -> Result<Value> {
    let Some(rate) = options.rate() else { return fail("a soak has a --rate") };
    let sessions = options.sessions();
    check_descriptors(2 * u64::from(sessions) + 100)?;
    let house = House::gateway(options).await?;
    let Some(broker) = house.broker_address else { return fail("a soak starts its own broker") };
    Session::open(house.server.address).await?.close().await?;
    let idle = idle(&house).await?;

    eprintln!("opening {sessions} sessions");
    let crowd = Arc::new(Crowd::new(house.server.address, options, rate));
    let mut seats = JoinSet::new();
    for seat in 0..sessions {
        seats.spawn(crowd.clone().sit(seat));
    }
    crowd.seated.acquire_many(sessions).await?.forget();

    eprintln!("soaking for {} seconds", options.seconds);
    let samples = tokio::select! {
        samples = sample(&house, options.seconds) => samples?,
        why = publish(Publisher::mqtt(broker, 1).await?, &crowd, rate) => return fail(why),
        why = flood(Publisher::mqtt(broker, 0).await?) => return fail(why),
    };
    crowd.settled().await;
    crowd.over.cancel();
    while let Some(ended) = seats.join_next().await {
        ended?;
    }
    let left = left(&house, idle.1).await?;
    Ok(report(options, &crowd, &samples, idle, left))
}

/// Resident bytes and descriptors of a gateway that nobody uses.
async fn idle(house: &House) -> Result<(u64, u64)> {
    let mut least = house.held()?;
    for _ in 0..20 {
        sleep(Duration::from_millis(150)).await;
        let (rss, descriptors) = house.held()?;
        least = (rss, least.1.min(descriptors));
    }
    Ok(least)
}

/// What the gateway holds: the time in seconds, resident bytes, descriptors.
struct Sample(f64, f64, f64);

/// Looks at the gateway for so many seconds.
async fn sample(house: &House, seconds: u32) -> Result<Vec<Sample>> {
    let started = Instant::now();
    let mut samples = Vec::new();
    let mut ticks = interval(Duration::from_secs_f64((f64::from(seconds) / 200.0).clamp(0.25, 10.0)));
    while started.elapsed() < Duration::from_secs(seconds.into()) {
        ticks.tick().await;
        let (rss, descriptors) = house.held()?;
        samples.push(Sample(started.elapsed().as_secs_f64(), rss as f64, descriptors as f64));
    }
    Ok(samples)
}

/// Sends every message of the lanes when it is due, then waits. Comes back only if that fails.
async fn publish(mut publisher: Publisher, crowd: &Crowd, rate: f64) -> String {
    let started = Instant::now();
    for index in 0..LANES * crowd.each {
        sleep_until(started + Duration::from_secs_f64(f64::from(index) / rate)).await;
        let stamp = Stamp { lane: index % LANES, seq: index / LANES, sent: crowd.started.elapsed() };
        if let Err(error) = publisher.publish(&lane_topic(stamp.lane), &stamp.payload(crowd.size)).await {
            return error.to_string();
        }
    }
    std::future::pending().await
}

/// Keeps the slow readers busy.
async fn flood(mut publisher: Publisher) -> String {
    let payload = ".".repeat(FLOOD.1);
    let mut ticks = interval(Duration::from_secs_f64(FLOOD.0.recip()));
    loop {
        ticks.tick().await;
        if let Err(error) = publisher.publish("load/flood", &payload).await {
            return error.to_string();
        }
    }
}

/// What is still there when all sessions have left: descriptors, and each gauge.
async fn left(house: &House, idle: u64) -> Result<(u64, Map<String, Value>)> {
    let until = Instant::now() + FORGETTING;
    loop {
        let page = house.metrics().await?;
        let gauges = GAUGES.iter().map(|&gauge| (gauge.to_owned(), json!(total(&page, gauge)))).collect::<Map<_, _>>();
        sleep(Duration::from_millis(250)).await;
        let (_, descriptors) = house.held()?;
        let is_empty = descriptors <= idle && gauges.values().all(|gauge| *gauge == 0.0);
        if is_empty || Instant::now() > until {
            return Ok((descriptors, gauges));
        }
    }
}

/// All seats, and what is known of them together.
struct Crowd {
    gateway: SocketAddr,
    sessions: u32,
    /// Messages on each lane.
    each: u32,
    size: usize,
    started: Instant,
    /// Room for sessions that are opening.
    door: Semaphore,
    /// Seats that were taken once.
    seated: Semaphore,
    over: CancellationToken,
    /// Messages that have arrived where all must.
    arrived: AtomicU64,
    tally: Tally,
    totals: Mutex<Totals>,
    ended: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Tally {
    opened: AtomicU64,
    resumed: AtomicU64,
    closed: AtomicU64,
    cut: AtomicU64,
    acks: AtomicU64,
    /// Deliveries that came once more, and said so.
    again: AtomicU64,
    dropped: AtomicU64,
}

/// What a seat's sessions do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    /// Reads one lane from the beginning to the end.
    Reader,
    /// Reads one lane in a session that is kept, over many connections, and acknowledges each message when the next
    /// one comes, so that there is always one to deliver again.
    Returning,
    /// Subscribes, unsubscribes and publishes, and leaves for a newcomer.
    PasserBy,
    /// Reads far less than it gets.
    Slow,
}

impl Crowd {
    fn new(gateway: SocketAddr, options: &Options, rate: f64) -> Self {
        Self {
            gateway,
            sessions: options.sessions(),
            each: (f64::from(options.seconds) * rate / f64::from(LANES)) as u32,
            size: options.size as usize,
            started: Instant::now(),
            door: Semaphore::new(OPENING),
            seated: Semaphore::new(0),
            over: CancellationToken::new(),
            arrived: AtomicU64::new(0),
            tally: Tally::default(),
            totals: Mutex::default(),
            ended: Mutex::default(),
        }
    }

    fn part(&self, seat: u32) -> Part {
        match seat % 20 {
            _ if seat < (self.sessions / 500).clamp(1, 8) => Part::Slow,
            0..9 => Part::Reader,
            9 | 10 => Part::Returning,
            _ => Part::PasserBy,
        }
    }

    /// Seats whose part is to get every message of their lane.
    fn books(&self) -> u64 {
        (0..self.sessions).filter(|&seat| matches!(self.part(seat), Part::Reader | Part::Returning)).count() as u64
    }

    async fn sit(self: Arc<Self>, seat: u32) {
        let lane = seat / 20 % LANES;
        let end = match self.part(seat) {
            Part::Reader => self.read(lane, (seat % 3) as u8).await,
            Part::Returning => self.return_to(lane, &format!("load-{seat}")).await,
            Part::PasserBy => self.pass_by(lane, seat).await,
            Part::Slow => self.dawdle().await,
        };
        if let Err(error) = end {
            self.ended.lock().expect("no seat panics").push(format!("{:?}: {error}", self.part(seat)));
            // Nobody waits for a seat that is given up.
            self.seated.add_permits(1);
        }
    }

    async fn read(&self, lane: u32, qos: u8) -> Result<()> {
        let (mut session, _) = self.open(&json!({"type": "auth"})).await?;
        session.subscribe(&lane_topic(lane), qos).await?;
        self.seated.add_permits(1);
        let mut ledger = self.ledger(lane);
        while let Some(frame) = self.next(&mut session, None).await? {
            match Stamp::find(frame) {
                Some(stamp) => self.enter(&mut ledger, stamp),
                None => return fail(format!("it was told {}", String::from_utf8_lossy(frame))),
            }
        }
        self.totals.lock().expect("no seat panics").add(ledger.totals());
        self.close(session).await
    }

    async fn return_to(&self, lane: u32, client: &str) -> Result<()> {
        let auth = json!({
            "type": "auth", "clientId": client, "clean": false, "sessionExpiry": 600,
            "subscriptions": [{"topic": lane_topic(lane), "qos": 1, "ack": "manual"}],
        });
        let mut ledger = self.ledger(lane);
        for was_here in std::iter::once(false).chain(std::iter::repeat(true)) {
            let (mut session, welcome) = self.open(&auth).await?;
            if welcome["sessionPresent"] != was_here {
                return fail(format!("a session was {}expected: {welcome}", if was_here { "" } else { "not " }));
            }
            if was_here {
                self.tally.resumed.fetch_add(1, Relaxed);
            } else {
                self.seated.add_permits(1);
            }
            let leaving = Instant::now() + random(STAY);
            let mut unacked = None;
            while let Some(frame) = self.next(&mut session, Some(leaving)).await? {
                let delivery: Value = serde_json::from_slice(frame)?;
                match Stamp::find(frame) {
                    Some(stamp) if delivery["dup"] == true && ledger.holds(stamp) => {
                        self.tally.again.fetch_add(1, Relaxed);
                    }
                    Some(stamp) => self.enter(&mut ledger, stamp),
                    None => return fail(format!("it was told {delivery}")),
                }
                if let Some(msgid) = unacked.replace(delivery["msgid"].clone()) {
                    session.send(&json!({"type": "ack", "msgid": msgid})).await?;
                }
            }
            if self.over.is_cancelled() {
                self.totals.lock().expect("no seat panics").add(ledger.totals());
                return self.close(session).await;
            }
            self.leave(session).await?;
            sleep(random(0.0..1.0)).await;
        }
        Ok(())
    }

    async fn pass_by(&self, lane: u32, seat: u32) -> Result<()> {
        for is_first in std::iter::once(true).chain(std::iter::repeat(false)) {
            let mut visit = Visit::open(self, lane, seat).await?;
            if is_first {
                self.seated.add_permits(1);
            }
            visit.stay(Instant::now() + random(STAY)).await?;
            let Visit { session, ledger, .. } = visit;
            // How much of the lane it was there for is not known, so nothing of it can be missed.
            let totals = ledger.totals();
            let totals = Totals { expected: totals.received, ..totals };
            self.totals.lock().expect("no seat panics").add(totals);
            if self.over.is_cancelled() {
                return self.close(session).await;
            }
            self.leave(session).await?;
        }
        Ok(())
    }

    async fn dawdle(&self) -> Result<()> {
        let (mut session, _) = self.open(&json!({"type": "auth"})).await?;
        session.subscribe("load/flood", 0).await?;
        self.seated.add_permits(1);
        while !self.over.is_cancelled() {
            let _ = timeout(random(STALL), self.over.cancelled()).await;
            let enough = Instant::now() + Duration::from_secs(5);
            while let Some(frame) = self.next(&mut session, Some(enough)).await? {
                // Short is only what is no message.
                if frame.len() < FLOOD.1 {
                    let told: Value = serde_json::from_slice(frame)?;
                    match told["count"].as_u64() {
                        Some(count) if told["code"] == "dropped" => self.tally.dropped.fetch_add(count, Relaxed),
                        _ => return fail(format!("it was told {told}")),
                    };
                }
            }
        }
        self.close(session).await
    }

    /// The next frame, if it comes before `until` and before all is over.
    async fn next<'a>(&self, session: &'a mut Session, until: Option<Instant>) -> Result<Option<&'a [u8]>> {
        let enough = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            frame = session.next() => frame.map(Some),
            () = enough => Ok(None),
            () = self.over.cancelled() => Ok(None),
        }
    }

    async fn open(&self, auth: &Value) -> Result<(Session, Value)> {
        let _room = self.door.acquire().await?;
        let opened = match timeout(PATIENCE, Session::open_with(self.gateway, auth)).await {
            Ok(opened) => opened?,
            Err(_) => return fail("no session was opened in time"),
        };
        self.tally.opened.fetch_add(1, Relaxed);
        Ok(opened)
    }

    /// One way or the other.
    async fn leave(&self, session: Session) -> Result<()> {
        if rand::rng().random() {
            return self.close(session).await;
        }
        self.tally.cut.fetch_add(1, Relaxed);
        drop(session);
        Ok(())
    }

    async fn close(&self, session: Session) -> Result<()> {
        self.tally.closed.fetch_add(1, Relaxed);
        match timeout(PATIENCE, session.close()).await {
            Ok(closed) => closed,
            Err(_) => fail("a Close was not answered in time"),
        }
    }

    fn ledger(&self, lane: u32) -> Ledger {
        Ledger::new(lane..lane + 1, self.each)
    }

    /// Enters a message where every one must arrive.
    fn enter(&self, ledger: &mut Ledger, stamp: Stamp) {
        if ledger.enter(stamp, self.started.elapsed()) == Entry::New {
            self.arrived.fetch_add(1, Relaxed);
        }
    }

    /// Waits until all messages are where they must be, or until some must be taken for lost.
    async fn settled(&self) {
        let expected = self.books() * u64::from(self.each);
        let mut arrived = None;
        while arrived != Some(self.arrived.load(Relaxed)) && self.arrived.load(Relaxed) < expected {
            arrived = Some(self.arrived.load(Relaxed));
            let _ = timeout(PATIENCE / 3, async {
                while self.arrived.load(Relaxed) < expected {
                    sleep(Duration::from_millis(100)).await;
                }
            })
            .await;
        }
    }
}

/// One session of a passer-by.
struct Visit<'a> {
    crowd: &'a Crowd,
    session: Session,
    lane: u32,
    seat: u32,
    ledger: Ledger,
    is_reading: bool,
    qos: u8,
    /// Publishes, and how many of them to its own topic have come back.
    published: u64,
    came_back: u64,
}

impl<'a> Visit<'a> {
    /// With a topic that it alone reads and writes, at a qos that it keeps.
    async fn open(crowd: &'a Crowd, lane: u32, seat: u32) -> Result<Self> {
        let mut auth = json!({"type": "auth"});
        if rand::rng().random() {
            auth["will"] = json!({"topic": "load/will", "payload": "gone"});
        }
        let (mut session, _) = crowd.open(&auth).await?;
        let qos = rand::rng().random_range(0..=2);
        session.subscribe(&own_topic(seat), qos).await?;
        let ledger = crowd.ledger(lane);
        Ok(Self { crowd, session, lane, seat, ledger, is_reading: false, qos, published: 0, came_back: 0 })
    }

    async fn stay(&mut self, leaving: Instant) -> Result<()> {
        while Instant::now() < leaving && !self.crowd.over.is_cancelled() {
            let next = rand::rng().random_range(0..3);
            match next {
                0 if self.is_reading => self.stop_reading().await?,
                0 => self.start_reading().await?,
                1 => self.talk_to_itself().await?,
                _ => self.leave_a_note().await?,
            }
            let pause = leaving.min(Instant::now() + random(0.5..3.0));
            while let Some(frame) = self.crowd.next(&mut self.session, Some(pause)).await? {
                let frame = serde_json::from_slice(frame)?;
                self.look_at(&frame)?;
            }
        }
        Ok(())
    }

    async fn start_reading(&mut self) -> Result<()> {
        let topic = lane_topic(self.lane);
        self.session.send(&json!({"type": "subscribe", "topic": topic, "qos": self.qos})).await?;
        self.until(|_, frame| frame["type"] == "subscribed").await?;
        self.is_reading = true;
        Ok(())
    }

    async fn stop_reading(&mut self) -> Result<()> {
        self.session.send(&json!({"type": "unsubscribe", "topic": lane_topic(self.lane)})).await?;
        self.until(|_, frame| frame["type"] == "unsubscribed").await?;
        self.is_reading = false;
        Ok(())
    }

    /// Publishes to its own topic: that is acknowledged, and comes back, in whatever order.
    async fn talk_to_itself(&mut self) -> Result<()> {
        let (topic, expected) = (own_topic(self.seat), self.came_back + 1);
        self.publish(&topic, &expected.to_string(), false).await?;
        let mut is_acked = false;
        self.until(move |visit, frame| {
            is_acked |= frame["type"] == "ack";
            is_acked && visit.came_back == expected
        })
        .await?;
        self.crowd.tally.acks.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Publishes what the broker keeps, on one of a few topics.
    async fn leave_a_note(&mut self) -> Result<()> {
        self.publish(&format!("load/kept/{}", self.seat % 100), "a note", true).await?;
        self.until(|_, frame| frame["type"] == "ack").await?;
        self.crowd.tally.acks.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn publish(&mut self, topic: &str, payload: &str, retain: bool) -> Result<()> {
        self.published += 1;
        let frame = json!({
            "type": "publish", "msgid": self.published, "topic": topic, "payload": payload,
            "qos": self.qos, "retain": retain,
        });
        self.session.send(&frame).await
    }

    /// Reads until that is so, of a frame or of what the frames so far have come to.
    async fn until(&mut self, mut is_so: impl FnMut(&Self, &Value) -> bool) -> Result<()> {
        let reading = async {
            loop {
                let frame: Value = serde_json::from_slice(self.session.next().await?)?;
                self.look_at(&frame)?;
                if is_so(self, &frame) {
                    return Ok(());
                }
            }
        };
        match timeout(PATIENCE, reading).await {
            Ok(done) => done,
            Err(_) => fail("an answer did not come in time"),
        }
    }

    fn look_at(&mut self, frame: &Value) -> Result<()> {
        match frame["type"].as_str() {
            Some("mqtt") => {}
            Some("ack") if frame["msgid"] == self.published => return Ok(()),
            Some("subscribed") if frame["topics"][0]["qos"] == self.qos => return Ok(()),
            Some("unsubscribed") if frame["topics"][0]["error"].is_null() => return Ok(()),
            _ => return fail(format!("it was told {frame}")),
        }
        if frame["topic"] == own_topic(self.seat) {
            self.came_back += 1;
            if frame["payload"].as_str().and_then(|number| number.parse().ok()) != Some(self.came_back) {
                return fail(format!("the {}th of its own messages was expected: {frame}", self.came_back));
            }
            return Ok(());
        }
        match frame["payload"].as_str().and_then(|payload| Stamp::find(payload.as_bytes())) {
            Some(stamp) if self.is_reading => drop(self.ledger.enter(stamp, self.crowd.started.elapsed())),
            // `subscribed` precedes the first, `unsubscribed` comes behind the last.
            _ => return fail(format!("it did not ask for {frame}")),
        }
        Ok(())
    }
}

fn lane_topic(lane: u32) -> String {
    format!("load/lane/{lane}")
}

fn own_topic(seat: u32) -> String {
    format!("load/own/{seat}")
}

fn random(seconds: Range<f64>) -> Duration {
    Duration::from_secs_f64(rand::rng().random_range(seconds))
}

fn report(
    options: &Options,
    crowd: &Crowd,
    samples: &[Sample],
    idle: (u64, u64),
    left: (u64, Map<String, Value>),
) -> Value {
    let warm = samples.len() - (samples.len() as f64 * (1.0 - WARM_UP)) as usize;
    let trend = |figure: fn(&Sample) -> f64| {
        Trend::of(&samples[warm..].iter().map(|sample| (sample.0, figure(sample))).collect::<Vec<_>>())
    };
    let (rss, descriptors) = (trend(|sample| sample.1), trend(|sample| sample.2));
    let mut totals = std::mem::take(&mut *crowd.totals.lock().expect("no seat panics"));
    let ended = crowd.ended.lock().expect("no seat panics");

    let mut failures = Vec::new();
    let mut fault = |count: u64, what: &str| {
        if count > 0 {
            failures.push(format!("{count} {what}"));
        }
    };
    fault(totals.lost(), "messages lost");
    fault(totals.duplicated, "messages duplicated");
    fault(totals.reordered, "messages reordered");
    fault(totals.stray, "messages misdirected");
    fault(ended.len() as u64, &format!("seats were given up, one by a {}", ended.first().map_or("", String::as_str)));
    for (what, trend) in [("resident memory", rss), ("open descriptors", descriptors)] {
        match trend {
            None => failures.push(format!("too few samples of {what}: let it run for longer")),
            Some(trend) if trend.grows(options.max_rise / 100.0) => {
                let share = 100.0 * trend.share();
                failures.push(format!("{what} grew by {share:.1} %, at most {} % were allowed", options.max_rise));
            }
            Some(_) => {}
        }
    }
    if left.0 > idle.1 {
        failures.push(format!("{} descriptors are open without sessions, and {} were before", left.0, idle.1));
    }
    for (gauge, value) in &left.1 {
        if *value != 0.0 {
            failures.push(format!("{gauge} is {value} without sessions"));
        }
    }

    let count = |count: &AtomicU64| count.load(Relaxed);
    let line = |trend: Option<Trend>| trend.map(|it| json!({"level": it.level, "rise": it.rise, "noise": it.noise}));
    let [p50, p99, max] = totals.percentiles([0.5, 0.99, 1.0]);
    let tally = &crowd.tally;
    json!({
        "scenario": name(options.scenario),
        "options": {
            "broker": options.broker.to_string(), "sessions": crowd.sessions, "seconds": options.seconds,
            "rate": options.rate(), "size": options.size, "max_rise": options.max_rise,
        },
        "expected": totals.expected, "received": totals.received, "lost": totals.lost(),
        "duplicated": totals.duplicated, "reordered": totals.reordered, "stray": totals.stray,
        "opened": count(&tally.opened), "resumed": count(&tally.resumed),
        "closed": count(&tally.closed), "cut": count(&tally.cut),
        "acks": count(&tally.acks), "redelivered": count(&tally.again), "dropped": count(&tally.dropped),
        "latency_us": {"p50": p50, "p99": p99, "max": max},
        "samples": samples.len() - warm,
        "rss": {"idle": idle.0, "trend": line(rss)},
        "descriptors": {"idle": idle.1, "trend": line(descriptors), "left": left.0},
        "left": left.1,
        "failures": failures,
    })
}
