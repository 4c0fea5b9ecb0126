//! The load tool's judgements: what its ledger says of planted faults, its trend of planted leaks, and its reading of
//! a page of metrics.

#[path = "../benches/load/ledger.rs"]
mod ledger;
#[path = "../benches/load/page.rs"]
mod page;
#[path = "../benches/load/trend.rs"]
mod trend;

use ledger::{Entry, Ledger, Stamp, Totals};
use page::{Histogram, total};
use std::ops::Range;
use std::time::Duration;
use trend::Trend;

fn stamp(lane: u32, seq: u32) -> Stamp {
    Stamp { lane, seq, sent: Duration::from_micros(10) }
}

/// Lane and place of each message that arrives.
type Arrivals = &'static [(u32, u32)];

/// What is counted as lost, duplicated, reordered, stray.
fn faults(lanes: Range<u32>, each: u32, arrivals: Arrivals) -> [u64; 4] {
    let mut ledger = Ledger::new(lanes, each);
    for &(lane, seq) in arrivals {
        ledger.enter(stamp(lane, seq), Duration::from_micros(25));
    }
    let totals = ledger.totals();
    [totals.lost(), totals.duplicated, totals.reordered, totals.stray]
}

#[test]
fn each_planted_fault_is_counted_as_what_it_is() {
    let cases: [(&str, Arrivals, [u64; 4]); 9] = [
        ("complete", &[(0, 0), (0, 1), (0, 2)], [0, 0, 0, 0]),
        ("the first lost", &[(0, 1), (0, 2)], [1, 0, 0, 0]),
        ("one lost between", &[(0, 0), (0, 2)], [1, 0, 0, 0]),
        ("the last lost", &[(0, 0), (0, 1)], [1, 0, 0, 0]),
        ("nothing came", &[], [3, 0, 0, 0]),
        ("one repeated", &[(0, 0), (0, 0), (0, 1), (0, 2)], [0, 1, 0, 0]),
        ("two swapped", &[(0, 1), (0, 0), (0, 2)], [0, 0, 1, 0]),
        ("an early one repeated late", &[(0, 0), (0, 1), (0, 2), (0, 0)], [0, 1, 0, 0]),
        ("past the end", &[(0, 0), (0, 1), (0, 2), (0, 3)], [0, 0, 0, 1]),
    ];
    for (name, arrivals, expected) in cases {
        assert_eq!(faults(0..1, 3, arrivals), expected, "{name}");
    }
}

/// Lanes without their last message, and what came behind a later one.
fn conflation_faults(lanes: Range<u32>, each: u32, arrivals: Arrivals) -> [u64; 2] {
    let mut ledger = Ledger::new(lanes, each);
    for &(lane, seq) in arrivals {
        ledger.enter(stamp(lane, seq), Duration::from_micros(25));
    }
    let totals = ledger.totals();
    [totals.unfinished, totals.reordered]
}

#[test]
fn of_a_conflated_lane_the_last_message_must_come_and_the_order_must_hold() {
    let cases: [(&str, Arrivals, [u64; 2]); 6] = [
        ("all came", &[(0, 0), (0, 1), (0, 2), (0, 3)], [0, 0]),
        ("the last alone", &[(0, 3)], [0, 0]),
        ("some between are missing", &[(0, 0), (0, 2), (0, 3)], [0, 0]),
        ("the last is missing", &[(0, 0), (0, 2)], [1, 0]),
        ("an old value behind the last", &[(0, 3), (0, 2)], [0, 1]),
        ("nothing came", &[], [1, 0]),
    ];
    for (name, arrivals, expected) in cases {
        assert_eq!(conflation_faults(0..1, 4, arrivals), expected, "{name}");
    }
    assert_eq!(conflation_faults(0..2, 4, &[(1, 3), (0, 2)]), [1, 0], "each lane has a last one of its own");
}

#[test]
fn totals_come_back_whole_from_another_process() {
    let mut ledger = Ledger::new(0..2, 3);
    for (lane, seq, now) in [(0, 1, 40), (0, 0, 25), (0, 0, 25), (1, 0, 25), (7, 0, 25)] {
        ledger.enter(stamp(lane, seq), Duration::from_micros(now));
    }
    let mut totals = ledger.totals();
    let text = serde_json::to_string(&totals).expect("totals are JSON");
    let other: Totals = serde_json::from_str(&text).expect("totals are read as they were written");
    totals.latencies.sort_unstable();
    assert_eq!(totals.latencies, [15, 15, 30]);
    assert_eq!(other, totals);
}

#[test]
fn lanes_are_judged_apart() {
    assert_eq!(faults(4..6, 2, &[(5, 0), (4, 0), (5, 1), (4, 1)]), [0, 0, 0, 0]);
    assert_eq!(faults(4..6, 2, &[(5, 1), (4, 0), (5, 0), (4, 1)]), [0, 0, 1, 0]);
}

#[test]
fn a_message_of_a_lane_that_was_not_asked_for_is_a_stray() {
    assert_eq!(faults(4..6, 1, &[(3, 0), (4, 0), (5, 0), (6, 0)]), [0, 0, 0, 2]);
}

#[test]
fn only_a_first_copy_is_new() {
    let mut ledger = Ledger::new(0..1, 2);
    let now = Duration::from_micros(25);
    assert!(!ledger.holds(stamp(0, 1)));
    assert_eq!(ledger.enter(stamp(0, 1), now), Entry::New);
    assert!(ledger.holds(stamp(0, 1)) && !ledger.holds(stamp(0, 0)) && !ledger.holds(stamp(1, 1)));
    assert_eq!(ledger.enter(stamp(0, 1), now), Entry::Duplicate);
    assert_eq!(ledger.enter(stamp(0, 0), now), Entry::New);
    assert_eq!(ledger.enter(stamp(1, 0), now), Entry::Stray);
    assert_eq!(ledger.totals().latencies, [15, 15]);
}

#[test]
fn a_stamp_survives_the_payload_and_the_frame_around_it() {
    let stamp = Stamp { lane: 4999, seq: u32::MAX, sent: Duration::from_nanos(u64::MAX) };
    for size in [Stamp::LEN, 100, 16384] {
        let payload = stamp.payload(size);
        assert_eq!(payload.len(), size);
        let frame = format!(r#"{{"type":"mqtt","topic":"load/1","payload":"{payload}","qos":0}}"#);
        assert_eq!(Stamp::find(frame.as_bytes()), Some(stamp), "{size} bytes");
    }
}

#[test]
fn frames_without_a_whole_stamp_carry_none() {
    for frame in ["", "{}", "@", "@00000000", r#"{"type":"pong"}"#, "@zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"] {
        assert_eq!(Stamp::find(frame.as_bytes()), None, "{frame}");
    }
}

#[test]
fn latencies_are_taken_turn_by_turn() {
    let mut ledger = Ledger::new(0..1, 3);
    for (place, now) in [(0, 25), (1, 30)] {
        ledger.enter(stamp(0, place), Duration::from_micros(now));
    }
    assert_eq!(ledger.take_latencies(), [15, 20]);
    ledger.enter(stamp(0, 2), Duration::from_micros(11));
    assert_eq!(ledger.take_latencies(), [1]);
    assert_eq!(ledger.totals().received, 3);
}

#[test]
fn totals_add_up_and_percentiles_are_exact() {
    let mut totals = Totals::default();
    assert_eq!(totals.percentiles([0.5, 1.0]), [0, 0]);
    for latency in (1..=100).rev() {
        totals.add(Totals { expected: 2, received: 1, latencies: vec![latency], ..Totals::default() });
    }
    assert_eq!(totals.percentiles([0.5, 0.9, 0.99, 1.0]), [50, 90, 99, 100]);
    assert_eq!(totals.lost(), 100);
}

/// A figure every five seconds for half an hour, with its grain: a share of it by which it goes up and down.
fn trend(figure: impl Fn(f64) -> f64, grain: f64) -> Trend {
    let sample = |index: u32| {
        // A walk that repeats itself only after the last sample, and favours no direction.
        let swing = f64::from(index.wrapping_mul(2_654_435_769) >> 16) / 32_768.0 - 1.0;
        let time = f64::from(index) * 5.0;
        (time, figure(time) * (1.0 + grain * swing))
    };
    Trend::of(&(0..360).map(sample).collect::<Vec<_>>()).expect("samples enough")
}

#[test]
fn a_planted_leak_grows_and_what_only_swings_does_not() {
    let sawtooth = |time: f64| 100.0 + (time % 60.0) / 2.0;
    let cases: [(&str, Trend, bool); 9] = [
        ("level", trend(|_| 100.0, 0.0), false),
        ("level, with grain", trend(|_| 100.0, 0.2), false),
        ("up and down", trend(sawtooth, 0.02), false),
        ("within the bound", trend(|time| 100.0 + time / 450.0, 0.02), false),
        ("falling", trend(|time| 100.0 - time / 20.0, 0.02), false),
        ("a leak", trend(|time| 100.0 + time / 150.0, 0.02), true),
        ("a leak under grain", trend(|time| 100.0 + time / 90.0, 0.2), true),
        ("a leak under swings", trend(|time| sawtooth(time) + time / 90.0, 0.02), true),
        ("a leak that begins late", trend(|time| 100.0 + (time - 900.0).max(0.0) / 60.0, 0.02), true),
    ];
    for (name, trend, grows) in cases {
        assert_eq!(trend.grows(0.05), grows, "{name}: {trend:?}");
    }
}

#[test]
fn a_trend_is_the_line_through_the_samples() {
    let line: Vec<_> = (0..10).map(|index| (f64::from(index), 3.0 + 2.0 * f64::from(index))).collect();
    let trend = Trend::of(&line).expect("samples enough");
    assert_eq!((trend.level, trend.rise, trend.share()), (12.0, 18.0, 1.5));
    assert!(trend.noise < 1e-9, "{trend:?}");
}

#[test]
fn a_few_samples_make_no_trend() {
    let level: Vec<_> = (0..10).map(|index| (f64::from(index), 1.0)).collect();
    assert!(Trend::of(&level).is_some());
    assert_eq!(Trend::of(&level[..9]), None);
    assert_eq!(Trend::of(&[(1.0, 1.0); 20]), None, "no time passes");
    assert_eq!(Trend::of(&[]), None);
}

#[test]
fn a_histogram_is_read_off_a_page_bucket_by_bucket() {
    let page = "\
        # TYPE delivery_seconds histogram\n\
        delivery_seconds_bucket{qos=\"0\",le=\"0.001\"} 40\n\
        delivery_seconds_bucket{qos=\"0\",le=\"0.002\"} 48\n\
        delivery_seconds_bucket{qos=\"0\",le=\"+Inf\"} 49\n\
        delivery_seconds_bucket{qos=\"1\",le=\"0.001\"} 40\n\
        delivery_seconds_bucket{qos=\"1\",le=\"0.002\"} 50\n\
        delivery_seconds_bucket{qos=\"1\",le=\"+Inf\"} 51\n\
        delivery_seconds_sum 1\n\
        delivery_seconds_count 100\n\
        delivery_seconds_bucket_other 7\n";
    let all = Histogram::read(page, "delivery_seconds");
    let rounded = |share| all.percentile(share).map(|time| (time * 1e6).round());
    assert_eq!(rounded(0.4), Some(500.0), "half of the first bucket");
    assert_eq!(rounded(0.89), Some(1500.0), "half of the second");
    assert_eq!(rounded(0.99), Some(2000.0), "past the last bound nothing is known but that bound");
    assert_eq!(all.since(&all).percentile(0.5), None, "nothing has come since");
    assert_eq!(all.since(&Histogram::default()), all);
    assert_eq!(Histogram::read(page, "ack_seconds").percentile(0.5), None);
    assert_eq!(total(page, "delivery_seconds_count"), Some(100.0));
    assert_eq!(total(page, "delivery_seconds"), None);
}
