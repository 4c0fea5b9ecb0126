//! What the process takes of its machine.

use std::fs;

use crate::support::{Gateway, Mosquitto, eventually};

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
async fn the_descriptor_limit_is_raised_at_the_start_and_told() {
    let mosquitto = Mosquitto::start().await;
    let limits = "ulimit -Sn 100; ulimit -Hn 4000";
    let gateway = Gateway::start_after(limits, &mosquitto.url(), "[connections]\nmax = 1000").await;
    let told = line(&gateway, "the descriptor limit is as high as it may be").expect("it is told");
    assert!(told.contains("INFO") && told.contains("from=100 to=4000"), "{told}");
    assert_eq!(gateway.metric("process_max_fds").await, 4000.0);
    // More than the old limit had room for.
    let mut browsers = Vec::new();
    for _ in 0..60 {
        browsers.push(gateway.browser().await);
    }
    assert!(gateway.metric("process_open_fds").await > 120.0);
}

#[tokio::test]
async fn too_few_descriptors_for_a_full_house_are_warned_of_at_the_start_and_at_a_reload() {
    const WARNING: &str = "too few descriptors for connections.max";
    let mosquitto = Mosquitto::start().await;
    let house = |max: usize| format!("[connections]\nmax = {max}\nmax_queued = 1\nmax_unauthenticated = 35");
    for (max, is_warned) in [(950, false), (951, true)] {
        let gateway = Gateway::start_after("ulimit -n 2000", &mosquitto.url(), &house(max)).await;
        let warning = line(&gateway, WARNING);
        assert_eq!(warning.is_some(), is_warned, "{max} sessions: {warning:?}");
        if let Some(warning) = warning {
            assert!(warning.contains("WARN") && warning.contains("limit=2000 needed=2002"), "{warning}");
        } else {
            gateway.reload(&house(1000)).await;
            eventually("it is warned of", async || line(&gateway, WARNING).is_some()).await;
        }
    }
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
