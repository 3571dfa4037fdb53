//! The files of a commit, written to a folder.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_git::object::{Mode, Oid, is_file_name};

use super::GitError;
use super::compare::{Tree, TreeEntry, find, root_tree, tree};
use super::objects::Objects;

pub(super) fn write(
    objects: &Objects,
    commit: Oid,
    prefix: &Path,
    into: &Path,
) -> Result<(), GitError> {
    let absent = || GitError::NoFolder {
        commit: commit.to_string(),
        path: prefix.to_owned(),
    };
    let root = root_tree(objects, commit)?.ok_or_else(absent)?;
    match find(objects, root, prefix)? {
        Some(TreeEntry {
            mode: Mode::Folder,
            oid,
        }) => folder(objects, tree(objects, oid)?, into),
        _ => Err(absent()),
    }
}

fn folder(objects: &Objects, tree_: Tree, into: &Path) -> Result<(), GitError> {
    for (name, TreeEntry { mode, oid }) in tree_ {
        // Nothing may be written outside.
        if !is_file_name(&name) {
            return Err(GitError::Damaged(oid.to_string()));
        }
        let path = into.join(OsString::from_vec(name));
        let failed = |source| GitError::Io {
            path: path.clone(),
            source,
        };
        let made = match mode {
            Mode::Folder => {
                fs::create_dir(&path).map_err(failed)?;
                folder(objects, tree(objects, oid)?, &path)?;
                fs::set_permissions(&path, Permissions::from_mode(0o755))
            }
            Mode::File | Mode::Executable => {
                let (_, bytes) = objects.read(oid)?;
                let bits = if mode == Mode::File { 0o644 } else { 0o755 };
                File::create_new(&path)
                    .and_then(|mut file| file.write_all(&bytes))
                    .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(bits)))
            }
            Mode::Link => {
                let (_, target) = objects.read(oid)?;
                symlink(OsString::from_vec(target), &path)
            }
            Mode::Submodule => return Err(GitError::Submodule { path }),
        };
        made.map_err(failed)?;
    }
    Ok(())
}
