//! The saved table: what the proxy serves when it starts and no controller is there.
//!
//! Through the folder's descriptor, because once privileges are given up the path to it is closed. Two proxies
//! may save at once while one replaces the other: a lock, and never an older generation over a newer one.
//!
//! The file begins with the checksum of all that follows it. A table that fails the check is moved aside and not served: it
//! would send requests elsewhere. Files of the first kiln have no checksum.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kiln_fs::replace_at;
use kiln_model::{Digest, Generation, RoutingTable};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fsync, openat, renameat};
use serde::Deserialize;

use super::ProxyError;

const NAME: &str = "table.json";
/// Where a table goes that can't be served, for whoever wants to know what happened to it.
const SPOILT: &str = "table.spoilt.json";

#[derive(Debug)]
pub(super) struct Saved {
    folder: OwnedFd,
    lock: OwnedFd,
    path: PathBuf,
}

/// What was saved.
#[derive(Debug)]
pub(super) enum Loaded {
    /// Nothing was ever saved.
    Nothing,
    Table(RoutingTable),
    Spoilt(Spoilt),
}

/// Why what was saved can't be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Spoilt {
    #[error("it can't be read")]
    Read(#[source] io::Error),
    #[error("its checksum is not that of its content")]
    Checksum,
    #[error("it is no routing table that this version of kiln knows")]
    Content(#[source] serde_json::Error),
}

/// Only what is needed to compare: another version may have saved more.
#[derive(Deserialize)]
struct SavedGeneration {
    generation: Generation,
}

/// A JSON object whose first member is the checksum of everything behind it.
fn encode(table: &RoutingTable) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(table)?;
    let rest = json.get(1..).unwrap_or_default();
    let mut bytes = format!(r#"{{"checksum":"{}","#, Digest::of(rest)).into_bytes();
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// An error: it has a checksum, which is wrong.
fn check(bytes: &[u8]) -> Result<(), Spoilt> {
    let Some(after) = bytes.strip_prefix(br#"{"checksum":""#) else {
        return Ok(());
    };
    let end = after.iter().position(|byte| *byte == b'"');
    let (checksum, rest) = after.split_at(end.ok_or(Spoilt::Checksum)?);
    let rest = rest.strip_prefix(br#"","#).ok_or(Spoilt::Checksum)?;
    if checksum == Digest::of(rest).to_string().as_bytes() {
        Ok(())
    } else {
        Err(Spoilt::Checksum)
    }
}

fn decode(bytes: &[u8]) -> Result<Loaded, Spoilt> {
    check(bytes)?;
    let table = serde_json::from_slice(bytes).map_err(Spoilt::Content)?;
    Ok(Loaded::Table(table))
}

impl Saved {
    /// `folder` is an open descriptor of the folder, `path` its name for messages.
    pub(super) fn new(folder: OwnedFd, path: PathBuf) -> Result<Self, ProxyError> {
        let lock_flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let lock = openat(&folder, "table.lock", lock_flags, Mode::RUSR | Mode::WUSR).map_err(
            |error| ProxyError::File {
                action: "open",
                path: path.join("table.lock"),
                source: error.into(),
            },
        )?;
        Ok(Self {
            folder,
            lock,
            path: path.join(NAME),
        })
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.path
    }

    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let opened = openat(
            &self.folder,
            NAME,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut file = match opened {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn locked<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        flock(&self.lock, FlockOperation::LockExclusive)?;
        let done = work();
        flock(&self.lock, FlockOperation::Unlock)?;
        done
    }

    /// What is spoilt is moved aside, and is not there when this is called again.
    pub(super) fn load(&self) -> Loaded {
        let loaded = self.locked(|| {
            let Some(bytes) = self.read()? else {
                return Ok(Loaded::Nothing);
            };
            Ok(match decode(&bytes) {
                Ok(loaded) => loaded,
                Err(spoilt) => {
                    renameat(&self.folder, NAME, &self.folder, SPOILT)?;
                    fsync(&self.folder)?;
                    Loaded::Spoilt(spoilt)
                }
            })
        });
        loaded.unwrap_or_else(|error| Loaded::Spoilt(Spoilt::Read(error)))
    }

    /// On the disk when it returns: two fsyncs, of the file and of its folder.
    pub(super) fn save(&self, table: &RoutingTable) -> io::Result<()> {
        let bytes = encode(table)?;
        self.locked(|| {
            let present = self.read()?.unwrap_or_default();
            let newer = check(&present).is_ok()
                && serde_json::from_slice::<SavedGeneration>(&present)
                    .is_ok_and(|saved| saved.generation > table.generation);
            if newer || present == bytes {
                // By the other proxy, which synced it before it let go of the lock.
                return Ok(());
            }
            replace_at(&self.folder, NAME, &bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Saved) {
        let folder = tempfile::tempdir().unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(folder.path(), flags, Mode::empty()).unwrap();
        let saved = Saved::new(fd, folder.path().to_owned()).unwrap();
        (folder, saved)
    }

    fn table(generation: u64) -> RoutingTable {
        RoutingTable {
            generation: Generation(generation),
            ..RoutingTable::default()
        }
    }

    fn loaded(saved: &Saved) -> Option<RoutingTable> {
        match saved.load() {
            Loaded::Nothing => None,
            Loaded::Table(table) => Some(table),
            Loaded::Spoilt(spoilt) => panic!("{spoilt}"),
        }
    }

    #[test]
    fn a_crash_in_the_middle_of_writing_leaves_the_previous_table_whole() {
        let (folder, saved) = folder();
        assert_eq!(loaded(&saved), None);
        saved.save(&table(3)).unwrap();
        // What a writer that was killed leaves: half a temporary file.
        let half = folder.path().join("table.json.1234-0.new");
        std::fs::write(half, b"{\"generation\":4,\"rou").unwrap();
        assert_eq!(loaded(&saved), Some(table(3)));
        saved.save(&table(4)).unwrap();
        assert_eq!(loaded(&saved), Some(table(4)));
    }

    #[test]
    fn each_changed_bit_and_each_cut_is_noticed_and_the_file_moved_aside() {
        let (folder, saved) = folder();
        let path = folder.path().join(NAME);
        saved.save(&table(4)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let prefix = r#"{"checksum":""#.len();
        let changed = (prefix..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        });
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        for bytes in changed.chain(cut) {
            std::fs::write(&path, &bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(matches!(saved.load(), Loaded::Spoilt(_)), "{text}");
            assert_eq!(std::fs::read(folder.path().join(SPOILT)).unwrap(), bytes);
            assert_eq!(loaded(&saved), None);
        }
    }

    #[test]
    fn a_spoilt_table_is_replaced_whatever_its_generation() {
        let (folder, saved) = folder();
        saved.save(&table(12)).unwrap();
        let path = folder.path().join(NAME);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(r#""routes":[]"#, r#""routes":[ ]"#)).unwrap();
        saved.save(&table(9)).unwrap();
        assert_eq!(loaded(&saved), Some(table(9)));
    }

    #[test]
    fn a_table_of_the_first_kiln_is_read_and_gets_a_checksum() {
        let (folder, saved) = folder();
        let first = r#"{"generation":4,"routes":[],"draining":[]}"#;
        std::fs::write(folder.path().join(NAME), first).unwrap();
        assert_eq!(loaded(&saved), Some(table(4)));
        saved.save(&table(4)).unwrap();
        assert_eq!(loaded(&saved), Some(table(4)));
        let text = std::fs::read_to_string(folder.path().join(NAME)).unwrap();
        assert!(text.starts_with(r#"{"checksum":"sha256:"#), "{text}");
    }

    #[test]
    fn an_older_table_never_replaces_a_newer_one() {
        let (_folder, saved) = folder();
        saved.save(&table(7)).unwrap();
        saved.save(&table(6)).unwrap();
        assert_eq!(loaded(&saved), Some(table(7)));
    }
}
