//! A commit's files written to a folder. Its names are anybody's: none may lead out, and none is written through a link.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use super::pack::{Kind, Pack};
use super::{GitSource, Oid};
use crate::error::BakeError;

/// As deep as any path of Linux can be (PATH_MAX), with names of one letter.
const DEPTH_MAX: usize = 2048;

pub(super) fn write(
    source: &GitSource,
    pack: &Pack,
    commit: Oid,
    to: &Path,
) -> Result<(), BakeError> {
    let failed = |problem: String| source.error(problem);
    let bytes = pack.object(commit, Kind::Commit).map_err(failed)?;
    let tree = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .and_then(|line| std::str::from_utf8(line).ok())
        .and_then(|line| Oid::parse(line.strip_prefix("tree ")?))
        .ok_or_else(|| failed(format!("its commit {commit} is damaged")))?;
    let mut tree = tree;
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
    let writing = Writing { source, pack };
    writing.folder(tree, to, 0)
}

struct Writing<'a> {
    source: &'a GitSource,
    pack: &'a Pack,
}

impl Writing<'_> {
    /// `to` is a new folder of ours, so that nothing in it is a link that is followed.
    fn folder(&self, tree: Oid, to: &Path, depth: usize) -> Result<(), BakeError> {
        if depth > DEPTH_MAX {
            return Err(self.source.error("its folders are too deep"));
        }
        for Item { mode, name, oid } in
            read(self.pack, tree).map_err(|problem| self.source.error(problem))?
        {
            let path = to.join(OsStr::from_bytes(&name));
            let io = || BakeError::io(&path);
            let blob = || {
                self.pack
                    .object(oid, Kind::Blob)
                    .map_err(|problem| self.source.error(problem))
            };
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
                    file.write_all(&blob()?).map_err(io())?;
                    let mode = if mode == Mode::File { 0o644 } else { 0o755 };
                    file.set_permissions(Permissions::from_mode(mode))
                        .map_err(io())?;
                }
                Mode::Link => {
                    let target = blob()?;
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Folder,
    File,
    Executable,
    Link,
    Submodule,
}

struct Item {
    mode: Mode,
    name: Vec<u8>,
    oid: Oid,
}

fn read(pack: &Pack, tree: Oid) -> Result<Vec<Item>, String> {
    let bytes = pack.object(tree, Kind::Tree)?;
    parse(&bytes)
        .ok_or_else(|| format!("its tree {tree} is damaged, or has a name that no file may have"))
}

/// `MODE NAME\0` and twenty bytes, again and again.
fn parse(mut bytes: &[u8]) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let nul = bytes.iter().position(|byte| *byte == 0)?;
        let space = bytes[..nul].iter().position(|byte| *byte == b' ')?;
        let mode = match &bytes[..space] {
            b"40000" => Mode::Folder,
            b"100755" => Mode::Executable,
            b"120000" => Mode::Link,
            b"160000" => Mode::Submodule,
            // Old repositories have 100664 as well.
            other if other.starts_with(b"100") => Mode::File,
            _ => return None,
        };
        let name = bytes[space + 1..nul].to_vec();
        let is_name = !name.is_empty()
            && name.len() <= 255
            && !name.contains(&b'/')
            && !matches!(&name[..], b"." | b"..")
            // What Git itself refuses: nothing of it is a repository of its own.
            && !name.eq_ignore_ascii_case(b".git");
        let oid = Oid(bytes.get(nul + 1..nul + 21)?.try_into().ok()?);
        bytes = &bytes[nul + 21..];
        items.push(is_name.then_some(Item { mode, name, oid })?);
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_no_names() {
        let tree = |mode: &str, name: &str| {
            let mut bytes = format!("{mode} {name}\0").into_bytes();
            bytes.extend([7; 20]);
            bytes
        };
        let items = parse(&tree("100644", "a b")).unwrap();
        assert_eq!(
            (items[0].mode, &items[0].name[..]),
            (Mode::File, &b"a b"[..])
        );
        for wrong in [
            tree("100644", ".."),
            tree("100644", "a/b"),
            tree("40000", ".GIT"),
            tree("100644", ""),
            tree("7", "a"),
            tree("100644", "a")[..20].to_vec(),
        ] {
            assert!(parse(&wrong).is_none(), "{wrong:?}");
        }
    }
}
