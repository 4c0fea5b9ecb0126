//! Logs that were tampered with.

use std::fs;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;

use super::*;
use crate::audit::event::Event;
use crate::audit::line::Entry;

/// A log of so many lines, each with its newline.
fn log(count: u64) -> Vec<Vec<u8>> {
    let mut link = Link::START;
    (0..count)
        .map(|nth| {
            line(&mut link, &Event::Administered { by: "ann", address: [127, 0, 0, 1].into(), what: &nth.to_string() })
        })
        .collect()
}

fn line(link: &mut Link, event: &Event<'_>) -> Vec<u8> {
    let mut line = Vec::new();
    link.follow(&Entry::of(event, SystemTime::UNIX_EPOCH + Duration::from_secs(link.seq)), &mut line);
    line
}

/// What is told of files with these bytes: of each finding the file's number, the line's, and what; and the sum.
fn check_files(files: &[&[u8]], noted: Option<Hash>) -> (Vec<(usize, u64, What)>, Report) {
    let folder = TempDir::new().expect("a folder");
    let paths: Vec<PathBuf> = (0..files.len()).map(|number| folder.path().join(number.to_string())).collect();
    for (path, bytes) in paths.iter().zip(files) {
        fs::write(path, bytes).expect("written");
    }
    let mut findings = Vec::new();
    let mut tell = |Finding { place, what }: &Finding| {
        let file = place.as_ref().and_then(|(path, _)| paths.iter().position(|other| other == path));
        findings.push((file.unwrap_or_default(), place.as_ref().map_or(0, |(_, number)| *number), what.clone()));
    };
    let report = verify(&paths, noted, &mut tell).expect("readable");
    assert_eq!(report.faults, findings.iter().filter(|(_, _, what)| what.is_fault()).count() as u64);
    (findings, report)
}

/// The same of one file.
fn check(lines: &[Vec<u8>]) -> (Vec<(u64, What)>, Report) {
    let (findings, report) = check_files(&[&lines.concat()], None);
    (findings.into_iter().map(|(_, number, what)| (number, what)).collect(), report)
}

#[test]
fn a_log_that_nobody_touched_is_ok() {
    for count in [0, 1, 2, 100] {
        let lines = log(count);
        let (findings, report) = check(&lines);
        assert_eq!((findings, report.faults, report.lines), (vec![], 0, count));
        assert_eq!(report.seqs, (count > 0).then_some((1, count)));
        let last = lines.last().and_then(|line| Line::read(line.trim_ascii_end())).map(|line| line.link.hash);
        assert_eq!(report.last, last);
    }
    let (_, report) = check(&log(2));
    assert_eq!(report.to_string(), format!("ok: lines 2, seq 1 to 2, last hash {}", report.last.expect("a hash")));
}

proptest! {
    #[test]
    fn any_byte_that_is_changed_is_found(count in 1..5u64, at: Index, other: u8) {
        let mut bytes = log(count).concat();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != other);
        let number = bytes[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        bytes[at] = other;
        let (findings, report) = check_files(&[&bytes], None);
        prop_assert!(report.faults > 0);
        // The line itself is named; one that lost its newline goes on with the next.
        let first = findings.iter().find(|(_, _, what)| what.is_fault());
        prop_assert_eq!(first.map(|(_, number, _)| *number), Some(number), "{:?}", findings);
    }

    #[test]
    fn any_lines_that_are_taken_out_are_found(count in 3..9u64, from: Index, many: Index) {
        let mut lines = log(count);
        let from = 1 + from.index(lines.len() - 2);
        let to = from + 1 + many.index(lines.len() - 1 - from);
        lines.drain(from..to);
        let missing = What::Missing { count: (to - from) as u64, from: from as u64 + 1, to: to as u64 };
        prop_assert_eq!(check(&lines).0, [(from as u64 + 1, missing)]);
    }

    #[test]
    fn any_order_but_that_of_writing_is_found(order in Just(log(6)).prop_shuffle()) {
        let is_sorted = order == log(6);
        let (findings, report) = check(&order);
        prop_assert_eq!(report.faults == 0, is_sorted, "{:?}", findings);
    }

    #[test]
    fn what_is_put_in_is_found(at: Index, again: Index, text in "[^\n]*") {
        for foreign in [log(6)[again.index(6)].clone(), format!("{text}\n").into_bytes(), log(1)[0].clone()] {
            let mut lines = log(6);
            lines.insert(at.index(7), foreign.clone());
            prop_assert!(check(&lines).1.faults > 0, "{}", String::from_utf8_lossy(&foreign));
        }
    }

    #[test]
    fn bytes_that_are_no_log_are_told_and_no_more(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        let (_, report) = check_files(&[&bytes], None);
        prop_assert!(report.faults > 0 && report.seqs.is_none());
    }
}

#[test]
fn each_fault_is_told_at_its_line() {
    let changed = {
        let mut lines = log(5);
        let text = String::from_utf8(lines[2].clone()).expect("UTF-8").replace("ann", "bob");
        lines[2] = text.into_bytes();
        lines
    };
    assert_eq!(check(&changed).0, [(3, What::Changed)]);

    let moved = {
        let mut lines = log(5);
        lines.swap(1, 3);
        lines
    };
    let out_of_order = |seq, due| What::OutOfOrder { seq, due };
    assert_eq!(
        check(&moved).0,
        [(2, What::Missing { count: 2, from: 2, to: 3 }), (3, out_of_order(3, 5)), (4, out_of_order(2, 5))]
    );

    let replaced = {
        let mut lines = log(5);
        let before = Line::read(lines[1].trim_ascii_end()).expect("a line").link;
        lines[2] = line(&mut { before }, &Event::Stopped);
        lines
    };
    assert_eq!(check(&replaced).0, [(4, What::NotLinked)]);

    let mut foreign = log(3);
    foreign.insert(1, b"{}\n".to_vec());
    assert_eq!(check(&foreign).0, [(2, What::NoLine)]);

    let mut cut_off = log(3);
    cut_off[2].truncate(40);
    assert_eq!(check(&cut_off).0, [(3, What::CutOff)]);
    let mut unended = log(3);
    unended[2].pop();
    let (findings, report) = check(&unended);
    assert_eq!((findings, report.seqs), (vec![(3, What::CutOff)], Some((1, 3))));

    // One line can't be read, and another is not there.
    let mut both = log(6);
    both[2] = b"#\n".to_vec();
    both.remove(3);
    assert_eq!(check(&both).0, [(3, What::NoLine), (4, What::Missing { count: 1, from: 3, to: 4 })]);
}

/// What a write has left that was cut off, and the line that tells of it.
fn recovered(link: &mut Link, torn: &[u8]) -> Vec<u8> {
    line(link, &Event::Recovered { bytes: torn.len() as u64, torn: Hash::of(torn) })
}

#[test]
fn a_line_that_was_torn_is_told_and_is_no_fault() {
    let written = log(4);
    for torn in [&written[2][..50], b"", b"{\"seq\":3\n\0\0\n", &[written[2].as_slice(), b"{\"se"].concat()[200..]] {
        let mut link = Line::read(written[1].trim_ascii_end()).expect("a line").link;
        let mut lines = written[..2].to_vec();
        lines.push([torn, b"\n"].concat());
        lines.push(recovered(&mut link, torn));
        lines.push(line(&mut link, &Event::Stopped));
        let (findings, report) = check(&lines);
        assert_eq!((report.faults, report.seqs), (0, Some((1, 4))), "{findings:?}");
        assert!(!findings.is_empty() && findings.iter().all(|(_, what)| *what == What::Torn));

        // So the bytes that were torn can't be changed either.
        lines[2] = b"{\"other\":1}\n".to_vec();
        assert_eq!(check(&lines).0, [(3, What::NoLine)]);
        lines.remove(2);
        assert_eq!(check(&lines).0, [(3, What::NothingTorn)]);
        // It may have been in a file that is not kept any more.
        assert_eq!(check(&lines[2..]).0, []);
    }
}

#[test]
fn a_line_that_was_changed_does_not_pass_for_a_torn_one() {
    let mut lines = log(3);
    let changed = String::from_utf8(lines[2].clone()).expect("UTF-8").replace("ann", "bob").into_bytes();
    let mut link = Line::read(lines[1].trim_ascii_end()).expect("a line").link;
    lines[2].clone_from(&changed);
    lines.push(recovered(&mut link, changed.trim_ascii_end()));
    assert_eq!(check(&lines).0, [(3, What::Changed)]);
}

#[test]
fn events_that_were_dropped_are_told_and_are_no_fault() {
    let mut link = Link::START;
    let lines = [line(&mut link, &Event::Dropped { count: 7, since: SystemTime::UNIX_EPOCH })];
    let (findings, report) = check(&lines);
    assert_eq!((findings, report.faults), (vec![(1, What::Dropped(7))], 0));
}

#[test]
fn files_may_come_in_any_order_and_each_stands_alone() {
    let lines = log(9);
    let parts = [lines[..3].concat(), lines[3..6].concat(), lines[6..].concat()];
    let [first, second, third] = parts.each_ref().map(Vec::as_slice);
    for files in [[first, second, third], [third, first, second]] {
        let (findings, report) = check_files(&files, None);
        assert_eq!((findings, report.seqs), (vec![], Some((1, 9))));
    }
    let (findings, report) = check_files(&[second], None);
    assert_eq!((findings, report.seqs), (vec![], Some((4, 6))));
    let (findings, _) = check_files(&[third, first], None);
    assert_eq!(findings, [(0, 1, What::Missing { count: 3, from: 4, to: 6 })]);
}

#[test]
fn a_write_that_was_cut_off_at_the_end_of_a_file_is_told_of_in_the_next() {
    let torn = b"{\"seq\":3,";
    let first = [log(2).concat().as_slice(), torn, b"\n"].concat();
    let mut link = Line::read(log(2)[1].trim_ascii_end()).expect("a line").link;
    let second = recovered(&mut link, torn);
    assert_eq!(check_files(&[&first, &second], None).0, [(0, 3, What::Torn)]);
}

#[test]
fn a_hash_that_was_noted_down_shows_that_the_end_was_cut_off() {
    let lines = log(5);
    let hash = |index: usize| Line::read(lines[index].trim_ascii_end()).map(|line| line.link.hash);
    for (count, noted, is_there) in [(5, 4, true), (5, 2, true), (4, 4, false), (4, 3, true)] {
        let (findings, report) = check_files(&[&lines[..count].concat()], hash(noted));
        let expected = if is_there { vec![] } else { vec![(0, 0, What::NotThere(hash(noted).expect("a hash")))] };
        assert_eq!((findings, report.faults), (expected, u64::from(!is_there)), "{count} lines, line {noted}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = verify(&["/none/audit.jsonl".into()], None, &mut |_| {}).expect_err("there is none").to_string();
    assert!(error.starts_with("cannot read /none/audit.jsonl: No such file"), "{error}");
}
