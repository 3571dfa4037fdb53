//! A commit's files written to a folder. Its names are anybody's: none may lead out, and none is written through a link.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use kiln_oci::unpacked_max;

use super::GitSource;
use super::object::{self, Kind, Mode, Oid, TreeItem};
use super::pack::Pack;
use crate::error::BakeError;

/// As deep as any path of Linux can be (PATH_MAX), with names of one letter.
const DEPTH_MAX: usize = 2048;
/// Chromium has half a million. A tree may name another again and again, so that a small pack has any number.
const FILES_MAX: u64 = 4 << 20;

pub(super) fn write(
    source: &GitSource,
    pack: &Pack,
    commit: Oid,
    to: &Path,
) -> Result<(), BakeError> {
    let bytes_max = unpacked_max(pack.length());
    within(source, pack, commit, to, FILES_MAX, bytes_max)
}

fn within(
    source: &GitSource,
    pack: &Pack,
    commit: Oid,
    to: &Path,
    files_max: u64,
    bytes_max: u64,
) -> Result<(), BakeError> {
    let failed = |problem: String| source.error(problem);
    let bytes = pack.object(commit, Kind::Commit).map_err(failed)?;
    let mut tree =
        object::tree_of(&bytes).ok_or_else(|| failed(format!("its commit {commit} is damaged")))?;
    for part in source
        .folder
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
    {
        let entries = read(pack, tree).map_err(failed)?;
        let entry = entries
            .into_iter()
            .find(|entry| entry.name == part.as_bytes() && entry.mode == Mode::Folder);
        tree = entry
            .map(|entry| entry.oid)
            .ok_or_else(|| failed(format!("it has no folder `{}`", source.folder)))?;
    }
    let mut writing = Writing {
        source,
        pack,
        files_max,
        bytes_max,
        files: 0,
        bytes: 0,
    };
    writing.folder(tree, to, 0)
}

struct Writing<'a> {
    source: &'a GitSource,
    pack: &'a Pack,
    files_max: u64,
    bytes_max: u64,
    files: u64,
    bytes: u64,
}

impl Writing<'_> {
    /// `to` is a new folder of ours, so that nothing in it is a link that is followed.
    fn folder(&mut self, tree: Oid, to: &Path, depth: usize) -> Result<(), BakeError> {
        if depth > DEPTH_MAX {
            return Err(self.source.error("its folders are too deep"));
        }
        let items = read(self.pack, tree).map_err(|problem| self.source.error(problem))?;
        for TreeItem { mode, name, oid } in items {
            self.files += 1;
            if self.files > self.files_max {
                let problem = format!("it has more than {} files and folders", self.files_max);
                return Err(self.source.error(problem));
            }
            let path = to.join(OsStr::from_bytes(&name));
            let io = || BakeError::io(&path);
            match mode {
                Mode::Folder => {
                    DirBuilder::new().create(&path).map_err(io())?;
                    fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(io())?;
                    self.folder(oid, &path, depth + 1)?;
                }
                Mode::File | Mode::Executable => {
                    let mut file = File::options()
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(&path)
                        .map_err(io())?;
                    file.write_all(&self.blob(oid)?).map_err(io())?;
                    let mode = if mode == Mode::File { 0o644 } else { 0o755 };
                    file.set_permissions(Permissions::from_mode(mode))
                        .map_err(io())?;
                }
                Mode::Link => {
                    let target = self.blob(oid)?;
                    symlink(OsStr::from_bytes(&target), &path).map_err(io())?;
                }
                Mode::Submodule => {
                    return Err(self.source.error(format!(
                        "it has the submodule `{}`, which kiln does not fetch: ADD that repository itself, and this one by its folders",
                        String::from_utf8_lossy(&name)
                    )));
                }
            }
        }
        Ok(())
    }

    fn blob(&mut self, oid: Oid) -> Result<Vec<u8>, BakeError> {
        let bytes = self
            .pack
            .object(oid, Kind::Blob)
            .map_err(|problem| self.source.error(problem))?;
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            let problem = format!("it unpacks to more than {} bytes", self.bytes_max);
            return Err(self.source.error(problem));
        }
        Ok(bytes)
    }
}

fn read(pack: &Pack, tree: Oid) -> Result<Vec<TreeItem>, String> {
    let bytes = pack.object(tree, Kind::Tree)?;
    object::tree(&bytes)
        .filter(|items| items.iter().all(|item| object::is_file_name(&item.name)))
        .ok_or_else(|| format!("its tree {tree} is damaged, or has a name that no file may have"))
}

#[cfg(test)]
mod tests {
    use super::super::pack::tests::packed;
    use super::*;

    fn source() -> GitSource {
        GitSource::parse("https://x.io/a.git").unwrap()
    }

    fn tree(items: &[(&str, &str, Oid)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (mode, name, oid) in items {
            bytes.extend(format!("{mode} {name}\0").into_bytes());
            bytes.extend(oid.0);
        }
        bytes
    }

    #[test]
    fn a_tree_that_names_another_again_and_again_ends() {
        let blob = b"content".to_vec();
        let mut oid = Oid::of(Kind::Blob, &blob);
        let mut objects = vec![(3, Vec::new(), blob)];
        let mut mode = "100644";
        for _ in 0..9 {
            let names: Vec<String> = (0..10).map(|number| number.to_string()).collect();
            let items: Vec<_> = names.iter().map(|name| (mode, &name[..], oid)).collect();
            let bytes = tree(&items);
            oid = Oid::of(Kind::Tree, &bytes);
            objects.push((2, Vec::new(), bytes));
            mode = "40000";
        }
        let commit = format!("tree {oid}\n").into_bytes();
        let name = Oid::of(Kind::Commit, &commit);
        objects.push((1, Vec::new(), commit));
        let pack = Pack::read(packed(&objects)).unwrap();
        let written = |files: u64, bytes: u64| {
            let to = tempfile::tempdir().unwrap();
            let error = within(&source(), &pack, name, to.path(), files, bytes).unwrap_err();
            error.to_string()
        };
        let files = written(500, u64::MAX);
        assert!(files.contains("more than 500 files"), "{files}");
        let bytes = written(u64::MAX, 3 << 10);
        assert!(bytes.contains("unpacks to more than"), "{bytes}");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let blob = b"content".to_vec();
        let oid = Oid::of(Kind::Blob, &blob);
        for (name, is_right) in [("a", true), ("..", false), (".git", false)] {
            let bytes = tree(&[("100644", name, oid)]);
            let root = Oid::of(Kind::Tree, &bytes);
            let commit = format!("tree {root}\n").into_bytes();
            let commit_name = Oid::of(Kind::Commit, &commit);
            let objects = [
                (3, Vec::new(), blob.clone()),
                (2, Vec::new(), bytes),
                (1, Vec::new(), commit),
            ];
            let pack = Pack::read(packed(&objects)).unwrap();
            let to = tempfile::tempdir().unwrap();
            let written = write(&source(), &pack, commit_name, to.path());
            assert_eq!(written.is_ok(), is_right, "{name}");
        }
    }
}
