//! The root of a container, made from inside its own mount namespace. Only the image's own overlay is mounted before the
//! root is changed; everything after it is resolved inside the new root, where no link leads out.

use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive,
    mount_change, mount_move, mount_remount, unmount,
};

use crate::mounts::{self, SandboxMount};
use crate::root::{Root, RootError, SAFE, mount_root};
use crate::spec::TmpfsSpec;
use crate::tmpfs;
use crate::tree::copy_tree;

const DEV_SIZE: &CStr = c"mode=755,size=65536k";
/// Of /dev/shm, /run and /tmp unless a `tmpfs` says otherwise; counted in the memory limit.
const SHM_SIZE: &CStr = c"mode=1777,size=67108864";
const RUN_SIZE: &CStr = c"mode=755,size=67108864";
/// Directories that the kernel's and kiln's own file systems are mounted on.
const OWN_MOUNT_POINTS: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];

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
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
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
    pivot_into(target).map_err(RootError::at("changing the root", target))?;
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

/// pivot_root(".", ".") and the old root unmounted: the idiom of pivot_root(2), NOTES.
fn pivot_into(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

fn own_file_systems(with_run: bool, privileged: bool) -> Result<(), RootError> {
    let mount = |kind: &'static str, target: &str, flags, options: &CStr| {
        let options = (!options.is_empty()).then_some(options);
        rustix::mount::mount(kind, target, kind, flags, options)
            .map_err(RootError::at("mounting", Path::new(target)))
    };
    let closed = SAFE | MountFlags::NOEXEC;
    mount("proc", "/proc", closed, c"")?;
    let read_only = if privileged {
        MountFlags::empty()
    } else {
        MountFlags::RDONLY
    };
    mount("sysfs", "/sys", closed | read_only, c"")?;
    // Its own devices are the only ones in the whole tree; without CAP_MKNOD there can be no others.
    mount(
        "tmpfs",
        "/dev",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        DEV_SIZE,
    )?;
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
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device)
            .map_err(io::Error::from)
            // Whatever the umask is.
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
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=0620",
    )?;
    mount("tmpfs", "/dev/shm", closed, SHM_SIZE)?;
    mount("mqueue", "/dev/mqueue", closed, c"")?;
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
    let options = format!(
        "size={},mode={:o},uid={},gid={}",
        wanted.size,
        there.mode() & 0o7777,
        there.uid(),
        there.gid()
    );
    tmpfs::mount_at(seed, SAFE, &options).map_err(RootError::at("mounting the tmpfs", target))?;
    copy_tree(target, seed).map_err(RootError::at("filling the tmpfs", target))?;
    mount_move(seed, target).map_err(RootError::at("mounting the tmpfs", target))?;
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
            let _ = tmpfs::mount_at(path, MountFlags::RDONLY | SAFE | MountFlags::NOEXEC, "");
        } else if path.exists() {
            let _ = mount_bind("/dev/null", path);
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
        if path.exists() && mount_bind_recursive(path, path).is_ok() {
            let flags = MountFlags::BIND | MountFlags::RDONLY | SAFE | MountFlags::NOEXEC;
            let _ = mount_remount(path, flags, "");
        }
    }
}
