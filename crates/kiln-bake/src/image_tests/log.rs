use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::subject::Subject;

/// Of images whose tests failed, the youngest.
const LOGS_KEPT: usize = 20;

/// What the tests of one image said, in one file, of which there is none when all of them passed.
pub(super) struct Log {
    pub(super) path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Log {
    pub(super) fn new(subject: &Subject<'_>) -> Self {
        let name = format!(
            "{}-{}.log",
            subject.name.replace(['/', ':'], "-"),
            subject.digest.short()
        );
        let path = subject.work.join("tests").join(name);
        Self {
            path,
            file: Mutex::new(None),
        }
    }

    /// A log that can't be written is no reason to fail: the error says what matters.
    pub(super) fn write(&self, bytes: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            if let Some(folder) = self.path.parent() {
                let _ = fs::create_dir_all(folder);
                forget(folder, LOGS_KEPT - 1);
            }
            *file = File::create(&self.path).ok();
        }
        if let Some(file) = &mut *file {
            let _ = file.write_all(bytes);
        }
    }

    pub(super) fn line(&self, line: &str) {
        self.write(format!("{line}\n").as_bytes());
    }

    pub(super) fn discard(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes all logs but the youngest: nobody looks for those of images that failed long ago.
fn forget(folder: &Path, kept: usize) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut logs: Vec<(SystemTime, PathBuf)> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    logs.sort();
    for (_, path) in logs.iter().rev().skip(kept) {
        // One that stays is in the way of nothing.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_youngest_logs_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("a.log", 3), ("b.log", 1), ("c.log", 2), ("d.txt", 9)] {
            let file = File::create(folder.path().join(name)).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age * 1000);
            file.set_modified(then).unwrap();
        }
        forget(folder.path(), 2);
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["b.log", "c.log", "d.txt"]);
    }
}
