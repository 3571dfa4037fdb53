//! A folder in memory, for what is written, read once and thrown away: no disk has to keep up with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::tmpfs;

/// A file system in memory, mounted at a folder until it is dropped.
pub struct MemoryFolder {
    path: PathBuf,
}

impl MemoryFolder {
    /// At most `size` bytes may be in it, and as many files as there is memory for. `path` is an empty folder.
    pub fn mount(path: &Path, size: u64) -> io::Result<Self> {
        let options = format!("mode=755,size={size},nr_inodes=0");
        tmpfs::mount_at(path, MountFlags::NOSUID | MountFlags::NODEV, &options)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Whether hardly anything more can be written to it.
    pub fn is_full(&self) -> bool {
        rustix::fs::statvfs(&self.path).is_ok_and(|there| there.f_bavail < there.f_blocks / 16)
    }
}

impl Drop for MemoryFolder {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

/// Bytes that this process may still put into memory without taking it from others: what the machine has left, or what the
/// narrowest of this process's control groups allows.
pub fn available() -> Option<u64> {
    let free = meminfo("MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let limits = limit_files(&groups, &mounts).into_iter();
    let limits = limits.filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    Some(limits.fold(free, u64::min))
}

/// Bytes of the whole machine; `None` where it does not say how many it has.
pub fn total() -> Option<u64> {
    meminfo("MemTotal:")
}

fn meminfo(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

/// Of `/proc/meminfo` (proc_meminfo(5)), in bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The files that hold the limits of a process: of its own group and of all above it. From inside a container, whose groups are
/// mounted as if they were the uppermost ones, some of them are not there.
fn limit_files(groups: &str, mounts: &str) -> Vec<PathBuf> {
    let mount = |kind: &str, controller: Option<&str>| {
        let mut lines = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let fits = |fields: &Vec<&str>| {
            fields.len() > 3
                && fields[2] == kind
                && controller.is_none_or(|name| fields[3].split(',').any(|option| option == name))
        };
        lines.find(fits).map(|fields| PathBuf::from(fields[1]))
    };
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mounted, file) = if controllers.is_empty() {
            (mount("cgroup2", None), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (mount("cgroup", Some("memory")), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let Some(mounted) = mounted else { continue };
        let above = Path::new(group.trim_start_matches('/')).ancestors();
        files.extend(above.map(|group| mounted.join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Overlay, mount_points};

    #[test]
    fn a_folder_in_memory_is_as_large_as_it_was_asked_to_be_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let memory = MemoryFolder::mount(folder.path(), 1 << 20).unwrap();
        let file = folder.path().join("file");
        assert!(!memory.is_full());
        assert!(fs::write(&file, vec![1; 2 << 20]).is_err());
        assert!(memory.is_full());
        drop(memory);
        assert!(!file.exists());
        // As a killed process leaves it.
        let inner = folder.path().join("inner");
        std::mem::forget(MemoryFolder::mount(folder.path(), 1 << 20).unwrap());
        fs::create_dir(&inner).unwrap();
        std::mem::forget(MemoryFolder::mount(&inner, 1 << 20).unwrap());
        Overlay::unmount_left(folder.path()).unwrap();
        let left = mount_points();
        assert!(!left.iter().any(|point| point.starts_with(folder.path())));
    }

    #[test]
    fn the_limits_of_all_groups_above_count() {
        let meminfo = "MemTotal: 9 kB\nMemAvailable:    7 kB\n";
        assert_eq!(field(meminfo, "MemAvailable:"), Some(7168));
        assert_eq!(field(meminfo, "MemFree:"), None);
        assert!(total() > available());
        assert!(available().is_some_and(|bytes| bytes > 0));
        let two = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            limit_files("0::/a/b\n", two),
            paths(&[
                "/sys/fs/cgroup/a/b/memory.max",
                "/sys/fs/cgroup/a/memory.max",
                "/sys/fs/cgroup/memory.max"
            ])
        );
        let one = "c /cg/cpu cgroup rw,cpu 0 0\nc /cg/memory cgroup rw,memory 0 0\n";
        assert_eq!(
            limit_files("4:cpu:/x\n3:memory:/a\n", one),
            paths(&[
                "/cg/memory/a/memory.limit_in_bytes",
                "/cg/memory/memory.limit_in_bytes"
            ])
        );
        assert_eq!(limit_files("0::/a\n", one), paths(&[]));
    }
}
