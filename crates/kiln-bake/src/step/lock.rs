//! One bake at a time carries out a step; another one that wants it waits.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use kiln_model::Digest;
use kiln_oci::Store;

use crate::error::BakeError;

/// The right to carry out a step, until it is dropped.
pub(crate) struct StepLock {
    path: PathBuf,
    _file: File,
}

impl StepLock {
    pub(crate) fn take(store: &Store, key: &Digest) -> Result<Self, BakeError> {
        let folder = store.dir().join("locks");
        fs::create_dir_all(&folder).map_err(BakeError::io(&folder))?;
        let path = folder.join(key.hex());
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(BakeError::io(&path))?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
                .map_err(|errno| BakeError::io(&path)(errno.into()))?;
            let own = file.metadata().map_err(BakeError::io(&path))?;
            // Who had it took the file along; who comes now has another one.
            if fs::metadata(&path).is_ok_and(|there| there.ino() == own.ino()) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for StepLock {
    fn drop(&mut self) {
        // While it is still locked. One that stays is used by the next.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let key = Digest::of(b"step");
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let lock = StepLock::take(&store, &key).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        let left = fs::read_dir(store.dir().join("locks")).unwrap().count();
        assert_eq!(left, 0);
    }
}
