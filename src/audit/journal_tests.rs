//! Files that end in all kinds of ways.

use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;

use super::*;
use crate::audit::event::Event;
use crate::audit::line::Entry;
use crate::audit::verify;

/// A folder with a log.
struct House {
    folder: TempDir,
    config: Config,
}

impl House {
    fn new() -> House {
        House { folder: TempDir::new().expect("a folder"), config: Config { sync: false, ..Config::default() } }
    }

    /// With files of so many bytes.
    fn with_files_of(size: u64) -> House {
        let mut house = House::new();
        house.config.max_size = NonZeroU64::new(size).expect("not zero");
        house
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn open(&self) -> (Journal, Option<Torn>) {
        Journal::open(&self.path(), &self.config).expect("usable")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).expect("readable")
    }

    /// The names of all files, in the order of the alphabet.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("Unicode")).collect();
        names.sort();
        names
    }

    /// The number of lines of all files, and of faults.
    fn verified(&self) -> (u64, u64) {
        let files: Vec<_> = self.names().iter().map(|name| self.folder.path().join(name)).collect();
        let report = verify(&files, None, &mut |_| {}).expect("readable");
        (report.lines, report.faults)
    }
}

/// The line that comes after this one.
fn line(link: &mut Link) -> Vec<u8> {
    let mut bytes = Vec::new();
    link.follow(&Entry::of(&Event::Stopped, SystemTime::UNIX_EPOCH), &mut bytes);
    bytes
}

/// Writes so many lines, each by itself, the first of them about what was torn.
fn write(journal: &mut Journal, torn: Option<Torn>, count: usize) {
    let mut link = journal.last();
    if let Some(Torn { bytes, hash }) = torn {
        let mut told = Vec::new();
        link.follow(&Entry::of(&Event::Recovered { bytes, torn: hash }, SystemTime::UNIX_EPOCH), &mut told);
        journal.append(&told, link).expect("written");
    }
    for _ in 0..count {
        let line = line(&mut link);
        journal.append(&line, link).expect("written");
    }
}

#[test]
fn a_new_file_is_for_its_user_alone_and_goes_on_where_it_ended() {
    let house = House::new();
    for round in 1..4 {
        let (mut journal, torn) = house.open();
        assert_eq!((torn, journal.last().seq), (None, 2 * (round - 1)));
        write(&mut journal, None, 2);
        assert_eq!(house.verified(), (2 * round, 0));
    }
    assert_eq!(fs::metadata(house.path()).expect("there").permissions().mode() & 0o777, 0o600);
}

proptest! {
    #[test]
    fn wherever_a_write_was_cut_off_the_chain_goes_on(cut: Index, rest in prop_oneof![
        Just(vec![]), Just(vec![0; 50]), Just(b"\n".to_vec()), prop::collection::vec(any::<u8>(), 0..50)
    ]) {
        let house = House::new();
        write(&mut house.open().0, None, 3);
        let whole = house.bytes();
        let cut = cut.index(whole.len() + 1);
        // Before its first line is whole, only what a crash may leave there is taken for a log.
        let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count() as u64;
        prop_assume!(lines > 0 || rest.is_empty());
        fs::write(house.path(), [&whole[..cut], &rest].concat()).expect("written");
        let (mut journal, torn) = house.open();
        write(&mut journal, torn, 2);
        drop(journal);
        let (_, faults) = house.verified();
        prop_assert_eq!(faults, 0, "{}", String::from_utf8_lossy(&house.bytes()));
        // What was there is there.
        prop_assert!(house.bytes().starts_with(&[&whole[..cut], &rest].concat()));
        let (journal, torn) = house.open();
        prop_assert_eq!(torn, None);
        prop_assert!(journal.last().seq >= lines + 2);
    }
}

#[test]
fn a_last_line_that_lacks_its_newline_alone_is_whole() {
    let house = House::new();
    write(&mut house.open().0, None, 2);
    fs::write(house.path(), house.bytes().trim_ascii_end()).expect("written");
    let (mut journal, torn) = house.open();
    assert_eq!((torn, journal.last().seq), (None, 2));
    write(&mut journal, torn, 1);
    assert_eq!(house.verified(), (3, 0));
}

#[test]
fn the_last_line_is_found_however_much_comes_behind_it() {
    let house = House::new();
    write(&mut house.open().0, None, 1);
    for more in [WINDOW as usize - 1, WINDOW as usize, 9 * WINDOW as usize] {
        let (mut journal, torn) = house.open();
        write(&mut journal, torn, 1);
        drop(journal);
        fs::write(house.path(), [house.bytes(), vec![b'x'; more]].concat()).expect("written");
        let (mut journal, torn) = house.open();
        assert_eq!(torn.map(|torn| torn.bytes), Some(more as u64));
        write(&mut journal, torn, 1);
        drop(journal);
        assert_eq!(house.verified().1, 0);
    }
}

#[test]
fn what_is_no_audit_log_is_left_alone() {
    let house = House::new();
    for (bytes, is_taken) in [
        (b"".as_slice(), true),
        (b"{\"seq", true),
        (b"{\"seq\":1,\"time", true),
        (b"\0\0\0", true),
        (b"root:x:0:0:", false),
        (b"{\"a\":1}\n", false),
        (b"\n", false),
    ] {
        fs::write(house.path(), bytes).expect("written");
        match Journal::open(&house.path(), &house.config) {
            Ok(_) => assert!(is_taken, "{bytes:?}"),
            Err(error) => {
                assert!(!is_taken && matches!(error, StartError::NoLog { .. }), "{bytes:?}: {error}");
                assert!(error.to_string().contains("audit.log"), "{error}");
            }
        }
        assert_eq!(house.bytes(), bytes);
    }
}

#[test]
fn what_cannot_be_written_to_is_told_with_its_setting() {
    let house = House::new();
    for (path, said) in [
        ("/dev/null".into(), "/dev/null is no file"),
        (house.folder.path().to_owned(), "cannot use"),
        (house.folder.path().join("none/audit.jsonl"), "No such file"),
    ] {
        let error = Journal::open(&path, &house.config).err().expect("unusable").to_string();
        assert!(error.starts_with("audit.log: ") && error.contains(said), "{error}");
    }
}

#[test]
fn two_never_write_to_one_file() {
    let house = House::with_files_of(300);
    let (mut journal, _) = house.open();
    for _ in 0..2 {
        assert!(matches!(Journal::open(&house.path(), &house.config), Err(StartError::Taken { .. })));
        // Nor to the next one.
        write(&mut journal, None, 2);
    }
    drop(journal);
    house.open();
}

#[test]
fn a_file_that_is_full_is_followed_by_another_and_named_for_its_last_line() {
    let mut link = Link::START;
    let two_lines = 2 * line(&mut link).len() as u64;
    // The room is used to the last byte, and not beyond.
    for (size, names) in [
        (two_lines, ["audit.jsonl", "audit.jsonl.000000000002", "audit.jsonl.000000000004"].as_slice()),
        (
            two_lines - 1,
            &[
                "audit.jsonl",
                "audit.jsonl.000000000001",
                "audit.jsonl.000000000002",
                "audit.jsonl.000000000003",
                "audit.jsonl.000000000004",
            ],
        ),
    ] {
        let house = House::with_files_of(size);
        write(&mut house.open().0, None, 5);
        assert_eq!(house.names(), names);
        assert_eq!(house.verified(), (5, 0));
        // Each file stands alone.
        for name in names {
            let report = verify(&[house.folder.path().join(name)], None, &mut |_| {}).expect("readable");
            assert_eq!(report.faults, 0, "{name}");
        }
    }
}

#[test]
fn lines_that_are_larger_than_a_file_are_written_all_the_same() {
    let house = House::with_files_of(1);
    write(&mut house.open().0, None, 3);
    assert_eq!((house.names().len(), house.verified()), (3, (3, 0)));
}

#[test]
fn of_the_files_that_are_full_the_newest_are_kept_and_no_other_file_is_touched() {
    for keep in [1, 3] {
        let mut house = House::with_files_of(1);
        house.config.keep = NonZeroUsize::new(keep);
        for other in ["audit.jsonl.000000000001.gz", "audit.jsonl.7", "audit.json.000000000001", "b.jsonl.000000000001"]
        {
            fs::write(house.folder.path().join(other), "x").expect("written");
        }
        write(&mut house.open().0, None, 6);
        let names = house.names();
        let full: Vec<_> = names
            .iter()
            .filter(|name| name.len() == "audit.jsonl.000000000001".len() && name.starts_with("audit.jsonl.0"))
            .collect();
        assert_eq!((full.len(), full[0]), (keep, &format!("audit.jsonl.{:012}", 6 - keep)), "{names:?}");
        assert_eq!(names.len(), keep + 1 + 4, "{names:?}");
    }
}

#[test]
fn the_chain_goes_on_from_a_full_file_when_the_next_was_never_begun() {
    let house = House::with_files_of(1);
    write(&mut house.open().0, None, 12);
    fs::remove_file(house.path()).expect("removed");
    let (mut journal, torn) = house.open();
    assert_eq!((torn, journal.last().seq), (None, 11));
    write(&mut journal, torn, 1);
    assert_eq!(house.verified(), (12, 0));
}

#[test]
fn a_file_whose_place_is_taken_is_written_to_beyond_its_size() {
    let house = House::with_files_of(1);
    let (mut journal, _) = house.open();
    write(&mut journal, None, 1);
    let taken = full(&house.path(), 1);
    fs::write(&taken, "mine").expect("written");
    write(&mut journal, None, 1);
    assert_eq!(fs::read(&taken).expect("readable"), b"mine");
    let report = verify(&[house.path()], None, &mut |_| {}).expect("readable");
    assert_eq!((report.lines, report.faults), (2, 0));
}

#[test]
fn a_file_that_was_moved_away_is_followed_by_another() {
    let house = House::new();
    let (mut journal, _) = house.open();
    for (round, leave_one) in [(1, false), (2, true)] {
        write(&mut journal, None, 1);
        fs::rename(house.path(), house.folder.path().join(format!("moved.{round}"))).expect("renamed");
        if leave_one {
            fs::write(house.path(), "").expect("written");
        }
    }
    write(&mut journal, None, 1);
    assert_eq!(
        (house.names(), house.verified()),
        (vec!["audit.jsonl".into(), "moved.1".into(), "moved.2".into()], (3, 0))
    );
    // But nothing is added to what somebody else has put there.
    fs::remove_file(house.path()).expect("removed");
    fs::write(house.path(), "mine").expect("written");
    let mut link = journal.last();
    let line = line(&mut link);
    assert!(journal.append(&line, link).is_err());
    assert_eq!(house.bytes(), b"mine");
}

#[test]
fn what_a_write_that_failed_has_left_is_taken_back_before_it_is_tried_again() {
    let house = House::new();
    let (mut journal, _) = house.open();
    write(&mut journal, None, 2);
    let whole = house.bytes();
    let mut link = journal.last();
    let third = line(&mut link);
    // It takes no write, and can't be cut either.
    let writable = std::mem::replace(&mut journal.file, File::open(house.path()).expect("there"));
    assert!(journal.append(&third, link).is_err());
    // So much of it may have come.
    fs::write(house.path(), [&whole[..], &third[..30]].concat()).expect("written");
    assert!(journal.append(&third, link).is_err());
    journal.file = writable;
    journal.append(&third, link).expect("written");
    assert_eq!(house.bytes(), [whole, third].concat());
    assert_eq!(house.verified(), (3, 0));
}
