//! The root of a container, made from inside its own mount namespace. Only the image's own overlay is mounted before the
//! root is changed; everything after it is resolved inside the new root, where no link leads out.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use kiln_model::StartFault;
use serde::{Deserialize, Serialize};

use crate::mounts::{self, SandboxMount};
use crate::spec::TmpfsSpec;
use crate::tree::copy_tree;
use crate::{overlay, sys};

const DEV_SIZE: &str = "mode=755,size=65536k";
/// Of /dev/shm, /run and /tmp unless a `tmpfs` says otherwise; counted in the memory limit.
const SHM_SIZE: &str = "mode=1777,size=67108864";
const RUN_SIZE: &str = "mode=755,size=67108864";
/// Directories that the kernel's and kiln's own file systems are mounted on.
const OWN_MOUNT_POINTS: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];
const SAFE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// What the root is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Root {
    /// Layer folders, bottom to top, below a generated `top`; nothing can be written.
    ReadOnly { layers: Vec<PathBuf>, top: PathBuf },
    /// Folders, bottom to top, under a writable one.
    Writable {
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
    },
    /// A folder as it is.
    Folder { path: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("{what} at {path} failed: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "`tmpfs \"{path}\"`: the image has a file there, and a tmpfs needs a folder: use another path"
    )]
    NotAFolder { path: String },
    #[error(
        "`tmpfs \"{path}\"` leads to {target}, where the kernel's own files are: use another path"
    )]
    NotAPlace { path: String, target: PathBuf },
}

impl RootError {
    pub(crate) fn at<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io {
            what,
            path,
            source: source.into(),
        }
    }

    pub(crate) fn fault(&self) -> StartFault {
        match self {
            Self::Io { .. } => StartFault::Mount,
            Self::NotAFolder { .. } | Self::NotAPlace { .. } => StartFault::Release,
        }
    }
}

/// What an instance knows of names, its own and others'.
pub(crate) struct Names<'a> {
    pub(crate) hostname: &'a str,
    pub(crate) address: Option<std::net::Ipv4Addr>,
    pub(crate) server: Option<std::net::Ipv4Addr>,
    pub(crate) search: Option<&'a str>,
}

/// Fills `top`, the generated layer of an instance: mount points that the image lacks, and the files that name hosts.
/// `layers` are mounted folders, bottom to top.
pub(crate) fn generate_top(
    top: &Path,
    layers: &[PathBuf],
    names: &Names<'_>,
    tmpfs: &[TmpfsSpec],
) -> Result<(), RootError> {
    let make = |path: &Path| match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    fs::create_dir_all(top).map_err(RootError::at("making the folder", top))?;
    fs::set_permissions(top, Permissions::from_mode(0o755))
        .map_err(RootError::at("setting the mode", top))?;
    for name in OWN_MOUNT_POINTS.iter().chain(&["etc"]) {
        let path = top.join(name);
        make(&path).map_err(RootError::at("making the folder", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
            .map_err(RootError::at("setting the mode", &path))?;
    }
    for wanted in tmpfs {
        let mut inside = PathBuf::new();
        for part in Path::new(&wanted.path).components() {
            let std::path::Component::Normal(part) = part else {
                continue;
            };
            inside.push(part);
            let path = top.join(&inside);
            match in_layers(layers, &inside) {
                Some(there) if there.is_dir() => {
                    make(&path).map_err(RootError::at("making the folder", &path))?;
                    // In an overlay the topmost folder's owner and mode are seen.
                    fs::set_permissions(&path, there.permissions())
                        .and_then(|()| chown(&path, Some(there.uid()), Some(there.gid())))
                        .map_err(RootError::at("copying the owner", &path))?;
                }
                // The kernel follows it when it mounts; what it leads to is the image's own business.
                Some(there) if there.is_symlink() => break,
                Some(_) => {
                    return Err(RootError::NotAFolder {
                        path: wanted.path.clone(),
                    });
                }
                None => {
                    make(&path).map_err(RootError::at("making the folder", &path))?;
                    fs::set_permissions(&path, Permissions::from_mode(0o755))
                        .map_err(RootError::at("setting the mode", &path))?;
                }
            }
        }
    }
    let write = |name: &str, text: String| {
        let path = top.join("etc").join(name);
        fs::write(&path, text).map_err(RootError::at("writing", &path))
    };
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let hostname = names.hostname;
    if let Some(address) = names.address {
        hosts.push_str(&format!("{address}\t{hostname}\n"));
    }
    write("hosts", hosts)?;
    write("hostname", format!("{hostname}\n"))?;
    let mut resolver = String::new();
    if let Some(server) = names.server {
        resolver.push_str(&format!("nameserver {server}\n"));
    }
    if let Some(search) = names.search {
        resolver.push_str(&format!("search {search}\n"));
    }
    write("resolv.conf", resolver)
}

/// What the stacked layers have at `path`, the last component not followed; the layers are read-only and ours.
fn in_layers(layers: &[PathBuf], path: &Path) -> Option<fs::Metadata> {
    layers
        .iter()
        .rev()
        .find_map(|layer| fs::symlink_metadata(layer.join(path)).ok())
}

/// Mounts the root at `target` and makes it this process's root. `/proc`, `/dev` and the rest are mounted in it.
pub(crate) fn enter(
    root: &Root,
    target: &Path,
    tmpfs: &[TmpfsSpec],
    mounts: &[SandboxMount],
    privileged: bool,
) -> Result<(), RootError> {
    // Nothing that is mounted here is seen outside, and nothing mounted outside from now on is seen here.
    sys::mount(
        None,
        Path::new("/"),
        None,
        libc::MS_REC | libc::MS_PRIVATE,
        None,
    )
    .map_err(RootError::at("making mounts private", Path::new("/")))?;
    mount_root(root, target)?;
    let folder = |path: &Path| -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Ok(there) if there.is_dir() => Ok(()),
            _ => fs::create_dir_all(path),
        }
    };
    if !matches!(root, Root::ReadOnly { .. }) {
        for name in ["proc", "sys", "dev"] {
            let path = target.join(name);
            folder(&path).map_err(RootError::at("making the folder", &path))?;
        }
    }
    let opened = mounts::open(mounts)?;
    sys::pivot_into(target).map_err(RootError::at("changing the root", target))?;
    own_file_systems(matches!(root, Root::ReadOnly { .. }), privileged)?;
    for wanted in tmpfs {
        mount_seeded(wanted)?;
    }
    mounts::place(opened)?;
    if !privileged {
        hide();
    }
    Ok(())
}

pub(crate) fn mount_root(root: &Root, target: &Path) -> Result<(), RootError> {
    let overlay = |lowers: Vec<&Path>, rest: Option<(&Path, &Path)>, flags| {
        overlay::mount(&lowers, rest, target, flags)
            .map_err(RootError::at("mounting the overlay", target))
    };
    match root {
        Root::ReadOnly { layers, top } => {
            let lowers = layers.iter().chain([top]).map(PathBuf::as_path).collect();
            overlay(lowers, None, libc::MS_RDONLY | SAFE)
        }
        Root::Writable {
            lowers,
            upper,
            work,
        } => {
            if lowers.is_empty() {
                return bind_folder(upper, target);
            }
            let lowers = lowers.iter().map(PathBuf::as_path).collect();
            overlay(lowers, Some((upper, work)), libc::MS_NODEV)
        }
        Root::Folder { path } => bind_folder(path, target),
    }
}

fn bind_folder(path: &Path, target: &Path) -> Result<(), RootError> {
    sys::mount(Some(path), target, None, libc::MS_BIND | libc::MS_REC, None)
        .map_err(RootError::at("binding the folder", path))
}

fn own_file_systems(with_run: bool, privileged: bool) -> Result<(), RootError> {
    let mount = |kind: &'static str, target: &str, flags, data: &str| {
        let data = OsString::from(data);
        let data = (!data.is_empty()).then_some(data.as_os_str());
        sys::mount(
            Some(Path::new(kind)),
            Path::new(target),
            Some(kind),
            flags,
            data,
        )
        .map_err(RootError::at("mounting", Path::new(target)))
    };
    let closed = SAFE | libc::MS_NOEXEC;
    mount("proc", "/proc", closed, "")?;
    let writable = if privileged { 0 } else { libc::MS_RDONLY };
    mount("sysfs", "/sys", closed | writable, "")?;
    // Its own devices are the only ones in the whole tree; without CAP_MKNOD there can be no others.
    mount("tmpfs", "/dev", libc::MS_NOSUID | libc::MS_NOEXEC, DEV_SIZE)?;
    let devices = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    for (name, major, minor) in devices {
        let path = Path::new("/dev").join(name);
        sys::make_device(&path, major, minor)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o666)))
            .map_err(RootError::at("making the device", &path))?;
    }
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ];
    for (target, path) in links {
        symlink(target, path).map_err(RootError::at("linking", Path::new(path)))?;
    }
    for path in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir(path).map_err(RootError::at("making the folder", Path::new(path)))?;
    }
    mount(
        "devpts",
        "/dev/pts",
        libc::MS_NOSUID | libc::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620",
    )?;
    mount("tmpfs", "/dev/shm", closed, SHM_SIZE)?;
    mount("mqueue", "/dev/mqueue", closed, "")?;
    if with_run {
        mount("tmpfs", "/run", SAFE, RUN_SIZE)?;
        mount("tmpfs", "/tmp", SAFE, SHM_SIZE)?;
    }
    Ok(())
}

/// A tmpfs with what the image has at its path, owners and modes kept.
fn mount_seeded(wanted: &TmpfsSpec) -> Result<(), RootError> {
    // A link of the image leads there, and nowhere out of the root. Where the kernel's own files are is no place for others.
    let named = Path::new(&wanted.path);
    let target = &fs::canonicalize(named).map_err(RootError::at("looking at", named))?;
    if target.starts_with("/proc") || target.starts_with("/sys") {
        return Err(RootError::NotAPlace {
            path: wanted.path.clone(),
            target: target.clone(),
        });
    }
    let there = fs::metadata(target).map_err(RootError::at("looking at", target))?;
    if !there.is_dir() {
        return Err(RootError::NotAFolder {
            path: wanted.path.clone(),
        });
    }
    let seed = Path::new("/dev/.seed");
    fs::create_dir_all(seed).map_err(RootError::at("making the folder", seed))?;
    let data = OsString::from(format!(
        "size={},mode={:o},uid={},gid={}",
        wanted.size,
        there.mode() & 0o7777,
        there.uid(),
        there.gid()
    ));
    sys::mount(
        Some(Path::new("tmpfs")),
        seed,
        Some("tmpfs"),
        SAFE,
        Some(&data),
    )
    .map_err(RootError::at("mounting the tmpfs", target))?;
    copy_tree(target, seed).map_err(RootError::at("filling the tmpfs", target))?;
    sys::mount(Some(seed), target, None, libc::MS_MOVE, None)
        .map_err(RootError::at("mounting the tmpfs", target))?;
    fs::remove_dir(seed).map_err(RootError::at("removing", seed))
}

/// The paths that the OCI runtime specification's default configuration masks and makes read-only, those that moby masks since
/// (interrupts and throttling tell of other programs' secrets by their timing), and those of the kernel's memory that a root
/// without capabilities may read.
fn hide() {
    let masked = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/kpagecgroup",
        "/proc/kpagecount",
        "/proc/kpageflags",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/slabinfo",
        "/proc/vmallocinfo",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ];
    let throttling = fs::read_dir("/sys/devices/system/cpu")
        .into_iter()
        .flatten()
        .flatten();
    let throttling = throttling.map(|cpu| cpu.path().join("thermal_throttle"));
    for path in masked.map(PathBuf::from).into_iter().chain(throttling) {
        let path = path.as_path();
        // Not every kernel has every one.
        if path.is_dir() {
            let flags = libc::MS_RDONLY | SAFE | libc::MS_NOEXEC;
            let _ = sys::mount(Some(Path::new("tmpfs")), path, Some("tmpfs"), flags, None);
        } else if path.exists() {
            let _ = sys::mount(
                Some(Path::new("/dev/null")),
                path,
                None,
                libc::MS_BIND,
                None,
            );
        }
    }
    for path in [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(Path::new)
    {
        if path.exists()
            && sys::mount(Some(path), path, None, libc::MS_BIND | libc::MS_REC, None).is_ok()
        {
            let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | SAFE | libc::MS_NOEXEC;
            let _ = sys::mount(None, path, None, flags, None);
        }
    }
}
