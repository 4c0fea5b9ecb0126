//! The fuzz targets' claims (fuzz/claims.rs), held against their seeds, against what chance makes of those, and against the largest
//! inputs that there can be.

#[path = "../fuzz/fuzz_targets/claim.rs"]
#[allow(unused_attributes, reason = "a module has no main")]
mod target;

// The targets are compiled as they are, with this in place of libFuzzer's own.
extern crate self as libfuzzer_sys;

/// What libFuzzer calls.
#[macro_export]
macro_rules! fuzz_target {
    ($target:expr) => {
        const _: fn(&[u8]) = $target;
    };
}

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use target::claims::{self, CLAIMS};

/// How long each claim is held against chance.
const A_MOMENT: Duration = Duration::from_secs(1);
/// What parsers look for.
const WORDS: [&[u8]; 24] = [
    b"{", b"}", b"[", b"]", b"\"", b"\\", b":", b",", b"\\ud800", b"null", b"-0", b"1e999", b"\0", b"\xFF", b"\x80",
    b"+", b"#", b"/", b"$share/", b"$", b"\n", b"=", b"@", b"://",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The seeds of a claim: its folder, and for frames the examples of the protocol.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let files = |folder: PathBuf| {
        let mut files: Vec<_> =
            fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path()).collect();
        files.sort();
        files
    };
    let mut seeds: Vec<_> =
        files(folder().join("seeds").join(name)).iter().map(|file| fs::read(file).expect("readable")).collect();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    if name == "frame" {
        for file in files(folder().join("../protocol/v1")) {
            let page: Value = serde_json::from_slice(&fs::read(&file).expect("readable")).expect("JSON");
            let examples = ["examples", "refused"].iter().filter_map(|list| page[list].as_array()).flatten();
            seeds.extend(examples.map(|example| match &example["text"] {
                Value::String(text) => text.clone().into_bytes(),
                _ => example["frame"].to_string().into_bytes(),
            }));
        }
        assert!(seeds.len() > 100, "the protocol's examples are found");
    }
    seeds
}

/// Shows the input, if a claim does not hold of it.
fn hold(name: &str, data: &[u8]) {
    if catch_unwind(|| claims::hold(name, data)).is_err() {
        panic!("{name} does not hold of b\"{}\"", data[..data.len().min(10_000)].escape_ascii());
    }
}

/// A seed after a few accidents.
fn mutated(seeds: &[Vec<u8>], chance: &mut StdRng) -> Vec<u8> {
    let mut data = seeds.choose(chance).expect("a seed").clone();
    for _ in 0..chance.random_range(1..=4) {
        let (one, other) = (chance.random_range(0..=data.len()), chance.random_range(0..=data.len()));
        let range = one.min(other)..one.max(other);
        let few = range.start..range.end.min(range.start + 4);
        match chance.random_range(0..8) {
            0 if one < data.len() => data[one] = chance.random(),
            1 if one < data.len() => data[one] ^= 1 << chance.random_range(0..8),
            2 => data.insert(one, chance.random()),
            3 => drop(data.splice(one..one, WORDS.choose(chance).expect("a word").iter().copied())),
            4 => drop(data.drain(few)),
            5 => data.truncate(one),
            6 => {
                let part = data[range].to_vec();
                drop(data.splice(one..one, part));
            }
            _ => {
                let part = seeds.choose(chance).expect("a seed");
                drop(data.splice(few, part[..chance.random_range(0..=part.len())].iter().copied()));
            }
        }
    }
    data
}

#[test]
fn every_claim_holds_of_its_seeds() {
    for (name, _) in CLAIMS {
        for seed in seeds(name) {
            hold(name, &seed);
        }
    }
}

#[test]
fn every_claim_holds_of_what_chance_makes_of_its_seeds() {
    for (name, _) in CLAIMS {
        let seeds = seeds(name);
        let mut chance = StdRng::from_os_rng();
        let until = Instant::now() + A_MOMENT;
        while Instant::now() < until {
            hold(name, &mutated(&seeds, &mut chance));
        }
    }
}

/// Time that grew with the square of the length would take minutes here.
#[test]
fn every_claim_holds_of_what_is_as_large_as_it_can_be() {
    let many = |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(",");
    let publish = |properties: &str| format!(r#"{{"type":"publish","topic":"a","payload":1,{properties}}}"#);
    let frames = [
        "[".repeat(1 << 20),
        format!("{{\"a\":{}", "[".repeat(1 << 20)),
        "{\"a\":".repeat(1 << 18),
        format!("\"{}\"", "\\ud83d\\ude00".repeat(80_000)),
        publish(&many(80_000, &|index| format!("\"{index}\":0"))),
        publish(&many(80_000, &|_| "\"x\":0".to_owned())),
        publish(&format!(r#""properties":{{"userProperties":[{}]}}"#, many(80_000, &|_| r#"["a","b"]"#.to_owned()))),
        format!(r#"{{"type":"subscribe","topics":[{}]}}"#, many(80_000, &|index| format!("\"{index}/+\""))),
        format!(r#"{{"type":"ack","msgids":[{}]}}"#, many(80_000, &|index| index.to_string())),
        format!(r#"{{"type":"publish","topic":"a","payload":"{}"}}"#, "\u{1F600}".repeat(200_000)),
        format!(r#"{{"type":"publish","topic":"a","encoding":"base64","payload":"{}"}}"#, "AAAA".repeat(200_000)),
        format!(r#"{{"type":"publish","topic":"{}","payload":1}}"#, "/".repeat(65_536)),
        format!(r#"{{"msgid":"{}","type":"ping"}}"#, "9".repeat(1 << 20)),
        format!(r#"{{"msgid":{},"type":"ping"}}"#, "9".repeat(1 << 20)),
    ];
    let properties = [0x26, 0, 0, 0, 0].repeat(13_000);
    let packets = [
        [&[0x30, 0xD0, 0xFC, 0x03, 0, 1, b'a', 0xC8, 0xFB, 0x03][..], &properties].concat(),
        [0xD0, 0].repeat(1 << 19),
        [0x40, 2, 0, 1].repeat(1 << 18),
    ];
    let masked = |first: u8, length: u16| {
        [&[first, 0xFE][..], &length.to_be_bytes(), &[0; 4], &vec![b'x'; length.into()]].concat()
    };
    let websockets = [
        [0x81, 0x80, 0, 0, 0, 0].repeat(1 << 17),
        [&[0x01, 0x80, 0, 0, 0, 0][..], &[0x00, 0x80, 0, 0, 0, 0].repeat(1 << 17)].concat(),
        masked(0x81, 2049).repeat(1 << 9),
        [masked(0x01, u16::MAX), masked(0x80, 1)].concat().repeat(1 << 4),
    ];
    let lines = |line: &str| line.repeat((1 << 20) / line.len());
    let cases = (frames.iter().map(|text| ("frame", text.clone().into_bytes())))
        .chain(packets.map(|packets| ("packets", packets)))
        .chain(websockets.map(|frames| ("websocket", frames)))
        .chain(["a/", "+/", "$share/", "a/+/#\n", "\n"].map(|line| ("topics", lines(line).into_bytes())))
        .chain(["mqtt://", "[", "é."].map(|part| ("broker_url", format!("mqtt://{}", lines(part)).into_bytes())))
        .chain([",", "mqtt,", "bearer."].map(|part| ("subprotocols", lines(part).into_bytes())))
        .chain(["[", "[a]\n", "a.", "x = [", "TIDEGATE_A=1\n"].map(|part| ("settings", lines(part).into_bytes())))
        // A variable has 128 KiB at most.
        .chain([("settings", format!("TIDEGATE_{}=1", "A".repeat(131_000)).into_bytes())]);
    for (name, data) in cases {
        let beginning = data[..40].escape_ascii().to_string();
        assert!(catch_unwind(|| claims::hold(name, &data)).is_ok(), "{name}, {beginning}…");
    }
}

#[test]
fn every_claim_has_a_target() {
    let manifest: toml::Table =
        fs::read_to_string(folder().join("Cargo.toml")).expect("readable").parse().expect("TOML");
    let bins: Vec<_> = manifest["bin"].as_array().expect("programs").iter().map(|bin| bin["name"].as_str()).collect();
    assert_eq!(bins, CLAIMS.map(|(name, _)| Some(name)));
}
