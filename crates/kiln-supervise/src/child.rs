//! One child: started or adopted, watched by its pidfd, its stderr in a log file of bounded size.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kiln_fs::{Process, ProcessId};
use rustix::process::{Signal, WaitId, WaitIdOptions};

/// A log longer than this becomes `NAME.1`, and the one of that name before is gone.
const LOG_LIMIT: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    pub(super) started: Instant,
    /// A proxy that accepts connections.
    pub(super) is_ready: bool,
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
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        if let Some(child) = Self::watch(pid)? {
            return Ok(child);
        }
        let status = child.wait()?;
        Err(io::Error::other(format!(
            "process {pid} ended at once ({status}): see its log"
        )))
    }

    /// `None`: it has ended.
    pub(super) fn watch(pid: i32) -> io::Result<Option<Self>> {
        Ok(Process::open(pid)?.map(Self::of))
    }

    /// The very process that was noted down, if it lives.
    pub(super) fn adopt(id: &ProcessId) -> io::Result<Option<Self>> {
        Ok(Process::find(id)?.map(Self::of))
    }

    fn of(process: Process) -> Self {
        Self {
            process,
            started: Instant::now(),
            is_ready: false,
        }
    }

    pub(super) fn id(&self) -> &ProcessId {
        self.process.id()
    }

    pub(super) fn pid(&self) -> i32 {
        self.id().pid
    }

    /// Readable when it has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // One that has ended is noticed by its pidfd as well.
        if let Err(error) = self.process.signal(signal) {
            super::say(&format!("can't signal process {}: {error}", self.pid()));
        }
    }

    /// `Some` once it has ended, with how.
    pub(super) fn ended(&self) -> Option<End> {
        let has_ended = self.process.has_ended().unwrap_or(false);
        has_ended.then(|| reap(self.pidfd()))
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
fn reap(pidfd: BorrowedFd<'_>) -> End {
    let killed = |how| End {
        how,
        gave_up: false,
    };
    match rustix::process::waitid(
        WaitId::PidFd(pidfd),
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_past_its_limit_is_moved_aside_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.log");
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
            std::fs::metadata(folder.path().join("proxy.log.1"))
                .unwrap()
                .len(),
            LOG_LIMIT + 1
        );
    }
}
