//! From an overlay's upper directory to a layer: what a step of a bake changed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, major, minor};

use crate::content::Content;
use crate::layer::{Entry, Kind, LayerError, OVERLAY_OPAQUE, Tree, to_path};

/// Linux's own bounds (XATTR_LIST_MAX, XATTR_SIZE_MAX): a first buffer this large needs no second call.
pub(crate) const XATTR_MAX: usize = 65536;

impl Tree {
    /// The layer that `dir`, the upper directory of an overlay that is no longer written to, holds; or the
    /// content of any directory. Sockets are left out, as tar has none.
    ///
    /// A character device 0/0 is a whiteout, `trusted.overlay.opaque=y` an opaque directory; overlayfs's other
    /// attributes are dropped, except that a reference to lower content is an error, as it would be lost.
    pub fn from_upper(dir: &Path) -> Result<Self, LayerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(|source| io_error("open", dir)(source.into()))?;
        let mut walk = Walk {
            tree: Self::new(),
            root: Arc::new(root),
            base: dir.to_path_buf(),
            first_names: HashMap::new(),
            buffer: vec![0; XATTR_MAX],
        };
        walk.add(dir, Vec::new())?;
        walk.tree.settle_links()?;
        Ok(walk.tree)
    }
}

pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

struct Walk {
    tree: Tree,
    root: Arc<std::os::fd::OwnedFd>,
    base: PathBuf,
    /// The first path of each file that has several, by device and inode.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl Walk {
    fn add(&mut self, path: &Path, key: Vec<u8>) -> Result<(), LayerError> {
        let meta = fs::symlink_metadata(path).map_err(io_error("examine", path))?;
        let kind = meta.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let (xattrs, opaque) = xattrs(path, &mut self.buffer)?;
        let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
        let mut entry = Entry::new(Kind::Fifo, meta.mode() & 0o7777)
            .owner(meta.uid(), meta.gid())
            .mtime(meta.mtime());
        entry.xattrs = xattrs;
        entry.kind = if kind.is_dir() {
            Kind::Dir { opaque }
        } else if let Some(target) = self.earlier_name(&meta, &key) {
            Kind::Hardlink { target }
        } else if kind.is_file() {
            let relative = path.strip_prefix(&self.base).unwrap_or(path);
            Kind::File {
                content: Content::Under {
                    dir: self.root.clone(),
                    path: relative.to_path_buf(),
                },
                size: meta.len(),
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(io_error("read the link", path))?;
            Kind::Symlink {
                target: target.into_os_string().into_vec(),
            }
        } else if kind.is_char_device() {
            Kind::CharDev { major, minor }
        } else if kind.is_block_device() {
            Kind::BlockDev { major, minor }
        } else {
            Kind::Fifo
        };
        self.tree.insert_key(key.clone(), entry)?;
        if kind.is_dir() {
            let mut names = Vec::new();
            for child in fs::read_dir(path).map_err(io_error("list", path))? {
                names.push(child.map_err(io_error("list", path))?.file_name());
            }
            names.sort();
            for name in names {
                let mut child = key.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(name.as_bytes());
                self.add(&path.join(&name), child)?;
            }
        }
        Ok(())
    }

    fn earlier_name(&mut self, meta: &fs::Metadata, key: &[u8]) -> Option<PathBuf> {
        // Overlayfs links all of its whiteouts to one inode: they are no hard links of the person's.
        let is_whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
        if meta.nlink() < 2 || is_whiteout {
            return None;
        }
        let id = (meta.dev(), meta.ino());
        if let Some(first) = self.first_names.get(&id) {
            return Some(to_path(first).to_path_buf());
        }
        self.first_names.insert(id, key.to_vec());
        None
    }
}

/// The attributes that a layer keeps, and whether overlayfs's own say that the directory is opaque.
pub(crate) fn xattrs(path: &Path, buffer: &mut [u8]) -> Result<(Xattrs, bool), LayerError> {
    let read =
        |error: rustix::io::Errno| io_error("read the extended attributes of", path)(error.into());
    let mut xattrs = Xattrs::new();
    let mut opaque = false;
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(read(error)),
    };
    if length == 0 {
        return Ok((xattrs, opaque));
    }
    let names = buffer[..length].to_vec();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let length = rustix::fs::lgetxattr(path, name, &mut buffer[..]).map_err(read)?;
        let value = &buffer[..length];
        if name == OVERLAY_OPAQUE {
            opaque = value == b"y";
        } else if matches!(
            name,
            b"trusted.overlay.redirect" | b"trusted.overlay.metacopy"
        ) {
            return Err(LayerError::OverlayReference {
                path: path.to_path_buf(),
                name: String::from_utf8_lossy(name).into_owned(),
            });
        } else if !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.") {
            xattrs.insert(name.to_vec(), value.to_vec());
        }
    }
    Ok((xattrs, opaque))
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayerError {
    move |source| LayerError::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}
