//! The processes of a data root, found by the locks that they have rather than by the files in `run/`: these can be
//! removed under a living kiln, and a lock is open for as long as its process lives.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_fs::Process;
use rustix::process::Signal;

use crate::failure::Failure;

/// A proxy that is asked to end finishes its requests first; a process that was stopped never hears of it.
const TERM_DEADLINE: Duration = Duration::from_secs(12);
/// After SIGKILL only a system call that can't be interrupted keeps a process.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process of kiln on this root that is no instance's: supervisor, controller or proxy.
pub(crate) struct Holder {
    process: Process,
    /// Its lock is no longer in `run/`: nobody can find it there, and another of its kind would start beside it.
    pub(crate) is_lost: bool,
    is_supervisor: bool,
}

/// Everyone who has a lock file of the root's `run/` open.
pub(crate) fn holders(root: &Path) -> Result<Vec<Holder>, Failure> {
    let failed = |path: &Path, source| Failure::Root {
        path: path.to_owned(),
        source,
    };
    // As the kernel names its files.
    let run = match root.canonicalize() {
        Ok(root) => root.join("run"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(root, source)),
    };
    let proc = Path::new("/proc");
    let own = std::process::id();
    let mut holders = Vec::new();
    for entry in std::fs::read_dir(proc).map_err(|source| failed(proc, source))? {
        let entry = entry.map_err(|source| failed(proc, source))?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if u32::try_from(pid) == Ok(own) {
            continue;
        }
        let Ok(Some(process)) = Process::open(pid) else {
            continue;
        };
        let locks = locks(&entry.path().join("fd"), &run);
        if locks.is_empty() {
            continue;
        }
        holders.push(Holder {
            process,
            is_lost: locks.iter().any(|lock| lock.is_removed),
            is_supervisor: locks
                .iter()
                .any(|lock| lock.path.ends_with("supervise.lock")),
        });
    }
    Ok(holders)
}

struct Lock {
    path: PathBuf,
    is_removed: bool,
}

/// The lock files below `run` among a process's descriptors. One that ends meanwhile has none.
fn locks(descriptors: &Path, run: &Path) -> Vec<Lock> {
    std::fs::read_dir(descriptors)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|target| lock(&target, run))
        .collect()
}

fn lock(target: &Path, run: &Path) -> Option<Lock> {
    let text = target.to_str()?;
    // proc_pid_fd(5): what was removed is named so.
    let (text, is_removed) = match text.strip_suffix(" (deleted)") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let path = Path::new(text);
    let is_lock = path.extension().is_some_and(|ending| ending == "lock");
    (is_lock && path.starts_with(run)).then(|| Lock {
        path: path.to_owned(),
        is_removed,
    })
}

/// Ends these processes; instances go on. Supervisors first: one that ends in order ends the others, and one that
/// lives would start them again.
pub(crate) fn end(root: &Path, holders: Vec<Holder>) -> Result<(), Failure> {
    let (supervisors, others): (Vec<_>, Vec<_>) =
        holders.into_iter().partition(|one| one.is_supervisor);
    for (group, asked) in [(supervisors, true), (others, false)] {
        if asked {
            signal(root, &group, Signal::TERM)?;
            await_end(root, &group, TERM_DEADLINE)?;
        }
        signal(root, &group, Signal::KILL)?;
        if !await_end(root, &group, KILL_DEADLINE)? {
            return Err(Failure::NotEnded {
                root: root.to_owned(),
                seconds: KILL_DEADLINE.as_secs(),
            });
        }
    }
    Ok(())
}

fn signal(root: &Path, group: &[Holder], signal: Signal) -> Result<(), Failure> {
    for holder in group {
        holder
            .process
            .signal(signal)
            .map_err(|source| Failure::Root {
                path: root.to_owned(),
                source,
            })?;
    }
    Ok(())
}

/// Whether all of them ended in time.
fn await_end(root: &Path, group: &[Holder], patience: Duration) -> Result<bool, Failure> {
    let until = Instant::now() + patience;
    let mut all = true;
    for holder in group {
        let left = until.saturating_duration_since(Instant::now());
        all &= holder
            .process
            .wait(Some(left))
            .map_err(|source| Failure::Root {
                path: root.to_owned(),
                source,
            })?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Has the file open as its standard input.
    fn with_open(path: &Path) -> Child {
        let file = File::create(path).unwrap();
        Command::new("sleep")
            .arg("600")
            .stdin(Stdio::from(file))
            .spawn()
            .unwrap()
    }

    #[test]
    fn whoever_has_a_lock_is_found_also_when_its_file_is_gone_and_can_be_ended() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert!(holders(root).unwrap().is_empty());
        std::fs::create_dir_all(root.join("run/proxy")).unwrap();
        let mut children = [
            with_open(&root.join("run/supervise.lock")),
            with_open(&root.join("run/controller.lock")),
            with_open(&root.join("run/proxy/7.lock")),
            // No lock of the root.
            with_open(&root.join("supervise.lock")),
            with_open(&root.join("run/started")),
        ];
        let found = holders(root).unwrap();
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|holder| !holder.is_lost));
        std::fs::remove_dir_all(root.join("run")).unwrap();
        let found = holders(root).unwrap();
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|holder| holder.is_lost));
        // Stopped, so that it does not hear of SIGTERM.
        let stopped = rustix::process::Pid::from_child(&children[1]);
        rustix::process::kill_process(stopped, Signal::STOP).unwrap();
        end(root, found).unwrap();
        for (index, child) in children.iter_mut().enumerate() {
            let ended = child.try_wait().unwrap().is_some();
            assert_eq!(ended, index < 3, "{index}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
