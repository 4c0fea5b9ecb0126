//! The ledger: clients publish and read through two gateways while everything around them breaks, and then every message is accounted for.
//!
//! `TIDEGATE_LEDGER_SECONDS` says how long it may storm, `TIDEGATE_LEDGER_SEED` repeats the plan of an earlier run.

mod audit;
mod client;
mod control;
mod history;
mod weather;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::audit::Audit;
use self::client::{Ack, Client, Counts, Ground, Habits, Phase};
use self::history::{History, Lane, Time};
use self::weather::Death;
use crate::support::{Gateway, Mosquitto, Proxy};

const TOPICS: [&str; 4] = ["house/attic/temp", "house/attic/door", "house/cellar/temp", "house/cellar/Überlauf/1"];

/// So that what is lost is noticed soon, and what is slow is felt.
const SETTINGS: &str = "
[broker]
keep_alive = 1
connect_timeout = 1.5
request_timeout = 5
[session]
heartbeat = 1
write_timeout = 4
[delivery]
max_queued = 30
max_queued_bytes = 65536
";

/// Who takes part: a name, what it subscribes to, what it is like, and whether it publishes.
type Part = (&'static str, &'static [(&'static str, u8)], Habits, bool);

const PARTS: [Part; 10] = [
    ("anna, who publishes", &[], Habits { is_kept: true, insists: true, ..PLAIN }, true),
    ("bert, who publishes", &[], PLAIN, true),
    ("cleo, who publishes and reads", &[("house/#", 2)], KEPT, true),
    ("dora, who reads all", &[("house/#", 2)], KEPT, false),
    ("emil, who is lazy", &[("house/#", 2)], LAZY, false),
    ("finn, who is lazy at qos 1", &[("house/+/temp", 1), ("house/cellar/Überlauf/#", 1)], LAZY, false),
    ("gina, whose filters overlap", &[("house/#", 1), ("house/attic/#", 2)], KEPT, false),
    (
        "hugo, who does not ack",
        &[("house/attic/temp", 2), ("house/cellar/#", 1)],
        Habits { is_kept: true, stalls: true, ..PLAIN },
        false,
    ),
    (
        "ines, who leaves nothing",
        &[("house/attic/+", 2), ("house/cellar/#", 2)],
        Habits { ack: Ack::Later(2000), ..PLAIN },
        false,
    ),
    ("jana, who only looks", &[("house/#", 0)], Habits { stalls: true, ..PLAIN }, false),
];

const PLAIN: Habits = Habits { is_kept: false, ack: Ack::Auto, insists: false, stalls: false, reloads: false };
const KEPT: Habits = Habits { is_kept: true, ack: Ack::AtOnce, insists: true, ..PLAIN };
const LAZY: Habits = Habits { is_kept: true, ack: Ack::Later(8000), stalls: true, reloads: true, ..PLAIN };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_accounted_for_while_links_break_brokers_stop_and_gateways_are_killed() {
    run("A", Death::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_no_more_than_it_takes_with_it() {
    run("B", Death::Killed).await;
}

async fn run(name: &str, death: Death) {
    let seed: u64 = setting("TIDEGATE_LEDGER_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let storm = Duration::from_secs(setting("TIDEGATE_LEDGER_SECONDS").unwrap_or(60));
    println!("ledger {name}: TIDEGATE_LEDGER_SEED={seed}, {storm:?} of storm");

    let mosquitto = Mosquitto::start().await;
    let mut lines = Vec::new();
    for _ in 0..2 {
        lines.push(Arc::new(Proxy::before(mosquitto.port).await));
    }
    let urls: Vec<_> = lines.iter().map(|line| line.url()).collect();
    let start = async move |which: usize| Gateway::start_unready(&urls[which], SETTINGS).await;
    let houses = vec![start(0).await, start(1).await];

    let (phase, state) = watch::channel(Phase::Storm);
    let clients = PARTS.iter().map(|(name, subscriptions, habits, _)| history::Client {
        name: (*name).to_owned(),
        subscriptions: subscriptions.iter().map(|(filter, qos)| ((*filter).to_owned(), *qos)).collect(),
        is_kept: habits.is_kept,
        is_manual: habits.ack != Ack::Auto,
        seen: Vec::new(),
    });
    let history =
        History { topics: TOPICS.map(str::to_owned).to_vec(), clients: clients.collect(), ..History::default() };
    let ground = Arc::new(Ground {
        history: Mutex::new(history),
        houses: Mutex::new(houses.iter().map(Gateway::port).collect()),
        began: Instant::now(),
        phase: state,
        counts: Counts::default(),
    });

    let mut people = JoinSet::new();
    let mut spoilers = JoinSet::new();
    let mut control = None;
    if death == Death::Killed {
        let line = Arc::new(Proxy::before(mosquitto.port).await);
        control = Some(tokio::spawn(control::listen(ground.clone(), line.port)));
        spoilers.spawn(weather::spoil(ground.clone(), line, "control", (2.0, 12.0), seed ^ 0xC0));
    }
    for (number, (_, _, habits, publishes)) in PARTS.iter().enumerate() {
        let number = number as u8;
        let line = Arc::new(Proxy::before(houses[0].port()).await);
        let lanes = if *publishes { lanes(number) } else { Vec::new() };
        let seed = seed + u64::from(number);
        spoilers.spawn(weather::spoil(ground.clone(), line.clone(), "browser", (2.0, 12.0), seed ^ 0xB0));
        people.spawn(Client::new(ground.clone(), number, *habits, lanes, line, seed).live());
    }
    for (line, seed) in lines.iter().zip(seed..) {
        spoilers.spawn(weather::spoil(ground.clone(), line.clone(), "broker", (2.0, 12.0), seed ^ 0xA0));
    }
    let strikes = weather::strike(&ground, mosquitto, houses, start, death, seed);
    let calm = async {
        sleep(storm).await;
        phase.send_replace(Phase::Calm);
    };
    let ((_mosquitto, _houses), ()) = tokio::join!(strikes, calm);
    spoilers.join_all().await;
    // What is broken and silent is noticed, and all come back.
    sleep(audit::NOTICED).await;
    settles(&ground, Duration::from_secs(20), |history| history.clients.iter().all(history::Client::is_up)).await;
    phase.send_replace(Phase::Last);
    // Publishers answer with their last messages; then these have to arrive.
    sleep(Duration::from_secs(1)).await;
    settles(&ground, Duration::from_secs(25), audit::is_settled).await;
    ground.history.lock().expect("nobody panics").end = ground.began.elapsed();
    phase.send_replace(Phase::Over);
    people.join_all().await;
    if let Some(control) = control {
        control.abort();
    }
    report(name, seed, &ground);
}

fn lanes(publisher: u8) -> Vec<Lane> {
    (0..TOPICS.len() as u8).flat_map(|topic| (0..3).map(move |qos| Lane { publisher, topic, qos })).collect()
}

/// Waits until the claim holds, but no longer than that: the audit says what is missing.
async fn settles(ground: &Ground, patience: Duration, holds: impl Fn(&History) -> bool) {
    let until = Instant::now() + patience;
    while Instant::now() < until && !holds(&ground.history.lock().expect("nobody panics")) {
        sleep(Duration::from_millis(100)).await;
    }
}

fn report(name: &str, seed: u64, ground: &Ground) {
    let history = ground.history.lock().expect("nobody panics");
    for (what, count) in ground.counts.all() {
        println!("  {count:7} {what}");
    }
    let audit = Audit::of(&history);
    println!("  {:7} deliveries accounted for", audit.accounted);
    println!("  {:7} lost on the wire, after they were confirmed as written", audit.lost_on_the_wire);
    println!("  {:7} lost at a broker that forgot the publisher's session", audit.lost_with_the_publisher);
    println!(
        "  {:7} lost with the broker, {} of them by the control too",
        audit.lost_with_the_broker, audit.lost_by_the_control_too
    );
    let mut findings = audit.findings;
    findings.sort_by_key(|finding| finding.kind);
    for finding in findings.iter().take(40) {
        println!("  {:?}: {}", finding.kind, finding.what);
    }
    if let (Some(first), Ok(folder)) = (findings.first(), std::env::var("TIDEGATE_LEDGER_TRACE")) {
        let _ = std::fs::write(folder, format!("{first:?}\n{}", trace(&history)));
    }
    assert!(findings.is_empty(), "ledger {name}: {} findings with TIDEGATE_LEDGER_SEED={seed}", findings.len());
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// The whole history, one event a line.
fn trace(history: &History) -> String {
    let mut lines: Vec<(Time, String)> = Vec::new();
    for client in history.clients.iter().chain(&history.control) {
        lines.extend(client.seen.iter().map(|(at, seen)| (*at, format!("{}: {seen:?}", client.name))));
    }
    for (key, attempts) in &history.published {
        lines.extend(attempts.iter().map(|attempt| (attempt.sent, format!("{key}: {attempt:?}"))));
    }
    lines.extend(history.kills.iter().map(|at| (*at, "the broker is killed".to_owned())));
    lines.sort();
    lines.into_iter().map(|(at, line)| format!("{:9.3} {line}\n", at.as_secs_f64())).collect()
}
