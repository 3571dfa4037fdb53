//! Advisory locks between processes (flock(2)): one ends with the process that has it, however that ended.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A locked file. The lock ends when this is dropped, or with the process.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Waits until nobody else has the lock. The file is made, mode 0600, where it is not there.
    pub fn take(path: &Path) -> io::Result<Self> {
        loop {
            let file = open(path)?;
            file.lock()?;
            if let Some(lock) = Self::of_present_file(file, path)? {
                return Ok(lock);
            }
        }
    }

    /// `None`: somebody else has the lock.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if let Some(lock) = Self::of_present_file(file, path)? {
                return Ok(Some(lock));
            }
        }
    }

    /// Whoever had the lock before may have removed the file with [`LockFile::remove`]: who comes next locks another one, so
    /// that a lock on this one would keep nobody out.
    fn of_present_file(file: File, path: &Path) -> io::Result<Option<Self>> {
        let locked = file.metadata()?;
        let is_present = match fs::metadata(path) {
            Ok(present) => (present.dev(), present.ino()) == (locked.dev(), locked.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(is_present.then(|| Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// What is written to it says who has the lock, for people.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, and then lets go of the lock. Whoever waits for it goes on with a new file.
    pub fn remove(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Whether some process has the lock of this file. False where there is no file.
///
/// The lock is tried, shared, and let go of at once. Somebody's [`LockFile::try_take`] at that instant is refused: ask
/// only where nobody takes the lock in a race.
pub fn is_locked(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_lock_is_had_by_one_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!is_locked(&path).unwrap());
        let lock = LockFile::try_take(&path).unwrap().unwrap();
        assert!(LockFile::try_take(&path).unwrap().is_none());
        assert!(is_locked(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(lock);
        assert!(!is_locked(&path).unwrap());
        assert!(LockFile::try_take(&path).unwrap().is_some());
    }

    /// Breaks when a lock on a file that was removed meanwhile counts.
    #[test]
    fn one_at_a_time_has_a_lock_whose_file_is_removed_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let lock = LockFile::take(&path).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        lock.remove().unwrap();
                    }
                });
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn where_no_lock_can_be_that_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert!(LockFile::take(&folder.path().join("none/lock")).is_err());
        assert!(LockFile::try_take(folder.path()).is_err());
    }
}
