//! The files by which others find the supervisor: the folders of the root, its lock and its socket.
//!
//! Somebody may remove them while it lives (`rm -rf run/`). It then goes on with files that nobody can find: so it looks
//! for them regularly, and makes them anew.

use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kiln_fs::LockFile;

use super::SuperviseError;
use super::handoff::socket_path;

pub(super) struct Place {
    root: PathBuf,
    lock: LockFile,
    socket: FileId,
    pub(super) listener: UnixListener,
}

/// Which file a path means.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    fn at(path: &Path) -> Option<Self> {
        std::fs::symlink_metadata(path).ok().as_ref().map(Self::of)
    }
}

impl Place {
    /// Only one supervisor has the place of a root.
    pub(super) fn take(root: &Path) -> Result<Self, SuperviseError> {
        make_folders(root)?;
        let lock = take_lock(root)?;
        let (listener, socket) = bind(&socket_path(root))?;
        Ok(Self {
            root: root.to_owned(),
            lock,
            socket,
            listener,
        })
    }

    /// Makes anew what is not there any more. True: something was.
    pub(super) fn mend(&mut self) -> Result<bool, SuperviseError> {
        let lock = self.lock.file().metadata().map(|file| FileId::of(&file));
        let has_lock = lock.is_ok_and(|lock| Some(lock) == FileId::at(self.lock.path()));
        let has_socket = Some(self.socket) == FileId::at(&socket_path(&self.root));
        if has_lock && has_socket {
            return Ok(false);
        }
        make_folders(&self.root)?;
        if !has_lock {
            self.lock = take_lock(&self.root)?;
        }
        if !has_socket {
            (self.listener, self.socket) = bind(&socket_path(&self.root))?;
        }
        Ok(true)
    }

    /// A supervisor that fails leaves the others running: the next one adopts them.
    pub(super) fn leave(self) {
        let path = socket_path(&self.root);
        if Some(self.socket) == FileId::at(&path)
            && let Err(error) = std::fs::remove_file(&path)
        {
            super::say(&format!("can't remove {}: {error}", path.display()));
        }
    }
}

fn make_folders(root: &Path) -> Result<(), SuperviseError> {
    for folder in ["", "run", "run/proxy", "log"] {
        let path = root.join(folder);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| SuperviseError::File {
                action: "make the folder",
                path,
                source,
            })?;
    }
    Ok(())
}

fn take_lock(root: &Path) -> Result<LockFile, SuperviseError> {
    let path = root.join("run/supervise.lock");
    let fail = |source| SuperviseError::File {
        action: "lock",
        path: path.clone(),
        source,
    };
    let Some(lock) = LockFile::try_take(&path).map_err(fail)? else {
        let pid = std::fs::read_to_string(&path).map_err(fail)?;
        return Err(SuperviseError::AlreadyRunning {
            root: root.to_owned(),
            pid: pid.trim().to_owned(),
        });
    };
    let mut file = lock.file();
    file.set_len(0).map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(lock)
}

/// Under a temporary name first: it takes connections from the moment it has its own.
fn bind(path: &Path) -> Result<(UnixListener, FileId), SuperviseError> {
    let bound = || -> io::Result<_> {
        let temporary = path.with_extension("new");
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&temporary)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let id = FileId::of(&std::fs::symlink_metadata(&temporary)?);
        std::fs::rename(&temporary, path)?;
        Ok((listener, id))
    };
    bound().map_err(|source| SuperviseError::File {
        action: "listen on",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_removed_is_made_anew_and_what_is_there_is_left() {
        let root = tempfile::tempdir().unwrap();
        let mut place = Place::take(root.path()).unwrap();
        assert!(!place.mend().unwrap());
        std::fs::remove_dir_all(root.path().join("run")).unwrap();
        assert!(place.mend().unwrap());
        assert!(!place.mend().unwrap());
        UnixStream::connect(socket_path(root.path())).unwrap();
        place.listener.accept().unwrap();
        let second = Place::take(root.path()).err().unwrap();
        let own = std::process::id().to_string();
        assert!(matches!(second, SuperviseError::AlreadyRunning { pid, .. } if pid == own));
        // A socket of that name which is another's does not count.
        std::fs::remove_file(socket_path(root.path())).unwrap();
        let other = UnixListener::bind(socket_path(root.path())).unwrap();
        assert!(place.mend().unwrap());
        drop(other);
        place.leave();
        assert!(!socket_path(root.path()).exists());
    }
}
