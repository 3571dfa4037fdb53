//! Whether files are as a commit has them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use kiln_bake::{FileStat, Listings};
use kiln_git::object::{self, Kind, Mode, Oid, TreeItem};
use rustix::fs::FileType;

use super::index::Index;
use super::objects::Objects;
use super::{GitError, Input};

pub(super) struct TreeEntry {
    pub(super) mode: Mode,
    pub(super) oid: Oid,
}

pub(super) type Tree = BTreeMap<Vec<u8>, TreeEntry>;

/// A work tree beside the commit that is checked out in it.
pub(super) struct Comparing<'a> {
    pub(super) objects: &'a Objects,
    pub(super) index: &'a Index,
    pub(super) work_tree: &'a Path,
    /// The tree of the commit.
    pub(super) root: Oid,
    pub(super) listings: &'a Listings,
}

impl Comparing<'_> {
    /// The first file or folder there that is not as the commit has it. What is outside of the work tree is in no commit.
    pub(super) fn differs(&self, input: &Input<'_>) -> Result<Option<PathBuf>, GitError> {
        let Some(inside) = self.inside(&input.path) else {
            return Ok(Some(input.path.clone()));
        };
        let entry = find(self.objects, self.root, inside)?;
        let there = match FileStat::at(&input.path) {
            Ok(there) => Some(there),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                None
            }
            Err(source) => return Err(io_at(&input.path, source)),
        };
        let mut path = input.path.clone();
        let differs = self.entry_differs(entry.as_ref(), there.as_ref(), &mut path, input)?;
        Ok(differs.then_some(path))
    }

    fn inside<'p>(&self, path: &'p Path) -> Option<&'p Path> {
        path.strip_prefix(self.work_tree).ok()
    }

    /// `path` is left at what differs.
    fn entry_differs(
        &self,
        entry: Option<&TreeEntry>,
        there: Option<&FileStat>,
        path: &mut PathBuf,
        input: &Input<'_>,
    ) -> Result<bool, GitError> {
        // Folders are looked into, since something in them may be taken all the same.
        let is_folder = there.is_some_and(|there| there.kind == FileType::Directory)
            || entry.is_some_and(|entry| entry.mode == Mode::Folder);
        if input.leaves_out(path, is_folder) {
            return Ok(false);
        }
        let (entry, there) = match (entry, there) {
            (None, None) => return Ok(false),
            // Git knows no empty folder, so that one which is not in the commit is as it was committed.
            (None, Some(there)) => {
                return if there.kind == FileType::Directory {
                    self.folder_differs(&Tree::new(), path, input)
                } else {
                    Ok(true)
                };
            }
            (Some(_), None) => return Ok(true),
            (Some(entry), Some(there)) => (entry, there),
        };
        match (entry.mode, there.kind) {
            (Mode::Folder, FileType::Directory) => {
                self.folder_differs(&tree(self.objects, entry.oid)?, path, input)
            }
            (Mode::Link, FileType::Symlink) => {
                let target = std::fs::read_link(&path).map_err(|source| io_at(path, source))?;
                Ok(blob(target.as_os_str().as_bytes()) != entry.oid)
            }
            (Mode::File | Mode::Executable, FileType::RegularFile) => {
                let executable = there.mode & 0o100 != 0;
                if executable != (entry.mode == Mode::Executable) {
                    return Ok(true);
                }
                // Of ten thousand of them, taking them apart would be what takes the time.
                let whole = path.as_os_str().as_bytes();
                let above = self.work_tree.as_os_str().as_bytes();
                let inside = whole[above.len()..].strip_prefix(b"/");
                if inside.is_some_and(|name| self.index.holds(name, &there.stamp, entry.oid)) {
                    return Ok(false);
                }
                let bytes = std::fs::read(&path).map_err(|source| io_at(path, source))?;
                Ok(blob(&bytes) != entry.oid)
            }
            // Of submodules too.
            _ => Ok(true),
        }
    }

    fn folder_differs(
        &self,
        tree: &Tree,
        path: &mut PathBuf,
        input: &Input<'_>,
    ) -> Result<bool, GitError> {
        let listing = self
            .listings
            .of(path)
            .map_err(|source| io_at(path, source))?;
        let mut there = listing.iter().peekable();
        let mut committed = tree.iter().peekable();
        // Both in the order of their names' bytes.
        loop {
            let (name, entry, found) = match (committed.peek(), there.peek()) {
                (None, None) => return Ok(false),
                (Some((wanted, _)), Some((name, _))) => match wanted[..].cmp(name.as_bytes()) {
                    Ordering::Less => (OsStr::from_bytes(wanted), committed.next(), None),
                    Ordering::Equal => (*name, committed.next(), there.next()),
                    Ordering::Greater => (*name, None, there.next()),
                },
                (Some((wanted, _)), None) => (OsStr::from_bytes(wanted), committed.next(), None),
                (None, Some((name, _))) => (*name, None, there.next()),
            };
            // Git's own, where a whole repository is copied.
            if name == ".git" {
                continue;
            }
            path.push(name);
            let (entry, found) = (entry.map(|one| one.1), found.map(|one| one.1));
            if self.entry_differs(entry, found, path, input)? {
                return Ok(true);
            }
            path.pop();
        }
    }
}

pub(super) fn find(
    objects: &Objects,
    root: Oid,
    path: &Path,
) -> Result<Option<TreeEntry>, GitError> {
    let mut entry = Some(TreeEntry {
        mode: Mode::Folder,
        oid: root,
    });
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        entry = match entry {
            Some(TreeEntry {
                mode: Mode::Folder,
                oid,
            }) => tree(objects, oid)?.remove(name.as_bytes()),
            _ => None,
        };
    }
    Ok(entry)
}

pub(super) fn root_tree(objects: &Objects, commit: Oid) -> Result<Option<Oid>, GitError> {
    let (kind, bytes) = objects.read(commit)?;
    Ok(object::tree_of(&bytes).filter(|_| kind == Kind::Commit))
}

pub(super) fn tree(objects: &Objects, oid: Oid) -> Result<Tree, GitError> {
    let (kind, bytes) = objects.read(oid)?;
    if kind != Kind::Tree {
        return Err(GitError::Damaged(oid.to_string()));
    }
    let items = object::tree(&bytes).ok_or_else(|| GitError::Damaged(oid.to_string()))?;
    let entry = |TreeItem { mode, name, oid }| (name, TreeEntry { mode, oid });
    Ok(items.into_iter().map(entry).collect())
}

/// The name that Git gives to a file's contents.
fn blob(bytes: &[u8]) -> Oid {
    Oid::of(Kind::Blob, bytes)
}

fn io_at(path: &Path, source: std::io::Error) -> GitError {
    GitError::Io {
        path: path.to_owned(),
        source,
    }
}
