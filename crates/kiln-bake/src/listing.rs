//! A folder's names with their stat data, in the order of the names. Contexts of ten thousand files are usual and looked through
//! by every bake: one call a file, relative to its folder, and no memory of its own for each name.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_oci::Stamp;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};

/// What the kernel fills at once.
const BUFFER: usize = 32 << 10;
const THREADS_MAX: usize = 8;
/// Of folders: fewer are read before a thread has begun.
const THREAD_WORTH: usize = 8;

/// What was found under a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct There {
    pub(crate) kind: FileType,
    /// The permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) names: u64,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) stamp: Stamp,
}

impl There {
    // The fields have other types on other architectures.
    #[allow(clippy::unnecessary_cast)]
    fn new(stat: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            names: stat.st_nlink as u64,
            mtime: stat.st_mtime as i64,
            stamp: Stamp::of(stat),
        }
    }

    /// Of `path` itself, a link or not.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self::new(&stat))
    }
}

pub(crate) struct Listing {
    names: Vec<u8>,
    entries: Vec<(Range<usize>, There)>,
}

impl Listing {
    /// The folder is closed again: trees may be deeper than a process has files.
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, folder, flags, Mode::empty())?;
        let mut names = Vec::new();
        let mut places: Vec<Range<usize>> = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reading = RawDir::new(dir.as_fd(), &mut buffer);
        while let Some(entry) = reading.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            if matches!(name, b".\0" | b"..\0") {
                continue;
            }
            let start = names.len();
            names.extend_from_slice(name);
            places.push(start..names.len());
        }
        places.sort_unstable_by(|a, b| names[a.clone()].cmp(&names[b.clone()]));
        let mut entries = Vec::with_capacity(places.len());
        for place in places {
            // With its NUL the kernel takes it as it is.
            let name = std::ffi::CStr::from_bytes_with_nul(&names[place.clone()])
                .map_err(io::Error::other)?;
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries.push((place.start..place.end - 1, There::new(&stat)));
        }
        Ok(Self { names, entries })
    }

    /// Of several folders, in their order. The kernel's work for each name is most of it, so that several threads share it where
    /// there is enough.
    pub(crate) fn of_all(folders: &[PathBuf]) -> Vec<io::Result<Self>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(THREADS_MAX).min(folders.len() / THREAD_WORTH);
        if threads < 2 {
            return folders.iter().map(|folder| Self::of(folder)).collect();
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some((at, folder)) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                folders.get(at).map(|folder| (at, folder))
            } {
                done.push((at, Self::of(folder)));
            }
            done
        };
        let mut done = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut done = work();
            for other in others {
                done.extend(
                    other
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                );
            }
            done
        });
        done.sort_unstable_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, listing)| listing).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&OsStr, &There)> {
        self.entries
            .iter()
            .map(|(name, there)| (OsStr::from_bytes(&self.names[name.clone()]), there))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn all_names_come_in_order_with_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        // More than the kernel gives at once.
        for number in 0..2000 {
            let name = format!("a-name-of-some-length-{number}");
            fs::write(folder.path().join(&name), "x".repeat(number % 7)).unwrap();
            expected.push((name, number % 7));
        }
        fs::create_dir(folder.path().join("b")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("c")).unwrap();
        expected.sort();
        let listing = Listing::of(folder.path()).unwrap();
        let all: Vec<_> = listing.iter().collect();
        assert_eq!(all.len(), 2002);
        for ((name, there), (wanted, size)) in all.iter().zip(&expected) {
            assert_eq!(name.to_str(), Some(wanted.as_str()));
            assert_eq!(there.stamp.size(), *size as u64);
            assert_eq!(there.kind, FileType::RegularFile);
        }
        assert_eq!(all[2000].1.kind, FileType::Directory);
        assert_eq!(all[2001].1.kind, FileType::Symlink);
        assert!(Listing::of(&folder.path().join("c")).is_err());
    }
    #[test]
    fn several_folders_keep_their_order_and_each_its_own_failure() {
        let root = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = (0..100)
            .map(|number| root.path().join(format!("{number:03}")))
            .collect();
        for (number, folder) in folders.iter().enumerate().filter(|(n, _)| *n != 42) {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(format!("file-{number}")), "").unwrap();
        }
        for (number, listing) in Listing::of_all(&folders).into_iter().enumerate() {
            match listing {
                Ok(listing) => {
                    let names: Vec<_> = listing.iter().map(|(name, _)| name.to_owned()).collect();
                    assert_eq!(names, [std::ffi::OsString::from(format!("file-{number}"))]);
                }
                Err(error) => {
                    assert_eq!((number, error.kind()), (42, io::ErrorKind::NotFound));
                }
            }
        }
        assert_eq!(Listing::of_all(&folders).len(), 100);
    }
}
