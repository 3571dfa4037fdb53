//! The stat cache: the digests of copied files whose stat data is as it was when they were read.
//!
//! A file that was changed after it was read has another change time, except when both fell into one tick of the file system's
//! clock. So a digest is only kept of a file that was older than the coarsest such tick when it was read; a younger one is read
//! again by the next bake.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use kiln_model::Digest;
use kiln_oci::Store;
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Of FAT, the coarsest.
const TICK_NS: i128 = 2_000_000_000;

/// What of a file's stat data changes with its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stat {
    dev: u64,
    ino: u64,
    size: u64,
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stat {
    fn of(there: &Metadata) -> Self {
        Self {
            dev: there.dev(),
            ino: there.ino(),
            size: there.size(),
            mtime: (there.mtime(), there.mtime_nsec()),
            ctime: (there.ctime(), there.ctime_nsec()),
        }
    }

    fn older_than(&self, nanos: i128) -> bool {
        [self.mtime, self.ctime]
            .into_iter()
            .all(|(s, ns)| i128::from(s) * 1_000_000_000 + i128::from(ns) + TICK_NS < nanos)
    }
}

type Entries = BTreeMap<String, (Stat, Digest)>;

pub(crate) struct Seen {
    key: Digest,
    known: Entries,
    /// Of this bake, which the next one starts from.
    kept: Entries,
    /// When this bake began to look, in nanoseconds since 1970.
    began: i128,
    read: usize,
}

impl Seen {
    /// What the last bake of `image` from the folder `context` saw. A record that can't be read is none.
    pub(crate) fn load(store: &Store, context: &Path, image: &str, began: SystemTime) -> Self {
        let context = context
            .canonicalize()
            .unwrap_or_else(|_| context.to_owned());
        let key = Digest::of(format!("files seen\0{image}\0{}", context.display()).as_bytes());
        let known = store
            .cache_get(&key)
            .and_then(|record| serde_json::from_slice(&record).ok())
            .unwrap_or_default();
        Self {
            key,
            known,
            kept: Entries::new(),
            began: began
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0)),
            read: 0,
        }
    }

    /// The digest of the file at `path`, of which `there` was just asked.
    pub(crate) fn digest(&mut self, path: &Path, there: &Metadata) -> std::io::Result<Digest> {
        let name = path.to_string_lossy().into_owned();
        let stat = Stat::of(there);
        let digest = match self.known.get(&name) {
            Some((known, digest)) if *known == stat => *digest,
            _ => {
                self.read += 1;
                let (digest, steady) = digest(path, &stat)?;
                if !steady || !stat.older_than(self.began) {
                    return Ok(digest);
                }
                digest
            }
        };
        self.kept.insert(name, (stat, digest));
        Ok(digest)
    }

    /// Keeps what was seen for the next bake. Losing it costs only reading.
    pub(crate) fn keep(self, store: &Store) {
        if self.kept != self.known
            && let Ok(record) = serde_json::to_vec(&self.kept)
        {
            let _ = store.cache_put(&self.key, &record);
        }
    }
}

/// The digest of a file, and whether it was `stat`'s file all the while.
fn digest(path: &Path, stat: &Stat) -> std::io::Result<(Digest, bool)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            let steady = Stat::of(&file.metadata()?) == *stat;
            return Ok((Digest::from_sha256(hasher.finalize().into()), steady));
        }
        hasher.update(&chunk[..read]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    struct Folder {
        root: tempfile::TempDir,
        store: Store,
    }

    impl Folder {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let store = Store::open(root.path()).unwrap();
            Self { root, store }
        }

        /// The digests of all of `names`, and how many files were read for them.
        fn look(&self, names: &[String], began: SystemTime) -> (Vec<Digest>, usize) {
            let mut seen = Seen::load(&self.store, self.root.path(), "api", began);
            let digests = names
                .iter()
                .map(|name| {
                    let path = self.root.path().join(name);
                    let there = fs::symlink_metadata(&path).unwrap();
                    seen.digest(&path, &there).unwrap()
                })
                .collect();
            let read = seen.read;
            seen.keep(&self.store);
            (digests, read)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.root.path().join(name), text).unwrap();
        }
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(10)
    }

    #[test]
    fn unchanged_files_are_not_read_again_and_a_changed_one_is() {
        let folder = Folder::new();
        let names: Vec<_> = (0..500).map(|number| format!("file-{number}")).collect();
        names.iter().for_each(|name| folder.write(name, name));
        let (first, read) = folder.look(&names, later());
        assert_eq!(read, 500);
        assert_eq!(folder.look(&names, later()), (first.clone(), 0));
        // The same size, another file under the name.
        folder.write("new", "file-X");
        fs::rename(
            folder.root.path().join("new"),
            folder.root.path().join("file-7"),
        )
        .unwrap();
        let (second, read) = folder.look(&names, later());
        assert_eq!(read, 1);
        assert_eq!(second[7], Digest::of(b"file-X"));
        assert_eq!(second[8], first[8]);
    }

    #[test]
    fn a_file_changed_in_the_tick_in_which_it_was_read_is_seen() {
        let folder = Folder::new();
        let path = folder.root.path().join("file");
        let mut seen = Seen::load(&folder.store, folder.root.path(), "api", SystemTime::now());
        // Written in place and of one size, so soon that mostly nothing of the stat data differs.
        for round in 0..500 {
            let text = format!("{round:04}");
            folder.write("file", &text);
            let there = fs::symlink_metadata(&path).unwrap();
            let found = seen.digest(&path, &there).unwrap();
            assert_eq!(found, Digest::of(text.as_bytes()));
            // Where the file system's clock is too fine for that, this is what can be seen of the rule.
            assert!(seen.kept.is_empty());
            seen.known = std::mem::take(&mut seen.kept);
        }
    }

    #[test]
    fn a_damaged_record_is_none() {
        let folder = Folder::new();
        let names = ["file".to_owned()];
        folder.write("file", "text");
        folder.look(&names, later());
        let key = Seen::load(&folder.store, folder.root.path(), "api", later()).key;
        let path = folder.store.dir().join("cache").join(key.hex());
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(folder.look(&names, later()), (vec![Digest::of(b"text")], 1));
        assert_eq!(folder.look(&names, later()).1, 0);
    }
}
