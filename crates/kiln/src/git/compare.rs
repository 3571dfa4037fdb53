//! Whether files are as a commit has them.

use std::collections::BTreeMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use kiln_bake::git_objects::{self, Kind, Mode, Oid, TreeItem};

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
}

impl Comparing<'_> {
    /// The first file or folder there that is not as the commit has it. What is outside of the work tree is in no commit.
    pub(super) fn differs(&self, input: &Input<'_>) -> Result<Option<PathBuf>, GitError> {
        let Some(inside) = self.inside(&input.path) else {
            return Ok(Some(input.path.clone()));
        };
        let entry = find(self.objects, self.root, inside)?;
        self.entry_differs(entry.as_ref(), &input.path, input)
    }

    fn inside<'p>(&self, path: &'p Path) -> Option<&'p Path> {
        path.strip_prefix(self.work_tree).ok()
    }

    fn entry_differs(
        &self,
        entry: Option<&TreeEntry>,
        path: &Path,
        input: &Input<'_>,
    ) -> Result<Option<PathBuf>, GitError> {
        let io = |source| io_at(path, source);
        let meta = match path.symlink_metadata() {
            Ok(meta) => Some(meta),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                None
            }
            Err(source) => return Err(io(source)),
        };
        // Folders are looked into, since something in them may be taken all the same.
        let is_folder = meta.as_ref().is_some_and(|meta| meta.is_dir())
            || entry.is_some_and(|entry| entry.mode == Mode::Folder);
        if input.leaves_out(path, is_folder) {
            return Ok(None);
        }
        let told = |differs: bool| Ok(differs.then(|| path.to_owned()));
        let (entry, meta) = match (entry, meta) {
            (None, None) => return Ok(None),
            // Git knows no empty folder, so that one which is not in the commit is as it was committed.
            (None, Some(meta)) => {
                return if meta.is_dir() {
                    self.folder_differs(&Tree::new(), path, input)
                } else {
                    told(true)
                };
            }
            (Some(_), None) => return told(true),
            (Some(entry), Some(meta)) => (entry, meta),
        };
        let kind = meta.file_type();
        match entry.mode {
            Mode::Submodule => told(true),
            Mode::Folder if kind.is_dir() => {
                self.folder_differs(&tree(self.objects, entry.oid)?, path, input)
            }
            Mode::Link if kind.is_symlink() => {
                let target = std::fs::read_link(path).map_err(io)?;
                told(blob(target.as_os_str().as_bytes()) != entry.oid)
            }
            Mode::File | Mode::Executable if kind.is_file() => {
                let executable = meta.permissions().mode() & 0o100 != 0;
                if executable != (entry.mode == Mode::Executable) {
                    return told(true);
                }
                let inside = self.inside(path).unwrap_or(path);
                let name = inside.as_os_str().as_bytes();
                if self.index.holds(name, &meta, entry.oid) {
                    return told(false);
                }
                told(blob(&std::fs::read(path).map_err(io)?) != entry.oid)
            }
            Mode::Folder | Mode::Link | Mode::File | Mode::Executable => told(true),
        }
    }

    fn folder_differs(
        &self,
        tree: &Tree,
        path: &Path,
        input: &Input<'_>,
    ) -> Result<Option<PathBuf>, GitError> {
        let io = |source| io_at(path, source);
        for entry in std::fs::read_dir(path).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            // Git's own, where a whole repository is copied.
            if name == ".git" {
                continue;
            }
            if !tree.contains_key(name.as_bytes())
                && let Some(found) = self.entry_differs(None, &path.join(&name), input)?
            {
                return Ok(Some(found));
            }
        }
        for (name, entry) in tree {
            let name = std::ffi::OsString::from_vec(name.clone());
            if let Some(found) = self.entry_differs(Some(entry), &path.join(name), input)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
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
    Ok(git_objects::tree_of(&bytes).filter(|_| kind == Kind::Commit))
}

pub(super) fn tree(objects: &Objects, oid: Oid) -> Result<Tree, GitError> {
    let (kind, bytes) = objects.read(oid)?;
    if kind != Kind::Tree {
        return Err(GitError::Damaged(oid.to_string()));
    }
    let items = git_objects::tree(&bytes).ok_or_else(|| GitError::Damaged(oid.to_string()))?;
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
