//! The saved table: what the proxy serves when it starts and no controller is there.
//!
//! Through the folder's descriptor, because once privileges are given up the path to it is closed. Two proxies
//! may save at once while one replaces the other: a lock, and never an older generation over a newer one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kiln_model::{Generation, RoutingTable};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fsync, openat, renameat};
use serde::Deserialize;

use super::ProxyError;

const NAME: &str = "table.json";

#[derive(Debug)]
pub(super) struct Saved {
    folder: OwnedFd,
    lock: OwnedFd,
    path: PathBuf,
    temporary: String,
}

/// Only what is needed to compare: another version may have saved more.
#[derive(Deserialize)]
struct SavedGeneration {
    generation: Generation,
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
        let temporary = format!("table.json.{}", std::process::id());
        Ok(Self {
            folder,
            lock,
            path: path.join(NAME),
            temporary,
        })
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

    /// `None`: never saved. Unreadable is an error, never an empty start.
    pub(super) fn load(&self) -> Result<Option<RoutingTable>, ProxyError> {
        let bytes = self.read().map_err(|source| ProxyError::File {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        let Some(bytes) = bytes else { return Ok(None) };
        let table = serde_json::from_slice(&bytes).map_err(|source| ProxyError::SavedTable {
            path: self.path.clone(),
            source,
        })?;
        Ok(Some(table))
    }

    /// On the disk when it returns: two fsyncs, of the file and of its folder.
    pub(super) fn save(&self, table: &RoutingTable) -> io::Result<()> {
        flock(&self.lock, FlockOperation::LockExclusive)?;
        let written = self.save_locked(table);
        flock(&self.lock, FlockOperation::Unlock)?;
        written
    }

    fn save_locked(&self, table: &RoutingTable) -> io::Result<()> {
        let present = self
            .read()?
            .and_then(|bytes| serde_json::from_slice::<SavedGeneration>(&bytes).ok());
        if present.is_some_and(|present| present.generation >= table.generation) {
            // By the other proxy, which synced it before it let go of the lock.
            return Ok(());
        }
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        let temporary = self.temporary.as_str();
        let mut file = File::from(openat(
            &self.folder,
            temporary,
            flags,
            Mode::RUSR | Mode::WUSR,
        )?);
        file.write_all(&serde_json::to_vec(table)?)?;
        file.sync_all()?;
        renameat(&self.folder, temporary, &self.folder, NAME)?;
        fsync(&self.folder)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> (PathBuf, Saved) {
        let path = std::env::temp_dir().join(format!("kiln-saved-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let fd =
            rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let saved = Saved::new(fd, path.clone()).unwrap();
        (path, saved)
    }

    fn table(generation: u64) -> RoutingTable {
        RoutingTable {
            generation: Generation(generation),
            ..RoutingTable::default()
        }
    }

    #[test]
    fn a_crash_in_the_middle_of_writing_leaves_the_previous_table_whole() {
        let (path, saved) = folder("crash");
        assert_eq!(saved.load().unwrap(), None);
        saved.save(&table(3)).unwrap();
        // What a writer that was killed leaves: half a temporary file.
        std::fs::write(path.join("table.json.1234"), b"{\"generation\":4,\"rou").unwrap();
        assert_eq!(saved.load().unwrap(), Some(table(3)));
        saved.save(&table(4)).unwrap();
        assert_eq!(saved.load().unwrap(), Some(table(4)));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn an_unreadable_table_is_an_error_and_not_an_empty_start() {
        let (path, saved) = folder("unreadable");
        std::fs::write(path.join(NAME), b"{\"generation\":4,\"rou").unwrap();
        let error = saved.load().unwrap_err();
        assert!(error.to_string().contains("Move it aside"), "{error}");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn an_older_table_never_replaces_a_newer_one() {
        let (path, saved) = folder("older");
        saved.save(&table(7)).unwrap();
        saved.save(&table(6)).unwrap();
        assert_eq!(saved.load().unwrap(), Some(table(7)));
        std::fs::remove_dir_all(path).unwrap();
    }
}
