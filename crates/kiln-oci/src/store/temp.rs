//! Files on their way into the store.
//!
//! Each is locked by its writer for as long as that lives: a lock ends with its process, so that what a dead
//! one left can be told from what is being written, also across restarts and reused process ids.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{Advice, fadvise};

use super::error::{StoreError, io_error};

/// The disk begins to write a file after so many bytes, and again after as many more.
const BEGIN_AFTER: u64 = 8 << 20;

/// A file this young may just not be locked yet.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// A file in `tmp`, removed when dropped unless it was given a name.
pub(crate) struct TempFile {
    file: File,
    path: PathBuf,
    named: bool,
    written: u64,
    /// Of that, what the disk was told to write; none of a file that is not to be kept.
    begun: Option<u64>,
}

impl TempFile {
    pub(super) fn create(tmp: &Path) -> Result<Self, StoreError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = tmp.join(format!("{}-{number}", std::process::id()));
            let created = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match created {
                Ok(file) => {
                    let temp = Self {
                        file,
                        path,
                        named: false,
                        written: 0,
                        begun: None,
                    };
                    temp.file.lock().map_err(io_error("lock", &temp.path))?;
                    return Ok(temp);
                }
                // Left by an earlier process of the same id, or a writer in another pid namespace.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error("create", &path)(error)),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It is going to be synced, and large: the disk begins early.
    pub(super) fn synced_soon(mut self) -> Self {
        self.begun = Some(self.written);
        self
    }

    /// An open file without a name: gone when closed, whatever happens.
    pub(super) fn into_anonymous(self) -> Result<File, StoreError> {
        self.share()
    }

    /// The same file once more.
    pub(super) fn share(&self) -> Result<File, StoreError> {
        self.file.try_clone().map_err(io_error("open", &self.path))
    }

    /// Syncs the file, names it `path` in place of what was there, and syncs the folder.
    pub(super) fn persist(self, path: &Path) -> Result<(), StoreError> {
        self.persist_unsynced_name(path)?;
        sync_parent(path)
    }

    /// As `persist`, for a caller who syncs the folder after several.
    pub(super) fn persist_unsynced_name(self, path: &Path) -> Result<(), StoreError> {
        self.sync()?;
        self.rename(path)
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }

    /// Names the file without syncing: for records that may be lost with the power, never half there.
    pub(super) fn rename(mut self, path: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, path).map_err(io_error("name", path))?;
        self.named = true;
        Ok(())
    }

    /// Syncs the file and names it `path` unless there is something: then false.
    pub(super) fn persist_new(self, path: &Path) -> Result<bool, StoreError> {
        self.sync()?;
        match fs::hard_link(&self.path, path) {
            Ok(()) => {
                sync_parent(path)?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(io_error("name", path)(error)),
        }
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        if let Some(begun) = self.begun
            && let Some(length) = NonZeroU64::new(self.written - begun)
            && length.get() >= BEGIN_AFTER
        {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "where the kernel does not begin to write what nobody needs in memory, the sync has more to do"
            )]
            let _ = fadvise(&self.file, begun, Some(length), Advice::DontNeed);
            self.begun = Some(self.written);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.named {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "should it fail, the next opening of the store removes the file"
            )]
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Syncs the folder that `path` is in, so that its name outlives a power failure.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(path);
    kiln_fs::sync_folder_of(path).map_err(io_error("sync", parent))
}

/// Removes files that no living process is writing.
pub(super) fn remove_stale(tmp: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(tmp).map_err(io_error("list", tmp))? {
        let path = entry.map_err(io_error("list", tmp))?.path();
        // Another process may be removing the same: what is gone is no failure.
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let age = file
            .metadata()
            .and_then(|meta| meta.modified())
            .map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
        let is_old = age.is_ok_and(|age| age >= STALE_AFTER);
        if is_old && file.try_lock().is_ok() {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem
                    ) => {}
                Err(error) => return Err(io_error("remove", &path)(error)),
            }
        }
    }
    Ok(())
}
