//! Where packages are unpacked: a folder that lies over what the image has so far, as the upper folder of an overlay does.
//!
//! Paths are resolved as the image will see them: through its own links and never out of it. A folder that only the image below has
//! is made in the upper one with its owner, mode and time.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

use crate::in_root;

/// As many links as the kernel follows (MAXSYMLINKS).
const LINKS: usize = 40;

pub(crate) struct UpperDir {
    upper: PathBuf,
    /// The image so far, read-only.
    below: Option<PathBuf>,
    /// Folders that were made because the image below has them, with the time to be given back at the end.
    copied: Mutex<HashMap<PathBuf, i64>>,
    /// Folders that were not there before.
    made: Mutex<HashSet<PathBuf>>,
    /// Folders of the upper one by paths without links: as long as this lives, they stay.
    folders: Mutex<HashSet<PathBuf>>,
    /// Of those, the ones that hide nothing of what the image below has.
    open: Mutex<HashSet<PathBuf>>,
}

fn has(known: &Mutex<HashSet<PathBuf>>, path: &Path) -> bool {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.contains(path)
}

fn add(known: &Mutex<HashSet<PathBuf>>, path: &Path) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.insert(path.to_owned());
}

enum Lookup {
    Nothing,
    Upper(Metadata),
    Below(Metadata),
}

impl UpperDir {
    pub(crate) fn new(upper: &Path, below: Option<&Path>) -> Self {
        Self {
            upper: upper.to_owned(),
            below: below.map(Path::to_owned),
            copied: Mutex::default(),
            made: Mutex::default(),
            folders: Mutex::default(),
            open: Mutex::default(),
        }
    }

    pub(crate) fn upper(&self) -> &Path {
        &self.upper
    }

    /// What is at `path`, in which no folder is a link.
    fn look_up(&self, path: &Path) -> io::Result<Lookup> {
        match fs::symlink_metadata(self.upper.join(path)) {
            Ok(there) if there.file_type().is_char_device() && there.rdev() == 0 => {
                return Ok(Lookup::Nothing);
            }
            Ok(there) => return Ok(Lookup::Upper(there)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let Some(below) = &self.below else {
            return Ok(Lookup::Nothing);
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        if !has(&self.open, folder) && self.hides(folder) {
            return Ok(Lookup::Nothing);
        }
        match fs::symlink_metadata(below.join(path)) {
            Ok(there) => Ok(Lookup::Below(there)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lookup::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Whether the upper folder hides what the image below has in `folder`: an opaque folder does, and so does a whiteout in the
    /// place of one.
    fn hides(&self, folder: &Path) -> bool {
        let mut above = PathBuf::new();
        for part in folder.components() {
            above.push(part);
            let upper = self.upper.join(&above);
            match fs::symlink_metadata(&upper) {
                Ok(there) if there.is_dir() => {
                    if is_opaque(&upper) {
                        return true;
                    }
                }
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
        add(&self.open, folder);
        false
    }

    /// The place of `path` in the upper folder, all folders above it made. Its last part is no link's to follow.
    pub(crate) fn place(&self, path: &Path) -> io::Result<PathBuf> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = self.folder(path.parent().unwrap_or(Path::new("")), &mut 0)?;
        Ok(folder.join(name))
    }

    /// The folder that `path` leads to, relative to the root and without links, in the upper folder.
    fn folder(&self, path: &Path, links: &mut usize) -> io::Result<PathBuf> {
        if has(&self.folders, path) {
            return Ok(path.to_owned());
        }
        let mut real = PathBuf::new();
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    real.pop();
                    continue;
                }
                Component::RootDir => {
                    real = PathBuf::new();
                    continue;
                }
                Component::CurDir | Component::Prefix(_) => continue,
            };
            let place = real.join(name);
            let there = self.look_up(&place)?;
            real = match there {
                Lookup::Upper(there) | Lookup::Below(there) if there.is_symlink() => {
                    *links += 1;
                    if *links > LINKS {
                        return Err(io::Error::other("too many links lead to it"));
                    }
                    let to = self.link(&place)?;
                    let to = if to.is_absolute() { to } else { real.join(to) };
                    self.folder(&to, links)?
                }
                Lookup::Upper(there) if there.is_dir() => place,
                Lookup::Below(there) if there.is_dir() => {
                    self.copy_up(&place, &there)?;
                    place
                }
                Lookup::Nothing => {
                    self.make(&place)?;
                    place
                }
                Lookup::Upper(_) | Lookup::Below(_) => {
                    return Err(io::Error::other(format!(
                        "{} is no folder, and something is to be in it",
                        place.display()
                    )));
                }
            };
        }
        // Any folder that this leads to is its own path's.
        add(&self.folders, &real);
        Ok(real)
    }

    fn link(&self, path: &Path) -> io::Result<PathBuf> {
        match fs::read_link(self.upper.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match &self.below {
                Some(below) => fs::read_link(below.join(path)),
                None => Err(error),
            },
            other => other,
        }
    }

    fn copy_up(&self, path: &Path, there: &Metadata) -> io::Result<()> {
        let target = self.upper.join(path);
        match fs::create_dir(&target) {
            Ok(()) => {
                chown(&target, Some(there.uid()), Some(there.gid()))?;
                fs::set_permissions(&target, Permissions::from_mode(there.mode() & 0o7777))?;
                let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
                copied.insert(path.to_owned(), there.mtime());
                Ok(())
            }
            // Another thread was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn make(&self, path: &Path) -> io::Result<()> {
        let target = self.upper.join(path);
        if let Ok(there) = fs::symlink_metadata(&target)
            && !there.is_dir()
        {
            // A whiteout: what it hides stays hidden.
            fs::remove_file(&target)?;
            fs::create_dir(&target)?;
            set_opaque(&target)?;
        } else {
            match fs::create_dir(&target) {
                // Another thread was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                other => other?,
            }
        }
        // Where no package says more, it is the image's, and the umask has no part in that.
        fs::set_permissions(&target, Permissions::from_mode(0o755))?;
        add(&self.made, path);
        Ok(())
    }

    /// Whether this made the folder, which has neither owner nor mode yet.
    pub(crate) fn is_made(&self, folder: &Path) -> bool {
        has(&self.made, folder)
    }

    /// A folder of a package, and where it really is. One that is there already stays as it is, and so does a link to one, as with
    /// dpkg.
    pub(crate) fn make_folder(&self, path: &Path) -> io::Result<PathBuf> {
        let place = self.place(path)?;
        if let Lookup::Upper(there) | Lookup::Below(there) = self.look_up(&place)?
            && !there.is_dir()
            && !there.is_symlink()
        {
            self.clear(&place)?;
            self.make(&place)?;
            return Ok(place);
        }
        self.folder(&place, &mut 0)
    }

    /// Takes away what the upper folder has at `place`, so that something else can be there. False: it is a folder.
    pub(crate) fn clear(&self, place: &Path) -> io::Result<bool> {
        match self.look_up(place)? {
            Lookup::Nothing | Lookup::Upper(_) => {}
            Lookup::Below(there) => return Ok(!there.is_dir()),
        }
        let target = self.upper.join(place);
        match fs::symlink_metadata(&target) {
            Ok(there) if there.is_dir() => Ok(false),
            Ok(_) => fs::remove_file(&target).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Gives the copied folders their times back. At the end: each new file changes its folder's.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, time) in copied.iter() {
            set_time(&self.upper.join(path), *time)?;
        }
        Ok(())
    }

    /// A file of the image, as it is now. `path` has no links in it.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let root = match self.look_up(path)? {
            Lookup::Nothing => return Ok(None),
            Lookup::Upper(_) => &self.upper,
            Lookup::Below(_) => self.below.as_ref().unwrap_or(&self.upper),
        };
        in_root::bytes(root, path).map(Some)
    }

    pub(crate) fn read_text(&self, path: &str) -> io::Result<String> {
        let bytes = self.read(Path::new(path))?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let place = self.place(path)?;
        self.clear(&place)?;
        let target = self.upper.join(place);
        fs::write(&target, bytes)?;
        fs::set_permissions(target, Permissions::from_mode(mode))
    }
}

const OPAQUE: &str = "trusted.overlay.opaque";

fn is_opaque(folder: &Path) -> bool {
    let mut value = [0; 1];
    matches!(rustix::fs::lgetxattr(folder, OPAQUE, &mut value[..]), Ok(1)) && value == *b"y"
}

fn set_opaque(folder: &Path) -> io::Result<()> {
    rustix::fs::lsetxattr(folder, OPAQUE, b"y", XattrFlags::empty())?;
    Ok(())
}

pub(crate) fn set_time(path: &Path, seconds: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn upper_dir() -> (tempfile::TempDir, UpperDir) {
        let folder = tempfile::tempdir().unwrap();
        let [upper, below] = ["upper", "below"].map(|name| folder.path().join(name));
        fs::create_dir(&upper).unwrap();
        fs::create_dir_all(below.join("usr/lib/deep")).unwrap();
        fs::set_permissions(below.join("usr/lib"), Permissions::from_mode(0o750)).unwrap();
        set_time(&below.join("usr/lib"), 7).unwrap();
        symlink("usr/lib", below.join("lib")).unwrap();
        symlink("/../../usr/lib/deep", below.join("out")).unwrap();
        symlink("loop", below.join("loop")).unwrap();
        fs::write(below.join("usr/file"), "below").unwrap();
        let upper_dir = UpperDir::new(&upper, Some(&below));
        (folder, upper_dir)
    }

    #[test]
    fn paths_lead_through_the_images_links_and_never_out_of_it() {
        let (_folder, upper_dir) = upper_dir();
        let place = |path: &str| upper_dir.place(Path::new(path));
        assert_eq!(place("lib/x").unwrap(), Path::new("usr/lib/x"));
        assert_eq!(place("out/x").unwrap(), Path::new("usr/lib/deep/x"));
        assert_eq!(place("new/x").unwrap(), Path::new("new/x"));
        assert!(place("loop/x").is_err() && place("usr/file/x").is_err());
        // Only what the image has is read: `/etc/passwd` is here too.
        symlink("/etc/passwd", upper_dir.upper().join("users")).unwrap();
        assert!(upper_dir.read(Path::new("users")).is_err());
        let made = fs::symlink_metadata(upper_dir.upper().join("usr/lib")).unwrap();
        assert_eq!(made.mode() & 0o7777, 0o750);
        fs::write(upper_dir.upper().join("usr/lib/x"), "").unwrap();
        upper_dir.settle().unwrap();
        let made = fs::symlink_metadata(upper_dir.upper().join("usr/lib")).unwrap();
        assert_eq!(made.mtime(), 7);
    }

    #[test]
    fn what_is_there_is_seen_through_and_what_is_new_hides_it() {
        let (_folder, upper_dir) = upper_dir();
        assert_eq!(upper_dir.read_text("usr/file").unwrap(), "below");
        upper_dir
            .write(Path::new("usr/file"), b"upper", 0o600)
            .unwrap();
        assert_eq!(upper_dir.read_text("usr/file").unwrap(), "upper");
        for (path, real, is_made) in [
            ("lib", "usr/lib", false),
            ("usr/lib", "usr/lib", false),
            ("lib/new", "usr/lib/new", true),
        ] {
            let found = upper_dir.make_folder(Path::new(path)).unwrap();
            assert_eq!(found, Path::new(real));
            assert_eq!(upper_dir.is_made(&found), is_made);
        }
        assert!(!upper_dir.clear(Path::new("usr/lib")).unwrap());
    }
}
