//! Whether files have changed, without reading them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the system says of some files: equal as long as nobody has written to any of them or put another in its place, behind whatever
/// links (Kubernetes and certbot change the links).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<One>>);

/// A file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct One {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// As the files are now.
    pub fn of(files: impl IntoIterator<Item = impl AsRef<Path>>) -> Stamp {
        Stamp(files.into_iter().map(|file| One::of(file.as_ref())).collect())
    }
}

impl One {
    fn of(file: &Path) -> Option<One> {
        let file = fs::metadata(file).ok()?;
        Some(One {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_change_shows_however_it_is_made() {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("1")).unwrap();
        fs::create_dir_all(path("2")).unwrap();
        fs::write(path("1/key"), "old").unwrap();
        fs::write(path("2/key"), "new").unwrap();
        symlink("1", path("data")).unwrap();
        symlink("data/key", path("key")).unwrap();
        let mut last = Stamp::of([path("key")]);
        assert_eq!(Stamp::of([path("key")]), last);
        let changes: [(&str, &dyn Fn()); 5] = [
            ("a longer text", &|| fs::write(path("1/key"), "older").unwrap()),
            ("another file in its place", &|| {
                fs::rename(path("1/key"), path("kept")).and(fs::write(path("1/key"), "older")).unwrap()
            }),
            ("another target of a link on the way", &|| {
                symlink("2", path("data.new")).and(fs::rename(path("data.new"), path("data"))).unwrap();
            }),
            ("none", &|| fs::remove_file(path("2/key")).unwrap()),
            ("one again", &|| fs::write(path("2/key"), "new").unwrap()),
        ];
        for (change, make) in changes {
            make();
            let now = Stamp::of([path("key")]);
            assert_ne!(now, last, "{change}");
            last = now;
        }
    }
}
