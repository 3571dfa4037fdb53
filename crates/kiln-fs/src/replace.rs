//! Files that are there whole or as they were before, whatever happens meanwhile: written under another name, synced,
//! renamed, and their folder synced, so that the new name outlives a power failure as well.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, fsync, open, openat, renameat, unlinkat};

/// The file is there, with the mode 0600 and on the disk, when this returns.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (folder, name) = open_folder_of(path)?;
    write(&folder, name, bytes, Mode::RUSR | Mode::WUSR, |_| Ok(()))
}

/// As [`replace`], of the file `name` in an open folder: for a process that has given up its way to the folder.
pub fn replace_at(folder: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    write(folder, name, bytes, Mode::RUSR | Mode::WUSR, |_| Ok(()))
}

/// As [`replace`], of a file that a person keeps: a symbolic link stays one, and mode and owner of the file stay. A new file
/// has the mode that the umask gives.
pub fn replace_in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (path, before) = match path.canonicalize() {
        Ok(real) => {
            let before = fs::metadata(&real)?;
            (real, Some(before))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error),
    };
    let (folder, name) = open_folder_of(&path)?;
    write(&folder, name, bytes, Mode::from_raw_mode(0o666), |file| {
        let Some(before) = &before else {
            return Ok(());
        };
        fchown(file, Some(before.uid()), Some(before.gid()))?;
        // After the owner: a change of owner takes setuid bits away.
        file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))
    })
}

/// The file's bytes. `None`: there is no such file.
pub fn read_optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Syncs the folder that `path` is in: what was made, renamed or removed there outlives a power failure.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let (folder, _) = open_folder_of(path)?;
    Ok(fsync(&folder)?)
}

fn open_folder_of(path: &Path) -> io::Result<(OwnedFd, &Path)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((open(folder, flags, Mode::empty())?, Path::new(name)))
}

fn write(
    folder: impl AsFd,
    name: impl AsRef<Path>,
    bytes: &[u8],
    mode: Mode,
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let name = name.as_ref();
    let (file, temporary) = create_beside(&folder, name, mode)?;
    let put = || -> io::Result<()> {
        prepare(&file)?;
        (&file).write_all(bytes)?;
        file.sync_all()?;
        renameat(&folder, &temporary, &folder, name)?;
        Ok(fsync(&folder)?)
    };
    let result = put();
    if result.is_err() {
        // The cause is told; where the rename was done there is nothing to remove.
        let _ = unlinkat(&folder, &temporary, AtFlags::empty());
    }
    result
}

/// A new file of a name that nobody has, neither another writer at this moment nor a killed one before.
fn create_beside(folder: impl AsFd, name: &Path, mode: Mode) -> io::Result<(File, PathBuf)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut temporary = name.as_os_str().to_owned();
        temporary.push(format!(".{}-{number}.new", std::process::id()));
        match openat(&folder, &temporary, flags, mode) {
            Ok(file) => return Ok((File::from(file), temporary.into())),
            // Left by a process of the same pid that was killed.
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(read_optional(&path).unwrap(), None);
        replace(&path, b"a longer first text").unwrap();
        replace(&path, b"second").unwrap();
        assert_eq!(read_optional(&path).unwrap().unwrap(), b"second");
        let folder_fd = open(folder.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        replace_at(&folder_fd, "state.json", b"third").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["state.json"]);
        sync_folder_of(&path).unwrap();
    }

    #[test]
    fn what_fails_leaves_the_file_before_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        // A folder can't be replaced by a file: so the rename fails, when everything is written.
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"text").is_err());
        assert_eq!(names(folder.path()), ["taken"]);
        assert!(replace(&folder.path().join("none/file"), b"text").is_err());
        assert!(replace(Path::new("/"), b"text").is_err());
    }

    #[test]
    fn writers_at_once_never_mix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared");
        let texts: Vec<Vec<u8>> = (b'a'..b'i').map(|byte| vec![byte; 100_000]).collect();
        std::thread::scope(|scope| {
            for text in &texts {
                scope.spawn(|| {
                    for _ in 0..10 {
                        replace(&path, text).unwrap();
                        assert!(texts.contains(&fs::read(&path).unwrap()));
                    }
                });
            }
        });
        assert_eq!(names(folder.path()), ["shared"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for number in 0..500 {
            let left = format!("file.{}-{number}.new", std::process::id());
            fs::write(folder.path().join(left), "half").unwrap();
        }
        replace(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn a_persons_file_stays_what_it_was_but_for_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let [real, link, new] = ["real", "link", "new"].map(|name| folder.path().join(name));
        fs::write(&real, "before").unwrap();
        chown(&real, Some(7), Some(8)).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        replace_in_place(&link, b"after").unwrap();
        replace_in_place(&new, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"after");
        let meta = fs::metadata(&real).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o640, 7, 8)
        );
        assert_eq!(names(folder.path()), ["link", "new", "real"]);
    }
}
