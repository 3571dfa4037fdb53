//! A folder's names with their stat data, in the order of the names. Contexts of ten thousand files are usual and looked through
//! by every bake: one call a file, relative to its folder, and no memory of its own for each name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kiln_oci::Stamp;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};

/// What the kernel fills at once.
const BUFFER: usize = 32 << 10;

/// What was found under a name.
#[derive(Clone, Copy, Debug)]
pub struct FileStat {
    pub kind: FileType,
    /// The permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u64,
    pub inode: u64,
    pub names: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub stamp: Stamp,
}

impl FileStat {
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
    pub fn at(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self::new(&stat))
    }
}

pub struct Listing {
    names: Vec<u8>,
    entries: Vec<(Range<usize>, FileStat)>,
}

impl Listing {
    /// The folder is closed again: trees may be deeper than a process has files.
    pub fn of(folder: &Path) -> io::Result<Self> {
        Self::read(&open(folder)?)
    }

    fn read(dir: &OwnedFd) -> io::Result<Self> {
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
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries.push((place.start..place.end - 1, FileStat::new(&stat)));
        }
        Ok(Self { names, entries })
    }

    /// In the order of the names' bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &FileStat)> {
        self.entries
            .iter()
            .map(|(name, there)| (OsStr::from_bytes(&self.names[name.clone()]), there))
    }
}

fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, folder, flags, Mode::empty())?)
}

/// What two list that look through one folder at the same time, each for itself: who comes second takes what the first one found.
#[derive(Clone, Default)]
pub struct Listings(Arc<Mutex<Shared>>);

/// Where a listing comes to be; none within where the first one could not list it.
type Place = Arc<OnceLock<Option<Arc<Listing>>>>;

#[derive(Default)]
struct Shared {
    for_two: bool,
    /// By device and inode.
    found: HashMap<(u64, u64), Place>,
}

impl Listings {
    /// From now on there are two.
    pub fn share(&self) {
        self.shared().for_two = true;
    }

    /// From now on there is one, who takes what the other left.
    pub fn end_sharing(&self) {
        self.shared().for_two = false;
    }

    #[allow(clippy::unnecessary_cast)] // as in `FileStat::new`
    pub fn of(&self, folder: &Path) -> io::Result<Arc<Listing>> {
        let dir = open(folder)?;
        let stat = rustix::fs::fstat(&dir)?;
        let Some(place) = self.place((stat.st_dev as u64, stat.st_ino as u64)) else {
            return Listing::read(&dir).map(Arc::new);
        };
        let mut failed = None;
        let found = place.get_or_init(|| match Listing::read(&dir) {
            Ok(listing) => Some(Arc::new(listing)),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        match (found, failed) {
            (Some(found), _) => Ok(Arc::clone(found)),
            (None, Some(error)) => Err(error),
            // The error was told to the other one.
            (None, None) => Listing::read(&dir).map(Arc::new),
        }
    }

    /// Where the listing of a folder goes, or is. Each is taken once.
    fn place(&self, folder: (u64, u64)) -> Option<Place> {
        let mut shared = self.shared();
        if let Some(place) = shared.found.remove(&folder) {
            return Some(place);
        }
        shared
            .for_two
            .then(|| Arc::clone(shared.found.entry(folder).or_default()))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn each_of_two_gets_what_was_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        let add = |name: &str| fs::write(folder.path().join(name), "").unwrap();
        let all = Listings::default();
        let count = || all.of(folder.path()).unwrap().iter().count();
        add("a");
        assert_eq!(count(), 1);
        add("b");
        assert_eq!(count(), 2);
        all.share();
        assert_eq!(count(), 2);
        add("c");
        // The second, and then somebody who lists anew.
        assert_eq!((count(), count()), (2, 3));
        add("d");
        all.end_sharing();
        assert_eq!((count(), count()), (3, 4));
    }
}
