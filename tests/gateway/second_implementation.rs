//! Another implementation as the measure: what Paho's client gets and gives through its own connection to Mosquitto, a browser gets and
//! gives through the gateway, whenever the connection to the broker breaks.
//!
//! A script is made from its number: `TIDEGATE_SCRIPTS=7..8` runs the one that failed, `TIDEGATE_SCRIPTS=0..1000` a thousand.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::paho::Paho;
use crate::support::{Browser, Gateway, Mosquitto, Proxy};

/// What is tried unless `TIDEGATE_SCRIPTS` says otherwise.
const SCRIPTS: Range<u64> = 0..6;
const FILTERS: [&str; 7] = ["#", "+/red", "subject/#", "bystander/+", "bystander/green", "+/+/deep", "subject/blue"];
/// Each with the QoS of its retained messages: the last one stays last only if none of another QoS can pass it.
const COLOURS: [(&str, u8); 4] = [("red", 0), ("green", 1), ("blue", 2), ("blue/deep", 2)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_and_paho_end_every_script_with_the_same_deliveries() {
    for seed in seeds() {
        let script = Script::new(seed);
        let (by_paho, by_browser) = tokio::join!(play_with_paho(&script), play_with_browser(&script));
        for (name, ours, theirs) in [
            ("deliveries to the subject", &by_browser.subject, &by_paho.subject),
            ("deliveries to the bystander", &by_browser.bystander, &by_paho.bystander),
            ("retained messages", &by_browser.retained, &by_paho.retained),
        ] {
            assert_eq!(ours, theirs, "{name}: TIDEGATE_SCRIPTS={seed}..{}\n{script:#?}", seed + 1);
        }
        println!("script {seed}: {} deliveries alike", by_paho.subject.values().map(Vec::len).sum::<usize>());
    }
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TIDEGATE_SCRIPTS") else { return SCRIPTS };
    let (first, end) = text.split_once("..").expect("TIDEGATE_SCRIPTS is FIRST..END");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Acts, between which everything comes to rest.
#[derive(Debug)]
struct Script {
    acts: Vec<Act>,
}

#[derive(Debug)]
struct Act {
    /// The subject subscribes at a QoS, or ends a subscription.
    change: Option<(&'static str, Option<u8>)>,
    publishes: Vec<Publish>,
    cut: Option<Cut>,
}

/// The subject's link is cut before the first of these publishes and mended before the end.
#[derive(Debug)]
struct Cut {
    publishes: Range<usize>,
    /// What was published before has gone part of its ways.
    after: Duration,
}

#[derive(Debug)]
struct Publish {
    is_subject: bool,
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
}

impl Script {
    fn new(seed: u64) -> Script {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut acts: Vec<_> = (0..6).map(|act| Act::new(act, &mut rng)).collect();
        // A third cut so soon would be a takeover (docs/protocol.md, "Errors").
        acts.iter_mut().filter(|act| act.cut.is_some()).skip(2).for_each(|act| act.cut = None);
        Script { acts }
    }
}

impl Act {
    fn new(number: usize, rng: &mut StdRng) -> Act {
        let count = rng.random_range(5..25);
        let cut = rng.random_bool(0.5).then(|| {
            let start = rng.random_range(0..count);
            let publishes = start..rng.random_range(start..=count);
            Cut { publishes, after: Duration::from_millis(rng.random_range(0..30)) }
        });
        // What goes at QoS 0 over a link that is about to break may or may not arrive: such payloads say so.
        let word = if cut.is_some() { "risky" } else { "safe" };
        let publish = |index| {
            let is_subject = rng.random_bool(0.5);
            let (colour, retained_qos) = *COLOURS.choose(rng).expect("there are some");
            let qos = rng.random_range(if is_subject && cut.is_some() { 1..3 } else { 0..3 });
            Publish {
                is_subject,
                topic: format!("{}/{colour}", if is_subject { "subject" } else { "bystander" }),
                payload: format!("{word} {number}.{index} at {qos}"),
                qos,
                retain: qos == retained_qos && rng.random_bool(0.3),
            }
        };
        let publishes = (0..count).map(publish).collect();
        let filter = *FILTERS.choose(rng).expect("there are some");
        let change = match rng.random_range(0..10) {
            0 => None,
            1..3 => Some((filter, None)),
            _ => Some((filter, [0, 1, 2, 2, 2].choose(rng).copied())),
        };
        Act { change, publishes, cut }
    }
}

/// Payloads in the order of their first arrival, for each topic, QoS at which it was published, and QoS at which it came, stored
/// ones apart.
type Deliveries = BTreeMap<(bool, String, char, u64), Vec<String>>;

/// So long that something is always on it when it is cut.
async fn a_long_line(mosquitto: &Mosquitto) -> Proxy {
    let line = Proxy::before(mosquitto.port).await;
    line.delay(Duration::from_millis(8));
    line
}

#[derive(Debug)]
struct Ending {
    subject: Deliveries,
    bystander: Deliveries,
    retained: Deliveries,
}

async fn play_with_paho(script: &Script) -> Ending {
    let mosquitto = Mosquitto::start().await;
    let link = a_long_line(&mosquitto).await;
    let mut subject = Paho::connect(link.port, "subject").await;
    let (bystander, retained) = play(script, &mut subject, &link, &mosquitto).await;
    Ending { subject: deliveries(&merged(subject.arrived)), bystander, retained }
}

async fn play_with_browser(script: &Script) -> Ending {
    let mosquitto = Mosquitto::start().await;
    let link = a_long_line(&mosquitto).await;
    let house = Gateway::start(&link.url(), "").await;
    let mut subject = Page { browser: house.browser().await, unanswered: HashSet::new(), arrived: Vec::new() };
    let (bystander, retained) = play(script, &mut subject, &link, &mosquitto).await;
    let mut seen = HashSet::new();
    for message in &subject.arrived {
        let is_repeated = !seen.insert((&message["topic"], &message["payload"])) && message["retain"] == false;
        assert!(!is_repeated || message["qos"] == 1, "delivered twice: {message}");
        // What the subject had to publish again is a message of its own to the broker.
        let is_own = ["topic", "payload"]
            .iter()
            .any(|name| message[*name].as_str().is_some_and(|text| text.starts_with("subject")));
        assert!(!is_repeated || is_own || message["dup"] == true, "delivered twice without a sign: {message}");
    }
    Ending { subject: deliveries(&subject.arrived), bystander, retained }
}

/// What the bystander got, and what the broker has stored in the end.
async fn play(
    script: &Script,
    subject: &mut impl Subject,
    link: &Proxy,
    mosquitto: &Mosquitto,
) -> (Deliveries, Deliveries) {
    let mut bystander = Paho::connect(mosquitto.port, "bystander").await;
    bystander.subscribe("#", 2).await;
    assert_eq!(subject.subscribe("marker", 2).await, 2);
    let mut rest = 0;
    for act in &script.acts {
        match act.change {
            Some((filter, Some(qos))) => assert_eq!(subject.subscribe(filter, qos).await, qos),
            Some((filter, None)) => subject.unsubscribe(filter).await,
            None => {}
        }
        come_to_rest(&mut rest, subject, &mut bystander).await;
        for (index, Publish { is_subject, topic, payload, qos, retain }) in act.publishes.iter().enumerate() {
            if let Some(Cut { publishes, after }) = &act.cut {
                if publishes.start == index {
                    sleep(*after).await;
                    link.cut();
                } else if publishes.end == index {
                    link.resume();
                }
            }
            match is_subject {
                true => subject.publish(topic, payload, *qos, *retain).await,
                false => bystander.publish(topic, payload, *qos, *retain).await,
            }
        }
        link.resume();
        come_to_rest(&mut rest, subject, &mut bystander).await;
    }
    let mut auditor = Paho::connect(mosquitto.port, "auditor").await;
    auditor.subscribe("#", 2).await;
    auditor.publish("marker", "the end", 2, false).await;
    auditor.await_payload("the end").await;
    (deliveries(&bystander.arrived), deliveries(&auditor.arrived))
}

/// Waits until all that was published has gone all its ways. What is published behind it, at each QoS, arrives after it.
async fn come_to_rest(rest: &mut u32, subject: &mut impl Subject, bystander: &mut Paho) {
    *rest += 1;
    subject.publish("marker", &format!("subject {rest}"), 1, false).await;
    subject.flush().await;
    for qos in 0..3 {
        bystander.publish("marker", &format!("{rest}.{qos}"), qos, false).await;
    }
    for qos in 0..3 {
        let payload = format!("{rest}.{qos}");
        subject.await_payload(&payload).await;
        bystander.await_payload(&payload).await;
    }
    bystander.flush().await;
}

fn deliveries(arrived: &[Value]) -> Deliveries {
    let mut deliveries = Deliveries::new();
    for message in arrived {
        let [topic, payload] = ["topic", "payload"].map(|name| message[name].as_str().expect("text").to_owned());
        let (retain, qos) = (message["retain"] == true, message["qos"].as_u64().expect("a number"));
        if topic == "marker" || (qos == 0 && payload.starts_with("risky")) {
            continue;
        }
        let published = payload.chars().last().expect("it ends with its QoS");
        let payloads = deliveries.entry((retain, topic, published, qos)).or_default();
        // At QoS 1 a message may come more than once. Stored ones do so for each subscription.
        if retain || !payloads.contains(&payload) {
            payloads.push(payload);
        }
    }
    deliveries
}

/// Paho gets a copy for each of its subscriptions that match, a browser one for all, at the highest QoS.
fn merged(arrived: Vec<Value>) -> Vec<Value> {
    let mut highest = BTreeMap::new();
    for message in arrived.iter().filter(|message| message["retain"] == false) {
        let qos = highest.entry(message["payload"].to_string()).or_insert(0);
        *qos = message["qos"].as_u64().expect("a number").max(*qos);
    }
    arrived
        .into_iter()
        .filter(|message| message["retain"] == true || message["qos"] == highest[&message["payload"].to_string()])
        .collect()
}

/// Who plays the script's main part.
trait Subject {
    /// Returns the granted QoS.
    async fn subscribe(&mut self, filter: &str, qos: u8) -> u8;
    async fn unsubscribe(&mut self, filter: &str);
    async fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool);
    async fn flush(&mut self);
    async fn await_payload(&mut self, payload: &str);
}

impl Subject for Paho {
    async fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        Paho::subscribe(self, filter, qos).await
    }

    async fn unsubscribe(&mut self, filter: &str) {
        Paho::unsubscribe(self, filter).await;
    }

    async fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        Paho::publish(self, topic, payload, qos, retain).await;
    }

    async fn flush(&mut self) {
        Paho::flush(self).await;
    }

    async fn await_payload(&mut self, payload: &str) {
        Paho::await_payload(self, payload).await;
    }
}

/// A browser that remembers what arrives.
struct Page {
    browser: Browser,
    unanswered: HashSet<String>,
    arrived: Vec<Value>,
}

impl Page {
    /// Takes frames until one of this type comes.
    async fn answer(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    async fn next(&mut self) -> Value {
        let frame = self.browser.next().await;
        match frame["type"].as_str().expect("a type") {
            "mqtt" => self.arrived.push(frame.clone()),
            "ack" => assert!(self.unanswered.remove(frame["msgid"].as_str().expect("text")), "answered twice: {frame}"),
            "error" => panic!("{frame}"),
            _ => {}
        }
        frame
    }
}

impl Subject for Page {
    async fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        self.browser.send(json!({"type": "subscribe", "topic": filter, "qos": qos})).await;
        let answer = self.answer("subscribed").await;
        answer["topics"][0]["qos"].as_u64().unwrap_or_else(|| panic!("{answer}")) as u8
    }

    async fn unsubscribe(&mut self, filter: &str) {
        self.browser.send(json!({"type": "unsubscribe", "topic": filter})).await;
        self.answer("unsubscribed").await;
    }

    async fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        let frame = json!({"type": "publish", "topic": topic, "payload": payload, "qos": qos, "retain": retain, "msgid": payload});
        self.unanswered.insert(payload.to_owned());
        self.browser.send(frame).await;
    }

    async fn flush(&mut self) {
        while !self.unanswered.is_empty() {
            self.next().await;
        }
    }

    async fn await_payload(&mut self, payload: &str) {
        while self.next().await["payload"] != payload {}
    }
}
