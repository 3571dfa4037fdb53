//! One child: started or adopted, watched by its pidfd, its stderr in a log file of bounded size.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::procfs::ProcessId;

/// A log longer than this becomes `NAME.1`, and the one of that name before is gone.
const LOG_LIMIT: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Child {
    pub(super) id: ProcessId,
    pub(super) pidfd: OwnedFd,
    pub(super) started: Instant,
}

impl Child {
    /// In a process group of its own, so that Ctrl-C at the supervisor's terminal doesn't reach it.
    pub(super) fn start(exe: &Path, args: &[OsString], log: &Path) -> io::Result<Self> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(log)?;
        // An upgrade may have removed the file under that name.
        let program = if exe.exists() {
            exe
        } else {
            Path::new("/proc/self/exe")
        };
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Self::watch(pid)?
            .ok_or_else(|| io::Error::other(format!("process {pid} ended at once: see its log")))
    }

    /// `None`: it has ended.
    pub(super) fn watch(pid: i32) -> io::Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            opened => opened?,
        };
        let Some(id) = ProcessId::of(pid) else {
            reap(&pidfd);
            return Ok(None);
        };
        Ok(Some(Self {
            id,
            pidfd,
            started: Instant::now(),
        }))
    }

    /// The very process that was noted down, if it lives.
    pub(super) fn adopt(id: &ProcessId) -> io::Result<Option<Self>> {
        Ok(Self::watch(id.pid)?.filter(|child| child.id == *id))
    }

    pub(super) fn signal(&self, signal: Signal) {
        // The only failure is that it has ended, which its pidfd says as well.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// `Some` once it has ended, with how.
    pub(super) fn ended(&self) -> Option<End> {
        let mut fds = [rustix::event::PollFd::new(
            &self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut fds, Some(&now)) {
            Ok(1..) => Some(reap(&self.pidfd)),
            _ => None,
        }
    }
}

/// How a child ended.
pub(super) struct End {
    /// For the log.
    pub(super) how: String,
    /// By its own decision: what it could not do now it most likely can't a moment later. One that was killed could.
    pub(super) gave_up: bool,
}

/// How a child of ours ended. One that was adopted is not ours to wait for.
fn reap(pidfd: &OwnedFd) -> End {
    use std::os::fd::AsFd;
    let killed = |how| End {
        how,
        gave_up: false,
    };
    match rustix::process::waitid(
        WaitId::PidFd(pidfd.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    ) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End {
                how: format!("exited with {code}"),
                gave_up: true,
            },
            (_, Some(signal)) => killed(format!("was killed by signal {signal}")),
            _ => killed("ended".to_owned()),
        },
        _ => killed("ended".to_owned()),
    }
}

/// Keeps a log file that is being written within its limit: its writer appends, so emptying it is seen at once.
pub(super) fn cap_log(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Ok(());
    };
    if metadata.len() <= LOG_LIMIT {
        return Ok(());
    }
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    std::fs::copy(path, PathBuf::from(old))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// Writes a small file so that it is there whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_past_its_limit_is_moved_aside_while_it_is_written() {
        let folder = std::env::temp_dir().join(format!("kiln-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("proxy.log");
        let mut writer = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        writer
            .write_all(&vec![b'x'; LOG_LIMIT as usize + 1])
            .unwrap();
        cap_log(&path).unwrap();
        writer.write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after\n");
        assert_eq!(
            std::fs::metadata(folder.join("proxy.log.1")).unwrap().len(),
            LOG_LIMIT + 1
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
