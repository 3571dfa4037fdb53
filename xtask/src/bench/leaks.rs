//! What of a data root is alive on the machine: processes, mounts, control groups, network interfaces.
//!
//! Found from the outside, by the kernel's own lists, so that it does not depend on kiln to know of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// A process that names the root in its arguments or its environment.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) arguments: Vec<String>,
}

pub(crate) fn processes(root: &Path) -> Vec<Process> {
    let root = root.to_string_lossy();
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            // One that ends meanwhile has no files any more: it is not alive. A zombie's are empty.
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let named = [&arguments, &environment]
                .into_iter()
                .any(|bytes| names(&String::from_utf8_lossy(bytes), &root));
            named.then(|| Process {
                pid,
                arguments: String::from_utf8_lossy(&arguments)
                    .split('\0')
                    .map(str::to_owned)
                    .collect(),
            })
        })
        .collect()
}

/// Whether the text names this root, and not one that its name is the beginning of.
fn names(text: &str, root: &str) -> bool {
    text.match_indices(root).any(|(at, _)| {
        let after = text[at + root.len()..].chars().next();
        after.is_none_or(|c| matches!(c, '/' | '\0' | ' ' | ':' | ','))
    })
}

/// Mount points below the root or mounted from it, innermost last.
pub(super) fn mounts(root: &Path) -> Vec<PathBuf> {
    let root = root.to_string_lossy();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter(|line| names(line, &root))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect()
}

/// Control groups and network interfaces have no root in their name, so that they are told by the
/// difference from what was there before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    control_groups: BTreeSet<PathBuf>,
    interfaces: BTreeSet<String>,
}

impl Surroundings {
    /// Those of any kiln: the names are kiln's own.
    pub(crate) fn now() -> Self {
        let mut control_groups = BTreeSet::new();
        kiln_groups(Path::new("/sys/fs/cgroup"), 0, &mut control_groups);
        let interfaces = fs::read_dir("/sys/class/net")
            .map(|entries| {
                entries
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .collect()
            })
            .unwrap_or_default();
        Self {
            control_groups,
            interfaces,
        }
    }

    /// What is there now and was not then, one line each.
    pub(crate) fn since(&self, before: &Self) -> Vec<String> {
        let Self {
            control_groups,
            interfaces,
        } = self;
        let groups = control_groups
            .difference(&before.control_groups)
            .map(|group| format!("control group {}", group.display()));
        let interfaces = interfaces
            .difference(&before.interfaces)
            .map(|interface| format!("network interface {interface}"));
        groups.chain(interfaces).collect()
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.control_groups.len(), self.interfaces.len())
    }
}

fn kiln_groups(folder: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || depth > 8 {
            continue;
        }
        if path.to_string_lossy().contains("kiln") {
            found.insert(path.clone());
        }
        kiln_groups(&path, depth + 1, found);
    }
}

/// Processes and mounts that name the root, one line each.
pub(crate) fn of(root: &Path) -> Vec<String> {
    let processes = processes(root).into_iter().map(|process| {
        format!(
            "process {} ({})",
            process.pid,
            process.arguments.join(" ").trim()
        )
    });
    let mounts = mounts(root)
        .into_iter()
        .map(|mount| format!("mount {}", mount.display()));
    processes.chain(mounts).collect()
}

/// Kills and unmounts whatever names the root; returns what that was.
pub(crate) fn remove(root: &Path) -> Vec<String> {
    let mut removed = of(root);
    for process in processes(root) {
        if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, Signal::KILL)
        {
            removed.push(format!("process {}: {error}", process.pid));
        }
    }
    for mount in mounts(root).into_iter().rev() {
        if let Err(error) = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH) {
            removed.push(format!("mount {}: {error}", mount.display()));
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_the_root_in_its_environment() {
        let root = std::env::temp_dir().join(format!("xtask-leaks-{}", std::process::id()));
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env("KILN_ROOT", &root)
            .spawn()
            .unwrap();
        // A spawn returns a little before the kernel shows the new program's environment.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut found = Vec::new();
        while found.is_empty() && std::time::Instant::now() < deadline {
            found = processes(&root).iter().map(|p| p.pid).collect();
        }
        let other = processes(&root.with_extension("other"));
        let removed = remove(&root);
        child.wait().unwrap();
        assert_eq!(found, [child.id()]);
        assert!(other.is_empty());
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(of(&root).is_empty());
    }

    #[test]
    fn a_longer_name_is_another_root() {
        assert!(names("KILN_ROOT=/tmp/a\0", "/tmp/a"));
        assert!(names("/tmp/a/run", "/tmp/a"));
        assert!(!names("/tmp/ab/run /tmp/a-b", "/tmp/a"));
    }
}
