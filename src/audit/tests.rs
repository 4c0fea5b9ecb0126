//! Scenes with all of it.

use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// Long enough for any disk.
const PATIENCE: Duration = Duration::from_secs(20);

fn audit(folder: &TempDir, config: Config) -> Audit {
    Audit::start(&Config { log: Some(folder.path().join("audit.jsonl")), ..config }).expect("usable")
}

async fn finish(audit: &Audit) {
    audit.finish(Instant::now() + PATIENCE).await;
}

/// The lines of the file, which is ok.
fn lines(folder: &TempDir) -> Vec<Value> {
    let path = folder.path().join("audit.jsonl");
    let report = verify(std::slice::from_ref(&path), None, &mut |_| {}).expect("readable");
    assert_eq!(report.faults, 0);
    let text = fs::read_to_string(path).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// An event with this text in it.
fn event(what: &str) -> Event<'_> {
    Event::Administered { by: "ann", address: [127, 0, 0, 1].into(), what }
}

#[tokio::test]
async fn what_is_recorded_is_written_in_order_and_goes_on_after_a_restart() {
    let folder = TempDir::new().expect("a folder");
    for round in 0..2 {
        let audit = audit(&folder, Config::default());
        for nth in 0..1000 {
            audit.record(&event(&(round * 1000 + nth).to_string()));
        }
        finish(&audit).await;
        assert!(audit.is_keeping_up());
    }
    let lines = lines(&folder);
    assert_eq!(lines.len(), 2000);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!((&line["seq"], &line["what"]), (&Value::from(index + 1), &Value::from(index.to_string())));
    }
}

#[tokio::test]
async fn what_a_write_that_was_cut_off_has_left_is_told_first() {
    let folder = TempDir::new().expect("a folder");
    fs::write(folder.path().join("audit.jsonl"), "{\"seq\":1,").expect("written");
    let audit = audit(&folder, Config::default());
    audit.record(&event("a"));
    finish(&audit).await;
    let text = fs::read_to_string(folder.path().join("audit.jsonl")).expect("readable");
    let events: Vec<Value> = text.lines().skip(1).map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&events[0]["event"], &events[0]["bytes"]), (&Value::from("recovered"), &Value::from(9)));
    assert_eq!((events.len(), &events[1]["what"]), (2, &Value::from("a")));
}

/// Lets writes fail until it is dropped: somebody else's file is in the place of the log.
struct Outage<'a>(&'a Path);

impl Outage<'_> {
    fn of(folder: &TempDir) -> Outage<'_> {
        fs::rename(folder.path().join("audit.jsonl"), folder.path().join("aside")).expect("renamed");
        symlink("/dev/null", folder.path().join("audit.jsonl")).expect("made");
        Outage(folder.path())
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        fs::rename(self.0.join("aside"), self.0.join("audit.jsonl")).expect("renamed");
    }
}

async fn eventually(claim: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never: {claim}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn while_nothing_can_be_written_events_wait_and_only_what_finds_the_queue_full_is_dropped_and_told() {
    const QUEUE: usize = 5;
    let folder = TempDir::new().expect("a folder");
    let queue = NonZeroU32::new(QUEUE as u32).expect("not zero");
    let audit = audit(&folder, Config { queue, ..Config::default() });
    let outage = Outage::of(&folder);
    audit.record(&event("first"));
    eventually("the write fails", || !audit.is_keeping_up()).await;
    for nth in 0..QUEUE + 7 {
        audit.record(&event(&nth.to_string()));
    }
    assert!(!audit.is_keeping_up());
    drop(outage);
    finish(&audit).await;
    assert!(audit.is_keeping_up());
    let told: Vec<_> = lines(&folder)
        .iter()
        .map(|line| match line["event"].as_str() {
            Some("dropped") => format!("{} missing", line["count"]),
            _ => line["what"].as_str().expect("a text").to_owned(),
        })
        .collect();
    assert_eq!(told, ["first", "0", "1", "2", "3", "4", "7 missing"]);
}

#[tokio::test]
async fn only_who_wants_it_refuses_sessions_while_nothing_can_be_written() {
    let folder = TempDir::new().expect("a folder");
    let audit = audit(&folder, Config::default());
    let refusing = Config { when_full: WhenFull::Refuse, ..Config::default() };
    audit.set_rules(&refusing);
    assert!(!audit.refuses_sessions());
    let outage = Outage::of(&folder);
    audit.record(&event("a"));
    eventually("sessions are refused", || audit.refuses_sessions()).await;
    audit.set_rules(&Config::default());
    assert!(!audit.refuses_sessions() && !audit.is_keeping_up());
    audit.set_rules(&refusing);
    drop(outage);
    eventually("they are not refused any more", || !audit.refuses_sessions()).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_holds_the_end_up_to_its_deadline_and_no_longer() {
    let folder = TempDir::new().expect("a folder");
    let audit = audit(&folder, Config::default());
    let _outage = Outage::of(&folder);
    audit.record(&event("a"));
    let (start, deadline) = (Instant::now(), Duration::from_millis(300));
    audit.finish(start + deadline).await;
    assert!((deadline..PATIENCE).contains(&start.elapsed()));
}

#[tokio::test]
async fn what_comes_after_the_end_is_dropped() {
    let folder = TempDir::new().expect("a folder");
    let audit = audit(&folder, Config::default());
    audit.record(&event("a"));
    finish(&audit).await;
    audit.record(&event("b"));
    assert!(!audit.is_keeping_up());
    finish(&audit).await;
    assert_eq!(lines(&folder).len(), 1);
}

#[tokio::test]
async fn topics_are_audited_as_the_rules_say() {
    let folder = TempDir::new().expect("a folder");
    let covering = |filter: &str| Config {
        topics: Topics::try_from(vec![filter.to_owned()]).expect("a filter"),
        ..Config::default()
    };
    let audit = audit(&folder, covering("valves/#"));
    let [valve, lamp] = ["valves/7", "lamp"].map(|topic| Topic::parse(topic).expect("a topic"));
    assert_eq!([audit.covers(&valve), audit.covers(&lamp)], [true, false]);
    audit.set_rules(&covering("lamp"));
    assert_eq!([audit.covers(&valve), audit.covers(&lamp)], [false, true]);
}

#[tokio::test]
async fn without_a_file_nothing_is_recorded_and_nothing_is_missed() {
    let audit = Audit::start(&Config::default()).expect("nothing to open");
    audit.record(&event("a"));
    audit.set_rules(&Config { when_full: WhenFull::Refuse, ..Config::default() });
    assert!(audit.is_keeping_up() && !audit.refuses_sessions());
    assert!(!audit.covers(&Topic::parse("a").expect("a topic")));
    finish(&audit).await;
}
