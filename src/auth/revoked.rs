//! The revocations of this gateway, kept over a restart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Config, StartError, unix_now};
use crate::access::revocations::{NotTaken, Subject};
use crate::access::{Identity, Revocation, Revocations};

/// Every revocation that holds, for all to see. Outlives a configuration that is read again.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Where they are kept, if they are.
    path: Option<PathBuf>,
    revocations: Mutex<Revocations>,
    /// Whoever holds it writes the file.
    writing: Mutex<()>,
}

impl Revoked {
    /// Reads the revocations that were kept, and shows that they can be kept again. Waits for the disk.
    pub fn open(config: &Config) -> Result<Arc<Revoked>, StartError> {
        let revoked = Revoked::read(config)?;
        if let Some(path) = &revoked.path {
            let why = |error| format!("can't be written: {error}");
            let told = |error| StartError::File { setting: "auth.revocations", path: path.clone(), why: why(error) };
            revoked.keep().map_err(told)?;
        }
        Ok(Arc::new(revoked))
    }

    /// Reads the revocations that were kept, beside a gateway that may be keeping more: nothing is written.
    pub fn look(config: &Config) -> Result<Arc<Revoked>, StartError> {
        Ok(Arc::new(Revoked { path: None, ..Revoked::read(config)? }))
    }

    fn read(config: &Config) -> Result<Revoked, StartError> {
        let Some(path) = config.revocations.clone() else { return Ok(Revoked::default()) };
        let told = |why: String| StartError::File { setting: "auth.revocations", path: path.clone(), why };
        let mut revocations = Revocations::default();
        for revocation in read(&path).map_err(told)? {
            match revocations.add(revocation, unix_now()) {
                Ok(()) | Err(NotTaken::Over) => {}
                Err(why @ (NotTaken::Name | NotTaken::Full)) => return Err(told(format!("is broken: {why}"))),
            }
        }
        Ok(Revoked { path: Some(path), revocations: Mutex::new(revocations), writing: Mutex::new(()) })
    }

    /// Shuts somebody out. It holds at once; an error of another kind than [`io::ErrorKind::InvalidInput`] says that it holds, but not over
    /// a restart. Waits for the disk.
    pub fn add(&self, revocation: Revocation) -> io::Result<()> {
        let taken = self.revocations.lock().expect("nobody panics while holding it").add(revocation, unix_now());
        taken.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        self.keep()
    }

    /// Lets somebody in again, and says whether there was such a revocation. After an error it is back with a restart. Waits for the disk.
    pub fn remove(&self, subject: &Subject) -> io::Result<bool> {
        let was_there = self.revocations.lock().expect("nobody panics while holding it").remove(subject);
        if was_there {
            self.keep()?;
        }
        Ok(was_there)
    }

    /// Those that hold.
    pub fn list(&self) -> Vec<Revocation> {
        let mut revocations = self.revocations.lock().expect("nobody panics while holding it");
        revocations.prune(unix_now());
        revocations.iter().collect()
    }

    /// The revocation that shuts out this identity, or the device that it connects as.
    pub fn judge(&self, identity: &Identity, client_id: Option<&str>) -> Option<Revocation> {
        let revocations = self.revocations.lock().expect("nobody panics while holding it");
        revocations.judge(identity, client_id, unix_now())
    }

    /// Writes what holds now. Of several that write at a time, the last has all.
    fn keep(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let _writing = self.writing.lock().expect("nobody panics while holding it");
        write(path, &serde_json::to_vec_pretty(&self.list()).expect("revocations are JSON"))
    }
}

/// What was kept: nothing, where there is no file yet.
fn read(path: &Path) -> Result<Vec<Revocation>, String> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            format!("is broken ({error}): mend it, or take it away and let in again whoever was revoked")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("can't be read: {error}")),
    }
}

/// Puts the whole file in place of the old one, so that a power cut leaves one or the other.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    const FAR: u64 = 4_000_000_000;

    fn config(path: &Path) -> Config {
        Config { revocations: Some(path.to_owned()), ..Config::default() }
    }

    fn user(name: &str, until: u64) -> Revocation {
        Revocation { subject: Subject::User(name.into()), until }
    }

    fn anna() -> Identity {
        Identity { user: Some("anna".into()), ..Identity::anonymous(&[]) }
    }

    #[test]
    fn a_revocation_holds_over_a_restart_until_it_is_lifted() {
        let folder = TempDir::new().expect("a folder");
        let config = config(&folder.path().join("revocations.json"));
        let revoked = Revoked::open(&config).expect("opened");
        assert_eq!(revoked.judge(&anna(), None), None);
        revoked.add(user("anna", FAR)).expect("kept");
        assert_eq!(revoked.judge(&anna(), None), Some(user("anna", FAR)));

        let again = Revoked::open(&config).expect("opened");
        assert_eq!((again.list(), again.judge(&anna(), None)), (vec![user("anna", FAR)], Some(user("anna", FAR))));
        assert!(again.remove(&user("anna", 0).subject).expect("kept"));
        assert!(!again.remove(&user("anna", 0).subject).expect("kept"));
        assert_eq!(Revoked::open(&config).expect("opened").list(), []);
    }

    #[test]
    fn whoever_only_looks_writes_nothing() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("revocations.json");
        let looking = Revoked::look(&config(&path)).expect("read");
        assert!(!path.exists());
        Revoked::open(&config(&path)).expect("opened").add(user("anna", FAR)).expect("kept");
        assert_eq!(looking.list(), []);
        looking.add(user("bob", FAR)).expect("taken");
        assert_eq!(Revoked::look(&config(&path)).expect("read").list(), [user("anna", FAR)]);
    }

    #[test]
    fn without_a_file_revocations_hold_in_memory() {
        let revoked = Revoked::open(&Config::default()).expect("opened");
        revoked.add(user("anna", FAR)).expect("taken");
        assert_eq!(revoked.judge(&anna(), None), Some(user("anna", FAR)));
    }

    #[test]
    fn the_file_is_for_the_gateway_alone_and_nothing_is_left_beside_it() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("revocations.json");
        let revoked = Revoked::open(&config(&path)).expect("opened");
        revoked.add(user("anna", FAR)).expect("kept");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
        let text = fs::read_to_string(&path).expect("text");
        assert_eq!(serde_json::from_str::<Vec<Revocation>>(&text).expect("revocations"), [user("anna", FAR)]);
    }

    #[test]
    fn what_is_over_is_not_kept() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("revocations.json");
        fs::write(&path, r#"[{"user": "anna", "until": 1}, {"device": "press-7", "until": 4000000000}]"#)
            .expect("written");
        let revoked = Revoked::open(&config(&path)).expect("opened");
        assert_eq!(revoked.list(), [Revocation { subject: Subject::Device("press-7".into()), until: FAR }]);
        assert!(!fs::read_to_string(&path).expect("text").contains("anna"));
    }

    #[test]
    fn a_file_that_is_broken_or_cannot_be_written_is_named_at_the_start() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("revocations.json");
        for (text, excerpt) in [
            ("", "is broken"),
            ("{}", "is broken"),
            (r#"[{"user": "anna"}]"#, "is broken"),
            (r#"[{"until": 4000000000}]"#, "is broken"),
            (r#"[{"user": "", "until": 4000000000}]"#, "1 to 256 bytes"),
            (r#"[{"user": "anna", "until": 4000000000}"#, "is broken"),
        ] {
            fs::write(&path, text).expect("written");
            let refusal = Revoked::open(&config(&path)).expect_err(text).to_string();
            assert!(refusal.contains("auth.revocations") && refusal.contains("revocations.json"), "{text}: {refusal}");
            assert!(refusal.contains(excerpt), "{text}: {refusal}");
            assert_eq!(fs::read_to_string(&path).expect("text"), text, "a broken file is left as it is");
        }
        let nowhere = folder.path().join("nowhere").join("revocations.json");
        let refusal = Revoked::open(&config(&nowhere)).expect_err("no folder").to_string();
        assert!(refusal.contains("can't be written"), "{refusal}");
    }

    #[test]
    fn what_cannot_be_kept_holds_all_the_same() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("state").join("revocations.json");
        fs::create_dir(path.parent().expect("a folder")).expect("made");
        let revoked = Revoked::open(&config(&path)).expect("opened");
        fs::remove_dir_all(path.parent().expect("a folder")).expect("removed");
        let refusal = revoked.add(user("anna", FAR)).expect_err("no folder");
        assert_eq!(refusal.kind(), io::ErrorKind::NotFound);
        assert!(revoked.judge(&anna(), None).is_some());
        assert_eq!(revoked.add(user("", FAR)).expect_err("no name").kind(), io::ErrorKind::InvalidInput);
    }
}
