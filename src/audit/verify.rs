//! Whether a log is as it was written, and where it is not.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

use super::line::{Hash, Line, Link, Told};

/// A file of the log can't be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {cause}", path.display())]
pub struct Unreadable {
    path: PathBuf,
    cause: io::Error,
}

/// Something to tell of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file and the line; none for what is about the log as a whole.
    pub place: Option<(PathBuf, u64)>,
    /// What is to be told.
    pub what: What,
}

/// What may be told of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Its hash is not that of its text.
    Changed,
    /// It has not the form of a line.
    NoLine,
    /// The file ends within it.
    CutOff,
    /// Of the lines that should be before it, some are missing.
    Missing {
        /// So many.
        count: u64,
        /// The first that may be.
        from: u64,
        /// The last that may be.
        to: u64,
    },
    /// It comes where a later one is due.
    OutOfOrder {
        /// Its number.
        seq: u64,
        /// The number that is due.
        due: u64,
    },
    /// Its number is due, but it was written behind another line than the one before it.
    NotLinked,
    /// It tells of a write that was cut off, and nothing of that is there any more.
    NothingTorn,
    /// No line has the hash that was noted down.
    NotThere(Hash),
    /// No fault: a write was cut off there, and the log says so itself.
    Torn,
    /// No fault of the log: it tells that events are missing.
    Dropped(u64),
}

impl What {
    /// Whether the log is not as it was written.
    pub fn is_fault(&self) -> bool {
        match self {
            What::Changed | What::NoLine | What::CutOff | What::NotLinked | What::NotThere(_) => true,
            What::Missing { .. } | What::OutOfOrder { .. } | What::NothingTorn => true,
            What::Torn | What::Dropped(_) => false,
        }
    }
}

/// What a log comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// All lines, whole or not.
    pub lines: u64,
    /// The numbers of the first line and of the last one that are in their place.
    pub seqs: Option<(u64, u64)>,
    /// The hash of the last one.
    pub last: Option<Hash>,
    /// What is not as it was written.
    pub faults: u64,
}

/// Reads the files of one log, in the order of their lines, tells what is found, and sums it up. A log may begin anywhere: files that are
/// full may have been removed. With `noted`, a line must have this hash.
pub fn verify(files: &[PathBuf], noted: Option<Hash>, tell: &mut dyn FnMut(&Finding)) -> Result<Report, Unreadable> {
    let mut ordered = Vec::new();
    for path in files {
        ordered.push((first_seq(path)?, path));
    }
    ordered.sort_by_key(|(seq, _)| *seq);
    let mut check = Check::new(noted, tell);
    for (_, path) in ordered {
        for_each_line(path, |number, line| {
            let place = (path.as_path(), number);
            match line.strip_suffix(b"\n") {
                Some(line) => check.line(place, line),
                None => check.unended_line(place, line),
            }
            true
        })?;
    }
    Ok(check.finish())
}

/// The number of the first line that is one. A file without any comes last.
fn first_seq(path: &Path) -> Result<u64, Unreadable> {
    let mut first = u64::MAX;
    for_each_line(path, |_, line| match Line::read(line.strip_suffix(b"\n").unwrap_or(line)) {
        Some(line) => {
            first = line.link.seq;
            false
        }
        None => true,
    })?;
    Ok(first)
}

/// Gives each line with its number and its newline, as long as more are wanted.
fn for_each_line(path: &Path, mut each: impl FnMut(u64, &[u8]) -> bool) -> Result<(), Unreadable> {
    let unreadable = |cause| Unreadable { path: path.to_owned(), cause };
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(unreadable)? == 0 || !each(number, &line) {
            break;
        }
    }
    Ok(())
}

type Place<'a> = (&'a Path, u64);

/// The lines so far.
struct Check<'a> {
    report: Report,
    /// The last line in its place.
    last: Option<Link>,
    /// The lines since then that can't be read.
    unread: Unread,
    noted: Option<Hash>,
    tell: &'a mut dyn FnMut(&Finding),
}

/// Lines that can't be read, one after the other.
#[derive(Default)]
struct Unread {
    lines: Vec<Finding>,
    digest: Option<Context>,
}

impl<'a> Check<'a> {
    fn new(noted: Option<Hash>, tell: &'a mut dyn FnMut(&Finding)) -> Check<'a> {
        Check { report: Report::default(), last: None, unread: Unread::default(), noted, tell }
    }

    fn line(&mut self, place: Place<'_>, bytes: &[u8]) {
        self.report.lines += 1;
        match Line::read(bytes) {
            Some(line) if line.is_intact => self.follow(place, &line),
            // This is not how a crash leaves a line.
            Some(_) => self.unread.add(place, What::Changed, bytes),
            None => self.unread.add(place, What::NoLine, bytes),
        }
    }

    fn unended_line(&mut self, place: Place<'_>, bytes: &[u8]) {
        match Line::read_intact(bytes) {
            Some(_) => self.line(place, bytes),
            None => self.report.lines += 1,
        }
        self.settle(Told::Other);
        self.tell(Some(place), What::CutOff);
    }

    /// A line that is as it was written: is it in its place?
    fn follow(&mut self, place: Place<'_>, line: &Line) {
        let lacks_torn = matches!(line.told, Told::Recovered(_)) && self.unread.lines.is_empty();
        let unread = self.settle(line.told);
        let Link { seq, hash } = line.link;
        if self.noted == Some(hash) {
            self.noted = None;
        }
        if let Some(last) = self.last {
            let due = last.seq.saturating_add(1);
            // Lines that can't be read may be some of those that are not there.
            let missing = seq.saturating_sub(due).saturating_sub(unread);
            if seq < due {
                // What is due is the same after it as before.
                return self.tell(Some(place), What::OutOfOrder { seq, due });
            }
            if missing > 0 {
                self.tell(Some(place), What::Missing { count: missing, from: due, to: seq - 1 });
            } else if seq == due && unread == 0 && line.prev != last.hash {
                self.tell(Some(place), What::NotLinked);
            }
            // Where the log begins it may be in a file that was removed.
            if lacks_torn {
                self.tell(Some(place), What::NothingTorn);
            }
        }
        if let Told::Dropped(count) = line.told {
            self.tell(Some(place), What::Dropped(count));
        }
        self.last = Some(line.link);
        let first = self.report.seqs.map_or(seq, |(first, _)| first);
        self.report.seqs = Some((first, seq));
        self.report.last = Some(hash);
    }

    /// Judges the lines that can't be read by what the next one tells, and says how many there are that nothing excuses.
    fn settle(&mut self, told: Told) -> u64 {
        let Unread { lines, digest } = std::mem::take(&mut self.unread);
        let torn = digest.map(|digest| Told::Recovered(Hash::from_digest(digest.finish())));
        let mut unexcused = 0;
        for mut finding in lines {
            if finding.what == What::NoLine && torn == Some(told) {
                finding.what = What::Torn;
            } else {
                unexcused += 1;
            }
            self.pass_on(&finding);
        }
        unexcused
    }

    fn finish(mut self) -> Report {
        self.settle(Told::Other);
        if let Some(noted) = self.noted {
            self.tell(None, What::NotThere(noted));
        }
        self.report
    }

    fn tell(&mut self, place: Option<Place<'_>>, what: What) {
        let place = place.map(|(path, number)| (path.to_owned(), number));
        self.pass_on(&Finding { place, what });
    }

    fn pass_on(&mut self, finding: &Finding) {
        self.report.faults += u64::from(finding.what.is_fault());
        (self.tell)(finding);
    }
}

impl Unread {
    fn add(&mut self, (path, number): Place<'_>, what: What, bytes: &[u8]) {
        // What lies between them are newlines.
        match &mut self.digest {
            Some(digest) => digest.update(b"\n"),
            None => self.digest = Some(Context::new(&SHA256)),
        }
        self.digest.iter_mut().for_each(|digest| digest.update(bytes));
        self.lines.push(Finding { place: Some((path.to_owned(), number)), what });
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((path, number)) = &self.place {
            write!(f, "{}, line {number}: ", path.display())?;
        }
        self.what.fmt(f)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Changed => f.write_str("changed: its hash is not that of its text"),
            What::NoLine => f.write_str("no line of an audit log"),
            What::CutOff => f.write_str("cut off: the file ends within this line; if the gateway runs, look again"),
            What::Missing { count: 1, from, to } if from == to => write!(f, "a line is missing before it: seq {from}"),
            What::Missing { count, from, to } => {
                write!(f, "{count} lines are missing before it, of those with seq {from} to {to}")
            }
            What::OutOfOrder { seq, due } => write!(f, "out of order, or here twice: seq {seq}, where {due} is due"),
            What::NotLinked => f.write_str("does not follow the line before it: one of the two was written anew"),
            What::NothingTorn => f.write_str("tells of a line that was torn, which is missing before it"),
            What::NotThere(hash) => write!(f, "no line has the hash {hash}: the log was cut off, or written anew"),
            What::Torn => f.write_str("torn: a write was cut off here, as the next line tells; no fault"),
            What::Dropped(count) => write!(f, "tells that {count} events before it were dropped; no fault of the log"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults {
            0 => f.write_str("ok")?,
            1 => f.write_str("1 fault")?,
            faults => write!(f, "{faults} faults")?,
        }
        write!(f, ": lines {}", self.lines)?;
        if let (Some((first, last)), Some(hash)) = (self.seqs, self.last) {
            write!(f, ", seq {first} to {last}, last hash {hash}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
