//! What a run has to tell: one JSON line, and the reasons why it failed.

use crate::ledger::Totals;
use crate::options::{Broker, Options, Served, name};
use crate::process::Usage;
use crate::readers::Account;
use serde_json::{Map, Value, json};
use std::fmt::Display;
use std::time::Duration;

pub struct Report {
    /// Time that it took to open all sessions.
    pub opening: Duration,
    /// What the parts of the server are called; the server itself comes first.
    pub names: Vec<&'static str>,
    /// Each part: before the opening, after it, settled, and at the end.
    pub usage: [Vec<Option<Usage>>; 4],
    /// The median and the 99th percentile of the gateway's own histogram.
    pub delivery_seconds: [Option<f64>; 2],
    pub server: Outcome,
    pub bare: Option<Outcome>,
}

/// How one side of the run ended.
pub struct Outcome {
    pub published: u64,
    /// Whether each publish is acknowledged.
    pub are_answered: bool,
    pub acks: u64,
    pub account: Account,
    /// Seconds of each part, where known.
    pub cpu: Vec<Option<f64>>,
    pub time: Duration,
}

impl Report {
    /// The line; its `failures` are empty if the run passed.
    pub fn line(mut self, options: &Options) -> Value {
        let [before, opened, settled, after] = &self.usage;
        let broker_is_known = options.at.is_none() || options.broker != Broker::Mosquitto;
        let sessions = f64::from(options.sessions());
        let growth = |bytes: fn(Usage) -> u64| {
            let growth = bytes(settled[0]?).saturating_sub(bytes(before[0]?));
            Some(growth / u64::from(options.sessions()))
        };
        let memory = [growth(|usage| usage.rss), growth(|usage| usage.anonymous)];
        let opening: Vec<Option<f64>> = before
            .iter()
            .zip(opened)
            .map(|(before, opened)| Some((*opened)?.cpu_seconds - (*before)?.cpu_seconds))
            .collect();
        let opening_cpu = opening.iter().copied().sum::<Option<f64>>();
        let part = |place: usize| {
            let (before, after) = (before[place]?, after[place]?);
            Some(json!({
                "cpu_seconds": self.server.cpu[place].map(round),
                "cpu_seconds_a_million": self.server.a_million(place).map(round),
                "rss_before": before.rss, "rss_after": after.rss,
                "anonymous_before": before.anonymous, "anonymous_after": after.anonymous,
            }))
        };
        let by_name = |figure: &dyn Fn(usize) -> Value| {
            let figures = self.names.iter().enumerate().map(|(place, &name)| (name.to_owned(), figure(place)));
            figures.collect::<Map<_, _>>()
        };
        let totals = &self.server.account.totals;
        let seconds = self.opening.as_secs_f64();
        let mut line = json!({
            "scenario": name(options.scenario),
            "options": {
                "server": name(options.server),
                "upstream": options.upstream.map(name),
                "unix": options.unix,
                "broker": (broker_is_known && options.server == Served::Gateway).then(|| options.broker.to_string()),
                "sessions": options.sessions(),
                "messages": options.messages(),
                "rate": options.rate(),
                "max_rate": options.max_rate,
                "size": options.size,
                "qos": options.qos,
                "publish": name(options.publisher()),
                "processes": options.processes,
            },
            "published": self.server.published,
            "expected": totals.expected,
            "received": totals.received,
            "lost": totals.lost(),
            "duplicated": totals.duplicated,
            "reordered": totals.reordered,
            "stray": totals.stray,
            "unfinished": totals.unfinished,
            "acks": self.server.acks,
            "seconds": round(self.server.time.as_secs_f64()),
            "opening": {
                "seconds": round(seconds),
                "sessions_a_second": round(sessions / seconds),
                "cpu_seconds": by_name(&|place| json!(opening[place].map(round))),
                "cpu_ms_a_session": opening_cpu.map(|cpu| round(cpu * 1000.0 / sessions)),
            },
            "bytes_a_session": memory[0],
            "anonymous_bytes_a_session": memory[1],
            "parts": by_name(&|place| json!(part(place))),
            "server_cpu_seconds_a_million": self.server.all().map(|cpu| round(cpu * 1e6 / totals.received.max(1) as f64)),
            "server_cpu_seconds_a_million_published":
                self.server.all().map(|cpu| round(cpu * 1e6 / self.server.published as f64)),
            "delivery_ms": {
                "p50": self.delivery_seconds[0].map(|time| round(time * 1000.0)),
                "p99": self.delivery_seconds[1].map(|time| round(time * 1000.0)),
            },
            "ratio": self.ratio().map(round),
            "failures": self.failures(options, memory[0]),
        });
        line["latency_us"] = self.server.latency();
        line["bare"] = self.bare.as_mut().map_or(Value::Null, |bare| {
            json!({
                "cpu_seconds": bare.cpu[0].map(round),
                "cpu_seconds_a_million": bare.a_million(0).map(round),
                "seconds": round(bare.time.as_secs_f64()),
                "latency_us": bare.latency(),
            })
        });
        line
    }

    /// The gateway's cost of a delivery over the bare program's.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.server.a_million(0)? / self.bare.as_ref()?.a_million(0)?)
    }

    fn failures(&self, options: &Options, bytes: Option<u64>) -> Vec<String> {
        let may_lose = options.max_rate.is_some() || options.qos == 0 && options.rate().is_none();
        let must_finish = options.max_rate.is_some();
        let mut failures = self.server.faults("the server", may_lose, must_finish);
        if let Some(bare) = &self.bare {
            failures.extend(bare.faults("the bare program", false, false));
        }
        let Outcome { published, acks, are_answered, .. } = self.server;
        if are_answered && acks != published {
            failures.push(format!("{acks} of {published} publishes were acknowledged"));
        }
        failures.extend(over("bytes a session", bytes, options.max_bytes_a_session));
        failures.extend(over("times the bare program's cost", self.ratio(), options.max_ratio));
        failures
    }
}

impl Outcome {
    fn faults(&self, who: &str, may_lose: bool, must_finish: bool) -> Vec<String> {
        let Totals { duplicated, reordered, stray, unfinished, .. } = self.account.totals;
        let lost = if may_lose { 0 } else { self.account.totals.lost() };
        let unfinished = if must_finish { unfinished } else { 0 };
        let mut faults: Vec<String> = [
            (lost, "lost"),
            (duplicated, "duplicated"),
            (reordered, "reordered"),
            (stray, "misdirected"),
            (unfinished, "last values missing"),
        ]
        .into_iter()
        .filter(|&(count, _)| count > 0)
        .map(|(count, fault)| format!("{who}: {count} {fault}"))
        .collect();
        if let [first, ..] = self.account.ended.as_slice() {
            faults.push(format!("{who}: {} sessions ended, one because {first}", self.account.ended.len()));
        }
        faults
    }

    /// Seconds of a part for a million deliveries.
    fn a_million(&self, part: usize) -> Option<f64> {
        Some(self.cpu[part]? * 1e6 / self.account.totals.received.max(1) as f64)
    }

    /// Seconds of all parts.
    fn all(&self) -> Option<f64> {
        self.cpu.iter().copied().sum()
    }

    fn latency(&mut self) -> Value {
        let [p50, p90, p99, max] = self.account.totals.percentiles([0.5, 0.9, 0.99, 1.0]);
        json!({"p50": p50, "p90": p90, "p99": p99, "max": max})
    }
}

/// A bound that is asked for fails also where the figure is not known.
fn over<T: PartialOrd + Display>(what: &str, figure: Option<T>, max: Option<T>) -> Option<String> {
    let max = max?;
    match figure {
        Some(figure) if figure <= max => None,
        Some(figure) => Some(format!("{figure:.2} {what}, at most {max} were allowed")),
        None => Some(format!("{what} are not known, at most {max} were allowed")),
    }
}

fn round(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}
