//! The files of the log: how one is taken up where it ends, written to, and followed by the next.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use tracing::{info, warn};

use super::line::{Hash, Line, Link};
use super::{Config, StartError};
use crate::log::Seldom;

/// So much of the end of a file is looked at for its last line, and more only if there is none in it.
const WINDOW: u64 = 1 << 20;
/// What every line begins with.
const BEGINNING: &[u8] = b"{\"seq\":";
/// Only the gateway's user reads and writes the log.
const MODE: u32 = 0o600;

/// The file that is written to, which nobody else writes to.
pub(super) struct Journal {
    path: PathBuf,
    max_size: u64,
    keep: Option<usize>,
    sync: bool,
    file: File,
    /// The last line that was written.
    last: Link,
    /// Where the file ended before a write that failed; what is beyond has yet to be taken back.
    rollback: Option<u64>,
    /// The last line has no newline.
    is_unended: bool,
}

/// What a write that was cut off has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    pub bytes: u64,
    pub hash: Hash,
}

impl Journal {
    /// Takes up the file, which need not be there, and says what a write that was cut off has left at its end.
    pub fn open(path: &Path, config: &Config) -> Result<(Journal, Option<Torn>), StartError> {
        let unusable = |cause| StartError::Unusable { path: path.to_owned(), cause };
        let file = open(path).map_err(unusable)?;
        if !file.metadata().map_err(unusable)?.is_file() {
            return Err(StartError::NoFile { path: path.to_owned() });
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StartError::Taken { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => warn!(%error, "the audit log can't be locked against other processes"),
        }
        let tail = Tail::read(&file).map_err(unusable)?;
        if tail.last.is_none() && !tail.could_be_torn {
            return Err(StartError::NoLog { path: path.to_owned() });
        }
        // A crash may have come between the end of one file and the first line of the next.
        let last = match tail.last {
            Some(last) => last,
            None => last_of_the_full(path).map_err(unusable)?.unwrap_or(Link::START),
        };
        info!(file = %path.display(), seq = last.seq, hash = %last.hash, "the audit log goes on behind this line");
        let journal = Journal {
            path: path.to_owned(),
            max_size: config.max_size.get(),
            keep: config.keep.map(usize::from),
            sync: config.sync,
            file,
            last,
            rollback: None,
            is_unended: tail.is_unended,
        };
        Ok((journal, tail.torn))
    }

    /// The last line that was written.
    pub fn last(&self) -> Link {
        self.last
    }

    /// Appends lines, of which this is the last: all of them, or none. What a failure has left is taken back before anything else is
    /// written, so the lines may be given again.
    pub fn append(&mut self, lines: &[u8], last: Link) -> io::Result<()> {
        self.mend()?;
        self.hold_place()?;
        let mut end = self.file.metadata()?.len();
        if end > 0 && end.saturating_add(lines.len() as u64) > self.max_size {
            self.rotate_or_warn();
            end = self.file.metadata()?.len();
        }
        self.rollback = Some(end);
        let written = self.file.write_all(lines).and_then(|()| if self.sync { self.file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => {
                self.rollback = None;
                self.last = last;
                Ok(())
            }
            Err(error) => {
                // A reader shall not find half a line. If it fails, it is tried again.
                let _ = self.mend();
                Err(error)
            }
        }
    }

    /// Lets the file end with a whole line.
    fn mend(&mut self) -> io::Result<()> {
        if let Some(end) = self.rollback {
            self.file.set_len(end)?;
            self.rollback = None;
        }
        if self.is_unended {
            self.file.write_all(b"\n")?;
            self.is_unended = false;
        }
        Ok(())
    }

    /// Sees to it that what is written is found under the file's name, whoever moved the file away.
    fn hold_place(&mut self) -> io::Result<()> {
        let own = self.file.metadata()?;
        let is_free = match fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => return Ok(()),
            Ok(there) => there.is_file() && there.len() == 0,
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        if !is_free {
            return Err(io::Error::other("another file has taken the place of the audit log"));
        }
        self.take_up(open(&self.path)?);
        warn!(seq = self.last.seq, hash = %self.last.hash, "the file of the audit log was moved away: it goes on in a new one");
        Ok(())
    }

    /// A file that can't be followed by another is written beyond its size.
    fn rotate_or_warn(&mut self) {
        static LINES: Seldom = Seldom::new();
        if let Err(error) = self.rotate().and_then(|()| self.remove_old())
            && let Some(unsaid) = LINES.pass(Instant::now())
        {
            warn!(%error, unsaid, "the audit log goes on, but beyond its bounds (audit.max_size, audit.keep)");
        }
    }

    /// Begins a new file; the old one is named for its last line.
    fn rotate(&mut self) -> io::Result<()> {
        let full = full(&self.path, self.last.seq);
        if full.try_exists()? {
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("{} is there", full.display())));
        }
        fs::rename(&self.path, &full)?;
        match open(&self.path) {
            Ok(file) => self.take_up(file),
            Err(error) => return fs::rename(&full, &self.path).and(Err(error)),
        }
        info!(file = %full.display(), seq = self.last.seq, hash = %self.last.hash, "a file of the audit log is full");
        Ok(())
    }

    fn take_up(&mut self, file: File) {
        // Nobody else has it yet; and where files can't be locked, that was said at the start.
        let _ = file.try_lock();
        self.file = file;
        if self.sync {
            // The new name is to survive a loss of power too. Not all file systems can say so of a folder.
            let _ = File::open(folder(&self.path)).and_then(|folder| folder.sync_all());
        }
    }

    fn remove_old(&self) -> io::Result<()> {
        let Some(keep) = self.keep else { return Ok(()) };
        let full = all_full(&self.path)?;
        let surplus = full.len().saturating_sub(keep);
        for file in &full[..surplus] {
            fs::remove_file(file)?;
            info!(file = %file.display(), "a file of the audit log was removed (audit.keep)");
        }
        Ok(())
    }
}

/// Opens a file to append to it, and to read its end; it is made if it is not there.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name of the file that ends with this line, once it is full. In the order of the alphabet, such names are in that of the lines.
fn full(path: &Path, seq: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{seq:012}"));
    name.into()
}

/// The files that are full, the oldest first.
fn all_full(path: &Path) -> io::Result<Vec<PathBuf>> {
    let name = path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    let mut full = Vec::new();
    for entry in fs::read_dir(folder(path))? {
        let entry = entry?;
        let other = entry.file_name();
        let number = other.as_encoded_bytes().strip_prefix(name).and_then(|rest| rest.strip_prefix(b"."));
        let is_number = |text: &&[u8]| text.len() >= 12 && text.iter().all(u8::is_ascii_digit);
        if let Some(number) =
            number.filter(is_number).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok())
        {
            full.push((number, entry.path()));
        }
    }
    full.sort();
    Ok(full.into_iter().map(|(_, path)| path).collect())
}

/// The last line of the files that are full.
fn last_of_the_full(path: &Path) -> io::Result<Option<Link>> {
    for full in all_full(path)?.iter().rev() {
        if let Some(last) = Tail::read(&File::open(full)?)?.last {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

/// How a file ends.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    /// The last line that is as it was written.
    last: Option<Link>,
    /// What comes behind it, a newline at the end aside.
    torn: Option<Torn>,
    /// There is no newline at the end.
    is_unended: bool,
    /// What comes behind it may be what a crash has left of a line.
    could_be_torn: bool,
}

impl Tail {
    fn read(file: &File) -> io::Result<Tail> {
        let end = file.metadata()?.len();
        let mut window = WINDOW;
        loop {
            let start = end.saturating_sub(window);
            let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, start)?;
            let tail = Tail::of(&bytes);
            if tail.last.is_some() || start == 0 {
                return Ok(tail);
            }
            window = window.saturating_mul(8);
        }
    }

    fn of(bytes: &[u8]) -> Tail {
        let mut end = bytes.len();
        let last = loop {
            let start = bytes[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
            if let Some(line) = Line::read_intact(&bytes[start..end]) {
                break Some(line.link);
            }
            end = match start.checked_sub(1) {
                Some(newline) => newline,
                None => break None,
            };
        };
        // Behind the last line and its newline, if it has one.
        let rest = if last.is_some() { bytes.get(end + 1..).unwrap_or_default() } else { bytes };
        let torn = (!rest.is_empty()).then(|| {
            let torn = rest.strip_suffix(b"\n").unwrap_or(rest);
            Torn { bytes: torn.len() as u64, hash: Hash::of(torn) }
        });
        Tail {
            last,
            torn,
            is_unended: bytes.last().is_some_and(|byte| *byte != b'\n'),
            // After a loss of power there may be zeros.
            could_be_torn: rest.starts_with(BEGINNING)
                || BEGINNING.starts_with(rest)
                || rest.iter().all(|byte| *byte == 0),
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
