//! The caches that steps keep from one bake to the next (`RUN --mount=type=cache`), as pruning sees them: folders that nothing refers
//! to, each with the lock of whoever has it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::Store;
use super::error::{StoreError, io_error};

/// Behind the name of a cache that is being removed.
const GONE: &str = ".gone";

/// A cache that was removed, or would be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PrunedMount {
    /// As a Dockerfile names it.
    pub id: String,
    /// On the disk, in bytes.
    pub size: u64,
}

/// A cache that no step has. Nobody gets it while this lives.
pub(super) struct IdleMount {
    folder: PathBuf,
    pub(super) id: String,
    pub(super) size: u64,
    pub(super) used: SystemTime,
    _lock: File,
}

impl Store {
    fn mounts_path(&self) -> PathBuf {
        self.dir.join("mounts")
    }

    /// The caches that no step has, and what those take that steps have.
    pub(super) fn idle_mounts(&self) -> Result<(Vec<IdleMount>, u64), StoreError> {
        let mut idle = Vec::new();
        let mut busy = 0;
        let all = self.mounts_path();
        let entries = match fs::read_dir(&all) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((idle, busy)),
            entries => entries.map_err(io_error("list", &all))?,
        };
        for entry in entries {
            let folder = entry.map_err(io_error("list", &all))?.path();
            if is_gone(&folder) {
                continue;
            }
            let path = folder.join("lock");
            let size = size_of(&folder).map_err(io_error("examine", &folder))?;
            let lock = match File::open(&path) {
                // It is only being made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                lock => lock.map_err(io_error("open", &path))?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    busy += size;
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
            // Taken and removed by another prune in between.
            let is_same = fs::metadata(&path).ok().map(|there| there.ino())
                == lock.metadata().ok().map(|there| there.ino());
            if !is_same {
                continue;
            }
            // Without one, whoever made it was stopped before it was of use.
            let id = fs::read_to_string(folder.join("id")).unwrap_or_default();
            let used = lock.metadata().and_then(|meta| meta.modified());
            idle.push(IdleMount {
                folder,
                id,
                size,
                used: used.map_err(io_error("examine", &path))?,
                _lock: lock,
            });
        }
        idle.sort_by(|a, b| a.folder.cmp(&b.folder));
        Ok((idle, busy))
    }

    /// Removes what others left of caches that they were removing.
    pub(super) fn sweep_mounts(&self) -> Result<(), StoreError> {
        let all = self.mounts_path();
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            let folder = entry.path();
            if is_gone(&folder) {
                remove(&folder)?;
            }
        }
        Ok(())
    }
}

impl IdleMount {
    /// Under its name it is gone at once, so that who wants it next makes a new one.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        let mut name = self.folder.clone().into_os_string();
        name.push(format!("{GONE}-{}", std::process::id()));
        let gone = PathBuf::from(name);
        fs::rename(&self.folder, &gone).map_err(io_error("rename", &self.folder))?;
        remove(&gone)
    }
}

fn is_gone(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default();
    name.to_string_lossy().contains(GONE)
}

fn remove(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// What a folder takes on the disk. What is removed meanwhile takes nothing.
fn size_of(path: &Path) -> io::Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let meta = match fs::symlink_metadata(path) {
        Err(error) if gone(&error) => return Ok(0),
        meta => meta?,
    };
    let mut size = meta.blocks() * 512;
    if meta.is_dir() {
        let entries = match fs::read_dir(path) {
            Err(error) if gone(&error) => return Ok(size),
            entries => entries?,
        };
        for entry in entries {
            size += size_of(&entry?.path())?;
        }
    }
    Ok(size)
}
