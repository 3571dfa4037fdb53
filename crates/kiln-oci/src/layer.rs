//! The one description of a layer that both of its forms are written from.
//!
//! A tree holds metadata only: what a file contains is named (a file below a directory, a range of a file,
//! bytes), and read when a writer comes to it, so that a layer of gigabytes costs memory for its names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::content::Content;
pub use crate::layer_error::LayerError;
pub(crate) use crate::layer_error::to_path;

/// The extended attribute by which overlayfs knows that a directory hides those below it.
pub(crate) const OVERLAY_OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Linux's bound for one component of a path (NAME_MAX).
pub(crate) const NAME_MAX: usize = 255;

/// What an entry is.
#[derive(Clone, Debug)]
pub enum Kind {
    Dir {
        /// Hides what the layers below have in it.
        opaque: bool,
    },
    File {
        content: Content,
        size: u64,
    },
    Symlink {
        target: Vec<u8>,
    },
    CharDev {
        major: u32,
        minor: u32,
    },
    BlockDev {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// The same file as the one at `target` (a path within the layer, which is not a hard link itself). The
    /// metadata is the target's; this entry's own is ignored.
    Hardlink {
        target: PathBuf,
    },
    /// What the layers below have here is deleted. Only the time of its metadata is kept.
    Whiteout,
}

/// One path of a layer.
#[derive(Clone, Debug)]
pub struct Entry {
    pub kind: Kind,
    /// The permission bits, 07777 at most.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Full names (`security.capability`), each with its value.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// An entry of root's, at time 0, without extended attributes.
    pub fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        }
    }

    pub fn dir(mode: u32) -> Self {
        Self::new(Kind::Dir { opaque: false }, mode)
    }

    /// A file of these bytes.
    pub fn bytes(bytes: impl Into<Arc<[u8]>>, mode: u32) -> Self {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        let content = Content::Bytes(bytes);
        Self::new(Kind::File { content, size }, mode)
    }

    pub fn symlink(target: impl AsRef<OsStr>) -> Self {
        let target = target.as_ref().as_bytes().to_vec();
        Self::new(Kind::Symlink { target }, 0o777)
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, seconds: i64) -> Self {
        self.mtime = seconds;
        self
    }

    fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir { .. })
    }
}

/// A layer: paths, sorted by their bytes, each with its entry. The root is always there, as the empty path,
/// and every entry's parent is a directory of the tree.
#[derive(Clone)]
pub struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl fmt::Debug for Tree {
    /// The paths only: contents and attributes would hide them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(path, _)| path))
            .finish()
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A layer with nothing but its root, 0755 and root's.
    pub fn new() -> Self {
        Self {
            entries: BTreeMap::from([(Vec::new(), Entry::dir(0o755))]),
        }
    }

    /// Puts `entry` at `path` (leading `/` and `./` are dropped), in place of what was there. Parents that are
    /// missing become directories of root's, 0755, with the entry's time. Putting anything but a directory in
    /// place of a directory removes what was in it.
    pub fn insert(&mut self, path: impl AsRef<Path>, entry: Entry) -> Result<(), LayerError> {
        let key = normalise(path.as_ref())?;
        self.insert_key(key, entry)
    }

    pub(crate) fn insert_key(&mut self, key: Vec<u8>, mut entry: Entry) -> Result<(), LayerError> {
        entry.mode &= 0o7777;
        match &mut entry.kind {
            // The kernel's own encoding of a whiteout; one form keeps both writers equal.
            Kind::CharDev { major: 0, minor: 0 } => entry.kind = Kind::Whiteout,
            Kind::Hardlink { target } => *target = to_path(&normalise(target)?).to_path_buf(),
            Kind::Dir { .. }
            | Kind::File { .. }
            | Kind::Symlink { .. }
            | Kind::CharDev { .. }
            | Kind::BlockDev { .. }
            | Kind::Fifo
            | Kind::Whiteout => {}
        }
        if matches!(entry.kind, Kind::Whiteout) {
            let mtime = entry.mtime;
            entry = Entry::new(Kind::Whiteout, 0).mtime(mtime);
        }
        if key.is_empty() && !entry.is_dir() {
            return Err(LayerError::PathInvalid {
                path: PathBuf::from("/"),
            });
        }
        self.make_parents(&key, entry.mtime)?;
        if !entry.is_dir() {
            self.remove_below(&key);
        }
        self.entries.insert(key, entry);
        Ok(())
    }

    fn make_parents(&mut self, key: &[u8], mtime: i64) -> Result<(), LayerError> {
        let Some(parent) = parent_of(key) else {
            return Ok(());
        };
        match self.entries.get(parent) {
            Some(entry) if entry.is_dir() => Ok(()),
            Some(_) => Err(LayerError::ParentNotDirectory {
                path: to_path(key).to_path_buf(),
                parent: to_path(parent).to_path_buf(),
            }),
            None => {
                let parent = parent.to_vec();
                self.make_parents(&parent, mtime)?;
                self.entries.insert(parent, Entry::dir(0o755).mtime(mtime));
                Ok(())
            }
        }
    }

    fn remove_below(&mut self, key: &[u8]) {
        let keys = self.keys_below(key);
        for key in keys {
            self.entries.remove(&key);
        }
    }

    fn keys_below(&self, key: &[u8]) -> Vec<Vec<u8>> {
        if key.is_empty() {
            return self.entries.keys().skip(1).cloned().collect();
        }
        let (mut from, mut to) = (key.to_vec(), key.to_vec());
        from.push(b'/');
        to.push(b'/' + 1);
        self.entries
            .range(from..to)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Removes `path` and what is below it. False where nothing was there. The root stays.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> bool {
        let Ok(key) = normalise(path.as_ref()) else {
            return false;
        };
        self.remove_below(&key);
        !key.is_empty() && self.entries.remove(&key).is_some()
    }

    pub fn get(&self, path: impl AsRef<Path>) -> Option<&Entry> {
        self.entries.get(&normalise(path.as_ref()).ok()?)
    }

    pub fn get_mut(&mut self, path: impl AsRef<Path>) -> Option<&mut Entry> {
        self.entries.get_mut(&normalise(path.as_ref()).ok()?)
    }

    /// All entries by path, the root (the empty path) first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Path, &Entry)> {
        self.entries
            .iter()
            .map(|(key, entry)| (to_path(key), entry))
    }

    pub(crate) fn keys(&self) -> impl ExactSizeIterator<Item = (&[u8], &Entry)> {
        self.entries
            .iter()
            .map(|(key, entry)| (key.as_slice(), entry))
    }

    pub(crate) fn get_key(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// How many entries there are besides the root.
    pub fn len(&self) -> usize {
        self.entries.len() - 1
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What all files hold together, in bytes; a file with several names once.
    pub fn content_size(&self) -> u64 {
        self.entries
            .values()
            .map(|entry| match entry.kind {
                Kind::File { size, .. } => size,
                _ => 0,
            })
            .sum()
    }

    /// Sets every time later than `seconds` to it: times before it are the content's own and stay.
    pub fn clamp_mtime(&mut self, seconds: i64) {
        for entry in self.entries.values_mut() {
            entry.mtime = entry.mtime.min(seconds);
        }
    }

    /// Sets every time to `seconds`.
    pub fn set_mtime(&mut self, seconds: i64) {
        for entry in self.entries.values_mut() {
            entry.mtime = seconds;
        }
    }

    /// Checks each hard link, and makes the first name of a file the one that holds it: the order of names is
    /// then the only thing that decides how a layer is written.
    pub(crate) fn settle_links(&mut self) -> Result<(), LayerError> {
        let mut names: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for (key, entry) in &self.entries {
            if let Kind::Hardlink { target } = &entry.kind {
                let target = self.resolve_link(key, target.as_os_str().as_bytes())?;
                names.entry(target).or_default().push(key.clone());
            }
        }
        for (target, mut links) in names {
            links.push(target.clone());
            links.sort();
            let first = links.remove(0);
            let Some(file) = self.entries.remove(&target) else {
                continue;
            };
            for link in links {
                let target = to_path(&first).to_path_buf();
                let mut entry = file.clone();
                entry.kind = Kind::Hardlink { target };
                self.entries.insert(link, entry);
            }
            self.entries.insert(first, file);
        }
        Ok(())
    }

    fn resolve_link(&self, key: &[u8], target: &[u8]) -> Result<Vec<u8>, LayerError> {
        let invalid = || LayerError::LinkTarget {
            path: to_path(key).to_path_buf(),
            target: to_path(target).to_path_buf(),
        };
        let mut target = target.to_vec();
        // A chain longer than there are entries is a circle.
        for _ in 0..self.entries.len() {
            match self.entries.get(&target).map(|entry| &entry.kind) {
                Some(Kind::Hardlink { target: next }) => {
                    target = next.as_os_str().as_bytes().to_vec();
                }
                Some(Kind::Dir { .. } | Kind::Whiteout) | None => return Err(invalid()),
                Some(_) => return Ok(target),
            }
        }
        Err(invalid())
    }

    /// As `settle_links`, without copying a tree that has nothing to settle.
    pub(crate) fn settled(&self) -> Result<std::borrow::Cow<'_, Self>, LayerError> {
        let has_links = self
            .entries
            .values()
            .any(|entry| matches!(entry.kind, Kind::Hardlink { .. }));
        if !has_links {
            return Ok(std::borrow::Cow::Borrowed(self));
        }
        let mut tree = self.clone();
        tree.settle_links()?;
        Ok(std::borrow::Cow::Owned(tree))
    }
}

/// The bytes of a path within a layer: no leading `/`, no `.`, no empty component; `..` and NUL are refused.
pub(crate) fn normalise(path: &Path) -> Result<Vec<u8>, LayerError> {
    let bytes = path.as_os_str().as_bytes();
    let mut key = Vec::with_capacity(bytes.len());
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => {
                return Err(LayerError::PathInvalid {
                    path: path.to_path_buf(),
                });
            }
            part if part.contains(&0) => {
                return Err(LayerError::PathInvalid {
                    path: path.to_path_buf(),
                });
            }
            // The marker of a deleted path may be as much longer than a name as the mark is.
            part if part.strip_prefix(b".wh.").unwrap_or(part).len() > NAME_MAX => {
                return Err(LayerError::NameTooLong {
                    path: path.to_path_buf(),
                });
            }
            part => {
                if !key.is_empty() {
                    key.push(b'/');
                }
                key.extend_from_slice(part);
            }
        }
    }
    Ok(key)
}

/// The parent's path; none for the root.
pub(crate) fn parent_of(key: &[u8]) -> Option<&[u8]> {
    if key.is_empty() {
        return None;
    }
    let end = key.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    Some(&key[..end])
}

/// The last component.
pub(crate) fn name_of(key: &[u8]) -> &[u8] {
    let start = key
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    &key[start..]
}
