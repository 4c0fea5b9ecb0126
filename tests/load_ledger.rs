//! The load tool's judgements: what its ledger says of planted faults, and its trend of planted leaks.

#[path = "../benches/load/ledger.rs"]
mod ledger;
#[path = "../benches/load/trend.rs"]
mod trend;

use ledger::{Entry, Ledger, Stamp, Totals};
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
