//! What a run has to tell: one JSON line, and the reasons why it failed.

use crate::ledger::Totals;
use crate::options::{Broker, Door, Options, name};
use crate::process::Usage;
use serde_json::{Value, json};
use std::fmt::Display;
use std::time::Duration;

pub struct Report {
    /// Time that it took to open all sessions.
    pub opening: Duration,
    /// Gateway and broker: before the opening, after it, settled, and at the end.
    pub usage: [[Option<Usage>; 2]; 4],
    pub gateway: Outcome,
    pub bare: Option<Outcome>,
}

/// How one side of the run ended.
pub struct Outcome {
    pub published: u64,
    pub acks: u64,
    pub totals: Totals,
    /// Why sessions ended that should have lived.
    pub ended: Vec<String>,
    /// Seconds of each program, where known.
    pub cpu: Vec<Option<f64>>,
    pub time: Duration,
}

impl Report {
    /// The line; its `failures` are empty if the run passed.
    pub fn line(mut self, options: &Options) -> Value {
        let [before, opened, settled, after] = self.usage;
        let broker_is_known = options.at.is_none() || options.broker != Broker::Mosquitto;
        let growth = |bytes: fn(Usage) -> u64| {
            let growth = bytes(settled[0]?).saturating_sub(bytes(before[0]?));
            Some(growth / u64::from(options.sessions()))
        };
        let memory = [growth(|usage| usage.rss), growth(|usage| usage.anonymous)];
        let opening = |program: usize| Some(round(opened[program]?.cpu_seconds - before[program]?.cpu_seconds));
        let program = |program: usize| {
            let (before, after) = (before[program]?, after[program]?);
            Some(json!({
                "cpu_seconds": self.gateway.cpu[program].map(round),
                "cpu_seconds_a_million": self.gateway.a_million(program).map(round),
                "rss_before": before.rss, "rss_after": after.rss,
                "anonymous_before": before.anonymous, "anonymous_after": after.anonymous,
            }))
        };
        let ratio = self.bare.as_ref().and_then(|bare| Some(self.gateway.a_million(0)? / bare.a_million(0)?));
        let mut line = json!({
            "scenario": name(options.scenario),
            "options": {
                "broker": broker_is_known.then(|| options.broker.to_string()),
                "sessions": options.sessions(),
                "messages": options.messages(),
                "rate": options.rate(),
                "size": options.size,
                "qos": options.qos,
                "publish": name(options.publisher()),
            },
            "expected": self.gateway.totals.expected,
            "received": self.gateway.totals.received,
            "lost": self.gateway.totals.lost(),
            "duplicated": self.gateway.totals.duplicated,
            "reordered": self.gateway.totals.reordered,
            "stray": self.gateway.totals.stray,
            "acks": self.gateway.acks,
            "seconds": round(self.gateway.time.as_secs_f64()),
            "opening": {
                "seconds": round(self.opening.as_secs_f64()),
                "gateway_cpu_seconds": opening(0), "broker_cpu_seconds": opening(1),
            },
            "bytes_a_session": memory[0],
            "anonymous_bytes_a_session": memory[1],
            "gateway": program(0),
            "broker": program(1),
            "ratio": ratio.map(round),
            "failures": self.failures(options, memory[0], ratio),
        });
        line["latency_us"] = self.gateway.latency();
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

    fn failures(&self, options: &Options, bytes: Option<u64>, ratio: Option<f64>) -> Vec<String> {
        let may_lose = options.qos == 0 && options.rate().is_none();
        let mut failures = self.gateway.faults("the gateway", may_lose);
        if let Some(bare) = &self.bare {
            failures.extend(bare.faults("the bare program", false));
        }
        let all_answered = options.qos > 0 || options.publisher() == Door::Session;
        let Outcome { published, acks, .. } = self.gateway;
        if all_answered && acks != published {
            failures.push(format!("{acks} of {published} publishes were acknowledged"));
        }
        failures.extend(over("bytes a session", bytes, options.max_bytes_a_session));
        let times = "times the bare program's cost";
        failures.extend(over(times, ratio, options.max_ratio));
        failures
    }
}

impl Outcome {
    fn faults(&self, who: &str, may_lose: bool) -> Vec<String> {
        let lost = if may_lose { 0 } else { self.totals.lost() };
        let Totals { duplicated, reordered, stray, .. } = self.totals;
        let mut faults: Vec<String> =
            [(lost, "lost"), (duplicated, "duplicated"), (reordered, "reordered"), (stray, "misdirected")]
                .into_iter()
                .filter(|&(count, _)| count > 0)
                .map(|(count, fault)| format!("{who}: {count} {fault}"))
                .collect();
        if let [first, ..] = self.ended.as_slice() {
            faults.push(format!("{who}: {} sessions ended, one because {first}", self.ended.len()));
        }
        faults
    }

    /// Seconds of a program for a million deliveries.
    fn a_million(&self, program: usize) -> Option<f64> {
        Some(self.cpu[program]? * 1e6 / self.totals.received.max(1) as f64)
    }

    fn latency(&mut self) -> Value {
        let [p50, p90, p99, max] = self.totals.percentiles([0.5, 0.9, 0.99, 1.0]);
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
