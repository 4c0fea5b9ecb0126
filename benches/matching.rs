//! What it costs to find who reads a topic, with few filters and with many: `cargo bench --bench matching`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tidegate::mqtt::Trie;

/// Half of them name one topic; the others have a wildcard in the middle or at the end, as dashboards do.
fn filter(number: usize) -> String {
    let (site, line, machine) = (number % 100, number / 100 % 100, number / 10_000);
    match number % 4 {
        0 | 1 => format!("plant/{site}/line/{line}/machine/{machine}/temp{number}"),
        2 => format!("plant/{site}/line/+/machine/{machine}/speed{number}"),
        _ => format!("plant/{site}/line/{line}/machine/{machine}/n{number}/#"),
    }
}

fn topic(number: usize) -> String {
    filter(number).replace('+', "7").replace("/#", "/alarm")
}

fn matching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matching");
    for filters in [1_000, 1_000_000] {
        let mut trie = Trie::new();
        for number in 0..filters {
            trie.insert(&filter(number), number as u32);
        }
        // Of a thousand topics spread over all the filters, so that what is near in one is far in the other.
        let topics: Vec<String> = (0..1_000).map(|index| topic(index * (filters / 1_000))).collect();
        let mut next = topics.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(filters), |bencher| {
            bencher.iter(|| {
                let mut found = 0;
                trie.for_each_match(black_box(next.next().expect("it goes round")), |_| found += 1);
                assert!(found > 0);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, matching);
criterion_main!(benches);
