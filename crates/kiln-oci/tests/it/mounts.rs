//! Mounts that end with their test, and reading a mounted tree back.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
}

impl Mounted {
    /// Mounts the EROFS file straight, without a loop device.
    pub(crate) fn erofs(file: &Path, at: &Path) -> Self {
        Self::erofs_with(file, &[], at)
    }

    /// As `erofs`, with the files that it takes blocks from.
    pub(crate) fn erofs_with(file: &Path, donors: &[PathBuf], at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        let devices = donors
            .iter()
            .map(|donor| format!("device={}", donor.display()));
        let options = CString::new(devices.collect::<Vec<_>>().join(",")).unwrap();
        mount(file, at, "erofs", flags, &*options)
            .unwrap_or_else(|error| panic!("mount {} (as root?): {error}", file.display()));
        Self {
            path: at.to_path_buf(),
        }
    }

    /// A read-only overlay of `layers`, bottom to top.
    pub(crate) fn overlay(layers: &[&Path], at: &Path) -> Self {
        let lowers: Vec<_> = layers.iter().rev().map(|l| l.to_str().unwrap()).collect();
        let options = CString::new(format!("lowerdir={}", lowers.join(":"))).unwrap();
        fs::create_dir_all(at).unwrap();
        mount("overlay", at, "overlay", MountFlags::RDONLY, &*options).expect("mount the overlay");
        Self {
            path: at.to_path_buf(),
        }
    }

    /// A writable overlay over `lower`.
    pub(crate) fn writable(lower: &Path, upper: &Path, work: &Path, at: &Path) -> Self {
        for dir in [upper, work, at] {
            fs::create_dir_all(dir).unwrap();
        }
        let options = CString::new(format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off",
            lower.display(),
            upper.display(),
            work.display()
        ))
        .unwrap();
        mount("overlay", at, "overlay", MountFlags::empty(), &*options).expect("mount the overlay");
        Self {
            path: at.to_path_buf(),
        }
    }

    pub(crate) fn tmpfs(size: &str, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = CString::new(format!("size={size}")).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), &*options)
            .expect("mount a tmpfs (as root?)");
        Self {
            path: at.to_path_buf(),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.path, UnmountFlags::DETACH).expect("unmount");
    }
}

/// All that the kernel says about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: SeenKind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: i64,
    pub(crate) nlink: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SeenKind {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// Everything below `root`, the root as the empty path.
pub(crate) fn read(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut open = vec![(root.to_path_buf(), Vec::new())];
    while let Some((path, key)) = open.pop() {
        let seen = see(&path);
        if seen.kind == SeenKind::Dir {
            for child in fs::read_dir(&path).unwrap() {
                let name = child.unwrap().file_name();
                let mut child = key.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(name.as_bytes());
                open.push((path.join(&name), child));
            }
        }
        all.insert(key, seen);
    }
    all
}

fn see(path: &Path) -> Seen {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let kind = meta.file_type();
    let device = (
        rustix::fs::major(meta.rdev()),
        rustix::fs::minor(meta.rdev()),
    );
    let kind = if kind.is_dir() {
        SeenKind::Dir
    } else if kind.is_file() {
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes.len() as u64, meta.len());
        SeenKind::File(bytes)
    } else if kind.is_symlink() {
        SeenKind::Symlink(fs::read_link(path).unwrap().into_os_string().into_vec())
    } else if kind.is_char_device() {
        SeenKind::Char(device.0, device.1)
    } else if kind.is_block_device() {
        SeenKind::Block(device.0, device.1)
    } else {
        assert!(kind.is_fifo());
        SeenKind::Fifo
    };
    assert_eq!(meta.mtime_nsec(), 0);
    Seen {
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: meta.mtime(),
        nlink: meta.nlink(),
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}
