//! Where a step is carried out: a folder of its own on the store's disk, or in memory where that has room for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_engine::Overlay;
use kiln_engine::memory::MemoryFolder;

use crate::error::BakeError;

/// A folder of a step's own, removed with everything in it.
pub(crate) struct Scratch {
    path: PathBuf,
    memory: Option<MemoryFolder>,
}

impl Scratch {
    pub(crate) fn new(work: &Path) -> Result<Self, BakeError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = work.join(format!("step-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).map_err(BakeError::io(&path))?;
        Ok(Self { path, memory: None })
    }

    /// In memory, with at most `size` bytes; where the kernel has none to give, on the disk all the same.
    pub(crate) fn in_memory(work: &Path, size: u64) -> Result<Self, BakeError> {
        let mut scratch = Self::new(work)?;
        scratch.memory = MemoryFolder::mount(&scratch.path, size).ok();
        Ok(scratch)
    }

    /// Whether something may have failed because no more fits into memory.
    pub(crate) fn is_full(&self) -> bool {
        self.memory.as_ref().is_some_and(MemoryFolder::is_full)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, BakeError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(BakeError::io(&path))?;
        // It may become the root of an image, which is not the umask's to decide.
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&path, mode).map_err(BakeError::io(&path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.memory = None;
        // What can't be removed now is in the way of nothing.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Scratch folders of bakes that were killed.
pub(crate) fn sweep(work: &Path) {
    for entry in fs::read_dir(work)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix("step-")
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // What it looked into is mounted still, and its folder where that was in memory.
            let free = Overlay::unmount_left(&entry.path());
            if free.is_ok() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_bake_left_is_unmounted_and_removed() {
        let work = tempfile::tempdir().unwrap();
        // No process has the number 0.
        let left = work.path().join("step-0-7");
        fs::create_dir(&left).unwrap();
        std::mem::forget(MemoryFolder::mount(&left, 1 << 20).unwrap());
        fs::write(left.join("file"), "").unwrap();
        let own = work.path().join(format!("step-{}-7", std::process::id()));
        fs::create_dir(&own).unwrap();
        sweep(work.path());
        assert!(!left.exists() && own.exists());
    }
}
