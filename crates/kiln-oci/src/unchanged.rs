//! What a layer has again as the layers below it have it: an overlay copies a file up for a `chown` or a `chmod` that changes nothing.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, major, minor};

use crate::content::Content;
use crate::layer::{Entry, Kind, LayerError, Tree};
use crate::upper::{XATTR_MAX, io_error, xattrs};

impl Tree {
    /// Takes out what `below`, the mounted view of the layers below, has with the same type, mode, owner, time, attributes and content.
    /// Folders stay where something in them does, and files with several names, whose links would be lost.
    pub fn leave_out_unchanged(&mut self, below: &Path) -> Result<(), LayerError> {
        let linked: HashSet<PathBuf> = self
            .iter()
            .filter_map(|(_, entry)| match &entry.kind {
                Kind::Hardlink { target } => Some(target.clone()),
                _ => None,
            })
            .collect();
        // Folders that show what is in the one below as well. None on the way to one is a link.
        let mut merged = HashSet::from([PathBuf::new()]);
        let mut entries: HashMap<PathBuf, u64> = HashMap::new();
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; XATTR_MAX];
        for (path, entry) in self.iter().skip(1) {
            let parent = path.parent().unwrap_or(Path::new(""));
            *entries.entry(parent.to_owned()).or_default() += 1;
            if !merged.contains(parent) || linked.contains(path) {
                continue;
            }
            let lower = below.join(path);
            let there = match fs::symlink_metadata(&lower) {
                Ok(there) => there,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("examine", &lower)(error)),
            };
            let is_folder = matches!(entry.kind, Kind::Dir { opaque: false }) && there.is_dir();
            if is_folder {
                merged.insert(path.to_owned());
            }
            if has_metadata(entry, &there)
                && (is_folder || is_same(entry, &there, &lower)?)
                && xattrs(&lower, &mut buffer)?.0 == entry.xattrs
            {
                if is_folder {
                    folders.push(path.to_owned());
                } else {
                    files.push(path.to_owned());
                }
            }
        }
        // What is deeper comes first.
        folders.reverse();
        for path in files.into_iter().chain(folders) {
            if entries.get(&path).is_some_and(|count| *count > 0) {
                continue;
            }
            self.remove(&path);
            if let Some(count) = path.parent().and_then(|parent| entries.get_mut(parent)) {
                *count -= 1;
            }
        }
        Ok(())
    }
}

fn has_metadata(entry: &Entry, there: &Metadata) -> bool {
    (entry.mode, entry.uid, entry.gid) == (there.mode() & 0o7777, there.uid(), there.gid())
        && entry.mtime == there.mtime()
}

fn is_same(entry: &Entry, there: &Metadata, lower: &Path) -> Result<bool, LayerError> {
    let kind = there.file_type();
    let device = (major(there.rdev()), minor(there.rdev()));
    Ok(match &entry.kind {
        Kind::File { content, size } => {
            kind.is_file() && *size == there.len() && {
                let read = io_error("read", lower);
                holds(content, *size, lower).map_err(read)?
            }
        }
        Kind::Symlink { target } => {
            kind.is_symlink()
                && fs::read_link(lower)
                    .map_err(io_error("read the link", lower))?
                    .as_os_str()
                    .as_bytes()
                    == target
        }
        Kind::Fifo => kind.is_fifo(),
        Kind::CharDev { major, minor } => kind.is_char_device() && device == (*major, *minor),
        Kind::BlockDev { major, minor } => kind.is_block_device() && device == (*major, *minor),
        // The first hides, the second has its own names, the third takes away.
        Kind::Dir { .. } | Kind::Hardlink { .. } | Kind::Whiteout => false,
    })
}

fn holds(content: &Content, size: u64, lower: &Path) -> io::Result<bool> {
    let upper = content.open()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let lower = File::from(rustix::fs::open(lower, flags, Mode::empty())?);
    let (mut one, mut other) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    let mut at = 0;
    while at < size {
        let count = upper.read_within(size, &mut one, at)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        lower.read_exact_at(&mut other[..count], at)?;
        if one[..count] != other[..count] {
            return Ok(false);
        }
        at += count as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn paths(tree: &Tree) -> Vec<String> {
        let paths = tree.iter().skip(1);
        paths.map(|(path, _)| path.display().to_string()).collect()
    }

    /// The same files twice.
    fn twice() -> (tempfile::TempDir, Tree, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["below", "upper"] {
            let root = dir.path().join(name);
            fs::create_dir_all(root.join("d/e")).unwrap();
            fs::create_dir(root.join("o")).unwrap();
            for file in ["d/e/same", "d/e/text", "d/mode", "o/in", "one"] {
                fs::write(root.join(file), "text").unwrap();
            }
            fs::hard_link(root.join("one"), root.join("two")).unwrap();
            symlink("same", root.join("d/e/link")).unwrap();
            symlink(".", root.join("here")).unwrap();
        }
        let upper = dir.path().join("upper");
        fs::write(upper.join("d/e/text"), "TEXT").unwrap();
        fs::set_permissions(upper.join("d/mode"), PermissionsExt::from_mode(0o640)).unwrap();
        let mut tree = Tree::from_upper(&upper).unwrap();
        let below = dir.path().join("below");
        // Theirs are those of this moment.
        for (path, entry) in Tree::from_upper(&below).unwrap().iter() {
            tree.get_mut(path).unwrap().mtime = entry.mtime;
        }
        (dir, tree, below)
    }

    #[test]
    fn what_is_as_it_was_is_left_out() {
        let (_dir, mut tree, below) = twice();
        tree.get_mut("d/e/link").unwrap().mtime += 1;
        tree.leave_out_unchanged(&below).unwrap();
        // A link to a file has the file's own entry, and both stay.
        assert_eq!(
            paths(&tree),
            ["d", "d/e", "d/e/link", "d/e/text", "d/mode", "one", "two"]
        );
        let (_dir, mut tree, below) = twice();
        for path in ["d/e/text", "d/mode", "two"] {
            tree.remove(path);
        }
        tree.leave_out_unchanged(&below).unwrap();
        assert_eq!(paths(&tree), Vec::<String>::new());
    }

    #[test]
    fn what_hides_the_layers_below_is_kept_with_what_is_in_it() {
        let (_dir, mut tree, below) = twice();
        tree.get_mut("o").unwrap().kind = Kind::Dir { opaque: true };
        // A folder in place of a link is no way to what the link leads to.
        let here = tree.get("d").unwrap().clone();
        let file = tree.get("d/e/same").unwrap().clone();
        tree.remove("here");
        tree.insert("here", here).unwrap();
        tree.insert("here/one", file).unwrap();
        let mut gone = Entry::new(Kind::Whiteout, 0o644);
        gone.mtime = tree.get("d/mode").unwrap().mtime;
        tree.insert("d/mode", gone).unwrap();
        tree.leave_out_unchanged(&below).unwrap();
        assert_eq!(
            paths(&tree),
            [
                "d", "d/e", "d/e/text", "d/mode", "here", "here/one", "o", "o/in", "one", "two"
            ]
        );
    }

    #[test]
    fn attributes_make_a_difference() {
        let (_dir, mut tree, below) = twice();
        let xattrs = &mut tree.get_mut("d/e/same").unwrap().xattrs;
        xattrs.insert(b"user.a".to_vec(), b"b".to_vec());
        tree.get_mut("o/in").unwrap().uid += 1;
        tree.leave_out_unchanged(&below).unwrap();
        assert!(tree.get("d/e/same").is_some() && tree.get("o/in").is_some());
        assert!(tree.get("d/e/link").is_none());
    }
}
