//! What the process takes of its machine.

use std::fs;

use crate::support::{Gateway, Mosquitto};

/// Where each thread of the event loop may run, as the kernel lists it.
fn workers(gateway: &Gateway) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", gateway.id())).expect("it runs");
    let mut places = Vec::new();
    for thread in threads {
        let thread = thread.expect("readable").path();
        // A thread may end while it is looked at.
        let Ok(status) = fs::read_to_string(thread.join("status")) else { continue };
        let value =
            |name| status.lines().find_map(|line| line.strip_prefix(name)).expect("it is told").trim().to_owned();
        if value("Name:") == "tokio-rt-worker" {
            places.push(value("Cpus_allowed_list:"));
        }
    }
    places.sort();
    places
}

/// The line of the log that has these words.
fn line(gateway: &Gateway, words: &str) -> Option<String> {
    gateway.log().lines().find(|line| line.contains(words)).map(ToOwned::to_owned)
}

/// The processors that this process may use, one by one.
fn processors() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("it is told");
    let number = |text: &str| text.trim().parse::<usize>().expect("a number");
    let ranges = list.split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ranges.flat_map(|(first, last)| number(first)..=number(last)).map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn there_are_as_many_workers_as_were_asked_for() {
    let mosquitto = Mosquitto::start().await;
    for (configuration, expected) in [("", processors().len()), ("[runtime]\nworker_threads = 3", 3)] {
        let gateway = Gateway::start(&mosquitto.url(), configuration).await;
        let said = format!("workers={expected} pinned=false");
        let started = line(&gateway, "the event loop has started").expect("it is told");
        assert!(started.contains(&said), "{configuration}: {started}");
        assert_eq!(workers(&gateway).len(), expected, "{configuration}");
        gateway.browser().await.leave().await;
    }
}

#[tokio::test]
async fn pinned_workers_have_one_processor_each_of_those_that_the_process_may_use() {
    let mosquitto = Mosquitto::start().await;
    let ours = processors();
    let last = ours.last().expect("there is one");
    let three = "[runtime]\nworker_threads = 3\npin_workers = true";
    let in_turn = |processors: &[String]| {
        let mut places: Vec<_> = (0..3).map(|worker| processors[worker % processors.len()].clone()).collect();
        places.sort();
        places
    };
    let gateway = Gateway::start(&mosquitto.url(), three).await;
    assert_eq!(workers(&gateway), in_turn(&ours));
    gateway.browser().await.leave().await;

    let confined = Gateway::start_after(&format!("taskset -cp {last} $$ >&2"), &mosquitto.url(), three).await;
    assert_eq!(workers(&confined), in_turn(std::slice::from_ref(last)));
    confined.browser().await.leave().await;
}
