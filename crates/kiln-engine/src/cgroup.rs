//! Limits: version 1 hierarchies, one a controller, or the one hierarchy of version 2, whichever has the controllers.
//!
//! Both are described in the kernel's documentation (admin-guide/cgroup-v1, admin-guide/cgroup-v2.rst).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The period over which `cpu` is measured, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// The last process of a group is gone some moments before the group can be removed.
const REMOVE_TRIES: u32 = 200;
const REMOVE_WAIT: Duration = Duration::from_millis(5);
/// Version 2: what a group hands down to those below.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Version 2: the group of the processes that are in the way of handing down.
const LEAF: &str = "init";
/// Processes that fork while they are moved leave children behind.
const MOVE_TRIES: u32 = 10;

/// Where the controllers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        pids: PathBuf,
    },
    V2 {
        mount: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) memory: Option<u64>,
    pub(crate) cpu_millis: Option<u64>,
    pub(crate) pids: Option<u64>,
}

impl Hierarchy {
    pub(crate) fn find() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
        Self::of(&mounts, |path| {
            fs::read_to_string(path.join("cgroup.controllers")).ok()
        })
    }

    fn of(mounts: &str, controllers: impl Fn(&Path) -> Option<String>) -> Result<Self, String> {
        let fields = || {
            mounts
                .lines()
                .map(|line| line.split(' ').collect::<Vec<_>>())
        };
        for mount in fields().filter(|f| f.len() > 3 && f[2] == "cgroup2") {
            let path = Path::new(mount[1]);
            let has = controllers(path).unwrap_or_default();
            if hands_all(&has) {
                return Ok(Self::V2 {
                    mount: path.to_owned(),
                });
            }
        }
        let v1 = |controller: &str| {
            fields()
                .find(|f| f.len() > 3 && f[2] == "cgroup" && f[3].split(',').any(|o| o == controller))
                .map(|f| PathBuf::from(f[1]))
                .ok_or_else(|| {
                    format!(
                        "the cgroup controller `{controller}` is not mounted: boot with it enabled, or mount it below /sys/fs/cgroup"
                    )
                })
        };
        Ok(Self::V1 {
            memory: v1("memory")?,
            cpu: v1("cpu")?,
            pids: v1("pids")?,
        })
    }

    /// The group `path`, which may not exist yet.
    pub(crate) fn group(&self, path: &str) -> Group {
        Group {
            hierarchy: self.clone(),
            path: path.to_owned(),
        }
    }

    fn roots(&self) -> Vec<&Path> {
        match self {
            Self::V1 { memory, cpu, pids } => vec![memory, cpu, pids],
            Self::V2 { mount } => vec![mount],
        }
    }

    /// The groups below `parent`.
    pub(crate) fn children(&self, parent: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .roots()
            .iter()
            .filter_map(|root| fs::read_dir(root.join(parent)).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// One control group, over all controllers.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    hierarchy: Hierarchy,
    path: String,
}

impl Group {
    fn folders(&self) -> Vec<PathBuf> {
        self.hierarchy
            .roots()
            .into_iter()
            .map(|root| root.join(&self.path))
            .collect()
    }

    /// Makes the group with its limits.
    pub(crate) fn create(&self, limits: Limits) -> io::Result<()> {
        if let Hierarchy::V2 { mount } = &self.hierarchy {
            // A controller is there for a group only when every group above hands it down.
            let mut above = mount.clone();
            for part in Path::new(&self.path) {
                hand_down(&above)?;
                above.push(part);
                match fs::create_dir(&above) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        for folder in self.folders() {
            fs::create_dir_all(folder)?;
        }
        match &self.hierarchy {
            Hierarchy::V1 { memory, cpu, pids } => {
                let memory = memory.join(&self.path);
                // Without it a child's memory is not counted here. Always on in newer kernels, where it can't be written.
                let _ = fs::write(memory.join("memory.use_hierarchy"), "1");
                if let Some(bytes) = limits.memory {
                    fs::write(memory.join("memory.limit_in_bytes"), bytes.to_string())?;
                    // Only where the kernel counts swap.
                    let _ = fs::write(
                        memory.join("memory.memsw.limit_in_bytes"),
                        bytes.to_string(),
                    );
                }
                if let Some(millis) = limits.cpu_millis {
                    let cpu = cpu.join(&self.path);
                    fs::write(cpu.join("cpu.cfs_period_us"), CPU_PERIOD.to_string())?;
                    fs::write(cpu.join("cpu.cfs_quota_us"), quota(millis).to_string())?;
                }
                if let Some(count) = limits.pids {
                    fs::write(pids.join(&self.path).join("pids.max"), count.to_string())?;
                }
            }
            Hierarchy::V2 { mount } => {
                let folder = mount.join(&self.path);
                if let Some(bytes) = limits.memory {
                    fs::write(folder.join("memory.max"), bytes.to_string())?;
                    // Absent where the kernel has no swap accounting.
                    let _ = fs::write(folder.join("memory.swap.max"), "0");
                }
                if let Some(millis) = limits.cpu_millis {
                    fs::write(
                        folder.join("cpu.max"),
                        format!("{} {CPU_PERIOD}", quota(millis)),
                    )?;
                }
                if let Some(count) = limits.pids {
                    fs::write(folder.join("pids.max"), count.to_string())?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn add(&self, pid: i32) -> io::Result<()> {
        for folder in self.folders() {
            fs::write(folder.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// How often the kernel killed in it for the memory limit.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match &self.hierarchy {
            Hierarchy::V1 { memory, .. } => memory.join(&self.path).join("memory.oom_control"),
            Hierarchy::V2 { mount } => mount.join(&self.path).join("memory.events"),
        };
        fs::read_to_string(file)
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// How often it was refused a process for its limit of them.
    pub(crate) fn refused(&self) -> u64 {
        let file = match &self.hierarchy {
            Hierarchy::V1 { pids, .. } => pids.join(&self.path).join("pids.events"),
            Hierarchy::V2 { mount } => mount.join(&self.path).join("pids.events"),
        };
        fs::read_to_string(file)
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
            .unwrap_or(0)
    }

    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .folders()
            .iter()
            .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|line| line.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills each process in it. A pid that the group lists may be another process's by the time of the signal: so the process
    /// is opened first, and then has to be listed still.
    fn kill_all(&self) {
        let opened: Vec<_> = self
            .processes()
            .into_iter()
            .filter_map(|pid| {
                Some((
                    pid,
                    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?,
                ))
            })
            .collect();
        if opened.is_empty() {
            return;
        }
        let listed = self.processes();
        for (pid, process) in opened {
            if listed.contains(&pid) {
                // One that has ended needs none.
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        }
    }

    /// Kills what is left in it and removes it. Nothing to do is no error.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        for attempt in 0.. {
            if let Hierarchy::V2 { mount } = &self.hierarchy {
                // All at once, so that no fork gets away. Since Linux 5.14; the loop below does for older ones.
                let _ = fs::write(mount.join(&self.path).join("cgroup.kill"), "1");
            }
            self.kill_all();
            let mut busy = None;
            for folder in self.folders() {
                match fs::remove_dir(&folder) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => busy = Some(error),
                }
            }
            match busy {
                None => return Ok(()),
                Some(error) if attempt >= REMOVE_TRIES => return Err(error),
                Some(_) => std::thread::sleep(REMOVE_WAIT),
            }
        }
        Ok(())
    }
}

fn hands_all(controllers: &str) -> bool {
    CONTROLLERS
        .iter()
        .all(|wanted| controllers.split_whitespace().any(|has| has == *wanted))
}

/// Gives the groups below `folder` the controllers (version 2).
fn hand_down(folder: &Path) -> io::Result<()> {
    let control = folder.join("cgroup.subtree_control");
    // What is there already needs no right to write.
    if fs::read_to_string(&control).is_ok_and(|has| hands_all(&has)) {
        return Ok(());
    }
    let wanted = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    for _ in 0..MOVE_TRIES {
        match fs::write(&control, &wanted) {
            // A group other than the real root hands nothing down while it has processes. That is met at the top of a cgroup
            // namespace, which is the caller's own: its processes go one group deeper, as container runtimes do it.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => move_to_leaf(folder)?,
            written => return written,
        }
    }
    fs::write(&control, &wanted)
}

fn move_to_leaf(folder: &Path) -> io::Result<()> {
    let leaf = folder.join(LEAF);
    fs::create_dir_all(&leaf)?;
    for pid in fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        match fs::write(leaf.join("cgroup.procs"), pid) {
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved?,
        }
    }
    Ok(())
}

fn quota(millis: u64) -> u64 {
    (millis * CPU_PERIOD / 1000).max(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_that_has_the_controllers_is_used() {
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let all = |_: &Path| Some("cpuset cpu io memory pids".to_owned());
        assert_eq!(
            Hierarchy::of(pure, all),
            Ok(Hierarchy::V2 {
                mount: "/sys/fs/cgroup".into()
            })
        );
        let hybrid = "cgroup /cg/memory cgroup rw,memory 0 0\ncgroup /cg/cpu cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /cg/pids cgroup rw,pids 0 0\ncgroup2 /cg/unified cgroup2 rw 0 0\n";
        let none = |_: &Path| Some("hugetlb".to_owned());
        assert_eq!(
            Hierarchy::of(hybrid, none),
            Ok(Hierarchy::V1 {
                memory: "/cg/memory".into(),
                cpu: "/cg/cpu".into(),
                pids: "/cg/pids".into()
            })
        );
        assert!(Hierarchy::of("", none).unwrap_err().contains("memory"));
    }
}
