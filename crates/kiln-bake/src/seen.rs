//! The stat cache: the digests of copied files whose stat data is as it was when they were read.
//!
//! A file that was changed after it was read has another change time, except when both fell into one tick of the file system's
//! clock. So a digest is only kept of a file that was older than the coarsest such tick when it was read; a younger one is read
//! again by the next bake.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use kiln_model::Digest;
use kiln_oci::Store;
use rustix::fs::{CWD, Mode, OFlags};
use sha2::{Digest as _, Sha256};

/// Of FAT, the coarsest.
const TICK_NS: i128 = 2_000_000_000;

/// What of a file's stat data changes with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
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

    const NUMBERS: usize = 7;

    fn numbers(&self) -> [u64; Self::NUMBERS] {
        [
            self.dev,
            self.ino,
            self.size,
            self.mtime.0.cast_unsigned(),
            self.mtime.1.cast_unsigned(),
            self.ctime.0.cast_unsigned(),
            self.ctime.1.cast_unsigned(),
        ]
    }

    fn from_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [dev, ino, size, mtime, mtime_ns, ctime, ctime_ns] = numbers;
        Self {
            dev,
            ino,
            size,
            mtime: (mtime.cast_signed(), mtime_ns.cast_signed()),
            ctime: (ctime.cast_signed(), ctime_ns.cast_signed()),
        }
    }

    fn older_than(&self, nanos: i128) -> bool {
        [self.mtime, self.ctime]
            .into_iter()
            .all(|(s, ns)| i128::from(s) * 1_000_000_000 + i128::from(ns) + TICK_NS < nanos)
    }
}

/// What is known of one path.
struct Known {
    stat: Stat,
    digest: Digest,
    /// Asked for in this bake: what is not is forgotten.
    used: bool,
}

pub(crate) struct Seen {
    key: Digest,
    known: HashMap<Box<OsStr>, Known>,
    /// Whether the next bake would learn something from it.
    changed: bool,
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
        let mut name = format!("files seen 2\0{image}\0").into_bytes();
        name.extend_from_slice(context.as_os_str().as_bytes());
        let key = Digest::of(&name);
        let known = store
            .cache_get(&key)
            .and_then(|record| parse(&record))
            .unwrap_or_default();
        Self {
            key,
            known,
            changed: false,
            began: began
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0)),
            read: 0,
        }
    }

    /// The digest of the file at `path`, of which `there` was just asked.
    pub(crate) fn digest(&mut self, path: &Path, there: &Metadata) -> std::io::Result<Digest> {
        let stat = Stat::of(there);
        if let Some(known) = self.known.get_mut(path.as_os_str())
            && known.stat == stat
        {
            known.used = true;
            return Ok(known.digest);
        }
        self.read += 1;
        let (digest, steady) = digest(path, &stat)?;
        if steady && stat.older_than(self.began) {
            self.changed = true;
            let known = Known {
                stat,
                digest,
                used: true,
            };
            self.known.insert(path.as_os_str().into(), known);
        }
        Ok(digest)
    }

    /// Keeps what was seen for the next bake. Losing it costs only reading.
    pub(crate) fn keep(self, store: &Store) {
        if self.changed || self.known.values().any(|known| !known.used) {
            let _ = store.cache_put(&self.key, &self.record());
        }
    }

    /// Binary, since ten thousand files are usual: for each its digest, the numbers of its stat data, the length of its path and the
    /// path. Little-endian.
    fn record(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, known) in self.known.iter().filter(|(_, known)| known.used) {
            out.extend_from_slice(known.digest.as_bytes());
            for number in known.stat.numbers() {
                out.extend_from_slice(&number.to_le_bytes());
            }
            let path = path.as_bytes();
            out.extend_from_slice(&(path.len() as u64).to_le_bytes());
            out.extend_from_slice(path);
        }
        out
    }
}

/// None: it is not of this form.
fn parse(mut rest: &[u8]) -> Option<HashMap<Box<OsStr>, Known>> {
    let mut known = HashMap::with_capacity(rest.len() / 160);
    while !rest.is_empty() {
        let (digest, after) = rest.split_first_chunk::<32>()?;
        let (numbers, after) = after.split_first_chunk::<{ 8 * Stat::NUMBERS }>()?;
        let mut stat = [0; Stat::NUMBERS];
        for (number, bytes) in stat.iter_mut().zip(numbers.as_chunks::<8>().0) {
            *number = u64::from_le_bytes(*bytes);
        }
        let (length, after) = after.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (path, after) = after.split_at_checked(length)?;
        let entry = Known {
            stat: Stat::from_numbers(stat),
            digest: Digest::from_sha256(*digest),
            used: false,
        };
        known.insert(OsStr::from_bytes(path).into(), entry);
        rest = after;
    }
    Some(known)
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
            assert!(seen.known.is_empty());
        }
    }

    #[test]
    fn a_file_that_is_gone_is_forgotten_and_a_name_need_not_be_text() {
        let folder = Folder::new();
        let odd = std::ffi::OsString::from(OsStr::from_bytes(b"na\xffme"));
        let (odd, gone) = (
            folder.root.path().join(odd),
            folder.root.path().join("gone"),
        );
        let look = |paths: &[&Path]| {
            let mut seen = Seen::load(&folder.store, folder.root.path(), "api", later());
            for path in paths {
                seen.digest(path, &fs::symlink_metadata(path).unwrap())
                    .unwrap();
            }
            let read = seen.read;
            let all = seen.known.len();
            seen.keep(&folder.store);
            (read, all)
        };
        fs::write(&odd, "odd").unwrap();
        fs::write(&gone, "gone").unwrap();
        assert_eq!(look(&[&odd, &gone]), (2, 2));
        assert_eq!(look(&[&odd]), (0, 2));
        assert_eq!(look(&[&odd]), (0, 1));
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
