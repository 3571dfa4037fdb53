//! What a step of a bake has mounted into its root: folders and files of the bake, layers, memory, secrets.
//!
//! Sources are opened while the host's files are still there, and attached after the root was changed, where no link of a target
//! leads out of it.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_remount, move_mount, open_tree,
    unmount,
};
use serde::{Deserialize, Serialize};

use crate::root::{Root, RootError, SAFE, mount_root};
use crate::{layers, tmpfs};

/// A mount of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxMount {
    /// Absolute, inside. Made where it is not there: a folder, or a file for a file.
    pub to: String,
    pub writable: bool,
    pub source: MountSource,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// What is at `inside` below a folder of the host; no link leads out of it. `""` is the folder itself.
    Folder { root: PathBuf, inside: PathBuf },
    /// What is at `inside` in stacked layers, bottom to top. What is written to it is found in the empty folder `scratch`.
    Layers {
        layers: Vec<PathBuf>,
        inside: PathBuf,
        scratch: PathBuf,
    },
    Tmpfs {
        /// Bytes.
        size: Option<u64>,
    },
    /// A file whose content is on no disk.
    Secret {
        content: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

impl std::fmt::Debug for MountSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder { root, inside } => write!(f, "Folder({root:?}, {inside:?})"),
            Self::Layers { inside, .. } => write!(f, "Layers({inside:?})"),
            Self::Tmpfs { size } => write!(f, "Tmpfs({size:?})"),
            // What it is stays out of every log.
            Self::Secret { mode, .. } => write!(f, "Secret({mode:o})"),
        }
    }
}

/// Makes every source one that [`open`] takes, in a mount namespace that nobody else sees.
pub(crate) fn prepare(mounts: &[SandboxMount]) -> Result<Vec<SandboxMount>, String> {
    mounts
        .iter()
        .map(|mount| {
            let MountSource::Layers {
                layers,
                inside,
                scratch,
            } = &mount.source
            else {
                return Ok(mount.clone());
            };
            let root = stack(layers, scratch, mount.writable)
                .map_err(|error| format!("mounting what goes to {}: {error}", mount.to))?;
            let source = MountSource::Folder {
                root,
                inside: inside.clone(),
            };
            Ok(SandboxMount {
                source,
                ..mount.clone()
            })
        })
        .collect()
}

fn stack(stacked: &[PathBuf], scratch: &Path, writable: bool) -> Result<PathBuf, String> {
    let folder = |name: &str| {
        let path = scratch.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok::<_, String>(path)
    };
    let mut lowers = Vec::new();
    for (index, layer) in stacked.iter().enumerate() {
        let point = folder(&format!("lower{index}"))?;
        layers::mount(layer, &point).map_err(|error| format!("{}: {error}", layer.display()))?;
        lowers.push(point);
    }
    let target = folder("stacked")?;
    let root = match (&lowers[..], writable) {
        ([], _) => return Ok(target),
        ([one], false) => Root::Folder { path: one.clone() },
        (many, false) => Root::ReadOnly {
            layers: many[..many.len() - 1].to_vec(),
            top: many[many.len() - 1].clone(),
        },
        (_, true) => Root::Writable {
            lowers,
            upper: folder("upper")?,
            work: folder("work")?,
        },
    };
    mount_root(&root, &target).map_err(|error| error.to_string())?;
    Ok(target)
}

/// A mount whose source is at hand.
pub(crate) struct Opened<'a> {
    mount: &'a SandboxMount,
    tree: Option<(OwnedFd, bool)>,
}

/// To be called before the root is changed. Those that hold others come first.
pub(crate) fn open(mounts: &[SandboxMount]) -> Result<Vec<Opened<'_>>, RootError> {
    let mut opened = mounts
        .iter()
        .map(|mount| {
            let tree = match &mount.source {
                MountSource::Folder { root, inside } => Some(
                    tree(root, inside).map_err(RootError::at("opening what is mounted", inside))?,
                ),
                MountSource::Layers { .. }
                | MountSource::Tmpfs { .. }
                | MountSource::Secret { .. } => None,
            };
            Ok(Opened { mount, tree })
        })
        .collect::<Result<Vec<_>, RootError>>()?;
    let depth = |path: &str| {
        let parts = Path::new(path).components();
        parts
            .filter(|part| matches!(part, Component::Normal(_)))
            .count()
    };
    opened.sort_by_key(|opened| depth(&opened.mount.to));
    Ok(opened)
}

fn tree(root: &Path, inside: &Path) -> io::Result<(OwnedFd, bool)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let source = if inside.as_os_str().is_empty() {
        root
    } else {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(root, inside, flags, Mode::empty(), resolve)?
    };
    let there = rustix::fs::fstat(&source)?;
    let is_folder = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok((open_tree(&source, "", flags)?, is_folder))
}

/// To be called when the container's root is the root.
pub(crate) fn place(opened: Vec<Opened<'_>>) -> Result<(), RootError> {
    for Opened { mount, tree } in opened {
        let target = Path::new(&mount.to);
        let failed = |what| RootError::at(what, target);
        let read_only = if mount.writable {
            MountFlags::empty()
        } else {
            MountFlags::RDONLY
        };
        match (&mount.source, tree) {
            (_, Some((tree, is_folder))) => {
                make_target(target, is_folder).map_err(failed("making the mount point"))?;
                attach(&tree, target).map_err(failed("mounting"))?;
                let flags = MountFlags::BIND | SAFE | read_only;
                mount_remount(target, flags, "").map_err(RootError::at("mounting", target))?;
            }
            (MountSource::Tmpfs { size }, None) => {
                make_target(target, true).map_err(failed("making the mount point"))?;
                let size = size.filter(|size| *size > 0);
                let options = size.map_or_else(String::new, |size| format!("size={size}"));
                tmpfs::mount_at(target, SAFE | read_only, &options)
                    .map_err(failed("mounting the tmpfs"))?;
            }
            (
                MountSource::Secret {
                    content,
                    mode,
                    uid,
                    gid,
                },
                None,
            ) => {
                make_target(target, false).map_err(failed("making the mount point"))?;
                let tree = secret(content, *mode, *uid, *gid).map_err(failed("writing"))?;
                attach(&tree, target).map_err(failed("mounting"))?;
                let flags = MountFlags::BIND | MountFlags::RDONLY | SAFE | MountFlags::NOEXEC;
                mount_remount(target, flags, "").map_err(RootError::at("mounting", target))?;
            }
            (MountSource::Folder { .. } | MountSource::Layers { .. }, None) => {}
        }
    }
    Ok(())
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

fn make_target(target: &Path, is_folder: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if is_folder {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(target, b"")
}

/// A file on a tmpfs of its own, which lives as long as what is mounted of it.
fn secret(content: &[u8], mode: u32, uid: u32, gid: u32) -> io::Result<OwnedFd> {
    let place = Path::new("/dev/.secret");
    fs::create_dir_all(place)?;
    tmpfs::mount_at(place, SAFE | MountFlags::NOEXEC, "mode=0700")?;
    let fill = || {
        let path = place.join("secret");
        let mut file = File::create(&path)?;
        file.write_all(content)?;
        fchown(&file, Some(uid), Some(gid))?;
        file.set_permissions(Permissions::from_mode(mode))?;
        tree(place, Path::new("secret")).map(|(tree, _)| tree)
    };
    let filled = fill();
    unmount(place, UnmountFlags::DETACH)?;
    rustix::fs::unlinkat(CWD, place, AtFlags::REMOVEDIR)?;
    filled
}
