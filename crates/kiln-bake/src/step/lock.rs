//! One bake at a time carries out a step; another one that wants it waits.

use std::fs;

use kiln_fs::LockFile;
use kiln_model::Digest;
use kiln_oci::Store;

use crate::error::BakeError;

/// The right to carry out a step, until it is dropped.
pub(crate) struct StepLock(Option<LockFile>);

impl StepLock {
    pub(crate) fn take(store: &Store, key: &Digest) -> Result<Self, BakeError> {
        let folder = store.dir().join("locks");
        fs::create_dir_all(&folder).map_err(BakeError::io(&folder))?;
        let path = folder.join(key.hex());
        LockFile::take(&path)
            .map(|lock| Self(Some(lock)))
            .map_err(BakeError::io(&path))
    }
}

impl Drop for StepLock {
    fn drop(&mut self) {
        if let Some(lock) = self.0.take() {
            // A file that stays is used by the next.
            let _ = lock.remove();
        }
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
